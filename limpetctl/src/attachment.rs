//! Edge: `limpetctl attachment`: `run` asks, what is below it is pure.

use std::fmt;
use std::net::IpAddr;

use anyhow::Context;
use clap::Subcommand;
use limpet_api::book::{Attachment, ReleaseRequest, Released};
use limpet_api::paths;
use limpet_net_types::{ContainerId, HostName, IfName, NameError, Namespace, NetworkName};
use serde::Serialize;

use crate::answer::{self, Answer, Answers};
use crate::cli::{self, Done, Output};
use crate::controller::Controller;
use crate::{find, table};

/// How many characters of a container's ID or an incarnation's uid stand for the whole.
const PREFIX: usize = 8;

/// What `attachment` takes; without a verb all attachments are listed.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    scope: Scope,
    #[command(subcommand)]
    verb: Option<Verb>,
}

/// Where to look.
#[derive(Clone, Debug, Default, clap::Args, Serialize)]
struct Scope {
    /// Of this network only
    #[arg(long)]
    network: Option<NetworkName>,
    /// Of this namespace only; _ is that of workloads that have none
    #[arg(short, long)]
    namespace: Option<Namespace>,
    /// On this host only
    #[arg(long)]
    host: Option<HostName>,
}

/// What to do.
#[derive(Debug, Subcommand)]
enum Verb {
    /// List all attachments
    List(Scope),
    /// Show one attachment
    Show {
        #[command(flatten)]
        which: Which,
    },
    /// End an attachment whose container is gone: its host is asked first, and it is refused if the container is
    /// there, unless it is forced
    Release {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        how: How,
        /// Do it; without, what would be lost is shown
        #[arg(long)]
        yes: bool,
    },
}

/// How an attachment is ended.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
struct How {
    /// Also if its container is there: its host takes the interface out of use, and the container has no network any
    /// more
    #[arg(long)]
    force: bool,
    /// Without its host, which is down. If it is only cut off, two containers will have one address until it is back
    #[arg(long, requires = "force")]
    host_is_down: bool,
}

/// Which attachment.
#[derive(Debug, clap::Args)]
struct Which {
    /// An address, the workload's name, or the container's ID or the uid: all of it or its first 8 characters or
    /// more
    #[arg(value_name = "ADDRESS|NAME|ID")]
    wanted: Wanted,
    #[command(flatten)]
    scope: Scope,
    /// The interface, for a container that has several
    #[arg(long)]
    ifname: Option<IfName>,
}

/// How an attachment is named. Every address could be a name too: it is taken for an address.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Wanted {
    /// By an address that it holds.
    Address(IpAddr),
    /// By name, container or uid, which are written alike.
    Text(ContainerId),
}

/// Carries out one command.
pub(crate) fn run(args: &Args, controller: &Controller, output: Output) -> anyhow::Result<Done> {
    let list = Verb::List(args.scope.clone());
    if args.verb.is_some() {
        let Scope { network, namespace, host } = &args.scope;
        cli::no_filter_before_a_verb("--network", network.is_some())?;
        cli::no_filter_before_a_verb("--namespace", namespace.is_some())?;
        cli::no_filter_before_a_verb("--host", host.is_some())?;
    }
    let text = match args.verb.as_ref().unwrap_or(&list) {
        Verb::List(scope) => {
            let attachments = listed(&Search::of(scope), controller)?;
            match output {
                Output::Json => answer::json(&attachments)?,
                Output::Table => rows(&attachments),
            }
        }
        Verb::Show { which } => render(&one(which, controller)?, output)?,
        Verb::Release { which, how, yes: true } => {
            let attachment = one(which, controller)?.record;
            let released: Option<Answer<Released>> = controller
                .delete_where(&paths::attachment(&attachment.key), &how.request())
                .with_context(|| format!("releasing the attachment of {}", label(&attachment)))?;
            let what = format!("the attachment of {}", label(&attachment));
            answer::released(released.as_ref(), &what, output)?
        }
        Verb::Release { which, how, yes: false } => {
            return Ok(Done::Plan(plan(&one(which, controller)?.record, *how)));
        }
    };
    Ok(Done::Answer(text))
}

/// The query of a listing.
#[derive(Serialize)]
struct Search<'a> {
    #[serde(flatten)]
    scope: &'a Scope,
    address: Option<IpAddr>,
    like: Option<&'a ContainerId>,
}

impl<'a> Search<'a> {
    fn of(scope: &'a Scope) -> Self {
        Self { scope, address: None, like: None }
    }
}

fn listed(search: &Search<'_>, controller: &Controller) -> anyhow::Result<Answers<Attachment>> {
    controller.list(paths::ATTACHMENTS, search).context("asking for attachments")
}

fn one(which: &Which, controller: &Controller) -> anyhow::Result<Answer<Attachment>> {
    let search = Search::of(&which.scope);
    let search = match &which.wanted {
        Wanted::Address(address) => Search { address: Some(*address), ..search },
        Wanted::Text(text) => Search { like: Some(text), ..search },
    };
    Ok(meant(which, listed(&search, controller)?.items)?.0)
}

/// Picks the one that is meant: what fits as a whole goes before what only begins so.
fn meant(which: &Which, items: Vec<Answer<Attachment>>) -> Result<Described, find::FindError> {
    let Which { wanted, ifname, .. } = which;
    let right = |item: &Answer<Attachment>| {
        ifname.as_ref().is_none_or(|ifname| item.record.key.ifname == *ifname)
    };
    let (whole, rest): (Vec<_>, Vec<_>) =
        items.into_iter().filter(right).partition(|item| wanted.is(&item.record));
    let found = if whole.is_empty() {
        rest.into_iter().filter(|item| wanted.begins(&item.record)).collect()
    } else {
        whole
    };
    let found = found.into_iter().map(Described).collect();
    find::only("attachment", &wanted.to_string(), found)
}

/// An attachment, described as the candidate that it is.
#[derive(Debug, PartialEq)]
struct Described(Answer<Attachment>);

impl fmt::Display for Described {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let attachment = &self.0.record;
        let (key, addresses) = (&attachment.key, table::addresses(&attachment.addresses));
        let container = table::short(key.container.as_str());
        let label = label(attachment);
        write!(f, "{label} on {}, container {container}, {}, {addresses}", key.host, key.ifname)
    }
}

fn label(attachment: &Attachment) -> String {
    format!("{}/{}", attachment.namespace, attachment.name)
}

impl Wanted {
    fn is(&self, attachment: &Attachment) -> bool {
        match self {
            Self::Address(address) => {
                attachment.addresses.iter().any(|held| held.address == *address)
            }
            Self::Text(text) => {
                let text = text.as_str();
                attachment.key.container.as_str() == text
                    || attachment.name.as_str() == text
                    || attachment.uid.to_string() == text
            }
        }
    }

    fn begins(&self, attachment: &Attachment) -> bool {
        match self {
            Self::Text(text) if text.as_str().len() >= PREFIX => {
                let text = text.as_str();
                attachment.key.container.as_str().starts_with(text)
                    || attachment.uid.to_string().starts_with(text)
            }
            _ => false,
        }
    }
}

impl std::str::FromStr for Wanted {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.parse() {
            Ok(address) => Ok(Self::Address(address)),
            Err(_) => text.parse().map(Self::Text),
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Text(text) => text.fmt(f),
        }
    }
}

impl How {
    fn request(self) -> ReleaseRequest {
        ReleaseRequest { force: self.force, host_is_down: self.host_is_down }
    }
}

fn plan(attachment: &Attachment, how: How) -> String {
    let (key, label) = (&attachment.key, label(attachment));
    let addresses = table::addresses_and_pools(&attachment.addresses);
    let after = if attachment.sticky {
        "its reservation keeps the addresses"
    } else {
        "its addresses become free for others"
    };
    let unless = match how {
        How { host_is_down: true, .. } => format!(
            "host {} is not told; it is refused while it is alive. If it is only cut off, its container goes on \
             answering, beside whoever has the addresses next, until the host is back",
            key.host
        ),
        How { force: true, .. } => {
            "the container is without network from then on, if it is there".to_owned()
        }
        How { .. } => "it is refused if the host says that the container is there".to_owned(),
    };
    format!(
        "this would end the attachment of {label} on {}: container {}, interface {}\n  {addresses}\n\
         {after}; {unless}\n",
        key.host, key.container, key.ifname
    )
}

/// The name, which is the container's ID where the workload has none, and then as short as that.
fn name(attachment: &Attachment) -> String {
    let name = attachment.name.as_str();
    if name == attachment.key.container.as_str() { table::short(name) } else { name.to_owned() }
}

/// The table of attachments.
pub(crate) fn rows(attachments: &Answers<Attachment>) -> String {
    let rows = attachments.items.iter().map(|Answer { record, .. }| {
        [
            table::addresses(&record.addresses),
            record.key.network.to_string(),
            record.namespace.to_string(),
            name(record),
            record.key.host.to_string(),
            table::short(record.key.container.as_str()),
            record.key.ifname.to_string(),
            if record.sticky { "yes" } else { "no" }.to_owned(),
        ]
    });
    table::table(
        ["ADDRESSES", "NETWORK", "NAMESPACE", "NAME", "HOST", "CONTAINER", "INTERFACE", "STICKY"],
        rows,
    )
}

fn render(attachment: &Answer<Attachment>, output: Output) -> anyhow::Result<String> {
    if output == Output::Json {
        return answer::json(attachment);
    }
    let attachment = &attachment.record;
    let key = &attachment.key;
    Ok(table::facts([
        ("Name", Some(attachment.name.to_string())),
        ("Namespace", Some(attachment.namespace.to_string())),
        ("Network", Some(key.network.to_string())),
        ("Addresses", Some(table::addresses_and_pools(&attachment.addresses))),
        ("MAC", Some(attachment.mac.to_string())),
        ("Host", Some(key.host.to_string())),
        ("Container", Some(key.container.to_string())),
        ("Interface", Some(key.ifname.to_string())),
        ("Network namespace", Some(attachment.netns.to_string())),
        ("Runtime", Some(attachment.runtime.to_string())),
        ("Sticky", Some(if attachment.sticky { "yes" } else { "no" }.to_owned())),
        ("Uid", Some(attachment.uid.to_string())),
        ("Created", Some(format!("fleet second {}", attachment.created.0))),
    ]))
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;
    use crate::golden;

    pub(crate) fn answers() -> Answers<Attachment> {
        let record = |host: &str, name: &str, container: &str, ifname: &str, last: u8| {
            json!({
                "host": host, "network": "corp", "container": container, "ifname": ifname,
                "uid": format!("{last:032x}"), "boot": format!("{:032x}", 7), "namespace": "prod", "name": name,
                "sticky": last % 2 == 1, "mac": format!("02:4c:00:00:00:{last:02x}"), "runtime": "k8s",
                "addresses": [
                    {"address": format!("10.32.0.{last}"), "pool": "corp-v4"},
                    {"address": format!("fd32::{last:x}"), "pool": "corp-v6"},
                ],
                "netns": format!("/run/netns/cni-{last}"), "created": 1000 + u32::from(last),
            })
        };
        let (web, job) = (format!("3f2a9c77{:056x}", 1), format!("3f2a9c77{:056x}", 2));
        serde_json::from_value(json!({"revision": 50, "items": [
            record("node-a", "web-0", &web, "eth0", 1),
            record("node-a", "web-0", &web, "net1", 2),
            record("node-b", &job, &job, "eth0", 16),
        ]}))
        .unwrap()
    }

    fn found(text: &str, ifname: Option<&str>) -> Result<String, String> {
        let which = Which {
            wanted: text.parse().unwrap(),
            scope: Scope::default(),
            ifname: ifname.map(|ifname| ifname.parse().unwrap()),
        };
        meant(&which, answers().items)
            .map(|one| table::addresses(&one.0.record.addresses))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn attachments_are_shown_to_people_and_to_programs() {
        let answers = answers();
        golden::check("attachment-list", &rows(&answers));
        golden::check("attachment-list.json", &answer::json(&answers).unwrap());
        golden::check("attachment-show", &render(&answers.items[0], Output::Table).unwrap());
    }

    #[test]
    fn the_plan_of_a_release_says_what_becomes_of_the_addresses() {
        let forced = How { force: true, host_is_down: false };
        let down = How { force: true, host_is_down: true };
        let plans: String = answers()
            .items
            .iter()
            .zip([How::default(), forced, down])
            .map(|(item, how)| plan(&item.record, how))
            .collect();
        golden::check("attachment-release-plan", &plans);
    }

    #[test]
    fn an_attachment_is_found_by_whatever_is_at_hand() {
        assert_eq!(found("fd32::10", None).unwrap(), "10.32.0.16,fd32::10");
        assert_eq!(found("web-0", Some("net1")).unwrap(), "10.32.0.2,fd32::2");
        assert_eq!(found(&format!("{:032x}", 16), None).unwrap(), "10.32.0.16,fd32::10");
        assert_eq!(found(&format!("3f2a9c77{:056x}", 2), None).unwrap(), "10.32.0.16,fd32::10");
    }

    #[test]
    fn what_could_be_several_is_refused_with_their_names() {
        let error = found("web-0", None).unwrap_err();
        assert!(error.starts_with("2 attachments fit \"web-0\": prod/web-0 on node-a"), "{error}");
        assert!(found("3f2a9c77", None).unwrap_err().starts_with("3 attachments fit"));
        // Seven characters are no prefix: they are more likely a name with a slip in it.
        assert!(found("3f2a9c7", None).unwrap_err().starts_with("there is no attachment"));
    }
}

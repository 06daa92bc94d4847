//! Edge: `limpetctl host`: `run` asks, what is below it is pure.

use std::io::{self, Write};

use anyhow::{Context, bail};
use clap::Subcommand;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use limpet_api::Change;
use limpet_api::book::{Attachment, Swept};
use limpet_api::config::{Host, HostChange, HostSpec, HostStatus, Role};
use limpet_api::paths;
use limpet_net_types::{HostName, LabelKey, NetworkName, Prefix};
use serde_json::{Value, json};

use crate::answer::{self, Answer, Answers};
use crate::cli::{self, Done, Output};
use crate::controller::Controller;
use crate::{doctor, drift, table};

/// The exit code of `drift` if not every host answered.
const NO_ANSWER: u8 = 2;

/// What `host` takes; without a verb all hosts are listed.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Option<Verb>,
}

/// What to do.
#[derive(Debug, Subcommand)]
enum Verb {
    /// List all hosts
    List,
    /// Show one host
    Show {
        /// The host
        name: HostName,
    },
    /// Show what others changed of limpet's on hosts, and was put back: how often, and what last
    Drift {
        /// The host; all that have joined if left out
        name: Option<HostName>,
    },
    /// Create a host before its agent joins, to decide what it may be; repeating it changes nothing
    Create(Create),
    /// Change a host
    Set(Set),
    /// Delete a host that is down or has left: stop its agent first
    #[command(visible_alias = "remove")]
    Delete {
        /// The host
        name: HostName,
        /// End the attachments that it still has: it is down, or was switched off for good. Reservations stay
        #[arg(long)]
        end_attachments: bool,
        /// Do it; without, what would be lost is shown
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, clap::Args)]
struct Create {
    /// Its name: what its agent calls itself, which is the machine's hostname unless it is told otherwise
    name: HostName,
    /// What it is for: it runs containers (node), is a physical host that joins the overlay (member), or joins the
    /// overlay to other networks (gateway); repeated or comma separated; node if left out
    #[arg(long, value_delimiter = ',', value_parser = role())]
    role: Vec<Role>,
    /// A label, which pools can select hosts by; repeated or comma separated
    #[arg(long, value_delimiter = ',', value_parser = cli::label, value_name = "KEY=VALUE")]
    label: Vec<(LabelKey, String)>,
    /// A prefix behind it, if it is a gateway; repeated or comma separated
    #[arg(long, value_delimiter = ',', value_name = "PREFIX")]
    external: Vec<Prefix>,
    /// The networks that it is a member of; repeated or comma separated; all of the shared address space if left out
    #[arg(long, value_delimiter = ',', value_name = "NETWORK")]
    networks: Vec<NetworkName>,
}

#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
struct Set {
    /// The host
    name: HostName,
    /// What it is for, in place of what it was for: node, member, gateway; repeated or comma separated
    #[arg(long, value_delimiter = ',', value_parser = role())]
    role: Vec<Role>,
    /// Its labels, in place of those before; repeated or comma separated
    #[arg(long, value_delimiter = ',', value_parser = cli::label, value_name = "KEY=VALUE")]
    label: Vec<(LabelKey, String)>,
    /// Take all its labels away
    #[arg(long, conflicts_with = "label")]
    no_label: bool,
    /// The prefixes behind it, in place of those before; repeated or comma separated
    #[arg(long, value_delimiter = ',', value_name = "PREFIX")]
    external: Vec<Prefix>,
    /// No prefix is behind it any more
    #[arg(long, conflicts_with = "external")]
    no_external: bool,
    /// The networks that it is a member of, in place of those before; repeated or comma separated
    #[arg(long, value_delimiter = ',', value_name = "NETWORK")]
    networks: Vec<NetworkName>,
    /// It is a member of every network of the shared address space, also of those that are yet to be made
    #[arg(long, conflicts_with = "networks")]
    all_networks: bool,
    /// It was installed anew, or another machine is in its place: the next one that joins under its name is the
    /// host, and ends what the old one had. Refused while the host is alive
    #[arg(long)]
    reinstalled: bool,
}

/// Carries out one command.
pub(crate) fn run(args: &Args, controller: &Controller, output: Output) -> anyhow::Result<Done> {
    let text = match args.verb.as_ref().unwrap_or(&Verb::List) {
        Verb::List => {
            let hosts = controller.read(paths::HOSTS).context("asking for hosts")?;
            render_all(&hosts, output)?
        }
        Verb::Show { name } => render(&one(name, controller)?, output)?,
        Verb::Drift { name } => {
            let (hosts, unanswered) = doctor::ask(name.as_slice(), controller)?;
            let code = if unanswered.is_empty() { 0 } else { NO_ANSWER };
            return Ok(Done::Verdict(drift::render(&hosts, &unanswered, output)?, code));
        }
        Verb::Create(create) => {
            let name = &create.name;
            let host = controller.put(&paths::host(name), &create.spec());
            render(&host.with_context(|| format!("creating host {name}"))?, output)?
        }
        Verb::Set(set) => {
            let (name, change) = (&set.name, set.change());
            cli::something_to_change(change != HostChange::default())?;
            let host = controller.patch(&paths::host(name), &change);
            render(&host.with_context(|| format!("changing host {name}"))?, output)?
        }
        Verb::Delete { name, end_attachments, yes: true } => {
            if *end_attachments {
                sweep(name, controller)?;
            }
            let deleted = controller.delete(&paths::host(name));
            let answer: Option<Value> = deleted.with_context(|| format!("deleting host {name}"))?;
            answer::gone(answer.as_ref(), &format!("host {name} is deleted"), output)?
        }
        Verb::Delete { name, end_attachments, yes: false } => {
            return planned(name, *end_attachments, controller).map(Done::Plan);
        }
    };
    Ok(Done::Answer(text))
}

fn one(name: &HostName, controller: &Controller) -> anyhow::Result<Answer<HostStatus>> {
    controller.read(&paths::host(name)).with_context(|| format!("asking for host {name}"))
}

/// Ends all attachments of a host, some at a time, and says how far that has come.
fn sweep(name: &HostName, controller: &Controller) -> anyhow::Result<()> {
    let mut done = 0;
    loop {
        let swept = controller.delete::<Swept>(&paths::host_attachments(name));
        let swept = swept.with_context(|| format!("ending the attachments of host {name}"))?;
        let Some(Swept { ended, left }) = swept else { return Ok(()) };
        done += ended;
        // Nobody has to read it.
        let _ = writeln!(io::stderr(), "{done} of {} attachments are ended", done + left);
        if left == 0 {
            return Ok(());
        }
        if ended == 0 {
            bail!("{left} attachments of host {name} did not end");
        }
    }
}

fn planned(
    name: &HostName,
    end_attachments: bool,
    controller: &Controller,
) -> anyhow::Result<String> {
    let host = one(name, controller)?.record;
    let attachments: Answers<Attachment> = controller
        .list(paths::ATTACHMENTS, &json!({ "host": name }))
        .with_context(|| format!("asking what is attached on host {name}"))?;
    Ok(plan(&host, &attachments, end_attachments))
}

fn plan(
    HostStatus { host, alive, .. }: &HostStatus,
    attachments: &Answers<Attachment>,
    end_attachments: bool,
) -> String {
    let mut lines =
        vec![format!("this would delete host {} ({})", host.name, table::list(&host.roles))];
    lines.extend(table::pairs(&host.labels).map(|labels| format!("its labels {labels} are lost")));
    lines.extend(
        table::some(&host.external)
            .map(|prefixes| format!("{prefixes} behind it can no longer be reached through it")),
    );
    if *alive {
        lines.push("it is refused while its agent is alive: stop that first".into());
    }
    if !attachments.items.is_empty() {
        let count = table::plural(attachments.items.len(), "attachment");
        lines.push(if end_attachments {
            format!("its {count} are ended, though nobody asks the host; reservations keep theirs:")
        } else {
            format!("it has {count}; it is refused while it has any, without --end-attachments:")
        });
        lines.push(crate::attachment::rows(attachments).trim_end().to_owned());
    }
    lines.join("\n") + "\n"
}

fn role() -> impl TypedValueParser<Value = Role> {
    PossibleValuesParser::new(["node", "member", "gateway"]).try_map(|text| text.parse::<Role>())
}

impl Create {
    fn spec(&self) -> HostSpec {
        HostSpec {
            roles: self.role.iter().copied().collect(),
            labels: self.label.iter().cloned().collect(),
            external: self.external.iter().copied().collect(),
            networks: (!self.networks.is_empty()).then(|| self.networks.iter().cloned().collect()),
        }
    }
}

impl Set {
    fn change(&self) -> HostChange {
        let label = self.no_label || !self.label.is_empty();
        let external = self.no_external || !self.external.is_empty();
        HostChange {
            roles: (!self.role.is_empty()).then(|| self.role.iter().copied().collect()),
            labels: label.then(|| self.label.iter().cloned().collect()),
            external: external.then(|| self.external.iter().copied().collect()),
            reinstalled: self.reinstalled,
            networks: match (self.all_networks, self.networks.is_empty()) {
                (true, _) => Change::Clear,
                (false, true) => Change::Keep,
                (false, false) => Change::Set(self.networks.iter().cloned().collect()),
            },
        }
    }
}

fn render_all(hosts: &Answers<HostStatus>, output: Output) -> anyhow::Result<String> {
    if output == Output::Json {
        return answer::json(hosts);
    }
    let rows = hosts.items.iter().map(|Answer { record: status, .. }| {
        [
            status.host.name.to_string(),
            table::list(&status.host.roles),
            alive(status).to_owned(),
            table::or_none(status.last_seen.map(|ago| format!("{ago} ago"))),
            table::or_none(status.host.underlay),
            status.attachments.to_string(),
            table::or_none(status.version.as_ref()),
        ]
    });
    Ok(table::table(["NAME", "ROLES", "ALIVE", "SEEN", "UNDERLAY", "ATTACHMENTS", "VERSION"], rows))
}

fn alive(status: &HostStatus) -> &'static str {
    match (status.alive, status.silent) {
        (true, _) => "yes",
        (false, Some(_)) => "silent",
        (false, None) => "no",
    }
}

fn render(status: &Answer<HostStatus>, output: Output) -> anyhow::Result<String> {
    if output == Output::Json {
        return answer::json(status);
    }
    let status = &status.record;
    let alive = match (status.alive, status.last_seen) {
        (false, _) if status.silent.is_some() => {
            format!("no, silent for {}", table::or_none(status.silent))
        }
        _ if status.version.is_none() => "no, it has never joined".to_owned(),
        (true, Some(ago)) => format!("yes, heard of {ago} ago"),
        (true, None) => "yes, presumably: not heard of since the controller started".to_owned(),
        (false, Some(ago)) => format!("no, heard of {ago} ago"),
        (false, None) => "no, not heard of since the controller started".to_owned(),
    };
    Ok(table::facts(facts(&status.host).into_iter().chain([
        ("Alive", Some(alive)),
        ("Attachments", Some(status.attachments.to_string())),
        ("Agent's version", status.version.clone()),
    ])))
}

fn facts(host: &Host) -> Vec<(&'static str, Option<String>)> {
    vec![
        ("Name", Some(host.name.to_string())),
        ("Roles", Some(table::list(&host.roles))),
        ("Labels", table::pairs(&host.labels)),
        ("External prefixes", table::some(&host.external)),
        ("Networks", Some(networks(host))),
        ("Underlay", Some(table::or_none(host.underlay))),
        ("Addresses", table::some(&host.addresses)),
        ("VTEP MAC", Some(host.vtep_mac.to_string())),
    ]
}

fn networks(host: &Host) -> String {
    host.networks.as_ref().map_or("all of the shared space".to_owned(), table::list)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden;

    fn answers() -> Answers<HostStatus> {
        serde_json::from_value(json!({"revision": 30, "items": [
            {
                "name": "gw-1", "roles": ["gateway", "member"], "external": ["192.0.2.0/24", "2001:db8:2::/64"],
                "vtep_mac": "02:00:00:00:00:01", "underlay": "198.51.100.3",
                "addresses": ["198.51.100.3", "2001:db8::3"], "alive": false, "last_seen": "3d",
                "attachments": 0, "version": "0.1.0", "silent": "3d",
            },
            {
                "name": "node-a", "roles": ["node"], "networks": ["corp", "guests"], "labels": {"rack": "r1", "zone": "eu"},
                "vtep_mac": "02:00:00:00:00:02", "underlay": "2001:db8::2", "addresses": ["2001:db8::2"],
                "alive": true, "last_seen": "2s", "attachments": 17, "version": "0.1.0\u{1b}[31m",
            },
            {
                "name": "node-b", "roles": ["node"], "vtep_mac": "02:00:00:00:00:03", "alive": false,
                "attachments": 0,
            },
        ]}))
        .unwrap()
    }

    #[test]
    fn hosts_are_shown_to_people_and_to_programs() {
        let answers = answers();
        golden::check("host-list", &render_all(&answers, Output::Table).unwrap());
        golden::check("host-list.json", &render_all(&answers, Output::Json).unwrap());
        let shown: Vec<String> =
            answers.items.iter().map(|host| render(host, Output::Table).unwrap()).collect();
        golden::check("host-show", &shown.join("\n"));
    }

    #[test]
    fn the_plan_of_a_deletion_says_what_is_attached_and_that_a_live_agent_is_in_the_way() {
        let answers = answers();
        let nothing = Answers { items: Vec::new(), revision: 1, next: None };
        let attached = crate::attachment::tests::answers();
        let text = plan(&answers.items[0].record, &nothing, false)
            + &plan(&answers.items[1].record, &attached, false)
            + &plan(&answers.items[2].record, &attached, true);
        golden::check("host-delete-plan", &text);
    }
}

//! Edge: `limpetctl reservation`: `run` asks, what is below it is pure.

use std::fmt;
use std::net::IpAddr;

use anyhow::Context;
use clap::Subcommand;
use limpet_api::book::{Released, Rename, Reservation, ReservationChange, ReservationSpec};
use limpet_api::{Retention, Span, paths};
use limpet_net_types::{HostName, Mac, Namespace, NetworkName, PoolName, WorkloadName};
use serde::Serialize;

use crate::answer::{self, Answer, Answers};
use crate::by_pool::{self, How};
use crate::cli::{self, Done, Output};
use crate::controller::Controller;
use crate::{find, network, table};

/// What `reservation` takes; without a verb all reservations are listed.
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
    /// Attached on this host just now only
    #[arg(long)]
    host: Option<HostName>,
}

/// What to do.
#[derive(Debug, Subcommand)]
enum Verb {
    /// List all reservations
    List(Scope),
    /// Show one reservation
    Show {
        #[command(flatten)]
        which: Which,
    },
    /// Reserve addresses for a name before its container exists; repeating it changes nothing
    Create(Create),
    /// Change how long a reservation is kept
    Set {
        #[command(flatten)]
        which: Which,
        /// How long it outlives its last attachment, such as 12h or 7d, or forever
        #[arg(long, value_name = "TIME")]
        retention: Retention,
    },
    /// Give up a reservation that no container has just now, or all of a pool: their addresses become free for others
    Release(Release),
    /// Let a reservation that no container has just now be for another name, with its addresses
    Rename {
        /// The name that it is for now: namespace/name; without a namespace that of _
        #[arg(value_name = "NAMESPACE/NAME")]
        from: FullName,
        /// The name that it is to be for, written as that
        #[arg(value_name = "NEWNAMESPACE/NEWNAME")]
        to: FullName,
        /// The network; the only one if left out
        #[arg(long)]
        network: Option<NetworkName>,
    },
}

/// Which reservation.
#[derive(Debug, clap::Args)]
struct Which {
    /// The workload's name, or one of its addresses
    #[arg(value_name = "NAME|ADDRESS")]
    wanted: Wanted,
    #[command(flatten)]
    scope: Scope,
}

#[derive(Debug, clap::Args)]
struct Release {
    /// The workload's name, or one of its addresses
    #[arg(value_name = "NAME|ADDRESS", required_unless_present = "pool")]
    wanted: Option<Wanted>,
    #[command(flatten)]
    scope: Scope,
    /// All with an address of this pool that no container has just now, in place of a name
    #[arg(long, conflicts_with_all = ["wanted", "network", "host"])]
    pool: Option<PoolName>,
    /// Of a pool those only that no container has had for this long, such as 2h
    #[arg(long, conflicts_with = "wanted", value_name = "TIME")]
    detached_for: Option<Span>,
    /// List those of a pool, and release none
    #[arg(long, conflicts_with_all = ["wanted", "yes"])]
    dry_run: bool,
    /// Do it; without, what would be lost is shown
    #[arg(long)]
    yes: bool,
}

/// A workload's name with its namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
struct FullName {
    namespace: Namespace,
    name: WorkloadName,
}

/// How a reservation is named. Every address could be a name too: it is taken for an address.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Wanted {
    /// By an address that it keeps.
    Address(IpAddr),
    /// By its workload's name.
    Name(WorkloadName),
}

#[derive(Debug, clap::Args)]
struct Create {
    /// The workload's name, such as web-0
    name: WorkloadName,
    /// The network; the only one if left out
    #[arg(long)]
    network: Option<NetworkName>,
    /// The workload's namespace; _ is that of workloads that have none
    #[arg(short, long, default_value = "_")]
    namespace: Namespace,
    /// An address that it is to have, at most one of a family; pools choose if left out
    #[arg(long, value_delimiter = ',')]
    address: Vec<IpAddr>,
    /// A pool to choose from, at most one of a family; those that would serve the name if left out
    #[arg(long, value_delimiter = ',')]
    pool: Vec<PoolName>,
    /// The MAC address that its interface is to have
    #[arg(long)]
    mac: Option<Mac>,
    /// How long it outlives its last attachment, such as 12h or 7d; forever if left out
    #[arg(long, value_name = "TIME")]
    retention: Option<Retention>,
}

/// Carries out one command.
pub(crate) fn run(args: &Args, controller: &Controller, output: Output) -> anyhow::Result<Done> {
    let list = Verb::List(args.scope.clone());
    if args.verb.is_some() {
        cli::no_filter_before_a_verb("--network", args.scope.network.is_some())?;
        cli::no_filter_before_a_verb("--namespace", args.scope.namespace.is_some())?;
        cli::no_filter_before_a_verb("--host", args.scope.host.is_some())?;
    }
    let text = match args.verb.as_ref().unwrap_or(&list) {
        Verb::List(scope) => render_all(&listed(&Search::of(scope), controller)?, output)?,
        Verb::Show { which: Which { wanted, scope } } => {
            render(&one(wanted, scope, controller)?, output)?
        }
        Verb::Create(create) => {
            let network = network::named_or_only(create.network.as_ref(), controller)?;
            let Create { name, namespace, .. } = create;
            let reservation = controller
                .put(&paths::reservation(&network, namespace, name), &create.spec())
                .with_context(|| format!("reserving addresses for {namespace}/{name}"))?;
            render(&reservation, output)?
        }
        Verb::Set { which: Which { wanted, scope }, retention } => {
            let (path, label) = place(&one(wanted, scope, controller)?.record);
            let change = ReservationChange { retention: Some(*retention) };
            let changed = controller.patch(&path, &change);
            render(
                &changed.with_context(|| format!("changing the reservation of {label}"))?,
                output,
            )?
        }
        Verb::Release(release) => return released(release, controller, output),
        Verb::Rename { from, to, network } => {
            let network = network::named_or_only(network.as_ref(), controller)?;
            let path = paths::reservation_rename(&network, &from.namespace, &from.name);
            let name = Rename { namespace: to.namespace.clone(), name: to.name.clone() };
            let renamed = controller.post(&path, &name);
            render(&renamed.with_context(|| format!("renaming {from} to {to}"))?, output)?
        }
    };
    Ok(Done::Answer(text))
}

/// Releases one reservation, or those of a pool.
fn released(release: &Release, controller: &Controller, output: Output) -> anyhow::Result<Done> {
    let Release { wanted, scope, pool, detached_for, dry_run, yes } = release;
    if let Some(pool) = pool {
        let namespace = scope.namespace.as_ref();
        let idle = by_pool::Idle { pool, namespace, detached_for: *detached_for };
        let how = match (dry_run, yes) {
            (true, _) => How::List,
            (false, true) => How::Do,
            (false, false) => How::Plan,
        };
        return by_pool::run(&idle, how, controller, output);
    }
    let wanted = wanted.as_ref().unwrap_or_else(|| unreachable!("it or a pool is required"));
    let found = one(wanted, scope, controller)?.record;
    if !yes {
        return Ok(Done::Plan(plan(&found)));
    }
    let (path, label) = place(&found);
    let answer: Option<Answer<Released>> = controller
        .delete(&path)
        .with_context(|| format!("releasing the reservation of {label}"))?;
    let what = format!("the reservation of {label}");
    Ok(Done::Answer(answer::released(answer.as_ref(), &what, output)?))
}

/// The query of a listing.
#[derive(Serialize)]
struct Search<'a> {
    #[serde(flatten)]
    scope: &'a Scope,
    address: Option<IpAddr>,
    name: Option<&'a WorkloadName>,
}

impl<'a> Search<'a> {
    fn of(scope: &'a Scope) -> Self {
        Self { scope, address: None, name: None }
    }
}

fn listed(search: &Search<'_>, controller: &Controller) -> anyhow::Result<Answers<Reservation>> {
    controller.list(paths::RESERVATIONS, search).context("asking for reservations")
}

/// Finds the one that is meant; by its path where all of that is known, else among all in question.
fn one(
    wanted: &Wanted,
    scope: &Scope,
    controller: &Controller,
) -> anyhow::Result<Answer<Reservation>> {
    if let Wanted::Name(name) = wanted
        && let Scope { network: Some(network), namespace: Some(namespace), host: None } = scope
    {
        return controller
            .read(&paths::reservation(network, namespace, name))
            .with_context(|| format!("asking for the reservation of {namespace}/{name}"));
    }
    let search = match wanted {
        Wanted::Address(address) => Search { address: Some(*address), ..Search::of(scope) },
        Wanted::Name(name) => Search { name: Some(name), ..Search::of(scope) },
    };
    let all = listed(&search, controller)?.items;
    let found = all.into_iter().filter(|answer| wanted.is(&answer.record)).map(Described);
    Ok(find::only("reservation", &wanted.to_string(), found.collect())?.0)
}

fn place(reservation: &Reservation) -> (String, String) {
    let Reservation { network, namespace, name, .. } = reservation;
    (paths::reservation(network, namespace, name), format!("{namespace}/{name}"))
}

/// A reservation, described as the candidate that it is.
struct Described(Answer<Reservation>);

impl fmt::Display for Described {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Reservation { network, namespace, name, addresses, .. } = &self.0.record;
        write!(f, "{namespace}/{name} of network {network}, {}", table::addresses(addresses))
    }
}

impl Wanted {
    fn is(&self, reservation: &Reservation) -> bool {
        match self {
            Self::Address(address) => {
                reservation.addresses.iter().any(|held| held.address == *address)
            }
            Self::Name(name) => reservation.name == *name,
        }
    }
}

impl std::str::FromStr for Wanted {
    type Err = limpet_net_types::NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse() {
            Ok(address) => Ok(Self::Address(address)),
            Err(_) => text.parse().map(Self::Name),
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

impl std::str::FromStr for FullName {
    type Err = limpet_net_types::NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (namespace, name) = text.split_once('/').unwrap_or(("_", text));
        Ok(Self { namespace: namespace.parse()?, name: name.parse()? })
    }
}

impl fmt::Display for FullName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl Create {
    fn spec(&self) -> ReservationSpec {
        ReservationSpec {
            addresses: self.address.clone(),
            pools: self.pool.clone(),
            mac: self.mac,
            retention: self.retention,
        }
    }
}

fn plan(reservation: &Reservation) -> String {
    let Reservation { network, namespace, name, origin, retention, .. } = reservation;
    let addresses = table::addresses_and_pools(&reservation.addresses);
    let origin = table::word(origin);
    let holder = match &reservation.attachment {
        Some(attachment) => format!(
            "container {} on {} holds them now, and it is refused while it does",
            table::short(attachment.key.container.as_str()),
            attachment.key.host
        ),
        None => "no container holds them now; the name gets other addresses next time".to_owned(),
    };
    format!(
        "this would release the reservation of {namespace}/{name} in network {network}:\n  \
         {addresses}, kept {retention} ({origin})\n{holder}\n"
    )
}

fn render_all(reservations: &Answers<Reservation>, output: Output) -> anyhow::Result<String> {
    if output == Output::Json {
        return answer::json(reservations);
    }
    let rows = reservations.items.iter().map(|Answer { record, .. }| {
        let attached = record.attachment.as_ref().map(|attachment| &attachment.key.host);
        [
            record.network.to_string(),
            record.namespace.to_string(),
            record.name.to_string(),
            table::addresses(&record.addresses),
            table::or_none(attached),
            table::or_none(record.last_host.as_ref()),
            record.retention.to_string(),
            table::word(&record.origin),
        ]
    });
    Ok(table::table(
        ["NETWORK", "NAMESPACE", "NAME", "ADDRESSES", "HOST", "LAST-HOST", "RETENTION", "ORIGIN"],
        rows,
    ))
}

fn render(reservation: &Answer<Reservation>, output: Output) -> anyhow::Result<String> {
    if output == Output::Json {
        return answer::json(reservation);
    }
    let reservation = &reservation.record;
    let attached = reservation.attachment.as_ref().map(|attachment| {
        let key = &attachment.key;
        format!("on {}, container {}, interface {}", key.host, key.container, key.ifname)
    });
    Ok(table::facts([
        ("Name", Some(reservation.name.to_string())),
        ("Namespace", Some(reservation.namespace.to_string())),
        ("Network", Some(reservation.network.to_string())),
        ("Addresses", Some(table::addresses_and_pools(&reservation.addresses))),
        ("MAC", Some(reservation.mac.to_string())),
        ("Retention", Some(reservation.retention.to_string())),
        ("Origin", Some(table::word(&reservation.origin))),
        ("Attached", Some(attached.unwrap_or_else(|| "no".to_owned()))),
        ("Last host", reservation.last_host.as_ref().map(ToString::to_string)),
        ("Detached at", reservation.detached_at.map(|at| format!("fleet second {}", at.0))),
    ]))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::golden;

    fn answers() -> Answers<Reservation> {
        serde_json::from_value(json!({"revision": 40, "items": [
            {
                "network": "corp", "namespace": "_", "name": "legacy.example", "mac": "02:4c:00:00:00:09",
                "addresses": [{"address": "10.32.0.9", "pool": "corp-v4"}], "retention": "forever",
                "origin": "operator",
            },
            {
                "network": "corp", "namespace": "prod", "name": "web-0", "mac": "02:4c:00:00:00:01",
                "addresses": [
                    {"address": "10.32.0.1", "pool": "corp-v4"}, {"address": "fd32::1", "pool": "corp-v6"}
                ],
                "retention": "7d", "origin": "automatic", "last_host": "node-a",
                "attachment": {
                    "host": "node-b", "network": "corp", "ifname": "eth0",
                    "container": "3f2a9c77d0e14b5aa1c2d3e4f5061728394a5b6c7d8e9f00112233445566aabb",
                    "uid": "00112233445566778899aabbccddeeff",
                },
            },
            {
                "network": "corp", "namespace": "test", "name": "web-0", "mac": "02:4c:00:00:00:02",
                "addresses": [{"address": "10.32.0.2", "pool": "corp-v4"}], "retention": "12h",
                "origin": "automatic", "last_host": "node-a", "detached_at": 86_400,
            },
        ]}))
        .unwrap()
    }

    #[test]
    fn reservations_are_shown_to_people_and_to_programs() {
        let answers = answers();
        golden::check("reservation-list", &render_all(&answers, Output::Table).unwrap());
        golden::check("reservation-list.json", &render_all(&answers, Output::Json).unwrap());
        let shown: Vec<String> =
            answers.items.iter().map(|item| render(item, Output::Table).unwrap()).collect();
        golden::check("reservation-show", &shown.join("\n"));
    }

    #[test]
    fn the_plan_of_a_release_says_who_holds_what() {
        let plans: String = answers().items.iter().map(|item| plan(&item.record)).collect();
        golden::check("reservation-release-plan", &plans);
    }

    #[test]
    fn an_address_or_a_name_finds_its_reservation() {
        let found = |text: &str| {
            let wanted: Wanted = text.parse().unwrap();
            let items = answers().items.into_iter().filter(|item| wanted.is(&item.record));
            find::only("reservation", text, items.map(Described).collect())
                .map(|one| one.0.record.namespace.to_string())
                .map_err(|error| error.to_string())
        };
        assert_eq!(found("fd32:0::1").unwrap(), "prod");
        assert_eq!(found("10.32.0.2").unwrap(), "test");
        assert_eq!(found("legacy.example").unwrap(), "_");
        assert_eq!(found("10.32.0.3").unwrap_err(), "there is no reservation \"10.32.0.3\"");
        assert_eq!(
            found("web-0").unwrap_err(),
            "2 reservations fit \"web-0\": prod/web-0 of network corp, 10.32.0.1,fd32::1; \
             test/web-0 of network corp, 10.32.0.2"
        );
    }
}

//! Edge: `limpetctl reservation`: `run` asks, what is below it is pure.

use std::fmt;
use std::net::IpAddr;

use anyhow::Context;
use clap::Subcommand;
use limpet_api::book::{Released, Reservation, ReservationChange, ReservationSpec};
use limpet_api::{Retention, paths};
use limpet_net_types::{HostName, Mac, Namespace, NetworkName, PoolName, WorkloadName};
use serde::Serialize;

use crate::answer::{self, Answer, Answers};
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
    /// Give up a reservation that no container has just now: its addresses become free for others
    Release {
        #[command(flatten)]
        which: Which,
        /// Do it; without, what would be lost is shown
        #[arg(long)]
        yes: bool,
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
        Verb::Show { which } => render(&one(which, controller)?, output)?,
        Verb::Create(create) => {
            let network = network::named_or_only(create.network.as_ref(), controller)?;
            let Create { name, namespace, .. } = create;
            let reservation = controller
                .put(&paths::reservation(&network, namespace, name), &create.spec())
                .with_context(|| format!("reserving addresses for {namespace}/{name}"))?;
            render(&reservation, output)?
        }
        Verb::Set { which, retention } => {
            let (path, label) = place(&one(which, controller)?.record);
            let change = ReservationChange { retention: Some(*retention) };
            let changed = controller.patch(&path, &change);
            render(
                &changed.with_context(|| format!("changing the reservation of {label}"))?,
                output,
            )?
        }
        Verb::Release { which, yes: true } => {
            let (path, label) = place(&one(which, controller)?.record);
            let released = controller.delete(&path);
            let released: Option<Answer<Released>> =
                released.with_context(|| format!("releasing the reservation of {label}"))?;
            answer::released(released.as_ref(), &format!("the reservation of {label}"), output)?
        }
        Verb::Release { which, yes: false } => {
            return Ok(Done::Plan(plan(&one(which, controller)?.record)));
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
fn one(which: &Which, controller: &Controller) -> anyhow::Result<Answer<Reservation>> {
    let Which { wanted, scope } = which;
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

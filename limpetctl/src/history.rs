//! Edge: `limpetctl history`: who had which address when. `run` asks, what is below it is pure.

use std::net::IpAddr;

use anyhow::Context;
use limpet_api::book::EndedBy;
use limpet_api::history::{HistoryQuery, Tenure};
use limpet_api::{WallTime, paths};
use limpet_net_types::{HostName, NameError, Namespace, NetworkName, WorkloadName};

use crate::answer::{self, Answer, Answers};
use crate::cli::{Done, Misuse, Output};
use crate::controller::Controller;
use crate::table;

/// What `history` takes.
///
/// Times are such as 2026-11-20T14:05, 2026-11-20T14:05:07Z or 2026-11-20T14:05:07+01:00; without an offset they are
/// taken for UTC, as all times are shown.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// An address, a workload's name, or namespace/name; may be left out with --host
    #[arg(value_name = "ADDRESS|NAME|NAMESPACE/NAME")]
    wanted: Option<Wanted>,
    /// On this host only
    #[arg(long)]
    host: Option<HostName>,
    /// Who had it at this time, such as 2026-11-20T14:05 or 2026-11-20T14:05:07Z: UTC, unless an offset such as +01:00
    /// is given
    #[arg(long, value_name = "TIME", conflicts_with_all = ["since", "until"])]
    at: Option<WallTime>,
    /// Leave out what had ended before this time, written as with --at
    #[arg(long, value_name = "TIME")]
    since: Option<WallTime>,
    /// Leave out what began after this time, written as with --at
    #[arg(long, value_name = "TIME")]
    until: Option<WallTime>,
    /// Of this network only
    #[arg(long)]
    network: Option<NetworkName>,
    /// Of this namespace only; _ is that of workloads that have none
    #[arg(short, long)]
    namespace: Option<Namespace>,
}

/// Whose history. Every address could be a name too: it is taken for an address.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Wanted {
    /// An address, whoever had it.
    Address(IpAddr),
    /// A workload's name, in every namespace or in one.
    Name(Option<Namespace>, WorkloadName),
}

impl std::str::FromStr for Wanted {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        match text.split_once('/') {
            Some((namespace, name)) => Ok(Self::Name(Some(namespace.parse()?), name.parse()?)),
            None => Ok(Self::Name(None, text.parse()?)),
        }
    }
}

/// Carries out the command.
pub(crate) fn run(args: &Args, controller: &Controller, output: Output) -> anyhow::Result<Done> {
    let query = args.query()?;
    let found = controller.list(paths::HISTORY, &query).context("asking for history")?;
    Ok(Done::Answer(render(&found, output)?))
}

impl Args {
    /// What is asked of the controller.
    fn query(&self) -> Result<HistoryQuery, Misuse> {
        let (address, named) = match self.wanted.clone() {
            None if self.host.is_none() => {
                return Err(Misuse(
                    "whose history? give an address such as 10.32.0.7, a name such as web-0 or \
                     prod/web-0, or --host and a host's name"
                        .to_owned(),
                ));
            }
            None => (None, None),
            Some(Wanted::Address(address)) => (Some(address), None),
            Some(Wanted::Name(namespace, name)) => (None, Some((namespace, name))),
        };
        let (namespace, name) = named.unzip();
        if let (Some(Some(given)), Some(option)) = (&namespace, &self.namespace)
            && given != option
        {
            return Err(Misuse(format!("namespace {given} and --namespace {option} are two")));
        }
        Ok(HistoryQuery {
            address,
            name,
            namespace: namespace.flatten().or_else(|| self.namespace.clone()),
            host: self.host.clone(),
            network: self.network.clone(),
            since: self.at.or(self.since),
            until: self.at.or(self.until),
            limit: None,
            after: None,
        })
    }
}

fn render(tenures: &Answers<Tenure>, output: Output) -> anyhow::Result<String> {
    if output == Output::Json {
        return answer::json(tenures);
    }
    let rows = tenures.items.iter().map(|Answer { record, .. }| {
        let Tenure { key, namespace, name, addresses, from_wall, end, .. } = record;
        let (to, why, by) = match end {
            Some(end) => (end.wall.to_string(), end.reason.to_string(), by(&end.by)),
            None => ("now".to_owned(), table::NONE.to_owned(), table::NONE.to_owned()),
        };
        [
            from_wall.map_or_else(|| "unknown".to_owned(), |from| from.to_string()),
            to,
            table::addresses(addresses),
            key.network.to_string(),
            format!("{namespace}/{}", table::short(name.as_str())),
            key.host.to_string(),
            table::short(key.container.as_str()),
            why,
            by,
        ]
    });
    Ok(table::table(
        ["FROM", "TO", "ADDRESSES", "NETWORK", "NAME", "HOST", "CONTAINER", "WHY", "ENDED-BY"],
        rows,
    ))
}

fn by(by: &EndedBy) -> String {
    match by {
        EndedBy::Host(host) => format!("host {host}"),
        EndedBy::Operator => "operator".to_owned(),
        EndedBy::Controller => "controller".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::golden;

    fn tenure(host: &str, container: &str, from: Option<&str>, end: &Value) -> Value {
        json!({
            "host": host, "network": "corp", "container": container, "ifname": "eth0",
            "uid": "00112233445566778899aabbccddeeff", "namespace": "prod", "name": "web-0",
            "sticky": true, "mac": "02:4c:00:00:00:01", "runtime": "k8s", "from": 60,
            "addresses": [{"address": "10.32.0.1", "pool": "corp-v4"}, {"address": "fd32::1", "pool": "corp-v6"}],
            "from_wall": from, "end": end,
        })
    }

    fn answers() -> Answers<Tenure> {
        let id = "3f2a9c77d0e14b5aa1c2d3e4f5061728394a5b6c7d8e9f00112233445566aabb";
        let end = |wall: &str, reason: &str, by: Value| json!({"at": 90, "wall": wall, "reason": reason, "by": by});
        let items = [
            tenure("node-b", id, Some("2026-11-20T14:05:07Z"), &Value::Null),
            tenure(
                "node-a",
                "c2",
                Some("2026-11-19T08:00:00Z"),
                &end("2026-11-20T14:05:07Z", "taken-over", json!({"host": "node-b"})),
            ),
            tenure(
                "node-a",
                "c1",
                Some("2026-11-18T08:00:00Z"),
                &end("2026-11-19T07:59:58Z", "forced", json!("operator")),
            ),
            tenure(
                "node-c",
                "c0",
                None,
                &end("2026-11-01T00:00:00Z", "host-silent", json!("controller")),
            ),
        ];
        serde_json::from_value(json!({"revision": 40, "items": items})).unwrap()
    }

    #[test]
    fn history_is_shown_to_people_and_to_programs() {
        golden::check("history", &render(&answers(), Output::Table).unwrap());
        golden::check("history.json", &render(&answers(), Output::Json).unwrap());
    }

    fn query(args: &Args) -> Result<Value, String> {
        args.query().map(|query| json!(query)).map_err(|misuse| misuse.to_string())
    }

    fn wanted(text: &str) -> Args {
        Args { wanted: Some(text.parse().unwrap()), ..Args::default() }
    }

    #[test]
    fn what_is_asked_is_what_was_typed() {
        assert_eq!(query(&wanted("fd32:0::1")).unwrap(), json!({"address": "fd32::1"}));
        assert_eq!(query(&wanted("web-0")).unwrap(), json!({"name": "web-0"}));
        let named = json!({"name": "web-0", "namespace": "prod"});
        assert_eq!(query(&wanted("prod/web-0")).unwrap(), named);
        let both = Args { namespace: Some("prod".parse().unwrap()), ..wanted("web-0") };
        assert_eq!(query(&both).unwrap(), named);
        assert_eq!(
            query(&Args { wanted: wanted("prod/web-0").wanted, ..both.clone() }).unwrap(),
            named
        );
        let two = query(&Args { wanted: wanted("test/web-0").wanted, ..both }).unwrap_err();
        assert_eq!(two, "namespace test and --namespace prod are two");
        let host = Args { host: Some("node-a".parse().unwrap()), ..Args::default() };
        assert_eq!(query(&host).unwrap(), json!({"host": "node-a"}));
        let nothing = query(&Args::default()).unwrap_err();
        assert!(nothing.starts_with("whose history? give an address such as"), "{nothing}");
    }

    #[test]
    fn a_moment_is_a_span_that_begins_and_ends_with_it() {
        let at = Args { at: Some("2026-11-20T15:05+01:00".parse().unwrap()), ..wanted("web-0") };
        let moment = "2026-11-20T14:05:00Z";
        assert_eq!(query(&at).unwrap(), json!({"name": "web-0", "since": moment, "until": moment}));
    }
}

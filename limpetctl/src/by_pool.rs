//! Edge: what of a pool is held and kept, and the release of all that nobody holds: `of` and `run` ask, the rest is
//! pure.

use std::fmt::Write;
use std::net::IpAddr;

use anyhow::Context;
use limpet_api::Span;
use limpet_api::holding::{Holding, HoldingQuery, PoolRelease, ReleasedName};
use limpet_api::paths;
use limpet_net_types::{Namespace, PoolName};
use serde::Deserialize;
use serde_json::json;

use crate::answer::{self, Answer, Answers};
use crate::cli::{Done, Output};
use crate::controller::Controller;
use crate::progress::Progress;
use crate::table;

/// How many are shown to people.
const SHOWN: usize = 20;

/// How many one request is to look for: what a controller gives at most.
const PIECE: usize = 256;

/// What is to become of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// They are released.
    Do,
    /// They are listed.
    List,
    /// What would be lost is shown.
    Plan,
}

/// The reservations of a pool that are to be released.
#[derive(Debug)]
pub(crate) struct Idle<'a> {
    pub(crate) pool: &'a PoolName,
    pub(crate) namespace: Option<&'a Namespace>,
    pub(crate) detached_for: Option<Span>,
}

/// An answer of the controller, of which programs get what it says of each.
#[derive(Deserialize)]
struct Piece {
    released: Vec<Answer<ReleasedName>>,
    next: Option<IpAddr>,
}

/// Carries out the release, request after request.
pub(crate) fn run(
    idle: &Idle<'_>,
    how: How,
    controller: &Controller,
    output: Output,
) -> anyhow::Result<Done> {
    let names = all(idle, how, controller)?;
    Ok(match how {
        How::Plan => Done::Plan(plan(idle.pool, &names)),
        How::List => Done::Answer(render(&names, output)?),
        How::Do if output == Output::Json => {
            Done::Answer(answer::json(&json!({ "released": names }))?)
        }
        How::Do => Done::Answer(format!("{} released\n", counted(idle.pool, names.len()))),
    })
}

fn all(
    idle: &Idle<'_>,
    how: How,
    controller: &Controller,
) -> anyhow::Result<Vec<Answer<ReleasedName>>> {
    let path = paths::pool_reservations(idle.pool);
    let mut query = PoolRelease {
        namespace: idle.namespace.cloned(),
        detached_for: idle.detached_for,
        dry_run: how != How::Do,
        limit: Some(PIECE),
        after: None,
    };
    let (mut names, mut progress) = (Vec::new(), Progress::begin());
    loop {
        let piece: Option<Piece> = controller
            .delete_where(&path, &query)
            .with_context(|| asking(idle.pool, how, names.len()))?;
        // Somebody has deleted the pool, so nothing is left to release.
        let Some(Piece { released, next }) = piece else { return Ok(names) };
        names.extend(released);
        query.after = next;
        let Some(next) = next else { return Ok(names) };
        let done = if how == How::Do { "released" } else { "found" };
        progress.tell(|| format!("{} {done}, up to {next}", counted(idle.pool, names.len())));
    }
}

/// Asks who has addresses of a pool: the first of them for people, all for programs.
pub(crate) fn of(
    pool: &PoolName,
    controller: &Controller,
    output: Output,
) -> anyhow::Result<Answers<Holding>> {
    let path = paths::pool_addresses(pool);
    let answer = match output {
        Output::Json => controller.list(&path, &HoldingQuery::default()),
        Output::Table => controller.page(&path, &HoldingQuery { limit: Some(SHOWN), after: None }),
    };
    answer.with_context(|| format!("asking who has addresses of pool {pool}"))
}

/// Who still has addresses of a draining pool, of which there are `count`.
pub(crate) fn left(pool: &PoolName, holdings: &Answers<Holding>, count: u64) -> String {
    if count == 0 {
        return format!(
            "\nnobody holds or keeps an address of it any more: limpetctl pool delete {pool} --yes\n"
        );
    }
    let rows = holdings.items.iter().map(|Answer { record, .. }| {
        let holder = record.attachment.as_ref().map(|attachment| &attachment.key);
        [
            record.address.to_string(),
            record.namespace.to_string(),
            record.name.to_string(),
            if record.reserved { "yes" } else { "no" }.to_owned(),
            table::or_none(holder.map(|key| &key.host)),
            table::or_none(holder.map(|key| table::short(key.container.as_str()))),
            table::or_none(record.detached_for),
        ]
    });
    let mut text = format!("\nstill held or reserved: {count}\n");
    text += &table::table(
        ["ADDRESS", "NAMESPACE", "NAME", "RESERVED", "HOST", "CONTAINER", "IDLE-FOR"],
        rows,
    );
    let shown = u64::try_from(holdings.items.len()).unwrap_or(u64::MAX);
    if holdings.next.is_some() && count > shown {
        let more = count - shown;
        // Writing into a string does not fail.
        let _ = writeln!(text, "and {more} more: limpetctl pool show {pool} -o json");
    }
    text
}

fn asking(pool: &PoolName, how: How, done: usize) -> String {
    match (how, done) {
        (How::Do, 0) => format!("releasing reservations of pool {pool}"),
        (How::Do, done) => format!("releasing reservations of pool {pool}, after {done} were"),
        _ => format!("asking for idle reservations of pool {pool}"),
    }
}

fn counted(pool: &PoolName, count: usize) -> String {
    format!("{} of pool {pool}", table::plural(count, "reservation"))
}

fn plan(pool: &PoolName, names: &[Answer<ReleasedName>]) -> String {
    if names.is_empty() {
        return format!(
            "this would release nothing: pool {pool} has no such reservation that no container holds\n"
        );
    }
    let mut text = format!("this would release {}:\n", counted(pool, names.len()));
    for Answer { record, .. } in names.iter().take(SHOWN) {
        let ReleasedName { namespace, name, addresses, detached_for } = record;
        let idle = detached_for.map_or_else(String::new, |span| format!(", idle for {span}"));
        let addresses = table::list(addresses);
        let line = table::harmless(&format!("{namespace}/{name}: {addresses}{idle}"));
        let _ = writeln!(text, "  {line}");
    }
    if names.len() > SHOWN {
        let _ = writeln!(text, "  and {} more: --dry-run lists all", names.len() - SHOWN);
    }
    text + "no container holds them now; these names get other addresses next time\n"
}

fn render(names: &[Answer<ReleasedName>], output: Output) -> anyhow::Result<String> {
    if output == Output::Json {
        return answer::json(&json!({ "would_release": names }));
    }
    let rows = names.iter().map(|Answer { record, .. }| {
        [
            record.namespace.to_string(),
            record.name.to_string(),
            table::list(&record.addresses),
            table::or_none(record.detached_for),
        ]
    });
    Ok(table::table(["NAMESPACE", "NAME", "ADDRESSES", "IDLE-FOR"], rows))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden;

    fn names(count: usize) -> Vec<Answer<ReleasedName>> {
        let one = |n: usize| {
            json!({
                "namespace": "prod", "name": format!("web-{n}"), "addresses": [format!("10.32.0.{n}"), "fd32::1"],
                "detached_for": "3h",
            })
        };
        let first = json!({ "namespace": "_", "name": "db", "addresses": ["10.32.0.9"] });
        let all = std::iter::once(first).chain((1..count).map(one));
        all.map(|value| serde_json::from_value(value).unwrap()).collect()
    }

    #[test]
    fn a_release_by_pool_is_shown_before_it_is_done() {
        let pool: PoolName = "corp-v4".parse().unwrap();
        let plans = [0, 2, 23].map(|count| plan(&pool, &names(count.max(1))[..count]));
        golden::check("reservation-release-pool-plan", &plans.join("\n"));
        let table = render(&names(3), Output::Table).unwrap();
        golden::check("reservation-release-pool", &table);
        let json = render(&names(2), Output::Json).unwrap();
        golden::check("reservation-release-pool.json", &json);
    }

    #[test]
    fn a_draining_pool_is_shown_with_who_is_left() {
        let pool: PoolName = "corp-v4".parse().unwrap();
        let holdings: Answers<Holding> = serde_json::from_value(json!({
            "revision": 7, "next": "10.32.0.3", "items": [
                {
                    "address": "10.32.0.1", "namespace": "prod", "name": "web-0", "reserved": true,
                    "attachment": {
                        "host": "node-b", "network": "corp", "ifname": "eth0",
                        "container": "3f2a9c77d0e14b5aa1c2d3e4f5061728394a5b6c7d8e9f00112233445566aabb",
                        "uid": "00112233445566778899aabbccddeeff",
                    },
                },
                {
                    "address": "10.32.0.3", "namespace": "prod", "name": "web-1", "reserved": true,
                    "detached_for": "2h",
                },
            ],
        }))
        .unwrap();
        let none: Answers<Holding> =
            serde_json::from_value(json!({ "revision": 9, "items": [] })).unwrap();
        let shown = left(&pool, &holdings, 40) + &left(&pool, &none, 0);
        golden::check("pool-show-draining", &shown);
    }
}

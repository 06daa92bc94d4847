//! Pure: where a host's kernel sends packets, by its rules, routes, nexthops and entries; and that no step of a plan cuts
//! a way that is there before and after.

use std::collections::BTreeSet;
use std::net::IpAddr;

use limpet_net_types::{Family, Mac};
use limpet_rtnl::{RuleAction, Selector};
use proptest::prelude::*;

use super::tests::{carried_out, facts, ifname, view, with_veth};
use super::worlds::{Harm, cluster, do_harm, harm};
use super::{plan, remade};
use crate::desired::desired;
use crate::layout::{Hop, Nexthop, Route, Rule, Tables, Target};
use crate::model::carry_out;

/// Where packets end up.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    /// In a container of this host.
    Container(String),
    /// On other hosts, which these are, at these underlay addresses: one of them for each flow.
    Hosts(BTreeSet<(Mac, IpAddr)>),
}

impl End {
    /// Whether it is the same container, or the same hosts wherever they are.
    fn is_of_the_same(&self, other: &Self) -> bool {
        let macs = |hosts: &BTreeSet<(Mac, IpAddr)>| -> BTreeSet<Mac> {
            hosts.iter().map(|(mac, _)| *mac).collect()
        };
        match (self, other) {
            (Self::Hosts(some), Self::Hosts(others)) => macs(some) == macs(others),
            _ => self == other,
        }
    }
}

/// Where a packet goes; nowhere if it is dropped on the way, or left to the main table.
///
/// `from` none: the host itself sends it, and has not chosen an address yet.
fn end(tables: &Tables, from: Option<IpAddr>, to: IpAddr) -> Option<End> {
    let family = Family::of(to);
    let mut rules: Vec<&Rule> = tables.rules.iter().filter(|rule| rule.family == family).collect();
    rules.sort_by_key(|rule| rule.preference);
    let mut at = 0;
    while let Some(rule) = rules.get(at) {
        at += 1;
        let is_for = match rule.selector {
            Selector::All => true,
            Selector::From(prefix) => from.is_some_and(|from| prefix.contains(from)),
            // These have no mark.
            Selector::Marked { mark, .. } => mark == 0,
            Selector::OfHost => from.is_none(),
        };
        if !is_for {
            continue;
        }
        match rule.action {
            RuleAction::Unreachable => return None,
            RuleAction::GoTo(preference) => {
                let target = rules.iter().position(|rule| rule.preference == preference);
                at = target.unwrap_or(at);
            }
            RuleAction::Lookup(table) => match best(tables, table, to).map(|route| &route.target) {
                None | Some(Target::Throw) => {}
                Some(target) => return led(tables, target),
            },
        }
    }
    None
}

/// The route of a table that counts: the most precise, of those the cheapest.
fn best(tables: &Tables, table: u32, to: IpAddr) -> Option<&Route> {
    let fits = tables
        .routes
        .iter()
        .filter(|route| route.key.table == table && route.key.destination.contains(to));
    fits.min_by_key(|route| (std::cmp::Reverse(route.key.destination.length()), route.key.metric))
}

fn led(tables: &Tables, target: &Target) -> Option<End> {
    match target {
        Target::Link(device) => Some(End::Container(device.clone())),
        Target::Nexthop(id) => match &tables.nexthops.get(id)?.leads {
            Nexthop::Hop(hop) => Some(End::Hosts([vtep(tables, hop)?].into())),
            Nexthop::Group(members) => {
                let ends = members.iter().map(|id| match &tables.nexthops.get(id)?.leads {
                    Nexthop::Hop(hop) => vtep(tables, hop),
                    _ => None,
                });
                Some(End::Hosts(ends.collect::<Option<_>>()?))
            }
            Nexthop::Other => None,
        },
        _ => None,
    }
}

/// The host behind a nexthop, and where it is, if every entry on the way is there.
fn vtep(tables: &Tables, hop: &Hop) -> Option<(Mac, IpAddr)> {
    let mac = tables.neighbours.get(&(hop.device.clone(), hop.via.into()))?;
    let is_up = tables.devices.get(&hop.device)?.up;
    let of_it =
        |entry: &&crate::layout::Fdb| entry.device == hop.device && entry.mac == mac.bytes();
    let at = tables.fdb.iter().find(of_it)?.vtep.filter(|_| is_up)?;
    Some((*mac, at))
}

/// Every pair of a sender and a destination that these clusters have, and some that they have not.
fn pairs() -> Vec<(Option<IpAddr>, IpAddr)> {
    let ip = |text: String| text.parse::<IpAddr>().unwrap();
    let mut to: Vec<IpAddr> = (0..16).map(|n| ip(format!("10.32.0.{n}"))).collect();
    to.extend((0..6).map(|n| ip(format!("fd32::{n:x}"))));
    to.extend([2, 3, 9, 10].map(|n| ip(format!("192.0.2.{n}"))));
    to.extend([2, 3, 9, 10].map(|n| ip(format!("2001:db8::{n:x}"))));
    to.extend(["198.51.100.7", "2001:db8:e::7", "10.33.0.4"].map(|text| ip(text.to_owned())));
    let from = ["10.32.0.1", "fd32::1", "10.33.0.1", "192.0.2.1"].map(|text| ip(text.to_owned()));
    let mut pairs = Vec::new();
    for to in to {
        pairs.push((None, to));
        let same = from.into_iter().filter(|from| from.is_ipv4() == to.is_ipv4());
        pairs.extend(same.map(|from| (Some(from), to)));
    }
    pairs
}

#[test]
fn a_whole_host_leads_its_own_and_its_containers_packets_to_containers_hosts_and_gateways() {
    let wanted = desired(&view(super::tests::small()), &facts()).unwrap();
    let kernel = carried_out(&wanted, &with_veth(Tables::default(), 1, 1, 4097));
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    let hosts = |text: &str| {
        let at = ip(text);
        let host = view(super::tests::small()).hosts.into_values().find(|h| h.underlay == Some(at));
        Some(End::Hosts([(host.unwrap().vtep_mac, at)].into()))
    };
    for (from, to, expected) in [
        (None, "10.32.0.1", Some(End::Container(ifname(1)))),
        (None, "10.32.0.70", hosts("192.0.2.2")),
        (None, "10.32.0.9", None),
        (None, "192.0.2.2", None),
        (None, "198.51.100.7", None),
        (Some("10.32.0.1"), "192.0.2.2", hosts("192.0.2.2")),
        (Some("10.32.0.1"), "198.51.100.7", hosts("192.0.2.9")),
        (Some("fd32::1"), "2001:db8::9", hosts("192.0.2.9")),
        (Some("fd32::1"), "fd32::7", hosts("192.0.2.2")),
        (Some("192.0.2.1"), "10.32.0.70", hosts("192.0.2.2")),
    ] {
        assert_eq!(end(&kernel, from.map(ip), ip(to)), expected, "{from:?} to {to}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    /// Where a path leads elsewhere afterwards, it may lead to either until then, and to nothing else. A host that
    /// moves in the underlay is the same one.
    #[test]
    fn no_step_cuts_a_path_that_is_there_before_and_after(
        before in cluster(),
        harms in prop::collection::vec(harm(), 0..3),
        after in cluster(),
    ) {
        let first = desired(&view(before), &facts()).unwrap();
        let empty = with_veth(with_veth(Tables::default(), 1, 1, 4097), 2, 2, 4097);
        // Which of two routes of one key counts depends on which came first: that is not known of these tables.
        let harms = harms.iter().filter(|harm| !matches!(harm, Harm::RouteTwice(_)));
        let found = harms.fold(carried_out(&first, &empty), do_harm);
        let wanted = desired(&view(after), &facts()).unwrap();
        prop_assume!(remade(&wanted, &found).is_empty());
        let last = carried_out(&wanted, &found);
        let kept: Vec<_> = pairs()
            .into_iter()
            .filter_map(|(from, to)| {
                let ends = (end(&found, from, to)?, end(&last, from, to)?);
                Some((from, to, ends))
            })
            .collect();
        let mut kernel = found.clone();
        for step in plan(&wanted, &found) {
            carry_out(&mut kernel, &step);
            for (from, to, (before, after)) in &kept {
                let now = end(&kernel, *from, *to);
                prop_assert!(now.is_some(), "{from:?} to {to} is cut by {step}");
                let known = now.iter().any(|now| [before, after].iter().any(|end| now.is_of_the_same(end)));
                let wide = matches!((before, after), (End::Hosts(_), End::Hosts(_)));
                prop_assert!(known || wide, "{from:?} to {to} is led to {now:?} by {step}");
            }
        }
    }
}

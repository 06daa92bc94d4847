//! Pure: small clusters of every kind, and what may have been done to a kernel.

use std::collections::BTreeSet;
use std::net::IpAddr;

use limpet_api::config::{Host, Role};
use limpet_api::host::{Snapshot, Stray};
use limpet_net_types::Mac;
use proptest::prelude::*;

use super::tests::{block, host, ifname, pool, with_veth};
use super::{prune, without};
use crate::fixture;
use crate::layout::{Device, FoundNexthop, Nexthop, Route, Tables, Target};
use crate::model::add_settings;

/// A small cluster of which anything may be missing.
pub(super) fn cluster() -> impl Strategy<Value = Snapshot> {
    let owner = || prop::option::of(prop::sample::select(vec!["node-a", "node-b", "node-c", "gw"]));
    (
        prop::sample::subsequence(vec![1_u16, 2], 0..=2),
        prop::sample::subsequence(vec![1_u8, 2, 3, 4, 5], 1..=5),
        prop::collection::vec(owner(), 4),
        prop::collection::vec(owner(), 3),
        prop::sample::subsequence(vec![1_u8, 2, 3], 0..=3),
        prop::sample::subsequence(vec![0_usize, 1, 2], 0..=3),
        0..3_u8,
    )
        .prop_map(|(networks, hosts, blocks, strays, attachments, pools, shift)| {
            let all = [
                host("node-a", 1, &[Role::Node]),
                host("node-b", 2 + 10 * shift, &[Role::Node]),
                host("node-c", 3, &[Role::Member]),
                host("gw", 9, &[Role::Gateway]),
                host("gw-2", 10, &[Role::Gateway]),
            ];
            let mut kept: BTreeSet<u8> = hosts.into_iter().collect();
            kept.insert(1);
            let mut hosts: Vec<Host> =
                kept.iter().map(|n| all[usize::from(*n) - 1].clone()).collect();
            // The MAC address is the name's, whatever the underlay is.
            for host in &mut hosts {
                if host.name.as_str() == "node-b" {
                    host.vtep_mac = Mac::new([2, 0x4c, 0, 0, 0, 2]).unwrap();
                }
            }
            let ranges =
                [("p4", 1, "10.32.0.0/28"), ("p6", 1, "fd32::/124"), ("q4", 2, "10.33.0.0/28")];
            let prefixes = ["10.32.0.0/30", "10.32.0.4/32", "10.32.0.8/30", "10.32.0.12/30"];
            let addresses: [IpAddr; 3] =
                ["10.32.0.1", "10.32.0.4", "fd32::3"].map(|address| address.parse().unwrap());
            Snapshot {
                networks: networks.into_iter().map(fixture::network).collect(),
                pools: pools
                    .into_iter()
                    .map(|at| pool(ranges[at].0, ranges[at].1, ranges[at].2))
                    .collect(),
                hosts,
                blocks: prefixes
                    .iter()
                    .zip(blocks)
                    .filter_map(|(prefix, owner)| Some(block("p4", 1, prefix, owner?)))
                    .collect(),
                strays: addresses
                    .into_iter()
                    .zip(strays)
                    .filter_map(|(address, host)| {
                        let network = fixture::network(1).name;
                        Some(Stray { network, address, host: host?.parse().unwrap() })
                    })
                    .collect(),
                attachments: attachments
                    .into_iter()
                    .map(|n| fixture::attachment(n, n.into()))
                    .collect(),
                ..Snapshot::default()
            }
        })
}

/// What somebody, or an accident, did to the kernel.
#[derive(Clone, Debug)]
pub(super) enum Harm {
    Route(usize),
    RouteElsewhere(usize),
    RouteTwice(usize),
    Nexthop(usize),
    Fdb(usize),
    Neighbour(usize),
    Rule(usize),
    Ruleset,
    Down(usize),
    Mtu(usize),
    NotVxlan(usize),
    Foreign(usize),
    Veth(u8, u128, u32),
    /// Of everything about every second thing, by this number.
    Half(u64),
}

pub(super) fn harm() -> impl Strategy<Value = Harm> {
    prop_oneof![
        (0..9_usize).prop_map(Harm::Route),
        (0..9_usize).prop_map(Harm::RouteElsewhere),
        (0..9_usize).prop_map(Harm::RouteTwice),
        (0..6_usize).prop_map(Harm::Nexthop),
        (0..4_usize).prop_map(Harm::Fdb),
        (0..4_usize).prop_map(Harm::Neighbour),
        (0..4_usize).prop_map(Harm::Rule),
        Just(Harm::Ruleset),
        (0..2_usize).prop_map(Harm::Down),
        (0..2_usize).prop_map(Harm::Mtu),
        (0..2_usize).prop_map(Harm::NotVxlan),
        (0..6_usize).prop_map(Harm::Foreign),
        (1..4_u8, 1..4_u128, 4096..4098_u32).prop_map(|(n, uid, group)| Harm::Veth(n, uid, group)),
        any::<u64>().prop_map(Harm::Half),
    ]
}

fn nth<T: Clone + Ord>(set: &BTreeSet<T>, n: usize) -> Option<T> {
    set.iter().nth(n % set.len().max(1)).cloned()
}

pub(super) fn do_harm(mut found: Tables, harm: &Harm) -> Tables {
    let devices: BTreeSet<String> = found.devices.keys().cloned().collect();
    let ids: BTreeSet<u32> = found.nexthops.keys().copied().collect();
    match harm {
        Harm::Route(n) => {
            nth(&found.routes, *n).map(|route| found.routes.remove(&route));
        }
        Harm::RouteElsewhere(n) => {
            if let Some(mut route) = nth(&found.routes, *n) {
                found.routes.remove(&route);
                route.source = None;
                found.routes.insert(route);
            }
        }
        Harm::RouteTwice(n) => {
            if let Some(mut route) = nth(&found.routes, *n) {
                route.target = Target::Unreachable;
                found.routes.insert(route);
            }
        }
        Harm::Nexthop(n) => {
            nth(&ids, *n).map(|id| found.nexthops.remove(&id));
            prune(&mut found);
        }
        Harm::Fdb(n) => {
            nth(&found.fdb, *n).map(|entry| found.fdb.remove(&entry));
        }
        Harm::Neighbour(n) => {
            let keys: BTreeSet<_> = found.neighbours.keys().cloned().collect();
            nth(&keys, *n).map(|key| found.neighbours.remove(&key));
        }
        Harm::Rule(n) => {
            nth(&found.rules, *n).map(|rule| found.rules.remove(&rule));
        }
        Harm::Ruleset => found.ruleset = None,
        Harm::Down(n) => {
            if let Some(name) = nth(&devices, *n) {
                let device = found.devices[&name];
                found = without(&found, &[name.clone()].into());
                found.devices.insert(name.clone(), Device { up: false, ..device });
                add_settings(&mut found, &name);
            }
        }
        Harm::Mtu(n) => {
            if let Some(name) = nth(&devices, *n) {
                found.devices.entry(name).and_modify(|device| device.mtu = 1300);
            }
        }
        Harm::NotVxlan(n) => {
            if let Some(name) = nth(&devices, *n) {
                found.devices.entry(name).and_modify(|device| device.vxlan = None);
            }
        }
        Harm::Half(seed) => halve(&mut found, *seed),
        Harm::Foreign(n) => {
            if let Some(id) = nth(&ids, *n) {
                found.nexthops.insert(id, FoundNexthop { ours: false, leads: Nexthop::Other });
                let of_it = |route: &Route| route.target == Target::Nexthop(id);
                found.routes.retain(|route| !of_it(route));
            }
        }
        Harm::Veth(n, uid, group) => {
            if !found.veths.contains_key(&ifname(*n)) {
                found = with_veth(found, *n, *uid, *group);
            }
        }
    }
    found
}

/// Takes about every second entry away, and what the kernel takes along with it.
fn halve(found: &mut Tables, seed: u64) {
    let hash = |thing: String| limpet_net_types::stable_hash(&[&thing, &seed.to_string()]);
    let stays = |thing: String| hash(thing).is_multiple_of(2);
    found.routes.retain(|route| stays(route.to_string()));
    found.rules.retain(|rule| stays(format!("{:?}{rule}", rule.family)));
    found.fdb.retain(|entry| stays(entry.to_string()));
    found.neighbours.retain(|key, _| stays(format!("{key:?}")));
    found.nexthops.retain(|id, nexthop| !nexthop.ours || stays(id.to_string()));
    found.addresses.retain(|address| stays(address.ip.to_string()));
    prune(found);
}

//! Pure: turns what is wanted into entries of the kernel's: gives nexthops their numbers, and containers their routes.
//!
//! A nexthop object keeps the number that it has in the kernel, so that a restarted agent finds everything right and
//! a host that joins moves nobody else's. A new one takes the first free number from its hash on; "free" counts
//! the objects of other programs too.

use std::collections::{BTreeMap, BTreeSet};

use limpet_net_types::{host_prefix, stable_hash};

use crate::desired::{Container, Desired, Way, device_settings};
use crate::layout::{FoundNexthop, Hop, Nexthop, Route, RouteKey, Rule, Tables, Target, Veth};
use crate::rules::source_rules;

/// The numbers of limpet's nexthop objects are `0x4c000000` to `0x4cffffff`.
const FIRST_ID: u32 = 0x4c00_0000;
const IDS: u32 = 1 << 24;

/// The entries that the kernel should have, given those that it has.
pub(crate) fn resolve(desired: &Desired, found: &Tables) -> Tables {
    let mut numbers = Numbers::of(found);
    let mut wanted = Tables {
        devices: desired.devices.clone(),
        veths: found.veths.clone(),
        addresses: desired.addresses.clone(),
        fdb: desired.fdb.clone(),
        neighbours: desired.neighbours.clone(),
        rules: rules_of(desired, found),
        settings: desired.settings.clone(),
        ruleset: Some(desired.ruleset.listing()),
        ..Tables::default()
    };
    // Every way has its nexthop, also where no route needs it yet: a first block then costs one message.
    for (device, address) in desired.neighbours.keys() {
        if let std::net::IpAddr::V6(via) = address {
            numbers.hop(&Hop { device: device.clone(), via: *via });
        }
    }
    let mut routes = BTreeMap::new();
    for (key, route) in &desired.routes {
        let target = match &route.way {
            Way::Hop(hop) => Target::Nexthop(numbers.hop(hop)),
            Way::Gateways(hops) => Target::Nexthop(numbers.group(*key, hops, found)),
            Way::Device(device) => Target::Link(device.clone()),
            Way::Unreachable => Target::Unreachable,
            Way::Throw => Target::Throw,
        };
        routes.insert(*key, Route { key: *key, target, source: route.source });
    }
    wanted.nexthops = numbers.wanted;
    for (name, veth) in &mut wanted.veths {
        if let Some(container) = desired.containers.get(name).filter(|c| veth.is(c.uid)) {
            // Also one that was severed and is this container's again, by the store's word. The plugin buries what it
            // sets down in the same message.
            veth.up = true;
            veth.mtu = container.mtu;
            veth.group = container.group;
            let forwarding = desired.forwarding.as_ref();
            let settings = forwarding.map(|way| device_settings(name, way));
            wanted.settings.extend(settings.unwrap_or_default());
            add_container(&mut routes, &mut wanted.neighbours, (name, container));
        }
    }
    wanted.routes = routes.into_values().collect();
    wanted
}

/// The rules, those for sources arranged as they are in the kernel where that will do.
fn rules_of(desired: &Desired, found: &Tables) -> BTreeSet<Rule> {
    let mut rules = source_rules(&desired.sources, &found.rules);
    rules.extend(desired.rules.iter().copied());
    rules
}

/// Whether this veth is the interface of a container that is known.
pub(crate) fn is_known(desired: &Desired, name: &str, veth: &Veth) -> bool {
    desired.containers.get(name).is_some_and(|container| veth.is(container.uid))
}

fn add_container(
    routes: &mut BTreeMap<RouteKey, Route>,
    neighbours: &mut BTreeMap<(String, std::net::IpAddr), limpet_net_types::Mac>,
    (name, container): (&str, &Container),
) {
    for (address, source) in &container.addresses {
        let (table, destination) = (container.table, host_prefix(*address));
        let key = RouteKey { table, destination, metric: 0 };
        let target = Target::Link(name.to_owned());
        // What is here wins over what is said to be elsewhere.
        routes.insert(key, Route { key, target, source: *source });
        neighbours.insert((name.to_owned(), *address), container.mac);
    }
}

/// Gives numbers to nexthops.
struct Numbers {
    /// What is taken in the kernel, by whomever.
    taken: BTreeSet<u32>,
    /// The ways that have a number there already.
    kept: BTreeMap<Hop, u32>,
    hops: BTreeMap<Hop, u32>,
    wanted: BTreeMap<u32, FoundNexthop>,
}

impl Numbers {
    fn of(found: &Tables) -> Self {
        let mut kept = BTreeMap::new();
        for (id, nexthop) in &found.nexthops {
            if let FoundNexthop { ours: true, leads: Nexthop::Hop(hop) } = nexthop {
                kept.entry(hop.clone()).or_insert(*id);
            }
        }
        let taken = found.nexthops.keys().copied().collect();
        Self { taken, kept, hops: BTreeMap::new(), wanted: BTreeMap::new() }
    }

    fn hop(&mut self, hop: &Hop) -> u32 {
        if let Some(&id) = self.hops.get(hop) {
            return id;
        }
        let kept = self.kept.get(hop).copied();
        let id = kept.unwrap_or_else(|| self.free(&[&hop.device, &hop.via.to_string()]));
        self.hops.insert(hop.clone(), id);
        self.want(id, Nexthop::Hop(hop.clone()))
    }

    /// The group for a prefix keeps its number when its members change: replacing it keeps the flows of those
    /// that stay.
    fn group(&mut self, key: RouteKey, hops: &BTreeSet<Hop>, found: &Tables) -> u32 {
        let members = hops.iter().map(|hop| self.hop(hop)).collect();
        let now = found.routes.iter().filter(|route| route.key == key);
        let kept = now.filter_map(|route| match route.target {
            Target::Nexthop(id) => Some(id),
            _ => None,
        });
        let is_group = |id: &u32| {
            let of_limpet = found.nexthops.get(id).filter(|nexthop| nexthop.ours);
            of_limpet.is_some_and(|nexthop| matches!(nexthop.leads, Nexthop::Group(_)))
        };
        let kept = kept.filter(is_group).find(|id| !self.wanted.contains_key(id));
        let RouteKey { table, destination, .. } = key;
        let name = [destination.to_string(), table.to_string()];
        let id = kept.unwrap_or_else(|| self.free(&["gateways", &name[0], &name[1]]));
        self.want(id, Nexthop::Group(members))
    }

    fn want(&mut self, id: u32, leads: Nexthop) -> u32 {
        self.wanted.insert(id, FoundNexthop { ours: true, leads });
        id
    }

    fn free(&mut self, parts: &[&str]) -> u32 {
        let start = u32::try_from(stable_hash(parts) % u64::from(IDS)).unwrap_or(0);
        let ids = (0..IDS).map(|step| FIRST_ID + (start + step) % IDS);
        // There are more numbers than a host can have nexthops.
        let id = ids.into_iter().find(|id| !self.taken.contains(id)).unwrap_or(FIRST_ID);
        self.taken.insert(id);
        id
    }
}

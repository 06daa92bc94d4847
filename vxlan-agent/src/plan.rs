//! Pure: the steps that turn the kernel's entries into those that should be.
//!
//! Everything is set before anything is deleted, and within each what is needed comes before what needs it: a
//! working path is never taken away before its replacement is there, and none is there by halves.

use std::collections::{BTreeMap, BTreeSet};

use crate::desired::Desired;
use crate::layout::{Device, Nexthop, Route, RouteKey, Setting, Tables, Target, is_own_table};
use crate::resolve::{is_known, resolve};
use crate::step::Step;

/// Returns the steps that turn `found` into what is desired; none if they agree.
pub(crate) fn plan(desired: &Desired, found: &Tables) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut remade = remade(desired, found);
    if desired.careful {
        remade.clear();
    }
    // What goes away with a device that is made anew is to be set again in the same pass.
    let left = (!remade.is_empty()).then(|| without(found, &remade));
    let found = left.as_ref().unwrap_or(found);
    let wanted = resolve(desired, found);
    set_devices(&mut steps, &wanted, found, &remade);
    set_ruleset(&mut steps, desired, found);
    set_ways(&mut steps, &wanted, found);
    set_routes(&mut steps, &wanted, found);
    if !desired.careful {
        delete(&mut steps, desired, &wanted, found);
    }
    steps
}

/// The devices that are not what they should be in what cannot be changed.
fn remade(desired: &Desired, found: &Tables) -> BTreeSet<String> {
    let wrong = found.devices.iter().filter(|(name, device)| {
        desired.devices.get(*name).is_some_and(|wanted| wanted.vxlan != device.vxlan)
    });
    wrong.map(|(name, _)| name.clone()).collect()
}

/// What is left when these devices are gone: the kernel takes along what is on them, and what leads by them.
pub(crate) fn without(found: &Tables, devices: &BTreeSet<String>) -> Tables {
    let mut left = found.clone();
    left.devices.retain(|name, _| !devices.contains(name));
    left.addresses.retain(|address| !devices.contains(&address.device));
    left.fdb.retain(|entry| !devices.contains(&entry.device));
    left.neighbours.retain(|(device, _), _| !devices.contains(device));
    left.settings.retain(|(setting, _)| !devices.contains(&setting.device));
    let on_them =
        |nexthop: &Nexthop| matches!(nexthop, Nexthop::Hop(hop) if devices.contains(&hop.device));
    left.nexthops.retain(|_, nexthop| !on_them(&nexthop.leads));
    left.routes
        .retain(|route| !matches!(&route.target, Target::Link(device) if devices.contains(device)));
    prune(&mut left);
    left
}

/// Takes what needs nexthops that are gone: members out of groups, empty groups, routes.
pub(crate) fn prune(tables: &mut Tables) {
    let hops: BTreeSet<u32> = tables.nexthops.keys().copied().collect();
    for nexthop in tables.nexthops.values_mut() {
        if let Nexthop::Group(members) = &mut nexthop.leads {
            members.retain(|id| hops.contains(id));
        }
    }
    tables.nexthops.retain(|_, nexthop| nexthop.leads != Nexthop::Group(BTreeSet::new()));
    let left: BTreeSet<u32> = tables.nexthops.keys().copied().collect();
    tables.routes.retain(|route| match route.target {
        Target::Nexthop(id) => left.contains(&id),
        _ => true,
    });
}

fn set_devices(steps: &mut Vec<Step>, wanted: &Tables, found: &Tables, remade: &BTreeSet<String>) {
    for (name, device) in &wanted.devices {
        if !found.devices.contains_key(name) {
            let (name, device) = (name.clone(), *device);
            let anew = remade.contains(&name);
            steps.push(Step::NewDevice { name, device, anew });
        }
    }
    // Also before the devices come up: they must not be configured by what arrives on them.
    let values: BTreeMap<&Setting, &String> =
        found.settings.iter().map(|(setting, value)| (setting, value)).collect();
    for (setting, value) in &wanted.settings {
        // Of a device that is still to be made none was found; what else was not found does not exist.
        let new = wanted.devices.contains_key(&setting.device)
            && !found.devices.contains_key(&setting.device);
        if values.get(setting).map_or(new, |now| *now != value) {
            steps.push(Step::SetSetting(setting.clone(), value.clone()));
        }
    }
    for (name, device) in &wanted.devices {
        let new = Device { up: false, ..*device };
        let now = found.devices.get(name).copied().unwrap_or(new);
        if now != *device {
            let mtu = (now.mtu != device.mtu).then_some(device.mtu);
            let group = (now.group != device.group).then_some(device.group);
            steps.push(Step::ChangeDevice { name: name.clone(), mtu, group, up: !now.up });
        }
    }
    for (name, veth) in &wanted.veths {
        let now = found.veths.get(name);
        if let Some(now) = now.filter(|now| *now != veth) {
            let (mtu, up) = ((now.mtu != veth.mtu).then_some(veth.mtu), veth.up && !now.up);
            let group = (now.group != veth.group).then_some(veth.group);
            steps.push(Step::ChangeDevice { name: name.clone(), mtu, group, up });
        }
    }
    let addresses = wanted.addresses.difference(&found.addresses);
    steps.extend(addresses.cloned().map(Step::SetAddress));
}

fn set_ruleset(steps: &mut Vec<Step>, desired: &Desired, found: &Tables) {
    if found.ruleset.as_ref() != Some(&desired.ruleset.listing()) {
        steps.push(Step::SetRuleset(desired.ruleset.clone()));
    }
}

/// FDB and neighbour entries, then the nexthops that need them, then the groups that need those.
fn set_ways(steps: &mut Vec<Step>, wanted: &Tables, found: &Tables) {
    let fdb = wanted.fdb.difference(&found.fdb);
    steps.extend(fdb.cloned().map(Step::SetFdb));
    let neighbours =
        wanted.neighbours.iter().filter(|(key, mac)| found.neighbours.get(*key) != Some(mac));
    steps.extend(neighbours.map(|((device, address), mac)| Step::SetNeighbour {
        device: device.clone(),
        address: *address,
        mac: *mac,
    }));
    let missing =
        wanted.nexthops.iter().filter(|(id, nexthop)| found.nexthops.get(id) != Some(nexthop));
    let (groups, hops): (Vec<_>, Vec<_>) =
        missing.partition(|(_, nexthop)| matches!(nexthop.leads, Nexthop::Group(_)));
    let set = |(id, nexthop): (&u32, &crate::layout::FoundNexthop)| {
        Step::SetNexthop(*id, nexthop.leads.clone())
    };
    steps.extend(hops.into_iter().map(set));
    steps.extend(groups.into_iter().map(set));
}

/// Where a route stands among those that are set: what passes a pool on before the wider ways that would catch it,
/// and ways before dead ends. Deleted are ways, then dead ends, then what passes on.
fn rank(route: &Route) -> u8 {
    match route.target {
        Target::Throw => 0,
        Target::Unreachable => 2,
        _ => 1,
    }
}

/// Routes, and the rules that lead to them last.
fn set_routes(steps: &mut Vec<Step>, wanted: &Tables, found: &Tables) {
    let mut missing: Vec<_> = wanted.routes.difference(&found.routes).collect();
    // The precise before the wide: a block may move in the same moment as an address of it becomes a container's here.
    missing.sort_by_key(|route| (rank(route), std::cmp::Reverse(route.key.destination.length())));
    steps.extend(missing.into_iter().cloned().map(Step::SetRoute));
    steps.extend(wanted.rules.difference(&found.rules).copied().map(Step::SetRule));
}

/// What leads somewhere goes before that which it leads to.
fn delete(steps: &mut Vec<Step>, desired: &Desired, wanted: &Tables, found: &Tables) {
    // Backwards: what passes packets on past other rules goes before those rules.
    let surplus: Vec<_> = found.rules.difference(&wanted.rules).copied().collect();
    steps.extend(surplus.into_iter().rev().map(Step::DelRule));

    let mut gone: Vec<_> = surplus_routes(desired, wanted, found).collect();
    gone.sort_by_key(|route| (rank(route) == 0, rank(route)));
    steps.extend(gone.into_iter().cloned().map(Step::DelRoute));

    let surplus =
        found.nexthops.iter().filter(|(id, n)| n.ours && !wanted.nexthops.contains_key(id));
    let (groups, hops): (Vec<_>, Vec<_>) =
        surplus.partition(|(_, nexthop)| matches!(nexthop.leads, Nexthop::Group(_)));
    steps.extend(groups.into_iter().chain(hops).map(|(id, _)| Step::DelNexthop(*id)));

    // Entries of a device that goes go with it.
    let stays = |device: &String| wanted.devices.contains_key(device);
    let neighbours = found.neighbours.keys().filter(|key| !wanted.neighbours.contains_key(*key));
    let neighbours = neighbours.filter(|(device, _)| stays(device));
    steps.extend(
        neighbours.map(|(device, address)| Step::DelNeighbour {
            device: device.clone(),
            address: *address,
        }),
    );
    let kept: BTreeSet<_> = wanted.fdb.iter().map(|entry| (&entry.device, entry.mac)).collect();
    let fdb = found.fdb.iter().filter(|entry| {
        // An entry of the same MAC address was replaced, not added.
        stays(&entry.device) && !kept.contains(&(&entry.device, entry.mac))
    });
    steps.extend(fdb.cloned().map(Step::DelFdb));
    let devices = found.devices.keys().filter(|name| !stays(name));
    steps.extend(devices.cloned().map(Step::DelDevice));
}

/// The routes that should not be: not those that setting replaces, and not those of interfaces whose containers
/// are not known to this host. Those may be newer than what it knows, and go with their interfaces.
fn surplus_routes<'a>(
    desired: &'a Desired,
    wanted: &'a Tables,
    found: &'a Tables,
) -> impl Iterator<Item = &'a Route> {
    let mut count: BTreeMap<RouteKey, usize> = BTreeMap::new();
    for route in &found.routes {
        *count.entry(route.key).or_default() += 1;
    }
    let keys: BTreeSet<RouteKey> = wanted.routes.iter().map(|route| route.key).collect();
    let stranger = |route: &Route| match &route.target {
        Target::Link(device) => {
            found.veths.get(device).is_some_and(|veth| !is_known(desired, device, veth))
        }
        _ => false,
    };
    found.routes.iter().filter(move |route| {
        let replaced = keys.contains(&route.key) && count.get(&route.key) == Some(&1);
        let ours = is_own_table(route.key.table);
        ours && !wanted.routes.contains(*route) && !replaced && !stranger(route)
    })
}

#[cfg(test)]
mod paths;
#[cfg(test)]
mod races;
#[cfg(test)]
pub(crate) mod tests;
#[cfg(test)]
mod worlds;

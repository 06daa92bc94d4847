//! Pure: the kernel's messages in the agent's words, and steps as messages: names here, indexes there.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use limpet_net_types::Mac;
use limpet_rtnl::{
    Address as RtAddress, FdbEntry, Link, LinkChange, LinkKind, Member, Neighbour, NewVxlan,
    Nexthop as RtNexthop, NexthopKind, Request, Resilient, Route as RtRoute, RouteTarget,
    Rule as RtRule, Vxlan as RtVxlan,
};

use crate::facts::Seen;
use crate::layout::{
    Address, BUCKETS, Device, Fdb, Hop, IDLE_SECONDS, Nexthop, PROTOCOL, Route, RouteKey, Rule,
    Tables, Target, Veth, Vxlan, is_device_name, is_veth_name,
};
use crate::step::Step;

/// Why a step is no message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TranslateError {
    /// The device has gone, or was not made.
    #[error("device {0} is not there")]
    NoDevice(String),
    /// Only found ones are so.
    #[error("a device without its VXLAN properties cannot be made")]
    NotVxlan,
}

pub(crate) fn take_links(tables: &mut Tables, seen: &Seen) {
    for link in &seen.links {
        if is_device_name(&link.name) {
            let device =
                Device { vxlan: found_vxlan(link), mtu: link.mtu, group: link.group, up: link.up };
            tables.devices.insert(link.name.clone(), device);
        } else if let Some(veth) = veth_of(link) {
            tables.veths.insert(link.name.clone(), veth);
        }
    }
    let names = seen.names();
    for found in &seen.addresses {
        let device = names.get(&found.address.device).filter(|name| is_device_name(name));
        if let Some(device) = device.map(|name| (*name).to_owned()) {
            let (address, length) = (found.address.address, found.address.length);
            tables.addresses.insert(Address { device, ip: address, length });
        }
    }
}

/// The host's end of a container's veth pair, if a device is one.
pub(crate) fn veth_of(link: &Link) -> Option<Veth> {
    let veth = is_veth_name(&link.name) && matches!(link.kind, LinkKind::Veth(_));
    let uid = link.alias.as_deref().and_then(|alias| alias.parse().ok());
    veth.then_some(Veth { uid, mtu: link.mtu, group: link.group, up: link.up })
}

fn found_vxlan(link: &Link) -> Option<Vxlan> {
    let LinkKind::Vxlan(RtVxlan { vni, local, port, learning, checksums }) = link.kind else {
        return None;
    };
    // One that learns or sends without checksums is not one that limpet makes.
    let plain = !learning && checksums;
    plain.then_some(Vxlan { vni, local, port, mac: link.mac? })
}

pub(crate) fn new_vxlan(name: &str, device: &Device) -> Result<NewVxlan, TranslateError> {
    let Vxlan { vni, local, port, mac } = device.vxlan.ok_or(TranslateError::NotVxlan)?;
    let vxlan = RtVxlan { vni, local, port, learning: false, checksums: true };
    let (name, mtu, group) = (name.to_owned(), device.mtu, device.group);
    Ok(NewVxlan { name, mac, mtu, group, vxlan })
}

pub(crate) fn leads(kind: &NexthopKind, names: &BTreeMap<u32, &str>) -> Nexthop {
    match kind {
        NexthopKind::Gateway { device, gateway: IpAddr::V6(via), onlink: false } => {
            let hop = |name: &&str| Nexthop::Hop(Hop { device: (*name).to_owned(), via: *via });
            names.get(device).map_or(Nexthop::Other, hop)
        }
        NexthopKind::Group { members, resilient: Some(resilient) }
            if resilient.buckets == BUCKETS && members.iter().all(|member| member.weight == 1) =>
        {
            Nexthop::Group(members.iter().map(|member| member.id).collect())
        }
        _ => Nexthop::Other,
    }
}

/// None of a route that has gone with its device.
pub(crate) fn found_route(route: &RtRoute, names: &BTreeMap<u32, &str>) -> Option<Route> {
    let RtRoute { table, destination, metric, source, .. } = *route;
    let target = match route.target {
        RouteTarget::Nexthop(id) => Target::Nexthop(id),
        RouteTarget::Device { index, gateway: None, onlink: false } => {
            Target::Link((*names.get(&index)?).to_owned())
        }
        RouteTarget::Unreachable => Target::Unreachable,
        RouteTarget::Throw => Target::Throw,
        _ => Target::Other,
    };
    Some(Route { key: RouteKey { table, destination, metric }, target, source })
}

pub(crate) fn found_rule(rule: RtRule) -> Rule {
    let RtRule { family, preference, selector, action, .. } = rule;
    Rule { family, preference, selector, action }
}

/// A step as the message that it is.
pub(crate) fn request(
    step: &Step,
    indexes: &BTreeMap<String, u32>,
) -> Result<Request, TranslateError> {
    let at = |name: &str| {
        indexes.get(name).copied().ok_or_else(|| TranslateError::NoDevice(name.to_owned()))
    };
    Ok(match step {
        Step::ChangeDevice { name, mtu, group, up } => {
            let (mtu, group, up) = (*mtu, *group, up.then_some(true));
            let no_link_local = up.is_some();
            Request::ChangeLink(LinkChange {
                mtu,
                group,
                up,
                no_link_local,
                ..LinkChange::of(at(name)?)
            })
        }
        Step::DelDevice(name) => Request::DelLink(at(name)?),
        Step::SetAddress(Address { device, ip, length }) => {
            let (device, address, length) = (at(device)?, *ip, *length);
            Request::SetAddress(RtAddress { device, address, length, no_dad: true })
        }
        Step::SetFdb(entry) => Request::SetFdb(fdb_entry(entry, at(&entry.device)?)),
        Step::DelFdb(entry) => Request::DelFdb(fdb_entry(entry, at(&entry.device)?)),
        Step::SetNeighbour { device, address, mac } => {
            let (device, address, mac) = (at(device)?, *address, *mac);
            Request::SetNeighbour(Neighbour { device, address, mac, protocol: PROTOCOL })
        }
        Step::DelNeighbour { device, address } => {
            // Only device and address count.
            let (mac, device) = (Mac::GATEWAY, at(device)?);
            Request::DelNeighbour(Neighbour { device, address: *address, mac, protocol: 0 })
        }
        Step::SetNexthop(id, leads) => {
            let kind = nexthop_kind(leads, &at)?;
            Request::SetNexthop(RtNexthop { id: *id, protocol: PROTOCOL, kind })
        }
        Step::DelNexthop(id) => Request::DelNexthop(*id),
        Step::SetRoute(route) => Request::SetRoute(rt_route(route, &at)?),
        Step::DelRoute(route) => Request::DelRoute(rt_route(route, &at)?),
        Step::SetRule(rule) => Request::SetRule(rt_rule(*rule)),
        Step::DelRule(rule) => Request::DelRule(rt_rule(*rule)),
        Step::NewDevice { .. } | Step::SetSetting(..) | Step::SetRuleset(_) => {
            unreachable!("no message: `is_message` says so")
        }
    })
}

fn fdb_entry(entry: &Fdb, device: u32) -> FdbEntry {
    FdbEntry { device, mac: entry.mac, vtep: entry.vtep, permanent: true }
}

fn nexthop_kind(
    leads: &Nexthop,
    at: &impl Fn(&str) -> Result<u32, TranslateError>,
) -> Result<NexthopKind, TranslateError> {
    Ok(match leads {
        Nexthop::Hop(Hop { device, via }) => {
            NexthopKind::Gateway { device: at(device)?, gateway: (*via).into(), onlink: false }
        }
        Nexthop::Group(members) => NexthopKind::Group {
            members: members.iter().map(|id| Member { id: *id, weight: 1 }).collect(),
            resilient: Some(Resilient {
                buckets: BUCKETS,
                idle_timer: Duration::from_secs(IDLE_SECONDS.into()),
            }),
        },
        Nexthop::Other => NexthopKind::Other,
    })
}

fn rt_route(
    route: &Route,
    at: &impl Fn(&str) -> Result<u32, TranslateError>,
) -> Result<RtRoute, TranslateError> {
    let RouteKey { table, destination, metric } = route.key;
    let target = match &route.target {
        Target::Nexthop(id) => RouteTarget::Nexthop(*id),
        Target::Link(device) => RouteTarget::link(at(device)?),
        Target::Unreachable => RouteTarget::Unreachable,
        Target::Throw => RouteTarget::Throw,
        Target::Other => RouteTarget::Other,
    };
    let (protocol, source) = (PROTOCOL, route.source);
    Ok(RtRoute { table, protocol, destination, target, source, metric })
}

fn rt_rule(rule: Rule) -> RtRule {
    let Rule { family, preference, selector, action } = rule;
    RtRule { family, preference, selector, action, protocol: PROTOCOL }
}

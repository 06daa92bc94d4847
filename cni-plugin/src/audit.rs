//! Pure: what CHECK compares: the previous result, the attachment, and what the kernel has.

use std::net::IpAddr;

use limpet_api::socket::Attach;
use limpet_net_types::{Family, IfName, Mac, Prefix, shaper_ifname};
use limpet_rtnl::{Detour, FoundAddress, FoundNeighbour, Link, LinkKind, Route, RouteTarget};

use crate::attach::{inside_neighbour, outside_neighbour, outside_route};
use crate::bandwidth::{Bandwidth, Limit};
use crate::result::{CniResult, Interface};
use crate::shape::Shaping;

/// What the kernel has of an attachment.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Found {
    /// The container's end, if it is there.
    pub(crate) inside: Option<Inside>,
    /// The host's end, if it is there.
    pub(crate) outside: Option<Outside>,
}

/// What the kernel has in the container.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Inside {
    pub(crate) link: Link,
    pub(crate) addresses: Vec<FoundAddress>,
    /// All of the main table.
    pub(crate) routes: Vec<Route>,
    pub(crate) neighbours: Vec<FoundNeighbour>,
}

/// What the kernel has on the host.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Outside {
    pub(crate) link: Link,
    /// Limpet's of the table of containers.
    pub(crate) routes: Vec<Route>,
    pub(crate) neighbours: Vec<FoundNeighbour>,
    pub(crate) shaping: Shaping,
}

/// Returns all that is wrong, in words; nothing if the attachment works.
///
/// Plugins that come later in a chain may change MAC address, MTU and routes: what they changed is in the previous
/// result, which is therefore what the inside is compared with. Whatever they did, the host must know the MAC
/// address that the interface has, or nothing arrives.
pub(crate) fn audit(
    prev: &CniResult,
    attach: &Attach,
    (ifname, bandwidth): (&IfName, Bandwidth),
    found: &Found,
) -> Vec<String> {
    let mut problems = Vec::new();
    let place = prev
        .interfaces
        .iter()
        .position(|interface| interface.name == ifname.as_str() && !interface.sandbox.is_empty());
    match place {
        Some(place) => problems.extend(lost_addresses(prev, place, attach)),
        None => problems.push(format!("prevResult lists no interface {ifname} of a container")),
    }
    let mac = if let Some(inside) = &found.inside {
        let listed = place.map(|place| &prev.interfaces[place]);
        problems.extend(wrong_link(&inside.link, listed, attach));
        problems.extend(wrong_inside(prev, attach, inside));
        inside.link.mac.unwrap_or(attach.attachment.mac)
    } else {
        problems.push(format!("interface {ifname} is missing in the container"));
        attach.attachment.mac
    };
    match &found.outside {
        Some(outside) => {
            problems.extend(wrong_outside(attach, outside, mac));
            problems.extend(wrong_shaping(attach, bandwidth, outside));
        }
        None => problems.push(format!("interface {} is missing on the host", attach.host_ifname)),
    }
    problems
}

/// The addresses that the attachment holds and the previous result does not list, and the other way round.
fn lost_addresses(prev: &CniResult, place: usize, attach: &Attach) -> Vec<String> {
    let held: Vec<_> = addresses(attach).collect();
    let of_place = prev.ips.iter().filter(|ip| ip.interface == Some(place));
    let listed: Vec<_> = of_place.map(|ip| ip.address.ip()).collect();
    let unlisted = held.iter().filter(|ip| !listed.contains(ip));
    let not_held = listed.iter().filter(|ip| !held.contains(ip));
    unlisted
        .map(|ip| format!("address {ip} is held and not in prevResult"))
        .chain(not_held.map(|ip| format!("address {ip} of prevResult is not held")))
        .collect()
}

fn wrong_link(link: &Link, listed: Option<&Interface>, attach: &Attach) -> Vec<String> {
    let (name, mut problems) = (&link.name, Vec::new());
    let mac = listed.and_then(|listed| listed.mac.parse().ok()).unwrap_or(attach.attachment.mac);
    if link.mac != Some(mac) {
        problems.push(format!("interface {name} has MAC address {}, not {mac}", shown(link.mac)));
    }
    let mtu: u32 = attach.mtu.into();
    match listed.and_then(|listed| listed.mtu) {
        Some(listed) if listed != link.mtu => {
            problems.push(format!("interface {name} has MTU {}, not {listed}", link.mtu));
        }
        _ if link.mtu > mtu => {
            problems
                .push(format!("interface {name} has MTU {}, the overlay carries {mtu}", link.mtu));
        }
        _ => {}
    }
    if !link.up {
        problems.push(format!("interface {name} is down"));
    } else if !link.carrier {
        problems.push(format!("interface {name} has no carrier"));
    }
    problems
}

fn wrong_inside(prev: &CniResult, attach: &Attach, inside: &Inside) -> Vec<String> {
    let (name, mut problems) = (&inside.link.name, Vec::new());
    for address in addresses(attach) {
        let length = Family::of(address).bits();
        let has = |found: &FoundAddress| {
            found.address.address == address && found.address.length == length
        };
        if !inside.addresses.iter().any(has) {
            problems.push(format!("address {address} is missing on {name}"));
        }
    }
    for gateway in attach.gateways.iter().copied() {
        // A later plugin may have routed another way; then the gateway is not ours to ask for.
        let by_gateway = prev.routes.iter().filter(|route| route.gw == Some(gateway));
        let mut is_used = false;
        for route in by_gateway {
            is_used = true;
            let dst = Prefix::containing(route.dst.ip(), route.dst.prefix());
            let target = RouteTarget::gateway(inside.link.index, gateway);
            if !inside.routes.iter().any(|found| found.destination == dst && found.target == target)
            {
                problems.push(format!("route {dst} via {gateway} is missing in the container"));
            }
        }
        let entry = inside_neighbour(inside.link.index, gateway, attach.gateway_mac);
        let has = |found: &FoundNeighbour| {
            found.address == gateway && found.permanent && found.mac == Some(entry.mac)
        };
        if is_used && !inside.neighbours.iter().any(has) {
            problems.push(format!("neighbour entry of {gateway} is missing in the container"));
        }
    }
    problems
}

fn wrong_outside(attach: &Attach, outside: &Outside, mac: Mac) -> Vec<String> {
    let Outside { link, routes, neighbours, .. } = outside;
    let (name, mut problems) = (&link.name, Vec::new());
    let uid = attach.attachment.uid.to_string();
    if !matches!(link.kind, LinkKind::Veth(_)) || link.alias.as_ref() != Some(&uid) {
        let alias = link.alias.as_deref().unwrap_or("none");
        problems.push(format!("interface {name} on the host has alias {alias}, not {uid}"));
    }
    if link.group != attach.group {
        problems.push(format!("interface {name} is in group {}, not {}", link.group, attach.group));
    }
    if link.mac != Some(attach.gateway_mac) {
        let (has, wanted) = (shown(link.mac), attach.gateway_mac);
        problems.push(format!("interface {name} has MAC address {has}, not {wanted}"));
    }
    if !link.up {
        problems.push(format!("interface {name} on the host is down"));
    }
    for (i, address) in addresses(attach).enumerate() {
        let source = attach.sources.get(i).copied().flatten();
        let wanted = outside_route(attach.table, link.index, address, source);
        // Its source follows the host's addresses, which may just have changed.
        let is = |found: &Route| *found == Route { source: found.source, ..wanted };
        if !routes.iter().any(is) {
            let table = attach.table;
            problems.push(format!("the host's route to {address} is missing in table {table}"));
        }
        let wanted = outside_neighbour(link.index, address, mac);
        if !neighbours.iter().any(|found| found.as_permanent() == Some(wanted)) {
            problems.push(format!("the host's neighbour entry of {address} with {mac} is missing"));
        }
    }
    problems
}

fn wrong_shaping(attach: &Attach, bandwidth: Bandwidth, outside: &Outside) -> Vec<String> {
    let Outside { link, shaping, .. } = outside;
    let mut problems = Vec::new();
    let mut bucket = |device: &Link, limit: Limit| {
        let wanted = limit.tbf(device.index, attach.mtu.into());
        if !shaping.buckets.iter().any(|found| wanted.is(found)) {
            problems.push(format!("the limit at {} is missing or another: {wanted}", device.name));
        }
    };
    if let Some(limit) = bandwidth.ingress {
        bucket(link, limit);
    }
    if let Some(limit) = bandwidth.egress {
        let name = shaper_ifname(&link.name);
        let Some(shaper) = &shaping.shaper else {
            problems.push(format!("the device {name} that limits what is sent is missing"));
            return problems;
        };
        bucket(shaper, limit);
        if !shaper.up {
            problems.push(format!("the device {name} that limits what is sent is down"));
        }
        if !shaping.detours.contains(&Detour { from: link.index, through: shaper.index }) {
            problems.push(format!("what {} receives does not go through {name}", link.name));
        }
    }
    problems
}

fn addresses(attach: &Attach) -> impl Iterator<Item = IpAddr> {
    attach.attachment.addresses.iter().map(|held| held.address)
}

fn shown(mac: Option<Mac>) -> String {
    mac.map_or_else(|| "none".to_owned(), |mac| mac.to_string())
}

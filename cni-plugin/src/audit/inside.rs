//! Pure: what CHECK finds wrong in the container.

use std::net::IpAddr;

use limpet_api::socket::Attach;
use limpet_net_types::{Family, Prefix, host_prefix};
use limpet_rtnl::{FoundNeighbour, Link, Route, RouteTarget};

use super::{Inside, Wanted, addresses, shown};
use crate::attach::{MAIN, inside_neighbour};
use crate::part;
use crate::result::{CniResult, Interface};

/// What is wrong, in words. `listed` is the interface as the previous result has it.
pub(super) fn problems(
    wanted: &Wanted<'_>,
    listed: Option<&Interface>,
    inside: &Inside,
) -> Vec<String> {
    let Wanted { prev, attach, .. } = *wanted;
    let mut problems = wrong_link(&inside.link, listed, attach);
    problems.extend(wrong_addresses(attach, inside));
    for gateway in attach.gateways.iter().copied() {
        problems.extend(wrong_ways(prev, attach, (gateway, inside)));
    }
    problems
}

fn wrong_link(link: &Link, listed: Option<&Interface>, attach: &Attach) -> Vec<String> {
    let (name, mut problems) = (&link.name, Vec::new());
    let mac = listed.and_then(|listed| listed.mac.parse().ok()).unwrap_or(attach.attachment.mac);
    if link.mac != Some(mac) {
        problems.push(format!("interface {name} has MAC address {}, not {mac}", shown(link.mac)));
    }
    let mtu: u32 = attach.mtu.into();
    // What it was made with may be more than what the overlay carries since the underlay's has changed.
    let most = listed.and_then(|listed| listed.mtu).map_or(mtu, |listed| listed.max(mtu));
    if link.mtu > most {
        problems.push(format!("interface {name} has MTU {}, the overlay carries {mtu}", link.mtu));
    }
    if !link.up {
        problems.push(format!("interface {name} in the container is down"));
    }
    problems
}

fn wrong_addresses(attach: &Attach, inside: &Inside) -> Vec<String> {
    let name = &inside.link.name;
    let found = |address: IpAddr| {
        let of_it = inside.addresses.iter().filter(move |found| found.address.address == address);
        of_it.map(|found| found.address.length)
    };
    let wrong = |address: IpAddr| {
        let length = Family::of(address).bits();
        match found(address).next() {
            _ if found(address).any(|found| found == length) => None,
            Some(other) => {
                Some(format!("address {address} on {name} has prefix length {other}, not {length}"))
            }
            None => Some(format!("address {address} is missing on {name}")),
        }
    };
    addresses(attach).filter_map(wrong).collect()
}

/// What is wrong with the ways by a gateway. A later plugin may have routed another way; then the gateway is not ours
/// to ask for.
fn wrong_ways(
    prev: &CniResult,
    attach: &Attach,
    (gateway, inside): (IpAddr, &Inside),
) -> Vec<String> {
    let (index, mut problems, mut is_used) = (inside.link.index, Vec::new(), false);
    let mut way = |dst: Prefix, gateway: Option<IpAddr>, by: &str| {
        let is = |found: &&Route| found.table == MAIN && found.destination == dst;
        if !inside.routes.iter().filter(is).any(|found| leads(found, index, gateway)) {
            problems.push(format!("route {dst} {by} is missing in the container"));
        }
    };
    for route in &prev.routes {
        let dst = Prefix::containing(route.dst.ip(), route.dst.prefix());
        if route.gw == Some(gateway) {
            is_used = true;
            way(dst, Some(gateway), &format!("via {gateway}"));
        } else if route.gw.is_none() && dst == host_prefix(gateway) {
            way(dst, None, &format!("dev {}", inside.link.name));
        }
    }
    if is_for_its_network(prev, gateway) {
        problems.extend(wrong_answers(attach, (gateway, inside)));
    }
    let entry = inside_neighbour(index, gateway, attach.gateway_mac);
    let has = |found: &FoundNeighbour| {
        found.address == gateway && found.permanent && found.mac == Some(entry.mac)
    };
    if is_used && !inside.neighbours.iter().any(has) {
        let mac = attach.gateway_mac;
        problems.push(format!(
            "the container's neighbour entry of {gateway} with {mac} is missing or another"
        ));
    }
    problems
}

fn leads(route: &Route, device: u32, by: Option<IpAddr>) -> bool {
    matches!(route.target, RouteTarget::Device { index, gateway, .. } if (index, gateway) == (device, by))
}

/// Whether the interface was given the way to its own network only: another one has the default route.
fn is_for_its_network(prev: &CniResult, gateway: IpAddr) -> bool {
    let mut by = prev.routes.iter().filter(|route| route.gw == Some(gateway)).peekable();
    by.peek().is_some() && by.all(|route| route.dst.prefix() > 0)
}

/// What is missing of what has answers leave by the interface that they are for.
fn wrong_answers(attach: &Attach, (gateway, inside): (IpAddr, &Inside)) -> Vec<String> {
    let (index, name, mut problems) = (inside.link.index, &inside.link.name, Vec::new());
    let (wanted, table) = (part::answers_by(index, gateway), part::table_of(index));
    let is = |found: &Route| {
        found.table == table
            && found.destination == wanted.destination
            && leads(found, index, Some(gateway))
    };
    if !inside.routes.iter().any(is) {
        problems
            .push(format!("route default via {gateway} dev {name} is missing in table {table}"));
    }
    for address in addresses(attach).filter(|address| Family::of(*address) == Family::of(gateway)) {
        let rule = part::rule_for(index, address);
        if !inside.rules.contains(&rule) {
            problems.push(format!("the container's rule {rule} is missing"));
        }
    }
    problems
}

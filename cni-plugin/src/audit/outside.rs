//! Pure: what CHECK finds wrong on the host.

use std::net::IpAddr;

use limpet_api::socket::Attach;
use limpet_net_types::{Mac, shaper_ifname};
use limpet_rtnl::{Detour, Link, LinkKind, Route};

use super::{Found, Outside, Wanted, addresses, shown};
use crate::attach::{outside_neighbour, outside_route};
use crate::bandwidth::{Bandwidth, Limit};

/// What is wrong, in words.
pub(super) fn problems(wanted: &Wanted<'_>, found: &Found, outside: &Outside) -> Vec<String> {
    let attach = wanted.attach;
    let inside = found.inside.as_ref().map(|inside| &inside.link);
    let mac = inside.and_then(|link| link.mac).unwrap_or(attach.attachment.mac);
    let mut problems = wrong_link(attach, &outside.link, inside);
    for (i, address) in addresses(attach).enumerate() {
        let source = attach.sources.get(i).copied().flatten();
        problems.extend(wrong_way(attach, outside, (address, source)));
        let wanted = outside_neighbour(outside.link.index, address, mac);
        if !outside.neighbours.iter().any(|found| found.as_permanent() == Some(wanted)) {
            problems.push(neighbour_words(address, mac));
        }
    }
    for (setting, value) in &outside.settings {
        if value != setting.value {
            problems.push(format!(
                "the setting {} {} of {} is {value}, not {}",
                setting.family, setting.name, outside.link.name, setting.value
            ));
        }
    }
    problems.extend(wrong_shaping(attach, wanted.bandwidth, outside));
    problems
}

fn neighbour_words(address: IpAddr, mac: Mac) -> String {
    format!("the host's neighbour entry of {address} with {mac} is missing or another")
}

fn wrong_link(attach: &Attach, link: &Link, inside: Option<&Link>) -> Vec<String> {
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
    if let Some(inside) = inside.filter(|inside| inside.mtu > link.mtu) {
        let (has, theirs) = (link.mtu, inside.mtu);
        problems.push(format!("interface {name} has MTU {has}, the container's end {theirs}"));
    }
    if !link.up {
        problems.push(format!("interface {name} on the host is down"));
    }
    problems
}

fn wrong_way(
    attach: &Attach,
    outside: &Outside,
    (address, source): (IpAddr, Option<IpAddr>),
) -> Option<String> {
    let table = attach.table;
    let wanted = outside_route(table, outside.link.index, address, source);
    let is = |found: &&Route| **found == Route { source: found.source, ..wanted };
    let Some(found) = outside.routes.iter().find(is) else {
        return Some(format!("the host's route to {address} is missing in table {table}"));
    };
    let words = |source: Option<IpAddr>| {
        source.map_or_else(|| "no source".to_owned(), |source| format!("source {source}"))
    };
    (found.source != source).then(|| {
        let (has, wanted) = (words(found.source), words(source));
        format!("the host's route to {address} in table {table} has {has}, not {wanted}")
    })
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

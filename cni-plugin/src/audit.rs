//! Pure: what CHECK compares: the previous result, the attachment, and what the kernel has.

mod inside;
mod outside;

use std::net::IpAddr;

use limpet_api::socket::Attach;
use limpet_net_types::{IfName, Mac};
use limpet_rtnl::{FoundAddress, FoundNeighbour, Link, LinkKind, Route, Rule};

use crate::attach::Setting;
use crate::bandwidth::Bandwidth;
use crate::result::CniResult;
use crate::shape::Shaping;

/// What the kernel has of an attachment.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Found {
    /// The container's end, if it is there.
    pub(crate) inside: Option<Inside>,
    /// The host's end, if it is there.
    pub(crate) outside: Option<Outside>,
    /// The network's VXLAN device, if it is there and known by name.
    pub(crate) device: Option<Link>,
    /// Whether the nftables table is there, if it is known by name.
    pub(crate) filter: Option<bool>,
}

/// What the kernel has in the container.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Inside {
    pub(crate) link: Link,
    pub(crate) addresses: Vec<FoundAddress>,
    /// All of the main table, and of the interface's own.
    pub(crate) routes: Vec<Route>,
    pub(crate) rules: Vec<Rule>,
    pub(crate) neighbours: Vec<FoundNeighbour>,
}

/// What the kernel has on the host.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Outside {
    pub(crate) link: Link,
    /// Limpet's of the table of containers.
    pub(crate) routes: Vec<Route>,
    pub(crate) neighbours: Vec<FoundNeighbour>,
    /// The settings that it should have, with the values that it has, as far as the kernel has them.
    pub(crate) settings: Vec<(Setting, String)>,
    pub(crate) shaping: Shaping,
}

/// What the attachment should be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) prev: &'a CniResult,
    pub(crate) attach: &'a Attach,
    pub(crate) ifname: &'a IfName,
    pub(crate) bandwidth: Bandwidth,
}

/// Returns all that is wrong, in words; nothing if the attachment works.
///
/// Plugins that come later in a chain may change the MAC address and routes: what they changed is in the previous
/// result, which is therefore what the inside is compared with. A smaller MTU they do not tell, and it is right.
/// Whatever they did, the host must know the MAC address that the interface has, or nothing arrives.
pub(crate) fn audit(wanted: &Wanted<'_>, found: &Found) -> Vec<String> {
    let Wanted { prev, attach, ifname, .. } = *wanted;
    let mut problems = Vec::new();
    let place = prev
        .interfaces
        .iter()
        .position(|interface| interface.name == ifname.as_str() && !interface.sandbox.is_empty());
    match place {
        Some(place) => problems.extend(lost_addresses(prev, place, attach)),
        None => problems.push(format!("prevResult lists no interface {ifname} of a container")),
    }
    let listed = place.and_then(|place| prev.interfaces.get(place));
    match &found.inside {
        Some(inside) => problems.extend(inside::problems(wanted, listed, inside)),
        None => problems.push(format!("interface {ifname} is missing in the container")),
    }
    match &found.outside {
        Some(outside) => problems.extend(outside::problems(wanted, found, outside)),
        None => problems.push(format!("interface {} is missing on the host", attach.host_ifname)),
    }
    if let (Some(inside), Some(outside)) = (&found.inside, &found.outside)
        && !are_a_pair(&inside.link, &outside.link)
    {
        let name = &outside.link.name;
        problems
            .push(format!("interface {ifname} in the container is not the other end of {name}"));
    }
    problems.extend(wrong_network(attach, found));
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

fn are_a_pair(inside: &Link, outside: &Link) -> bool {
    let (LinkKind::Veth(one), LinkKind::Veth(other)) = (&inside.kind, &outside.kind) else {
        return false;
    };
    one.peer == outside.index && other.peer == inside.index
}

/// What is wrong with what the host has for all containers of the network. An agent of an earlier version does not
/// say what that is called.
fn wrong_network(attach: &Attach, found: &Found) -> Vec<String> {
    let mut problems = Vec::new();
    if let Some(name) = &attach.device {
        match &found.device {
            Some(device) if !device.up => {
                problems.push(format!("the network's device {name} is down"));
            }
            Some(device) if matches!(device.kind, LinkKind::Vxlan(_)) => {}
            Some(_) => problems.push(format!("the network's device {name} is no VXLAN device")),
            None => problems.push(format!("the network's device {name} is missing")),
        }
    }
    if let (Some(name), Some(false)) = (&attach.filter, found.filter) {
        problems.push(format!("the nftables table inet {name} is missing"));
    }
    problems
}

fn addresses(attach: &Attach) -> impl Iterator<Item = IpAddr> {
    attach.attachment.addresses.iter().map(|held| held.address)
}

fn shown(mac: Option<Mac>) -> String {
    mac.map_or_else(|| "none".to_owned(), |mac| mac.to_string())
}

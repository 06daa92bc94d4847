//! Pure: what an attachment put inside its container, and what of it is missing.
//!
//! Not what the plugin was told to make, but what was there of it some seconds after: the plugins that come later in a
//! runtime's chain may have led routes elsewhere or into other tables, and that is to stay. So a container keeps of
//! limpet's what it had when its runtime was done with it, and everything else is its own.

use std::collections::BTreeSet;
use std::net::IpAddr;

use limpet_net_types::{Family, Mac, Prefix};
use limpet_rtnl::{
    Address, FoundAddress, FoundNeighbour, Link, LinkChange, Neighbour, Request, Route, RouteTarget,
};
use serde::{Deserialize, Serialize};

use crate::layout::container_gateway;

/// The main table of a container.
pub(crate) const MAIN: u32 = 254;

/// How the plugin marks the routes inside: as if the container's user had made them.
const BOOT: u8 = 3;

/// What is limpet's inside a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Inside {
    /// The addresses of the interface.
    pub(crate) addresses: BTreeSet<IpAddr>,
    /// The gateways that have a permanent neighbour entry, and its MAC address.
    pub(crate) gateways: Vec<(IpAddr, Mac)>,
    /// The routes of the main table, to a gateway itself or by it.
    pub(crate) routes: BTreeSet<Way>,
    /// The interface's MTU, in bytes, where it was another than that of the host's end: somebody chose it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) own_mtu: Option<u32>,
}

/// A route inside a container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Way {
    pub(crate) to: Prefix,
    /// None of one to the gateway itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) gateway: Option<IpAddr>,
    /// Whether the gateway needs no route of its own, which is so where another interface has that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) onlink: bool,
}

/// What was found inside a container.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    /// The MTU of the host's end, in bytes.
    pub(crate) outside_mtu: u32,
    /// The interface.
    pub(crate) link: Link,
    /// The interface's addresses and neighbour entries.
    pub(crate) addresses: Vec<FoundAddress>,
    pub(crate) neighbours: Vec<FoundNeighbour>,
    /// The routes of the main table, of all interfaces.
    pub(crate) routes: Vec<Route>,
}

impl Found {
    /// What of it is limpet's, of an attachment with these addresses.
    pub(crate) fn limpets(&self, held: &BTreeSet<IpAddr>) -> Inside {
        let gateways: BTreeSet<IpAddr> = held.iter().copied().map(container_gateway).collect();
        let addresses = self.addresses.iter().map(|found| found.address.address);
        let entries = self.neighbours.iter().filter_map(FoundNeighbour::as_permanent);
        let entries = entries.filter(|entry| gateways.contains(&entry.address));
        let ways = self.routes.iter().filter_map(|route| way(route, self.link.index));
        let ours = |way: &Way| match way.gateway {
            Some(gateway) => gateways.contains(&gateway),
            None => gateways.iter().any(|gateway| is_host(way.to, *gateway)),
        };
        Inside {
            addresses: addresses.filter(|address| held.contains(address)).collect(),
            gateways: entries.map(|entry| (entry.address, entry.mac)).collect(),
            routes: ways.filter(ours).collect(),
            own_mtu: Some(self.link.mtu).filter(|mtu| *mtu != self.outside_mtu),
        }
    }

    /// What gives the interface the MTU of the host's end, or what of it somebody chose: larger packets than the host's
    /// end takes would be dropped there, and nobody told.
    pub(crate) fn resized(&self, inside: &Inside) -> Option<Request> {
        let mtu = inside.own_mtu.map_or(self.outside_mtu, |own| own.min(self.outside_mtu));
        let change = LinkChange { mtu: Some(mtu), ..LinkChange::of(self.link.index) };
        (self.link.mtu != mtu).then_some(Request::ChangeLink(change))
    }

    /// What puts back what is missing of `inside`, in the order in which it works.
    ///
    /// A route is not put back where there is another to the same destination: somebody leads it elsewhere.
    pub(crate) fn missing(&self, inside: &Inside) -> Vec<Request> {
        let device = self.link.index;
        let mut requests = Vec::new();
        if !self.link.up {
            requests
                .push(Request::ChangeLink(LinkChange { up: Some(true), ..LinkChange::of(device) }));
        }
        let has = |ip: &IpAddr| self.addresses.iter().any(|found| found.address.address == *ip);
        for address in inside.addresses.iter().copied().filter(|address| !has(address)) {
            let length = Family::of(address).bits();
            requests.push(Request::SetAddress(Address { device, address, length, no_dad: true }));
        }
        let permanent = |address: IpAddr| {
            let mut entries = self.neighbours.iter().filter_map(FoundNeighbour::as_permanent);
            entries.find(|entry| entry.address == address).map(|entry| entry.mac)
        };
        for (address, mac) in &inside.gateways {
            if permanent(*address) != Some(*mac) {
                let (address, mac, protocol) = (*address, *mac, 0);
                requests.push(Request::SetNeighbour(Neighbour { device, address, mac, protocol }));
            }
        }
        let led = |to: Prefix| self.routes.iter().any(|route| route.destination == to);
        let mut gone: Vec<&Way> = inside.routes.iter().filter(|way| !led(way.to)).collect();
        // The way to a gateway before those by it.
        gone.sort_by_key(|way| way.gateway.is_some());
        requests.extend(gone.into_iter().map(|way| Request::SetRoute(route_of(way, device))));
        requests
    }
}

fn way(route: &Route, device: u32) -> Option<Way> {
    match route.target {
        RouteTarget::Device { index, gateway, onlink }
            if index == device && route.table == MAIN && route.protocol == BOOT =>
        {
            Some(Way { to: route.destination, gateway, onlink })
        }
        _ => None,
    }
}

fn route_of(way: &Way, device: u32) -> Route {
    let target = RouteTarget::Device { index: device, gateway: way.gateway, onlink: way.onlink };
    Route { table: MAIN, protocol: BOOT, destination: way.to, target, source: None, metric: 0 }
}

fn is_host(prefix: Prefix, address: IpAddr) -> bool {
    prefix == limpet_net_types::host_prefix(address)
}

#[cfg(test)]
mod tests {
    use limpet_rtnl::{LinkKind, Scope};

    use super::*;

    const DEVICE: u32 = 2;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn held() -> BTreeSet<IpAddr> {
        [ip("10.32.0.1"), ip("fd32::1")].into()
    }

    fn address(text: &str) -> FoundAddress {
        let address = Address { device: DEVICE, address: ip(text), length: 32, no_dad: true };
        FoundAddress { address, scope: Scope::Global, usable: true, temporary: false }
    }

    fn by(to: &str, device: u32, gateway: Option<&str>) -> Route {
        Route {
            table: MAIN,
            protocol: BOOT,
            destination: to.parse().unwrap(),
            target: RouteTarget::Device { index: device, gateway: gateway.map(ip), onlink: false },
            source: None,
            metric: 0,
        }
    }

    fn neighbour(text: &str, permanent: bool) -> FoundNeighbour {
        let (address, mac) = (ip(text), Some(Mac::GATEWAY));
        FoundNeighbour { device: DEVICE, address, mac, permanent, protocol: 0 }
    }

    fn whole() -> Found {
        Found {
            outside_mtu: 1450,
            link: Link {
                index: DEVICE,
                name: "eth0".to_owned(),
                mac: None,
                mtu: 1450,
                group: 0,
                alias: None,
                up: true,
                carrier: true,
                kind: LinkKind::Other(String::new()),
            },
            addresses: vec![address("10.32.0.1"), address("fd32::1"), address("203.0.113.9")],
            neighbours: vec![
                neighbour("169.254.1.1", true),
                neighbour("fe80::1", true),
                neighbour("fe80::77", true),
                neighbour("10.32.0.9", false),
            ],
            routes: vec![
                by("169.254.1.1/32", DEVICE, None),
                by("0.0.0.0/0", DEVICE, Some("169.254.1.1")),
                by("::/0", DEVICE, Some("fe80::1")),
                by("198.51.100.0/24", DEVICE, Some("10.32.0.9")),
                by("203.0.113.0/24", 7, None),
            ],
        }
    }

    fn commands(found: &Found, inside: &Inside) -> Vec<String> {
        found.missing(inside).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn only_what_is_limpets_is_put_back_and_what_leads_before_what_is_led() {
        let inside = whole().limpets(&held());
        assert_eq!(commands(&whole(), &inside), Vec::<String>::new());
        let mut bare = whole();
        (bare.link.up, bare.addresses) = (false, vec![]);
        (bare.neighbours, bare.routes) = (vec![], vec![]);
        assert_eq!(
            commands(&bare, &inside),
            [
                "ip link set dev if2 up",
                "ip address replace 10.32.0.1/32 dev if2 nodad",
                "ip address replace fd32::1/128 dev if2 nodad",
                "ip neigh replace 169.254.1.1 lladdr 02:4c:00:00:00:00 dev if2 nud permanent",
                "ip neigh replace fe80::1 lladdr 02:4c:00:00:00:00 dev if2 nud permanent",
                "ip route replace 169.254.1.1/32 dev if2 scope link table 254 proto 3",
                "ip route replace 0.0.0.0/0 via 169.254.1.1 dev if2 table 254 proto 3",
                "ip -6 route replace ::/0 via fe80::1 dev if2 table 254 proto 3",
            ]
            .map(|line| line.replace("02:4c:00:00:00:00", &Mac::GATEWAY.to_string()))
        );
    }

    #[test]
    fn a_default_route_that_somebody_led_elsewhere_stays_there() {
        let inside = whole().limpets(&held());
        let mut other = whole();
        other.routes.retain(|route| route.destination.length() != 0);
        other.routes.push(Route { metric: 50, ..by("0.0.0.0/0", 7, Some("192.0.2.1")) });
        let six = "ip -6 route replace ::/0 via fe80::1 dev if2 table 254 proto 3";
        assert_eq!(commands(&other, &inside), [six]);
    }

    #[test]
    fn the_route_of_another_interface_comes_back_without_one_to_its_gateway() {
        let mut second = whole();
        let first = |route: &Route| Route { target: RouteTarget::link(9), ..*route };
        second.routes = second.routes.iter().map(first).collect();
        let gateway = Some(ip("169.254.1.1"));
        let target = RouteTarget::Device { index: DEVICE, gateway, onlink: true };
        second.routes.push(Route { target, ..by("10.32.0.0/16", DEVICE, None) });
        let inside = second.limpets(&held());
        second.routes.pop();
        let back = "ip route replace 10.32.0.0/16 via 169.254.1.1 dev if2 onlink table 254 proto 3";
        assert_eq!(commands(&second, &inside), [back]);
    }

    #[test]
    fn what_a_later_plugin_took_before_it_was_looked_is_not_missed() {
        let mut moved = whole();
        moved.routes.clear();
        let inside = moved.limpets(&held());
        assert_eq!(commands(&moved, &inside), Vec::<String>::new());
    }

    #[test]
    fn the_mtu_follows_the_hosts_end_and_a_smaller_one_that_somebody_chose_stays() {
        let resized = |inside: &Inside, (mtu, outside): (u32, u32)| {
            let mut found = whole();
            (found.link.mtu, found.outside_mtu) = (mtu, outside);
            found.resized(inside).map(|request| request.to_string())
        };
        let to = |mtu: u32| Some(format!("ip link set dev if2 mtu {mtu}"));
        let ours = whole().limpets(&held());
        assert_eq!(ours.own_mtu, None);
        assert_eq!(resized(&ours, (1450, 1450)), None);
        assert_eq!(resized(&ours, (1450, 1350)), to(1350));
        assert_eq!(resized(&ours, (1350, 1450)), to(1450));
        let mut chosen = whole();
        chosen.link.mtu = 1400;
        let chosen = chosen.limpets(&held());
        assert_eq!(resized(&chosen, (1400, 1450)), None);
        assert_eq!(resized(&chosen, (1400, 1350)), to(1350));
        assert_eq!(resized(&chosen, (1350, 1450)), to(1400));
        let known: Inside =
            serde_json::from_str(r#"{"addresses":[],"gateways":[],"routes":[]}"#).unwrap();
        assert_eq!(known.own_mtu, None, "what an earlier agent noted");
    }

    #[test]
    fn a_gateway_whose_entry_is_not_permanent_any_more_or_another_gets_it_back() {
        let inside = whole().limpets(&held());
        let mut other = whole();
        other.neighbours[0].permanent = false;
        other.neighbours[1].mac = Some(Mac::new([2, 0, 0, 0, 0, 9]).unwrap());
        assert_eq!(commands(&other, &inside).len(), 2);
    }
}

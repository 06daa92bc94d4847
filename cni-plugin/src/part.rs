//! Pure: what part of a container's traffic an interface has, and the routes and rules that give it that.
//!
//! One interface has the container's default route. Another one has what is for its own network, and the answers
//! from its own addresses: a rule for each leads them into a table of its own, so that what came in by it goes out by
//! it, whatever the main table says.

use std::net::IpAddr;

use limpet_api::socket::Attach;
use limpet_net_types::{Family, host_prefix};
use limpet_rtnl::{Request, Route, RouteTarget, Rule, RuleAction, Selector};

use crate::attach::{BOOT, MAIN, PROTOCOL};
use crate::result::{everywhere, gateway_of};

/// The place of the rules inside a container, well before the main table's.
const PREFERENCE: u32 = 7600;

/// An interface's own table inside a container has its index above this.
const TABLES: u32 = 76_000;

/// The metric of a default route that another interface has taken the place of.
const SECOND: u32 = 7600;

/// What the kernel makes of an IPv6 route without a metric.
const NO_METRIC_V6: u32 = 1024;

/// What an interface has of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// The default route.
    Everything,
    /// Its own network.
    OwnNetwork,
}

/// What an interface has of each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Parts {
    pub(crate) v4: Part,
    pub(crate) v6: Part,
}

impl Parts {
    /// Of an interface that is about to come into a container with these routes; `asked` is whether it is to have
    /// the default route, if anybody has said.
    pub(crate) fn new(asked: Option<bool>, routes: &[Route]) -> Self {
        let part = |family| match asked {
            Some(true) => Part::Everything,
            None if default_of(family, routes).is_none() => Part::Everything,
            _ => Part::OwnNetwork,
        };
        Self { v4: part(Family::V4), v6: part(Family::V6) }
    }

    pub(crate) fn of(self, family: Family) -> Part {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }
}

/// The route by which a container reaches what no other route leads to.
fn default_of(family: Family, routes: &[Route]) -> Option<Route> {
    let is_default = |route: &&Route| {
        let to = route.destination;
        let leads = matches!(route.target, RouteTarget::Device { .. } | RouteTarget::Nexthop(_));
        route.table == MAIN && to.family() == family && to.length() == 0 && leads
    };
    routes.iter().filter(is_default).min_by_key(|route| route.metric).copied()
}

/// The default route of a family that an interface is about to come before, if there is one.
pub(crate) fn replaced_by(parts: Parts, family: Family, routes: &[Route]) -> Option<Route> {
    let before = default_of(family, routes)?;
    (parts.of(family) == Part::Everything).then_some(before)
}

/// What is left to an interface that had the default route: that route for the time when its successor is gone, and
/// answers from its own addresses.
pub(crate) fn left_to(before: Route, addresses: &[IpAddr]) -> Vec<Request> {
    let mut requests = Vec::new();
    if before.metric == 0 || wins(before) {
        requests.push(Request::SetRoute(Route { metric: SECOND, ..before }));
    }
    if let RouteTarget::Device { index, gateway: Some(gateway), .. } = before.target {
        let family = before.destination.family();
        let own = addresses.iter().filter(|address| Family::of(**address) == family);
        requests.push(Request::SetRoute(answers_by(index, gateway)));
        requests.extend(own.map(|address| Request::SetRule(rule_for(index, *address))));
    }
    requests
}

/// What takes a default route out of the way, once its successor is there, that would go before it.
pub(crate) fn out_of_the_way(before: Route) -> Option<Request> {
    wins(before).then_some(Request::DelRoute(before))
}

/// Whether a route goes before one without a metric: of IPv6 that one has 1024.
fn wins(before: Route) -> bool {
    before.destination.family() == Family::V6 && (1..NO_METRIC_V6).contains(&before.metric)
}

/// The table of an interface's own inside its container.
pub(crate) fn table_of(device: u32) -> u32 {
    TABLES.saturating_add(device)
}

/// The route to the gateway itself, which a link-local IPv6 one does not need.
pub(crate) fn way_to(device: u32, gateway: IpAddr) -> Option<Route> {
    gateway.is_ipv4().then(|| inside(MAIN, device, (host_prefix(gateway), None)))
}

/// The routes by the gateway of a family that an interface has in the main table.
pub(crate) fn ways_by(attach: &Attach, device: u32, (family, part): (Family, Part)) -> Vec<Route> {
    let Some(gateway) = gateway_of(attach, family) else { return Vec::new() };
    let by = |to| inside(MAIN, device, (to, Some(gateway)));
    match part {
        Part::Everything => vec![by(everywhere(gateway))],
        Part::OwnNetwork => {
            let pools = attach.pools.iter().copied().filter(|pool| pool.family() == family);
            pools.map(|pool| onlink(by(pool))).collect()
        }
    }
}

/// The route that answers from an interface's own addresses take.
pub(crate) fn answers_by(device: u32, gateway: IpAddr) -> Route {
    onlink(inside(table_of(device), device, (everywhere(gateway), Some(gateway))))
}

/// The rule that leads answers from an address into an interface's own table.
pub(crate) fn rule_for(device: u32, address: IpAddr) -> Rule {
    Rule {
        family: Family::of(address),
        preference: PREFERENCE,
        selector: Selector::From(host_prefix(address)),
        action: RuleAction::Lookup(table_of(device)),
        protocol: PROTOCOL,
    }
}

/// Whether a rule inside a container is of the interface with this index.
pub(crate) fn is_of(rule: &Rule, device: u32) -> bool {
    rule.protocol == PROTOCOL && rule.action == RuleAction::Lookup(table_of(device))
}

/// All that gives an interface its part of a family.
pub(crate) fn requests(
    attach: &Attach,
    device: u32,
    (family, part): (Family, Part),
) -> Vec<Request> {
    let Some(gateway) = gateway_of(attach, family) else { return Vec::new() };
    let ways = ways_by(attach, device, (family, part)).into_iter().map(Request::SetRoute);
    if part == Part::Everything {
        return way_to(device, gateway).map(Request::SetRoute).into_iter().chain(ways).collect();
    }
    let addresses = attach.attachment.addresses.iter().map(|held| held.address);
    let rules = addresses
        .filter(|address| Family::of(*address) == family)
        .map(|address| Request::SetRule(rule_for(device, address)));
    ways.chain([Request::SetRoute(answers_by(device, gateway))]).chain(rules).collect()
}

fn inside(
    table: u32,
    index: u32,
    (destination, gateway): (limpet_net_types::Prefix, Option<IpAddr>),
) -> Route {
    let target = RouteTarget::Device { index, gateway, onlink: false };
    Route { table, protocol: BOOT, destination, target, source: None, metric: 0 }
}

/// The same route, whose gateway needs no route of its own: the one to the same address by another interface of
/// the container would be replaced by it. IPv6's is link-local.
fn onlink(route: Route) -> Route {
    let RouteTarget::Device { index, gateway, .. } = route.target else { return route };
    let onlink = route.destination.family() == Family::V4;
    Route { target: RouteTarget::Device { index, gateway, onlink }, ..route }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn default(device: u32, gateway: &str) -> Route {
        let gateway = gateway.parse().unwrap();
        inside(MAIN, device, (everywhere(gateway), Some(gateway)))
    }

    #[test]
    fn the_first_interface_has_the_default_route_and_the_next_has_not_unless_it_is_said() {
        use Part::{Everything, OwnNetwork};
        let other = Route { destination: "10.0.0.0/8".parse().unwrap(), ..default(2, "192.0.2.1") };
        let elsewhere = Route { table: 100, ..default(2, "192.0.2.1") };
        let nowhere = Route { target: RouteTarget::Unreachable, ..default(2, "192.0.2.1") };
        let v4 = default(2, "192.0.2.1");
        for (asked, routes, expected) in [
            (None, vec![], (Everything, Everything)),
            (None, vec![other, elsewhere, nowhere], (Everything, Everything)),
            (None, vec![v4], (OwnNetwork, Everything)),
            (None, vec![v4, default(2, "fe80::1")], (OwnNetwork, OwnNetwork)),
            (Some(true), vec![v4, default(2, "fe80::1")], (Everything, Everything)),
            (Some(false), vec![], (OwnNetwork, OwnNetwork)),
        ] {
            let parts = Parts::new(asked, &routes);
            assert_eq!((parts.v4, parts.v6), expected, "{asked:?} {routes:?}");
        }
    }

    #[test]
    fn who_loses_the_default_route_keeps_it_as_the_second_and_its_answers() {
        let before = default(2, "192.0.2.1");
        let all = Parts::new(Some(true), &[]);
        assert_eq!(replaced_by(all, Family::V4, &[before]), Some(before));
        assert_eq!(replaced_by(all, Family::V6, &[before]), None);
        let with_metric = Route { metric: 100, ..before };
        assert_eq!(replaced_by(all, Family::V4, &[with_metric]), Some(with_metric));
        assert_eq!(replaced_by(Parts::new(None, &[before]), Family::V4, &[before]), None);
        let addresses = ["192.0.2.7", "fd00::7"].map(|address| address.parse().unwrap());
        let commands = |before: Route| -> Vec<String> {
            left_to(before, &addresses).iter().map(ToString::to_string).collect()
        };
        let wanted = [
            "ip route replace 0.0.0.0/0 via 192.0.2.1 dev if2 metric 7600 table 254 proto 3",
            "ip route replace 0.0.0.0/0 via 192.0.2.1 dev if2 onlink table 76002 proto 3",
            "ip rule add from 192.0.2.7/32 lookup 76002 pref 7600 protocol 76",
        ];
        assert_eq!(commands(before), wanted);
        // The route that has a metric stays as it is. Its answers must not leave by the new interface all the same.
        assert_eq!(commands(with_metric), wanted[1..]);
        for (metric, wins) in [(0, false), (100, true), (1024, false), (2000, false)] {
            let before = Route { metric, ..default(2, "fe80::1") };
            assert_eq!(out_of_the_way(before).is_some(), wins, "{metric}");
            assert_eq!(out_of_the_way(Route { metric, ..default(2, "192.0.2.1") }), None);
        }
    }
}

//! Pure: what the host's kernel should have, from what is known of the cluster and of the host.
//!
//! | for | there is |
//! |---|---|
//! | each network that the host is a member of | a VXLAN device, in the network's group, with the host's VTEP MAC and link-local address |
//! | each other member, in each network | an FDB entry, a neighbour entry and a nexthop object |
//! | each block, stray | a route in the table *overlay*, or in that of the network's own space, by its host's nexthop |
//! | each pool | an `unreachable` route below them, and the rule that containers find hosts by, which passes over the pool itself |
//! | each other member's address | a route in the network's table *hosts*, or in that of its own space |
//! | each prefix behind gateways | a route in the network's table *hosts* by a group of their nexthops |
//! | each network with an address space of its own | a rule by its mark, and a route by which the host's own packets find the network |
//! | each container of this host | a route, a neighbour entry and settings, as soon as its veth pair is there |
//!
//! It leaves to [`crate::resolve`] which number a nexthop has, which containers are there and how rules are arranged: all
//! depend on the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use limpet_api::config::{Host, Network, Role};
use limpet_net_types::{
    Family, HostName, Mac, Mtu, NetworkName, Prefix, Uid, host_ifname, host_prefix, link_local,
    overlay_mtu, vxlan_overhead,
};
use limpet_rtnl::RuleAction;

use crate::layout::{
    Address, Device, Fdb, Hop, LOOSE_ADDRESS, METRIC_POOL, RouteKey, Rule, Setting, TABLE_CHOICE,
    TABLE_OVERLAY, Vxlan, is_veth_name,
};
use crate::mark::MarkMask;
use crate::nft::{Networks, Ruleset};
use crate::rules::{Sources, mark_rules, overlay_rule};
use crate::segments::{Segment, segments};
use crate::view::View;

/// What the host itself says of itself, as far as the layout depends on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostFacts {
    /// Its name.
    pub(crate) name: HostName,
    /// The MTU of the device that carries the outer packets, in bytes.
    pub(crate) underlay_mtu: u32,
    /// Its global addresses, the primary one of each family first.
    pub(crate) addresses: Vec<IpAddr>,
    /// Devices and where the main table leads by them.
    pub(crate) led_to: Vec<(String, Prefix)>,
    /// How the kernel can be told to forward IPv6.
    pub(crate) forwarding: Forwarding6,
    /// What others have decided of the packets of all devices.
    pub(crate) others: Others,
    /// The bits of the mark that are limpet's.
    pub(crate) mark_mask: MarkMask,
}

/// What other programs and operators have decided of all packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Others {
    /// Destinations are translated.
    pub(crate) translate: bool,
    /// The reverse-path filter of IPv4 is loose for all devices, and cannot be strict for some.
    pub(crate) loose4: bool,
}

/// How the kernel can be told to forward the IPv6 packets of some devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Forwarding6 {
    /// For each device by itself (Linux 6.17 and later).
    PerDevice,
    /// For all at once, which would end the router advertisements of these devices unless they are told to go on.
    Global {
        /// Those that accept router advertisements.
        accept_ra: Vec<String>,
        /// Whether the host forwarded before limpet had it do so; if not, it is to forward for limpet only.
        router: bool,
    },
}

impl HostFacts {
    /// The address that the host sends from into the overlay.
    pub(crate) fn primary(&self, family: Family) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|&address| Family::of(address) == family)
    }
}

/// Where a route should lead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// To one host.
    Hop(Hop),
    /// To the gateways of the route's prefix.
    Gateways(BTreeSet<Hop>),
    /// Nowhere.
    Unreachable,
    /// To what the table of the next rule says.
    Throw,
    /// To the device itself. Only to choose a network by: no packet leaves by it.
    Device(String),
}

/// A route that should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WantedRoute {
    pub(crate) way: Way,
    pub(crate) source: Option<IpAddr>,
}

/// A container of this host, as far as the host's side of it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Container {
    pub(crate) uid: Uid,
    /// The MTU of the host's end of its veth pair, in bytes.
    pub(crate) mtu: u32,
    pub(crate) group: u32,
    /// The table of its routes.
    pub(crate) table: u32,
    pub(crate) mac: Mac,
    /// Its addresses, and what the host itself sends to them from, where it has an address of the family.
    pub(crate) addresses: Vec<(IpAddr, Option<IpAddr>)>,
}

/// What the kernel should have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Desired {
    pub(crate) devices: BTreeMap<String, Device>,
    pub(crate) addresses: BTreeSet<Address>,
    pub(crate) fdb: BTreeSet<Fdb>,
    pub(crate) neighbours: BTreeMap<(String, IpAddr), Mac>,
    pub(crate) routes: BTreeMap<RouteKey, WantedRoute>,
    /// Those that are where they are whatever else there is.
    pub(crate) rules: BTreeSet<Rule>,
    /// What becomes of packets by their source; none contains another.
    pub(crate) sources: Sources,
    /// By the name of the host's end of their veth pair.
    pub(crate) containers: BTreeMap<String, Container>,
    /// Those of devices that are not containers', in the order in which they are to be set.
    pub(crate) settings: Vec<(Setting, String)>,
    pub(crate) forwarding: Option<Forwarding6>,
    pub(crate) ruleset: Ruleset,
    pub(crate) problems: Vec<LayoutProblem>,
    /// Whether nothing is to be taken away: this is not what a controller says now.
    pub(crate) careful: bool,
}

/// Something that cannot be laid out, and so is missing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub(crate) enum LayoutProblem {
    /// A network has no device here.
    #[error("network {network} has no device on this host: {reason}")]
    NoDevice { network: NetworkName, reason: String },
    /// A network's packets do not fit the underlay.
    #[error(
        "network {network} has an MTU of {mtu}, the underlay of this host leaves {most}: larger packets are lost"
    )]
    TooLarge { network: NetworkName, mtu: Mtu, most: u32 },
    /// A host cannot be reached.
    #[error(
        "host {host} has its underlay at {underlay}, which this host's {family} underlay does not reach"
    )]
    OtherUnderlay { host: HostName, underlay: IpAddr, family: Family },
    /// A gateway has no way to what is said to be behind it.
    #[error("no route of this host leads to {prefix}, which is said to be behind it")]
    NoExternal { prefix: Prefix },
    /// The host has no global address of a family.
    #[error(
        "this host has no global {family} address: containers reach each other, the host itself reaches none over {family}"
    )]
    NoSource { family: Family },
}

/// The MTU of a network on this host.
///
/// Where the underlay leaves less than there can be it is the least: large packets are lost then, and small ones pass. To
/// take the device away would cut every container off that lives, those of one host from each other too.
pub(crate) fn mtu_of(network: &Network, facts: &HostFacts, underlay: IpAddr) -> Mtu {
    let of_underlay = || overlay_mtu(facts.underlay_mtu, underlay).unwrap_or(Mtu::LEAST);
    network.mtu.unwrap_or_else(of_underlay)
}

/// What the kernel should have; nothing where this host is not known to the cluster, so that all stays as it is.
pub(crate) fn desired(view: &View, facts: &HostFacts) -> Option<Desired> {
    let host = view.hosts.get(&facts.name)?;
    let underlay = host.underlay?;
    let (segments, problems) = segments(view, facts, (host, underlay));
    let desired = Desired { problems, ..Desired::default() };
    let mut layout = Layout { view, facts, host, underlay, segments, desired };
    layout.desired.forwarding = Some(facts.forwarding.clone());
    layout.unreachable();
    let segments = layout.segments.clone();
    for segment in segments.values() {
        layout.network(segment);
        layout.hosts(segment);
        layout.gateways(segment);
        layout.pools(segment);
    }
    layout.spaces();
    layout.blocks();
    layout.containers();
    layout.ruleset();
    layout.settings();
    Some(layout.desired)
}

/// The settings that a device needs whose packets are to be forwarded.
///
/// Packets of other devices are not forwarded, so that a host stays closed for others even without nftables.
/// Router advertisements are for the underlay: a container must not become the host's default router.
pub(crate) fn device_settings(device: &str, forwarding: &Forwarding6) -> Vec<(Setting, String)> {
    let setting = |family, name, value: &str| {
        (Setting { family, device: device.to_owned(), name }, value.to_owned())
    };
    let mut settings = vec![
        setting(Family::V6, "disable_ipv6", "0"),
        setting(Family::V6, "accept_ra", "0"),
        setting(Family::V4, "forwarding", "1"),
    ];
    if *forwarding == Forwarding6::PerDevice {
        settings.push(setting(Family::V6, "force_forwarding", "1"));
    }
    if is_veth_name(device) {
        // A container sends from its own addresses only. Of IPv6 the nftables table sees to that.
        settings.push(setting(Family::V4, "rp_filter", "1"));
    }
    settings
}

/// A layout in the making.
struct Layout<'a> {
    view: &'a View,
    facts: &'a HostFacts,
    host: &'a Host,
    underlay: IpAddr,
    segments: BTreeMap<NetworkName, Segment<'a>>,
    desired: Desired,
}

impl<'a> Layout<'a> {
    /// The other members of a network that have joined and can be reached.
    fn others(&self, network: &'a Network) -> impl Iterator<Item = (&'a Host, IpAddr)> {
        let others = self.view.hosts.values().filter(|host| host.name != self.host.name);
        let members = others.filter(|host| host.is_member_of(network));
        let joined = members.filter_map(|host| Some((host, host.underlay?)));
        joined.filter(|(_, underlay)| self.reaches(*underlay))
    }

    /// A VXLAN device sends over one family.
    fn reaches(&self, underlay: IpAddr) -> bool {
        Family::of(underlay) == Family::of(self.underlay)
    }

    /// What the host sends from in a family. That there is nothing is a problem of the host's own packets, not of
    /// those that it forwards.
    fn source(&mut self, family: Family) -> Option<IpAddr> {
        let source = self.facts.primary(family);
        let problem = LayoutProblem::NoSource { family };
        if source.is_none() && !self.desired.problems.contains(&problem) {
            self.desired.problems.push(problem);
        }
        source
    }

    fn route(&mut self, table: u32, destination: Prefix, way: Way) {
        let key = RouteKey { table, destination, metric: 0 };
        let source = self.source(destination.family());
        self.desired.routes.insert(key, WantedRoute { way, source });
    }

    /// A route that is for no packet of the host's own.
    fn dead_end(&mut self, key: RouteKey, way: Way) {
        self.desired.routes.insert(key, WantedRoute { way, source: None });
    }

    /// The hosts that this one cannot reach.
    fn unreachable(&mut self) {
        let family = Family::of(self.underlay);
        let joined = self.view.hosts.values().filter_map(|host| Some((host, host.underlay?)));
        let problems: Vec<_> = joined
            .filter(|(_, underlay)| !self.reaches(*underlay))
            .map(|(host, underlay)| {
                let host = host.name.clone();
                LayoutProblem::OtherUnderlay { host, underlay, family }
            })
            .collect();
        self.desired.problems.extend(problems);
    }

    /// A network's device, and the ways to its other members.
    fn network(&mut self, segment: &Segment<'a>) {
        let (network, name, mtu) = (segment.network, &segment.device, segment.mtu);
        let most = self.facts.underlay_mtu.saturating_sub(vxlan_overhead(self.underlay));
        if u32::from(mtu) > most {
            let network = network.name.clone();
            self.desired.problems.push(LayoutProblem::TooLarge { network, mtu, most });
        }
        let mac = self.host.vtep_mac;
        let vxlan = Vxlan { vni: network.vni, local: self.underlay, port: network.port, mac };
        let group = segment.group();
        let device = Device { vxlan: Some(vxlan), mtu: mtu.into(), group, up: true };
        self.desired.devices.insert(name.clone(), device);
        let address = Address { device: name.clone(), ip: link_local(mac).into(), length: 64 };
        self.desired.addresses.insert(address);
        if self.is_opened(segment) {
            let ip = LOOSE_ADDRESS.into();
            self.desired.addresses.insert(Address { device: name.clone(), ip, length: 32 });
        }
        let others: Vec<_> =
            self.others(network).map(|(host, vtep)| (host.vtep_mac, vtep)).collect();
        for (mac, vtep) in others {
            let fdb = Fdb { device: name.clone(), mac: mac.bytes(), vtep: Some(vtep) };
            self.desired.fdb.insert(fdb);
            self.desired.neighbours.insert((name.clone(), link_local(mac).into()), mac);
        }
    }

    /// Every address of every other member, for packets that come from the network's containers. By the network's
    /// own device: the answers come by it, and the kernel's reverse-path filter wants to hear that.
    fn hosts(&mut self, segment: &Segment<'a>) {
        let others: Vec<_> = self.others(segment.network).collect();
        for (host, _) in others {
            for address in &host.addresses {
                let way = Way::Hop(hop(&segment.device, host));
                self.route(segment.hosts_table(), host_prefix(*address), way);
            }
        }
    }

    /// The prefixes behind other members, unless this one is a gateway to them itself. Who is behind a gateway knows
    /// one address space, the shared one.
    fn gateways(&mut self, segment: &Segment<'a>) {
        let mut prefixes: BTreeMap<Prefix, BTreeSet<Hop>> = BTreeMap::new();
        let others: Vec<_> = self.others(segment.network).collect();
        for (host, _) in others.into_iter().filter(|(host, _)| host.is(Role::Gateway)) {
            for prefix in &host.external {
                prefixes.entry(*prefix).or_default().insert(hop(&segment.device, host));
            }
        }
        let table = segment.hosts_table();
        for (prefix, gateways) in prefixes.into_iter().filter(|_| segment.is_shared()) {
            let own = self.host.is(Role::Gateway) && self.host.external.contains(&prefix);
            let key = RouteKey { table, destination: prefix, metric: 0 };
            if own || self.desired.routes.contains_key(&key) {
                continue;
            }
            self.route(table, prefix, Way::Gateways(gateways));
            // It may be wider than another network's pool, the default route even.
            let others = self.segments.values().filter(|other| other.is_shared());
            let pools = others.flat_map(Segment::prefixes);
            let within: Vec<_> = pools.filter(|pool| prefix.range().covers(pool.range())).collect();
            for destination in within {
                self.dead_end(RouteKey { table, destination, metric: 0 }, Way::Throw);
            }
        }
    }

    /// Rules and routes of a network's pools.
    fn pools(&mut self, segment: &Segment<'a>) {
        for destination in segment.prefixes() {
            let family = destination.family();
            self.desired.rules.insert(overlay_rule(family));
            // What is for a space of its own and has lost its mark is unreachable, too.
            let pool = RouteKey { table: TABLE_OVERLAY, destination, metric: METRIC_POOL };
            self.dead_end(pool, Way::Unreachable);
            let table = segment.hosts_table();
            if segment.is_shared() {
                self.desired.sources.insert(destination, RuleAction::Lookup(table));
                // A prefix behind a gateway may be wider than the pool.
                self.dead_end(RouteKey { table, destination, metric: 0 }, Way::Throw);
            } else {
                self.dead_end(RouteKey { table, ..pool }, Way::Unreachable);
            }
        }
    }

    /// What tells the address spaces of their own apart.
    fn spaces(&mut self) {
        let own: Vec<_> = self.segments.values().filter(|segment| !segment.is_shared()).collect();
        let marks = own.iter().filter_map(|segment| Some((segment.own?.mark, segment.table())));
        self.desired.rules.extend(mark_rules(self.facts.mark_mask, &marks.collect()));
        let mut pools: Vec<_> = own
            .iter()
            .flat_map(|segment| segment.prefixes().map(|pool| (pool, segment.device.clone())))
            .collect();
        // The wider ones first: of two that overlap one contains the other.
        pools.sort_by_key(|(pool, _)| pool.length());
        for (pool, device) in pools {
            let key = RouteKey { table: TABLE_CHOICE, destination: pool, metric: 0 };
            if !self.desired.routes.contains_key(&key) {
                self.route(TABLE_CHOICE, pool, Way::Device(device));
            }
            let sources = &mut self.desired.sources;
            if !sources.keys().any(|wider| wider.range().covers(pool.range())) {
                sources.insert(pool, RuleAction::Unreachable);
            }
        }
    }

    /// Routes to what is elsewhere.
    fn blocks(&mut self) {
        let view = self.view;
        for block in view.blocks.values() {
            self.elsewhere(&block.network, block.prefix, &block.host);
        }
        // After the blocks: one of a single address is the same route as its stray.
        for ((network, address), host) in &view.strays {
            let Some(table) = self.segments.get(network).map(Segment::table) else { continue };
            let destination = host_prefix(*address);
            self.desired.routes.remove(&RouteKey { table, destination, metric: 0 });
            self.elsewhere(network, destination, host);
        }
    }

    /// A route to what is on another host. What is on this one has its containers' routes.
    fn elsewhere(&mut self, network: &NetworkName, destination: Prefix, host: &HostName) {
        let Some(segment) = self.segments.get(network) else { return };
        let (network, device, table) = (segment.network, &segment.device, segment.table());
        let other = self.view.hosts.get(host).filter(|other| other.name != self.host.name);
        let other = other.filter(|other| other.is_member_of(network));
        if let Some(other) = other.filter(|other| other.underlay.is_some_and(|at| self.reaches(at)))
        {
            let way = Way::Hop(hop(device, other));
            self.route(table, destination, way);
        }
    }

    fn containers(&mut self) {
        let view = self.view;
        for (key, attachment) in view.attachments() {
            let Some(segment) = self.segments.get(&key.network) else { continue };
            let (group, table, mtu) = (segment.group(), segment.table(), segment.mtu.into());
            let held = attachment.addresses.iter().map(|held| held.address);
            let addresses =
                held.map(|address| (address, self.source(Family::of(address)))).collect();
            let (uid, mac) = (attachment.uid, attachment.mac);
            let container = Container { uid, mtu, group, table, mac, addresses };
            let ifname = host_ifname(&key.network, &key.container, &key.ifname);
            self.desired.containers.insert(ifname, container);
        }
    }

    /// The devices that lead to the prefixes behind this host, if it is a gateway; and which of those lead nowhere.
    fn external_devices(&mut self) -> BTreeSet<String> {
        let mut devices = BTreeSet::new();
        if !self.host.is(Role::Gateway) {
            return devices;
        }
        for &prefix in &self.host.external {
            let leading = leading_to(prefix, &self.facts.led_to);
            if leading.is_empty() {
                self.desired.problems.push(LayoutProblem::NoExternal { prefix });
            }
            devices.extend(leading);
        }
        devices
    }

    /// Whether packets of other networks come and go by a network's device.
    fn is_opened(&self, segment: &Segment<'_>) -> bool {
        let name = &segment.network.name;
        let allows = |one: &Segment<'_>, other: &NetworkName| one.network.allow.contains(other);
        let others = self.segments.values().filter(|other| other.network.name != *name);
        let mut shared = others.filter(|other| other.is_shared());
        segment.is_shared()
            && shared.any(|other| allows(segment, &other.network.name) || allows(other, name))
    }

    fn settings(&mut self) {
        let forwarding = &self.facts.forwarding;
        let external = self.desired.ruleset.external.clone();
        let setting = |family, device: &str, name, value: &str| {
            (Setting { family, device: device.to_owned(), name }, value.to_owned())
        };
        let mut settings = Vec::new();
        for device in self.desired.devices.keys() {
            settings.extend(device_settings(device, forwarding));
        }
        for segment in self.segments.values().filter(|segment| self.is_opened(segment)) {
            // What another network opens comes from sources that other devices lead to.
            settings.push(setting(Family::V4, &segment.device, "rp_filter", "2"));
        }
        if self.segments.values().any(|segment| !segment.is_shared()) {
            settings.push(setting(Family::V4, "all", "src_valid_mark", "1"));
            settings.push(setting(Family::V4, "", "tcp_fwmark_accept", "1"));
            settings.push(setting(Family::V4, "", "fwmark_reflect", "1"));
            settings.push(setting(Family::V6, "", "fwmark_reflect", "1"));
        }
        if !settings.is_empty() {
            for device in external {
                settings.push(setting(Family::V4, &device, "forwarding", "1"));
                if *forwarding == Forwarding6::PerDevice {
                    settings.push(setting(Family::V6, &device, "force_forwarding", "1"));
                }
            }
            if let Forwarding6::Global { accept_ra, .. } = forwarding {
                // Before forwarding is switched on: the kernel drops learned routes at that very moment.
                let going_on = accept_ra.iter();
                settings
                    .extend(going_on.map(|device| setting(Family::V6, device, "accept_ra", "2")));
                settings.push(setting(Family::V6, "all", "forwarding", "1"));
            }
        }
        self.desired.settings = settings;
    }

    fn ruleset(&mut self) {
        let networks = Networks::of(&self.segments, self.facts.mark_mask);
        let external = self.external_devices();
        let Others { translate: translated, loose4 } = self.facts.others;
        let closed6 = matches!(self.facts.forwarding, Forwarding6::Global { router: false, .. });
        self.desired.ruleset = Ruleset { networks, external, translated, loose4, closed6 };
    }
}

/// The devices by which the main table leads to a prefix or to parts of it. The default route leads to what no other
/// does, and to the whole of the default prefix.
fn leading_to(prefix: Prefix, led_to: &[(String, Prefix)]) -> BTreeSet<String> {
    let devices = |default: bool| -> BTreeSet<String> {
        let overlapping = led_to
            .iter()
            .filter(|(_, to)| (to.length() == 0) == default && to.range().overlaps(prefix.range()));
        overlapping.map(|(device, _)| device.clone()).collect()
    };
    let mut precise = devices(false);
    if precise.is_empty() || prefix.length() == 0 {
        precise.extend(devices(true));
    }
    precise
}

fn hop(device: &str, host: &Host) -> Hop {
    Hop { device: device.to_owned(), via: link_local(host.vtep_mac) }
}

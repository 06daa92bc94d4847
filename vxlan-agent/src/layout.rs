//! Pure: the kernel's entries in the agent's words, and the numbers under which limpet keeps its own.
//!
//! Devices go by their names here; only the edge knows their indexes. Every entry prints as the arguments of the
//! `ip`, `bridge` or `sysctl` command that sets it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use limpet_net_types::{Family, Mac, NetworkIndex, Prefix, Uid, Vni};
use limpet_rtnl::{RuleAction, Selector};

/// The routing protocol number of everything that limpet puts into a routing table.
pub(crate) const PROTOCOL: u8 = 76;
/// The table of blocks, strays, local containers and pools of the shared address space.
pub(crate) const TABLE_OVERLAY: u32 = 7601;
/// The table that says which of the networks with an address space of their own a packet of the host's is for.
pub(crate) const TABLE_CHOICE: u32 = 7600;
/// The tables of networks with an address space of their own begin after this one.
const TABLES_OWN: u32 = 12000;
/// The largest number of a network.
const MOST_NETWORKS: u32 = 4095;
/// The place of the rules by mark: `lookup` the table of a network's own address space.
pub(crate) const PREFERENCE_OWN: u32 = 50;
/// The place of the rule that chooses among those spaces for the host's own packets.
pub(crate) const PREFERENCE_CHOICE: u32 = 96;
/// The place of the rules `from <pool> lookup hosts`, and `unreachable` for what has lost its mark.
pub(crate) const PREFERENCE_HOSTS: u32 = 100;
/// The place of the rule `lookup overlay`.
pub(crate) const PREFERENCE_OVERLAY: u32 = 200;
/// The group of veth pairs that are gone and only wait for their deletion.
pub(crate) const GROUP_OF_THE_DEAD: u32 = 4096;
/// The group of veth pairs whose containers were taken off the network: no rule is for it. Networks have 4097 to 8191.
pub(crate) const GROUP_OF_THE_SEVERED: u32 = 8192;
/// What a route costs that only counts where there is none more precise: so high that any other wins.
pub(crate) const METRIC_POOL: u32 = 4_278_198_272;
/// Into how many buckets a gateway group deals its flows.
pub(crate) const BUCKETS: u16 = 64;
/// How long a flow must be idle before it may be given to another gateway, in seconds.
pub(crate) const IDLE_SECONDS: u16 = 30;
/// An address of devices whose IPv4 sources the kernel is to check loosely: without one it drops what other devices lead
/// to, loose or not. It never leaves the host.
pub(crate) const LOOSE_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 76, 76);
/// What the names of the host's ends of veth pairs begin with.
pub(crate) const VETH_PREFIX: &str = "lc";
/// What the names of VXLAN devices begin with.
pub(crate) const DEVICE_PREFIX: &str = "limpet";

/// The name of a network's VXLAN device.
pub(crate) fn device_name(index: NetworkIndex) -> String {
    format!("{DEVICE_PREFIX}{index}")
}

/// Whether a device of this name is a network's.
pub(crate) fn is_device_name(name: &str) -> bool {
    name.strip_prefix(DEVICE_PREFIX).is_some_and(|index| {
        !index.is_empty() && !index.starts_with('0') && index.bytes().all(|b| b.is_ascii_digit())
    })
}

/// Whether a device of this name may be the host's end of a container's veth pair.
pub(crate) fn is_veth_name(name: &str) -> bool {
    name.strip_prefix(VETH_PREFIX).is_some_and(|hash| {
        hash.len() == 11 && hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// Whether a device of this name may be what holds a container back in what it sends.
pub(crate) fn is_shaper_name(name: &str) -> bool {
    name.strip_prefix("lb").is_some_and(|hash| is_veth_name(&format!("{VETH_PREFIX}{hash}")))
}

/// The interface group of a network's devices.
pub(crate) fn group_of(index: NetworkIndex) -> u32 {
    GROUP_OF_THE_DEAD + u32::from(u16::from(index))
}

/// The table of the hosts' own addresses and of the prefixes behind gateways, for packets from a network's
/// containers, where the network is of the shared address space.
pub(crate) fn hosts_table(index: NetworkIndex) -> u32 {
    TABLE_OVERLAY + u32::from(u16::from(index))
}

/// The table of all that a network with an address space of its own reaches.
pub(crate) fn own_table(index: NetworkIndex) -> u32 {
    TABLES_OWN + u32::from(u16::from(index))
}

/// Whether a routing table is one that limpet keeps.
pub(crate) fn is_own_table(table: u32) -> bool {
    let within = |first: u32| (first..=first + MOST_NETWORKS).contains(&table);
    table == TABLE_CHOICE || within(TABLE_OVERLAY) || within(TABLES_OWN)
}

/// The gateway of a container's default route: no host has it, a neighbour entry leads to the veth pair's other end.
pub(crate) fn container_gateway(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => Ipv4Addr::new(169, 254, 1, 1).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1).into(),
    }
}

/// What makes a VXLAN device what it is: none of it can be changed while the device lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Vxlan {
    pub(crate) vni: Vni,
    pub(crate) local: IpAddr,
    pub(crate) port: u16,
    /// It could be changed, but the peers' entries say this one.
    pub(crate) mac: Mac,
}

/// A network's device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    /// None of a device that is not one of ours in spite of its name.
    pub(crate) vxlan: Option<Vxlan>,
    pub(crate) mtu: u32,
    pub(crate) group: u32,
    pub(crate) up: bool,
}

/// The host's end of a container's veth pair, as found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Veth {
    /// The incarnation that it says it is.
    pub(crate) uid: Option<Uid>,
    pub(crate) mtu: u32,
    pub(crate) group: u32,
    pub(crate) up: bool,
}

impl Veth {
    /// Whether it is the living interface of this incarnation.
    pub(crate) fn is(&self, uid: Uid) -> bool {
        self.uid == Some(uid) && self.group != GROUP_OF_THE_DEAD
    }
}

/// An address on a VXLAN device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Address {
    pub(crate) device: String,
    pub(crate) ip: IpAddr,
    pub(crate) length: u8,
}

/// A forwarding entry of a VXLAN device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Fdb {
    pub(crate) device: String,
    pub(crate) mac: [u8; 6],
    pub(crate) vtep: Option<IpAddr>,
}

/// The way to one host through one network: a link-local address behind a VXLAN device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Hop {
    pub(crate) device: String,
    pub(crate) via: Ipv6Addr,
}

/// Where a nexthop object leads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Nexthop {
    /// To one host.
    Hop(Hop),
    /// To several gateways, a resilient group of these ids.
    Group(BTreeSet<u32>),
    /// Anything else; only found.
    Other,
}

/// A nexthop object as found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FoundNexthop {
    /// Whether it carries limpet's protocol number.
    pub(crate) ours: bool,
    pub(crate) leads: Nexthop,
}

/// What there is one route of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RouteKey {
    pub(crate) table: u32,
    pub(crate) destination: Prefix,
    pub(crate) metric: u32,
}

/// A route of limpet's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Route {
    pub(crate) key: RouteKey,
    pub(crate) target: Target,
    pub(crate) source: Option<IpAddr>,
}

/// Where a route leads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Target {
    Nexthop(u32),
    /// The destination is behind this device itself.
    Link(String),
    Unreachable,
    /// To whatever the next rule's table says.
    Throw,
    /// Anything else; only found.
    Other,
}

/// A policy rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rule {
    pub(crate) family: Family,
    pub(crate) preference: u32,
    pub(crate) selector: Selector,
    pub(crate) action: RuleAction,
}

/// A setting of one device, of all, or, where no device is named, of the family.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Setting {
    pub(crate) family: Family,
    pub(crate) device: String,
    pub(crate) name: &'static str,
}

impl Setting {
    /// The names of the setting's path below `/proc/sys/net`.
    pub(crate) fn path(&self) -> Vec<&str> {
        let family = match self.family {
            Family::V4 => "ipv4",
            Family::V6 => "ipv6",
        };
        if self.device.is_empty() {
            return vec![family, self.name];
        }
        vec![family, "conf", &self.device, self.name]
    }
}

/// The kernel's entries that are limpet's, or in its way.
///
/// Wanted and found are of one type: what one pass leaves behind is what the next one finds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tables {
    pub(crate) devices: BTreeMap<String, Device>,
    /// Found only: the plugin makes and unmakes them.
    pub(crate) veths: BTreeMap<String, Veth>,
    pub(crate) addresses: BTreeSet<Address>,
    pub(crate) fdb: BTreeSet<Fdb>,
    /// Permanent entries.
    pub(crate) neighbours: BTreeMap<(String, IpAddr), Mac>,
    pub(crate) nexthops: BTreeMap<u32, FoundNexthop>,
    pub(crate) routes: BTreeSet<Route>,
    pub(crate) rules: BTreeSet<Rule>,
    /// In the order in which they are to be set. Found are those that were asked for and exist.
    pub(crate) settings: Vec<(Setting, String)>,
    /// The nftables table as `nft` prints it, all white space one blank; none if it is not there.
    pub(crate) ruleset: Option<String>,
}

impl fmt::Display for Fdb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mac = self.mac.map(|byte| format!("{byte:02x}")).join(":");
        write!(f, "{mac} dev {}", self.device)?;
        self.vtep.map_or(Ok(()), |vtep| write!(f, " dst {vtep}"))
    }
}

impl fmt::Display for Nexthop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hop(Hop { device, via }) => write!(f, "via {via} dev {device}"),
            Self::Group(members) => {
                let members: Vec<_> = members.iter().map(u32::to_string).collect();
                let timer = format!("buckets {BUCKETS} idle_timer {IDLE_SECONDS}");
                write!(f, "group {} type resilient {timer}", members.join("/"))
            }
            Self::Other => f.write_str("blackhole"),
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RouteKey { table, destination, metric } = self.key;
        match &self.target {
            Target::Nexthop(id) => write!(f, "{destination} nhid {id}")?,
            Target::Link(device) if destination.family() == Family::V4 => {
                write!(f, "{destination} dev {device} scope link")?;
            }
            Target::Link(device) => write!(f, "{destination} dev {device}")?,
            Target::Unreachable => write!(f, "unreachable {destination}")?,
            Target::Throw => write!(f, "throw {destination}")?,
            Target::Other => write!(f, "{destination}")?,
        }
        if let Some(source) = self.source {
            write!(f, " src {source}")?;
        }
        if metric != 0 {
            write!(f, " metric {metric}")?;
        }
        write!(f, " table {table} proto {PROTOCOL}")
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { preference, selector, action, .. } = self;
        write!(f, "{selector} {action} pref {preference} protocol {PROTOCOL}")
    }
}

/// With slashes, because a device's name may have dots in it.
impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "net/{}", self.path().join("/"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_limpet_makes_are_taken_for_its_own() {
        for name in ["limpet1", "limpet4095"] {
            assert!(is_device_name(name), "{name}");
        }
        for name in ["limpet", "limpet01", "limpet0", "limpet-demo", "limpet1x", "xlimpet1"] {
            assert!(!is_device_name(name), "{name}");
        }
        assert!(is_veth_name("lc0123456789a"));
        for name in ["lc", "lc0", "lo", "lc0123456789A", "lc0123456789ab"] {
            assert!(!is_veth_name(name), "{name}");
        }
    }
}

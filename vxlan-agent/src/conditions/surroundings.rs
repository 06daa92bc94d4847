//! Pure: what there is around limpet on a host, as it was read.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use limpet_net_types::{Family, Range};
use limpet_rtnl::Tunnel;

use super::nftables::BaseChain;

/// A host, as far as others may be in limpet's way there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Surroundings {
    /// The kernel's release, such as `6.18.4-arch1`.
    pub(crate) kernel: String,
    /// Limpet's networks, as far as they are known.
    pub(crate) networks: Vec<Overlay>,
    /// The pools of them.
    pub(crate) pools: Vec<Range>,
    /// The underlay, once it is known.
    pub(crate) underlay: Option<Underlay>,
    /// Where other hosts' VXLAN packets come from.
    pub(crate) peers: Vec<IpAddr>,
    /// Every VXLAN device, limpet's too.
    pub(crate) tunnels: Vec<Tunnel>,
    /// The rules of other programs; what could not be read of them, and why.
    pub(crate) filters: Filters,
    /// Settings below `/proc/sys/net`, as far as the kernel has them.
    pub(crate) settings: BTreeMap<String, String>,
    /// The default routes: device, whether from a router advertisement, metric.
    pub(crate) defaults: Vec<DefaultRoute>,
    /// Whether `/proc/sys/net/ipv6` is there.
    pub(crate) has_ipv6: bool,
    /// How many neighbour entries did not fit lately.
    pub(crate) neighbours_refused: u64,
    /// Programs that manage networks, and that run.
    pub(crate) managers: Managers,
    /// What others changed of limpet's, and was put back.
    pub(crate) drifts: Vec<PutBack>,
    /// How often the kernel's notifications overran lately.
    pub(crate) overruns: u64,
    /// By how many seconds the wall clock jumped lately; negative if back.
    pub(crate) jumped: Option<i64>,
    /// Whether the operator named the underlay.
    pub(crate) underlay_chosen: bool,
}

/// One of limpet's networks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Overlay {
    pub(crate) name: String,
    pub(crate) device: String,
    pub(crate) group: u32,
    pub(crate) vni: u32,
    pub(crate) port: u16,
    /// The MTU that it was given, in bytes.
    pub(crate) mtu: Option<u32>,
}

/// What others changed of limpet's, and was put back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PutBack {
    /// What it was, such as `route`.
    pub(crate) kind: &'static str,
    /// The command that put it back.
    pub(crate) what: String,
    pub(crate) times: u64,
    /// How long between the first time and the last.
    pub(crate) over: Duration,
    /// How long ago the last time was.
    pub(crate) ago: Duration,
}

/// Where VXLAN packets come from and go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Underlay {
    pub(crate) address: IpAddr,
    pub(crate) device: String,
    pub(crate) mtu: u32,
}

/// A default route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DefaultRoute {
    pub(crate) family: Family,
    pub(crate) device: String,
    pub(crate) metric: u32,
    /// Whether the kernel made it of a router's advertisement.
    pub(crate) advertised: bool,
}

/// The rules of other programs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filters {
    /// Base chains at forward and input that are not limpet's, each with the listing of its table.
    pub(crate) nftables: Vec<(BaseChain, String)>,
    /// What `iptables-save` and its likes print: the tool to change the rules with, the family, the text.
    pub(crate) iptables: Vec<Iptables>,
    /// What could not be read, as sentences.
    pub(crate) unread: Vec<String>,
    /// Whether limpet was asked to put rules of its own into the chain FORWARD.
    pub(crate) mended: bool,
}

/// The rules of one iptables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Iptables {
    /// The program that changes them: `iptables`, `ip6tables-legacy`, ...
    pub(crate) tool: &'static str,
    pub(crate) family: Family,
    pub(crate) listing: String,
}

/// Programs that manage networks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Managers {
    /// firewalld's backend, if it runs.
    pub(crate) firewalld: Option<String>,
    /// What systemd-networkd was told in `[Network]`, if it runs: the last value of each key.
    pub(crate) networkd: Option<BTreeMap<String, String>>,
    /// Limpet's devices that systemd-networkd configures.
    pub(crate) networkd_devices: Vec<String>,
    /// `NetworkManager`'s configuration, if it runs: all its files, one after another.
    pub(crate) network_manager: Option<String>,
    /// Limpet's devices that it manages.
    pub(crate) network_manager_devices: Vec<String>,
}

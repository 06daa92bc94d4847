//! Pure: what operators decide: networks, pools and hosts.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use limpet_net_types::{
    Family, HostName, LabelKey, Mac, Mtu, NameGlob, Namespace, NetworkIndex, NetworkName, PoolName,
    Prefix, Range, Vni,
};
use serde::{Deserialize, Serialize};

use crate::{After, Change, Retention, Span};

/// The UDP port of VXLAN (RFC 7348, section 5).
pub const VXLAN_PORT: u16 = 4789;

/// How many addresses a block has unless the pool says otherwise.
pub const DEFAULT_BLOCK_SIZE: u32 = 64;

/// How long a released address is given to nobody else if there is another one.
pub const DEFAULT_COOLDOWN: Span = Span::from_seconds(60);

/// How long a reservation made for a name by itself outlives its last attachment.
pub const DEFAULT_RETENTION: Retention = Retention::For(Span::from_seconds(7 * 86_400));

/// How long a host is silent before others may take over the addresses of its containers.
pub const DEFAULT_TAKEOVER_AFTER: After = After::For(Span::from_seconds(60));

/// A network to create.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkSpec {
    /// Its number on the wire; the smallest free one from 1 if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vni: Option<Vni>,
    /// Its MTU in bytes; if left out, each host's underlay MTU less VXLAN's overhead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<Mtu>,
    /// The UDP port of its VXLAN, the same on all hosts; 4789 if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Whether it has an address space of its own, so that its pools may have the same addresses as other
    /// networks' pools. It cannot be changed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub own_space: bool,
}

/// What to change of a network; its VNI, port and address space are fixed, since packets under way would be lost.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkChange {
    /// Its MTU in bytes; `null` for what each host's underlay leaves.
    #[serde(default, skip_serializing_if = "Change::is_keep")]
    pub mtu: Change<Mtu>,
    /// The networks whose containers may open connections into this one, all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow: Option<BTreeSet<NetworkName>>,
    /// Networks whose containers may do so besides.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub also_allow: BTreeSet<NetworkName>,
    /// Networks whose containers may do so no longer.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub deny: BTreeSet<NetworkName>,
}

/// An overlay network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Its name.
    pub name: NetworkName,
    /// Its number on the wire.
    pub vni: Vni,
    /// Its number on hosts: device `limpet<index>`, interface group 4096 + index.
    pub index: NetworkIndex,
    /// Its MTU in bytes, if it is not what each host's underlay leaves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<Mtu>,
    /// The UDP port of its VXLAN.
    pub port: u16,
    /// Whether it has an address space of its own: its pools may have the same addresses as other networks'.
    /// All other networks share one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub own_space: bool,
    /// The networks whose containers may open connections into this one; both are of the shared space. Answers
    /// to what is opened pass, and nothing else does.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub allow: BTreeSet<NetworkName>,
}

/// Which names get a reservation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sticky {
    /// Every workload that has a name.
    Always,
    /// Names that end in `-<ordinal>`, and those for which it is asked.
    #[default]
    Auto,
    /// None, also if it is asked for.
    Never,
}

/// Whether a pool gives new addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PoolState {
    /// It does.
    #[default]
    Active,
    /// It gives none; reservations keep theirs and come back to them.
    Draining,
}

/// Who may use a pool without naming it; each part that is not empty must match. All empty: everybody, after
/// every pool that has a rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Select {
    /// Workloads of one of these namespaces.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub namespaces: BTreeSet<Namespace>,
    /// Workloads whose name matches one of these patterns.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub names: BTreeSet<NameGlob>,
    /// Workloads on hosts that have all of these labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[serde(deserialize_with = "crate::limits::labels")]
    pub host_labels: BTreeMap<LabelKey, String>,
}

impl Select {
    /// Whether there is no rule, so that the pool is its network's default.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.namespaces.is_empty() && self.names.is_empty() && self.host_labels.is_empty()
    }
}

/// A pool to create.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolSpec {
    /// The network that it belongs to.
    pub network: NetworkName,
    /// Its addresses, of one family: `10.32.0.0/16` or `10.32.0.10..10.32.0.99`.
    pub range: Range,
    /// Addresses of the range that are never given out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<Range>,
    /// How many addresses a block has: a power of two from 1 to 65536; 64 if left out. It cannot be changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_size: Option<u32>,
    /// Which names get a reservation.
    #[serde(default)]
    pub sticky: Sticky,
    /// How long an automatic reservation outlives its last attachment; `7d` if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
    /// How long a released address is avoided; `60s` if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cooldown: Option<Span>,
    /// How long a host must have been silent before another may take its containers' reserved addresses over, or
    /// `never`; `60s` if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub takeover_after: Option<After>,
    /// Who may use it without naming it.
    #[serde(default, skip_serializing_if = "Select::is_empty")]
    pub select: Select,
    /// Of several pools that may be used, the one of the highest priority is.
    #[serde(default)]
    pub priority: i32,
}

/// What to change of a pool; its network and block size are fixed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolChange {
    /// Its addresses: more, or fewer where nobody has one of those that it would lose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<Range>,
    /// Addresses of the range that are never given out from now on; who has one keeps it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exclude: Option<Vec<Range>>,
    /// Which names get a reservation from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sticky: Option<Sticky>,
    /// How long automatic reservations made from now on outlive their last attachment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
    /// How long a released address is avoided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cooldown: Option<Span>,
    /// How long a host must have been silent before another may take its containers' reserved addresses over, or
    /// `never`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub takeover_after: Option<After>,
    /// Who may use it without naming it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub select: Option<Select>,
    /// Its priority among pools that may be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
    /// Whether it gives new addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<PoolState>,
}

/// A pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// Its name.
    pub name: PoolName,
    /// The network that it belongs to.
    pub network: NetworkName,
    /// Its addresses.
    pub range: Range,
    /// Addresses of the range that are never given out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<Range>,
    /// How many addresses a block has.
    pub block_size: u32,
    /// Which names get a reservation.
    pub sticky: Sticky,
    /// How long an automatic reservation outlives its last attachment.
    pub retention: Retention,
    /// How long a released address is avoided.
    pub cooldown: Span,
    /// How long a host must have been silent before another may take its containers' reserved addresses over.
    #[serde(default = "default_takeover_after")]
    pub takeover_after: After,
    /// Who may use it without naming it.
    #[serde(default, skip_serializing_if = "Select::is_empty")]
    pub select: Select,
    /// Its priority among pools that may be used.
    pub priority: i32,
    /// Whether it gives new addresses.
    pub state: PoolState,
}

/// For pools that an earlier version has written.
fn default_takeover_after() -> After {
    DEFAULT_TAKEOVER_AFTER
}

impl Pool {
    /// The family of its addresses.
    #[must_use]
    pub fn family(&self) -> Family {
        self.range.family()
    }
}

/// A pool and how its addresses are used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolUse {
    /// The pool.
    #[serde(flatten)]
    pub pool: Pool,
    /// Its addresses, counted.
    pub usage: Usage,
}

/// Addresses of a pool, counted; each is in one of the last four or excluded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Those that can be given out at all. At most 2^64-1 is shown.
    pub size: u64,
    /// Held by an attachment.
    pub held: u64,
    /// Reserved and not held.
    pub reserved: u64,
    /// Released a short while ago.
    pub cooling: u64,
    /// Free, cooling ones not counted.
    pub free: u64,
    /// Blocks that belong to hosts.
    pub blocks: u64,
}

/// What a host is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// It runs containers.
    Node,
    /// A physical host that joins the overlay.
    Member,
    /// It joins the overlay to networks whose machines have not joined.
    Gateway,
}

impl Role {
    /// The name on the wire and in the CLI.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Member => "member",
            Self::Gateway => "gateway",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A text names no role.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a role: node, member or gateway")]
pub struct RoleError(pub String);

impl FromStr for Role {
    type Err = RoleError;

    fn from_str(text: &str) -> Result<Self, RoleError> {
        [Self::Node, Self::Member, Self::Gateway]
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| RoleError(text.chars().take(40).collect()))
    }
}

/// A host to create before its agent joins; a host that joins unannounced is created with what its agent asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostSpec {
    /// What it is for; `node` if left out.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub roles: BTreeSet<Role>,
    /// Its labels, which pools can select; a value has at most 253 characters.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[serde(deserialize_with = "crate::limits::labels")]
    pub labels: BTreeMap<LabelKey, String>,
    /// The prefixes behind it, if it is a gateway.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub external: BTreeSet<Prefix>,
    /// The networks that it is a member of; every network of the shared address space if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub networks: Option<BTreeSet<NetworkName>>,
}

/// What to change of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostChange {
    /// What it is for; at least one role.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub roles: Option<BTreeSet<Role>>,
    /// Its labels, all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[serde(deserialize_with = "crate::limits::labels_if_any")]
    pub labels: Option<BTreeMap<LabelKey, String>>,
    /// The prefixes behind it, all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<BTreeSet<Prefix>>,
    /// The networks that it is a member of, all of them; `null` for every network of the shared address space.
    #[serde(default, skip_serializing_if = "Change::is_keep")]
    pub networks: Change<BTreeSet<NetworkName>>,
    /// Whether it was installed anew or replaced: whichever installation joins next is the host from then on, and
    /// ends what the earlier one had. Refused while the host is alive.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reinstalled: bool,
}

/// A host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Its name.
    pub name: HostName,
    /// What it is for.
    pub roles: BTreeSet<Role>,
    /// Its labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<LabelKey, String>,
    /// The prefixes behind it, if it is a gateway.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub external: BTreeSet<Prefix>,
    /// The networks that it is a member of, if that is not every network of the shared address space. It has no
    /// device of any other, and nobody of another reaches it by the overlay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub networks: Option<BTreeSet<NetworkName>>,
    /// The MAC address of its VTEPs, derived from its name.
    pub vtep_mac: Mac,
    /// The address that its VXLAN packets come from and go to; none before its agent has joined.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub underlay: Option<IpAddr>,
    /// Its global addresses, the primary one of each family first; containers reach it at each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
}

impl Host {
    /// Whether it has `role`.
    #[must_use]
    pub fn is(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }

    /// Whether it is a member of `network`.
    #[must_use]
    pub fn is_member_of(&self, network: &Network) -> bool {
        self.networks
            .as_ref()
            .map_or(!network.own_space, |networks| networks.contains(&network.name))
    }

    /// Its primary address of a family: the source of what it sends into the overlay.
    #[must_use]
    pub fn primary(&self, family: Family) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|&address| Family::of(address) == family)
    }
}

/// A host, and what the controller knows of its agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostStatus {
    /// The host.
    #[serde(flatten)]
    pub host: Host,
    /// Whether its agent was heard of within the lease.
    pub alive: bool,
    /// How long ago its agent was heard of, if this controller has heard of it since it started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<Span>,
    /// For how long no controller has heard of it, in fleet time, if it is silent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silent: Option<Span>,
    /// How many attachments it has.
    pub attachments: u64,
    /// The agent's version, if it has joined.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json, to_value};

    use super::*;

    #[test]
    fn what_an_older_version_wrote_is_of_the_shared_space_and_its_hosts_are_members_of_that() {
        let old = json!({ "name": "blue", "vni": 7, "index": 1, "port": 4789 });
        let shared: Network = from_value(old.clone()).unwrap();
        let own = Network { own_space: true, name: "red".parse().unwrap(), ..shared.clone() };
        assert_eq!(to_value(&shared).unwrap(), old, "and it can read what is written now");
        let old = json!({ "name": "a", "roles": ["node"], "vtep_mac": "02:00:00:00:00:01" });
        let mut host: Host = from_value(old.clone()).unwrap();
        assert_eq!(to_value(&host).unwrap(), old);
        assert!(host.is_member_of(&shared) && !host.is_member_of(&own));
        host.networks = Some([own.name.clone()].into());
        assert!(!host.is_member_of(&shared) && host.is_member_of(&own));
    }
}

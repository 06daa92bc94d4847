//! Pure: what agents and controllers say to each other: sessions, claims, asks and the watch.

use std::collections::BTreeSet;
use std::net::IpAddr;

use limpet_net_types::{
    ContainerId, HostName, IfName, Mac, Namespace, NetworkName, PoolName, Prefix, RuntimeName,
    Token, Uid, WorkloadName,
};
use serde::{Deserialize, Serialize};

use crate::book::{Attachment, AttachmentRef, EndReason};
use crate::config::{Host, Network, Pool, Role};
pub use crate::living::{
    Finding, FindingKind, MOST_FINDINGS, ReassertOutcome, ReassertRequest, ReassertResult,
    Reasserted, Report, ReportWanted,
};
use crate::{FleetTime, Revision};

/// How often an agent says that it is alive, in seconds.
pub const HEARTBEAT_SECONDS: u64 = 5;

/// How long a host counts as alive after it was heard of, in seconds.
pub const LEASE_SECONDS: u64 = 15;

/// How long a claim waits for another host to give an attachment up, in seconds.
pub const ASK_SECONDS: u64 = 5;

/// An agent joins its host, again after every start and whenever what it says here has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionRequest {
    /// The installation: made once, on the host's disk. Two hosts with one are clones.
    pub install: Token,
    /// The boot: made anew whenever the host starts.
    pub boot: Token,
    /// The address that its VXLAN packets come from and go to.
    pub underlay: IpAddr,
    /// Its global addresses, the primary one of each family first.
    pub addresses: Vec<IpAddr>,
    /// The prefixes on its own links, of its underlay first of all: what it reaches without a router, so that no
    /// pool may have an address of them.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub on_link: BTreeSet<Prefix>,
    /// The roles that it asks for; they count at its first join only, afterwards an operator decides.
    #[serde(default)]
    pub roles: BTreeSet<Role>,
    /// The prefixes behind it; they count at its first join only.
    #[serde(default)]
    pub external: BTreeSet<Prefix>,
    /// The agent's version, for people.
    pub version: String,
}

/// The host has joined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// What every request in the host's name carries from now on; those of earlier sessions are refused.
    pub session: Token,
    /// The host as it stands in the store.
    pub host: Host,
    /// The store: a new one after a restore.
    pub store: Token,
    /// The revision of the transaction that opened the session.
    pub revision: Revision,
}

/// The agent is alive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Heartbeat {
    /// Its session.
    pub session: Token,
}

/// What a container's interface is to be given; the plugin's words, passed on by the agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// The label of the runtime that asks.
    #[serde(default)]
    pub runtime: RuntimeName,
    /// The path of the container's network namespace: at most 4096 bytes, none of them of a control character.
    #[serde(deserialize_with = "crate::limits::netns")]
    pub netns: String,
    /// The workload's namespace; `_` if left out.
    #[serde(default)]
    pub namespace: Namespace,
    /// The workload's name; without one nothing is sticky.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<WorkloadName>,
    /// The pools to take the addresses from, at most one of a family.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pools: Vec<PoolName>,
    /// These addresses and no others, at most one of a family.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// This MAC address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    /// Whether to reserve the addresses for the name; the pool's rule if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sticky: Option<bool>,
}

/// A host claims addresses for an interface: PUT on the attachment's path. Repeated with the same uid it has
/// the same answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClaimRequest {
    /// The host's session.
    pub session: Token,
    /// The incarnation that the agent made for this ADD.
    pub uid: Uid,
    /// What the interface is to be given.
    pub wanted: Wanted,
}

/// The addresses are held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claimed {
    /// The attachment.
    pub attachment: Attachment,
    /// Its network.
    pub network: Network,
    /// The revision of the transaction that answered.
    pub revision: Revision,
}

/// A host ends an attachment: the query of DELETE on the attachment's path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndRequest {
    /// The host's session.
    pub session: Token,
    /// The incarnation to end; another one is left alone, and that is a success.
    pub uid: Uid,
    /// Why: `detached`, `gone`, `superseded` or `forced`.
    #[serde(default, skip_serializing_if = "EndReason::is_detached")]
    pub reason: EndReason,
}

/// The attachment is ended, or was before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// The revision of the transaction that answered.
    pub revision: Revision,
}

/// An agent says that the attachment it was asked about is there: POST on the ask's path. If it is not,
/// the agent ends the attachment instead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PresentRequest {
    /// The host's session.
    pub session: Token,
}

/// How long a question counts, in seconds of fleet time: longer than whoever asks waits for the answer.
pub const ASK_KEPT_SECONDS: u64 = 60;

/// A question to a host: is the container of this attachment there? If not, end it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// The attachment in question.
    pub attachment: AttachmentRef,
    /// Whether the host has said that it is there.
    #[serde(default)]
    pub present: bool,
    /// An operator wants it ended also if it is there: take its interface out of use, then end it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
    /// When it was asked last.
    #[serde(default)]
    pub asked: FleetTime,
}

/// A part of a pool that belongs to one host: one route of every other host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// The pool.
    pub pool: PoolName,
    /// The pool's network.
    pub network: NetworkName,
    /// Its addresses.
    pub prefix: Prefix,
    /// The host.
    pub host: HostName,
}

/// An address that is not in a block of the host that it is on: one more route of every other host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stray {
    /// The network.
    pub network: NetworkName,
    /// The address.
    pub address: IpAddr,
    /// The host that it is on.
    pub host: HostName,
}

/// One line of the watch: all that one revision changed for this host, whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchLine {
    /// The store; another one than before means that revisions have begun anew.
    pub store: Token,
    /// The revision after which the host knows everything up to it.
    pub revision: Revision,
    /// What happened.
    #[serde(flatten)]
    pub event: WatchEvent,
}

/// What a line of the watch tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WatchEvent {
    /// Everything, at this revision: forget what was known.
    Snapshot(Box<Snapshot>),
    /// What this revision changed.
    Changes(Changes),
    /// Nothing new for this host up to this revision.
    Heartbeat {},
}

/// Everything that a host needs to know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// All networks.
    pub networks: Vec<Network>,
    /// All pools.
    pub pools: Vec<Pool>,
    /// All hosts.
    pub hosts: Vec<Host>,
    /// All blocks.
    pub blocks: Vec<Block>,
    /// All strays.
    pub strays: Vec<Stray>,
    /// The host's own attachments.
    pub attachments: Vec<Attachment>,
    /// The questions to it that it has not answered.
    pub asks: Vec<Ask>,
    /// The reports that the controller waits for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reports: Vec<ReportWanted>,
    /// Whether the controller waits for the host to re-assert all that lives on it: the store was restored.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reassert: bool,
}

/// What one revision changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// For every host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shared: Vec<SharedChange>,
    /// For this host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub own: Vec<OwnChange>,
}

/// A change that every host hears of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SharedChange {
    /// A network is new or has changed.
    NetworkSet(Network),
    /// A network is gone.
    NetworkGone(NetworkName),
    /// A pool is new or has changed.
    PoolSet(Pool),
    /// A pool is gone.
    PoolGone(PoolName),
    /// A host is new or has changed.
    HostSet(Host),
    /// A host is gone.
    HostGone(HostName),
    /// A block has an owner, or another one.
    BlockSet(Block),
    /// A block is free.
    BlockGone {
        /// The pool.
        pool: PoolName,
        /// The block.
        prefix: Prefix,
    },
    /// An address is outside its host's blocks, or on another host than before.
    StraySet(Stray),
    /// An address is no stray any more.
    StrayGone {
        /// The network.
        network: NetworkName,
        /// The address.
        address: IpAddr,
    },
}

/// A change that only the host it is about hears of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OwnChange {
    /// An attachment of this host is new or has changed.
    AttachmentSet(Attachment),
    /// An attachment of this host has ended.
    AttachmentGone {
        /// The network.
        network: NetworkName,
        /// The container.
        container: ContainerId,
        /// The interface.
        ifname: IfName,
        /// The incarnation that has ended.
        uid: Uid,
    },
    /// The host is asked about an attachment.
    AskSet(Ask),
    /// The question is settled.
    AskGone(Uid),
    /// The host is asked where its kernel differs from the store.
    ReportWanted(ReportWanted),
    /// That report is not waited for any more.
    ReportGone(Token),
}

/// The query of the watch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WatchQuery {
    /// The store and the revision that the host knows: go on from there. A snapshot if left out, or if the
    /// changes since are no longer kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<Token>,
    /// The last revision that the host knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Revision>,
}

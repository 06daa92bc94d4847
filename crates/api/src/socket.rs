//! Pure: what the CNI plugin and its host's agent say to each other, over a unix socket.
//!
//! The plugin names the attachment by network, container and interface; the agent knows the host. PUT takes
//! [`Wanted`](crate::host::Wanted) and answers [`Attach`]; the plugin then makes the interface and confirms over the same
//! connection. While that connection is open, the agent says of the attachment that it is there.

use std::net::IpAddr;

use limpet_net_types::{
    ContainerId, HostName, IfName, Mac, Mtu, NetworkName, Prefix, RuntimeName, Token, Uid,
};
use serde::{Deserialize, Serialize};

use crate::Revision;
use crate::book::{Attachment, AttachmentKey};

/// All that the plugin needs to make an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// The attachment: uid, addresses, MAC address.
    pub attachment: Attachment,
    /// The MTU of both ends of the veth pair.
    pub mtu: Mtu,
    /// The name of the host's end.
    pub host_ifname: String,
    /// The interface group of the host's end.
    pub group: u32,
    /// The MAC address of the host's end.
    pub gateway_mac: Mac,
    /// The gateway of the container's default route, one for each family of its addresses, in their order.
    pub gateways: Vec<IpAddr>,
    /// The source of what the host itself sends to the container, for each of its addresses, where the host
    /// has one of the family.
    pub sources: Vec<Option<IpAddr>>,
    /// The routing table of the host's routes to the network's containers.
    pub table: u32,
    /// The addresses of the network's pools: where an interface leads that has not the container's default route.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pools: Vec<Prefix>,
    /// The network's VXLAN device on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The nftables table, of family `inet`, that keeps containers to their own addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// Why the controller may know otherwise: it does not answer now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub doubt: Option<crate::ApiError>,
}

/// The interface is up: POST on the attachment's path and `/confirm`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfirmRequest {
    /// The incarnation that was made.
    pub uid: Uid,
}

/// The query of DELETE on the attachment's path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DetachQuery {
    /// The incarnation, where the plugin could read it from the interface; whatever there is if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<Uid>,
}

/// The answer to DELETE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Detached {
    /// The attachment is ended, or there was none.
    Ended,
    /// The controller is away; the agent ends it when it is back.
    Later,
}

/// The attachments that a runtime still knows of; all others of that runtime and network are to be ended, as
/// far as the agent sees for itself that they are gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GcRequest {
    /// The network.
    pub network: NetworkName,
    /// The runtime that speaks.
    pub runtime: RuntimeName,
    /// What it still knows of.
    pub valid: Vec<ValidAttachment>,
}

/// One attachment that a runtime still knows of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ValidAttachment {
    /// The container.
    pub container: ContainerId,
    /// The interface inside it.
    pub ifname: IfName,
}

/// What garbage collection did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GcAnswer {
    /// Attachments that were ended.
    pub ended: Vec<ValidAttachment>,
    /// Attachments that the runtime does not know of and that are there all the same: left alone.
    pub present: Vec<ValidAttachment>,
}

/// Whether the agent can serve an ADD on a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    /// What stands in the way; nothing if an ADD can be served.
    pub problems: Vec<Problem>,
}

/// One thing that is wrong on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What is wrong, with its code.
    pub error: crate::ApiError,
    /// Whether containers that run may have lost connectivity too.
    pub connectivity: bool,
}

/// How things stand with the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// The host that it is the agent of.
    pub host: HostName,
    /// The controller that it asks.
    pub controller: String,
    /// Whether the host has joined.
    pub joined: bool,
    /// The store and the revision of it that the agent knows, once it knows one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<Token>,
    /// The last revision of the store that it knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<Revision>,
    /// Set while all that it knows is from its disk: no controller has told it of everything since it started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotUse>,
    /// How many attachments the host has.
    pub attachments: usize,
    /// The containers that were taken off the network because their addresses are not theirs any more.
    pub severed: Vec<SeveredContainer>,
    /// How many were since the agent started.
    pub severed_ever: u64,
    /// What is wrong, as sentences.
    pub problems: Vec<String>,
}

/// What an agent knows from its disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotUse {
    /// How old it is, in seconds, by the host's clock.
    pub age_seconds: u64,
    /// Whether the kernel goes by it; if not, it stays as it is, and the problems say why.
    pub followed: bool,
}

/// A container that was taken off the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeveredContainer {
    /// Its incarnation.
    pub uid: Uid,
    /// The host's end of its veth pair.
    pub ifname: String,
    /// The attachment that it was, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attachment: Option<AttachmentKey>,
    /// Why.
    pub why: String,
}

/// What the agent would do to the kernel now, if it were to do it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The steps in their order, as commands; none if the kernel is right.
    pub commands: Vec<String>,
}

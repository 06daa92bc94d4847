//! Pure: reservations and attachments: which name keeps which addresses, and which container holds them now.

use std::fmt;
use std::net::IpAddr;

use limpet_net_types::{
    ContainerId, HostName, IfName, Mac, Namespace, NetworkName, PoolName, RuntimeName, Token, Uid,
    WorkloadName,
};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::fields::{Fields, RefFields};
use crate::{FleetTime, Retention, WallTime};

/// An address and the pool that it came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The address.
    pub address: IpAddr,
    /// The pool.
    pub pool: PoolName,
}

/// The addresses of one name or interface: one of each family at most, so that two have room in place.
pub type Addresses = SmallVec<[Held; 2]>;

/// Who made a reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// limpet, when the name's container was attached first.
    Automatic,
    /// An operator.
    Operator,
}

/// A reservation to create: the addresses that a name is to have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReservationSpec {
    /// The addresses wanted, at most one of a family; the pools choose where one is missing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// The pools to choose from, at most one of a family; those that would serve the name if left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pools: Vec<PoolName>,
    /// The MAC address that the name's interface is to have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    /// How long it outlives its last attachment; `forever` if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
}

/// What to change of a reservation; its addresses are fixed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReservationChange {
    /// How long it outlives its last attachment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Retention>,
}

/// The name that a reservation is to be for from now on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rename {
    /// The workload's namespace; `_` if it has none.
    pub namespace: Namespace,
    /// The workload's name.
    pub name: WorkloadName,
}

/// The addresses that a name keeps, whether a container has them just now or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// The network.
    pub network: NetworkName,
    /// The workload's namespace; `_` if it has none.
    pub namespace: Namespace,
    /// The workload's name.
    pub name: WorkloadName,
    /// Its addresses, one of each family that the network has, IPv4 first.
    pub addresses: Addresses,
    /// The MAC address of the workload's interface.
    pub mac: Mac,
    /// How long it outlives its last attachment.
    pub retention: Retention,
    /// Who made it.
    pub origin: Origin,
    /// The attachment that holds the addresses now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attachment: Option<Box<AttachmentRef>>,
    /// The host that the name's container was on last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_host: Option<HostName>,
    /// When the last attachment ended; none while there is one and before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detached_at: Option<FleetTime>,
    /// When it was made; unknown of what earlier versions made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<FleetTime>,
}

/// What identifies an attachment in the fleet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttachmentKey {
    /// The host that it is on.
    pub host: HostName,
    /// The network.
    pub network: NetworkName,
    /// The container.
    pub container: ContainerId,
    /// The interface inside the container.
    pub ifname: IfName,
}

/// One incarnation of an attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "RefFields", into = "RefFields")]
pub struct AttachmentRef {
    /// Which attachment.
    pub key: AttachmentKey,
    /// Which incarnation of it.
    pub uid: Uid,
}

/// An interface of a container that holds addresses now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Fields", into = "Fields")]
pub struct Attachment {
    /// Host, network, container and interface.
    pub key: AttachmentKey,
    /// Its incarnation.
    pub uid: Uid,
    /// The host's boot in which it was made.
    pub boot: Token,
    /// The workload's namespace; `_` if it has none.
    pub namespace: Namespace,
    /// The workload's name; the container's ID if it has none.
    pub name: WorkloadName,
    /// Whether a reservation keeps its addresses when it ends.
    pub sticky: bool,
    /// Its addresses, one of each family that the network has, IPv4 first.
    pub addresses: Addresses,
    /// The MAC address of its interface.
    pub mac: Mac,
    /// The label of the runtime that asked for it.
    pub runtime: RuntimeName,
    /// The path of the container's network namespace on its host.
    pub netns: Box<str>,
    /// When it was made.
    pub created: FleetTime,
    /// When it was made by the clock of the controller that decided; unknown of what earlier versions made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_wall: Option<WallTime>,
}

/// Why an attachment ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndReason {
    /// Its runtime said so: DEL.
    #[default]
    Detached,
    /// Its host found it gone: by garbage collection, by its own comparison, or when it was asked.
    Gone,
    /// An earlier boot or installation of its host had made it.
    Superseded,
    /// An operator ended it although its container was there, or its host was silent.
    Forced,
    /// Its host was silent, and another one took its addresses over.
    TakenOver,
    /// An operator removed its host.
    HostRemoved,
    /// Its host was silent for longer than the controllers are told to wait.
    HostSilent,
}

impl EndReason {
    /// The name on the wire and in the CLI.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Detached => "detached",
            Self::Gone => "gone",
            Self::Superseded => "superseded",
            Self::Forced => "forced",
            Self::TakenOver => "taken-over",
            Self::HostRemoved => "host-removed",
            Self::HostSilent => "host-silent",
        }
    }

    /// Whether a host's agent may give it as its reason; the others are the controller's.
    #[must_use]
    pub fn is_of_agents(self) -> bool {
        matches!(self, Self::Detached | Self::Gone | Self::Superseded | Self::Forced)
    }

    /// Whether a runtime has sent DEL, which needs no mention.
    #[must_use]
    pub fn is_detached(&self) -> bool {
        *self == Self::Detached
    }
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Who ended an attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndedBy {
    /// This host's agent; not its own host's if the addresses were taken over.
    Host(HostName),
    /// An operator.
    Operator,
    /// A controller, by itself.
    Controller,
}

/// How an operator ends an attachment: the query of DELETE on its path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseRequest {
    /// Also if its container is there: its host takes the interface out of use first.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
    /// Without its host, which is down. Refused while the host is alive.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub host_is_down: bool,
}

/// How far the removal of a host has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Swept {
    /// How many attachments were ended.
    pub ended: u64,
    /// How many there are still.
    pub left: u64,
}

/// The outcome of a release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Released {
    /// The addresses that are free, or back with their reservation, from now on.
    pub addresses: Vec<IpAddr>,
    /// The revision of the transaction that did it.
    pub revision: crate::Revision,
}

//! Pure: history: which container had which addresses when, on which host, and how it ended.

use std::net::IpAddr;

use limpet_net_types::{HostName, Mac, Namespace, NetworkName, RuntimeName, Uid, WorkloadName};
use serde::{Deserialize, Serialize};

use crate::book::{Addresses, Attachment, AttachmentKey, EndReason, EndedBy};
use crate::{FleetTime, WallTime};

/// The time for which an attachment held its addresses.
///
/// Times are there twice: fleet time, by which records grow old, and what the clock of the controller that
/// decided said, by which people search.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tenure {
    /// Host, network, container and interface.
    #[serde(flatten)]
    pub key: AttachmentKey,
    /// The attachment's incarnation.
    pub uid: Uid,
    /// The workload's namespace; `_` if it had none.
    pub namespace: Namespace,
    /// The workload's name; the container's ID if it had none.
    pub name: WorkloadName,
    /// Whether a reservation kept its addresses.
    pub sticky: bool,
    /// Its addresses, IPv4 first.
    pub addresses: Addresses,
    /// The MAC address of its interface.
    pub mac: Mac,
    /// The label of the runtime that asked for it.
    pub runtime: RuntimeName,
    /// When it began, in fleet time.
    pub from: FleetTime,
    /// When it began by the clock of the controller that decided; unknown of what earlier versions made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_wall: Option<WallTime>,
    /// How it ended; none while it goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<TenureEnd>,
}

/// When, why and by whom a tenure was ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenureEnd {
    /// When, in fleet time.
    pub at: FleetTime,
    /// When, by the clock of the controller that decided.
    pub wall: WallTime,
    /// Why.
    pub reason: EndReason,
    /// By whom.
    pub by: EndedBy,
}

impl Tenure {
    /// The tenure of an attachment, up to `end` or until now.
    #[must_use]
    pub fn of(attachment: &Attachment, end: Option<TenureEnd>) -> Self {
        Self {
            key: attachment.key.clone(),
            uid: attachment.uid,
            namespace: attachment.namespace.clone(),
            name: attachment.name.clone(),
            sticky: attachment.sticky,
            addresses: attachment.addresses.clone(),
            mac: attachment.mac,
            runtime: attachment.runtime.clone(),
            from: attachment.created,
            from_wall: attachment.created_wall,
            end,
        }
    }
}

/// Which tenures are asked for: those that fit everything that is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HistoryQuery {
    /// Those with this address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Those of workloads of this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<WorkloadName>,
    /// Those of workloads of this namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Namespace>,
    /// Those on this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostName>,
    /// Those in this network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkName>,
    /// Those that had not ended before this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<WallTime>,
    /// Those that had begun by this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<WallTime>,
    /// At most this many that have ended, 1 to 1000; 100 if left out. An answer may have fewer and a `next` all
    /// the same. Those that go on are in the first answer, however many they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Go on after an answer that had this as its `next`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

impl HistoryQuery {
    /// Whether a tenure is asked for, whichever page it is on.
    ///
    /// One that began before times were noted counts as begun by any time. Both ends belong to a tenure: the
    /// clocks of the controllers that noted them may differ by more than the second between two.
    #[must_use]
    pub fn fits(&self, tenure: &Tenure) -> bool {
        fn is<T: PartialEq>(wanted: Option<&T>, found: &T) -> bool {
            wanted.is_none_or(|wanted| wanted == found)
        }
        let had = |address: &IpAddr| tenure.addresses.iter().any(|held| held.address == *address);
        let ended = tenure.end.as_ref().map(|end| end.wall);
        self.address.as_ref().is_none_or(had)
            && is(self.name.as_ref(), &tenure.name)
            && is(self.namespace.as_ref(), &tenure.namespace)
            && is(self.host.as_ref(), &tenure.key.host)
            && is(self.network.as_ref(), &tenure.key.network)
            && self.since.is_none_or(|since| ended.is_none_or(|ended| ended >= since))
            && self.until.is_none_or(|until| tenure.from_wall.is_none_or(|from| from <= until))
    }
}

/// A part of history: what goes on first, then what ended, the latest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// The tenures.
    pub items: Vec<Tenure>,
    /// What to go on after; none if this was all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// The revision at which it was looked for.
    pub revision: crate::Revision,
}

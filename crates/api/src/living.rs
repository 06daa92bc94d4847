//! Pure: what an agent says of its own host beside claims: what lives there, and where store and kernel differ.

use limpet_net_types::{Token, Uid};
use serde::{Deserialize, Serialize};

use crate::Revision;
use crate::book::{Attachment, AttachmentKey, AttachmentRef};
use crate::doctor::Health;

/// A host re-asserts what lives on it and is missing from the store, after a restore of the store perhaps: POST on
/// the host's path and `/reassert`. Repeating it changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReassertRequest {
    /// The host's session.
    pub session: Token,
    /// Attachments as they were answered to the host, each of a container that is there now.
    pub attachments: Vec<Attachment>,
    /// Whether this is everything that lives on the host: nothing else of it needs to be waited for.
    #[serde(default)]
    pub complete: bool,
    /// All that lives on the host, or is just being made there, if it is told in several requests: the last one names
    /// only a part of it. Each of them has it, so that others who wait for this host need not wait for the last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub living: Vec<Uid>,
}

/// What has become of what was re-asserted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reasserted {
    /// One for each attachment of the request, in its order.
    pub results: Vec<ReassertResult>,
    /// The revision of the last of the transactions that answered.
    pub revision: Revision,
}

/// What has become of one attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReassertResult {
    /// Its incarnation.
    pub uid: Uid,
    /// What has become of it.
    pub outcome: ReassertOutcome,
    /// The revision at which that is so: it may have ended since, and before the revision of the whole answer. An
    /// earlier controller does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<Revision>,
}

/// What has become of one attachment that a host re-asserted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReassertOutcome {
    /// The store has it: it never lost it.
    Kept,
    /// The store has it again, with the same addresses.
    Restored,
    /// It cannot have its addresses any more: the host takes its container off the network.
    Severed {
        /// The attachment that has one of its addresses now, if it is for that.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        holder: Option<AttachmentRef>,
        /// Why, as a clause: who has the address, or that its network is gone.
        why: String,
    },
}

/// The controller wants to know where store and kernel of this host differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportWanted {
    /// Which question this is; the report names it.
    pub id: Token,
    /// Whether the host is to repair first what it can.
    #[serde(default)]
    pub repair: bool,
}

/// Where store and kernel of a host differ: POST on the host's path and `/report`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// The host's session.
    pub session: Token,
    /// The question that this answers.
    pub id: Token,
    /// The revision of the state that the kernel was held against.
    pub revision: Revision,
    /// The differences; none if the kernel is as it should be. At most [`MOST_FINDINGS`].
    pub findings: Vec<Finding>,
    /// How many more there are.
    #[serde(default)]
    pub more: u64,
    /// How the host is otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Box<Health>>,
}

/// The most findings of one report: what is wrong a thousand times is wrong for one reason.
pub const MOST_FINDINGS: usize = 1000;

/// One difference between store and kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Of which kind it is.
    pub kind: FindingKind,
    /// The attachment that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attachment: Option<AttachmentKey>,
    /// The incarnation that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<Uid>,
    /// The interface of the host that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ifname: Option<String>,
    /// What is wrong, as a clause.
    pub what: String,
    /// What would repair it, as a clause.
    pub repair: String,
}

/// Of which kind a difference is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum FindingKind {
    /// The store has an attachment whose interface is not there.
    AttachmentWithoutInterface,
    /// A container's interface is there that the store has no attachment for.
    InterfaceWithoutAttachment,
    /// A container was taken off the network because its addresses are another's.
    InterfaceSevered,
    /// A container has no route.
    RouteMissing,
    /// A route leads to a container's interface that should not.
    RouteExtra,
    /// A network's device is missing.
    DeviceMissing,
    /// The kernel is otherwise not as it should be.
    KernelDiffers,
    /// Something cannot be laid out on this host.
    NotLaidOut,
    /// One that this version does not know: the host's is newer.
    #[serde(other)]
    Unknown,
}

impl FindingKind {
    /// The name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AttachmentWithoutInterface => "attachment-without-interface",
            Self::InterfaceWithoutAttachment => "interface-without-attachment",
            Self::InterfaceSevered => "interface-severed",
            Self::RouteMissing => "route-missing",
            Self::RouteExtra => "route-extra",
            Self::DeviceMissing => "device-missing",
            Self::KernelDiffers => "kernel-differs",
            Self::NotLaidOut => "not-laid-out",
            Self::Unknown => "unknown",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_on_the_wire_what_it_is_called() {
        use FindingKind as K;
        for kind in [
            K::AttachmentWithoutInterface,
            K::InterfaceWithoutAttachment,
            K::InterfaceSevered,
            K::RouteMissing,
            K::RouteExtra,
            K::DeviceMissing,
            K::KernelDiffers,
            K::NotLaidOut,
            K::Unknown,
        ] {
            let json = serde_json::to_string(&kind).unwrap();
            assert_eq!(json, format!("\"{}\"", kind.as_str()));
            assert_eq!(serde_json::from_str::<K>(&json).unwrap(), kind);
        }
        assert_eq!(serde_json::from_str::<K>("\"of-tomorrow\"").unwrap(), K::Unknown);
    }
}

//! Pure: what `limpetctl check` finds: where the store does not agree with itself, and hosts' kernels not with it.

use limpet_net_types::HostName;
use serde::{Deserialize, Serialize};

use crate::ApiError;
use crate::living::Finding;

/// How long hosts have to say how their kernels are, in seconds.
pub const REPORT_SECONDS: u64 = 10;

/// What to do about what is found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckRequest {
    /// Repair what can be repaired safely, then look again.
    #[serde(default)]
    pub repair: bool,
}

/// In which way the store does not agree with itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum StoreFinding {
    /// Two attachments have one address.
    AddressHeldTwice,
    /// Two reservations have one address.
    AddressReservedTwice,
    /// An address does not say whose it is.
    AddressUnmarked,
    /// An address says that an attachment has it, which has it not.
    AddressWithoutAttachment,
    /// An address says that it is reserved, and no reservation has it.
    AddressWithoutReservation,
    /// An address in use is in no pool.
    AddressOutsidePool,
    /// An attachment counts as reserved and is not.
    StickyWithoutReservation,
    /// A reservation is wrong about whether it is attached.
    ReservationTimes,
    /// An attachment is on a host that there is not.
    AttachmentWithoutHost,
    /// An attachment is to a network that its host is not a member of.
    AttachmentOfNonMember,
    /// A block is of a host or pool that there is not.
    BlockWithoutOwner,
    /// A host without a session counts as silent.
    SilentWithoutSession,
    /// Two attachments of a network have one MAC address.
    MacHeldTwice,
    /// A controller's counters are not what the store has.
    CountersWrong,
    /// One that this version does not know.
    #[serde(other)]
    Unknown,
}

impl StoreFinding {
    /// The name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AddressHeldTwice => "address-held-twice",
            Self::AddressReservedTwice => "address-reserved-twice",
            Self::AddressUnmarked => "address-unmarked",
            Self::AddressWithoutAttachment => "address-without-attachment",
            Self::AddressWithoutReservation => "address-without-reservation",
            Self::AddressOutsidePool => "address-outside-pool",
            Self::StickyWithoutReservation => "sticky-without-reservation",
            Self::ReservationTimes => "reservation-times",
            Self::AttachmentWithoutHost => "attachment-without-host",
            Self::AttachmentOfNonMember => "attachment-of-non-member",
            Self::BlockWithoutOwner => "block-without-owner",
            Self::SilentWithoutSession => "silent-without-session",
            Self::MacHeldTwice => "mac-held-twice",
            Self::CountersWrong => "counters-wrong",
            Self::Unknown => "unknown",
        }
    }
}

/// Something in which the store does not agree with itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inconsistency {
    /// In which way.
    pub kind: StoreFinding,
    /// The store's key that it is about.
    pub subject: String,
    /// What is wrong, as a clause.
    pub what: String,
    /// What would repair it, as a clause.
    pub repair: String,
    /// Whether `limpetctl check --repair` does it.
    pub repairable: bool,
}

/// A line of the answer to a check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckLine {
    /// What is being done: for people who wait.
    Doing(String),
    /// So many repairs of the store were done.
    Repaired(u64),
    /// The store does not agree with itself.
    Store(Inconsistency),
    /// A host's kernel does not agree with the store.
    Host {
        /// The host.
        host: HostName,
        /// In what.
        finding: Finding,
    },
    /// A host has more findings than are listed.
    More {
        /// The host.
        host: HostName,
        /// How many.
        count: u64,
    },
    /// A host did not answer.
    Unchecked(HostName),
    /// The check is over.
    Done {
        /// How many hosts were checked.
        hosts: u64,
    },
    /// It broke off.
    Failed(ApiError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_on_the_wire_what_it_is_called() {
        use StoreFinding as F;
        for kind in [
            F::AddressHeldTwice,
            F::AddressReservedTwice,
            F::AddressUnmarked,
            F::AddressWithoutAttachment,
            F::AddressWithoutReservation,
            F::AddressOutsidePool,
            F::StickyWithoutReservation,
            F::ReservationTimes,
            F::AttachmentWithoutHost,
            F::AttachmentOfNonMember,
            F::BlockWithoutOwner,
            F::SilentWithoutSession,
            F::MacHeldTwice,
            F::CountersWrong,
            F::Unknown,
        ] {
            let json = serde_json::to_string(&kind).unwrap();
            assert_eq!(json, format!("\"{}\"", kind.as_str()));
        }
    }
}

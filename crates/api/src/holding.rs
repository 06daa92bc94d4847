//! Pure: who has which address of a pool, and the release of all that nobody holds.

use std::net::IpAddr;

use limpet_net_types::{Namespace, WorkloadName};
use serde::{Deserialize, Serialize};

use crate::book::AttachmentRef;
use crate::{Revision, Span};

/// Who has an address of a pool: a reservation, an attachment, or both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holding {
    /// The address.
    pub address: IpAddr,
    /// The workload's namespace; `_` if it has none.
    pub namespace: Namespace,
    /// The workload's name; the container's ID if it has none.
    pub name: WorkloadName,
    /// Whether a reservation keeps it when the attachment ends.
    pub reserved: bool,
    /// The attachment that holds it now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attachment: Option<AttachmentRef>,
    /// For how long nobody has held it, or how long ago it was reserved if nobody ever did; none while it is held, and
    /// where it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detached_for: Option<Span>,
}

/// Which page of a pool's addresses is wanted: the query of GET.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HoldingQuery {
    /// How many at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// The last address of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<IpAddr>,
}

/// Which reservations of a pool are to be released: the query of DELETE. Whatever it says, only those that nobody holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolRelease {
    /// Of this namespace only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Namespace>,
    /// Those only that nobody has held for this long, in fleet time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detached_for: Option<Span>,
    /// Say which those are, and release none.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
    /// How many at most; 64 if left out, and never more than 256.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Where to go on: what the answer before gave as `next`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<IpAddr>,
}

/// A reservation that is released, or would be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleasedName {
    /// The workload's namespace; `_` if it has none.
    pub namespace: Namespace,
    /// The workload's name.
    pub name: WorkloadName,
    /// All of its addresses, also those of other pools.
    pub addresses: Vec<IpAddr>,
    /// For how long nobody had held them, as in [`Holding`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detached_for: Option<Span>,
}

/// How far the release of a pool's reservations has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolReleased {
    /// Those that were released, by address; with `dry_run` those that would be.
    pub released: Vec<ReleasedName>,
    /// The last address that was looked at: there may be more after it. None at the pool's end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<IpAddr>,
    /// The newest revision of the transactions that did it.
    pub revision: Revision,
}

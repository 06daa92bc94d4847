//! Pure: quotas: how many addresses a namespace may have.

use limpet_net_types::Namespace;
use serde::{Deserialize, Serialize};

/// A quota to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuotaSpec {
    /// How many addresses the namespace may have, in all networks together; 0 is none.
    pub addresses: u64,
}

/// How many addresses a namespace may have. A namespace without a quota may have any number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// The namespace; `_` is that of workloads that have none.
    pub namespace: Namespace,
    /// How many addresses it may have, in all networks together.
    pub addresses: u64,
}

/// A quota, and how much of it is used.
///
/// More than the quota is used where it was set below what there was: nothing is taken away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuotaUse {
    /// The quota.
    #[serde(flatten)]
    pub quota: Quota,
    /// How many addresses attachments hold.
    pub held: u64,
    /// How many are reserved and not held.
    pub reserved: u64,
}

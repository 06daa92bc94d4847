//! Pure: backup and restore of the store: what the controller says of a restore, and whom it waits for after one.

use std::collections::BTreeSet;

use limpet_net_types::{HostName, Token};
use serde::{Deserialize, Serialize};

use crate::{ApiError, FleetTime, Span};

/// Why hosts have to say what lives on them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestoreCause {
    /// An operator restored a backup.
    #[default]
    Restored,
    /// A host knew a revision that the store had not reached: it was set back behind the controllers' back.
    SetBack,
}

/// That the store was restored, as it is kept there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// When: whatever was made at this time or later was made afterwards.
    pub at: FleetTime,
    /// How.
    #[serde(default)]
    pub cause: RestoreCause,
    /// How many hosts had to say what lives on them.
    pub hosts: u64,
    /// Those that have not yet; nothing is newly given until there are none.
    pub waiting: BTreeSet<HostName>,
    /// Those of them that have said it, but whose attachments are not all sorted out.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub spoken: BTreeSet<HostName>,
}

/// That a restore is under way, as it is kept in the store: until it is over, nothing else is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restoring {
    /// Which attempt it is: an earlier one writes nothing any more.
    pub attempt: Token,
    /// The checksum of the file; empty while the store only waits for one.
    pub sha256: String,
    /// How many keys it has.
    pub keys: u64,
    /// Whether what it wrote is being deleted instead.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub discarding: bool,
}

impl Restoring {
    /// Whether nothing has begun yet: the store waits for a backup, and does nothing else.
    #[must_use]
    pub fn is_awaited(&self) -> bool {
        self.sha256.is_empty()
    }
}

/// What becomes of a restore: the answer to GET.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreStatus {
    /// The store.
    pub store: Token,
    /// Fleet time now.
    pub now: FleetTime,
    /// What is in the store, if anything: a backup is restored into an empty one only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holds: Option<String>,
    /// The restore that is under way, or that broke off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restoring: Option<Restoring>,
    /// The last restore, and whom it waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored: Option<Restored>,
}

impl RestoreStatus {
    /// How long hosts have been waited for, in fleet time.
    #[must_use]
    pub fn waited(&self) -> Option<Span> {
        let at = self.restored.as_ref()?.at;
        Some(Span::from_seconds(self.now.0.saturating_sub(at.0)))
    }
}

/// Hosts that are not to be waited for: POST.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Waive {
    /// The hosts.
    pub hosts: Vec<HostName>,
}

/// A line of the answer to a restore, once the file was found to be good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestoreLine {
    /// So much of it is in the store.
    Written {
        /// Keys that are there.
        keys: u64,
        /// Keys that will be there.
        of: u64,
    },
    /// All of it is.
    Done(Box<RestoreStatus>),
    /// It broke off; repeating it goes on.
    Failed(ApiError),
}

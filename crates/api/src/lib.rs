//! Pure: the HTTP API of limpet: paths, requests, answers and error codes; clients behind a feature.
//!
//! JSON over HTTP/1.1 below `/v1`. Requests refuse unknown fields, so that a misspelt one is not lost in silence;
//! answers may grow, so readers ignore what they do not know. Names in a PUT come from the caller: repeating it is
//! safe. Every error has one shape, [`ApiError`].
//!
//! | module | who speaks |
//! |---|---|
//! | [`config`] | operators and the controller: networks, pools, hosts |
//! | [`book`] | operators and the controller: reservations and attachments |
//! | [`holding`] | operators and the controller: who has which address of a pool |
//! | [`history`] | operators and the controller: who had which address when |
//! | [`host`] | agents and the controller: sessions, claims, asks, what lives on a host, the watch |
//! | [`check`] | operators and the controller: where store and kernels differ |
//! | [`condition`], [`doctor`] | operators, the controller and agents: how hosts are |
//! | [`restore`] | operators and the controller: restores, and whom they wait for |
//! | [`socket`] | the CNI plugin and its host's agent, over a unix socket |
//!
//! [`client`] (feature `client`) is the one HTTP client of agent, plugin and `limpetctl`.

#[cfg(feature = "backup")]
pub mod backup;
pub mod book;
pub mod check;
#[cfg(feature = "client")]
pub mod client;
pub mod condition;
pub mod config;
pub mod doctor;
mod error;
mod fields;
pub mod history;
pub mod holding;
pub mod host;
mod limits;
mod living;
pub mod paths;
pub mod quota;
pub mod restore;
pub mod socket;
mod span;
mod wall;

pub use error::{ApiError, ErrorCode};
pub use span::{After, FleetTime, Retention, Span, SpanError};
pub use wall::{WallTime, WallTimeError};

use serde::{Deserialize, Serialize};

/// The revision of the store: one more for every transaction that was committed, and never less.
pub type Revision = u64;

/// A record and the revision that wrote it last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versioned<T> {
    /// The record.
    #[serde(flatten)]
    pub record: T,
    /// The revision of the transaction that wrote the record last.
    pub revision: Revision,
}

/// Records of a kind, read at one revision: all of them, or a page of a long list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing<T> {
    /// The records, ordered by name.
    pub items: Vec<T>,
    /// The revision at which they were read.
    pub revision: Revision,
    /// What the query of the next page gives as `after`, as it is; none on the last page. A page that is not the last
    /// may have few records or none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// How many records a page of a long list has if its query does not say.
pub const USUALLY_LISTED: usize = 500;

/// How many records a page of a long list has at most.
pub const MOST_LISTED: usize = 5000;

/// What a PATCH does to one field that can be absent: left out, it stays; `null` clears it; a value sets it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Option<T>", into = "Option<T>")]
pub enum Change<T: Clone> {
    /// Leave the field as it is.
    #[default]
    Keep,
    /// Take the value away.
    Clear,
    /// Give it this value.
    Set(T),
}

impl<T: Clone> Change<T> {
    /// Whether the field stays as it is, and so is left out of the request.
    pub fn is_keep(&self) -> bool {
        matches!(self, Self::Keep)
    }

    /// Carries the change out on `field`.
    pub fn apply(self, field: &mut Option<T>) {
        match self {
            Self::Keep => {}
            Self::Clear => *field = None,
            Self::Set(value) => *field = Some(value),
        }
    }
}

impl<T: Clone> From<Option<T>> for Change<T> {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Clear, Self::Set)
    }
}

impl<T: Clone> From<Change<T>> for Option<T> {
    fn from(change: Change<T>) -> Self {
        if let Change::Set(value) = change { Some(value) } else { None }
    }
}

//! Edge: what operators ask: networks, pools, hosts, reservations, attachments, quotas.

pub(super) mod attachments;
pub(super) mod history;
pub(super) mod hosts;
pub(super) mod networks;
pub(super) mod pools;
pub(super) mod quotas;
pub(super) mod reservations;

use limpet_api::{ApiError, ErrorCode, Listing, Versioned};

use crate::state::{Entry, State};

fn listing<T>(state: &State, items: impl Iterator<Item = T>) -> Listing<T> {
    Listing { items: items.collect(), revision: state.revision().0, next: None }
}

fn versioned<T>(entry: Entry<T>) -> Versioned<T> {
    Versioned { record: entry.record, revision: entry.revision.0 }
}

fn missing(code: ErrorCode, what: &str) -> ApiError {
    ApiError::new(code, format!("there is no {what}"))
}

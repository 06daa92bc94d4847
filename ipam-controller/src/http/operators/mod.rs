//! Edge: what operators ask: networks, pools, hosts, reservations, attachments.

pub(super) mod attachments;
pub(super) mod hosts;
pub(super) mod networks;
pub(super) mod pools;
pub(super) mod reservations;

use limpet_api::{ApiError, ErrorCode, Listing, Versioned};
use limpet_net_types::{HostName, Namespace, NetworkName};
use serde::Deserialize;

use crate::state::{Entry, State};

/// Which reservations or attachments are to be listed: those that match all that is given.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Filter {
    network: Option<NetworkName>,
    namespace: Option<Namespace>,
    host: Option<HostName>,
}

fn is<T: PartialEq>(wanted: Option<&T>, found: &T) -> bool {
    wanted.is_none_or(|wanted| wanted == found)
}

fn listing<T>(state: &State, items: impl Iterator<Item = T>) -> Listing<T> {
    Listing { items: items.collect(), revision: state.revision().0 }
}

fn versioned<T>(entry: Entry<T>) -> Versioned<T> {
    Versioned { record: entry.record, revision: entry.revision.0 }
}

fn missing(code: ErrorCode, what: &str) -> ApiError {
    ApiError::new(code, format!("there is no {what}"))
}

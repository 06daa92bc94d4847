//! Pure: the tables of the store's file, and how a value lies in one.
//!
//! A commit writes one record into [`LOG`], and is durable by that: one place at the end of one
//! table, however far apart its keys are. [`KEYS`] follows later (see `overlay`).

use bytes::Bytes;
use redb::TableDefinition;

use super::super::{Revision, Versioned};

/// Counters, by the names below.
pub(super) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("limpet-meta");
/// Each key as it was at the revision [`APPLIED`] or later, with the revision that put it (8
/// bytes, little-endian) before its value.
pub(super) const KEYS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("limpet-keys");
/// Each revision, with what it changed.
pub(super) const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("limpet-log");
/// The keys that go when the file is opened anew.
pub(super) const EPHEMERAL: TableDefinition<'_, &str, ()> =
    TableDefinition::new("limpet-ephemeral");

/// The version of these tables.
pub(super) const FORMAT: &str = "format";
/// The newest revision.
pub(super) const REVISION: &str = "revision";
/// [`KEYS`] has all that was changed up to this revision; what came later is in the log for sure.
pub(super) const APPLIED: &str = "applied";
/// The newest revision that the log no longer has; watching from it is still possible.
pub(super) const COMPACTED: &str = "compacted";
/// How many bytes the log's records have.
pub(super) const LOG_BYTES: &str = "log-bytes";

/// A stored value that cannot be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a value of the store is shorter than its own revision: restore the store from a backup")]
pub(super) struct ShortValue;

/// Returns a value as it is stored.
pub(super) fn stored(versioned: &Versioned) -> Vec<u8> {
    let mut stored = Vec::with_capacity(8 + versioned.value.len());
    stored.extend_from_slice(&versioned.revision.0.to_le_bytes());
    stored.extend_from_slice(&versioned.value);
    stored
}

/// Returns the revision of a stored value, and the value.
///
/// # Errors
///
/// [`ShortValue`]; the file is damaged.
pub(super) fn split(stored: &[u8]) -> Result<(Revision, &[u8]), ShortValue> {
    let (revision, value) = stored.split_first_chunk::<8>().ok_or(ShortValue)?;
    Ok((Revision(u64::from_le_bytes(*revision)), value))
}

/// Returns a stored value as it was put.
///
/// # Errors
///
/// [`ShortValue`]; the file is damaged.
pub(super) fn versioned(stored: &[u8]) -> Result<Versioned, ShortValue> {
    let (revision, value) = split(stored)?;
    Ok(Versioned { value: Bytes::copy_from_slice(value), revision })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_value_is_read_back_and_a_short_one_is_refused() {
        let value = Versioned { value: "x".into(), revision: Revision(7) };
        assert_eq!(versioned(&stored(&value)), Ok(value));
        assert_eq!(versioned(&[0; 7]), Err(ShortValue));
    }
}

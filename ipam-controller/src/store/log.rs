//! Pure: how the change log writes one revision down, and how far back it reaches.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{Key, Write};

/// A record of the change log that is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the change log has a record that ends too early or is not text where it must be: restore the \
     store from a backup"
)]
pub(super) struct BadRecord;

const DELETE: u8 = 0;
const PUT: u8 = 1;

/// Returns the changes as bytes: per change its kind, the key and, for a put, the value, each
/// with its length before it.
pub(super) fn encode(changes: &BTreeMap<Key, Write>) -> Vec<u8> {
    let mut out = Vec::new();
    for (key, write) in changes {
        match write {
            Write::Delete => out.push(DELETE),
            Write::Put(_) | Write::Ephemeral(_) => out.push(PUT),
        }
        push(&mut out, key.as_bytes());
        if let Write::Put(value) | Write::Ephemeral(value) = write {
            push(&mut out, value);
        }
    }
    out
}

/// Returns the changes that [`encode`] wrote.
///
/// # Errors
///
/// [`BadRecord`] if `record` is anything else; the file is damaged.
pub(super) fn decode(mut record: &[u8]) -> Result<BTreeMap<Key, Write>, BadRecord> {
    let mut changes = BTreeMap::new();
    while let Some((&kind, rest)) = record.split_first() {
        let (key, rest) = take(rest)?;
        let key = std::str::from_utf8(key).map_err(|_| BadRecord)?.to_owned();
        let (write, rest) = match kind {
            DELETE => (Write::Delete, rest),
            PUT => {
                let (value, rest) = take(rest)?;
                (Write::Put(Bytes::copy_from_slice(value)), rest)
            }
            _ => return Err(BadRecord),
        };
        changes.insert(key, write);
        record = rest;
    }
    Ok(changes)
}

fn push(out: &mut Vec<u8>, part: &[u8]) {
    // Requests are limited to far less than 4 GiB, so the length always fits.
    let length = u32::try_from(part.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(part);
}

fn take(from: &[u8]) -> Result<(&[u8], &[u8]), BadRecord> {
    let (length, rest) = from.split_first_chunk::<4>().ok_or(BadRecord)?;
    let length = usize::try_from(u32::from_le_bytes(*length)).map_err(|_| BadRecord)?;
    rest.split_at_checked(length).ok_or(BadRecord)
}

#[cfg(test)]
mod tests {
    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;

    use super::*;

    fn write() -> impl Strategy<Value = Write> {
        prop_oneof![
            Just(Write::Delete),
            vec(any::<u8>(), 0..4).prop_map(|value| Write::Put(value.into())),
        ]
    }

    proptest! {
        #[test]
        fn what_was_written_down_is_read_back(changes in btree_map("[a-c/]{0,3}", write(), 0..5)) {
            prop_assert_eq!(decode(&encode(&changes)), Ok(changes));
        }

        #[test]
        fn a_record_that_is_cut_is_an_error_and_never_a_panic(
            changes in btree_map("[a-c]{1,3}", write(), 1..3),
            cut in 1..8usize,
        ) {
            let record = encode(&changes);
            let short = &record[..record.len().saturating_sub(cut)];
            // A cut between two changes leaves a shorter record that is whole.
            if let Ok(read) = decode(short) {
                prop_assert!(read.len() < changes.len());
            }
        }

        #[test]
        fn any_bytes_at_all_decode_or_are_refused(record in vec(any::<u8>(), 0..32)) {
            let _ = decode(&record);
        }
    }
}

//! Pure: transactions as etcd takes them, and its answers as outcomes.
//!
//! Members of a batch are transactions nested in one: each has its own compares, so that a stale
//! one fails alone, and all that are done share one revision. Around them the layout and the
//! store's identity are compared, so that nothing is ever written to another store than the one
//! that was read.
//!
//! Around that is one more, which has no compares and so never does what it would do otherwise:
//! put a key. Etcd 3.4 counts only what is put in the outermost transaction against its quota,
//! and would let nested ones fill the disk.

use std::ops::Range;

use etcd_client::{Compare, CompareOp, GetOptions, PutOptions, TxnOp, TxnOpResponse};

use super::layout::{FORMAT, Layout};
use crate::keys;
use crate::store::{Key, Outcome, Quiet, Revision, Seen, Txn, Write};

/// How many operations etcd takes in a transaction, unless told otherwise: the most of compares,
/// of what is done then, and of what is done otherwise. What is nested may have so many less those
/// around it.
const OPERATIONS: usize = 128;

/// How many of them the transactions around the members take.
const AROUND: usize = 1;

/// How many bytes a request may have for sure: etcd takes 1.5 MiB, unless told otherwise.
const BYTES: usize = 1 << 20;

/// How many writes are done one beside the other. More than that are nested once more, which makes
/// room for some thousand.
const FLAT: usize = 32;

/// A transaction that etcd cannot take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a transaction that relies on {relied} and writes {written} keys is more than etcd takes at once"
)]
pub(super) struct TooLarge {
    relied: usize,
    written: usize,
}

/// Parts a batch so that each part fits a request.
///
/// # Errors
///
/// [`TooLarge`] if a member does not fit one by itself.
pub(super) fn parts(batch: &[Txn], layout: &Layout) -> Result<Vec<Range<usize>>, TooLarge> {
    let mut parts = Vec::new();
    let (mut begin, mut largest, mut bytes) = (0, 0, 0);
    for (n, txn) in batch.iter().enumerate() {
        let (operations, size) = (operations(txn), size(txn, layout));
        if AROUND + 1 + operations > OPERATIONS {
            let relied = txn.compares.len() + txn.quiet.len();
            return Err(TooLarge { relied, written: txn.writes.len() });
        }
        let fits = AROUND + (n - begin + 1) + operations.max(largest) <= OPERATIONS
            && bytes + size <= BYTES;
        if n > begin && !fits {
            parts.push(begin..n);
            (begin, largest, bytes) = (n, 0, 0);
        }
        largest = operations.max(largest);
        bytes += size;
    }
    if begin < batch.len() {
        parts.push(begin..batch.len());
    }
    Ok(parts)
}

/// How many operations a member needs beside those around it.
fn operations(txn: &Txn) -> usize {
    let relied = txn.compares.len() + txn.quiet.len();
    let written = txn.writes.len();
    if written <= FLAT {
        return relied.max(written);
    }
    let group = group(written);
    relied.max(written.div_ceil(group)) + group
}

/// How many writes are nested together, where there are so many that they are.
fn group(written: usize) -> usize {
    written.isqrt() + usize::from(written.isqrt().pow(2) < written)
}

fn size(txn: &Txn, layout: &Layout) -> usize {
    let key = |key: &Key| key.len() + layout.extra() + 16;
    let value = |write: &Write| match write {
        Write::Put(value) | Write::Ephemeral(value) => value.len(),
        Write::Delete => 0,
    };
    let written: usize = txn.writes.iter().map(|(name, write)| key(name) + value(write)).sum();
    let relied: usize = txn.compares.keys().map(key).sum();
    let quiet: usize = txn.quiet.iter().map(|quiet| key(&quiet.from) + key(&quiet.to)).sum();
    // What is relied on is looked at again where it has changed.
    written + 2 * (relied + quiet)
}

fn puts(batch: &[Txn]) -> bool {
    let mut writes = batch.iter().flat_map(|txn| txn.writes.values());
    writes.any(|write| !matches!(write, Write::Delete))
}

/// Whether something in it needs a lease.
pub(super) fn is_ephemeral(batch: &[Txn]) -> bool {
    let mut writes = batch.iter().flat_map(|txn| txn.writes.values());
    writes.any(|write| matches!(write, Write::Ephemeral(_)))
}

/// Returns a request that carries out every member by itself, if the store is still the one with
/// this identity.
pub(super) fn request(
    batch: &[Txn],
    layout: &Layout,
    identity: &[u8],
    lease: i64,
) -> etcd_client::Txn {
    let same = [
        Compare::value(layout.format(), CompareOp::Equal, FORMAT.to_string()),
        Compare::value(layout.identity(), CompareOp::Equal, identity),
    ];
    let members: Vec<TxnOp> =
        batch.iter().map(|txn| TxnOp::txn(member(txn, layout, lease))).collect();
    let otherwise = [TxnOp::get(layout.format(), None), TxnOp::get(layout.identity(), None)];
    let inner = etcd_client::Txn::new().when(same).and_then(members).or_else(otherwise);
    let outer = etcd_client::Txn::new().and_then([TxnOp::txn(inner)]);
    if puts(batch) {
        outer.or_else([TxnOp::put(layout.format(), FORMAT.to_string(), None)])
    } else {
        // What only deletes makes room, and is taken by an etcd that is full.
        outer
    }
}

fn member(txn: &Txn, layout: &Layout, lease: i64) -> etcd_client::Txn {
    let compares = txn.compares.iter().map(|(key, seen)| {
        Compare::mod_revision(layout.key(key), CompareOp::Equal, number(seen_at(*seen)))
    });
    let quiet = txn.quiet.iter().map(|quiet| {
        let next = number(quiet.since.next());
        Compare::mod_revision(layout.key(&quiet.from), CompareOp::Less, next)
            .with_range(layout.key(&quiet.to))
    });
    let found = txn
        .compares
        .keys()
        .map(|key| TxnOp::get(layout.key(key), Some(GetOptions::new().with_keys_only())));
    let loud = txn
        .quiet
        .iter()
        .map(|quiet| TxnOp::get(layout.key(&quiet.from), Some(after(quiet, layout))));
    let mut writes: Vec<TxnOp> =
        txn.writes.iter().map(|(key, write)| operation(layout.key(key), write, lease)).collect();
    if writes.len() > FLAT {
        let group = group(writes.len());
        let mut nested = Vec::new();
        while !writes.is_empty() {
            let rest = writes.split_off(writes.len().min(group));
            nested.push(TxnOp::txn(etcd_client::Txn::new().and_then(writes)));
            writes = rest;
        }
        writes = nested;
    }
    etcd_client::Txn::new()
        .when(compares.chain(quiet).collect::<Vec<_>>())
        .and_then(writes)
        .or_else(found.chain(loud).collect::<Vec<_>>())
}

/// What was put in a range since.
fn after(quiet: &Quiet, layout: &Layout) -> GetOptions {
    GetOptions::new()
        .with_range(layout.key(&quiet.to))
        .with_min_mod_revision(number(quiet.since.next()))
        .with_keys_only()
        .with_limit(1)
}

fn operation(key: String, write: &Write, lease: i64) -> TxnOp {
    match write {
        Write::Put(value) => TxnOp::put(key, value.clone(), None),
        Write::Ephemeral(value) => {
            TxnOp::put(key, value.clone(), Some(PutOptions::new().with_lease(lease)))
        }
        Write::Delete => TxnOp::delete(key, None),
    }
}

/// The revision that etcd gives a key; it says 0 of one that is not there.
fn seen_at(seen: Seen) -> Revision {
    match seen {
        Seen::Absent => Revision(0),
        Seen::At(revision) => revision,
    }
}

/// A revision as etcd writes it.
pub(super) fn number(revision: Revision) -> i64 {
    i64::try_from(revision.0).unwrap_or(i64::MAX)
}

/// A revision as it is written here.
pub(super) fn revision(number: i64) -> Revision {
    Revision(u64::try_from(number).unwrap_or_default())
}

/// What etcd made of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Each member's outcome.
    Outcomes(Vec<Outcome>),
    /// Nothing was done: the store is another one.
    Replaced {
        /// The version of the layout that is there, as text.
        format: Option<Vec<u8>>,
    },
}

/// Reads etcd's answer to [`request`]; none if it is not one.
pub(super) fn answer(
    batch: &[Txn],
    layout: &Layout,
    response: &etcd_client::TxnResponse,
) -> Option<Answer> {
    let outer = response.op_responses();
    let Some(TxnOpResponse::Txn(inner)) = outer.first() else { return None };
    let members = inner.op_responses();
    if !inner.succeeded() {
        let Some(TxnOpResponse::Get(format)) = members.first() else { return None };
        let format = format.kvs().first().map(|found| found.value().to_vec());
        return Some(Answer::Replaced { format });
    }
    let at = revision(response.header()?.revision());
    let outcomes = batch.iter().zip(&members).map(|(txn, member)| match member {
        TxnOpResponse::Txn(member) if member.succeeded() => Some(Outcome::Committed(at)),
        TxnOpResponse::Txn(member) => {
            Some(Outcome::Conflict(conflict(txn, layout, &member.op_responses())))
        }
        _ => None,
    });
    let outcomes = outcomes.collect::<Option<Vec<_>>>()?;
    (outcomes.len() == batch.len()).then_some(Answer::Outcomes(outcomes))
}

/// Finds out which key is no longer as it was seen.
fn conflict(txn: &Txn, layout: &Layout, found: &[TxnOpResponse]) -> Key {
    let first = |found: &TxnOpResponse| match found {
        TxnOpResponse::Get(found) => {
            found.kvs().first().map(|found| (found.key().to_vec(), revision(found.mod_revision())))
        }
        _ => None,
    };
    let mut found = found.iter().map(first);
    let compared = txn.compares.iter().zip(found.by_ref()).find_map(|((key, seen), found)| {
        let at = found.map_or(Revision(0), |(_, at)| at);
        (at != seen_at(*seen)).then(|| key.clone())
    });
    let loud = || found.find_map(|found| layout.own(&found?.0));
    // It cannot be that nothing is found; if it is, the identity is a key that everybody relies on.
    compared.or_else(loud).unwrap_or_else(|| keys::STORE_ID.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn layout() -> Layout {
        Layout::new(&"/limpet".parse().unwrap())
    }

    fn txn(relied: usize, written: usize, bytes: usize) -> Txn {
        let key = |n: usize| format!("k{n}");
        Txn {
            compares: (0..relied).map(|n| (key(n), Seen::Absent)).collect(),
            quiet: vec![],
            writes: (0..written).map(|n| (key(n), Write::Put(vec![0; bytes].into()))).collect(),
        }
    }

    #[test]
    fn a_batch_of_claims_is_one_request() {
        let batch: Vec<Txn> = (0..110).map(|_| txn(14, 5, 300)).collect();
        assert_eq!(parts(&batch, &layout()).unwrap().len(), 1);
    }

    #[test]
    fn a_member_may_write_thousands_of_keys_and_rely_on_a_hundred() {
        assert!(parts(&[txn(0, 3800, 1)], &layout()).is_ok());
        assert!(parts(&[txn(126, 3, 1)], &layout()).is_ok());
        let too_large = parts(&[txn(3, 1, 1), txn(127, 3, 1)], &layout());
        assert_eq!(too_large, Err(TooLarge { relied: 127, written: 3 }));
    }

    proptest! {
        #[test]
        fn parts_are_the_whole_batch_in_order_and_each_fits(
            members in prop::collection::vec((0..60usize, 0..300usize, 0..4000usize), 0..300),
        ) {
            let batch: Vec<Txn> = members.iter().map(|(r, w, b)| txn(*r, *w, *b)).collect();
            let parts = parts(&batch, &layout()).unwrap();
            let mut next = 0;
            for part in parts {
                prop_assert_eq!(part.start, next);
                prop_assert!(!part.is_empty());
                let part_of = &batch[part.clone()];
                let most = part_of.iter().map(operations).max().unwrap();
                prop_assert!(AROUND + part.len() + most <= OPERATIONS);
                let bytes: usize = part_of.iter().map(|txn| size(txn, &layout())).sum();
                prop_assert!(bytes <= BYTES || part.len() == 1);
                next = part.end;
            }
            prop_assert_eq!(next, batch.len());
        }
    }
}

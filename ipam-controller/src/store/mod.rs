//! Edge: the one place where state lives between restarts, behind the [`Store`] trait.
//!
//! A store keeps keys with values, gives every transaction that writes a revision of its own,
//! and tells what each revision changed. It decides every race, by comparing the revisions at
//! which a transaction's author saw the keys it relied on. What keys and values mean is left
//! to [`crate::keys`] and [`crate::state`].

mod embedded;
mod log;

#[cfg(test)]
mod contract;
#[cfg(test)]
pub(crate) mod faulty;
#[cfg(test)]
pub(crate) mod memory;

pub(crate) use embedded::{Embedded, Options};

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;

use bytes::Bytes;
use futures_util::future::BoxFuture;

/// The number of a change: grows by one with each transaction that writes, across restarts too.
///
/// Zero is the revision of a store that nothing was ever written to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Revision(pub(crate) u64);

impl Revision {
    /// Returns the revision after this one.
    pub(crate) fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A key of the store; [`crate::keys`] makes them.
pub(crate) type Key = String;

/// A value and the revision that wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Versioned {
    /// The value as it was put.
    pub(crate) value: Bytes,
    /// The revision of the transaction that put it.
    pub(crate) revision: Revision,
}

/// All keys under a prefix as they were at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// The revision of the whole: no later change is in it, no earlier one is missing.
    pub(crate) revision: Revision,
    /// Each key with its value.
    pub(crate) entries: BTreeMap<Key, Versioned>,
}

/// What a transaction's author saw of a key, and relies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// There was no such key.
    Absent,
    /// The key was last put at this revision.
    At(Revision),
}

/// What a transaction does to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Write {
    /// Sets the value, whether there was one or not.
    Put(Bytes),
    /// Removes the key; removing what is not there changes nothing.
    Delete,
}

/// A transaction: if everything is still as seen, all of its writes; otherwise none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Txn {
    /// What must still be so.
    pub(crate) compares: BTreeMap<Key, Seen>,
    /// What is then written.
    pub(crate) writes: BTreeMap<Key, Write>,
}

/// What became of one transaction of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All of it is done and durable. The revision is its own, or, if it changed nothing, the
    /// one at which its compares held.
    Committed(Revision),
    /// None of it was done, because this key is no longer as seen.
    Conflict(Key),
}

/// What one revision changed, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    /// The revision.
    pub(crate) revision: Revision,
    /// Each key it put or deleted.
    pub(crate) changes: BTreeMap<Key, Write>,
}

/// A cause that the store's own library gave, of whichever kind.
pub(crate) type Cause = Box<dyn Error + Send + Sync>;

/// Why a read gave nothing; reading again may succeed.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the store")]
pub(crate) struct ReadError(#[source] pub(crate) Cause);

/// Why a batch has no outcome.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommitError {
    /// Nothing of the batch was done, nor will be. Committing it again is safe.
    #[error("the store did not take the transaction")]
    NotDone(#[source] Cause),
    /// Some, all or none of the batch may have been done. Read before anything is told.
    #[error("the store did not say whether it took the transaction")]
    Unknown(#[source] Cause),
}

/// Why a watch cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WatchError {
    /// The change log no longer reaches back that far. Read everything, then watch from there.
    #[error("the change log starts after revision {oldest}, but {wanted} was asked for")]
    Compacted {
        /// The revision asked for.
        wanted: Revision,
        /// The oldest revision that can be watched from.
        oldest: Revision,
    },
    /// The store has not come that far: it was restored to an earlier state, or is another one.
    #[error("the store is at revision {newest}, before {wanted} that was asked for")]
    Ahead {
        /// The revision asked for.
        wanted: Revision,
        /// The store's newest revision.
        newest: Revision,
    },
    /// The store could not be read; watching again from the last revision may succeed.
    #[error("the watch of the store was cut")]
    Cut(#[source] Cause),
}

/// A running watch, from [`Store::watch`].
pub(crate) trait Watch: Send {
    /// Returns the next revision's changes, waiting until there are some.
    ///
    /// Dropping the future loses nothing.
    fn next(&mut self) -> BoxFuture<'_, Result<Event, WatchError>>;
}

/// A transactional key-value store with revisions.
///
/// Every implementation passes the suite in `contract`.
pub(crate) trait Store: Send + Sync + 'static {
    /// Returns every key that starts with `prefix`, at one revision.
    fn read<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Snapshot, ReadError>>;

    /// Carries out the transactions in their order, and returns once all of it is durable.
    ///
    /// A later member sees what the earlier ones wrote. Each member is done whole or not at
    /// all, and a conflict of one does not stop the others. The outcomes are in the members'
    /// order.
    fn commit(&self, batch: Vec<Txn>) -> BoxFuture<'_, Result<Vec<Outcome>, CommitError>>;

    /// Watches every change after revision `after`.
    fn watch(&self, after: Revision) -> BoxFuture<'_, Result<Box<dyn Watch>, WatchError>>;

    /// Finishes what was taken and lets go of the store; every later call fails.
    fn close(&self) -> BoxFuture<'_, ()>;
}

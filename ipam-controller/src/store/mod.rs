//! Edge: the one place where state lives between restarts, behind the [`Store`] trait.
//!
//! A store keeps keys with values, gives every transaction that writes a revision of its own,
//! and tells what each revision changed. It decides every race, by comparing the revisions at
//! which a transaction's author saw the keys it relied on. What keys and values mean is left
//! to [`crate::keys`] and [`crate::state`].

mod embedded;
pub(crate) mod etcd;
mod log;

#[cfg(test)]
mod contract;
#[cfg(test)]
pub(crate) mod faulty;
#[cfg(test)]
pub(crate) mod memory;

pub(crate) use embedded::{Embedded, Options};
pub(crate) use etcd::{Endpoint, Etcd, Options as EtcdOptions, Prefix as EtcdPrefix};

use std::collections::{BTreeMap, HashMap, HashSet};
use std::error::Error;
use std::fmt;

use bytes::Bytes;
use foldhash::fast::RandomState;
use futures_util::future::BoxFuture;

/// The number of a change: grows by one with each transaction that writes, across restarts too.
///
/// Zero is the revision of a store that nothing was ever written to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Revision(pub(crate) u64);

impl Revision {
    /// The revision that the transaction of a decision will have, which nobody knows before.
    pub(crate) const OWN: Self = Self(u64::MAX);

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
#[cfg(test)]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// The revision of the whole: no later change is in it, no earlier one is missing.
    pub(crate) revision: Revision,
    /// Each key with its value.
    pub(crate) entries: BTreeMap<Key, Versioned>,
}

#[cfg(test)]
impl Snapshot {
    /// Reads a prefix whole, which must not have very many keys.
    ///
    /// # Errors
    ///
    /// [`ReadError`]: nothing is known of any of it.
    pub(crate) async fn of(store: &dyn Store, prefix: &str) -> Result<Self, ReadError> {
        let mut pages = store.read(prefix).await?;
        let mut entries = BTreeMap::new();
        while let Some(page) = pages.next().await? {
            entries.extend(page);
        }
        Ok(Self { revision: pages.revision(), entries })
    }
}

/// Keys with their values, in order: a part of what [`Store::read`] gives.
pub(crate) type Page = Vec<(Key, Versioned)>;

/// What a transaction's author saw of a key, and relies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// There was no such key.
    Absent,
    /// The key was last put at this revision.
    At(Revision),
}

/// A range of keys that a transaction's author looked at as a whole: nothing in it was put since.
///
/// What was deleted does not count: whoever relies on a range relies on there being no more in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Quiet {
    /// The first key of the range.
    pub(crate) from: Key,
    /// The first key after the range.
    pub(crate) to: Key,
    /// No key of the range was put after this revision.
    pub(crate) since: Revision,
}

impl Quiet {
    /// Relies on everything that starts with `prefix`.
    #[cfg(test)]
    pub(crate) fn under(prefix: &str, since: Revision) -> Self {
        Self { from: prefix.to_owned(), to: end_of(prefix), since }
    }

    /// Whether a key is in the range.
    pub(crate) fn covers(&self, key: &str) -> bool {
        (self.from.as_str()..self.to.as_str()).contains(&key)
    }
}

/// The first key after all that start with `prefix`: keys are ASCII.
pub(crate) fn end_of(prefix: &str) -> Key {
    format!("{prefix}\u{7f}")
}

/// What a transaction does to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Write {
    /// Sets the value, whether there was one or not.
    Put(Bytes),
    /// The same, and the key goes once the controller that put it has gone for a lease time.
    /// Events tell of it as of any other.
    Ephemeral(Bytes),
    /// Removes the key; removing what is not there changes nothing.
    Delete,
}

/// A transaction: if everything is still as seen, all of its writes; otherwise none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Txn {
    /// What must still be so.
    pub(crate) compares: BTreeMap<Key, Seen>,
    /// Where nothing may have been put.
    pub(crate) quiet: Vec<Quiet>,
    /// What is then written.
    pub(crate) writes: BTreeMap<Key, Write>,
}

/// What the members of a batch touch, so that no two of them meet.
///
/// A store may judge all members by what was there before the batch, so one must not rely on,
/// nor write, what another writes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Footprint {
    written: HashSet<Key, RandomState>,
    relied: HashSet<Key, RandomState>,
    quiet: Vec<Quiet>,
}

impl Footprint {
    /// Adds a member; or returns the key on which it meets one that was added before.
    pub(crate) fn add(&mut self, txn: &Txn) -> Result<(), Key> {
        let written = txn.writes.keys();
        let meets = txn
            .compares
            .keys()
            .chain(written.clone())
            .find(|key| self.written.contains(*key))
            .or_else(|| written.clone().find(|key| self.is_relied_on(key)))
            .or_else(|| txn.quiet.iter().find_map(|quiet| self.written_in(quiet)));
        if let Some(key) = meets {
            return Err(key.clone());
        }
        self.written.extend(written.cloned());
        for key in txn.compares.keys() {
            // Most members rely on the same few: network, host, session.
            if !self.relied.contains(key) {
                self.relied.insert(key.clone());
            }
        }
        self.quiet.extend(txn.quiet.iter().cloned());
        Ok(())
    }

    fn is_relied_on(&self, key: &Key) -> bool {
        self.relied.contains(key) || self.quiet.iter().any(|quiet| quiet.covers(key))
    }

    fn written_in(&self, quiet: &Quiet) -> Option<&Key> {
        self.written.iter().find(|key| quiet.covers(key))
    }
}

/// What became of one transaction of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All of it is done and durable, at this revision, which other members may share; if it
    /// changed nothing, everything it relied on held at this revision.
    Committed(Revision),
    /// None of it was done, because this key, or one from here on, is no longer as seen.
    Conflict(Key),
}

/// What one revision changed, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    /// The revision.
    pub(crate) revision: Revision,
    /// Each key it put or deleted; [`Write::Ephemeral`] is told as [`Write::Put`].
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

/// A read that is under way, from [`Store::read`].
pub(crate) trait Pages: Send {
    /// The revision of the whole: no later change is in it, no earlier one is missing.
    fn revision(&self) -> Revision;

    /// Returns the next keys, in order; `None` after the last. After an error nothing is left of
    /// the read.
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Page>, ReadError>>;
}

/// A transactional key-value store with revisions.
///
/// Every implementation passes the suite in `contract`.
pub(crate) trait Store: Send + Sync + 'static {
    /// Reads every key that starts with `prefix`, at one revision, part by part.
    fn read<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Box<dyn Pages>, ReadError>>;

    /// Carries out the transactions, and returns once all of it is durable.
    ///
    /// No two members may meet, which [`Footprint`] finds out; such a batch is refused. Each
    /// member is done whole or not at all, and a conflict of one does not stop the others. The
    /// outcomes are in the members' order, and their revisions never fall.
    ///
    /// In a store that was replaced by another one, every member conflicts on the store's
    /// identity, also those that rely on nothing, until all of it is read again.
    fn commit(&self, batch: Vec<Txn>) -> BoxFuture<'_, Result<Vec<Outcome>, CommitError>>;

    /// Watches every change after revision `after`.
    fn watch(&self, after: Revision) -> BoxFuture<'_, Result<Box<dyn Watch>, WatchError>>;

    /// Whether others than this process may write.
    fn is_shared(&self) -> bool;

    /// Finishes what was taken and lets go of the store; every later call fails. Ephemeral keys
    /// go at once.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// Why a batch is refused whose members meet.
#[derive(Debug, thiserror::Error)]
#[error("two members of a batch touch {0}")]
pub(crate) struct Overlap(Key);

/// Refuses a batch in which two members meet.
///
/// # Errors
///
/// [`CommitError::NotDone`].
pub(crate) fn disjoint(batch: &[Txn]) -> Result<(), CommitError> {
    match meeting(batch) {
        Some(key) => Err(CommitError::NotDone(Overlap(key.to_owned()).into())),
        None => Ok(()),
    }
}

/// A key on which two members meet, as [`Footprint`] finds it, without a copy of every key.
fn meeting(batch: &[Txn]) -> Option<&str> {
    let mut writers = HashMap::with_capacity_and_hasher(8 * batch.len(), RandomState::default());
    for (number, txn) in batch.iter().enumerate() {
        for key in txn.writes.keys() {
            if writers.insert(key.as_str(), number).is_some() {
                return Some(key);
            }
        }
    }
    for (number, txn) in batch.iter().enumerate() {
        let by_another = |key: &&str| writers.get(key).is_some_and(|writer| *writer != number);
        let relied = txn.compares.keys().map(String::as_str).find(by_another);
        let covered = || {
            let written = || writers.keys().copied().filter(by_another);
            txn.quiet.iter().find_map(|quiet| written().find(|key| quiet.covers(key)))
        };
        if let Some(key) = relied.or_else(covered) {
            return Some(key);
        }
    }
    None
}

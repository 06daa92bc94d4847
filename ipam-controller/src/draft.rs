//! Pure: how a decision becomes a transaction: what was looked at is compared, what was decided
//! is written.

use bytes::Bytes;
use limpet_api::{ApiError, ErrorCode};
use serde::Serialize;

use crate::keys::Subject;
use crate::state::{Entry, State};
use crate::store::{Key, Quiet, Revision, Seen, Txn, Write};

/// What a request comes to: a transaction, and the answer that is right if it is committed.
///
/// A refusal has one as well: it is told only if what it relies on still holds.
#[derive(Debug)]
pub(crate) struct Decision<T> {
    /// What is compared and written.
    pub(crate) draft: Draft,
    /// What is then told.
    pub(crate) answer: Result<T, ApiError>,
}

impl<T> Decision<T> {
    /// Decides with a function that drafts as it goes; after a refusal nothing is written.
    pub(crate) fn make(decide: impl FnOnce(&mut Draft) -> Result<T, ApiError>) -> Self {
        let mut draft = Draft::default();
        let answer = decide(&mut draft);
        if answer.is_err() {
            draft.txn.writes.clear();
        }
        Self { draft, answer }
    }
}

/// A transaction in the making.
#[derive(Debug, Default)]
pub(crate) struct Draft {
    txn: Txn,
}

impl Draft {
    /// Drafts a transaction that was made before.
    #[cfg(test)]
    pub(crate) fn of(txn: Txn) -> Self {
        Self { txn }
    }

    /// Relies on the record being as `entry` says, or on there being none.
    pub(crate) fn rely<T>(&mut self, subject: &Subject, entry: Option<&Entry<T>>) {
        self.rely_on(subject, entry.map(|entry| entry.revision));
    }

    /// Relies on the record having been put at this revision, or on there being none.
    pub(crate) fn rely_on(&mut self, subject: &Subject, revision: Option<Revision>) {
        let seen = revision.map_or(Seen::Absent, Seen::At);
        self.txn.compares.insert(subject.key(), seen);
    }

    /// Relies on no key from `from` on, and before `to`, having been put after this revision.
    pub(crate) fn rely_on_quiet(&mut self, from: Key, to: Key, since: Revision) {
        self.txn.quiet.push(Quiet { from, to, since });
    }

    /// Writes the record.
    pub(crate) fn put<T: Serialize>(&mut self, subject: &Subject, record: &T) {
        self.txn.writes.insert(subject.key(), Write::Put(json(record)));
    }

    /// Writes the record for as long as this controller lives.
    pub(crate) fn put_ephemeral<T: Serialize>(&mut self, subject: &Subject, record: &T) {
        self.txn.writes.insert(subject.key(), Write::Ephemeral(json(record)));
    }

    /// Writes what another store had under a key.
    pub(crate) fn put_stored(&mut self, key: Key, value: Bytes) {
        self.txn.writes.insert(key, Write::Put(value));
    }

    /// Removes the record.
    pub(crate) fn delete(&mut self, subject: &Subject) {
        self.txn.writes.insert(subject.key(), Write::Delete);
    }

    /// Makes this a change of networks, pools or hosts: of two at once, one decides again.
    pub(crate) fn change_config(&mut self, state: &State) {
        self.rely_on(&Subject::Config, state.config());
        self.put(&Subject::Config, &state.revision().0);
    }

    /// Returns the transaction.
    pub(crate) fn into_txn(self) -> Txn {
        self.txn
    }
}

fn json<T: Serialize>(record: &T) -> Bytes {
    let value = serde_json::to_vec(record)
        .unwrap_or_else(|error| unreachable!("records have nothing JSON lacks: {error}"));
    Bytes::from(value)
}

/// An error with its code and its sentence.
pub(crate) fn refuse<T>(code: ErrorCode, message: impl Into<String>) -> Result<T, ApiError> {
    Err(ApiError::new(code, message))
}

//! Pure: how a decision becomes a transaction: what was looked at is compared, what was decided
//! is written.

use std::collections::BTreeMap;

use bytes::Bytes;
use limpet_api::book::{Attachment, Reservation};
use limpet_api::{ApiError, ErrorCode};
use serde::Serialize;

use crate::keys::Subject;
use crate::records::Slot;
use crate::state::{Change, Entry, Record, State, reservation_key};
use crate::store::{Key, Quiet, Revision, Seen, Txn, Write};

/// Room for a record as JSON, in bytes: most have less, and none is copied while it is written.
const ROOM: usize = 512;

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
            draft.changes.clear();
        }
        Self { draft, answer }
    }
}

/// A transaction in the making.
#[derive(Debug, Default)]
pub(crate) struct Draft {
    compares: BTreeMap<Key, Seen>,
    quiet: Vec<Quiet>,
    changes: BTreeMap<Key, Change>,
}

impl Draft {
    /// Drafts a transaction that was made before.
    #[cfg(test)]
    pub(crate) fn of(txn: Txn) -> Self {
        let Txn { compares, quiet, writes } = txn;
        let changes = writes.into_iter().map(|(key, write)| {
            let change = Change::read(&key, &write).unwrap();
            (key, change)
        });
        Self { compares, quiet, changes: changes.collect() }
    }

    /// Relies on the record being as `entry` says, or on there being none.
    pub(crate) fn rely<T>(&mut self, subject: &Subject, entry: Option<&Entry<T>>) {
        self.rely_on(subject, entry.map(|entry| entry.revision));
    }

    /// Relies on the record having been put at this revision, or on there being none.
    pub(crate) fn rely_on(&mut self, subject: &Subject, revision: Option<Revision>) {
        let seen = revision.map_or(Seen::Absent, Seen::At);
        self.compares.insert(subject.key(), seen);
    }

    /// Relies on no key from `from` on, and before `to`, having been put after this revision.
    pub(crate) fn rely_on_quiet(&mut self, from: Key, to: Key, since: Revision) {
        self.quiet.push(Quiet { from, to, since });
    }

    /// Writes the record.
    pub(crate) fn put<T: Serialize>(&mut self, subject: &Subject, record: &T) {
        self.write(subject.clone(), Write::Put(json(record)), None);
    }

    /// Writes who has an address.
    pub(crate) fn put_slot(&mut self, subject: Subject, slot: Slot) {
        self.write(subject, Write::Put(json(&slot)), Some(Record::Slot(slot)));
    }

    /// Writes an attachment.
    pub(crate) fn put_attachment(&mut self, attachment: &Attachment) {
        let subject = Subject::Attachment(attachment.key.clone());
        let record = Record::Attachment(attachment.clone());
        self.write(subject, Write::Put(json(attachment)), Some(record));
    }

    /// Writes a reservation.
    pub(crate) fn put_reservation(&mut self, reservation: &Reservation) {
        let Reservation { network, namespace, name, .. } = reservation;
        let subject = Subject::Reservation(reservation_key(network, namespace, name));
        let record = Record::Reservation(reservation.clone());
        self.write(subject, Write::Put(json(reservation)), Some(record));
    }

    /// Writes the record for as long as this controller lives.
    pub(crate) fn put_ephemeral<T: Serialize>(&mut self, subject: &Subject, record: &T) {
        self.write(subject.clone(), Write::Ephemeral(json(record)), None);
    }

    /// Writes what another store had of a subject.
    pub(crate) fn put_stored(&mut self, subject: Subject, value: Bytes) {
        self.write(subject, Write::Put(value), None);
    }

    /// Removes the record.
    pub(crate) fn delete(&mut self, subject: &Subject) {
        self.write(subject.clone(), Write::Delete, None);
    }

    fn write(&mut self, subject: Subject, write: Write, record: Option<Record>) {
        self.changes.insert(subject.key(), Change { subject, write, record });
    }

    /// Makes this a change of networks, pools or hosts: of two at once, one decides again.
    pub(crate) fn change_config(&mut self, state: &State) {
        self.rely_on(&Subject::Config, state.config());
        self.put(&Subject::Config, &state.revision().0);
    }

    /// Returns the transaction.
    pub(crate) fn into_txn(self) -> Txn {
        self.into_parts().0
    }

    /// Returns the transaction, and what it writes as the state takes it.
    pub(crate) fn into_parts(self) -> (Txn, Vec<Change>) {
        let Self { compares, quiet, changes } = self;
        let mut taken = Vec::with_capacity(changes.len());
        let writes = changes.into_iter().map(|(key, change)| {
            let write = change.write.clone();
            taken.push(change);
            (key, write)
        });
        let writes = writes.collect();
        (Txn { compares, quiet, writes }, taken)
    }
}

fn json<T: Serialize>(record: &T) -> Bytes {
    let mut value = Vec::with_capacity(ROOM);
    serde_json::to_writer(&mut value, record)
        .unwrap_or_else(|error| unreachable!("records have nothing JSON lacks: {error}"));
    Bytes::from(value)
}

/// An error with its code and its sentence.
pub(crate) fn refuse<T>(code: ErrorCode, message: impl Into<String>) -> Result<T, ApiError> {
    Err(ApiError::new(code, message))
}

//! Pure: what was there before a transaction, so that a state that ran ahead of its store can go
//! back.

use bytes::Bytes;
use serde::Serialize;

use super::{Change, Effects, Entry, Record, State};
use crate::keys::Subject;
use crate::store::{Revision, Versioned};
use crate::tenures::Mark;

/// What a transaction is about to change, as it was; from [`State::before`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Undo {
    revision: Revision,
    records: Vec<(Subject, Was)>,
    /// Of history only this is kept in memory.
    tenures: Vec<Mark>,
}

/// What a record was.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Was {
    /// Not there.
    Absent,
    /// This, put at a revision.
    Known(Record, Revision),
    /// The same of a kind that there are few of.
    Stored(Versioned),
}

impl State {
    /// Returns what `changes` will change, as it is now.
    pub(crate) fn before(&self, changes: &[Change]) -> Undo {
        let mut tenures = Vec::new();
        let records = changes.iter().map(|Change { subject, .. }| {
            if let Subject::Tenure(tenure) = subject {
                tenures.extend(self.tenures.get(*tenure));
            }
            (subject.clone(), self.was(subject))
        });
        Undo { revision: self.revision, records: records.collect(), tenures }
    }

    /// Takes a transaction back that was applied after `undo` was taken. Of several the last one
    /// goes first.
    ///
    /// The pointers into hosts' blocks stay where they are: they say only where to look first.
    pub(crate) fn revert(&mut self, undo: Undo) {
        let mut effects = Effects::default();
        for (subject, was) in undo.records {
            match was {
                Was::Known(record, revision) => {
                    self.put_decided(&subject, record, revision, &mut effects);
                }
                Was::Stored(Versioned { value, revision }) => {
                    self.put(&subject, &value, revision, &mut effects).unwrap_or_else(|error| {
                        unreachable!("what was just serialised can be read: {error}")
                    });
                }
                Was::Absent => self.delete(&subject, &mut effects),
            }
        }
        undo.tenures.into_iter().for_each(|tenure| self.tenures.put(tenure));
        self.settle_strays(&mut effects);
        self.revision = undo.revision;
    }

    fn was(&self, subject: &Subject) -> Was {
        let stored = match subject {
            Subject::Address(network, address) => {
                return known(self.slot(network, *address), Record::Slot);
            }
            Subject::Reservation(key) => return known(self.reservation(key), Record::Reservation),
            Subject::Attachment(key) => return known(self.attachment(key), Record::Attachment),
            // It never changes, and so has no revision that anybody could rely on.
            Subject::StoreId => Some(versioned(&self.store, Revision::default())),
            Subject::Mark | Subject::Tenure(_) => None,
            Subject::Restoring => encoded(self.restoring.as_ref()),
            Subject::Restored => encoded(self.restored.as_ref()),
            Subject::Clock => encoded(self.clock.as_ref()),
            Subject::Config => self.config.map(|revision| versioned(&revision.0, revision)),
            Subject::MacChoice(network) => {
                self.mac_choice(network).map(|revision| versioned(&revision.0, revision))
            }
            Subject::Network(name) => encoded(self.networks.get(name)),
            Subject::Pool(name) => {
                self.pools.get(name).map(|pool| versioned(&pool.record, pool.revision))
            }
            Subject::Block(pool, prefix) => self
                .block(pool, super::bits(prefix.address()))
                .map(|block| versioned(&block.record, block.revision)),
            Subject::Host(name) => encoded(self.hosts.get(name)),
            Subject::Session(host) => encoded(self.sessions.get(host)),
            Subject::Heard(host) => encoded(self.heard(host)),
            Subject::Silent(host) => encoded(self.silence(host)),
            Subject::Report(host, id) => encoded(self.question(host, *id)),
            Subject::Quota(namespace) => encoded(self.quota(namespace)),
            Subject::Ask(host, uid) => encoded(self.ask(host, *uid)),
        };
        stored.map_or(Was::Absent, Was::Stored)
    }
}

fn known<T: Clone>(entry: Option<&Entry<T>>, record: impl FnOnce(T) -> Record) -> Was {
    entry.map_or(Was::Absent, |entry| Was::Known(record(entry.record.clone()), entry.revision))
}

fn encoded<T: Serialize>(entry: Option<&Entry<T>>) -> Option<Versioned> {
    entry.map(|entry| versioned(&entry.record, entry.revision))
}

fn versioned<T: Serialize>(record: &T, revision: Revision) -> Versioned {
    let value = serde_json::to_vec(record)
        .unwrap_or_else(|error| unreachable!("records have nothing JSON lacks: {error}"));
    Versioned { value: Bytes::from(value), revision }
}

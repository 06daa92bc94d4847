//! Pure: what was there before a transaction, so that a state that ran ahead of its store can go
//! back.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Serialize;

use super::{Effects, Entry, State};
use crate::keys::Subject;
use crate::store::{Key, Revision, Versioned, Write};
use crate::tenures::Mark;

/// What a transaction is about to change, as it was; from [`State::before`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Undo {
    revision: Revision,
    records: Vec<(Subject, Option<Versioned>)>,
    /// Of history only this is kept in memory.
    tenures: Vec<Mark>,
}

impl State {
    /// Returns what `writes` will change, as it is now. Costs as much as writing it again.
    pub(crate) fn before(&self, writes: &BTreeMap<Key, Write>) -> Undo {
        // A key that nobody knows changes nothing: it cannot be applied.
        let subjects = writes.keys().filter_map(|key| Subject::parse(key).ok());
        let mut tenures = Vec::new();
        let records = subjects.map(|subject| {
            if let Subject::Tenure(tenure) = &subject {
                tenures.extend(self.tenures.get(*tenure));
            }
            let stored = self.stored(&subject);
            (subject, stored)
        });
        Undo { revision: self.revision, records: records.collect(), tenures }
    }

    /// Takes a transaction back that was applied after `undo` was taken. Of several the last one
    /// goes first.
    ///
    /// The pointers into hosts' blocks stay where they are: they say only where to look first.
    pub(crate) fn revert(&mut self, undo: Undo) {
        let mut effects = Effects::default();
        for (subject, stored) in undo.records {
            match stored {
                Some(Versioned { value, revision }) => {
                    self.put(&subject, &value, revision, &mut effects).unwrap_or_else(|error| {
                        unreachable!("what was just serialised can be read: {error}")
                    });
                }
                None => self.delete(&subject, &mut effects),
            }
        }
        undo.tenures.into_iter().for_each(|tenure| self.tenures.put(tenure));
        self.settle_strays(&mut effects);
        self.revision = undo.revision;
    }

    /// Returns the record of a subject as the store has it.
    pub(crate) fn stored(&self, subject: &Subject) -> Option<Versioned> {
        match subject {
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
            Subject::Address(network, address) => encoded(self.slot(network, *address)),
            Subject::Reservation(key) => encoded(self.reservations.get(key)),
            Subject::Attachment(key) => encoded(self.attachments.get(key)),
            Subject::Host(name) => encoded(self.hosts.get(name)),
            Subject::Session(host) => encoded(self.sessions.get(host)),
            Subject::Heard(host) => encoded(self.heard(host)),
            Subject::Silent(host) => encoded(self.silence(host)),
            Subject::Report(host, id) => encoded(self.question(host, *id)),
            Subject::Quota(namespace) => encoded(self.quota(namespace)),
            Subject::Ask(host, uid) => encoded(self.ask(host, *uid)),
        }
    }
}

fn encoded<T: Serialize>(entry: Option<&Entry<T>>) -> Option<Versioned> {
    entry.map(|entry| versioned(&entry.record, entry.revision))
}

fn versioned<T: Serialize>(record: &T, revision: Revision) -> Versioned {
    let value = serde_json::to_vec(record)
        .unwrap_or_else(|error| unreachable!("records have nothing JSON lacks: {error}"));
    Versioned { value: Bytes::from(value), revision }
}

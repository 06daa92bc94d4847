//! Edge: the store's file while it is open: what is read from its tables and written to them.

use std::collections::{BTreeMap, BTreeSet, HashMap, hash_map};

use foldhash::fast::RandomState;
use redb::{Database, ReadOnlyTable, ReadableDatabase, ReadableTable, Table, WriteTransaction};

use super::super::log;
use super::super::{Event, Key, Outcome, Quiet, Revision, Seen, Txn, WatchError, Write};
use super::engine::Failure;
use super::overlay::{Chunk, Laid, Overlay};
use super::pages::Readers;
use super::recent::Ring;
use super::tables::{
    APPLIED, COMPACTED, EPHEMERAL, KEYS, LOG, LOG_BYTES, META, REVISION, split, stored, versioned,
};

/// Every how many revisions the log is cut.
const TRIM_EVERY: u64 = 64;

/// How many revisions are taken off the log at once at most. More than come in between, so that
/// a limit made smaller is reached soon, yet no commit waits for all of it.
const TRIM: u64 = 1024;

/// How many bytes of records the log may have, however few revisions they are.
const TRIM_BYTES: u64 = 256 << 20;

/// How many bytes of records a watch reads at once, which bounds its memory.
const CHANGES_BYTES: usize = 1 << 20;

/// The open file.
pub(super) struct Open {
    /// The reads under way.
    pub(super) readers: Readers,
    /// What the table of keys does not have yet.
    pub(super) overlay: Overlay,
    database: Database,
    revision: Revision,
    trimmed: Revision,
    log_bytes: u64,
    ephemeral: BTreeSet<Key>,
}

/// What became of a batch.
pub(super) struct Done {
    /// For each of its members.
    pub(super) outcomes: Vec<Outcome>,
    /// The revision, if something was changed.
    pub(super) event: Option<Event>,
}

/// What was looked up for a batch.
type There<'a> = HashMap<&'a str, Seen, RandomState>;

/// What a batch comes to.
#[derive(Default)]
struct Judged {
    /// For each member the key that is not as seen.
    conflicts: Vec<Option<Key>>,
    /// What the members without one change.
    changes: BTreeMap<Key, Write>,
    /// Keys that were ephemeral and are not any more.
    lasting: Vec<Key>,
    /// Keys that are ephemeral now.
    fleeting: Vec<Key>,
}

impl Open {
    /// Reads the counters, and what the log has that the table of keys may not have; returns the
    /// newest revisions besides.
    pub(super) fn read(database: Database, keep: u64) -> Result<(Self, Ring), Failure> {
        let transaction = database.begin_read()?;
        let meta = transaction.open_table(META)?;
        let counter =
            |name| -> Result<u64, Failure> { Ok(meta.get(name)?.map_or(0, |value| value.value())) };
        let revision = Revision(counter(REVISION)?);
        let applied = Revision(counter(APPLIED)?);
        let (trimmed, log_bytes) = (Revision(counter(COMPACTED)?), counter(LOG_BYTES)?);
        let mut overlay = Overlay::over(applied);
        let mut ring = Ring::after(applied, keep);
        let mut next = applied.next();
        for entry in transaction.open_table(LOG)?.range(next.0..)? {
            let (revision, record) = entry?;
            if revision.value() != next.0 {
                return Err(Failure::Gap(next));
            }
            let changes = log::decode(record.value())?;
            overlay.add(next, &changes);
            ring.push(Event { revision: next, changes });
            next = next.next();
        }
        if next != revision.next() {
            return Err(Failure::Gap(next));
        }
        let mut ephemeral = BTreeSet::new();
        for entry in transaction.open_table(EPHEMERAL)?.iter()? {
            ephemeral.insert(entry?.0.value().to_owned());
        }
        let readers = Readers::default();
        drop(meta);
        drop(transaction);
        let open = Self { readers, overlay, database, revision, trimmed, log_bytes, ephemeral };
        Ok((open, ring))
    }

    /// The newest durable revision.
    pub(super) fn revision(&self) -> Revision {
        self.revision
    }

    /// The transaction that takes all ephemeral keys away; none if there are none.
    pub(super) fn without_ephemeral(&self) -> Option<Txn> {
        let writes: BTreeMap<Key, Write> =
            self.ephemeral.iter().map(|key| (key.clone(), Write::Delete)).collect();
        (!writes.is_empty()).then(|| Txn { writes, ..Txn::default() })
    }

    /// The table of keys, as it is now.
    pub(super) fn keys(&self) -> Result<ReadOnlyTable<&'static str, &'static [u8]>, Failure> {
        Ok(self.database.begin_read()?.open_table(KEYS)?)
    }

    /// See [`super::Store::watch`]: up to `limit` revisions after `after`.
    pub(super) fn changes(
        &self,
        after: Revision,
        limit: usize,
        keep: u64,
    ) -> Result<Result<Vec<Event>, WatchError>, Failure> {
        let (wanted, newest) = (after, self.revision);
        let oldest = self.trimmed.max(Revision(newest.0.saturating_sub(keep)));
        if wanted < oldest {
            return Ok(Err(WatchError::Compacted { wanted, oldest }));
        }
        if wanted > newest {
            return Ok(Err(WatchError::Ahead { wanted, newest }));
        }
        let (mut events, mut bytes) = (Vec::new(), 0);
        for entry in self.database.begin_read()?.open_table(LOG)?.range(after.next().0..)? {
            let (revision, record) = entry?;
            bytes += record.value().len();
            let changes = log::decode(record.value())?;
            events.push(Event { revision: Revision(revision.value()), changes });
            if events.len() >= limit || bytes >= CHANGES_BYTES {
                break;
            }
        }
        Ok(Ok(events))
    }

    /// See [`super::Store::commit`]. `committing` is set once the library was told to commit;
    /// until then, dropping its transaction undoes everything.
    ///
    /// After an error this is not to be used any more.
    pub(super) fn commit(
        &mut self,
        batch: Vec<Txn>,
        keep: u64,
        committing: &mut bool,
    ) -> Result<Done, Failure> {
        let next = self.revision.next();
        let Judged { conflicts, changes, lasting, fleeting } = self.judge(batch)?;
        let wrote = !changes.is_empty();
        let revision = if wrote { next } else { self.revision };
        if wrote {
            let record = log::encode(&changes);
            // One wait for the disk: the library sees by checksums, and not by a second wait,
            // whether a commit was whole. After a crash it reads the file once to be sure.
            let transaction = self.database.begin_write()?;
            self.log_bytes += u64::try_from(record.len()).unwrap_or(u64::MAX);
            self.write(&transaction, &record, changes.len(), keep)?;
            self.mark(&transaction, lasting, fleeting)?;
            *committing = true;
            transaction.commit()?;
            self.revision = revision;
            self.overlay.add(revision, &changes);
        }
        let outcome = |conflict: Option<Key>| match conflict {
            Some(key) => Outcome::Conflict(key),
            None => Outcome::Committed(revision),
        };
        let outcomes = conflicts.into_iter().map(outcome).collect();
        Ok(Done { outcomes, event: wrote.then_some(Event { revision, changes }) })
    }

    /// Finds the members that conflict, and what the others change.
    fn judge(&self, batch: Vec<Txn>) -> Result<Judged, Failure> {
        let keys = self.keys()?;
        let mut judged = Judged::default();
        let mut there = There::default();
        for txn in &batch {
            judged.conflicts.push(self.conflict(&keys, txn, &mut there)?);
        }
        for (txn, conflict) in batch.into_iter().zip(&judged.conflicts) {
            let writes = if conflict.is_none() { txn.writes } else { BTreeMap::new() };
            for (key, write) in writes {
                if matches!(write, Write::Ephemeral(_)) {
                    judged.fleeting.push(key.clone());
                } else if self.ephemeral.contains(&key) {
                    judged.lasting.push(key.clone());
                }
                let told = match write {
                    Write::Put(value) | Write::Ephemeral(value) => Write::Put(value),
                    Write::Delete if self.seen(&keys, &key)? == Seen::Absent => continue,
                    Write::Delete => Write::Delete,
                };
                judged.changes.insert(key, told);
            }
        }
        Ok(judged)
    }

    /// How a key is now.
    fn seen(
        &self,
        keys: &ReadOnlyTable<&'static str, &'static [u8]>,
        key: &str,
    ) -> Result<Seen, Failure> {
        if let Some(entry) = self.overlay.get(key) {
            return Ok(entry.as_ref().map_or(Seen::Absent, |found| Seen::At(found.revision)));
        }
        Ok(match keys.get(key)? {
            Some(found) => Seen::At(split(found.value())?.0),
            None => Seen::Absent,
        })
    }

    /// Returns the first key that is not as `txn` saw it. What is there is looked up once for all
    /// members, which rely on the same few keys: network, host, session.
    fn conflict<'a>(
        &self,
        keys: &ReadOnlyTable<&'static str, &'static [u8]>,
        txn: &'a Txn,
        there: &mut There<'a>,
    ) -> Result<Option<Key>, Failure> {
        for (key, seen) in &txn.compares {
            let found = match there.entry(key) {
                hash_map::Entry::Occupied(entry) => *entry.get(),
                hash_map::Entry::Vacant(entry) => *entry.insert(self.seen(keys, key)?),
            };
            if found != *seen {
                return Ok(Some(key.clone()));
            }
        }
        for Quiet { from, to, since } in &txn.quiet {
            let mut over = self.overlay.range(from, |key| key < to.as_str());
            let rows = keys.range(from.as_str()..to.as_str())?.map(|row| {
                let (key, value) = row?;
                Ok::<_, Failure>((key.value().to_owned(), versioned(value.value())?))
            });
            for row in Laid::new(rows, &mut over) {
                let (key, found) = row?;
                if found.revision > *since {
                    return Ok(Some(key));
                }
            }
        }
        Ok(None)
    }

    /// Writes the log's record, a chunk of the fold, and the counters.
    fn write(
        &mut self,
        transaction: &WriteTransaction,
        record: &[u8],
        written: usize,
        keep: u64,
    ) -> Result<(), Failure> {
        let mut meta = transaction.open_table(META)?;
        let mut log = transaction.open_table(LOG)?;
        let next = self.revision.next();
        log.insert(next.0, record)?;
        meta.insert(REVISION, next.0)?;
        if let Some(Chunk { entries, applied }) = self.overlay.fold(self.revision, written) {
            let mut keys = transaction.open_table(KEYS)?;
            for (key, entry) in entries {
                match entry {
                    Some(value) => drop(keys.insert(key.as_str(), stored(&value).as_slice())?),
                    None => drop(keys.remove(key.as_str())?),
                }
            }
            if let Some(applied) = applied {
                meta.insert(APPLIED, applied.0)?;
            }
        }
        if next.0.is_multiple_of(TRIM_EVERY) {
            self.trim(&mut log, Revision(next.0.saturating_sub(keep)))?;
            meta.insert(COMPACTED, self.trimmed.0)?;
        }
        meta.insert(LOG_BYTES, self.log_bytes)?;
        Ok(())
    }

    /// Takes revisions up to `threshold` off the log, or more if it has too many bytes; never
    /// those which the table of keys may not have.
    fn trim(
        &mut self,
        log: &mut Table<'_, u64, &[u8]>,
        threshold: Revision,
    ) -> Result<(), Failure> {
        for _ in 0..TRIM {
            let too_much = self.trimmed < threshold || self.log_bytes > TRIM_BYTES;
            if !too_much || self.trimmed >= self.overlay.applied() {
                break;
            }
            self.trimmed = self.trimmed.next();
            if let Some(record) = log.remove(self.trimmed.0)? {
                let bytes = u64::try_from(record.value().len()).unwrap_or(u64::MAX);
                self.log_bytes = self.log_bytes.saturating_sub(bytes);
            }
        }
        Ok(())
    }

    /// Writes down which keys are ephemeral, where that changes.
    fn mark(
        &mut self,
        transaction: &WriteTransaction,
        lasting: Vec<Key>,
        fleeting: Vec<Key>,
    ) -> Result<(), Failure> {
        if lasting.is_empty() && fleeting.iter().all(|key| self.ephemeral.contains(key)) {
            return Ok(());
        }
        let mut table = transaction.open_table(EPHEMERAL)?;
        for key in lasting {
            table.remove(key.as_str())?;
            self.ephemeral.remove(&key);
        }
        for key in fleeting {
            table.insert(key.as_str(), ())?;
            self.ephemeral.insert(key);
        }
        Ok(())
    }
}

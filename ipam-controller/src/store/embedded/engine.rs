//! Edge: what the file's thread does for each job, over the library's tables.

use std::collections::BTreeMap;
use std::panic::{self, AssertUnwindSafe};

use bytes::Bytes;
use redb::{Database, ReadableDatabase, ReadableTable, Table, TableDefinition, WriteTransaction};
use tokio::sync::watch;
use tracing::warn;

use super::super::log;
use super::super::{
    Cause, CommitError, Event, Outcome, ReadError, Revision, Seen, Snapshot, Txn, Versioned,
    WatchError, Write,
};
use super::file::OpenError;

/// Counters, by the names below.
pub(super) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("limpet-meta");
/// Each key, with the revision that put it (8 bytes, little-endian) before its value.
pub(super) const KEYS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("limpet-keys");
/// Each revision, with what it changed.
pub(super) const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("limpet-log");

/// The version of these tables.
pub(super) const FORMAT: &str = "format";
/// The newest revision.
pub(super) const REVISION: &str = "revision";
/// The newest revision that the log no longer has; watching from it is still possible.
const COMPACTED: &str = "compacted";

/// How many old revisions one commit takes off the log at most. More than it adds, so that a
/// limit made smaller is reached soon, yet no commit waits for all of it.
const TRIM: u64 = 1024;

/// Opens the file again after a failure.
pub(super) type Reopen = Box<dyn Fn() -> Result<Database, OpenError> + Send>;

/// The file, when it is open, and how to open it.
pub(super) struct Engine {
    database: Option<Database>,
    reopen: Reopen,
    log_revisions: u64,
    head: watch::Sender<Revision>,
}

/// Why a job could not be done.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("cannot open the store again")]
    Reopen(#[source] OpenError),
    #[error("{0}")]
    Library(#[source] Box<redb::Error>),
    #[error(transparent)]
    Record(#[from] log::BadRecord),
    #[error(
        "a value of the store is shorter than its own revision: restore the store from a backup"
    )]
    ShortValue,
    #[error("the store's library gave up: {0}")]
    Panic(String),
}

impl<E: Into<redb::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Library(Box::new(error.into()))
    }
}

impl Engine {
    /// Starts with an open file; the head is known after the first job.
    pub(super) fn new(database: Database, reopen: Reopen, log_revisions: u64) -> Self {
        let revision = read_counters(&database).map_or(Revision(0), |(revision, _)| revision);
        let (head, _) = watch::channel(revision);
        Self { database: Some(database), reopen, log_revisions, head }
    }

    /// The newest durable revision, as it moves.
    pub(super) fn head(&self) -> watch::Receiver<Revision> {
        self.head.subscribe()
    }

    /// See [`super::Store::read`].
    pub(super) fn read(&mut self, prefix: &str) -> Result<Snapshot, ReadError> {
        self.run(|database| read(database, prefix)).map_err(|failure| ReadError(failure.into()))
    }

    /// See [`super::Store::watch`]: up to `limit` revisions after `after`.
    pub(super) fn changes(
        &mut self,
        after: Revision,
        limit: usize,
    ) -> Result<Vec<Event>, WatchError> {
        self.run(|database| changes(database, after, limit))
            .map_err(|failure| WatchError::Cut(failure.into()))?
    }

    /// See [`super::Store::commit`].
    pub(super) fn commit(&mut self, batch: &[Txn]) -> Result<Vec<Outcome>, CommitError> {
        let keep = self.log_revisions;
        // Until the library is told to commit, dropping its transaction undoes everything.
        let mut committing = false;
        let done = self.run(|database| {
            let mut transaction = database.begin_write()?;
            transaction.set_quick_repair(true);
            let staged = stage(&transaction, batch, keep)?;
            if staged.wrote {
                committing = true;
                transaction.commit()?;
            } else {
                transaction.abort()?;
            }
            Ok(staged)
        });
        match done {
            Ok(staged) => {
                self.head.send_replace(staged.revision);
                Ok(staged.outcomes)
            }
            Err(failure) if committing => Err(CommitError::Unknown(failure.into())),
            Err(failure) => Err(CommitError::NotDone(failure.into())),
        }
    }

    /// Runs `job` on the open file; whatever goes wrong closes it.
    ///
    /// The library asserts what a damaged file can break, so a panic of it is a failure like
    /// any other and does not end the process.
    fn run<T>(&mut self, job: impl FnOnce(&Database) -> Result<T, Failure>) -> Result<T, Failure> {
        let database = match self.database.take() {
            Some(database) => database,
            None => (self.reopen)().map_err(Failure::Reopen)?,
        };
        let result = panic::catch_unwind(AssertUnwindSafe(|| job(&database)))
            .unwrap_or_else(|panic| Err(Failure::Panic(words(panic.as_ref()))));
        match &result {
            Ok(_) => self.database = Some(database),
            Err(error) => {
                warn!(error = %Cause::from(error.to_string()), "closing the store after a failure");
                // A library that panicked once may do so again while it is taken down.
                let _ = panic::catch_unwind(AssertUnwindSafe(|| drop(database)));
            }
        }
        result
    }
}

/// What a panic said.
pub(super) fn words(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()))
        .unwrap_or_else(|| "no reason given".to_owned())
}

fn read_counters(database: &Database) -> Result<(Revision, Revision), Failure> {
    let transaction = database.begin_read()?;
    let meta = transaction.open_table(META)?;
    let counter = |name| -> Result<Revision, Failure> {
        Ok(Revision(meta.get(name)?.map_or(0, |value| value.value())))
    };
    Ok((counter(REVISION)?, counter(COMPACTED)?))
}

fn read(database: &Database, prefix: &str) -> Result<Snapshot, Failure> {
    let transaction = database.begin_read()?;
    let revision =
        Revision(transaction.open_table(META)?.get(REVISION)?.map_or(0, |value| value.value()));
    let mut entries = BTreeMap::new();
    for entry in transaction.open_table(KEYS)?.range(prefix..)? {
        let (key, value) = entry?;
        if !key.value().starts_with(prefix) {
            break;
        }
        entries.insert(key.value().to_owned(), versioned(value.value())?);
    }
    Ok(Snapshot { revision, entries })
}

fn changes(
    database: &Database,
    after: Revision,
    limit: usize,
) -> Result<Result<Vec<Event>, WatchError>, Failure> {
    let (newest, oldest) = read_counters(database)?;
    if after < oldest {
        return Ok(Err(WatchError::Compacted { wanted: after, oldest }));
    }
    if after > newest {
        return Ok(Err(WatchError::Ahead { wanted: after, newest }));
    }
    let transaction = database.begin_read()?;
    let mut events = Vec::new();
    for entry in transaction.open_table(LOG)?.range(after.next().0..)?.take(limit) {
        let (revision, record) = entry?;
        let changes = log::decode(record.value())?;
        events.push(Event { revision: Revision(revision.value()), changes });
    }
    Ok(Ok(events))
}

fn versioned(stored: &[u8]) -> Result<Versioned, Failure> {
    let (revision, value) = stored.split_first_chunk::<8>().ok_or(Failure::ShortValue)?;
    Ok(Versioned {
        value: Bytes::copy_from_slice(value),
        revision: Revision(u64::from_le_bytes(*revision)),
    })
}

/// A batch as carried out in a transaction that is not committed yet.
struct Staged {
    outcomes: Vec<Outcome>,
    revision: Revision,
    wrote: bool,
}

fn stage(transaction: &WriteTransaction, batch: &[Txn], keep: u64) -> Result<Staged, Failure> {
    let mut meta = transaction.open_table(META)?;
    let mut keys = transaction.open_table(KEYS)?;
    let mut log = transaction.open_table(LOG)?;
    let before = Revision(meta.get(REVISION)?.map_or(0, |value| value.value()));
    let conflicts =
        batch.iter().map(|txn| conflict(&keys, txn)).collect::<Result<Vec<_>, Failure>>()?;
    let mut changes = BTreeMap::new();
    for (txn, _) in batch.iter().zip(&conflicts).filter(|(_, conflict)| conflict.is_none()) {
        changes.extend(write(&mut keys, txn, before.next())?);
    }
    let wrote = !changes.is_empty();
    let revision = if wrote { before.next() } else { before };
    let outcome = |conflict: Option<String>| match conflict {
        Some(key) => Outcome::Conflict(key),
        None => Outcome::Committed(revision),
    };
    let outcomes = conflicts.into_iter().map(outcome).collect();
    if wrote {
        log.insert(revision.0, log::encode(&changes).as_slice())?;
        meta.insert(REVISION, revision.0)?;
        trim(&mut meta, &mut log, revision.0.saturating_sub(keep))?;
    }
    Ok(Staged { outcomes, revision, wrote })
}

/// Returns the first key that is not as `txn` saw it.
fn conflict(keys: &Table<'_, &str, &[u8]>, txn: &Txn) -> Result<Option<String>, Failure> {
    for (key, seen) in &txn.compares {
        let found = match keys.get(key.as_str())? {
            Some(stored) => Seen::At(versioned(stored.value())?.revision),
            None => Seen::Absent,
        };
        if found != *seen {
            return Ok(Some(key.clone()));
        }
    }
    for quiet in &txn.quiet {
        for entry in keys.range(quiet.from.as_str()..quiet.to.as_str())? {
            let (key, stored) = entry?;
            if versioned(stored.value())?.revision > quiet.since {
                return Ok(Some(key.value().to_owned()));
            }
        }
    }
    Ok(None)
}

/// Carries out the writes, and returns those that changed something.
fn write(
    keys: &mut Table<'_, &str, &[u8]>,
    txn: &Txn,
    revision: Revision,
) -> Result<BTreeMap<String, Write>, Failure> {
    let mut changes = BTreeMap::new();
    for (key, write) in &txn.writes {
        let told = match write {
            Write::Put(value) | Write::Ephemeral(value) => {
                let mut stored = revision.0.to_le_bytes().to_vec();
                stored.extend_from_slice(value);
                keys.insert(key.as_str(), stored.as_slice())?;
                Write::Put(value.clone())
            }
            Write::Delete if keys.remove(key.as_str())?.is_some() => Write::Delete,
            Write::Delete => continue,
        };
        changes.insert(key.clone(), told);
    }
    Ok(changes)
}

/// Takes revisions up to `threshold` off the log, at most [`TRIM`] of them.
fn trim(
    meta: &mut Table<'_, &str, u64>,
    log: &mut Table<'_, u64, &[u8]>,
    threshold: u64,
) -> Result<(), Failure> {
    let compacted = meta.get(COMPACTED)?.map_or(0, |value| value.value());
    if threshold <= compacted {
        return Ok(());
    }
    let until = threshold.min(compacted.saturating_add(TRIM));
    log.retain_in(..=until, |_, _| false)?;
    meta.insert(COMPACTED, until)?;
    Ok(())
}

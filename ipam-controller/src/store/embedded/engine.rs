//! Edge: what the file's thread does for each job, and what it does when the file fails.

use std::panic::{self, AssertUnwindSafe};
use std::path::Path;

use redb::Database;
use tokio::sync::watch;
use tracing::warn;

use super::super::log;
use super::super::{
    Cause, CommitError, Event, Outcome, Page, ReadError, Revision, Txn, WatchError,
};
use super::file::{self, OpenError};
use super::open::Open;
use super::pages::Begun;
use super::recent::Recent;
use super::tables::ShortValue;

/// Opens the file again after a failure.
pub(super) type Reopen = Box<dyn Fn() -> Result<Database, OpenError> + Send>;

/// The file, when it is open, and how to open it.
pub(super) struct Engine {
    open: Option<Open>,
    reopen: Reopen,
    log_revisions: u64,
    head: watch::Sender<Revision>,
    recent: Recent,
}

/// Why a job could not be done.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("cannot open the store again")]
    Reopen(#[source] OpenError),
    #[error("{0}")]
    Library(#[source] Box<redb::Error>),
    #[error(transparent)]
    Record(#[from] log::BadRecord),
    #[error(transparent)]
    ShortValue(#[from] ShortValue),
    #[error("the change log has no record of revision {0}: restore the store from a backup")]
    Gap(Revision),
    #[error("the store was opened again in the middle of the read")]
    ReaderGone,
    #[error("the store's library gave up: {0}")]
    Panic(String),
}

impl<E: Into<redb::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Library(Box::new(error.into()))
    }
}

impl Failure {
    /// The same, when it was to be opened for the first time.
    pub(super) fn at_opening(self, path: &Path) -> OpenError {
        match self {
            Self::Reopen(error) => error,
            Self::Library(error) => file::library_error(path, *error),
            other => OpenError::Damaged { path: path.to_owned(), reason: other.to_string() },
        }
    }
}

impl Engine {
    /// Starts with an open file. Ephemeral keys of whoever had it before are gone.
    pub(super) fn new(
        database: Database,
        reopen: Reopen,
        log_revisions: u64,
    ) -> Result<Self, Failure> {
        let (head, recent) = (watch::channel(Revision(0)).0, Recent::default());
        let mut engine = Self { open: None, reopen, log_revisions, head, recent };
        engine.open = Some(caught(|| engine.read(database))?);
        engine.drop_ephemeral()?;
        Ok(engine)
    }

    /// The newest durable revision, as it moves.
    pub(super) fn head(&self) -> watch::Receiver<Revision> {
        self.head.subscribe()
    }

    /// The newest revisions, as they come.
    pub(super) fn recent(&self) -> Recent {
        self.recent.clone()
    }

    /// See [`super::Store::read`]: begins it.
    pub(super) fn begin(&mut self, prefix: String) -> Result<Begun, ReadError> {
        let begun = self.run(|open| {
            open.readers.drop_unwanted();
            open.begin(prefix)
        });
        begun.map_err(|failure| ReadError(failure.into()))
    }

    /// Goes on with a read; an empty page is its end.
    pub(super) fn page(&mut self, number: u64) -> Result<Page, ReadError> {
        self.run(|open| open.page(number)).map_err(|failure| ReadError(failure.into()))
    }

    /// See [`super::Store::watch`]: up to `limit` revisions after `after`.
    pub(super) fn changes(
        &mut self,
        after: Revision,
        limit: usize,
    ) -> Result<Vec<Event>, WatchError> {
        let keep = self.log_revisions;
        self.run(|open| open.changes(after, limit, keep))
            .map_err(|failure| WatchError::Cut(failure.into()))?
    }

    /// See [`super::Store::commit`].
    pub(super) fn commit(&mut self, batch: Vec<Txn>) -> Result<Vec<Outcome>, CommitError> {
        let mut committing = false;
        let done = self.try_commit(batch, &mut committing);
        let kind = if committing { CommitError::Unknown } else { CommitError::NotDone };
        done.map_err(|failure| kind(failure.into()))
    }

    /// Takes the ephemeral keys away and tells watches that there is no more.
    pub(super) fn close(mut self) {
        if let Err(failure) = self.drop_ephemeral() {
            // They go when the file is opened.
            warn!(error = %failure, "ephemeral keys stay in the store");
        }
        self.recent.close();
    }

    fn drop_ephemeral(&mut self) -> Result<(), Failure> {
        if let Some(txn) = self.run(|open| Ok(open.without_ephemeral()))? {
            self.try_commit(vec![txn], &mut false)?;
        }
        Ok(())
    }

    fn try_commit(
        &mut self,
        batch: Vec<Txn>,
        committing: &mut bool,
    ) -> Result<Vec<Outcome>, Failure> {
        let keep = self.log_revisions;
        let done = self.run(|open| {
            open.readers.drop_unwanted();
            open.commit(batch, keep, committing)
        })?;
        if let Some(event) = done.event {
            let revision = event.revision;
            self.recent.push(event);
            self.head.send_replace(revision);
        }
        Ok(done.outcomes)
    }

    /// Reads what must be known of a file that was just opened.
    fn read(&self, database: Database) -> Result<Open, Failure> {
        let (open, ring) = Open::read(database, self.log_revisions)?;
        self.recent.replace(ring);
        self.head.send_replace(open.revision());
        Ok(open)
    }

    /// Runs `job` on the open file; whatever goes wrong closes it.
    fn run<T>(&mut self, job: impl FnOnce(&mut Open) -> Result<T, Failure>) -> Result<T, Failure> {
        let mut open = if let Some(open) = self.open.take() {
            open
        } else {
            let database = (self.reopen)().map_err(Failure::Reopen)?;
            caught(|| self.read(database))?
        };
        let result = caught(|| job(&mut open));
        match &result {
            // Only the read is over: the file is as good as before.
            Ok(_) | Err(Failure::ReaderGone) => self.open = Some(open),
            Err(error) => {
                warn!(error = %Cause::from(error.to_string()), "closing the store after a failure");
                // A library that panicked once may do so again while it is taken down.
                let _ = panic::catch_unwind(AssertUnwindSafe(|| drop(open)));
            }
        }
        result
    }
}

/// Runs `job`. The library asserts what a damaged file can break, so a panic of it is a failure
/// like any other and does not end the process.
fn caught<T>(job: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    panic::catch_unwind(AssertUnwindSafe(job))
        .unwrap_or_else(|panic| Err(Failure::Panic(words(panic.as_ref()))))
}

/// What a panic said.
pub(super) fn words(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()))
        .unwrap_or_else(|| "no reason given".to_owned())
}

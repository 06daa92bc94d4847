//! Edge: the store in one file on the controller's own disk.
//!
//! One thread owns the file and does everything with it, one job after another, so there is no
//! lock to hold and no reader that keeps a failed file open. A batch is one transaction of the
//! file and one wait for the disk, however many members it has.
//!
//! After any failure the file is closed, and opened and read again by the next job: what the
//! library remembers after a failed write is not to be trusted, what the disk says is.

mod engine;
mod file;
mod open;
mod overlay;
mod pages;
mod recent;
mod tables;

#[cfg(test)]
mod crashes;
#[cfg(test)]
mod tests;

pub(crate) use file::{OpenError, Options};

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::thread;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot, watch};

use self::engine::Engine;
use self::pages::Begun;
use self::recent::Recent;
use super::{
    CommitError, Event, Outcome, Page, Pages, ReadError, Revision, Store, Txn, Watch, WatchError,
    disjoint,
};

/// How many jobs may wait for the file before those who bring more must wait themselves.
const QUEUE: usize = 64;

/// How many revisions a watch reads at once, which bounds its memory.
const CHUNK: usize = 256;

/// Where a job's result goes.
type Reply<T, E> = oneshot::Sender<Result<T, E>>;

/// What the file's thread can be asked for.
enum Job {
    Read { prefix: String, reply: Reply<Begun, ReadError> },
    Page { number: u64, reply: Reply<Page, ReadError> },
    Commit { batch: Vec<Txn>, reply: Reply<Vec<Outcome>, CommitError> },
    Changes { after: Revision, reply: Reply<Vec<Event>, WatchError> },
    Close { reply: oneshot::Sender<()> },
}

/// The embedded store. Dropping it closes the file.
#[derive(Debug)]
pub(crate) struct Embedded {
    jobs: mpsc::Sender<Job>,
    head: watch::Receiver<Revision>,
    recent: Recent,
}

impl Embedded {
    /// Opens the store file, or makes it if there is none.
    ///
    /// Blocks while the disk is asked. A file that is there is never initialised again.
    ///
    /// # Errors
    ///
    /// [`OpenError`] says what is wrong with the path or the file, and what to do.
    pub(crate) fn open(options: &Options) -> Result<Self, OpenError> {
        let database = file::open_or_create(options)?;
        let (path, reopen) = (&options.path, options.clone());
        let reopen = Box::new(move || file::open(&reopen));
        let engine = Engine::new(database, reopen, options.log_revisions)
            .map_err(|failure| failure.at_opening(path))?;
        Self::start(engine).map_err(|source| OpenError::Io { path: path.clone(), source })
    }

    fn start(mut engine: Engine) -> io::Result<Self> {
        let (jobs, mut queue) = mpsc::channel(QUEUE);
        let (head, recent) = (engine.head(), engine.recent());
        thread::Builder::new().name("store".to_owned()).spawn(move || {
            while let Some(job) = queue.blocking_recv() {
                // Whoever no longer waits for the answer does not need it.
                match job {
                    Job::Read { prefix, reply } => drop(reply.send(engine.begin(prefix))),
                    Job::Page { number, reply } => drop(reply.send(engine.page(number))),
                    Job::Commit { batch, reply } => drop(reply.send(engine.commit(batch))),
                    Job::Changes { after, reply } => {
                        drop(reply.send(engine.changes(after, CHUNK)));
                    }
                    Job::Close { reply } => {
                        engine.close();
                        let _ = reply.send(());
                        return;
                    }
                }
            }
        })?;
        Ok(Self { jobs, head, recent })
    }
}

/// Hands a job to the file's thread and waits for its result; `None` if the store is closed.
async fn ask<T>(
    jobs: &mpsc::Sender<Job>,
    job: impl FnOnce(oneshot::Sender<T>) -> Job,
) -> Option<T> {
    let (reply, answer) = oneshot::channel();
    jobs.send(job(reply)).await.ok()?;
    answer.await.ok()
}

/// The cause of every failure after [`Store::close`].
#[derive(Debug, thiserror::Error)]
#[error("the store is closed")]
struct Closed;

impl Store for Embedded {
    fn read<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Box<dyn Pages>, ReadError>> {
        async move {
            let prefix = prefix.to_owned();
            let begun = ask(&self.jobs, |reply| Job::Read { prefix, reply })
                .await
                .unwrap_or_else(|| Err(ReadError(Closed.into())))?;
            let pages: Box<dyn Pages> = Box::new(FilePages { jobs: self.jobs.clone(), begun });
            Ok(pages)
        }
        .boxed()
    }

    fn is_shared(&self) -> bool {
        false
    }

    fn commit(&self, batch: Vec<Txn>) -> BoxFuture<'_, Result<Vec<Outcome>, CommitError>> {
        async move {
            disjoint(&batch)?;
            let (reply, answer) = oneshot::channel();
            if self.jobs.send(Job::Commit { batch, reply }).await.is_err() {
                return Err(CommitError::NotDone(Closed.into()));
            }
            // The thread took the batch and never answered: it may have got as far as the disk.
            answer.await.unwrap_or_else(|_| Err(CommitError::Unknown(Closed.into())))
        }
        .boxed()
    }

    fn watch(&self, after: Revision) -> BoxFuture<'_, Result<Box<dyn Watch>, WatchError>> {
        async move {
            let mut watch = LogWatch {
                jobs: self.jobs.clone(),
                head: self.head.clone(),
                recent: self.recent.clone(),
                after,
                ready: VecDeque::new(),
            };
            watch.fetch().await?;
            let watch: Box<dyn Watch> = Box::new(watch);
            Ok(watch)
        }
        .boxed()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        async move {
            // `None` means closed already.
            let _ = ask(&self.jobs, |reply| Job::Close { reply }).await;
        }
        .boxed()
    }
}

/// A read whose pages the file's thread gives.
struct FilePages {
    jobs: mpsc::Sender<Job>,
    begun: Begun,
}

impl Pages for FilePages {
    fn revision(&self) -> Revision {
        self.begun.revision
    }

    fn next(&mut self) -> BoxFuture<'_, Result<Option<Page>, ReadError>> {
        async move {
            let number = self.begun.number;
            let page = ask(&self.jobs, |reply| Job::Page { number, reply })
                .await
                .unwrap_or_else(|| Err(ReadError(Closed.into())))?;
            Ok((!page.is_empty()).then_some(page))
        }
        .boxed()
    }
}

/// A watch that waits at the newest revision for the head to move.
///
/// What is recent it has from memory, anything else from the change log.
///
/// It holds at most [`CHUNK`] revisions: a watcher that is slow falls behind in the log, not in
/// memory, until the log no longer reaches back to it.
struct LogWatch {
    jobs: mpsc::Sender<Job>,
    head: watch::Receiver<Revision>,
    recent: Recent,
    after: Revision,
    ready: VecDeque<Arc<Event>>,
}

impl LogWatch {
    async fn fetch(&mut self) -> Result<(), WatchError> {
        let after = self.after;
        if let Some(events) = self.recent.get(after, CHUNK) {
            self.ready.extend(events);
            return Ok(());
        }
        let events = ask(&self.jobs, |reply| Job::Changes { after, reply })
            .await
            .unwrap_or_else(|| Err(WatchError::Cut(Closed.into())))?;
        self.ready.extend(events.into_iter().map(Arc::new));
        Ok(())
    }
}

impl Watch for LogWatch {
    fn next(&mut self) -> BoxFuture<'_, Result<Event, WatchError>> {
        async move {
            loop {
                if let Some(event) = self.ready.pop_front() {
                    self.after = event.revision;
                    return Ok(Arc::unwrap_or_clone(event));
                }
                let after = self.after;
                if self.head.wait_for(|head| *head > after).await.is_err() {
                    return Err(WatchError::Cut(Closed.into()));
                }
                self.fetch().await?;
            }
        }
        .boxed()
    }
}

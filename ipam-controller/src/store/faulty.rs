//! Pure: a store that fails when it is told to, around one that works, for tests.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::{
    CommitError, Event, Outcome, Page, Pages, ReadError, Revision, Store, Txn, Watch, WatchError,
};

/// What goes wrong with one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The commit is refused, and nothing of it is done.
    NotDone,
    /// The commit is done, but nobody is told.
    DoneUntold,
    /// The commit is not done, and nobody is told.
    LostUntold,
    /// The commit takes this long.
    Slow(Duration),
    /// The commit takes this long, and then nobody is told whether it is done.
    Stuck {
        /// How long.
        pause: Duration,
        /// Whether it is.
        done: bool,
    },
    /// The commit is done this long after its caller was told that its outcome is unknown.
    Late(Duration),
}

/// The store, and the faults that its next commits and watches meet.
#[derive(Clone)]
pub(crate) struct Faulty {
    inner: Arc<dyn Store>,
    faults: Arc<Mutex<VecDeque<Fault>>>,
    cuts: Arc<Mutex<usize>>,
    short: Arc<Mutex<usize>>,
    lag: Arc<Mutex<Duration>>,
    opening: Arc<Mutex<Duration>>,
}

impl Faulty {
    /// Puts the wrapper around `inner`, without a fault yet.
    pub(crate) fn around(inner: Arc<dyn Store>) -> Self {
        Self {
            inner,
            faults: Arc::default(),
            cuts: Arc::default(),
            short: Arc::default(),
            opening: Arc::default(),
            lag: Arc::default(),
        }
    }

    /// Lets the next commit that has no fault yet meet this one.
    pub(crate) fn plan(&self, fault: Fault) {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).push_back(fault);
    }

    /// Cuts the next watch that is asked for a change.
    pub(crate) fn cut_watch(&self) {
        *self.cuts.lock().unwrap_or_else(PoisonError::into_inner) += 1;
    }

    /// Lets every watch take this long to begin.
    pub(crate) fn slow_watches(&self, opening: Duration) {
        *self.opening.lock().unwrap_or_else(PoisonError::into_inner) = opening;
    }

    /// Lets the next change that a watch tells of, and what follows, come so much later.
    pub(crate) fn lag_watch(&self, lag: Duration) {
        *self.lag.lock().unwrap_or_else(PoisonError::into_inner) = lag;
    }

    /// Ends the next read with an error after its first page.
    pub(crate) fn cut_read(&self) {
        *self.short.lock().unwrap_or_else(PoisonError::into_inner) += 1;
    }

    fn fault(&self) -> Option<Fault> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }
}

impl Store for Faulty {
    fn read<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Box<dyn Pages>, ReadError>> {
        async move {
            let inner = self.inner.read(prefix).await?;
            if take_one(&self.short) {
                let pages: Box<dyn Pages> = Box::new(ShortPages { inner, pages: 0 });
                return Ok(pages);
            }
            Ok(inner)
        }
        .boxed()
    }

    fn is_shared(&self) -> bool {
        self.inner.is_shared()
    }

    fn commit(&self, batch: Vec<Txn>) -> BoxFuture<'_, Result<Vec<Outcome>, CommitError>> {
        async move {
            match self.fault() {
                None => self.inner.commit(batch).await,
                Some(Fault::NotDone) => Err(CommitError::NotDone("planned".into())),
                Some(Fault::LostUntold) => Err(CommitError::Unknown("planned".into())),
                Some(Fault::DoneUntold) => {
                    self.inner.commit(batch).await?;
                    Err(CommitError::Unknown("planned".into()))
                }
                Some(Fault::Late(pause)) => {
                    let inner = self.inner.clone();
                    tokio::spawn(async move {
                        tokio::time::sleep(pause).await;
                        // Nobody is there to be told.
                        let _ = inner.commit(batch).await;
                    });
                    Err(CommitError::Unknown("planned".into()))
                }
                Some(Fault::Stuck { pause, done }) => {
                    tokio::time::sleep(pause).await;
                    if done {
                        self.inner.commit(batch).await?;
                    }
                    Err(CommitError::Unknown("planned".into()))
                }
                Some(Fault::Slow(pause)) => {
                    tokio::time::sleep(pause).await;
                    self.inner.commit(batch).await
                }
            }
        }
        .boxed()
    }

    fn watch(&self, after: Revision) -> BoxFuture<'_, Result<Box<dyn Watch>, WatchError>> {
        async move {
            let opening = *self.opening.lock().unwrap_or_else(PoisonError::into_inner);
            tokio::time::sleep(opening).await;
            let inner = self.inner.watch(after).await?;
            let (cuts, lag) = (self.cuts.clone(), self.lag.clone());
            let until = tokio::time::Instant::now();
            let watch: Box<dyn Watch> =
                Box::new(FaultyWatch { inner, cuts, lag, until, held: None });
            Ok(watch)
        }
        .boxed()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.inner.close()
    }
}

/// Takes one off a count of faults to come, if there are any.
fn take_one(count: &Mutex<usize>) -> bool {
    let mut count = count.lock().unwrap_or_else(PoisonError::into_inner);
    let some = *count > 0;
    *count -= usize::from(some);
    some
}

struct ShortPages {
    inner: Box<dyn Pages>,
    pages: usize,
}

impl Pages for ShortPages {
    fn revision(&self) -> Revision {
        self.inner.revision()
    }

    fn next(&mut self) -> BoxFuture<'_, Result<Option<Page>, ReadError>> {
        async move {
            self.pages += 1;
            if self.pages > 1 {
                return Err(ReadError("planned".into()));
            }
            self.inner.next().await
        }
        .boxed()
    }
}

struct FaultyWatch {
    inner: Box<dyn Watch>,
    cuts: Arc<Mutex<usize>>,
    lag: Arc<Mutex<Duration>>,
    until: tokio::time::Instant,
    held: Option<Event>,
}

impl Watch for FaultyWatch {
    fn next(&mut self) -> BoxFuture<'_, Result<Event, WatchError>> {
        async move {
            if take_one(&self.cuts) {
                return Err(WatchError::Cut("planned".into()));
            }
            // Whoever gives up waiting, and waits again, loses nothing and waits no longer.
            if self.held.is_none() {
                self.held = Some(self.inner.next().await?);
                let lag = {
                    let mut lag = self.lag.lock().unwrap_or_else(PoisonError::into_inner);
                    std::mem::take(&mut *lag)
                };
                self.until = self.until.max(tokio::time::Instant::now() + lag);
            }
            tokio::time::sleep_until(self.until).await;
            self.held.take().ok_or_else(|| WatchError::Cut("planned".into()))
        }
        .boxed()
    }
}

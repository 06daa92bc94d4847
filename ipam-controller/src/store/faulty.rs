//! Pure: a store that fails when it is told to, around one that works, for tests.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::{
    CommitError, Event, Outcome, ReadError, Revision, Snapshot, Store, Txn, Watch, WatchError,
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
}

/// The store, and the faults that its next commits and watches meet.
#[derive(Clone)]
pub(crate) struct Faulty {
    inner: Arc<dyn Store>,
    faults: Arc<Mutex<VecDeque<Fault>>>,
    cuts: Arc<Mutex<usize>>,
}

impl Faulty {
    /// Puts the wrapper around `inner`, without a fault yet.
    pub(crate) fn around(inner: Arc<dyn Store>) -> Self {
        Self { inner, faults: Arc::default(), cuts: Arc::default() }
    }

    /// Lets the next commit that has no fault yet meet this one.
    pub(crate) fn plan(&self, fault: Fault) {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).push_back(fault);
    }

    /// Cuts the next watch that is asked for a change.
    pub(crate) fn cut_watch(&self) {
        *self.cuts.lock().unwrap_or_else(PoisonError::into_inner) += 1;
    }

    fn fault(&self) -> Option<Fault> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }
}

impl Store for Faulty {
    fn read<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Snapshot, ReadError>> {
        self.inner.read(prefix)
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
            let inner = self.inner.watch(after).await?;
            let watch: Box<dyn Watch> = Box::new(FaultyWatch { inner, cuts: self.cuts.clone() });
            Ok(watch)
        }
        .boxed()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        self.inner.close()
    }
}

struct FaultyWatch {
    inner: Box<dyn Watch>,
    cuts: Arc<Mutex<usize>>,
}

impl Watch for FaultyWatch {
    fn next(&mut self) -> BoxFuture<'_, Result<Event, WatchError>> {
        async move {
            {
                let mut cuts = self.cuts.lock().unwrap_or_else(PoisonError::into_inner);
                if *cuts > 0 {
                    *cuts -= 1;
                    return Err(WatchError::Cut("planned".into()));
                }
            }
            self.inner.next().await
        }
        .boxed()
    }
}

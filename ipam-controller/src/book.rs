//! Edge: the way to the one task that decides, and what it is asked.
//!
//! | file | does |
//! |---|---|
//! | [`keeper`] | takes requests in batches and decides |
//! | [`committing`] | commits batches, and tells or decides again |
//! | [`hearing`] | follows what other controllers write |
//! | [`round`] | a batch, from its first decision to its commit |
//! | [`request`] | a request, from its first decision to its answer |

mod committing;
mod hearing;
pub(crate) mod keeper;
mod request;
mod round;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use limpet_api::{ApiError, ErrorCode, FleetTime};
use limpet_net_types::Uid;
use tokio::sync::{broadcast, mpsc, oneshot, watch};

pub(crate) use self::keeper::Keeper;
use self::keeper::Tellers;
use self::request::{Pending, Request};
use crate::backup::restoring;
use crate::draft::Decision;
use crate::state::{BadRecord, Entry, State};
use crate::store::{ReadError, Revision, Store};
use crate::watch::feed::{Beginning, Watcher};

/// How many requests may wait.
const QUEUE: usize = 4096;

/// How many ends of attachments a claim that waits for one may fall behind before it looks for
/// itself.
const ENDED: usize = 256;

/// Why the book cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// The store cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The store has what this program does not understand.
    #[error(transparent)]
    Record(#[from] BadRecord),
}

/// The way to the task; clones lead to the same one.
#[derive(Clone, Debug)]
pub(crate) struct Book {
    jobs: mpsc::Sender<Job>,
    head: watch::Receiver<Revision>,
    ended: broadcast::Sender<Uid>,
    periods: watch::Receiver<FleetTime>,
}

enum Job {
    Decide(Box<dyn Pending>),
    Watch { watcher: Watcher, reply: oneshot::Sender<Result<Beginning, ApiError>> },
    Turn { reply: oneshot::Sender<()> },
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Decide(_) => "Decide",
            Self::Watch { .. } => "Watch",
            Self::Turn { .. } => "Turn",
        })
    }
}

/// Reads the store, and returns the task and the way to it.
///
/// # Errors
///
/// [`LoadError`]: the controller cannot start on this store.
pub(crate) async fn open(store: Arc<dyn Store>) -> Result<(Book, Keeper), LoadError> {
    let state = hearing::read(&*store).await?;
    let (jobs, queue) = mpsc::channel(QUEUE);
    let (head, heads) = watch::channel(state.revision());
    let (ended, _) = broadcast::channel(ENDED);
    let (period, periods) = watch::channel(state.now());
    let tellers = Tellers { head, ended: ended.clone(), period };
    Ok((Book { jobs, head: heads, ended, periods }, Keeper::new(store, state, queue, tellers)))
}

impl Book {
    /// Decides a request, and returns its answer with the revision at which it holds.
    ///
    /// `decide` may be called several times, always on what is in the store.
    ///
    /// # Errors
    ///
    /// The decision's own; `store-restoring` while a restore is under way; `unavailable` if nothing was done; `outcome-unknown` if something may
    /// have been.
    pub(crate) async fn decide<T: Send + 'static>(
        &self,
        mut decide: impl FnMut(&State) -> Decision<T> + Send + 'static,
    ) -> Result<(T, Revision), ApiError> {
        self.decide_always(move |state| match restoring::refusal(state) {
            Some(refusal) => refusal,
            None => decide(state),
        })
        .await
    }

    /// Decides what is part of a restore: everything else is refused while one is under way.
    ///
    /// # Errors
    ///
    /// As [`Self::decide`].
    pub(crate) async fn decide_always<T: Send + 'static>(
        &self,
        decide: impl FnMut(&State) -> Decision<T> + Send + 'static,
    ) -> Result<(T, Revision), ApiError> {
        let (reply, answer) = oneshot::channel();
        let request = Request::new(decide, reply);
        self.jobs.send(Job::Decide(Box::new(request))).await.map_err(|_| stopping())?;
        answer.await.unwrap_or_else(|_| Err(stopping()))
    }

    /// Decides on a record, and returns it with the revision that put it.
    ///
    /// # Errors
    ///
    /// As [`Self::decide`].
    pub(crate) async fn change<T: Send + 'static>(
        &self,
        decide: impl FnMut(&State) -> Decision<Entry<T>> + Send + 'static,
    ) -> Result<Entry<T>, ApiError> {
        let (entry, committed) = self.decide(decide).await?;
        // What the transaction itself put has its revision.
        let revision = entry.revision.min(committed);
        Ok(Entry { revision, ..entry })
    }

    /// Looks at the state, in which everything is durable, and which is at least as new as the
    /// store was when this was asked. `look` may be called several times.
    ///
    /// # Errors
    ///
    /// `unavailable` if the store cannot be asked, or the controller stops.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        mut look: impl FnMut(&State) -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        self.decide(move |state| Decision::make(|_| Ok(look(state)))).await.map(|(seen, _)| seen)
    }

    /// Looks at the state, also while a restore is under way.
    ///
    /// # Errors
    ///
    /// As [`Self::read`].
    pub(crate) async fn read_always<T: Send + 'static>(
        &self,
        mut look: impl FnMut(&State) -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let look = move |state: &State| Decision::make(|_| Ok(look(state)));
        self.decide_always(look).await.map(|(seen, _)| seen)
    }

    /// Begins a watch.
    ///
    /// # Errors
    ///
    /// As [`crate::watch::feed::Feed::begin`]; `unavailable` if the controller stops.
    pub(crate) async fn watch(&self, watcher: Watcher) -> Result<Beginning, ApiError> {
        let (reply, answer) = oneshot::channel();
        self.jobs.send(Job::Watch { watcher, reply }).await.map_err(|_| stopping())?;
        answer.await.unwrap_or_else(|_| Err(stopping()))
    }

    /// Waits until the task has come to what was asked just now; the store is not needed for that.
    ///
    /// # Errors
    ///
    /// `unavailable` if the controller stops.
    pub(crate) async fn turns(&self) -> Result<(), ApiError> {
        let (reply, answer) = oneshot::channel();
        self.jobs.send(Job::Turn { reply }).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())
    }

    /// The newest revision of which everybody concerned has been told.
    pub(crate) fn head(&self) -> watch::Receiver<Revision> {
        self.head.clone()
    }

    /// The incarnations that end from now on.
    pub(crate) fn ended(&self) -> broadcast::Receiver<Uid> {
        self.ended.subscribe()
    }

    /// Fleet time, whenever this controller has advanced it: the reclaiming of the period that has
    /// begun is its to do.
    pub(crate) fn periods(&self) -> watch::Receiver<FleetTime> {
        self.periods.clone()
    }
}

fn stopping() -> ApiError {
    ApiError::new(ErrorCode::Unavailable, "the controller is stopping: ask again, or another one")
}

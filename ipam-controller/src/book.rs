//! Edge: the one task that decides. It owns the state, takes requests in batches, decides one
//! after another, each seeing what those before it decided, commits the batch, and only then
//! tells anybody.
//!
//! The state is changed while it is decided, before the store has said yes. Nobody else sees it
//! until then; and if the store says no, or nothing, it is read again from the store, and what
//! was not told is decided again. Requests are made to be decided again: what has happened
//! already is found under the caller's own names and has the same answer.

mod request;
#[cfg(test)]
mod tests;

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use limpet_api::{ApiError, ErrorCode, FleetTime, Span};
use limpet_net_types::Uid;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::{self, Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use self::request::{Pending, Request};
use crate::draft::{Decision, Draft};
use crate::keys::Subject;
use crate::state::{BadRecord, Effects, State};
use crate::store::{CommitError, Footprint, Outcome, ReadError, Revision, Snapshot, Store, Txn};
use crate::watch::Told;
use crate::watch::feed::{Beginning, Feed, Watcher};

/// How many requests are committed at once.
const BATCH: usize = 256;

/// How many requests may wait.
const QUEUE: usize = 4096;

/// How often a request is decided before its caller is told to try again itself.
const ATTEMPTS: usize = 3;

/// The pause after the store has failed.
const PAUSE: Duration = Duration::from_millis(200);

/// How often fleet time is advanced.
const CLOCK: Duration = Duration::from_secs(10);

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
    /// The store cannot be written.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

/// The way to the task; clones lead to the same one.
#[derive(Clone, Debug)]
pub(crate) struct Book {
    jobs: mpsc::Sender<Job>,
    head: watch::Receiver<Revision>,
    ended: broadcast::Sender<Uid>,
    periods: watch::Receiver<FleetTime>,
}

/// What the task does.
pub(crate) struct Keeper {
    store: Arc<dyn Store>,
    state: State,
    feed: Feed,
    jobs: mpsc::Receiver<Job>,
    head: watch::Sender<Revision>,
    ended: broadcast::Sender<Uid>,
    periods: watch::Sender<FleetTime>,
    ticked: Instant,
}

enum Job {
    Decide(Box<dyn Pending>),
    Read(Box<dyn FnOnce(&State) + Send>),
    Watch { watcher: Watcher, reply: oneshot::Sender<Result<Beginning, ApiError>> },
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Decide(_) => "Decide",
            Self::Read(_) => "Read",
            Self::Watch { .. } => "Watch",
        })
    }
}

/// Reads the store, and returns the task and the way to it.
///
/// # Errors
///
/// [`LoadError`]: the controller cannot start on this store.
pub(crate) async fn open(store: Arc<dyn Store>) -> Result<(Book, Keeper), LoadError> {
    let mut state = State::load(&Snapshot::of(&*store, "").await?)?;
    if let Some(settling) = without_asks(&state) {
        store.commit(vec![settling]).await?;
        state = State::load(&Snapshot::of(&*store, "").await?)?;
    }
    let (jobs, queue) = mpsc::channel(QUEUE);
    let (head_sender, head) = watch::channel(state.revision());
    let (ended, _) = broadcast::channel(ENDED);
    let (periods_sender, periods) = watch::channel(state.now());
    let keeper = Keeper {
        store,
        state,
        feed: Feed::default(),
        jobs: queue,
        head: head_sender,
        ended: ended.clone(),
        periods: periods_sender,
        ticked: Instant::now(),
    };
    Ok((Book { jobs, head, ended, periods }, keeper))
}

impl Book {
    /// Decides a request, and returns its answer with the revision at which it holds.
    ///
    /// `decide` may be called several times, always on what is in the store.
    ///
    /// # Errors
    ///
    /// The decision's own; `unavailable` if nothing was done; `outcome-unknown` if something may
    /// have been.
    pub(crate) async fn decide<T: Send + 'static>(
        &self,
        decide: impl FnMut(&State) -> Decision<T> + Send + 'static,
    ) -> Result<(T, Revision), ApiError> {
        let (reply, answer) = oneshot::channel();
        let request = Request::new(decide, reply);
        self.jobs.send(Job::Decide(Box::new(request))).await.map_err(|_| stopping())?;
        answer.await.unwrap_or_else(|_| Err(stopping()))
    }

    /// Looks at the state, in which everything is durable.
    ///
    /// # Errors
    ///
    /// `unavailable` if the controller stops.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        look: impl FnOnce(&State) -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let (reply, answer) = oneshot::channel();
        let look = move |state: &State| drop(reply.send(look(state)));
        self.jobs.send(Job::Read(Box::new(look))).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())
    }

    /// Begins a watch.
    ///
    /// # Errors
    ///
    /// As [`Feed::begin`]; `unavailable` if the controller stops.
    pub(crate) async fn watch(&self, watcher: Watcher) -> Result<Beginning, ApiError> {
        let (reply, answer) = oneshot::channel();
        self.jobs.send(Job::Watch { watcher, reply }).await.map_err(|_| stopping())?;
        answer.await.unwrap_or_else(|_| Err(stopping()))
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

/// Whether the state is what the store has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reloaded {
    /// It is.
    Yes,
    /// It is not, and the controller stops.
    Stopped,
}

impl Reloaded {
    fn is_stopped(self) -> bool {
        self == Self::Stopped
    }
}

/// A batch that is decided and not yet committed.
struct Round {
    members: Vec<Box<dyn Pending>>,
    txns: Vec<Txn>,
    told: Option<Told>,
}

impl Keeper {
    /// Decides until `stop`, or until nobody can ask any more.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut clock = time::interval(CLOCK);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // All may be dropped: a job is taken out of the queue only when its arm runs. The end
            // comes first: after it the state may not be what the store has.
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                _ = clock.tick() => self.advance_clock(&stop).await,
                job = self.jobs.recv() => match job {
                    Some(job) => self.serve(job, &stop).await,
                    None => break,
                },
            }
        }
        self.feed.reset();
        debug!("the book is closed");
    }

    async fn serve(&mut self, first: Job, stop: &CancellationToken) {
        let mut batch: Vec<Box<dyn Pending>> = Vec::new();
        let mut next = Some(first);
        while let Some(job) = next {
            match job {
                Job::Decide(pending) => batch.push(pending),
                Job::Read(look) => look(&self.state),
                Job::Watch { watcher, reply } => {
                    let _ = reply.send(self.feed.begin(&self.state, watcher));
                }
            }
            next = if batch.len() < BATCH { self.jobs.try_recv().ok() } else { None };
        }
        self.carry_out(batch, stop).await;
    }

    async fn carry_out(&mut self, mut waiting: Vec<Box<dyn Pending>>, stop: &CancellationToken) {
        let mut failures = 0;
        while failures < ATTEMPTS {
            waiting.retain(|pending| !pending.is_abandoned());
            if waiting.is_empty() {
                return;
            }
            let Ok(round) = self.decide(&mut waiting) else {
                failures += 1;
                if self.reload(stop).await.is_stopped() {
                    break;
                }
                continue;
            };
            let Round { mut members, txns, told } = round;
            match self.store.commit(txns).await {
                Ok(outcomes) => match self.settle(members, outcomes, told) {
                    Ok(()) => continue,
                    Err(again) => {
                        let left = again.len();
                        warn!(left, "the store has what this controller did not write");
                        waiting.extend(again);
                    }
                },
                Err(error) => {
                    let unknown = matches!(error, CommitError::Unknown(_));
                    let cause: &(dyn Error + 'static) = &error;
                    error!(error = cause, "commit failed");
                    if unknown {
                        for pending in &mut members {
                            pending.doubt();
                        }
                    }
                    waiting.extend(members);
                }
            }
            failures += 1;
            if self.reload(stop).await.is_stopped() {
                break;
            }
            time::sleep(PAUSE).await;
        }
        waiting.into_iter().for_each(Pending::give_up);
    }

    /// Decides each on top of those before it; those that meet one of them are left for the next
    /// batch. On an error the state is not to be used any more, and nobody is left out of `waiting`.
    fn decide(&mut self, waiting: &mut Vec<Box<dyn Pending>>) -> Result<Round, BadRecord> {
        let revision = self.state.revision().next();
        let mut footprint = Footprint::default();
        let mut effects: Option<Effects> = None;
        let mut decided = Vec::with_capacity(waiting.len());
        for pending in waiting.iter_mut() {
            let txn = pending.decide(&self.state);
            if footprint.add(&txn).is_err() {
                decided.push(None);
                continue;
            }
            if !txn.writes.is_empty() {
                let new = self.state.apply(revision, &txn.writes)?;
                match &mut effects {
                    Some(effects) => effects.merge(new),
                    None => effects = Some(new),
                }
            }
            decided.push(Some(txn));
        }
        let told = effects.map(|effects| Told::of(&self.state, effects));
        let mut round = Round { members: Vec::new(), txns: Vec::new(), told };
        for (pending, decided) in std::mem::take(waiting).into_iter().zip(decided) {
            match decided {
                Some(txn) => {
                    round.txns.push(txn);
                    round.members.push(pending);
                }
                None => waiting.push(pending),
            }
        }
        Ok(round)
    }

    /// Tells everybody; or returns those that must be decided again, if the state turns out not to
    /// be what the store has.
    fn settle(
        &mut self,
        members: Vec<Box<dyn Pending>>,
        outcomes: Vec<Outcome>,
        told: Option<Told>,
    ) -> Result<(), Vec<Box<dyn Pending>>> {
        let revision = self.state.revision();
        if !outcomes.iter().all(|outcome| *outcome == Outcome::Committed(revision)) {
            let mut again = Vec::new();
            for (member, outcome) in members.into_iter().zip(outcomes) {
                match outcome {
                    Outcome::Committed(revision) => member.settle(revision),
                    Outcome::Conflict(key) => {
                        debug!(key, "decided on what has changed since");
                        again.push(member);
                    }
                }
            }
            return Err(again);
        }
        if let Some(told) = told {
            for uid in told.ended() {
                // Nobody may be waiting for it.
                let _ = self.ended.send(uid);
            }
            self.feed.tell(self.state.store(), told);
        }
        for member in members {
            member.settle(revision);
        }
        self.head.send_replace(revision);
        Ok(())
    }

    /// Reads everything again, until that succeeds or the controller stops.
    async fn reload(&mut self, stop: &CancellationToken) -> Reloaded {
        self.feed.reset();
        loop {
            let loaded = match Snapshot::of(&*self.store, "").await {
                Ok(snapshot) => State::load(&snapshot).map_err(LoadError::from),
                Err(error) => Err(error.into()),
            };
            match loaded {
                Ok(state) => {
                    info!(revision = %state.revision(), "the store was read again");
                    self.state = state;
                    self.head.send_replace(self.state.revision());
                    return Reloaded::Yes;
                }
                Err(error) => {
                    let cause: &(dyn Error + 'static) = &error;
                    warn!(error = cause, retry_in = ?PAUSE, "cannot read the store again");
                }
            }
            // Both may be dropped: neither holds anything.
            tokio::select! {
                () = stop.cancelled() => return Reloaded::Stopped,
                () = time::sleep(PAUSE) => {}
            }
        }
    }

    /// Adds the time since the last tick to fleet time, if the store takes it.
    async fn advance_clock(&mut self, stop: &CancellationToken) {
        let elapsed = self.ticked.elapsed().as_secs();
        if elapsed == 0 {
            return;
        }
        let (reply, told) = oneshot::channel();
        let decide = move |state: &State| advance(state, Span::from_seconds(elapsed));
        let request = Request::new(decide, reply);
        self.carry_out(vec![Box::new(request)], stop).await;
        if let Ok(Ok((now, _))) = told.await {
            self.ticked += Duration::from_secs(elapsed);
            self.periods.send_replace(now);
        }
    }
}

/// Takes all questions back: those who waited for an answer went with the process that they asked.
fn without_asks(state: &State) -> Option<Txn> {
    let mut draft = Draft::default();
    for ((host, uid), _) in state.asks() {
        draft.delete(&Subject::Ask(host.clone(), *uid));
    }
    let txn = draft.into_txn();
    (!txn.writes.is_empty()).then_some(txn)
}

/// Decides that fleet time goes on by `elapsed`.
fn advance(state: &State, elapsed: Span) -> Decision<FleetTime> {
    Decision::make(|draft: &mut Draft| {
        draft.rely(&Subject::Clock, state.clock());
        let now = state.now().plus(elapsed);
        draft.put(&Subject::Clock, &now);
        Ok(now)
    })
}

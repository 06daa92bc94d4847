//! Edge: the one task that decides. It owns the state, takes requests in batches, decides one
//! after another, each seeing what those before it decided, commits the batch, and only then
//! tells anybody.
//!
//! The state is changed while it is decided, before the store has said yes. Nobody else sees it
//! until then. If the store says anything but yes to all of it, or somebody else wrote in between,
//! the state goes back to what it was, hears what the store has now, and what was not told is
//! decided again. Requests are made to be decided again: what has happened already is found under
//! the caller's own names and has the same answer.
//!
//! What writes nothing, such as a refusal, is told only if it was decided on a state that is as
//! new as the store was when the request came. Each request notes that revision when it is
//! committed for the first time.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use limpet_api::{ApiError, ErrorCode, FleetTime, Span, WallTime};
use limpet_net_types::{Token, Uid};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::{self, Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

use super::Job;
use super::hearing::{Ear, Sync};
use super::request::{Pending, Request};
use super::round::Round;
use crate::alloc::restored;
use crate::backup::restoring;
use crate::draft::{Decision, Draft};
use crate::keys::Subject;
use crate::random;
use crate::state::{BadRecord, State};
use crate::store::{Revision, Store};
use crate::watch::Told;
use crate::watch::feed::{Beginning, Feed, Knows, Watcher};

/// How many requests are committed at once.
pub(super) const BATCH: usize = 256;

/// How often a batch is tried on a store that fails before its callers are told to try again
/// themselves.
pub(super) const ATTEMPTS: usize = 3;

/// How often a request is decided again because others were faster: each time somebody got on.
const CONFLICTS: usize = 32;

/// The pause after the store has failed.
pub(super) const PAUSE: Duration = Duration::from_millis(200);

/// How often fleet time is advanced.
const CLOCK: Duration = Duration::from_secs(10);

/// Where the task tells what it has done.
pub(super) struct Tellers {
    pub(super) head: watch::Sender<Revision>,
    pub(super) ended: broadcast::Sender<Uid>,
    pub(super) period: watch::Sender<FleetTime>,
}

/// What the task has.
pub(crate) struct Keeper {
    pub(super) store: Arc<dyn Store>,
    pub(super) state: State,
    pub(super) feed: Feed,
    pub(super) ear: Ear,
    /// Whether the state is known to be what the store had.
    pub(super) sync: Sync,
    pub(super) jobs: mpsc::Receiver<Job>,
    /// What came while something was not durable yet, and is no decision.
    pub(super) aside: Option<Job>,
    pub(super) tellers: Tellers,
    /// When fleet time was what it is.
    pub(super) ticked: Instant,
}

impl Keeper {
    pub(super) fn new(
        store: Arc<dyn Store>,
        state: State,
        jobs: mpsc::Receiver<Job>,
        tellers: Tellers,
    ) -> Self {
        Self {
            ear: Ear::new(Arc::clone(&store)),
            store,
            state,
            feed: Feed::default(),
            sync: Sync::Good,
            jobs,
            aside: None,
            tellers,
            ticked: Instant::now(),
        }
    }

    /// Decides until `stop`, or until nobody can ask any more.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut clock = time::interval(CLOCK);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let follows = self.store.is_shared() && self.sync == Sync::Good;
            let after = self.state.revision();
            // All may be dropped: a job is taken out of the queue only when its arm runs, and what
            // is heard is not lost. The end comes first: after it the state may not be what the
            // store has.
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = time::sleep(PAUSE), if self.sync != Sync::Good => {
                    self.resync().await;
                }
                heard = self.ear.next(after), if follows => self.hear(heard),
                _ = clock.tick() => self.advance_clock().await,
                job = next(&mut self.aside, &mut self.jobs) => match job {
                    Some(job) => self.serve(job).await,
                    None => break,
                },
            }
        }
        self.feed.reset();
        debug!("the book is closed");
    }

    async fn serve(&mut self, first: Job) {
        let mut batch = Vec::new();
        let mut next = Some(first);
        while let Some(job) = next {
            self.attend(job, &mut batch).await;
            next = if batch.len() < BATCH { self.jobs.try_recv().ok() } else { None };
        }
        self.carry_out(batch).await;
    }

    async fn attend(&mut self, job: Job, batch: &mut Vec<Box<dyn Pending>>) {
        match job {
            Job::Decide(pending) => batch.push(pending),
            Job::Watch { watcher, reply } => {
                let begun = self.begin(watcher).await;
                let _ = reply.send(begun);
            }
            // Whoever asked has gone, or is told.
            Job::Turn { reply } => drop(reply.send(())),
        }
    }

    async fn begin(&mut self, watcher: Watcher) -> Result<Beginning, ApiError> {
        let is_behind = match &watcher.knows {
            Knows::UpTo(store, since) => {
                *store == self.state.store() && *since > self.state.revision()
            }
            Knows::Nothing | Knows::Logged(..) => false,
        };
        // It may have joined at another controller a moment ago.
        let is_behind = is_behind || self.state.host(&watcher.host).is_none();
        if self.sync != Sync::Good || (is_behind && self.store.is_shared()) {
            self.freshen().await;
        }
        if self.sync != Sync::Good {
            let text = "the store cannot be read just now: ask again";
            return Err(ApiError::new(ErrorCode::Unavailable, text));
        }
        if let Some(restoring) = self.state.restoring() {
            return Err(restoring::under_way(&restoring.record));
        }
        if let Knows::UpTo(store, since) = watcher.knows {
            self.look_back(store, since).await;
        }
        self.feed.begin(&self.state, watcher)
    }

    /// Finds out whether the store was set back behind the controllers' back: a host knows a revision
    /// of it that it has not reached, now that all that it has is known. Then it is another store.
    async fn look_back(&mut self, store: Token, since: Revision) {
        if store != self.state.store() || since <= self.state.revision() {
            return;
        }
        let newest = self.state.revision();
        let Ok(fresh) = random::token() else { return };
        let (reply, told) = oneshot::channel();
        let decide = move |state: &State| restored::set_back(state, (store, since), fresh);
        self.carry_out(vec![Box::new(Request::new(decide, reply))]).await;
        if let Ok(Ok((true, _))) = told.await {
            error!(
                %newest, known = %since,
                "the store was set back behind limpet's back: nothing new is given until every host \
                 has said what lives on it"
            );
        }
    }

    async fn carry_out(&mut self, mut waiting: Vec<Box<dyn Pending>>) {
        let (mut failures, mut conflicts) = (0, 0);
        while failures < ATTEMPTS && conflicts < CONFLICTS {
            waiting.retain(|pending| !pending.is_abandoned());
            if waiting.is_empty() {
                return;
            }
            if !self.resync().await {
                failures += 1;
                time::sleep(PAUSE).await;
                continue;
            }
            let (round, decided) = self.decide(&mut waiting);
            if decided.is_err() {
                waiting.extend(round.into_waiting());
                failures += 1;
                self.sync = Sync::Lost;
                continue;
            }
            // Where others write, most batches that are decided ahead would be decided again.
            let ahead = !self.store.is_shared() && failures == 0 && conflicts == 0;
            let again = self.commit(round, ahead).await;
            failures += again.failures;
            conflicts += again.conflicts;
            waiting.splice(..0, again.left);
            if again.failures > 0 {
                time::sleep(PAUSE).await;
            }
        }
        waiting.into_iter().for_each(Pending::give_up);
    }

    /// Decides each on top of those before it. On an error the state is not to be used any more.
    fn decide(&mut self, waiting: &mut Vec<Box<dyn Pending>>) -> (Round, Result<(), BadRecord>) {
        self.state.set_wall(wall_time());
        let mut round = Round::on(&self.state);
        let mut rest = std::mem::take(waiting).into_iter();
        let decided = rest.try_for_each(|pending| round.add(&mut self.state, pending));
        waiting.extend(rest);
        (round, decided)
    }

    /// Tells everybody concerned of a revision that is durable.
    pub(super) fn tell(&mut self, store: Token, told: Told) {
        let revision = told.revision();
        for uid in told.ended() {
            // Nobody may be waiting for it.
            let _ = self.tellers.ended.send(uid);
        }
        if told.is_new_store() {
            self.feed.reset();
        } else {
            self.feed.tell(store, told);
        }
        self.tellers.head.send_replace(revision);
    }

    /// Adds the time since fleet time was last changed, here or elsewhere, if the store takes it.
    async fn advance_clock(&mut self) {
        let elapsed = self.ticked.elapsed().as_secs();
        if Duration::from_secs(elapsed) < CLOCK / 2 {
            return;
        }
        let (reply, told) = oneshot::channel();
        let began = self.ticked;
        let seen = self.state.clock().map(|clock| clock.revision);
        let decide = move |state: &State| advance(state, seen, Span::from_seconds(elapsed));
        self.carry_out(vec![Box::new(Request::new(decide, reply))]).await;
        if let Ok(Ok((Some(now), _))) = told.await {
            // What is left of a second counts the next time.
            self.ticked = began + Duration::from_secs(elapsed);
            self.tellers.period.send_replace(now);
        }
    }
}

/// Returns what was put aside, or else what comes next. Dropping the future loses nothing.
async fn next(aside: &mut Option<Job>, jobs: &mut mpsc::Receiver<Job>) -> Option<Job> {
    match aside.take() {
        Some(job) => Some(job),
        None => jobs.recv().await,
    }
}

/// What this machine's clock says.
pub(super) fn wall_time() -> WallTime {
    let seconds = match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_secs()).map_or(i64::MIN, |past| -past),
    };
    WallTime::from_seconds(seconds)
}

/// Decides that fleet time goes on by `elapsed` since it was put at revision `seen`. If another
/// controller has moved it on since, that time is counted already.
pub(crate) fn advance(
    state: &State,
    seen: Option<Revision>,
    elapsed: Span,
) -> Decision<Option<FleetTime>> {
    Decision::make(|draft: &mut Draft| {
        let clock = state.clock();
        draft.rely(&Subject::Clock, clock);
        if clock.map(|clock| clock.revision) != seen {
            return Ok(None);
        }
        let now = state.now().plus(elapsed);
        draft.put(&Subject::Clock, &now);
        Ok(Some(now))
    })
}

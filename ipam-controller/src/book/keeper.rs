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

use std::error::Error;
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
use crate::alloc::restored;
use crate::backup::restoring;
use crate::draft::{Decision, Draft};
use crate::keys::Subject;
use crate::random;
use crate::state::{BadRecord, Effects, State, Undo};
use crate::store::{CommitError, Footprint, Outcome, Revision, Store, Txn};
use crate::watch::Told;
use crate::watch::feed::{Feed, Knows, Watcher};

/// How many requests are committed at once.
const BATCH: usize = 256;

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
    jobs: mpsc::Receiver<Job>,
    pub(super) tellers: Tellers,
    /// When fleet time was what it is.
    pub(super) ticked: Instant,
}

/// A batch that is decided and not yet committed.
struct Round {
    base: Revision,
    members: Vec<Member>,
    txns: Vec<Txn>,
    undo: Vec<Undo>,
    told: Option<Told>,
}

struct Member {
    pending: Box<dyn Pending>,
    writes: bool,
}

/// How a batch went that was not simply done.
#[derive(Default)]
struct Again {
    left: Vec<Box<dyn Pending>>,
    conflicts: usize,
    failures: usize,
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
                job = self.jobs.recv() => match job {
                    Some(job) => self.serve(job).await,
                    None => break,
                },
            }
        }
        self.feed.reset();
        debug!("the book is closed");
    }

    async fn serve(&mut self, first: Job) {
        let mut batch: Vec<Box<dyn Pending>> = Vec::new();
        let mut next = Some(first);
        while let Some(job) = next {
            match job {
                Job::Decide(pending) => batch.push(pending),
                Job::Watch { watcher, reply } => {
                    let begun = self.begin(watcher).await;
                    let _ = reply.send(begun);
                }
                // Whoever asked has gone, or is told.
                Job::Turn { reply } => drop(reply.send(())),
            }
            next = if batch.len() < BATCH { self.jobs.try_recv().ok() } else { None };
        }
        self.carry_out(batch).await;
    }

    async fn begin(&mut self, watcher: Watcher) -> Result<crate::watch::feed::Beginning, ApiError> {
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
            let Ok(round) = self.decide(&mut waiting) else {
                failures += 1;
                self.sync = Sync::Lost;
                continue;
            };
            let again = self.attempt(round).await;
            failures += again.failures;
            conflicts += again.conflicts;
            waiting.splice(..0, again.left);
            if again.failures > 0 {
                time::sleep(PAUSE).await;
            }
        }
        waiting.into_iter().for_each(Pending::give_up);
    }

    /// Decides each on top of those before it; those that meet one of them are left for the next
    /// batch. On an error the state is not to be used any more, and nobody is left out of `waiting`.
    fn decide(&mut self, waiting: &mut Vec<Box<dyn Pending>>) -> Result<Round, BadRecord> {
        self.state.set_wall(wall_time());
        let base = self.state.revision();
        let mut footprint = Footprint::default();
        let mut effects: Option<Effects> = None;
        let mut undo = Vec::new();
        let mut decided = Vec::with_capacity(waiting.len());
        for pending in waiting.iter_mut() {
            let (txn, changes) = pending.decide(&self.state);
            if footprint.add(&txn).is_err() {
                decided.push(None);
                continue;
            }
            if !changes.is_empty() {
                undo.push(self.state.before(&changes));
                let new = self.state.take(base.next(), changes)?;
                match &mut effects {
                    Some(effects) => effects.merge(new),
                    None => effects = Some(new),
                }
            }
            decided.push(Some(txn));
        }
        let told = effects.map(|effects| Told::of(&self.state, effects));
        let mut round = Round { base, members: Vec::new(), txns: Vec::new(), undo, told };
        for (pending, decided) in std::mem::take(waiting).into_iter().zip(decided) {
            match decided {
                Some(txn) => {
                    let writes = !txn.writes.is_empty();
                    round.members.push(Member { pending, writes });
                    round.txns.push(txn);
                }
                None => waiting.push(pending),
            }
        }
        Ok(round)
    }

    /// Commits a batch and tells everybody, except those that must be decided again.
    async fn attempt(&mut self, round: Round) -> Again {
        let Round { base, mut members, txns, undo, told } = round;
        let is_nothing = |txn: &Txn| *txn == Txn::default();
        if !self.store.is_shared() && txns.iter().all(is_nothing) {
            // Nobody else can have written: the state is what the store has.
            for member in members {
                member.pending.settle(base);
            }
            return Again::default();
        }
        match self.store.commit(txns).await {
            Ok(outcomes) if is_as_decided(base, &members, &outcomes) => {
                let revision = self.state.revision();
                if let Some(told) = told {
                    self.tell(told);
                }
                for member in members {
                    member.pending.settle(revision);
                }
                Again::default()
            }
            Ok(outcomes) => {
                self.take_back(undo);
                self.sort_out(base, members, outcomes).await
            }
            Err(error) => {
                let unknown = matches!(error, CommitError::Unknown(_));
                let cause: &(dyn Error + 'static) = &error;
                error!(error = cause, "commit failed");
                self.take_back(undo);
                if unknown {
                    self.sync = Sync::Doubtful;
                    for member in &mut members {
                        member.pending.doubt();
                    }
                }
                let left = members.into_iter().map(|member| member.pending).collect();
                Again { left, conflicts: 0, failures: 1 }
            }
        }
    }

    /// Hears what others wrote, and tells those whose decision stands.
    async fn sort_out(
        &mut self,
        base: Revision,
        members: Vec<Member>,
        outcomes: Vec<Outcome>,
    ) -> Again {
        let committed = outcomes.iter().filter_map(|outcome| match outcome {
            Outcome::Committed(revision) => Some(*revision),
            Outcome::Conflict(_) => None,
        });
        let newest = committed.max().unwrap_or(base);
        let mut again = Again::default();
        let mut settled = Vec::new();
        for (mut member, outcome) in members.into_iter().zip(outcomes) {
            match outcome {
                Outcome::Committed(revision) if member.writes => {
                    settled.push((member.pending, revision));
                }
                // It was decided after something that did not happen.
                Outcome::Committed(_) if again.conflicts > 0 => again.left.push(member.pending),
                Outcome::Committed(revision) => {
                    if revision == base || member.pending.is_fresh(base, revision) {
                        settled.push((member.pending, revision));
                    } else {
                        again.left.push(member.pending);
                    }
                }
                Outcome::Conflict(key) => {
                    debug!(key, "decided on what has changed since");
                    again.conflicts = 1;
                    again.left.push(member.pending);
                }
            }
        }
        if again.conflicts > 0 {
            // Where somebody was faster, there is something to hear of, newer than all that is known.
            self.freshen().await;
        } else {
            self.catch_up(newest).await;
        }
        for (pending, revision) in settled {
            pending.settle(revision);
        }
        again
    }

    /// Undoes what was decided and not committed.
    fn take_back(&mut self, undo: Vec<Undo>) {
        for undo in undo.into_iter().rev() {
            self.state.revert(undo);
        }
    }

    /// Tells everybody concerned of a revision that is durable.
    pub(super) fn tell(&mut self, told: Told) {
        for uid in told.ended() {
            // Nobody may be waiting for it.
            let _ = self.tellers.ended.send(uid);
        }
        if told.is_new_store() {
            self.feed.reset();
        } else {
            self.feed.tell(self.state.store(), told);
        }
        self.tellers.head.send_replace(self.state.revision());
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

/// Whether all is done, at the one revision that was expected: nobody else wrote, so that the state
/// as it was decided is the state that the store has.
fn is_as_decided(base: Revision, members: &[Member], outcomes: &[Outcome]) -> bool {
    let writes = members.iter().any(|member| member.writes);
    let newest = if writes { base.next() } else { base };
    members.iter().zip(outcomes).all(|(member, outcome)| match outcome {
        Outcome::Committed(revision) if member.writes => *revision == newest,
        Outcome::Committed(revision) => *revision <= newest,
        Outcome::Conflict(_) => false,
    })
}

/// What this machine's clock says.
fn wall_time() -> WallTime {
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

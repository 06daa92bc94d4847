//! Edge: how batches are committed, and what becomes of them: told, or decided again.
//!
//! While the store writes a batch, the next is decided on top of it. It is committed once the first
//! is known to be as it was decided. If that failed, both are taken back.

use std::error::Error;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::Instant;
use tracing::{debug, error};

use super::Job;
use super::hearing::Sync;
use super::keeper::{BATCH, Keeper, wall_time};
use super::request::Pending;
use super::round::{Member, News, Round};
use crate::store::{CommitError, Outcome, Revision, Txn};

/// How long batches follow each other at most before the task looks at anything else.
const TURN: Duration = Duration::from_millis(50);

/// What a commit comes to, and a commit that is under way.
type Committed = Result<Vec<Outcome>, CommitError>;
type Committing<'a> = BoxFuture<'a, Committed>;

/// How a batch went that was not simply done.
#[derive(Default)]
pub(super) struct Again {
    pub(super) left: Vec<Box<dyn Pending>>,
    pub(super) conflicts: usize,
    pub(super) failures: usize,
}

impl Keeper {
    /// Commits a batch and tells everybody, except those that must be decided again.
    ///
    /// With `ahead`, what comes while the store writes is decided on top of it, as the next batch,
    /// which is not committed before this one is known to be as it was decided.
    pub(super) async fn commit(&mut self, mut round: Round, ahead: bool) -> Again {
        let store = Arc::clone(&self.store);
        let turn = Instant::now() + TURN;
        let mut before: Option<(Round, News)> = None;
        loop {
            let news = round.news(&self.state);
            let txns = std::mem::take(&mut round.txns);
            let is_nothing = |txn: &Txn| *txn == Txn::default();
            if !store.is_shared() && txns.iter().all(is_nothing) {
                // Nobody else can have written: the state is what the store has.
                if let Some((round, news)) = before {
                    self.settle(round.members, news);
                }
                let left = std::mem::take(&mut round.later);
                self.settle(round.members, news);
                return Again { left, ..Again::default() };
            }
            let mut commit = store.commit(txns);
            // The store has this one before anybody is told of the one before.
            let mut done = poll_fn(|context| Poll::Ready(commit.as_mut().poll(context))).await;
            if let Some((round, news)) = before.take() {
                self.settle(round.members, news);
            }
            let mut next = Round::on(&self.state);
            // Who was put aside waits for the task to go round, and there is room for one.
            if ahead && self.aside.is_none() && Instant::now() < turn {
                let later = std::mem::take(&mut round.later);
                self.look_ahead(&mut next, later, (&mut commit, &mut done)).await;
            }
            let outcomes = match done {
                Poll::Ready(outcomes) => outcomes,
                Poll::Pending => commit.await,
            };
            let outcomes = match outcomes {
                Ok(outcomes) if round.is_as_decided(&outcomes) => {
                    if next.members.is_empty() || self.sync == Sync::Lost {
                        let left = round.later.drain(..).chain(next.into_waiting()).collect();
                        self.settle(round.members, news);
                        return Again { left, ..Again::default() };
                    }
                    before = Some((std::mem::replace(&mut round, next), news));
                    continue;
                }
                outcomes => outcomes,
            };
            next.take_back(&mut self.state);
            round.take_back(&mut self.state);
            let later: Vec<_> = round.later.drain(..).chain(next.into_waiting()).collect();
            let mut again = match outcomes {
                Ok(outcomes) => self.sort_out(round.base, round.members, outcomes).await,
                Err(error) => self.failed(round.members, &error),
            };
            again.left.extend(later);
            return again;
        }
    }

    /// Decides what comes while the store writes, on top of what it writes, until it has done so.
    async fn look_ahead(
        &mut self,
        next: &mut Round,
        later: Vec<Box<dyn Pending>>,
        (commit, done): (&mut Committing<'_>, &mut Poll<Committed>),
    ) {
        self.state.set_wall(wall_time());
        for pending in later {
            self.add(next, pending);
        }
        let mut goes_on = true;
        while goes_on && next.members.len() < BATCH && self.sync == Sync::Good {
            let job = if done.is_ready() {
                // What is there is taken along; nothing is waited for.
                self.jobs.try_recv().ok()
            } else {
                // Both may be dropped: the commit goes on, and a job is taken only when its arm runs.
                tokio::select! {
                    biased;
                    outcomes = commit.as_mut() => {
                        *done = Poll::Ready(outcomes);
                        continue;
                    }
                    job = self.jobs.recv() => job,
                }
            };
            match job {
                Some(Job::Decide(pending)) if pending.is_abandoned() => {}
                Some(Job::Decide(pending)) => self.add(next, pending),
                // It is told what is durable, or that the task goes round.
                job @ (Some(Job::Watch { .. } | Job::Turn { .. }) | None) => {
                    self.aside = job;
                    goes_on = false;
                }
            }
        }
    }

    fn add(&mut self, round: &mut Round, pending: Box<dyn Pending>) {
        if let Err(error) = round.add(&mut self.state, pending) {
            let cause: &(dyn Error + 'static) = &error;
            error!(error = cause, "what was decided cannot be read");
            self.sync = Sync::Lost;
        }
    }

    /// Tells everybody of a batch that is as it was decided.
    fn settle(&mut self, members: Vec<Member>, news: News) {
        let News { store, revision, told } = news;
        if let Some(told) = told {
            self.tell(store, told);
        }
        for member in members {
            member.pending.settle(revision);
        }
    }

    /// Notes that a batch has no outcome.
    fn failed(&mut self, mut members: Vec<Member>, error: &CommitError) -> Again {
        let cause: &(dyn Error + 'static) = error;
        error!(error = cause, "commit failed");
        if matches!(error, CommitError::Unknown(_)) {
            self.sync = Sync::Doubtful;
            for member in &mut members {
                member.pending.doubt();
            }
        }
        let left = members.into_iter().map(|member| member.pending).collect();
        Again { left, conflicts: 0, failures: 1 }
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
}

//! Pure: a controller of the simulated world: a state that lags, requests that wait, one batch that
//! is decided and not yet committed. It goes about them as the book does.

use std::time::{Duration, Instant};

use limpet_api::book::AttachmentRef;
use limpet_api::host::ASK_SECONDS;
use limpet_api::{ApiError, ErrorCode, WallTime};
use limpet_net_types::{HostName, Token, Uid};

use super::request::{Answer, Circumstances, Request};
use crate::alloc::Patience;
use crate::keys::Subject;
use crate::leases::Leases;
use crate::rules::sessions::Liveness;
use crate::state::State;
use crate::store::{Event, Footprint, Outcome, Revision, Txn};

/// How often a request is decided before its caller is told to ask again.
const ATTEMPTS: usize = 32;

/// Who waits for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Caller {
    /// An agent's process, by the number of its life, about one of its calls.
    Agent { host: usize, life: u64, call: u64 },
    /// An operator.
    Operator,
    /// The controller itself.
    Nobody,
}

/// A request at a controller.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) caller: Caller,
    pub(super) request: Request,
    /// The store's revision when it was sent: what is told of it held then or later.
    pub(super) sent: Revision,
    /// When it came, by the controller's clock.
    came: u64,
    /// What it waits for.
    about: Option<AttachmentRef>,
    asked: Vec<Uid>,
    first: Option<Revision>,
    uncertain: bool,
    attempts: usize,
}

impl Job {
    pub(super) fn new(caller: Caller, request: Request, sent: Revision) -> Self {
        let (about, first) = (None, None);
        let (came, asked, uncertain, attempts) = (0, Vec::new(), false, 0);
        Self { caller, request, sent, came, about, asked, first, uncertain, attempts }
    }
}

/// What a caller is told.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    pub(super) caller: Caller,
    pub(super) request: Request,
    pub(super) sent: Revision,
    pub(super) result: Result<(Answer, Revision), ApiError>,
}

/// A batch that is decided and not committed yet.
#[derive(Debug)]
pub(super) struct Batch {
    base: Revision,
    members: Vec<(Job, Result<Answer, ApiError>, bool)>,
    pub(super) txns: Vec<Txn>,
}

impl Batch {
    /// Who waits for its answers.
    pub(super) fn callers(&self) -> impl Iterator<Item = Caller> + '_ {
        self.members.iter().map(|(job, ..)| job.caller)
    }
}

/// A controller.
pub(super) struct Replica {
    pub(super) state: State,
    pub(super) is_frozen: bool,
    pub(super) jobs: Vec<Job>,
    pub(super) batch: Option<Batch>,
    pub(super) leases: Leases,
    began: Instant,
    /// How wrong its wall clock is, by years.
    wall: i64,
    /// When fleet time was changed last, by this controller's clock.
    ticked: u64,
}

impl Replica {
    /// A controller that has just read the store.
    pub(super) fn new(replica: Token, state: State, now: u64) -> Self {
        let began = Instant::now();
        let leases = Leases::new(replica, began + Duration::from_secs(now));
        let (jobs, batch, is_frozen) = (Vec::new(), None, false);
        let years = i64::try_from(replica.bits() % 5).unwrap() - 2;
        let wall = years * 365 * 86_400;
        Self { state, is_frozen, jobs, batch, leases, began, wall, ticked: now }
    }

    fn at(&self, now: u64) -> Instant {
        self.began + Duration::from_secs(now)
    }

    /// Takes a request in.
    pub(super) fn take(&mut self, mut job: Job, now: u64) {
        if let Request::Beat { host, session } = &job.request {
            let at = self.at(now);
            self.leases.hear_again(host, *session, at);
        }
        job.came = now;
        self.jobs.push(job);
    }

    /// Hears what the store tells.
    pub(super) fn hear(&mut self, event: &Event, now: u64) -> Result<(), String> {
        let effects = self
            .state
            .apply(event.revision, &event.changes)
            .map_err(|error| format!("a controller cannot read the store: {error}"))?;
        if effects.touched.contains(&Subject::Clock) {
            self.ticked = now;
        }
        Ok(())
    }

    /// Begins a period of fleet time.
    pub(super) fn tick(&mut self, now: u64) -> bool {
        let elapsed = now.saturating_sub(self.ticked);
        let ticks = self.jobs.iter().any(|job| matches!(job.request, Request::Tick { .. }));
        if elapsed < 5 || ticks {
            return false;
        }
        let seen = self.state.clock().map(|clock| clock.revision);
        let request = Request::Tick { seen, elapsed };
        self.take(Job::new(Caller::Nobody, request, self.state.revision()), now);
        true
    }

    /// Looks who answers for which host, as is done every second.
    pub(super) fn listen(&mut self, now: u64) {
        let look = self.leases.look(&self.state, self.at(now));
        let marks = look.silent.into_iter().map(|(host, session)| Request::Mark { host, session });
        let writes = look.unheard.into_iter().map(|host| Request::Unhear { host }).chain(marks);
        for request in writes {
            let waits = |job: &Job| {
                job.request.host() == request.host()
                    && matches!(job.request, Request::Mark { .. } | Request::Unhear { .. })
            };
            if !self.jobs.iter().any(waits) {
                self.take(Job::new(Caller::Nobody, request, self.state.revision()), now);
            }
        }
    }

    fn circumstances(&self, job: &Job, now: u64) -> Circumstances {
        let over = now >= job.came + ASK_SECONDS;
        let at = self.at(now);
        let alive = |host: &HostName| self.leases.liveness(&self.state, host, at);
        Circumstances {
            replica: self.leases.replica(),
            hears: job.request.host().is_some_and(|host| self.leases.hears(host, at)),
            patience: match self.leases.may_judge(at) {
                _ if over => Patience::Over,
                true => Patience::Left,
                false => Patience::Deaf,
            },
            liveness: job.request.host().map_or(Liveness::Alive, alive),
        }
    }

    /// Whether there is something to look at again, or whether its time is over.
    fn is_due(&self, job: &Job, now: u64) -> bool {
        let Some(AttachmentRef { key, uid }) = &job.about else { return true };
        let looks = matches!(job.request, Request::Remove { .. });
        let lasts = |uid| self.state.attachment(key).is_some_and(|entry| entry.record.uid == uid);
        looks || now >= job.came + ASK_SECONDS || !lasts(*uid)
    }

    /// Decides at most so many requests, beginning at any. Returns whether there was one.
    pub(super) fn decide(&mut self, from: usize, most: usize, now: u64) -> bool {
        if self.batch.is_some() || self.jobs.is_empty() {
            return false;
        }
        self.state.set_wall(WallTime::from_seconds(self.wall.saturating_add_unsigned(now)));
        let mut jobs = std::mem::take(&mut self.jobs);
        let from = from % jobs.len();
        jobs.rotate_left(from);
        let mut batch = Batch { base: self.state.revision(), members: vec![], txns: vec![] };
        let mut footprint = Footprint::default();
        for job in jobs {
            if batch.txns.len() >= most || !self.is_due(&job, now) {
                self.jobs.push(job);
                continue;
            }
            let circumstances = self.circumstances(&job, now);
            let (txn, answer) = job.request.decide(&self.state, circumstances);
            if footprint.add(&txn).is_err() {
                self.jobs.push(job);
                continue;
            }
            let answer = match answer {
                Err(error) if job.uncertain => Err(unknown(&error.message)),
                answer => answer,
            };
            batch.members.push((job, answer, !txn.writes.is_empty()));
            batch.txns.push(txn);
        }
        let some = !batch.txns.is_empty();
        self.batch = some.then_some(batch);
        some
    }

    /// Tells those whose decision stands; the others are decided again.
    pub(super) fn settle(&mut self, batch: Batch, outcomes: Vec<Outcome>, now: u64) -> Vec<Reply> {
        let mut replies = Vec::new();
        for ((mut job, answer, writes), outcome) in batch.members.into_iter().zip(outcomes) {
            let stands = match outcome {
                Outcome::Committed(revision) if writes => Some(revision),
                Outcome::Committed(revision) => {
                    let first = *job.first.get_or_insert(revision);
                    (revision == batch.base || batch.base >= first).then_some(revision)
                }
                Outcome::Conflict(_) => None,
            };
            match stands {
                Some(revision) => replies.extend(self.told(job, answer, revision, now)),
                None => replies.extend(self.again(job, now)),
            }
        }
        replies
    }

    /// It is not known what became of a batch: all of it is decided again.
    pub(super) fn doubt(&mut self, batch: Batch, now: u64) -> Vec<Reply> {
        let mut replies = Vec::new();
        for (mut job, answer, _) in batch.members {
            job.uncertain |= answer.is_ok();
            replies.extend(self.again(job, now));
        }
        replies
    }

    /// Nothing of a batch was done: all of it is decided again.
    pub(super) fn repeat(&mut self, batch: Batch, now: u64) -> Vec<Reply> {
        let members = batch.members.into_iter();
        members.filter_map(|(job, ..)| self.again(job, now)).collect()
    }

    fn again(&mut self, mut job: Job, now: u64) -> Option<Reply> {
        job.attempts += 1;
        if job.attempts < ATTEMPTS {
            self.jobs.push(job);
            return None;
        }
        let error = if job.uncertain {
            unknown("the store did not say")
        } else {
            ApiError::new(ErrorCode::Unavailable, "ask again")
        };
        Some(self.finish(job, Err(error), now))
    }

    fn told(
        &mut self,
        mut job: Job,
        answer: Result<Answer, ApiError>,
        revision: Revision,
        now: u64,
    ) -> Option<Reply> {
        match (answer, &job.request) {
            (Ok(Answer::Asked(about)), _) => {
                if job.asked.iter().all(|asked| *asked != about.uid) {
                    job.asked.push(about.uid);
                    let (host, uid) = (about.key.host.clone(), about.uid);
                    let anew = Request::AskAnew { host, uid, until: revision };
                    self.take(Job::new(Caller::Nobody, anew, job.sent), now);
                }
                // The next look is a request of its own to the book.
                job.about = Some(about);
                job.uncertain = false;
                job.first = None;
                self.jobs.push(job);
                None
            }
            (Ok(Answer::Joined(token)), Request::Open { host, .. }) => {
                let at = self.at(now);
                self.leases.hear(&host.clone(), token, at);
                Some(self.finish(job, Ok((Answer::Joined(token), revision)), now))
            }
            (Ok(answer), Request::Beat { host, session }) => {
                let at = self.at(now);
                self.leases.hear(&host.clone(), *session, at);
                Some(self.finish(job, Ok((answer, revision)), now))
            }
            (answer, _) => Some(self.finish(job, answer.map(|answer| (answer, revision)), now)),
        }
    }

    /// The request has its answer; a host must not carry out later what was given up.
    fn finish(
        &mut self,
        job: Job,
        result: Result<(Answer, Revision), ApiError>,
        now: u64,
    ) -> Reply {
        let Job { caller, request, sent, .. } = job;
        if let (Request::Remove { attachment, how }, Err(_)) = (&request, &result)
            && how.force
        {
            let (host, uid) = (attachment.key.host.clone(), attachment.uid);
            self.take(Job::new(Caller::Nobody, Request::Withdraw { host, uid }, sent), now);
        }
        Reply { caller, request, sent, result }
    }
}

fn unknown(why: &str) -> ApiError {
    ApiError::new(ErrorCode::OutcomeUnknown, why.to_owned())
}

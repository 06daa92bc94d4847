//! Pure: what a controller of the simulated world is asked, decided by the real decisions.

use std::net::IpAddr;

use limpet_api::book::{Attachment, AttachmentKey, AttachmentRef, ReleaseRequest, ReservationSpec};
use limpet_api::config::{HostChange, PoolChange, PoolSpec, PoolState};
use limpet_api::host::{ClaimRequest, EndRequest, SessionRequest};
use limpet_api::{After, ApiError, Span};
use limpet_net_types::{HostName, PoolName, Token, Uid};

use crate::alloc::reassert::{self, Fate};
use crate::alloc::{Outcome, Patience, claim, ends, release, reserve};
use crate::book::keeper::advance;
use crate::draft::Decision;
use crate::keys::ReservationKey;
use crate::reclaim::{self, Limits};
use crate::rules::sessions::{Liveness, Opening};
use crate::rules::{hosts, pools, sessions, silence};
use crate::state::State;
use crate::store::{Revision, Txn};

/// What controllers keep, and for how long.
const LIMITS: Limits = Limits {
    silent_hosts_end_after: After::For(Span::from_seconds(90)),
    history_records: 8,
    history_age: Span::from_seconds(200),
};

/// Something that a controller is asked.
#[derive(Clone, Debug)]
pub(super) enum Request {
    /// An agent joins, and is given this token.
    Open { host: HostName, request: SessionRequest, fresh: Token },
    /// An agent is alive.
    Beat { host: HostName, session: Token },
    /// An agent claims.
    Claim { key: AttachmentKey, request: ClaimRequest },
    /// An agent ends an attachment.
    End { key: AttachmentKey, request: EndRequest },
    /// An agent was asked about an attachment, and it is there.
    Present { host: HostName, uid: Uid, session: Token },
    /// The controller asks again what was answered before somebody waited for it.
    AskAnew { host: HostName, uid: Uid, until: Revision },
    /// The controller takes a question back.
    Withdraw { host: HostName, uid: Uid },
    /// The controller answers for a host no longer.
    Unhear { host: HostName },
    /// The controller takes a host for silent.
    Mark { host: HostName, session: Token },
    /// An agent says that an attachment lives which the store has not.
    Reassert { attachment: Attachment, session: Token },
    /// The controller goes on in fleet time, which was changed last at this revision.
    Tick { seen: Option<Revision>, elapsed: u64 },
    /// The controller clears away what is due.
    Clear { which: usize },
    /// An operator reserves.
    Reserve { key: ReservationKey, address: Option<IpAddr> },
    /// An operator releases a reservation.
    Release { key: ReservationKey },
    /// An operator ends an attachment.
    Remove { attachment: Attachment, how: ReleaseRequest },
    /// An operator lets a pool give new addresses, or not.
    Drain { pool: PoolName, state: PoolState },
    /// An operator makes a pool.
    Pool { name: PoolName, spec: PoolSpec },
    /// An operator removes a pool.
    PoolGone { name: PoolName },
    /// An operator says that a host was installed anew.
    Reinstalled { host: HostName },
}

/// What a controller says if it is not a refusal.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    /// The host has this session.
    Joined(Token),
    /// The attachment has its addresses.
    Claimed(Box<Attachment>),
    /// Somebody is to be asked first.
    Asked(AttachmentRef),
    /// What becomes of an attachment that was re-asserted.
    Fate(Fate),
    /// It is done.
    Done,
}

impl Answer {
    /// What it is counted as.
    pub(super) fn word(&self, request: &Request) -> &'static str {
        match (self, request) {
            (Self::Joined(_), _) => "joined",
            (Self::Claimed(_), _) => "claimed",
            (_, Request::End { .. }) => "ended",
            (Self::Fate(_), _) => "re-asserted",
            (_, Request::Present { .. }) => "present",
            (_, Request::Tick { .. }) => "ticked",
            (_, Request::Reserve { .. }) => "reserved",
            (_, Request::Release { .. }) => "released",
            (_, Request::Remove { .. }) => "removed",
            _ => "done",
        }
    }
}

/// What besides the state a decision is made by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Circumstances {
    pub(super) patience: Patience,
    pub(super) liveness: Liveness,
    /// Whether the controller itself hears the host.
    pub(super) hears: bool,
    /// The controller's process.
    pub(super) replica: Token,
}

impl Request {
    /// Decides, as the controller's own handlers do.
    pub(super) fn decide(
        &self,
        state: &State,
        Circumstances { patience, liveness, hears, replica }: Circumstances,
    ) -> (Txn, Result<Answer, ApiError>) {
        match self {
            Self::Open { host, request, fresh } => {
                let session = *fresh;
                let opening = Opening { liveness, session, replica };
                told(sessions::open(state, host, request, opening), |_| Answer::Joined(session))
            }
            Self::Beat { host, session } => done(silence::hear(state, host, *session, replica)),
            Self::Claim { key, request } => {
                told(claim::claim(state, key, request, patience), |outcome| match outcome {
                    Outcome::Done(granted) => Answer::Claimed(Box::new(granted.attachment)),
                    Outcome::Asked(about) => Answer::Asked(about),
                })
            }
            Self::End { key, request } => done(ends::end(state, key, request)),
            Self::Present { host, uid, session } => {
                done(sessions::present(state, host, *uid, *session))
            }
            Self::AskAnew { host, uid, until } => done(ends::ask_anew(state, host, *uid, *until)),
            Self::Withdraw { host, uid } => done(ends::withdraw(state, host, *uid)),
            Self::Unhear { .. } if hears => nothing(),
            Self::Unhear { host } => done(silence::unhear(state, host, replica)),
            Self::Mark { .. } if liveness == Liveness::Alive => nothing(),
            Self::Mark { host, session } => done(silence::mark(state, host, *session)),
            Self::Reassert { attachment, session } => {
                told(reassert::reassert(state, attachment, *session), Answer::Fate)
            }
            Self::Tick { seen, elapsed } => {
                done(advance(state, *seen, Span::from_seconds(*elapsed)))
            }
            Self::Clear { which } => match reclaim::due(state, &LIMITS).get(*which) {
                Some(chore) => done(chore(state)),
                None => nothing(),
            },
            Self::Reserve { key, address } => {
                let addresses = address.iter().copied().collect();
                let spec = ReservationSpec { addresses, ..ReservationSpec::default() };
                done(reserve::create(state, key, &spec))
            }
            Self::Release { key } => done(reserve::release(state, key)),
            Self::Remove { attachment, how } => {
                let decided = release::end(state, attachment, *how, patience, liveness);
                told(decided, |outcome| match outcome {
                    Outcome::Done(()) => Answer::Done,
                    Outcome::Asked(about) => Answer::Asked(about),
                })
            }
            Self::Drain { pool, state: to } => {
                let change = PoolChange { state: Some(*to), ..PoolChange::default() };
                done(pools::change(state, pool, &change))
            }
            Self::Pool { name, spec } => done(pools::create(state, name, spec)),
            Self::PoolGone { name } => done(pools::delete(state, name)),
            Self::Reinstalled { host } => {
                let change = HostChange { reinstalled: true, ..HostChange::default() };
                done(hosts::change(state, host, &change, liveness))
            }
        }
    }

    /// The host in whose name it is.
    pub(super) fn host(&self) -> Option<&HostName> {
        match self {
            Self::Open { host, .. }
            | Self::Beat { host, .. }
            | Self::Present { host, .. }
            | Self::Unhear { host }
            | Self::Mark { host, .. }
            | Self::Reinstalled { host } => Some(host),
            Self::Reassert { attachment, .. } | Self::Remove { attachment, .. } => {
                Some(&attachment.key.host)
            }
            Self::Claim { key, .. } | Self::End { key, .. } => Some(&key.host),
            _ => None,
        }
    }
}

fn told<T>(
    decision: Decision<T>,
    answer: impl FnOnce(T) -> Answer,
) -> (Txn, Result<Answer, ApiError>) {
    (decision.draft.into_txn(), decision.answer.map(answer))
}

fn nothing() -> (Txn, Result<Answer, ApiError>) {
    (Txn::default(), Ok(Answer::Done))
}

fn done<T>(decision: Decision<T>) -> (Txn, Result<Answer, ApiError>) {
    told(decision, |_| Answer::Done)
}

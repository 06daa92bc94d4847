//! Pure: a request in the book, from its first decision to its answer.

use limpet_api::{ApiError, ErrorCode};
use tokio::sync::oneshot;

use crate::draft::Decision;
use crate::state::{Change, State};
use crate::store::{Revision, Txn};

/// Where an answer goes, with the revision at which it holds.
type Reply<T> = oneshot::Sender<Result<(T, Revision), ApiError>>;

/// A request as the task sees it, whatever its answer.
pub(super) trait Pending: Send {
    /// Whether nobody waits for the answer any more.
    fn is_abandoned(&self) -> bool;
    /// Decides, and remembers the answer. Returns the transaction, and what it writes as the state
    /// takes it.
    fn decide(&mut self, state: &State) -> (Txn, Vec<Change>);
    /// Notes that the transaction may have been done, or not.
    fn doubt(&mut self);
    /// Whether a decision on the state at `base` is as new as the store was when this was first
    /// committed, which is now, at `revision`, unless it was before.
    fn is_fresh(&mut self, base: Revision, revision: Revision) -> bool;
    /// Tells the answer, now that its transaction is done.
    fn settle(self: Box<Self>, revision: Revision);
    /// Tells that there is no answer.
    fn give_up(self: Box<Self>);
}

/// A request with its decision and the way to who made it.
pub(super) struct Request<T, F> {
    decide: F,
    decided: Option<Result<T, ApiError>>,
    uncertain: bool,
    came: Option<Revision>,
    reply: Reply<T>,
}

impl<T, F> Request<T, F> {
    /// A request that is not decided yet.
    pub(super) fn new(decide: F, reply: Reply<T>) -> Self {
        Self { decide, decided: None, uncertain: false, came: None, reply }
    }
}

impl<T: Send, F: FnMut(&State) -> Decision<T> + Send> Pending for Request<T, F> {
    fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }

    fn decide(&mut self, state: &State) -> (Txn, Vec<Change>) {
        let Decision { draft, answer } = (self.decide)(state);
        self.decided = Some(match answer {
            // What is refused now may be refused because it was done before.
            Err(error) if self.uncertain => Err(unknown(&error.message)),
            answer => answer,
        });
        draft.into_parts()
    }

    fn doubt(&mut self) {
        self.uncertain |= matches!(self.decided, Some(Ok(_)));
    }

    fn is_fresh(&mut self, base: Revision, revision: Revision) -> bool {
        base >= *self.came.get_or_insert(revision)
    }

    fn settle(self: Box<Self>, revision: Revision) {
        if let Some(decided) = self.decided {
            let _ = self.reply.send(decided.map(|answer| (answer, revision)));
        }
    }

    fn give_up(self: Box<Self>) {
        let error = if self.uncertain {
            unknown("the store did not say")
        } else {
            let text = "the store does not take transactions just now: ask again";
            ApiError::new(ErrorCode::Unavailable, text)
        };
        let _ = self.reply.send(Err(error));
    }
}

fn unknown(why: &str) -> ApiError {
    let text = format!("it is not known whether the request was carried out: {why}");
    ApiError::new(ErrorCode::OutcomeUnknown, text)
}

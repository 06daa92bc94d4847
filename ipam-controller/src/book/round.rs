//! Pure: a batch from its first decision to its commit: what is decided changes the state at once,
//! and can be taken back.

use limpet_net_types::Token;

use super::request::Pending;
use crate::state::{BadRecord, Effects, State, Undo};
use crate::store::{Footprint, Outcome, Revision, Txn};
use crate::watch::Told;

/// A batch that is decided and not yet committed.
pub(super) struct Round {
    /// The revision that it was decided on.
    pub(super) base: Revision,
    /// Whose requests it has, in the order of `txns`.
    pub(super) members: Vec<Member>,
    /// What is committed.
    pub(super) txns: Vec<Txn>,
    /// Those who met a member: they are decided after it is committed.
    pub(super) later: Vec<Box<dyn Pending>>,
    footprint: Footprint,
    effects: Option<Effects>,
    undo: Vec<Undo>,
}

/// A request of a batch.
pub(super) struct Member {
    /// The request.
    pub(super) pending: Box<dyn Pending>,
    /// Whether it changes anything.
    pub(super) writes: bool,
}

/// What is told of a batch once it is durable.
pub(super) struct News {
    /// The store's identity after it.
    pub(super) store: Token,
    /// The revision after it.
    pub(super) revision: Revision,
    /// What changed, if anything did.
    pub(super) told: Option<Told>,
}

impl Round {
    /// Begins a batch on the state as it is.
    pub(super) fn on(state: &State) -> Self {
        Self {
            base: state.revision(),
            members: Vec::new(),
            txns: Vec::new(),
            later: Vec::new(),
            footprint: Footprint::default(),
            effects: None,
            undo: Vec::new(),
        }
    }

    /// Decides a request on top of those before it; one that meets any of them is left for later.
    ///
    /// # Errors
    ///
    /// [`BadRecord`]: the state is not to be used any more. Nobody is lost from the batch.
    pub(super) fn add(
        &mut self,
        state: &mut State,
        mut pending: Box<dyn Pending>,
    ) -> Result<(), BadRecord> {
        let (txn, changes) = pending.decide(state);
        if self.footprint.add(&txn).is_err() {
            self.later.push(pending);
            return Ok(());
        }
        let writes = !changes.is_empty();
        self.members.push(Member { pending, writes });
        self.txns.push(txn);
        if writes {
            self.undo.push(state.before(&changes));
            let new = state.take(self.base.next(), changes)?;
            match &mut self.effects {
                Some(effects) => effects.merge(new),
                None => self.effects = Some(new),
            }
        }
        Ok(())
    }

    /// Puts into words what it changed; `state` is as the last of its members left it.
    pub(super) fn news(&mut self, state: &State) -> News {
        let told = self.effects.take().map(|effects| Told::of(state, effects));
        News { store: state.store(), revision: state.revision(), told }
    }

    /// Undoes what was decided and not committed.
    pub(super) fn take_back(&mut self, state: &mut State) {
        for undo in self.undo.drain(..).rev() {
            state.revert(undo);
        }
    }

    /// All whose requests are in it, in the order in which they came.
    pub(super) fn into_waiting(self) -> impl Iterator<Item = Box<dyn Pending>> {
        self.members.into_iter().map(|member| member.pending).chain(self.later)
    }

    /// Whether all is done, at the one revision that was expected: nobody else wrote, so that the
    /// state as it was decided is the state that the store has.
    pub(super) fn is_as_decided(&self, outcomes: &[Outcome]) -> bool {
        let writes = self.members.iter().any(|member| member.writes);
        let newest = if writes { self.base.next() } else { self.base };
        self.members.iter().zip(outcomes).all(|(member, outcome)| match outcome {
            Outcome::Committed(revision) if member.writes => *revision == newest,
            Outcome::Committed(revision) => *revision <= newest,
            Outcome::Conflict(_) => false,
        })
    }
}

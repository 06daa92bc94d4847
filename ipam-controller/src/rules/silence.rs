//! Pure: silence: which controller answers for a host that it hears, and what is written when
//! none does.
//!
//! A host that is silent may live all the same, cut off from the controllers. So its silence takes
//! nothing from it; it only lets others, after a while, or an operator, take it.

use limpet_api::FleetTime;
use limpet_net_types::{HostName, Token};

use crate::alloc::claim::session;
use crate::draft::{Decision, Draft};
use crate::keys::Subject;
use crate::records::{Heard, Silent};
use crate::state::State;

/// Decides that a controller has heard a host's agent, in a session of the host's. Nothing is
/// written while it goes on as it was.
///
/// Returns since when the host was silent, if it was.
pub(crate) fn hear(
    state: &State,
    host: &HostName,
    token: Token,
    replica: Token,
) -> Decision<Option<FleetTime>> {
    Decision::make(|draft| {
        session(state, draft, host, token)?;
        Ok(answer_for(state, draft, host, Heard { session: token, replica }))
    })
}

/// Writes that a controller answers for a host, which ends its silence. Returns since when that
/// was.
pub(super) fn answer_for(
    state: &State,
    draft: &mut Draft,
    host: &HostName,
    heard: Heard,
) -> Option<FleetTime> {
    let subject = Subject::Heard(host.clone());
    let before = state.heard(host);
    draft.rely(&subject, before);
    if before.map(|before| before.record) != Some(heard) {
        draft.put_ephemeral(&subject, &heard);
    }
    let subject = Subject::Silent(host.clone());
    let silence = state.silence(host);
    draft.rely(&subject, silence);
    if silence.is_some() {
        draft.delete(&subject);
    }
    silence.map(|silence| silence.record.since)
}

/// Decides that a controller no longer answers for a host, if it did.
pub(crate) fn unhear(state: &State, host: &HostName, replica: Token) -> Decision<()> {
    Decision::make(|draft| {
        let subject = Subject::Heard(host.clone());
        let heard = state.heard(host);
        draft.rely(&subject, heard);
        if heard.is_some_and(|heard| heard.record.replica == replica) {
            draft.delete(&subject);
        }
        Ok(())
    })
}

/// Decides that a host is silent, if nobody answers for it and its session is this one. Returns
/// whether that is news.
pub(crate) fn mark(state: &State, host: &HostName, token: Token) -> Decision<bool> {
    Decision::make(|draft| {
        let (session, heard) = (state.session(host), state.heard(host));
        draft.rely(&Subject::Session(host.clone()), session);
        draft.rely(&Subject::Heard(host.clone()), heard);
        let subject = Subject::Silent(host.clone());
        let silence = state.silence(host);
        draft.rely(&subject, silence);
        let is_same = session.is_some_and(|session| session.record.session == token);
        let is_news = is_same && heard.is_none() && silence.is_none();
        if is_news {
            draft.put(&subject, &Silent { since: state.now(), session: token });
        }
        Ok(is_news)
    })
}

/// Removes what was written of a host being heard or silent.
pub(super) fn forget(state: &State, draft: &mut Draft, host: &HostName) {
    let (heard, silence) = (state.heard(host), state.silence(host));
    for (subject, revision) in [
        (Subject::Heard(host.clone()), heard.map(|entry| entry.revision)),
        (Subject::Silent(host.clone()), silence.map(|entry| entry.revision)),
    ] {
        draft.rely_on(&subject, revision);
        if revision.is_some() {
            draft.delete(&subject);
        }
    }
}

//! Pure: how attachments end: by their own host, fenced by the incarnation; and how a host is
//! asked whether one has ended that it has not told of.

use limpet_api::book::{Attachment, AttachmentKey, AttachmentRef, EndReason, EndedBy, Reservation};
use limpet_api::host::{ASK_KEPT_SECONDS, Ask, EndRequest};
use limpet_api::{ApiError, ErrorCode, Span};
use limpet_net_types::{HostName, Uid};

use super::claim::session;
use super::{Outcome, Patience, tenure};
use crate::draft::{Decision, Draft, refuse};
use crate::keys::Subject;
use crate::records::Slot;
use crate::state::{State, reservation_key};
use crate::store::Revision;

/// Decides the end of an attachment by its own host. Another incarnation than the one named is
/// left alone, and that is a success.
pub(crate) fn end(state: &State, key: &AttachmentKey, request: &EndRequest) -> Decision<()> {
    Decision::make(|draft| {
        session(state, draft, &key.host, request.session)?;
        if !request.reason.is_of_agents() {
            let text = format!("{} is no reason that a host can give for an end", request.reason);
            return refuse(ErrorCode::Invalid, text);
        }
        let attachment = state.attachment(key);
        draft.rely(&Subject::Attachment(key.clone()), attachment);
        if let Some(attachment) = attachment.filter(|entry| entry.record.uid == request.uid) {
            let by = EndedBy::Host(key.host.clone());
            let ending = Ending { reason: request.reason, by };
            end_attachment(state, draft, &attachment.record, &ending);
        }
        Ok(())
    })
}

/// Asks the host of `about` whether it is there; refuses with `held` when that took too long.
pub(super) fn ask<T>(
    state: &State,
    draft: &mut Draft,
    about: AttachmentRef,
    patience: Patience,
    held: impl FnOnce(&AttachmentRef) -> ApiError,
) -> Result<Outcome<T>, ApiError> {
    let subject = Subject::Ask(about.key.host.clone(), about.uid);
    let asked = state.ask(&about.key.host, about.uid);
    let attachment = Subject::Attachment(about.key.clone());
    draft.rely(&attachment, state.attachment(&about.key));
    if patience == Patience::Over {
        return Err(held(&about));
    }
    if asked.is_none() {
        draft.rely_on(&subject, None);
        draft.put(&subject, &asking(state, about.clone(), false));
    }
    Ok(Outcome::Asked(about))
}

/// A question that nobody has answered.
pub(super) fn asking(state: &State, attachment: AttachmentRef, force: bool) -> Ask {
    Ask { attachment, present: false, force, asked: state.now() }
}

/// Deletes a question that is about nothing any more, or that nobody can be waiting for.
pub(crate) fn expire(state: &State, host: &HostName, uid: Uid) -> Decision<()> {
    Decision::make(|draft| {
        let subject = Subject::Ask(host.clone(), uid);
        let asked = state.ask(host, uid);
        draft.rely(&subject, asked);
        if asked.is_some_and(|asked| is_over(state, &asked.record)) {
            draft.delete(&subject);
        }
        Ok(())
    })
}

/// Whether a question is about an incarnation that has ended, or was asked too long ago.
pub(crate) fn is_over(state: &State, ask: &Ask) -> bool {
    let AttachmentRef { key, uid } = &ask.attachment;
    let lasts = state.attachment(key).is_some_and(|entry| entry.record.uid == *uid);
    !lasts || ask.asked.plus(Span::from_seconds(ASK_KEPT_SECONDS)) <= state.now()
}

/// Asks again what was answered at this revision or before it: much may have changed since.
pub(crate) fn ask_anew(state: &State, host: &HostName, uid: Uid, until: Revision) -> Decision<()> {
    Decision::make(|draft| {
        let subject = Subject::Ask(host.clone(), uid);
        let asked = state.ask(host, uid);
        draft.rely(&subject, asked);
        if let Some(ask) = asked.filter(|ask| ask.record.present && ask.revision <= until) {
            draft.put(&subject, &asking(state, ask.record.attachment.clone(), ask.record.force));
        }
        Ok(())
    })
}

/// Takes a question back.
pub(crate) fn withdraw(state: &State, host: &HostName, uid: Uid) -> Decision<()> {
    Decision::make(|draft| {
        let subject = Subject::Ask(host.clone(), uid);
        let asked = state.ask(host, uid);
        draft.rely(&subject, asked);
        if asked.is_some() {
            draft.delete(&subject);
        }
        Ok(())
    })
}

/// Why an attachment ends, and by whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ending {
    /// Why.
    pub(crate) reason: EndReason,
    /// By whom.
    pub(crate) by: EndedBy,
}

/// Writes the end of an attachment: its addresses go back to the reservation, or cool, and
/// history is told.
pub(crate) fn end_attachment(
    state: &State,
    draft: &mut Draft,
    attachment: &Attachment,
    ending: &Ending,
) {
    let Attachment { key, uid, namespace, name, .. } = attachment;
    let subject = Subject::Attachment(key.clone());
    draft.rely(&subject, state.attachment(key));
    draft.delete(&subject);
    tenure::record(state, draft, attachment, ending);
    let mut reserved = false;
    for held in &attachment.addresses {
        let subject = Subject::Address(key.network.clone(), held.address);
        let entry = state.slot(&key.network, held.address);
        draft.rely(&subject, entry);
        let Some(slot) = entry.map(|entry| &entry.record) else { continue };
        if slot.attachment.as_ref().is_none_or(|holder| holder.uid != *uid) {
            continue;
        }
        let reservation = slot.reservation.clone();
        reserved |= reservation.is_some();
        let released = reservation.is_none().then(|| state.now());
        draft.put_slot(subject, Slot { reservation, attachment: None, released });
    }
    let reservation_key = reservation_key(&key.network, namespace, name);
    if let Some(entry) = state.reservation(&reservation_key).filter(|_| reserved) {
        let detached_at = Some(state.now());
        let reservation = Reservation { detached_at, ..entry.record.clone() };
        let subject = Subject::Reservation(reservation_key);
        draft.rely(&subject, Some(entry));
        draft.put_reservation(&reservation);
    }
    let asked = Subject::Ask(key.host.clone(), *uid);
    if state.ask(&key.host, *uid).is_some() {
        draft.delete(&asked);
    }
}

//! Pure: how attachments end: by their own host, fenced by the incarnation; and how a host is
//! asked whether one has ended that it has not told of.

use limpet_api::ApiError;
use limpet_api::book::{Attachment, AttachmentKey, AttachmentRef, Reservation};
use limpet_api::host::{Ask, EndRequest};
use limpet_net_types::{HostName, Uid};

use super::claim::session;
use super::{Outcome, Patience};
use crate::draft::{Decision, Draft};
use crate::keys::Subject;
use crate::records::Slot;
use crate::state::{State, reservation_key};

/// Decides the end of an attachment by its own host. Another incarnation than the one named is
/// left alone, and that is a success.
pub(crate) fn end(state: &State, key: &AttachmentKey, request: &EndRequest) -> Decision<()> {
    Decision::make(|draft| {
        session(state, draft, &key.host, request.session)?;
        let attachment = state.attachment(key);
        draft.rely(&Subject::Attachment(key.clone()), attachment);
        if let Some(attachment) = attachment.filter(|entry| entry.record.uid == request.uid) {
            end_attachment(state, draft, &attachment.record);
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
        draft.put(&subject, &Ask { attachment: about.clone(), present: false });
    }
    Ok(Outcome::Asked(about))
}

/// Takes a question back that nobody waits for any more. Asked anew it is looked into anew.
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

/// Writes the end of an attachment: its addresses go back to the reservation, or cool.
pub(super) fn end_attachment(state: &State, draft: &mut Draft, attachment: &Attachment) {
    let Attachment { key, uid, namespace, name, .. } = attachment;
    let subject = Subject::Attachment(key.clone());
    draft.rely(&subject, state.attachment(key));
    draft.delete(&subject);
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
        draft.put(&subject, &Slot { reservation, attachment: None, released });
    }
    let reservation_key = reservation_key(&key.network, namespace, name);
    if let Some(entry) = state.reservation(&reservation_key).filter(|_| reserved) {
        let detached_at = Some(state.now());
        let reservation = Reservation { detached_at, ..entry.record.clone() };
        let subject = Subject::Reservation(reservation_key);
        draft.rely(&subject, Some(entry));
        draft.put(&subject, &reservation);
    }
    let asked = Subject::Ask(key.host.clone(), *uid);
    if state.ask(&key.host, *uid).is_some() {
        draft.delete(&asked);
    }
}

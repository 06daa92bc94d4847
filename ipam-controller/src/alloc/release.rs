//! Pure: attachments that operators end: their hosts are asked, or told, or are down.

use limpet_api::book::{
    Attachment, AttachmentKey, AttachmentRef, EndReason, EndedBy, ReleaseRequest,
};
use limpet_api::host::{ASK_SECONDS, LEASE_SECONDS};
use limpet_api::{ApiError, ErrorCode, Span};
use limpet_net_types::HostName;
use serde_json::json;

use super::ends::{Ending, ask, asking, end_attachment};
use super::{Outcome, Patience};
use crate::draft::{Decision, Draft, refuse};
use crate::keys::Subject;
use crate::rules::sessions::Liveness;
use crate::state::{Entry, State};
use crate::store::Revision;

/// Returns the attachment that is to be ended. What was answered about it before does not count.
pub(crate) fn begin(state: &State, key: &AttachmentKey) -> Decision<Option<Attachment>> {
    let attachment = state.attachment(key);
    let uid = attachment.map(|entry| entry.record.uid);
    let anew = |uid| super::ends::ask_anew(state, &key.host, uid, Revision(u64::MAX));
    let mut draft = uid.map_or_else(Draft::default, |uid| anew(uid).draft);
    draft.rely(&Subject::Attachment(key.clone()), attachment);
    Decision { draft, answer: Ok(attachment.map(|entry| entry.record.clone())) }
}

/// Decides the end of an attachment by an operator: its host is asked, and ends it if it is gone.
///
/// With force its host ends it although it is there; or, if an operator says that the host is down,
/// and nobody hears it, it is ended without.
pub(crate) fn end(
    state: &State,
    asked: &Attachment,
    how: ReleaseRequest,
    patience: Patience,
    liveness: Liveness,
) -> Decision<Outcome<()>> {
    Decision::make(|draft| {
        let key = &asked.key;
        let entry = state.attachment(key);
        draft.rely(&Subject::Attachment(key.clone()), entry);
        let attachment = entry.map(|entry| &entry.record);
        let Some(attachment) = attachment.filter(|attachment| attachment.uid == asked.uid) else {
            return Ok(Outcome::Done(()));
        };
        if how.host_is_down && !how.force {
            let text = "that a host is down matters only to a forced release: say force too";
            return refuse(ErrorCode::Invalid, text);
        }
        if how.host_is_down {
            is_down(state, draft, &key.host, liveness)?;
            let ending = Ending { reason: EndReason::Forced, by: EndedBy::Operator };
            end_attachment(state, draft, attachment, &ending);
            return Ok(Outcome::Done(()));
        }
        if how.force {
            return tell(state, draft, attachment, patience, liveness);
        }
        let about = AttachmentRef { key: key.clone(), uid: attachment.uid };
        if state.ask(&key.host, attachment.uid).is_some_and(|ask| ask.record.present) {
            return Err(present(key));
        }
        ask(state, draft, about, patience, |_| silent(state, key))
    })
}

/// Decides the end of an attachment of a host that an operator removes, and that nobody hears.
pub(crate) fn end_removed(
    state: &State,
    about: &AttachmentRef,
    liveness: Liveness,
) -> Decision<()> {
    Decision::make(|draft| {
        is_down(state, draft, &about.key.host, liveness)?;
        let ending = Ending { reason: EndReason::HostRemoved, by: EndedBy::Operator };
        end_this(state, draft, about, &ending);
        Ok(())
    })
}

/// Decides the end of an attachment of a host that has been silent for `span`, and still is.
pub(crate) fn end_silent(state: &State, about: &AttachmentRef, span: Span) -> Decision<()> {
    Decision::make(|draft| {
        let host = &about.key.host;
        let (session, silence) = (state.session(host), state.silence(host));
        draft.rely(&Subject::Session(host.clone()), session);
        draft.rely(&Subject::Heard(host.clone()), state.heard(host));
        draft.rely(&Subject::Silent(host.clone()), silence);
        let is_due = silence.is_some_and(|silence| {
            let is_same = session.is_none_or(|now| now.record.session == silence.record.session);
            is_same && silence.record.since.plus(span) <= state.now()
        });
        if is_due && state.heard(host).is_none() {
            let ending = Ending { reason: EndReason::HostSilent, by: EndedBy::Controller };
            end_this(state, draft, about, &ending);
        }
        Ok(())
    })
}

fn end_this(state: &State, draft: &mut Draft, about: &AttachmentRef, ending: &Ending) {
    let entry = state.attachment(&about.key);
    draft.rely(&Subject::Attachment(about.key.clone()), entry);
    if let Some(entry) = entry.filter(|entry| entry.record.uid == about.uid) {
        end_attachment(state, draft, &entry.record, ending);
    }
}

/// Checks that nobody hears a host, which the transaction then compares: by a controller's own
/// hearing, and by what is written.
///
/// # Errors
///
/// `host-alive`.
pub(crate) fn is_down(
    state: &State,
    draft: &mut Draft,
    host: &HostName,
    liveness: Liveness,
) -> Result<(), ApiError> {
    let session = state.session(host);
    draft.rely(&Subject::Session(host.clone()), session);
    draft.rely(&Subject::Heard(host.clone()), state.heard(host));
    if session.is_none() || liveness == Liveness::Lapsed {
        return Ok(());
    }
    let text = format!(
        "host {host} is alive, or was {LEASE_SECONDS} s ago: if it is down, say so again once it is \
         not heard of any more"
    );
    Err(ApiError::new(ErrorCode::HostAlive, text).with_details(json!({ "host": host })))
}

/// Tells a live host to end an attachment although its container is there.
fn tell(
    state: &State,
    draft: &mut Draft,
    attachment: &Attachment,
    patience: Patience,
    liveness: Liveness,
) -> Result<Outcome<()>, ApiError> {
    let Attachment { key, uid, .. } = attachment;
    let host = &key.host;
    let (session, silence) = (state.session(host), state.silence(host));
    draft.rely(&Subject::Session(host.clone()), session);
    draft.rely(&Subject::Silent(host.clone()), silence);
    if session.is_none() || silence.is_some() || liveness == Liveness::Lapsed {
        return Err(unheard(state, key));
    }
    if patience == Patience::Over {
        return Err(late(key));
    }
    let about = AttachmentRef { key: key.clone(), uid: *uid };
    let subject = Subject::Ask(host.clone(), *uid);
    let asked = state.ask(host, *uid);
    draft.rely(&subject, asked);
    if !asked.is_some_and(|ask| ask.record.force) {
        draft.put(&subject, &asking(state, about.clone(), true));
    }
    Ok(Outcome::Asked(about))
}

fn present(key: &AttachmentKey) -> ApiError {
    let AttachmentKey { host, container, .. } = key;
    let text = format!("host {host} says that container {container} is there: stop it first");
    ApiError::new(ErrorCode::AttachmentPresent, text)
        .with_details(json!({ "host": host, "container": container }))
}

fn silent(state: &State, key: &AttachmentKey) -> ApiError {
    let AttachmentKey { host, container, .. } = key;
    let since = since(state, host);
    let text =
        format!("host {host} did not say in time whether container {container} is there{since}");
    ApiError::new(ErrorCode::HostSilent, text)
        .with_details(json!({ "host": host, "container": container }))
}

fn unheard(state: &State, key: &AttachmentKey) -> ApiError {
    let AttachmentKey { host, container, .. } = key;
    let since = since(state, host);
    let text = format!(
        "nobody hears host {host}{since}, so it cannot be told to end what container {container} has: \
         --host-is-down ends it without. Say so only of a host that is down: of one that is cut off \
         the container would go on answering, beside whoever gets the address next"
    );
    ApiError::new(ErrorCode::HostSilent, text)
        .with_details(json!({ "host": host, "container": container }))
}

fn late(key: &AttachmentKey) -> ApiError {
    let AttachmentKey { host, container, .. } = key;
    let text = format!(
        "host {host} was told to end what container {container} has, and did not within \
         {ASK_SECONDS} s; it is not told any more"
    );
    ApiError::new(ErrorCode::HostSilent, text)
        .with_details(json!({ "host": host, "container": container }))
}

/// For how long a host has been silent, in words that follow on a sentence; none if it is not.
fn since(state: &State, host: &HostName) -> String {
    let silent = |entry: &Entry<_>| {
        let crate::records::Silent { since, .. } = entry.record;
        format!(", silent for {}", state.now().since(since))
    };
    state.silence(host).map(silent).unwrap_or_default()
}

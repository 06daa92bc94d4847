//! Pure: what becomes of a reservation's addresses when the host that holds them is silent.
//!
//! A silent host may live, and its container answer; so this is the one way, besides an operator's
//! word, by which two containers can have one address. Its own agent severs the old one as soon as
//! it hears of its end.

use limpet_api::book::{AttachmentRef, EndReason, EndedBy, Reservation};
use limpet_api::{After, ApiError, ErrorCode, FleetTime, Span};
use limpet_net_types::{HostName, PoolName};
use serde_json::json;

use super::ends::{Ending, end_attachment};
use crate::draft::Draft;
use crate::keys::Subject;
use crate::state::State;

/// Returns whether the addresses can be taken over from `holder` now; not if its host is not silent.
///
/// # Errors
///
/// `reservation-held` if the host is silent, and has not been for long enough.
pub(super) fn may(
    state: &State,
    draft: &mut Draft,
    reservation: &Reservation,
    holder: &AttachmentRef,
) -> Result<bool, ApiError> {
    let host = &holder.key.host;
    let silence = state.silence(host);
    draft.rely(&Subject::Silent(host.clone()), silence);
    let Some(silence) = silence else { return Ok(false) };
    let since = silence.record.since;
    let mut latest = since;
    for held in &reservation.addresses {
        let Some(pool) = state.pool(&held.pool) else { continue };
        draft.rely_on(&Subject::Pool(held.pool.clone()), Some(pool.revision));
        match pool.record.takeover_after {
            After::Never => return Err(never(state, reservation, holder, (since, &held.pool))),
            After::For(span) => latest = latest.max(since.plus(span)),
        }
    }
    if latest <= state.now() {
        return Ok(true);
    }
    Err(not_yet(state, reservation, holder, (since, latest.since(state.now()))))
}

/// Writes the end of an attachment whose addresses the host `by` takes over.
pub(super) fn write(state: &State, draft: &mut Draft, holder: &AttachmentRef, by: &HostName) {
    let ended = state.attachment(&holder.key).filter(|entry| entry.record.uid == holder.uid);
    if let Some(ended) = ended {
        let ending = Ending { reason: EndReason::TakenOver, by: EndedBy::Host(by.clone()) };
        end_attachment(state, draft, &ended.record, &ending);
    }
}

fn not_yet(
    state: &State,
    reservation: &Reservation,
    holder: &AttachmentRef,
    (since, left): (FleetTime, Span),
) -> ApiError {
    let text = format!("{}; they can be taken over in {left}", held(state, reservation, holder));
    refusal(text, holder, since, Some(left))
}

fn never(
    state: &State,
    reservation: &Reservation,
    holder: &AttachmentRef,
    (since, pool): (FleetTime, &PoolName),
) -> ApiError {
    let text = format!(
        "{}, and pool {pool} lets nobody take them over: if the host is down, say so: limpetctl \
         attachment release {} --force --host-is-down",
        held(state, reservation, holder),
        holder.uid
    );
    refusal(text, holder, since, None)
}

fn held(state: &State, reservation: &Reservation, holder: &AttachmentRef) -> String {
    let Reservation { namespace, name, .. } = reservation;
    let (host, container) = (&holder.key.host, &holder.key.container);
    let silent = state.silence(host).map(|silence| state.now().since(silence.record.since));
    let silent = silent.unwrap_or_default();
    format!(
        "the addresses of {namespace}/{name} are held by container {container} on host {host}, \
         which has been silent for {silent}"
    )
}

fn refusal(text: String, holder: &AttachmentRef, since: FleetTime, left: Option<Span>) -> ApiError {
    let (host, container, ifname) = (&holder.key.host, &holder.key.container, &holder.key.ifname);
    ApiError::new(ErrorCode::ReservationHeld, text).with_details(json!({
        "host": host, "container": container, "ifname": ifname,
        "silent_since": since, "takeover_in": left,
    }))
}

//! Edge: what follows a restore: hosts say what lives on them, operators look on and waive.

use std::collections::BTreeSet;

use axum::Json;
use axum::extract::State as Shared;
use futures_util::future::try_join_all;
use limpet_api::book::{Attachment, AttachmentKey};
use limpet_api::host::{ReassertRequest, ReassertResult, Reasserted};
use limpet_api::restore::{RestoreStatus, Waive};
use limpet_api::{ApiError, ErrorCode};
use limpet_net_types::{HostName, Token, Uid};
use tracing::{info, warn};

use super::extract::{Body, Params};
use super::{Answer, App};
use crate::alloc::reassert::{self, Fate};
use crate::alloc::restored;
use crate::state::State;

/// How many attachments are decided on at once.
const AT_ONCE: usize = 256;

pub(super) async fn reassert(
    Shared(app): Shared<App>,
    Params(host): Params<HostName>,
    Body(request): Body<ReassertRequest>,
) -> Answer<Reasserted> {
    let ReassertRequest { session, attachments, complete, living } = request;
    if let Some(other) = attachments.iter().find(|attachment| attachment.key.host != host) {
        let text = format!("host {host} asserts an attachment of host {}", other.key.host);
        return Err(ApiError::new(ErrorCode::Invalid, text).into());
    }
    if complete || !living.is_empty() {
        let named = attachments.iter().map(|asserted| asserted.uid);
        end_missing(&app, &host, session, named.chain(living).collect()).await?;
    }
    let (mut results, mut revision, mut waits) = (Vec::new(), 0, None);
    for some in attachments.chunks(AT_ONCE) {
        let decided = some.iter().map(|asserted| decide(&app, asserted.clone(), session));
        for (uid, (fate, at)) in
            some.iter().map(|asserted| asserted.uid).zip(try_join_all(decided).await?)
        {
            revision = at.max(revision);
            match fate {
                Fate::Known(outcome) => {
                    results.push(ReassertResult { uid, outcome, revision: Some(at) });
                }
                Fate::Waits(host) => waits = Some(host),
            }
        }
    }
    if let Some(other) = waits {
        return Err(reassert::waits_for(&other).into());
    }
    if complete {
        let name = host.clone();
        let done = move |state: &State| restored::complete(state, &name, session);
        revision = app.book.decide(done).await?.1.0.max(revision);
    }
    info!(%host, attachments = results.len(), complete, "host said what lives on it");
    Ok(Json(Reasserted { results, revision }))
}

async fn decide(
    app: &App,
    asserted: Attachment,
    session: Token,
) -> Result<(Fate, limpet_api::Revision), ApiError> {
    let decide = move |state: &State| reassert::reassert(state, &asserted, session);
    app.book.decide(decide).await.map(|(fate, revision)| (fate, revision.0))
}

/// Ends what a host that is waited for has not, so that others who wait for those addresses go on.
async fn end_missing(
    app: &App,
    host: &HostName,
    session: Token,
    living: BTreeSet<Uid>,
) -> Result<(), ApiError> {
    let name = host.clone();
    let find = move |state: &State| -> Vec<(AttachmentKey, Uid)> {
        let is_waited_for = state.restored().is_some_and(|restored| {
            let restored = &restored.record;
            restored.waiting.contains(&name) && !restored.spoken.contains(&name)
        });
        let attachments = state.attachments_of(&name).filter(|_| is_waited_for);
        let missing = attachments.filter(|entry| !living.contains(&entry.record.uid));
        missing.map(|entry| (entry.record.key.clone(), entry.record.uid)).collect()
    };
    let missing = app.book.read(find).await?;
    if !missing.is_empty() {
        warn!(%host, count = missing.len(), "attachments of the backup have ended since");
    }
    for some in missing.chunks(AT_ONCE) {
        let ends = some.iter().cloned().map(|(key, uid)| {
            app.book.decide(move |state| reassert::missing(state, &key, uid, session))
        });
        try_join_all(ends).await?;
    }
    let name = host.clone();
    app.book.decide(move |state| restored::spoke(state, &name, session)).await?;
    Ok(())
}

pub(super) async fn status(Shared(app): Shared<App>) -> Answer<RestoreStatus> {
    Ok(Json(app.book.read_always(describe).await?))
}

pub(super) async fn waive(
    Shared(app): Shared<App>,
    Body(Waive { hosts }): Body<Waive>,
) -> Answer<RestoreStatus> {
    let waived = hosts.clone();
    app.book.decide(move |state| restored::waive(state, &hosts)).await?;
    warn!(hosts = ?waived, "an operator does not wait for these hosts");
    Ok(Json(app.book.read(describe).await?))
}

pub(super) fn describe(state: &State) -> RestoreStatus {
    RestoreStatus {
        store: state.store(),
        now: state.now(),
        holds: crate::backup::holds(state),
        restoring: state.restoring().map(|entry| entry.record.clone()),
        restored: state.restored().map(|entry| entry.record.clone()),
    }
}

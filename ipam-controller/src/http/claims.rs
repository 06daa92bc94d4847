//! Edge: claims and ends, and the waiting for a host that is asked about an attachment.

use std::time::Duration;

use axum::Json;
use axum::extract::State as Shared;
use limpet_api::book::{Attachment, AttachmentKey, AttachmentRef, Released};
use limpet_api::host::{ASK_SECONDS, ClaimRequest, Claimed, EndRequest, Ended};
use limpet_api::{ApiError, ErrorCode};
use limpet_net_types::Uid;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::time::{Instant, timeout_at};
use tracing::debug;

use super::extract::{Body, Params, Query};
use super::operators::attachments::{Path, key, not_found};
use super::{Answer, App};
use crate::alloc::{Outcome, Patience, claim, ends, reserve};
use crate::draft::Decision;
use crate::state::State;
use crate::store::Revision;

/// How long a host has to give an attachment up.
const ASK: Duration = Duration::from_secs(ASK_SECONDS);

/// How often the answer to a question is looked for that may be "it is there".
const LOOK: Duration = Duration::from_millis(100);

pub(super) async fn claim(
    Shared(app): Shared<App>,
    Params(path): Params<Path>,
    Body(request): Body<ClaimRequest>,
) -> Answer<Claimed> {
    let key = key(path);
    let decide = move |state: &State, patience| claim::claim(state, &key, &request, patience);
    let ((attachment, network), revision) = patiently(app, ASK, decide).await?;
    Ok(Json(Claimed { attachment, network, revision: revision.0 }))
}

pub(super) async fn end(
    Shared(app): Shared<App>,
    Params(path): Params<Path>,
    Query(request): Query<EndRequest>,
) -> Answer<Ended> {
    let key = key(path);
    let decide = move |state: &State| ends::end(state, &key, &request);
    let ((), revision) = app.book.decide(decide).await?;
    Ok(Json(Ended { revision: revision.0 }))
}

pub(super) async fn end_by_operator(
    Shared(app): Shared<App>,
    Params(path): Params<Path>,
) -> Answer<Released> {
    let key = key(path);
    let asked: Attachment = {
        let key = key.clone();
        let found = app.book.read(move |state| state.attachment(&key).cloned()).await?;
        found.map(|entry| entry.record)
    }
    .ok_or_else(|| not_found(&key))?;
    let addresses = asked.addresses.iter().map(|held| held.address).collect();
    let decide = move |state: &State, patience| reserve::end(state, &key, Some(&asked), patience);
    let ((), revision) = patiently(app, LOOK, decide).await?;
    Ok(Json(Released { addresses, revision: revision.0 }))
}

/// Decides until nobody needs to be asked any more, at most for [`ASK`]; looks again whenever
/// the attachment in question ends, and every `look`.
///
/// Goes on when the caller has gone, so that a question is not left behind that nobody waits
/// for; a newer session of the caller's host fences what it would have done.
async fn patiently<T: Send + 'static>(
    app: App,
    look: Duration,
    decide: impl Fn(&State, Patience) -> Decision<Outcome<T>> + Clone + Send + Sync + 'static,
) -> Result<(T, Revision), ApiError> {
    let tasks = app.tasks.clone();
    let deciding = tasks.spawn(async move {
        // Who ends between the question and the waiting is noticed: the ears are open before.
        let mut ended = app.book.ended();
        let deadline = Instant::now() + ASK;
        let mut asked = None;
        let answer = loop {
            let over = Instant::now() >= deadline;
            let patience = if over { Patience::Over } else { Patience::Left };
            let decide = decide.clone();
            let decision = app.book.decide(move |state| decide(state, patience)).await;
            let about = match decision {
                Ok((Outcome::Done(answer), revision)) => break Ok((answer, revision)),
                Ok((Outcome::Asked(about), _)) => about,
                Err(error) => break Err(error),
            };
            let until = deadline.min(Instant::now() + look);
            wait(&mut ended, about.uid, until).await;
            asked = Some(about);
        };
        if answer.is_err()
            && let Some(asked) = asked
        {
            withdraw(&app, asked).await;
        }
        answer
    });
    deciding.await.unwrap_or_else(|_| {
        let text = "the request ended unexpectedly; it may have been carried out";
        Err(ApiError::new(ErrorCode::OutcomeUnknown, text))
    })
}

/// Waits until an attachment ends, or until it is time to look.
async fn wait(ended: &mut broadcast::Receiver<Uid>, uid: Uid, until: Instant) {
    let end = async {
        loop {
            match ended.recv().await {
                Ok(ended) if ended != uid => {}
                // Who fell behind looks for itself.
                Ok(_) | Err(RecvError::Lagged(_) | RecvError::Closed) => return,
            }
        }
    };
    let _ = timeout_at(until, end).await;
}

async fn withdraw(app: &App, about: AttachmentRef) {
    let AttachmentRef { key: AttachmentKey { host, .. }, uid } = about;
    let withdrawn = app.book.decide(move |state| ends::withdraw(state, &host, uid)).await;
    if let Err(error) = withdrawn {
        // It stays, and is answered by the host or ended with the attachment.
        debug!(%error, %uid, "a question was not withdrawn");
    }
}

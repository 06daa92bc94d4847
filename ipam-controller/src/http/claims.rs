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
        let questions = app.waiters.begin();
        let noting = questions.clone();
        let decide = move |state: &State, patience| {
            let decision = decide(state, patience);
            if let Ok(Outcome::Asked(about)) = &decision.answer {
                noting.wait(about);
            }
            decision
        };
        let answer = decided(&app, look, decide).await;
        for about in questions.leave() {
            withdraw(&app, about).await;
        }
        answer
    });
    deciding.await.unwrap_or_else(|_| {
        let text = "the request ended unexpectedly; it may have been carried out";
        Err(ApiError::new(ErrorCode::OutcomeUnknown, text))
    })
}

async fn decided<T: Send + 'static>(
    app: &App,
    look: Duration,
    decide: impl Fn(&State, Patience) -> Decision<Outcome<T>> + Clone + Send + Sync + 'static,
) -> Result<(T, Revision), ApiError> {
    // Who ends between the question and the waiting is noticed: the ears are open before.
    let mut ended = app.book.ended();
    let deadline = Instant::now() + ASK;
    loop {
        let over = Instant::now() >= deadline;
        let patience = if over { Patience::Over } else { Patience::Left };
        let decide = decide.clone();
        match app.book.decide(move |state| decide(state, patience)).await? {
            (Outcome::Done(answer), revision) => return Ok((answer, revision)),
            (Outcome::Asked(about), _) => {
                wait(&mut ended, about.uid, deadline.min(Instant::now() + look)).await;
            }
        }
    }
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

/// Takes a question back, unless it is settled or another request waits for it.
async fn withdraw(app: &App, about: AttachmentRef) {
    let AttachmentRef { key: AttachmentKey { host, .. }, uid } = about;
    let waiters = app.waiters.clone();
    let decide = move |state: &State| {
        if waiters.any(uid) {
            Decision::make(|_| Ok(()))
        } else {
            ends::withdraw(state, &host, uid)
        }
    };
    if let Err(error) = app.book.decide(decide).await {
        // It stays, and is answered by the host, ended with the attachment, or deleted at the
        // next start.
        debug!(%error, %uid, "a question was not withdrawn");
    }
}

#[cfg(test)]
mod tests {
    use limpet_api::host::Wanted;
    use limpet_net_types::{HostName, Token};
    use tokio::task::JoinHandle;
    use tokio::time;

    use super::*;
    use crate::http::fixture::{app, joining};
    use crate::rules::{networks, pools};
    use crate::state::sample::name;
    use crate::store::faulty::{Fault, Faulty};

    /// Hosts a, b and c; a container called web-0 on a.
    async fn attached() -> (App, Faulty, [Token; 3]) {
        let (app, faults) = app().await;
        let spec = limpet_api::config::NetworkSpec::default();
        app.book.decide(move |s| networks::create(s, &name("blue"), &spec)).await.unwrap();
        let spec: limpet_api::config::PoolSpec =
            serde_json::from_str(r#"{"network": "blue", "range": "10.0.0.0/24"}"#).unwrap();
        app.book.decide(move |s| pools::create(s, &name("p"), &spec)).await.unwrap();
        let mut sessions = [Token::from_bits(0); 3];
        for (last, session) in (1_u8..).zip(&mut sessions) {
            let host: HostName = name(["a", "b", "c"][usize::from(last) - 1]);
            let (app, request) = (Shared(app.clone()), Body(joining(last)));
            let joined = crate::http::hosts::join(app, Params(host), request).await.unwrap();
            *session = joined.0.session;
        }
        claiming(&app, "a", sessions[0]).await.unwrap().unwrap();
        (app, faults, sessions)
    }

    fn claiming(app: &App, host: &str, session: Token) -> JoinHandle<Result<(), ApiError>> {
        let (uid, wanted) = (session, Wanted { name: Some(name("web-0")), ..Wanted::default() });
        let key = AttachmentKey {
            host: name(host),
            network: name("blue"),
            container: name(host),
            ifname: name("eth0"),
        };
        let request = ClaimRequest { session, uid, wanted };
        let decide = move |state: &State, patience| claim::claim(state, &key, &request, patience);
        let app = app.clone();
        tokio::spawn(async move { patiently(app, ASK, decide).await.map(drop) })
    }

    async fn asks(app: &App) -> usize {
        app.book.read(|state| state.asks_of(&name("a")).count()).await.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_who_waits_takes_the_question_back() {
        let (app, _, [_, b, c]) = attached().await;
        let first = claiming(&app, "b", b);
        time::sleep(ASK / 2).await;
        let second = claiming(&app, "c", c);
        assert_eq!(first.await.unwrap().unwrap_err().code, ErrorCode::ReservationHeld);
        time::sleep(ASK / 4).await;
        assert_eq!(asks(&app).await, 1, "the second still waits");
        assert_eq!(second.await.unwrap().unwrap_err().code, ErrorCode::ReservationHeld);
        assert_eq!(asks(&app).await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_question_whose_asking_ended_in_an_error_is_taken_back() {
        let (app, faults, [_, b, _]) = attached().await;
        for fault in [Fault::DoneUntold, Fault::LostUntold, Fault::LostUntold] {
            faults.plan(fault);
        }
        let error = claiming(&app, "b", b).await.unwrap().unwrap_err();
        assert_eq!(error.code, ErrorCode::OutcomeUnknown, "on its first decision");
        assert_eq!(asks(&app).await, 0);
    }
}

//! Edge: claims and ends, and the waiting for a host that is asked about an attachment.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use axum::Json;
use axum::extract::State as Shared;
use limpet_api::book::{Attachment, AttachmentRef, ReleaseRequest, Released};
use limpet_api::host::{ASK_SECONDS, ClaimRequest, Claimed, EndRequest, Ended};
use limpet_api::{ApiError, ErrorCode};
use limpet_net_types::Uid;
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::time::{Instant, timeout_at};
use tracing::warn;

use super::extract::{Body, Params, Query};
use super::operators::attachments::{Path, key, not_found};
use super::{Answer, App, now};
use crate::alloc::claim::Granted;
use crate::alloc::{Outcome, Patience, claim, ends, release};
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
    let host = key.host.clone();
    let decide = move |state: &State, patience| claim::claim(state, &key, &request, patience);
    let (granted, revision) = patiently(&app, ASK, decide).await?;
    let Granted { attachment, network, taken_over } = granted;
    for AttachmentRef { key: from, uid } in taken_over {
        let count = app.takeovers.fetch_add(1, Ordering::Relaxed) + 1;
        warn!(
            by = %host, from = %from.host, container = %from.container, %uid, count,
            "addresses were taken over from a silent host: it severs them when it is back"
        );
    }
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
    Query(how): Query<ReleaseRequest>,
) -> Answer<Released> {
    let key = key(path);
    let begun = key.clone();
    let (asked, _) = app.book.decide(move |state| release::begin(state, &begun)).await?;
    let asked = asked.ok_or_else(|| not_found(&key))?;
    let addresses = asked.addresses.iter().map(|held| held.address).collect();
    let tasks = app.tasks.clone();
    // Goes on when the caller has gone: a host must not carry out later what was given up.
    let releasing = tasks.spawn(async move { released(&app, asked, how).await });
    let revision = releasing.await.unwrap_or_else(|_| {
        let text = "the request ended unexpectedly; it may have been carried out";
        Err(ApiError::new(ErrorCode::OutcomeUnknown, text))
    })?;
    Ok(Json(Released { addresses, revision: revision.0 }))
}

async fn released(app: &App, asked: Attachment, how: ReleaseRequest) -> Result<Revision, ApiError> {
    let (host, uid) = (asked.key.host.clone(), asked.uid);
    let leases = Arc::clone(&app.leases);
    let decide = move |state: &State, patience| {
        let leases = leases.lock().unwrap_or_else(PoisonError::into_inner);
        let liveness = leases.liveness(state, &asked.key.host, now());
        release::end(state, &asked, how, patience, liveness)
    };
    let done = patiently(app, LOOK, decide).await;
    if done.is_err() && how.force {
        let taken_back = app.book.decide(move |state| ends::withdraw(state, &host, uid)).await;
        if let Err(error) = taken_back {
            warn!(%error, %uid, "a forced release was not taken back: its host may still do it");
        }
    }
    done.map(|((), revision)| revision)
}

/// Decides until nobody needs to be asked any more, at most for [`ASK`]; looks again whenever
/// the attachment in question ends, and every `look`.
async fn patiently<T: Send + 'static>(
    app: &App,
    look: Duration,
    decide: impl Fn(&State, Patience) -> Decision<Outcome<T>> + Clone + Send + Sync + 'static,
) -> Result<(T, Revision), ApiError> {
    // Who ends between the question and the waiting is noticed: the ears are open before.
    let mut ended = app.book.ended();
    let deadline = Instant::now() + ASK;
    let mut asked = Vec::new();
    loop {
        let patience = match app.leases().may_judge(now()) {
            _ if Instant::now() >= deadline => Patience::Over,
            true => Patience::Left,
            false => Patience::Deaf,
        };
        let decide = decide.clone();
        let (outcome, revision) = app.book.decide(move |state| decide(state, patience)).await?;
        let about = match outcome {
            Outcome::Done(answer) => return Ok((answer, revision)),
            Outcome::Asked(about) => about,
        };
        let uid = about.uid;
        if !asked.contains(&uid) {
            asked.push(uid);
            let anew = move |state: &State| ends::ask_anew(state, &about.key.host, uid, revision);
            app.book.decide(anew).await?;
        }
        wait(&mut ended, uid, deadline.min(Instant::now() + look)).await;
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

#[cfg(test)]
mod tests {
    use limpet_api::book::AttachmentKey;
    use limpet_api::host::{Ask, Wanted};
    use limpet_net_types::{HostName, Token};
    use tokio::task::JoinHandle;
    use tokio::time;

    use super::*;
    use crate::http::fixture::{app, joining};
    use crate::rules::{networks, pools, sessions};
    use crate::state::sample::name;
    use crate::store::faulty::Faulty;

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
        tokio::spawn(async move { patiently(&app, ASK, decide).await.map(drop) })
    }

    async fn asks(app: &App) -> usize {
        app.book.read(|state| state.asks_of(&name("a")).count()).await.unwrap()
    }

    async fn present(app: &App, session: Token) {
        let there = move |state: &State| sessions::present(state, &name("a"), session, session);
        app.book.decide(there).await.unwrap();
    }

    async fn unanswered(app: &App) -> usize {
        let is_open = |ask: &crate::state::Entry<Ask>| !ask.record.present;
        let count = move |state: &State| state.asks_of(&name("a")).filter(|a| is_open(a)).count();
        app.book.read(count).await.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_host_said_to_an_earlier_question_is_asked_anew() {
        let (app, _, [a, b, c]) = attached().await;
        let first = claiming(&app, "b", b);
        time::sleep(ASK / 2).await;
        present(&app, a).await;
        assert_eq!(first.await.unwrap().unwrap_err().code, ErrorCode::ReservationHeld);
        assert_eq!((asks(&app).await, unanswered(&app).await), (1, 0));
        let second = claiming(&app, "c", c);
        time::sleep(ASK / 2).await;
        assert_eq!((asks(&app).await, unanswered(&app).await), (1, 1));
        present(&app, a).await;
        assert_eq!(second.await.unwrap().unwrap_err().code, ErrorCode::ReservationHeld);
        // An operator does not wait any longer than for the new answer.
        let path = (name("a"), name("blue"), name("a"), name("eth0"));
        let how = ReleaseRequest::default();
        let shared = Shared(app.clone());
        let released = tokio::spawn(end_by_operator(shared, Params(path), Query(how)));
        time::sleep(ASK / 2).await;
        assert!(!released.is_finished());
        present(&app, a).await;
        let refused = released.await.unwrap().unwrap_err();
        assert_eq!(refused.0.code, ErrorCode::AttachmentPresent);
    }

    #[tokio::test(start_paused = true)]
    async fn a_forced_release_that_its_host_does_not_carry_out_is_taken_back() {
        let (app, _, _) = attached().await;
        let path = (name("a"), name("blue"), name("a"), name("eth0"));
        let how = ReleaseRequest { force: true, host_is_down: false };
        let shared = Shared(app.clone());
        let released = tokio::spawn(end_by_operator(shared, Params(path.clone()), Query(how)));
        time::sleep(ASK / 2).await;
        let forced = |state: &State| state.asks_of(&name("a")).all(|ask| ask.record.force);
        assert!(app.book.read(forced).await.unwrap());
        assert_eq!(asks(&app).await, 1);
        assert_eq!(released.await.unwrap().unwrap_err().0.code, ErrorCode::HostSilent);
        assert_eq!(asks(&app).await, 0);
        let how = ReleaseRequest { force: true, host_is_down: true };
        let shared = Shared(app.clone());
        let error = end_by_operator(shared, Params(path), Query(how)).await.unwrap_err();
        assert_eq!(error.0.code, ErrorCode::HostAlive);
    }
    async fn beat(app: &App, host: &str, session: Token) {
        let body = Body(limpet_api::host::Heartbeat { session });
        crate::http::hosts::heartbeat(Shared(app.clone()), Params(name(host)), body).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_on_a_host_that_nobody_hears_moves_once_that_has_lasted() {
        let (app, _, [a, b, c]) = attached().await;
        let listening =
            crate::listener::run(app.book.clone(), Arc::clone(&app.leases), app.stop.clone());
        tokio::spawn(listening);
        let began = Instant::now();
        let mut refused = Vec::new();
        loop {
            beat(&app, "b", b).await;
            beat(&app, "c", c).await;
            match claiming(&app, "b", b).await.unwrap() {
                Ok(()) => break,
                Err(error) => refused.push(error),
            }
            assert!(began.elapsed() < Duration::from_secs(300), "{refused:?}");
            time::sleep(Duration::from_secs(4)).await;
        }
        // Two leases until the silence is written down; fleet time goes by tens of seconds.
        assert!(began.elapsed() >= Duration::from_secs(15 + 15 + 50), "{:?}", began.elapsed());
        assert!(refused.iter().all(|error| error.code == ErrorCode::ReservationHeld));
        assert!(refused.last().unwrap().message.contains("can be taken over in"), "{refused:?}");
        let left = |state: &State| state.attachments_of(&name("a")).count();
        assert_eq!(app.book.read(left).await.unwrap(), 0);
        let silent = |state: &State| state.silences().count();
        assert_eq!(app.book.read(silent).await.unwrap(), 1);
        beat(&app, "a", a).await;
        assert_eq!(app.book.read(silent).await.unwrap(), 0);
    }
}

//! Edge: what hosts' agents say of themselves: that they join, that they are alive, that a
//! container they were asked about is there.

use axum::Json;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use limpet_api::host::{Heartbeat, PresentRequest, Session, SessionRequest};
use limpet_api::{ApiError, ErrorCode};
use limpet_net_types::{HostName, Uid};
use tracing::info;

use super::extract::{Body, Params};
use super::{Answer, App, Done, now};
use crate::random;
use crate::rules::sessions::{self, Opening};
use crate::rules::silence;
use crate::state::State;

pub(super) async fn join(
    Shared(app): Shared<App>,
    Params(name): Params<HostName>,
    Body(request): Body<SessionRequest>,
) -> Answer<Session> {
    let session = random::token().map_err(|error| {
        ApiError::new(ErrorCode::Internal, format!("the system gives no random bits: {error}"))
    })?;
    let (host, leases, boot) = (name.clone(), app.leases.clone(), request.boot);
    let decide = move |state: &State| {
        let leases = leases.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let liveness = leases.liveness(state, &host, now());
        let opening = Opening { liveness, session, replica: leases.replica() };
        let joined = sessions::open(state, &host, &request, opening);
        let store = state.store();
        crate::draft::Decision { draft: joined.draft, answer: joined.answer.map(|h| (h, store)) }
    };
    let ((host, store), revision) = app.book.decide(decide).await?;
    app.leases().hear(&name, session, now());
    info!(host = %name, %boot, "host joined");
    Ok(Json(Session { session, host, store, revision: revision.0 }))
}

pub(super) async fn heartbeat(
    Shared(app): Shared<App>,
    Params(name): Params<HostName>,
    Body(Heartbeat { session }): Body<Heartbeat>,
) -> Done {
    app.leases().hear_again(&name, session, now());
    let host = name.clone();
    let replica = app.leases().replica();
    let decide = move |state: &State| silence::hear(state, &host, session, replica);
    let (silent, _) = app.book.decide(decide).await?;
    app.leases().hear(&name, session, now());
    if let Some(since) = silent {
        info!(host = %name, since = since.0, "host is heard again that was silent");
    }
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn present(
    Shared(app): Shared<App>,
    Params((host, uid)): Params<(HostName, Uid)>,
    Body(PresentRequest { session }): Body<PresentRequest>,
) -> Done {
    app.book.decide(move |state| sessions::present(state, &host, uid, session)).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use limpet_net_types::Token;
    use tokio::time;

    use super::*;
    use crate::http::fixture::{app, joining};
    use crate::store::faulty::Fault;

    #[tokio::test]
    async fn a_heartbeat_counts_also_while_the_store_is_away() {
        let (app, faults) = app().await;
        let host: HostName = "a".parse().unwrap();
        let joined = join(Shared(app.clone()), Params(host.clone()), Body(joining(1))).await;
        let session = joined.unwrap().0.session;
        let seen = |app: &App| app.leases().last_seen(&host, now()).unwrap();
        let beat = |session| {
            heartbeat(Shared(app.clone()), Params(host.clone()), Body(Heartbeat { session }))
        };
        let pause = Duration::from_millis(200);
        for (session, is_heard) in [(session, true), (Token::from_bits(9), false)] {
            time::sleep(pause).await;
            faults.plan(Fault::Slow(pause * 2));
            assert!(time::timeout(pause / 2, beat(session)).await.is_err(), "the store is away");
            assert_eq!(seen(&app) < pause, is_heard, "{session}");
        }
    }
}

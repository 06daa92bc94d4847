//! Edge: what operators ask of hosts and whether they are alive.

use axum::Json;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use limpet_api::config::{Host, HostChange, HostSpec, HostStatus};
use limpet_api::{ErrorCode, Listing, Span, Versioned};
use limpet_net_types::HostName;

use super::{listing, missing};
use crate::http::extract::{Body, Change, Params, Patch};
use crate::http::{Answer, App, Done, now};
use crate::rules::hosts as rules;
use crate::rules::sessions::Liveness;
use crate::state::{Entry, State};

impl Change for HostChange {
    const FIXED: &'static [&'static str] = &["vtep_mac", "underlay", "addresses"];
}

fn status(app: &App, state: &State, host: &Entry<Host>) -> Versioned<HostStatus> {
    let Entry { record: host, revision } = host;
    let (leases, now) = (app.leases(), now());
    let version = state.session(&host.name).map(|session| session.record.version.clone());
    let alive = leases.liveness(state, &host.name, now) == Liveness::Alive;
    let record = HostStatus {
        host: host.clone(),
        alive: version.is_some() && alive,
        last_seen: leases.last_seen(&host.name, now).map(|ago| Span::from_seconds(ago.as_secs())),
        silent: state.silence(&host.name).map(|silence| state.now().since(silence.record.since)),
        attachments: u64::try_from(state.attachments_of(&host.name).count()).unwrap_or(u64::MAX),
        version,
    };
    Versioned { record, revision: revision.0 }
}

/// Returns the host as it is now, or as it was decided if it has gone since.
async fn with_status(app: &App, host: Entry<Host>) -> Answer<Versioned<HostStatus>> {
    let shared = app.clone();
    Ok(Json(app.book.read(move |state| status(&shared, state, &host)).await?))
}

pub(in crate::http) async fn list(Shared(app): Shared<App>) -> Answer<Listing<HostStatus>> {
    let shared = app.clone();
    let read = move |state: &State| {
        listing(state, state.hosts().map(|host| status(&shared, state, host).record))
    };
    Ok(Json(app.book.read(read).await?))
}

pub(in crate::http) async fn show(
    Shared(app): Shared<App>,
    Params(name): Params<HostName>,
) -> Answer<Versioned<HostStatus>> {
    let (shared, wanted) = (app.clone(), name.clone());
    let read = move |state: &State| Some(status(&shared, state, state.host(&wanted)?));
    let missing = || missing(ErrorCode::HostNotFound, &format!("host {name}"));
    Ok(Json(app.book.read(read).await?.ok_or_else(missing)?))
}

pub(in crate::http) async fn create(
    Shared(app): Shared<App>,
    Params(name): Params<HostName>,
    Body(spec): Body<HostSpec>,
) -> Answer<Versioned<HostStatus>> {
    let decide = move |state: &State| rules::create(state, &name, &spec);
    let host = app.book.change(decide).await?;
    with_status(&app, host).await
}

pub(in crate::http) async fn change(
    Shared(app): Shared<App>,
    Params(name): Params<HostName>,
    Patch(change): Patch<HostChange>,
) -> Answer<Versioned<HostStatus>> {
    let leases = app.clone();
    let decide = move |state: &State| {
        let liveness = leases.leases().liveness(state, &name, now());
        rules::change(state, &name, &change, liveness)
    };
    let host = app.book.change(decide).await?;
    with_status(&app, host).await
}

pub(in crate::http) async fn delete(
    Shared(app): Shared<App>,
    Params(name): Params<HostName>,
) -> Done {
    let removed = name.clone();
    app.book.decide(move |state| rules::delete(state, &name)).await?;
    app.leases().forget(&removed);
    Ok(StatusCode::NO_CONTENT)
}

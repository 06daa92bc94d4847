//! Edge: what operators ask of hosts and whether they are alive.

use std::time::Instant;

use axum::Json;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use limpet_api::config::{Host, HostChange, HostSpec, HostStatus};
use limpet_api::{ErrorCode, Listing, Span, Versioned};
use limpet_net_types::HostName;

use super::{listing, missing};
use crate::http::extract::{Body, Change, Params, Patch};
use crate::http::{Answer, App, Done};
use crate::rules::hosts as rules;
use crate::rules::sessions::Liveness;
use crate::state::{Entry, State};

impl Change for HostChange {
    const FIXED: &'static [&'static str] = &["vtep_mac", "underlay", "addresses"];
}

/// What the state says of a host, and the version of its agent if that has joined.
struct Found {
    host: Entry<Host>,
    attachments: u64,
    version: Option<String>,
}

fn find(state: &State, host: &Entry<Host>) -> Found {
    let name = &host.record.name;
    Found {
        host: host.clone(),
        attachments: u64::try_from(state.attachments_of(name).count()).unwrap_or(u64::MAX),
        version: state.session(name).map(|session| session.record.version.clone()),
    }
}

fn status(app: &App, found: Found) -> Versioned<HostStatus> {
    let Found { host: Entry { record: host, revision }, attachments, version } = found;
    let (leases, now) = (app.leases(), Instant::now());
    let alive = version.is_some() && leases.liveness(&host.name, now) == Liveness::Alive;
    let last_seen = leases.last_seen(&host.name, now);
    let last_seen = last_seen.map(|ago| Span::from_seconds(ago.as_secs()));
    let record = HostStatus { host, alive, last_seen, attachments, version };
    Versioned { record, revision: revision.0 }
}

/// Returns the host as it is now, or as it was decided if it has gone since.
async fn with_status(app: &App, host: Entry<Host>) -> Answer<Versioned<HostStatus>> {
    let found = app.book.read(move |state| find(state, &host)).await?;
    Ok(Json(status(app, found)))
}

pub(in crate::http) async fn list(Shared(app): Shared<App>) -> Answer<Listing<HostStatus>> {
    let read = |state: &State| listing(state, state.hosts().map(|host| find(state, host)));
    let Listing { items, revision } = app.book.read(read).await?;
    let items = items.into_iter().map(|found| status(&app, found).record).collect();
    Ok(Json(Listing { items, revision }))
}

pub(in crate::http) async fn show(
    Shared(app): Shared<App>,
    Params(name): Params<HostName>,
) -> Answer<Versioned<HostStatus>> {
    let wanted = name.clone();
    let read = move |state: &State| Some(find(state, state.host(&wanted)?));
    let missing = || missing(ErrorCode::HostNotFound, &format!("host {name}"));
    let found = app.book.read(read).await?.ok_or_else(missing)?;
    Ok(Json(status(&app, found)))
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
        let liveness = leases.leases().liveness(&name, Instant::now());
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

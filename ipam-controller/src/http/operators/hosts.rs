//! Edge: what operators ask of hosts and whether they are alive.

use axum::Json;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use futures_util::future::join_all;
use limpet_api::book::{Attachment, AttachmentRef, Swept};
use limpet_api::config::{Host, HostChange, HostSpec, HostStatus};
use limpet_api::{ErrorCode, Listing, Span, Versioned};
use limpet_net_types::HostName;

use super::{listing, missing};
use crate::alloc::release;
use crate::http::extract::{Body, Change, Params, Patch};
use crate::http::{Answer, App, Done, now};
use crate::rules::hosts as rules;
use crate::rules::sessions::Liveness;
use crate::state::{Entry, State};

/// How many attachments one request ends: a second's work for a store that is slow.
const MOST_SWEPT: usize = 256;

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
    let (removed, shared) = (name.clone(), app.clone());
    let decide = move |state: &State| {
        let liveness = shared.leases().liveness(state, &name, now());
        rules::delete(state, &name, liveness)
    };
    app.book.decide(decide).await?;
    app.leases().forget(&removed);
    Ok(StatusCode::NO_CONTENT)
}

/// Ends the attachments of a host that is down, as many as one request is to end.
pub(in crate::http) async fn sweep(
    Shared(app): Shared<App>,
    Params(name): Params<HostName>,
) -> Answer<Swept> {
    let wanted = name.clone();
    let find = move |state: &State| {
        state.host(&wanted)?;
        let attachments = state.attachments_of(&wanted).map(|entry| &entry.record);
        let about = |found: &Attachment| AttachmentRef { key: found.key.clone(), uid: found.uid };
        Some(attachments.take(MOST_SWEPT).map(about).collect::<Vec<_>>())
    };
    let missing = || missing(ErrorCode::HostNotFound, &format!("host {name}"));
    let found = app.book.read(find).await?.ok_or_else(missing)?;
    let ending = found.into_iter().map(|about| {
        let shared = app.clone();
        app.book.decide(move |state| {
            let liveness = shared.leases().liveness(state, &about.key.host, now());
            release::end_removed(state, &about, liveness)
        })
    });
    let ended = join_all(ending).await.into_iter().collect::<Result<Vec<_>, _>>()?.len();
    let left = app.book.read(move |state| state.attachments_of(&name).count()).await?;
    let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
    Ok(Json(Swept { ended: count(ended), left: count(left) }))
}

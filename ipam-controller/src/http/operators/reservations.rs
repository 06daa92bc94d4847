//! Edge: what operators ask of which name keeps which addresses.

use axum::Json;
use axum::extract::State as Shared;
use limpet_api::book::{
    AttachmentKey, Released, Rename, Reservation, ReservationChange, ReservationSpec,
};
use limpet_api::{ErrorCode, Listing, Versioned};
use limpet_net_types::{Namespace, NetworkName, WorkloadName};

use super::missing;
use crate::alloc::{rename, reserve as rules};
use crate::http::extract::{Body, Change, Params, Patch, Query};
use crate::http::{Answer, App, Failure};
use crate::keys::ReservationKey;
use crate::listing::{self, Filter};
use crate::state::{Entry, State};

impl Change for ReservationChange {
    const FIXED: &'static [&'static str] = &["addresses", "pools", "mac"];
}

type Path = (NetworkName, Namespace, WorkloadName);

fn key((network, namespace, name): Path) -> ReservationKey {
    ReservationKey { network, namespace, name }
}

fn with_holder(state: &State, entry: &Entry<Reservation>) -> Versioned<Reservation> {
    let record = listing::with_holder(state, &entry.record);
    Versioned { record, revision: entry.revision.0 }
}

async fn shown(app: &App, entry: Entry<Reservation>) -> Answer<Versioned<Reservation>> {
    Ok(Json(app.book.read(move |state| with_holder(state, &entry)).await?))
}

pub(in crate::http) async fn list(
    Shared(app): Shared<App>,
    Query(filter): Query<Filter>,
) -> Answer<Listing<Reservation>> {
    Ok(Json(app.book.read(move |state| listing::reservations(state, &filter)).await??))
}

pub(in crate::http) async fn show(
    Shared(app): Shared<App>,
    Params(path): Params<Path>,
) -> Answer<Versioned<Reservation>> {
    let key = key(path);
    let ReservationKey { network, namespace, name } = &key;
    let what = format!("reservation for {namespace}/{name} in network {network}");
    let read = move |state: &State| Some(with_holder(state, state.reservation(&key)?));
    let missing = || missing(ErrorCode::ReservationNotFound, &what);
    Ok(Json(app.book.read(read).await?.ok_or_else(missing)?))
}

pub(in crate::http) async fn create(
    Shared(app): Shared<App>,
    Params(path): Params<Path>,
    Body(spec): Body<ReservationSpec>,
) -> Answer<Versioned<Reservation>> {
    let key = key(path);
    let decide = move |state: &State| rules::create(state, &key, &spec);
    let reservation = app.book.change(decide).await?;
    shown(&app, reservation).await
}

pub(in crate::http) async fn change(
    Shared(app): Shared<App>,
    Params(path): Params<Path>,
    Patch(change): Patch<ReservationChange>,
) -> Answer<Versioned<Reservation>> {
    let key = key(path);
    let decide = move |state: &State| rules::change(state, &key, &change);
    let reservation = app.book.change(decide).await?;
    shown(&app, reservation).await
}

pub(in crate::http) async fn rename(
    Shared(app): Shared<App>,
    Params(path): Params<Path>,
    Body(to): Body<Rename>,
) -> Answer<Versioned<Reservation>> {
    let key = key(path);
    let running = running(&app, &key.network, &to).await?;
    let decide = move |state: &State| rename::rename(state, &key, &to, &running);
    let reservation = app.book.change(decide).await?;
    shown(&app, reservation).await
}

/// The attachments of a name, which are looked for page by page: nobody else waits for it.
async fn running(
    app: &App,
    network: &NetworkName,
    to: &Rename,
) -> Result<Vec<AttachmentKey>, Failure> {
    let Rename { namespace, name } = to.clone();
    let all = Filter::of_name(network.clone(), namespace, name);
    let (mut filter, mut found) = (all.clone(), Vec::new());
    loop {
        let page = app.book.read(move |state| listing::attachments(state, &filter)).await??;
        found.extend(page.items.into_iter().map(|attachment| attachment.key));
        let Some(after) = page.next else { return Ok(found) };
        filter = all.clone().from(after);
    }
}

pub(in crate::http) async fn release(
    Shared(app): Shared<App>,
    Params(path): Params<Path>,
) -> Answer<Released> {
    let key = key(path);
    let decide = move |state: &State| rules::release(state, &key);
    let (addresses, revision) = app.book.decide(decide).await?;
    Ok(Json(Released { addresses, revision: revision.0 }))
}

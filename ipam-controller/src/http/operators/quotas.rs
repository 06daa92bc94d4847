//! Edge: what operators ask of quotas.

use axum::Json;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use limpet_api::quota::{QuotaSpec, QuotaUse};
use limpet_api::{Listing, Versioned};
use limpet_net_types::Namespace;

use super::{listing, versioned};
use crate::http::extract::{Body, Params};
use crate::http::{Answer, App, Done};
use crate::rules::quotas as rules;
use crate::state::State;

pub(in crate::http) async fn list(Shared(app): Shared<App>) -> Answer<Listing<QuotaUse>> {
    let read = |state: &State| {
        listing(state, state.quotas().map(|quota| rules::with_use(state, quota).record))
    };
    Ok(Json(app.book.read(read).await?))
}

pub(in crate::http) async fn show(
    Shared(app): Shared<App>,
    Params(namespace): Params<Namespace>,
) -> Answer<Versioned<QuotaUse>> {
    let wanted = namespace.clone();
    let read = move |state: &State| state.quota(&wanted).map(|quota| rules::with_use(state, quota));
    let found = app.book.read(read).await?;
    Ok(Json(versioned(found.ok_or_else(|| rules::missing(&namespace))?)))
}

pub(in crate::http) async fn set(
    Shared(app): Shared<App>,
    Params(namespace): Params<Namespace>,
    Body(spec): Body<QuotaSpec>,
) -> Answer<Versioned<QuotaUse>> {
    let decide = move |state: &State| rules::set(state, &namespace, spec);
    Ok(Json(versioned(app.book.change(decide).await?)))
}

pub(in crate::http) async fn remove(
    Shared(app): Shared<App>,
    Params(namespace): Params<Namespace>,
) -> Done {
    app.book.decide(move |state| rules::remove(state, &namespace)).await?;
    Ok(StatusCode::NO_CONTENT)
}

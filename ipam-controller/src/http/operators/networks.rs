//! Edge: what operators ask of networks.

use axum::Json;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use limpet_api::config::{Network, NetworkChange, NetworkSpec};
use limpet_api::{ErrorCode, Listing, Versioned};
use limpet_net_types::NetworkName;

use super::{listing, missing, versioned};
use crate::http::extract::{Body, Change, Params, Patch};
use crate::http::{Answer, App, Done};
use crate::rules::networks as rules;
use crate::state::State;

impl Change for NetworkChange {
    const FIXED: &'static [&'static str] = &["vni", "index", "port", "own_space"];
}

pub(in crate::http) async fn list(Shared(app): Shared<App>) -> Answer<Listing<Network>> {
    let read = |state: &State| listing(state, state.networks().map(|e| e.record.clone()));
    Ok(Json(app.book.read(read).await?))
}

pub(in crate::http) async fn show(
    Shared(app): Shared<App>,
    Params(name): Params<NetworkName>,
) -> Answer<Versioned<Network>> {
    let wanted = name.clone();
    let found = app.book.read(move |state| state.network(&wanted).cloned()).await?;
    let missing = || missing(ErrorCode::NetworkNotFound, &format!("network {name}"));
    Ok(Json(versioned(found.ok_or_else(missing)?)))
}

pub(in crate::http) async fn create(
    Shared(app): Shared<App>,
    Params(name): Params<NetworkName>,
    Body(spec): Body<NetworkSpec>,
) -> Answer<Versioned<Network>> {
    let decide = move |state: &State| rules::create(state, &name, &spec);
    Ok(Json(versioned(app.book.change(decide).await?)))
}

pub(in crate::http) async fn change(
    Shared(app): Shared<App>,
    Params(name): Params<NetworkName>,
    Patch(change): Patch<NetworkChange>,
) -> Answer<Versioned<Network>> {
    let decide = move |state: &State| rules::change(state, &name, &change);
    Ok(Json(versioned(app.book.change(decide).await?)))
}

pub(in crate::http) async fn delete(
    Shared(app): Shared<App>,
    Params(name): Params<NetworkName>,
) -> Done {
    app.book.decide(move |state| rules::delete(state, &name)).await?;
    Ok(StatusCode::NO_CONTENT)
}

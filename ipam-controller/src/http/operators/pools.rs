//! Edge: what operators ask of pools and how they are used.

use axum::Json;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use futures_util::future::join_all;
use limpet_api::config::{Pool, PoolChange, PoolSpec, PoolUse};
use limpet_api::holding::{Holding, HoldingQuery, PoolRelease, PoolReleased};
use limpet_api::{ApiError, ErrorCode, Listing, Versioned};
use limpet_net_types::{PoolName, Range};

use super::{listing, missing};
use crate::alloc::pick::usage;
use crate::alloc::sweep;
use crate::http::extract::{Body, Change, Params, Patch, Query};
use crate::http::{Answer, App, Done};
use crate::rules::{pools as rules, resize};
use crate::state::{Entry, PoolEntry, State};

impl Change for PoolChange {
    const FIXED: &'static [&'static str] = &["network", "block_size"];
}

fn used(state: &State, pool: &PoolEntry) -> PoolUse {
    PoolUse { pool: pool.record.clone(), usage: usage(state, state.now(), pool) }
}

/// Returns the pool as it is now, with how its addresses are used.
async fn with_use(app: &App, pool: Entry<Pool>) -> Answer<Versioned<PoolUse>> {
    let name = pool.record.name.clone();
    let usage = app
        .book
        .read(move |state| state.pool(&name).map(|pool| used(state, pool).usage))
        .await?
        .unwrap_or_default();
    let record = PoolUse { pool: pool.record, usage };
    Ok(Json(Versioned { record, revision: pool.revision.0 }))
}

pub(in crate::http) async fn list(Shared(app): Shared<App>) -> Answer<Listing<PoolUse>> {
    let read = |state: &State| listing(state, state.pools().map(|pool| used(state, pool)));
    Ok(Json(app.book.read(read).await?))
}

pub(in crate::http) async fn show(
    Shared(app): Shared<App>,
    Params(name): Params<PoolName>,
) -> Answer<Versioned<PoolUse>> {
    let wanted = name.clone();
    let find = move |state: &State| {
        let pool = state.pool(&wanted)?;
        Some(Versioned { record: used(state, pool), revision: pool.revision.0 })
    };
    let missing = || missing(ErrorCode::PoolNotFound, &format!("pool {name}"));
    Ok(Json(app.book.read(find).await?.ok_or_else(missing)?))
}

pub(in crate::http) async fn create(
    Shared(app): Shared<App>,
    Params(name): Params<PoolName>,
    Body(spec): Body<PoolSpec>,
) -> Answer<Versioned<PoolUse>> {
    let decide = move |state: &State| rules::create(state, &name, &spec);
    let pool = app.book.change(decide).await?;
    with_use(&app, pool).await
}

pub(in crate::http) async fn change(
    Shared(app): Shared<App>,
    Params(name): Params<PoolName>,
    Patch(change): Patch<PoolChange>,
) -> Answer<Versioned<PoolUse>> {
    if change.range.is_some() {
        clear(&app, &name, change.range).await?;
    }
    let decide = move |state: &State| rules::change(state, &name, &change);
    let pool = app.book.change(decide).await?;
    with_use(&app, pool).await
}

pub(in crate::http) async fn delete(
    Shared(app): Shared<App>,
    Params(name): Params<PoolName>,
) -> Done {
    clear(&app, &name, None).await?;
    app.book.decide(move |state| rules::delete(state, &name)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Clears away what is left of addresses that a pool loses, more of it than one transaction takes.
async fn clear(app: &App, name: &PoolName, range: Option<Range>) -> Result<(), ApiError> {
    let mut is_clear = false;
    while !is_clear {
        let name = name.clone();
        is_clear = app.book.decide(move |state| resize::clear(state, &name, range)).await?.0;
    }
    Ok(())
}

pub(in crate::http) async fn addresses(
    Shared(app): Shared<App>,
    Params(name): Params<PoolName>,
    Query(query): Query<HoldingQuery>,
) -> Answer<Listing<Holding>> {
    Ok(Json(app.book.read(move |state| sweep::holdings(state, &name, &query)).await??))
}

/// Releases reservations that nobody holds, as many as one request is to release.
pub(in crate::http) async fn release(
    Shared(app): Shared<App>,
    Params(name): Params<PoolName>,
    Query(wanted): Query<PoolRelease>,
) -> Answer<PoolReleased> {
    let (pool, query) = (name.clone(), wanted.clone());
    let find = move |state: &State| (sweep::idle(state, &pool, &query), state.revision().0);
    let (idle, seen) = app.book.read(find).await?;
    let sweep::Idle { found, next } = idle?;
    if wanted.dry_run {
        let released = found.into_iter().map(|(_, released)| released).collect();
        return Ok(Json(PoolReleased { released, next, revision: seen }));
    }
    // Each is decided by itself: one that comes into use stops no other.
    let releasing = found.into_iter().map(|(key, _)| {
        let (pool, wanted) = (name.clone(), wanted.clone());
        app.book.decide(move |state| sweep::release(state, &pool, &key, &wanted))
    });
    let done = join_all(releasing).await.into_iter().collect::<Result<Vec<_>, _>>()?;
    let revision = done.iter().map(|(_, revision)| revision.0).fold(seen, u64::max);
    let released = done.into_iter().filter_map(|(released, _)| released).collect();
    Ok(Json(PoolReleased { released, next, revision }))
}

//! Edge: what operators ask: networks, pools, hosts, reservations, attachments.

use axum::Json;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use limpet_api::{ApiError, ErrorCode, Listing, Versioned};
use limpet_net_types::{HostName, Namespace, NetworkName};
use serde::Deserialize;

use super::extract::{Body, Params, Query};
use super::{Answer, App, Done};
use crate::state::{Entry, State};

/// Which reservations or attachments are to be listed: those that match all that is given.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Filter {
    network: Option<NetworkName>,
    namespace: Option<Namespace>,
    host: Option<HostName>,
}

fn is<T: PartialEq>(wanted: Option<&T>, found: &T) -> bool {
    wanted.is_none_or(|wanted| wanted == found)
}

fn listing<T>(state: &State, items: impl Iterator<Item = T>) -> Listing<T> {
    Listing { items: items.collect(), revision: state.revision().0 }
}

fn versioned<T>(entry: Entry<T>) -> Versioned<T> {
    Versioned { record: entry.record, revision: entry.revision.0 }
}

fn missing(code: ErrorCode, what: &str) -> ApiError {
    ApiError::new(code, format!("there is no {what}"))
}

/// Networks.
pub(super) mod networks {
    use limpet_api::config::{Network, NetworkChange, NetworkSpec};

    use super::*;
    use crate::rules::networks as rules;

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
        Ok(Json(versioned(app.book.decide(decide).await?.0)))
    }

    pub(in crate::http) async fn change(
        Shared(app): Shared<App>,
        Params(name): Params<NetworkName>,
        Body(change): Body<NetworkChange>,
    ) -> Answer<Versioned<Network>> {
        let decide = move |state: &State| rules::change(state, &name, &change);
        Ok(Json(versioned(app.book.decide(decide).await?.0)))
    }

    pub(in crate::http) async fn delete(
        Shared(app): Shared<App>,
        Params(name): Params<NetworkName>,
    ) -> Done {
        app.book.decide(move |state| rules::delete(state, &name)).await?;
        Ok(StatusCode::NO_CONTENT)
    }
}

/// Pools.
pub(super) mod pools {
    use limpet_api::config::{Pool, PoolChange, PoolSpec, PoolUse};
    use limpet_net_types::PoolName;

    use super::*;
    use crate::alloc::pick::usage;
    use crate::rules::pools as rules;
    use crate::state::PoolEntry;

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
        let (pool, _) = app.book.decide(decide).await?;
        with_use(&app, pool).await
    }

    pub(in crate::http) async fn change(
        Shared(app): Shared<App>,
        Params(name): Params<PoolName>,
        Body(change): Body<PoolChange>,
    ) -> Answer<Versioned<PoolUse>> {
        let decide = move |state: &State| rules::change(state, &name, &change);
        let (pool, _) = app.book.decide(decide).await?;
        with_use(&app, pool).await
    }

    pub(in crate::http) async fn delete(
        Shared(app): Shared<App>,
        Params(name): Params<PoolName>,
    ) -> Done {
        app.book.decide(move |state| rules::delete(state, &name)).await?;
        Ok(StatusCode::NO_CONTENT)
    }
}

/// Hosts.
pub(super) mod hosts {
    use std::time::Instant;

    use limpet_api::Span;
    use limpet_api::config::{Host, HostChange, HostSpec, HostStatus};

    use super::*;
    use crate::rules::hosts as rules;
    use crate::rules::sessions::Liveness;

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
        let (host, _) = app.book.decide(decide).await?;
        with_status(&app, host).await
    }

    pub(in crate::http) async fn change(
        Shared(app): Shared<App>,
        Params(name): Params<HostName>,
        Body(change): Body<HostChange>,
    ) -> Answer<Versioned<HostStatus>> {
        let decide = move |state: &State| rules::change(state, &name, &change);
        let (host, _) = app.book.decide(decide).await?;
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
}

/// Reservations.
pub(super) mod reservations {
    use limpet_api::book::{Released, Reservation, ReservationChange, ReservationSpec};
    use limpet_net_types::WorkloadName;

    use super::*;
    use crate::alloc::reserve as rules;
    use crate::keys::ReservationKey;

    type Path = (NetworkName, Namespace, WorkloadName);

    fn key((network, namespace, name): Path) -> ReservationKey {
        ReservationKey { network, namespace, name }
    }

    /// Adds who holds the addresses now, which is not stored with the reservation.
    fn with_holder(state: &State, entry: &Entry<Reservation>) -> Versioned<Reservation> {
        let attachment = rules::holder(state, &entry.record).cloned();
        let record = Reservation { attachment, ..entry.record.clone() };
        Versioned { record, revision: entry.revision.0 }
    }

    async fn shown(app: &App, entry: Entry<Reservation>) -> Answer<Versioned<Reservation>> {
        Ok(Json(app.book.read(move |state| with_holder(state, &entry)).await?))
    }

    pub(in crate::http) async fn list(
        Shared(app): Shared<App>,
        Query(filter): Query<Filter>,
    ) -> Answer<Listing<Reservation>> {
        let read = move |state: &State| {
            let found = state
                .reservations()
                .filter(|entry| is(filter.network.as_ref(), &entry.record.network))
                .filter(|entry| is(filter.namespace.as_ref(), &entry.record.namespace))
                .map(|entry| with_holder(state, entry).record)
                .filter(|found| {
                    filter.host.is_none()
                        || found.attachment.as_ref().map(|held| &held.key.host)
                            == filter.host.as_ref()
                });
            listing(state, found)
        };
        Ok(Json(app.book.read(read).await?))
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
        let (reservation, _) = app.book.decide(decide).await?;
        shown(&app, reservation).await
    }

    pub(in crate::http) async fn change(
        Shared(app): Shared<App>,
        Params(path): Params<Path>,
        Body(change): Body<ReservationChange>,
    ) -> Answer<Versioned<Reservation>> {
        let key = key(path);
        let decide = move |state: &State| rules::change(state, &key, &change);
        let (reservation, _) = app.book.decide(decide).await?;
        shown(&app, reservation).await
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
}

/// Attachments.
pub(super) mod attachments {
    use limpet_api::book::{Attachment, AttachmentKey};
    use limpet_net_types::{ContainerId, IfName};

    use super::*;

    pub(in crate::http) type Path = (HostName, NetworkName, ContainerId, IfName);

    pub(in crate::http) fn key((host, network, container, ifname): Path) -> AttachmentKey {
        AttachmentKey { host, network, container, ifname }
    }

    pub(in crate::http) fn not_found(key: &AttachmentKey) -> ApiError {
        let AttachmentKey { host, network, container, ifname } = key;
        let what = format!(
            "attachment of interface {ifname} of container {container} in network {network} on \
             host {host}"
        );
        missing(ErrorCode::AttachmentNotFound, &what)
    }

    pub(in crate::http) async fn list(
        Shared(app): Shared<App>,
        Query(filter): Query<Filter>,
    ) -> Answer<Listing<Attachment>> {
        let read = move |state: &State| {
            let found = state
                .attachments()
                .map(|entry| &entry.record)
                .filter(|found| is(filter.network.as_ref(), &found.key.network))
                .filter(|found| is(filter.namespace.as_ref(), &found.namespace))
                .filter(|found| is(filter.host.as_ref(), &found.key.host))
                .cloned();
            listing(state, found)
        };
        Ok(Json(app.book.read(read).await?))
    }

    pub(in crate::http) async fn show(
        Shared(app): Shared<App>,
        Params(path): Params<Path>,
    ) -> Answer<Versioned<Attachment>> {
        let key = key(path);
        let wanted = key.clone();
        let found = app.book.read(move |state| state.attachment(&wanted).cloned()).await?;
        Ok(Json(versioned(found.ok_or_else(|| not_found(&key))?)))
    }
}

//! Edge: the HTTP API: which path leads to which decision, and the one shape of errors.

mod asking;
mod backup;
mod body;
mod check;
mod claims;
mod doctor;
mod extract;
#[cfg(test)]
mod fixture;
mod hosts;
mod operators;
mod restored;
mod serve;
mod watch;

pub(crate) use serve::serve;

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use axum::{Json, Router};
use limpet_api::paths::{self, route};
use limpet_api::{ApiError, ErrorCode};
use tokio::time;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::book::Book;
use crate::draft::Decision;
use crate::leases::Leases;
use crate::store::Store;

/// How long a request may take: a claim waits for another host, and then for the store.
const LIMIT: Duration = Duration::from_secs(15);

/// How long the store may take to show that it works.
const READY_LIMIT: Duration = Duration::from_secs(2);

/// What the handlers share.
#[derive(Clone)]
pub(crate) struct App {
    /// The task that decides.
    pub(crate) book: Book,
    /// The store, whose change log a watch may begin with.
    pub(crate) store: Arc<dyn Store>,
    /// Which hosts were heard of.
    pub(crate) leases: Arc<Mutex<Leases>>,
    /// How many attachments of silent hosts were taken over, since the start.
    pub(crate) takeovers: Arc<AtomicU64>,
    /// Ends the watches.
    pub(crate) stop: CancellationToken,
    /// What goes on after a caller has gone.
    pub(crate) tasks: TaskTracker,
}

impl App {
    fn leases(&self) -> MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The time by which leases are counted.
pub(crate) fn now() -> Instant {
    time::Instant::now().into_std()
}

/// An error on its way out.
#[derive(Debug)]
pub(crate) struct Failure(ApiError);

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.0.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(self.0)).into_response()
    }
}

/// An answer in JSON, or an error.
type Answer<T> = Result<Json<T>, Failure>;

/// Success with nothing to say, or an error.
type Done = Result<StatusCode, Failure>;

/// Returns the routes.
pub(crate) fn router(app: App) -> Router {
    let timed = Router::new()
        .route(paths::HEALTH, get(healthy))
        .route(paths::READY, get(ready))
        .merge(operator_routes())
        .merge(host_routes())
        .layer(middleware::from_fn(limited));
    Router::new()
        .route(route::WATCH, get(watch::watch))
        .route(paths::BACKUP, get(backup::backup))
        .route(paths::RESTORE, get(restored::status).post(backup::restore).delete(backup::discard))
        .route(paths::CHECK, post(check::check))
        .route(paths::DOCTOR, post(doctor::doctor))
        .merge(timed)
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .with_state(app)
}

/// Returns what is answered while the store is not open yet: the process lives, and that is all.
pub(crate) fn unavailable() -> Router {
    let refuse = async || {
        let text = "the controller waits for its store: ask again, or another controller";
        Failure(ApiError::new(ErrorCode::Unavailable, text))
    };
    Router::new().route(paths::HEALTH, get(healthy)).fallback(refuse)
}

fn operator_routes() -> Router<App> {
    use operators::{attachments, history, hosts, networks, pools, quotas, reservations};
    Router::new()
        .route(paths::NETWORKS, get(networks::list))
        .route(
            route::NETWORK,
            get(networks::show)
                .put(networks::create)
                .patch(networks::change)
                .delete(networks::delete),
        )
        .route(paths::POOLS, get(pools::list))
        .route(
            route::POOL,
            get(pools::show).put(pools::create).patch(pools::change).delete(pools::delete),
        )
        .route(route::POOL_ADDRESSES, get(pools::addresses))
        .route(route::POOL_RESERVATIONS, delete(pools::release))
        .route(paths::HOSTS, get(hosts::list))
        .route(
            route::HOST,
            get(hosts::show).put(hosts::create).patch(hosts::change).delete(hosts::delete),
        )
        .route(route::HOST_ATTACHMENTS, delete(hosts::sweep))
        .route(paths::QUOTAS, get(quotas::list))
        .route(route::QUOTA, get(quotas::show).put(quotas::set).delete(quotas::remove))
        .route(paths::HISTORY, get(history::list))
        .route(paths::RESERVATIONS, get(reservations::list))
        .route(
            route::RESERVATION,
            get(reservations::show)
                .put(reservations::create)
                .patch(reservations::change)
                .delete(reservations::release),
        )
        .route(route::RESERVATION_RENAME, post(reservations::rename))
        .route(paths::RESTORE_WAIVE, post(restored::waive))
        .route(paths::ATTACHMENTS, get(attachments::list))
        .route(route::ATTACHMENT, get(attachments::show).delete(claims::end_by_operator))
}

fn host_routes() -> Router<App> {
    Router::new()
        .route(route::SESSION, post(hosts::join))
        .route(route::HEARTBEAT, post(hosts::heartbeat))
        .route(route::REPORT, post(check::report))
        .route(route::REASSERT, post(restored::reassert))
        .route(route::ASK, post(hosts::present))
        .route(route::CLAIM, put(claims::claim).delete(claims::end))
}

async fn healthy() -> StatusCode {
    StatusCode::OK
}

/// Ready is who can carry a transaction through.
async fn ready(State(app): State<App>) -> Result<StatusCode, Failure> {
    let nothing = app.book.decide(|_| Decision::make(|_| Ok(())));
    let answered = time::timeout(READY_LIMIT, nothing).await.map_err(|_| {
        let text = format!("the store did not answer within {READY_LIMIT:?}");
        ApiError::new(ErrorCode::Unavailable, text)
    })?;
    answered?;
    Ok(StatusCode::OK)
}

async fn limited(request: Request, next: Next) -> Response {
    time::timeout(LIMIT, next.run(request)).await.unwrap_or_else(|_| {
        let text = format!("the request took longer than {LIMIT:?}; it may have been carried out");
        Failure(ApiError::new(ErrorCode::TimedOut, text)).into_response()
    })
}

async fn no_such_path(request: Request) -> Failure {
    let text = format!("there is no path {}", extract::shown(request.uri().path()));
    Failure(ApiError::new(ErrorCode::NotFound, text))
}

async fn no_such_method(request: Request) -> Failure {
    let path = extract::shown(request.uri().path());
    let text = format!("{path} does not take {}", extract::shown(request.method().as_str()));
    Failure(ApiError::new(ErrorCode::MethodNotAllowed, text))
}

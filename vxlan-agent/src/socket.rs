//! Edge: the unix socket that the CNI plugin talks to. It is root's alone and serves attachments only.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Extension, Path as At, Query, State};
use axum::http::{Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use limpet_api::host::Wanted;
use limpet_api::paths::route;
use limpet_api::socket::{AgentStatus, ConfirmRequest, DetachQuery, Detached, GcRequest, Plan};
use limpet_api::{ApiError, ErrorCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;
use tracing::{debug, warn};

use crate::agent::{Agent, sentence};
use crate::attachments::{self, ATTACH};
use crate::collect;
use crate::flights::ConnectionId;
use crate::readiness;
use crate::run::examine;
use crate::veths::Veths;
use crate::view::Key;
use crate::{health, metrics, status};

/// The largest request that is read, in bytes: a GC for 100,000 containers.
const MOST_BODY: usize = 16 << 20;

/// How long what has begun may go on when the agent stops: an ADD that began last, and a little. Whoever has sent half a
/// request and no more holds the agent no longer than that.
const DRAIN: Duration = ATTACH.saturating_add(Duration::from_secs(2));

/// Why the socket cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketError {
    /// Another agent serves it, or another program.
    #[error("somebody listens at {}, another agent perhaps: stop it, or give another --socket", .0.display())]
    Live(PathBuf),
    /// Something else is there.
    #[error("{} is {what}, and is left alone: move it away, or give another --socket", path.display())]
    Taken { path: PathBuf, what: &'static str },
    /// The system says no.
    #[error("cannot {act} {}", path.display())]
    File { act: &'static str, path: PathBuf, source: io::Error },
}

/// What serves a request.
#[derive(Clone)]
pub(crate) struct Serving {
    pub(crate) agent: Arc<Agent>,
    pub(crate) veths: Arc<Veths>,
    /// Rung when there are interfaces to bury.
    pub(crate) dead: Arc<Notify>,
}

/// Listens at `path`, in place of what an agent that is gone left there.
pub(crate) async fn listen(path: &Path) -> Result<UnixListener, SocketError> {
    let failed = |act, path: &Path| {
        let path = path.to_owned();
        move |source| SocketError::File { act, path, source }
    };
    // Nobody else may connect, not even in the moment before its mode is set.
    let draft = path.with_extension("new");
    for place in [path, &draft] {
        abandoned(place).await?;
    }
    if let Some(directory) = path.parent() {
        let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(directory);
        made.map_err(failed("make the directory", directory))?;
    }
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("remove", &draft)(error));
        }
        _ => {}
    }
    let listener = UnixListener::bind(&draft).map_err(failed("listen at", &draft))?;
    fs::set_permissions(&draft, Permissions::from_mode(0o600))
        .and_then(|()| fs::rename(&draft, path))
        .map_err(failed("listen at", path))?;
    Ok(listener)
}

/// Whether nothing is at `path`, or a socket that nobody listens at any more.
async fn abandoned(path: &Path) -> Result<(), SocketError> {
    let kind = match fs::symlink_metadata(path) {
        Ok(found) => found.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => {
            return Err(SocketError::File { act: "look at", path: path.to_owned(), source });
        }
    };
    let taken = |what| Err(SocketError::Taken { path: path.to_owned(), what });
    if kind.is_dir() {
        return taken("a directory");
    }
    if !kind.is_socket() {
        return taken("no socket");
    }
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        // Also one whose queue is full, and one of another type.
        _ => Err(SocketError::Live(path.to_owned())),
    }
}

/// Serves until `stop`, and then what has begun, for as long as it may take.
pub(crate) async fn serve(listener: UnixListener, serving: Serving, stop: CancellationToken) {
    let router = router(serving.clone());
    let connections = AtomicU64::new(1);
    let mut open = JoinSet::new();
    loop {
        // Both may be dropped: a connection that was not accepted waits.
        let stream = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        while open.try_join_next().is_some() {}
        match stream {
            Ok((stream, _)) => {
                let connection = connections.fetch_add(1, Ordering::Relaxed);
                let (router, agent) = (router.clone(), Arc::clone(&serving.agent));
                open.spawn(converse(stream, connection, router, (agent, stop.clone())));
            }
            Err(error) => {
                warn!(%error, "cannot accept a connection");
                // Out of file descriptors: some are free when requests have ended.
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
    let drained = async { while open.join_next().await.is_some() {} };
    if timeout(DRAIN, drained).await.is_err() {
        warn!(left = open.len(), "plugins' requests are cut off: they took longer than {DRAIN:?}");
    }
    open.shutdown().await;
}

/// One connection, to its end.
async fn converse(
    stream: UnixStream,
    connection: ConnectionId,
    router: Router,
    (agent, stop): (Arc<Agent>, CancellationToken),
) {
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(connection);
        router.clone().oneshot(request)
    });
    let http = hyper::server::conn::http1::Builder::new();
    let mut serving = std::pin::pin!(http.serve_connection(TokioIo::new(stream), service));
    // The first ends a connection between two requests, never within one.
    let ended = tokio::select! {
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
        ended = serving.as_mut() => ended,
    };
    if let Err(error) = ended {
        debug!(%error, "a plugin's connection broke");
    }
    agent.state().flights.close(connection);
}

fn router(serving: Serving) -> Router {
    Router::new()
        .route(route::SOCKET_ATTACHMENT, put(attach).get(check).delete(detach))
        .route(route::SOCKET_CONFIRM, post(confirm))
        .route(route::SOCKET_GC, post(collect_garbage))
        .route(route::SOCKET_READINESS, get(whether_ready))
        .route(route::SOCKET_STATUS, get(stand))
        .route(route::SOCKET_PLAN, get(plan))
        .route(route::SOCKET_CHECK, get(check_up))
        .route(route::METRICS, get(scrape))
        .fallback(|| async { Refusal(ApiError::new(ErrorCode::NotFound, "there is no such path")) })
        .method_not_allowed_fallback(|| async {
            Refusal(ApiError::new(
                ErrorCode::MethodNotAllowed,
                "this path does not take that method",
            ))
        })
        .layer(DefaultBodyLimit::max(MOST_BODY))
        .with_state(serving)
}

type Names = Result<At<(String, String, String)>, PathRejection>;
type Body = Result<Bytes, BytesRejection>;
type Asked<T> = Result<Answer<T>, Refusal>;

async fn attach(
    State(serving): State<Serving>,
    Extension(connection): Extension<ConnectionId>,
    names: Names,
    body: Body,
) -> Asked<limpet_api::socket::Attach> {
    let (key, wanted) = (key(names)?, read::<Wanted>(body)?);
    // On a task of its own: if the plugin goes away the claim still runs to its end, and its outcome is known.
    let attaching = tokio::spawn(async move {
        let Serving { agent, veths, .. } = serving;
        attachments::attach(&agent, &veths, (connection, key), wanted).await
    });
    let attached = attaching
        .await
        .map_err(|error| Refusal(ApiError::new(ErrorCode::Internal, error.to_string())))?;
    Ok(Answer(attached?))
}

async fn check(State(serving): State<Serving>, names: Names) -> Asked<limpet_api::socket::Attach> {
    Ok(Answer(attachments::check(&serving.agent, &key(names)?)?))
}

async fn confirm(State(serving): State<Serving>, names: Names, body: Body) -> Asked<()> {
    let (key, request) = (key(names)?, read::<ConfirmRequest>(body)?);
    Ok(Answer(attachments::confirm(&serving.agent, &key, request.uid)?))
}

async fn detach(
    State(serving): State<Serving>,
    names: Names,
    query: Result<Query<DetachQuery>, QueryRejection>,
) -> Asked<Detached> {
    let key = key(names)?;
    let Query(DetachQuery { uid }) = query.map_err(|e| bad_request(&e.body_text()))?;
    serving.dead.notify_one();
    Ok(Answer(attachments::detach(&serving.agent, &key, uid).await))
}

async fn collect_garbage(
    State(serving): State<Serving>,
    body: Body,
) -> Asked<limpet_api::socket::GcAnswer> {
    let request = read::<GcRequest>(body)?;
    Ok(Answer(collect::collect(&serving.agent, &serving.veths, request).await?))
}

async fn whether_ready(
    State(serving): State<Serving>,
    network: Result<At<String>, PathRejection>,
) -> Asked<limpet_api::socket::Readiness> {
    let At(network) = network.map_err(|error| bad_request(&error.body_text()))?;
    let network = network.parse().map_err(|error| bad_request(&error))?;
    Ok(Answer(readiness::readiness(&serving.agent, &network).await))
}

async fn stand(State(serving): State<Serving>) -> Asked<AgentStatus> {
    let stand = status::status(&serving.agent, &serving.veths).await;
    let internal = |error| Refusal(ApiError::new(ErrorCode::Internal, sentence(&error)));
    Ok(Answer(stand.map_err(internal)?))
}

async fn check_up(State(serving): State<Serving>) -> Asked<limpet_api::doctor::CheckUp> {
    Ok(Answer(health::check_up(&serving.agent).await))
}

async fn scrape(State(serving): State<Serving>) -> Response {
    metrics::answer(&serving.agent)
}

async fn plan(State(serving): State<Serving>) -> Asked<Plan> {
    let examined = examine(&serving.agent)
        .await
        .map_err(|error| Refusal(ApiError::new(ErrorCode::Internal, sentence(&error))))?;
    match examined {
        Some((_, steps)) => {
            Ok(Answer(Plan { commands: steps.iter().map(ToString::to_string).collect() }))
        }
        None => Err(Refusal(crate::agent::not_joined(&serving.agent.state()))),
    }
}

fn key(names: Names) -> Result<Key, Refusal> {
    let At((network, container, ifname)) = names.map_err(|e| bad_request(&e.body_text()))?;
    Ok(Key {
        network: network.parse().map_err(|error| bad_request(&error))?,
        container: container.parse().map_err(|error| bad_request(&error))?,
        ifname: ifname.parse().map_err(|error| bad_request(&error))?,
    })
}

fn read<T: DeserializeOwned>(body: Body) -> Result<T, Refusal> {
    let body = body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            let words = format!("the request has more than {MOST_BODY} bytes");
            Refusal(ApiError::new(ErrorCode::TooLarge, words))
        }
        _ => bad_request(&rejection.body_text()),
    })?;
    serde_json::from_slice(&body).map_err(|error| bad_request(&error))
}

fn bad_request(error: &dyn std::fmt::Display) -> Refusal {
    Refusal(ApiError::new(ErrorCode::BadRequest, error.to_string()))
}

/// A success: its JSON.
struct Answer<T>(T);

/// An error: its JSON, with its status.
struct Refusal(ApiError);

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Self(error)
    }
}

impl<T: Serialize> IntoResponse for Answer<T> {
    fn into_response(self) -> Response {
        json(StatusCode::OK, &self.0)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code.status());
        json(status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), &self.0)
    }
}

fn json(status: StatusCode, body: &impl Serialize) -> Response {
    match serde_json::to_vec(body) {
        Ok(body) => (status, [(header::CONTENT_TYPE, "application/json")], body).into_response(),
        // No type of the API is without a JSON form.
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::Instant;

    use super::*;
    use crate::fixture;

    #[tokio::test(start_paused = true)]
    async fn half_a_request_does_not_hold_an_agent_that_stops() {
        let directory = fixture::Directory::new("drain");
        let path = directory.path("agent.sock");
        let listener = listen(&path).await.unwrap();
        let agent = Arc::new(fixture::agent());
        let serving = Serving { agent, veths: Arc::default(), dead: Arc::default() };
        let stop = CancellationToken::new();
        let served = tokio::spawn(serve(listener, serving, stop.clone()));

        let mut head = UnixStream::connect(&path).await.unwrap();
        head.write_all(b"PUT /v1/attachments/pods/c1/eth0 HT").await.unwrap();
        let mut body = UnixStream::connect(&path).await.unwrap();
        let request = b"POST /v1/gc HTTP/1.1\r\nhost: limpet\r\ncontent-length: 9\r\n\r\n{";
        body.write_all(request).await.unwrap();
        // One that is idle: when it is answered, the others have been read too.
        let mut idle = UnixStream::connect(&path).await.unwrap();
        idle.write_all(b"GET /nothing HTTP/1.1\r\nhost: limpet\r\n\r\n").await.unwrap();
        idle.read_u8().await.unwrap();

        let begun = Instant::now();
        stop.cancel();
        served.await.unwrap();
        assert!(begun.elapsed() <= DRAIN + Duration::from_secs(1), "{:?}", begun.elapsed());
        assert_eq!(body.read(&mut [0]).await.unwrap(), 0, "it is closed");
    }
}

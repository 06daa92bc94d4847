//! Edge: connections: accepting them, serving each, and ending them without cutting an answer.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::http::header::{CONNECTION, HeaderValue};
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use tracing::{debug, warn};

use super::body::observed;

/// How long a caller may take for the head of a request, and be idle between two.
const HEAD_LIMIT: Duration = Duration::from_secs(60);

/// How long requests under way may take once the controller stops.
const GRACE: Duration = Duration::from_secs(10);

/// The pause after a connection could not be accepted: usually there are no file descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Ends the connection that a request came by.
#[derive(Clone, Debug)]
pub(super) struct Hangup(pub(super) CancellationToken);

/// Serves until `stop`; then takes no new connection and finishes the requests under way.
pub(crate) async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        // All may be dropped: none has taken anything until its arm runs.
        tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    connections.spawn(connection(stream, peer, router.clone(), stop.clone()));
                }
                Err(error) => {
                    warn!(%error, retry_in = ?PAUSE, "cannot accept a connection");
                    time::sleep(PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
    drop(listener);
    let finish = async { while connections.join_next().await.is_some() {} };
    if time::timeout(GRACE, finish).await.is_err() {
        warn!(left = connections.len(), "connections are cut after {GRACE:?}");
        connections.shutdown().await;
    }
}

async fn connection(stream: TcpStream, peer: SocketAddr, router: Router, stop: CancellationToken) {
    // Without it small answers wait for the acknowledgement of those before.
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, %peer, "no TCP_NODELAY");
    }
    let hangup = CancellationToken::new();
    let token = hangup.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(Hangup(token.clone()));
        let router = router.clone();
        let (request, read) = observed(request);
        async move {
            let Ok(mut response) = router.oneshot(request).await;
            if !read.is_whole() {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    // The connection goes on after the stop; whoever hangs up wants it dropped.
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = hangup.cancelled() => return,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        debug!(%error, %peer, "connection broke");
    }
}

//! Edge: one connection to one server.

use std::io;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinHandle;
use tokio::time;

use super::fleet::Place;
use super::{Call, ClientError, Endpoint};
use crate::ApiError;

/// The largest answer that is read, in bytes: a listing of a million reservations has about 400 MB.
const MOST_ANSWER: usize = 1 << 30;

/// The longest line of a watch that is read, in bytes: a snapshot for 10,000 hosts has about 3 MB.
const MOST_LINE: usize = 1 << 28;

/// How much of an answer that is no JSON is shown, in bytes.
const SHOWN: usize = 120;

/// The body of a request.
pub(super) type Sent = UnsyncBoxBody<Bytes, io::Error>;

/// One open connection, which carries one request after another.
pub struct Connection {
    endpoint: Endpoint,
    sender: SendRequest<Sent>,
    driver: JoinHandle<()>,
}

impl Connection {
    /// Connects, within `limit`.
    ///
    /// # Errors
    ///
    /// [`ClientError::Connect`] or [`ClientError::TimedOut`]; nothing was asked yet.
    pub async fn open(endpoint: &Endpoint, limit: Duration) -> Result<Self, ClientError> {
        let connecting = async {
            let refused = |source| ClientError::Connect { endpoint: endpoint.clone(), source };
            let (sender, driver) = match endpoint {
                Endpoint::Http { authority } => {
                    let stream = TcpStream::connect(authority.as_str()).await.map_err(refused)?;
                    stream.set_nodelay(true).map_err(refused)?;
                    start(endpoint, TokioIo::new(stream)).await?
                }
                Endpoint::Unix(path) => {
                    let stream = UnixStream::connect(path).await.map_err(refused)?;
                    start(endpoint, TokioIo::new(stream)).await?
                }
            };
            Ok(Self { endpoint: endpoint.clone(), sender, driver })
        };
        match time::timeout(limit, connecting).await {
            Ok(connection) => connection,
            Err(_) => Err(ClientError::Connect {
                endpoint: endpoint.clone(),
                source: io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("no answer within {limit:?}"),
                ),
            }),
        }
    }

    /// Whether the other side has closed it.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Asks and reads the whole answer, within `limit`.
    ///
    /// # Errors
    ///
    /// [`ClientError::Refused`] with the server's own error; else see [`ClientError::outcome_unknown`]. After any
    /// error but a refusal the connection should be dropped.
    pub async fn call<A: DeserializeOwned>(
        &mut self,
        request: &Call,
        limit: Duration,
    ) -> Result<A, ClientError> {
        let endpoint = self.endpoint.clone();
        let asking = async {
            let response = self.send(request).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MOST_ANSWER).collect().await.map_err(
                |error| match error.downcast::<hyper::Error>() {
                    Ok(source) => {
                        ClientError::Broken { endpoint: self.endpoint.clone(), source: *source }
                    }
                    Err(_) => self.garbage(status, b"(longer than is read)"),
                },
            )?;
            self.understand(status, &body.to_bytes())
        };
        match time::timeout(limit, asking).await {
            Ok(answer) => answer,
            Err(_) => Err(ClientError::TimedOut { endpoint, limit }),
        }
    }

    /// Asks for a stream of lines, and reads the head of the answer within `limit`.
    ///
    /// # Errors
    ///
    /// As [`Connection::call`].
    pub async fn lines(self, request: &Call, limit: Duration) -> Result<Lines, ClientError> {
        let request = self.request(request)?;
        self.answered_in_lines(request, limit).await
    }

    pub(super) async fn answered_in_lines(
        mut self,
        request: Request<Sent>,
        limit: Duration,
    ) -> Result<Lines, ClientError> {
        let asking = async {
            let response = self.pass(request).await?;
            let status = response.status();
            if status.is_success() {
                return Ok(response.into_body());
            }
            let body = Limited::new(response.into_body(), 1 << 16).collect().await;
            let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
            Err(self.refusal(status, &body))
        };
        match time::timeout(limit, asking).await {
            Ok(body) => Ok(Lines {
                body: body?,
                buffer: BytesMut::new(),
                seen: 0,
                connection: self,
                place: None,
            }),
            Err(_) => Err(ClientError::TimedOut { endpoint: self.endpoint.clone(), limit }),
        }
    }

    async fn send(&mut self, request: &Call) -> Result<Response<Incoming>, ClientError> {
        let request = self.request(request)?;
        self.pass(request).await
    }

    /// The name by which the server is asked.
    pub(super) fn authority(&self) -> &str {
        match &self.endpoint {
            Endpoint::Http { authority } => authority.as_str(),
            Endpoint::Unix(_) => "localhost",
        }
    }

    fn request(&self, request: &Call) -> Result<Request<Sent>, ClientError> {
        let mut head = Request::builder().method(&request.method).uri(&request.path);
        head = head.header(header::HOST, self.authority());
        if !request.body.is_empty() {
            head = head.header(header::CONTENT_TYPE, "application/json");
        }
        let body = Full::new(request.body.clone()).map_err(|never| match never {});
        head.body(body.boxed_unsync()).map_err(|error| self.inexpressible(error))
    }

    pub(super) fn inexpressible(&self, error: hyper::http::Error) -> ClientError {
        ClientError::Connect {
            endpoint: self.endpoint.clone(),
            source: io::Error::new(io::ErrorKind::InvalidInput, error),
        }
    }

    async fn pass(&mut self, request: Request<Sent>) -> Result<Response<Incoming>, ClientError> {
        let broken = |source| ClientError::Broken { endpoint: self.endpoint.clone(), source };
        self.sender.ready().await.map_err(broken)?;
        self.sender.send_request(request).await.map_err(broken)
    }

    fn understand<A: DeserializeOwned>(
        &self,
        status: StatusCode,
        body: &[u8],
    ) -> Result<A, ClientError> {
        if !status.is_success() {
            return Err(self.refusal(status, body));
        }
        // An answer with nothing to say is read as `null`, which is `()`.
        let body = if body.is_empty() { b"null" } else { body };
        serde_json::from_slice(body).map_err(|_| self.garbage(status, body))
    }

    fn refusal(&self, status: StatusCode, body: &[u8]) -> ClientError {
        match serde_json::from_slice::<ApiError>(body) {
            Ok(error) => ClientError::Refused(error),
            Err(_) => self.garbage(status, body),
        }
    }

    fn garbage(&self, status: StatusCode, body: &[u8]) -> ClientError {
        let beginning = String::from_utf8_lossy(&body[..body.len().min(SHOWN)]).into_owned();
        ClientError::Garbage { endpoint: self.endpoint.clone(), status: status.as_u16(), beginning }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Begins HTTP/1.1 on a stream; the returned task moves its bytes until the connection is dropped.
async fn start<S>(
    endpoint: &Endpoint,
    stream: S,
) -> Result<(SendRequest<Sent>, JoinHandle<()>), ClientError>
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let broken = |source| ClientError::Broken { endpoint: endpoint.clone(), source };
    let (sender, connection) = http1::handshake(stream).await.map_err(broken)?;
    // A failure of the connection reaches whoever waits for an answer on it.
    let driver = tokio::spawn(async move { drop(connection.await) });
    Ok((sender, driver))
}

/// A stream of lines of JSON, one value each.
pub struct Lines {
    body: Incoming,
    buffer: BytesMut,
    /// How much of `buffer` has been searched for the end of a line.
    seen: usize,
    connection: Connection,
    pub(super) place: Option<Place>,
}

impl Lines {
    /// Has the client of several servers ask the next one from now on: this one is not up to what is asked of it.
    pub fn leave(&self) {
        if let Some(place) = &self.place {
            place.leave();
        }
    }

    /// The next line's value; none when the server has ended the stream.
    ///
    /// `limit` is how long nothing may come before the stream counts as dead. May be dropped while it waits: what
    /// has come is kept for the next call.
    ///
    /// # Errors
    ///
    /// As [`Connection::call`]; the stream is of no more use then.
    pub async fn next<T: DeserializeOwned>(
        &mut self,
        limit: Duration,
    ) -> Result<Option<T>, ClientError> {
        loop {
            if let Some(at) = self.buffer[self.seen..].iter().position(|&b| b == b'\n') {
                let line = self.buffer.split_to(self.seen + at + 1);
                self.seen = 0;
                let garbage = |_| self.connection.garbage(StatusCode::OK, &line);
                return serde_json::from_slice(&line).map(Some).map_err(garbage);
            }
            self.seen = self.buffer.len();
            if self.seen > MOST_LINE {
                return Err(self
                    .connection
                    .garbage(StatusCode::OK, b"(a line longer than is read)"));
            }
            let endpoint = || self.connection.endpoint.clone();
            // Both may be dropped: a frame that has not come whole is kept by the body.
            let frame = tokio::select! {
                frame = time::timeout(limit, self.body.frame()) => frame,
                () = left(self.place.as_mut()) => {
                    return Err(ClientError::Left { endpoint: endpoint() });
                }
            };
            let frame = match frame {
                Err(_) => return Err(ClientError::TimedOut { endpoint: endpoint(), limit }),
                Ok(None) => return Ok(None),
                Ok(Some(Err(source))) => {
                    return Err(ClientError::Broken { endpoint: endpoint(), source });
                }
                Ok(Some(Ok(frame))) => frame,
            };
            if let Ok(mut data) = frame.into_data() {
                while data.has_remaining() {
                    let chunk = data.chunk();
                    self.buffer.extend_from_slice(chunk);
                    let length = chunk.len();
                    data.advance(length);
                }
            }
        }
    }
}

/// Waits until the client has left a place; for ever where there is no other.
async fn left(place: Option<&mut Place>) {
    match place {
        Some(place) => place.left().await,
        None => std::future::pending().await,
    }
}

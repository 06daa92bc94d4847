//! Edge: the HTTP client of agent, plugin and `limpetctl`: one request after another on kept connections.
//!
//! It says of each failure whether the request may have been carried out ([`ClientError::outcome_unknown`]), because
//! that decides what a caller may do next. Which server to ask, and whether to ask again, is the caller's.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http_body_util::{BodyExt, Full, Limited};
pub use hyper::Method;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinHandle;
use tokio::time;

use crate::ApiError;

/// The largest answer that is read, in bytes: a listing of a million reservations has about 400 MB.
const MOST_ANSWER: usize = 1 << 30;

/// The longest line of a watch that is read, in bytes: a snapshot for 10,000 hosts has about 3 MB.
const MOST_LINE: usize = 1 << 28;

/// How much of an answer that is no JSON is shown, in bytes.
const SHOWN: usize = 120;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `http://host:port`.
    Http {
        /// Name or address, and port.
        authority: String,
    },
    /// `unix:/path`.
    Unix(PathBuf),
}

/// A text is not where a server can listen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// Neither of the two forms.
    #[error("{0:?} is not an address of a controller such as http://192.0.2.1:7600")]
    Form(String),
    /// TLS is asked for.
    #[error(
        "{0:?} asks for TLS, which this version does not speak: use http:// inside a trusted network"
    )]
    Tls(String),
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let wrong = || EndpointError::Form(text.chars().take(120).collect());
        if text.starts_with("https://") {
            return Err(EndpointError::Tls(text.to_owned()));
        }
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.starts_with('/') { Ok(Self::Unix(path.into())) } else { Err(wrong()) };
        }
        let authority = text.strip_prefix("http://").ok_or_else(wrong)?;
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        let parsed: http::uri::Authority = authority.parse().map_err(|_| wrong())?;
        if parsed.port_u16().is_none() || authority.contains('@') {
            return Err(wrong());
        }
        Ok(Self::Http { authority: authority.to_owned() })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http { authority } => write!(f, "http://{authority}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Why there is no answer, or none that says success.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there, or the way there is closed. Nothing was sent.
    #[error("cannot connect to {endpoint}")]
    Connect {
        /// Where.
        endpoint: Endpoint,
        /// What the system says.
        source: io::Error,
    },
    /// No answer in time.
    #[error("{endpoint} did not answer within {limit:?}")]
    TimedOut {
        /// Where.
        endpoint: Endpoint,
        /// How long was waited.
        limit: Duration,
    },
    /// The connection broke before the answer was read.
    #[error("the connection to {endpoint} broke")]
    Broken {
        /// Where.
        endpoint: Endpoint,
        /// What the HTTP layer says.
        source: hyper::Error,
    },
    /// The answer is not of this API.
    #[error("{endpoint} answered status {status} with what is not limpet's: {beginning:?}")]
    Garbage {
        /// Where.
        endpoint: Endpoint,
        /// The HTTP status.
        status: u16,
        /// The beginning of the body.
        beginning: String,
    },
    /// The request cannot be expressed.
    #[error("cannot express the request")]
    Request(#[from] serde_json::Error),
    /// The server says no, and why.
    #[error(transparent)]
    Refused(#[from] ApiError),
}

impl ClientError {
    /// Whether the request may have been carried out, or may still be.
    #[must_use]
    pub fn outcome_unknown(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Request(_) => false,
            Self::TimedOut { .. } | Self::Broken { .. } | Self::Garbage { .. } => true,
            Self::Refused(error) => {
                matches!(error.code, crate::ErrorCode::OutcomeUnknown | crate::ErrorCode::TimedOut)
            }
        }
    }
}

/// One open connection, which carries one request after another.
pub struct Connection {
    endpoint: Endpoint,
    sender: SendRequest<Full<Bytes>>,
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
    pub async fn lines(mut self, request: &Call, limit: Duration) -> Result<Lines, ClientError> {
        let asking = async {
            let response = self.send(request).await?;
            let status = response.status();
            if status.is_success() {
                return Ok(response.into_body());
            }
            let body = Limited::new(response.into_body(), 1 << 16).collect().await;
            let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
            Err(self.refusal(status, &body))
        };
        match time::timeout(limit, asking).await {
            Ok(body) => {
                Ok(Lines { body: body?, buffer: BytesMut::new(), seen: 0, connection: self })
            }
            Err(_) => Err(ClientError::TimedOut { endpoint: self.endpoint.clone(), limit }),
        }
    }

    async fn send(&mut self, request: &Call) -> Result<Response<Incoming>, ClientError> {
        let broken = |source| ClientError::Broken { endpoint: self.endpoint.clone(), source };
        let authority = match &self.endpoint {
            Endpoint::Http { authority } => authority.as_str(),
            Endpoint::Unix(_) => "localhost",
        };
        let mut head = Request::builder().method(&request.method).uri(&request.path);
        head = head.header(header::HOST, authority);
        if !request.body.is_empty() {
            head = head.header(header::CONTENT_TYPE, "application/json");
        }
        let request =
            head.body(Full::new(request.body.clone())).map_err(|error| ClientError::Connect {
                endpoint: self.endpoint.clone(),
                source: io::Error::new(io::ErrorKind::InvalidInput, error),
            })?;
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
) -> Result<(SendRequest<Full<Bytes>>, JoinHandle<()>), ClientError>
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let broken = |source| ClientError::Broken { endpoint: endpoint.clone(), source };
    let (sender, connection) = http1::handshake(stream).await.map_err(broken)?;
    // A failure of the connection reaches whoever waits for an answer on it.
    let driver = tokio::spawn(async move { drop(connection.await) });
    Ok((sender, driver))
}

/// One request.
#[derive(Clone, Debug)]
pub struct Call {
    method: Method,
    path: String,
    body: Bytes,
}

impl Call {
    /// A request without a body: GET, DELETE.
    #[must_use]
    pub fn new(method: Method, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), body: Bytes::new() }
    }

    /// A request with a body: PUT, POST, PATCH.
    ///
    /// # Errors
    ///
    /// [`ClientError::Request`] if `body` is no JSON, which no type of this API is.
    pub fn with_body(
        method: Method,
        path: impl Into<String>,
        body: &impl Serialize,
    ) -> Result<Self, ClientError> {
        Ok(Self { method, path: path.into(), body: serde_json::to_vec(body)?.into() })
    }

    /// The same request with a query, whose fields are `query`'s.
    ///
    /// # Errors
    ///
    /// [`ClientError::Request`] if `query` is no JSON object, which no query type of this API is.
    pub fn with_query(mut self, query: &impl Serialize) -> Result<Self, ClientError> {
        let fields: serde_json::Map<String, serde_json::Value> =
            serde_json::from_value(serde_json::to_value(query)?)?;
        let mut separator = '?';
        for (name, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            self.path = format!("{}{separator}{name}={}", self.path, crate::paths::segment(&value));
            separator = '&';
        }
        Ok(self)
    }
}

/// Servers of which any can answer, and connections kept open to them.
pub struct Client {
    endpoints: Vec<Endpoint>,
    limit: Duration,
    idle: Mutex<Vec<Connection>>,
}

/// How many idle connections a client keeps.
const MOST_IDLE: usize = 8;

impl Client {
    /// A client of `endpoints`, which are tried in their order; every request has at most `limit`.
    #[must_use]
    pub fn new(endpoints: Vec<Endpoint>, limit: Duration) -> Self {
        Self { endpoints, limit, idle: Mutex::new(Vec::new()) }
    }

    /// Where it asks.
    #[must_use]
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// Asks on an idle connection or a new one.
    ///
    /// # Errors
    ///
    /// As [`Connection::call`]. The next server is tried only where nothing was sent to the one before.
    pub async fn call<A: DeserializeOwned>(&self, request: &Call) -> Result<A, ClientError> {
        let mut connection = self.connection().await?;
        let answer = connection.call(request, self.limit).await;
        if matches!(answer, Ok(_) | Err(ClientError::Refused(_))) && !connection.is_closed() {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            if idle.len() < MOST_IDLE {
                idle.push(connection);
            }
        }
        answer
    }

    /// Asks for a stream of lines on a connection of its own.
    ///
    /// # Errors
    ///
    /// As [`Connection::lines`].
    pub async fn lines(&self, request: &Call) -> Result<Lines, ClientError> {
        self.open().await?.lines(request, self.limit).await
    }

    async fn connection(&self) -> Result<Connection, ClientError> {
        let kept = || self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        while let Some(connection) = kept() {
            if !connection.is_closed() {
                return Ok(connection);
            }
        }
        self.open().await
    }

    async fn open(&self) -> Result<Connection, ClientError> {
        let mut last = None;
        for endpoint in &self.endpoints {
            match Connection::open(endpoint, self.limit).await {
                Ok(connection) => return Ok(connection),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| ClientError::Connect {
            endpoint: Endpoint::Http { authority: "(none)".to_owned() },
            source: io::Error::new(io::ErrorKind::InvalidInput, "no server was named"),
        }))
    }
}

/// A stream of lines of JSON, one value each.
pub struct Lines {
    body: Incoming,
    buffer: BytesMut,
    /// How much of `buffer` has been searched for the end of a line.
    seen: usize,
    connection: Connection,
}

impl Lines {
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
            let frame = match time::timeout(limit, self.body.frame()).await {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_url_or_a_socket() {
        let text = |t: &str| t.parse::<Endpoint>().map(|e| e.to_string());
        assert_eq!(text("http://192.0.2.1:7600/").unwrap(), "http://192.0.2.1:7600");
        assert_eq!(text("http://[2001:db8::1]:7600").unwrap(), "http://[2001:db8::1]:7600");
        assert_eq!(text("unix:/run/x.sock").unwrap(), "unix:/run/x.sock");
        assert!(matches!(text("https://a:1"), Err(EndpointError::Tls(_))));
        for wrong in ["", "a:1", "http://", "http://a", "http://a:1/x", "unix:x", "http://u@a:1"] {
            assert!(matches!(text(wrong), Err(EndpointError::Form(_))), "{wrong}");
        }
    }

    #[test]
    fn a_query_is_encoded_and_leaves_out_what_is_absent() {
        let query = crate::host::WatchQuery { store: None, since: Some(7) };
        let call = Call::new(Method::GET, "/w").with_query(&query).unwrap();
        assert_eq!(call.path, "/w?since=7");
        let call =
            Call::new(Method::GET, "/w").with_query(&serde_json::json!({"a": "b c&d"})).unwrap();
        assert_eq!(call.path, "/w?a=b%20c%26d");
    }
}

//! Edge: parts of a request, checked, with errors in the one shape.

use std::time::Duration;

use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use futures_util::StreamExt;
use limpet_api::{ApiError, ErrorCode};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::timeout;

use super::Failure;

/// The largest body that is read, in bytes: of a pool with many exclusions.
const MOST_BODY: usize = 1 << 20;

/// How much of a larger body is read all the same, in bytes: a connection that ends with something
/// unread is reset, and its caller may not see the answer.
const MOST_THROWN_AWAY: usize = 16 << 20;

/// How long a body may take to arrive: less than a request, so that what is told of it is certain.
const BODY_LIMIT: Duration = Duration::from_secs(10);

/// How much of what a caller wrote is shown in an error, in characters.
const SHOWN: usize = 120;

/// The parameters of a path.
pub(super) struct Params<T>(pub(super) T);

/// The parameters of a query.
pub(super) struct Query<T>(pub(super) T);

/// The JSON of a body.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let Path(params) = Path::from_request_parts(parts, state).await.map_err(|rejection| {
            let text = rejection.body_text();
            bad(&format!("path: {}", text.strip_prefix("Invalid URL: ").unwrap_or(&text)))
        })?;
        Ok(Self(params))
    }
}

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        let axum::extract::Query(query) =
            axum::extract::Query::try_from_uri(&parts.uri).map_err(|rejection| {
                let text = rejection.body_text();
                let prefix = "Failed to deserialize query string: ";
                bad(&format!("query: {}", text.strip_prefix(prefix).unwrap_or(&text)))
            })?;
        Ok(Self(query))
    }
}

/// What changes a record, and the fields of the record that nothing changes.
pub(super) trait Change: DeserializeOwned {
    /// Fields of the record that are fixed when it is made.
    const FIXED: &'static [&'static str];
}

/// The JSON of a PATCH's body.
pub(super) struct Patch<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, _: &S) -> Result<Self, Failure> {
        understand(&read(request).await?).map(Self)
    }
}

impl<T: Change, S: Send + Sync> FromRequest<S> for Patch<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, _: &S) -> Result<Self, Failure> {
        let body = read(request).await?;
        let given: serde_json::Map<String, Value> = understand(&body)?;
        if let Some(fixed) = T::FIXED.iter().find(|fixed| given.contains_key(**fixed)) {
            let text = format!("{fixed} cannot be changed after creation");
            return Err(Failure(ApiError::new(ErrorCode::Immutable, text)));
        }
        understand(&body).map(Self)
    }
}

async fn read(request: Request) -> Result<Vec<u8>, Failure> {
    check_type(&request)?;
    let body = timeout(BODY_LIMIT, collect(request.into_body())).await.map_err(|_| {
        let text = format!("the body took longer than {BODY_LIMIT:?} to arrive; nothing was done");
        Failure(ApiError::new(ErrorCode::TimedOut, text))
    })??;
    if body.is_empty() {
        return Err(bad("the body is empty, JSON is needed"));
    }
    // The JSON library takes a list for an object whose fields come in their order, in which no
    // misspelt name would be noticed.
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err(bad("the body is not a JSON object"));
    }
    Ok(body)
}

async fn collect(body: axum::body::Body) -> Result<Vec<u8>, Failure> {
    let mut chunks = body.into_data_stream();
    let (mut body, mut length) = (Vec::new(), 0);
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| {
            bad(&format!("the body broke off after {length} bytes; nothing was done: {error}"))
        })?;
        length += chunk.len();
        if length <= MOST_BODY {
            body.extend_from_slice(&chunk);
        } else if length > MOST_THROWN_AWAY {
            break;
        }
    }
    if length > MOST_BODY {
        let text = format!("the body has more than {MOST_BODY} bytes");
        return Err(Failure(ApiError::new(ErrorCode::TooLarge, text)));
    }
    Ok(body)
}

fn understand<T: DeserializeOwned>(body: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(body).map_err(|error| bad(&format!("body: {error}")))
}

fn check_type(request: &Request) -> Result<(), Failure> {
    let Some(given) = request.headers().get(CONTENT_TYPE) else { return Ok(()) };
    let given = String::from_utf8_lossy(given.as_bytes());
    let kind = given.split(';').next().unwrap_or_default().trim();
    if kind.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(bad(&format!("content type {} is not application/json", shown(kind))))
}

fn bad(text: &str) -> Failure {
    Failure(ApiError::new(ErrorCode::BadRequest, text))
}

/// What a caller wrote, shortened and with nothing in it that a terminal would obey.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(SHOWN).flat_map(char::escape_default).collect()
}

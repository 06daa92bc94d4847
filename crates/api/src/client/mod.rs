//! Edge: the HTTP client of agent, plugin and `limpetctl`: one request after another on kept connections.
//!
//! It says of each failure whether the request may have been carried out ([`ClientError::outcome_unknown`]), because
//! that decides what a caller may do next. A [`Connection`] is to one server; a [`Client`] knows several, of which any
//! can answer, and goes on to the next one where that is safe.

mod connection;
mod endpoint;
mod fleet;
mod upload;

use std::io;
use std::time::Duration;

use bytes::Bytes;
pub use hyper::Method;
use serde::Serialize;

use crate::ApiError;

pub use connection::{Connection, Lines};
pub use endpoint::{Endpoint, EndpointError};
pub use fleet::{Attempted, Client};

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
    /// Another request to the same server had no answer, so that this one was given up.
    #[error("{endpoint} does not answer any more")]
    Left {
        /// Where.
        endpoint: Endpoint,
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
            Self::TimedOut { .. }
            | Self::Broken { .. }
            | Self::Garbage { .. }
            | Self::Left { .. } => true,
            Self::Refused(error) => {
                matches!(error.code, crate::ErrorCode::OutcomeUnknown | crate::ErrorCode::TimedOut)
            }
        }
    }

    /// Whether another server may do better: this one does not answer, or says that it cannot serve.
    #[must_use]
    pub fn is_of_server(&self) -> bool {
        match self {
            Self::Connect { .. }
            | Self::TimedOut { .. }
            | Self::Broken { .. }
            | Self::Garbage { .. }
            | Self::Left { .. } => true,
            Self::Request(_) => false,
            Self::Refused(error) => matches!(
                error.code,
                crate::ErrorCode::Unavailable | crate::ErrorCode::OutcomeUnknown
            ),
        }
    }
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

    /// The same request with `query`'s fields in its query, beside those that are there.
    ///
    /// # Errors
    ///
    /// [`ClientError::Request`] if `query` is no JSON object, which no query type of this API is.
    pub fn with_query(mut self, query: &impl Serialize) -> Result<Self, ClientError> {
        let fields: serde_json::Map<String, serde_json::Value> =
            serde_json::from_value(serde_json::to_value(query)?)?;
        let mut separator = if self.path.contains('?') { '&' } else { '?' };
        for (name, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            self.path = format!("{}{separator}{name}={}", self.path, crate::paths::segment(&value));
            separator = '&';
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_encoded_and_leaves_out_what_is_absent() {
        let query = crate::host::WatchQuery { store: None, since: Some(7) };
        let call = Call::new(Method::GET, "/w").with_query(&query).unwrap();
        assert_eq!(call.path, "/w?since=7");
        let call =
            Call::new(Method::GET, "/w").with_query(&serde_json::json!({"a": "b c&d"})).unwrap();
        assert_eq!(call.path, "/w?a=b%20c%26d");
        let call = call.with_query(&serde_json::json!({"e": 1})).unwrap();
        assert_eq!(call.path, "/w?a=b%20c%26d&e=1");
    }
}

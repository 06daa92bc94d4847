//! Pure: where a server listens.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

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
}

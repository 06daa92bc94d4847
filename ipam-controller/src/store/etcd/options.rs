//! Pure: where etcd is, and who one is there.

use std::path::PathBuf;
use std::time::Duration;

use axum::http::Uri;

/// Where the store is, and how it is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// Its members.
    pub(crate) endpoints: Vec<Endpoint>,
    /// What all keys start with, before the version of their layout.
    pub(crate) prefix: Prefix,
    /// The certificates of who vouches for the members; needed with `https`.
    pub(crate) ca: Option<PathBuf>,
    /// The files of this client's certificate and of its key.
    pub(crate) identity: Option<(PathBuf, PathBuf)>,
    /// The user, and the file with the password.
    pub(crate) user: Option<(String, PathBuf)>,
    /// How long what is ephemeral outlives the controller, in whole seconds.
    pub(crate) lease: Duration,
}

/// The address of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint(String);

/// A text that is not the address of a member.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a URL such as https://etcd-a.example:2379")]
pub(crate) struct BadEndpoint(String);

impl Endpoint {
    /// The address as a URL.
    pub(crate) fn url(&self) -> &str {
        &self.0
    }

    /// Whether TLS is spoken there.
    pub(crate) fn is_https(&self) -> bool {
        self.0.starts_with("https://")
    }
}

impl std::str::FromStr for Endpoint {
    type Err = BadEndpoint;

    fn from_str(text: &str) -> Result<Self, BadEndpoint> {
        let bad = || BadEndpoint(text.to_owned());
        let uri: Uri = text.parse().map_err(|_| bad())?;
        let scheme = uri.scheme_str().filter(|scheme| ["http", "https"].contains(scheme));
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'));
        let is_bare = ["", "/"].contains(&uri.path()) && uri.query().is_none();
        match (scheme, authority) {
            (Some(scheme), Some(authority)) if is_bare => {
                Ok(Self(format!("{scheme}://{authority}")))
            }
            _ => Err(bad()),
        }
    }
}

/// What all keys of one store in etcd start with. It does not end in a slash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Prefix(String);

/// A text that keys cannot start with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no prefix such as /limpet: a slash and printable ASCII without spaces, and no slash at the end"
)]
pub(crate) struct BadPrefix(String);

impl std::str::FromStr for Prefix {
    type Err = BadPrefix;

    fn from_str(text: &str) -> Result<Self, BadPrefix> {
        let is_plain = text.bytes().all(|byte| byte.is_ascii_graphic());
        if text.len() > 1 && text.starts_with('/') && !text.ends_with('/') && is_plain {
            Ok(Self(text.to_owned()))
        } else {
            Err(BadPrefix(text.to_owned()))
        }
    }
}

impl std::fmt::Display for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_a_scheme_a_host_and_a_port() {
        for good in ["http://127.0.0.1:2379", "https://etcd-a.example", "http://[::1]:2379/"] {
            let endpoint: Endpoint = good.parse().unwrap();
            assert_eq!(endpoint.url(), good.trim_end_matches('/'));
        }
        for bad in ["", "127.0.0.1:2379", "unix:///run/etcd", "http://a:1/v3", "http://u:p@a:1"] {
            assert_eq!(bad.parse::<Endpoint>(), Err(BadEndpoint(bad.to_owned())));
        }
    }

    #[test]
    fn a_prefix_begins_with_a_slash_and_does_not_end_in_one() {
        assert_eq!("/a/b".parse::<Prefix>().unwrap().to_string(), "/a/b");
        for bad in ["", "/", "a", "/a/", "/a b", "/\u{e4}"] {
            assert_eq!(bad.parse::<Prefix>(), Err(BadPrefix(bad.to_owned())));
        }
    }
}

//! Pure: what a failed call to etcd means: whether something was done, and whether another member
//! may do better.

use std::error::Error as _;
use std::time::Duration;

use etcd_client::Error;
use tonic::{Code, ConnectError, Status};

/// Why a call to etcd has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// There was no connection, so nothing was sent.
    #[error("cannot connect to etcd at {url}: {reason}")]
    Unreachable {
        /// The member.
        url: String,
        /// What the system said.
        reason: String,
    },
    /// One side does not accept the other's certificate; nothing was sent.
    #[error(
        "etcd at {url} and this controller do not accept each other's certificates: {reason}; check --etcd-ca, --etcd-cert, --etcd-key and the name in the URL"
    )]
    Certificate {
        /// The member.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The member did not answer in time; what it was asked may have been done.
    #[error("etcd at {url} did not answer within {limit:?}")]
    Silent {
        /// The member.
        url: String,
        /// How long it had.
        limit: Duration,
    },
    /// The member has no leader, and refused to begin.
    #[error("etcd at {url} has no leader: a majority of its members must be there")]
    NoLeader {
        /// The member.
        url: String,
    },
    /// The member refused to begin because it has too much to do.
    #[error("etcd at {url} has more to do than it can: it takes nothing new for the moment")]
    Busy {
        /// The member.
        url: String,
    },
    /// The quota of the data base is used up, and nothing more is written.
    #[error(
        "etcd at {url} is full: compact and defragment it, or raise --quota-backend-bytes, then run `etcdctl alarm disarm`"
    )]
    Full {
        /// The member.
        url: String,
    },
    /// User or password are missing or wrong.
    #[error(
        "etcd at {url} does not accept the user: {reason}; check --etcd-user and --etcd-password-file"
    )]
    Credentials {
        /// The member.
        url: String,
        /// What etcd said.
        reason: String,
    },
    /// The user may not do this.
    #[error(
        "etcd at {url} does not permit it: grant the user's role readwrite on the prefix (etcdctl role grant-permission --prefix)"
    )]
    Permission {
        /// The member.
        url: String,
    },
    /// The revision that was asked for was compacted.
    #[error("etcd has compacted the revision that was asked for: read again")]
    Compacted,
    /// The revision that was asked for is still to come.
    #[error("etcd has not come to the revision that was asked for")]
    Future,
    /// The lease is gone, and with it all that hung on it; nothing was done.
    #[error("the lease of what is ephemeral has ended")]
    NoLease,
    /// The answer is larger than this program takes.
    #[error("an answer of etcd is larger than {} MiB", super::ANSWER >> 20)]
    LargeAnswer,
    /// Etcd refused the request as it is, and did nothing.
    #[error("etcd at {url} refuses the request: {reason}")]
    Refused {
        /// The member.
        url: String,
        /// What etcd said.
        reason: String,
    },
    /// Anything else; what was asked may have been done.
    #[error("etcd at {url} failed: {reason}")]
    Failed {
        /// The member.
        url: String,
        /// What was said.
        reason: String,
    },
}

impl Failure {
    /// Reads what the library says of a call to the member at `url`.
    pub(super) fn of(url: &str, error: &Error) -> Self {
        let url = url.to_owned();
        match error {
            Error::GRpcStatus(status) => Self::of_status(url, status),
            Error::LeaseKeepAliveError(_) => Self::NoLease,
            // The library sees these before anything is sent.
            Error::InvalidArgs(_) | Error::InvalidUri(_) | Error::InvalidMetadataValue(_) => {
                Self::Refused { url, reason: error.to_string() }
            }
            Error::TransportError(error) => Self::Refused { url, reason: innermost(error) },
            _ => Self::Failed { url, reason: error.to_string() },
        }
    }

    fn of_status(url: String, status: &Status) -> Self {
        let (said, reason) = (status.message(), innermost(status));
        let is_certificate = ["certificate", "Certificate", "UnknownCA", "BadSignature"]
            .iter()
            .any(|word| reason.contains(word));
        if is_certificate && status.source().is_some() {
            return Self::Certificate { url, reason };
        }
        if was_never_sent(status) {
            return Self::Unreachable { url, reason };
        }
        if status.source().is_some() {
            return Self::Failed { url, reason };
        }
        // Codes alone do not tell what was said before anything was done from what came after.
        match said.strip_prefix("etcdserver: ").unwrap_or(said) {
            "no leader" => Self::NoLeader { url },
            "too many requests" => Self::Busy { url },
            "mvcc: database space exceeded" => Self::Full { url },
            "permission denied" => Self::Permission { url },
            "user name is empty" => Self::Credentials { url, reason: "it wants one".to_owned() },
            "invalid auth token"
            | "authentication is not enabled"
            | "user name not found"
            | "authentication failed, invalid user ID or password" => {
                Self::Credentials { url, reason }
            }
            "mvcc: required revision has been compacted" => Self::Compacted,
            "mvcc: required revision is a future revision" => Self::Future,
            "requested lease not found" => Self::NoLease,
            "request is too large" | "too many operations in txn request" => {
                Self::Refused { url, reason }
            }
            said if status.code() == Code::OutOfRange && said.contains("length too large") => {
                Self::LargeAnswer
            }
            _ => Self::Failed { url, reason },
        }
    }

    /// Whether it is certain that nothing was done, nor will be.
    pub(super) fn is_certain(&self) -> bool {
        !matches!(self, Self::Silent { .. } | Self::Failed { .. } | Self::LargeAnswer)
    }

    /// Whether another member may do better, or the same one later.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::Silent { .. }
            | Self::NoLeader { .. }
            | Self::Busy { .. }
            | Self::Failed { .. } => true,
            Self::Certificate { .. }
            | Self::Full { .. }
            | Self::Credentials { .. }
            | Self::Permission { .. }
            | Self::Compacted
            | Self::Future
            | Self::NoLease
            | Self::LargeAnswer
            | Self::Refused { .. } => false,
        }
    }

    /// Whether nothing will change unless somebody changes how the controller is started, or etcd.
    pub(super) fn is_lasting(&self) -> bool {
        matches!(
            self,
            Self::Certificate { .. }
                | Self::Credentials { .. }
                | Self::Permission { .. }
                | Self::Refused { .. }
        )
    }
}

/// Whether the request was still here when it failed: it had no connection to go by.
fn was_never_sent(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// What the first cause said: the others only say in which layer it was.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    match last.downcast_ref::<Status>() {
        Some(status) if !status.message().is_empty() => status.message().to_owned(),
        Some(status) => format!("{:?}", status.code()),
        None => last.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(status: Status) -> Failure {
        Failure::of("http://a:1", &Error::GRpcStatus(status))
    }

    #[test]
    fn only_what_etcd_says_before_it_begins_is_certain() {
        let certain = [
            "etcdserver: no leader",
            "etcdserver: too many requests",
            "etcdserver: mvcc: database space exceeded",
            "etcdserver: requested lease not found",
            "etcdserver: permission denied",
            "etcdserver: invalid auth token",
        ];
        for said in certain {
            assert!(of(Status::unavailable(said)).is_certain(), "{said}");
        }
        let uncertain = [
            "etcdserver: request timed out",
            "etcdserver: request timed out, possibly due to previous leader failure",
            "etcdserver: leader changed",
            "etcdserver: server stopped",
            "",
        ];
        for said in uncertain {
            assert!(!of(Status::unavailable(said)).is_certain(), "{said}");
        }
        let cut = Status::from_error(Box::new(std::io::Error::other("connection reset")));
        assert!(!of(cut).is_certain(), "it may have arrived");
    }

    #[test]
    fn what_had_no_connection_was_not_sent() {
        let refused = ConnectError(Box::new(std::io::Error::other("connection refused")));
        let failure = of(Status::from_error(Box::new(refused)));
        assert!(failure.is_certain() && failure.may_pass());
        assert_eq!(failure.to_string(), "cannot connect to etcd at http://a:1: connection refused");
    }

    #[test]
    fn what_an_operator_must_mend_is_not_waited_for() {
        let wrong = "etcdserver: authentication failed, invalid user ID or password";
        assert!(of(Status::invalid_argument(wrong)).is_lasting());
        assert!(!of(Status::unavailable("etcdserver: no leader")).is_lasting());
    }
}

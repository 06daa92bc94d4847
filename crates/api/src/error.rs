//! Pure: the one shape of errors, and the stable code of each.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What went wrong, for programs and for people; the body of every answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiError {
    /// The stable code that programs match on.
    pub code: ErrorCode,
    /// What was wrong, with which value: one sentence, lower case, no full stop.
    pub message: String,
    /// The values of the message and what else may help, by name.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub details: Value,
}

impl ApiError {
    /// An error with a code and its sentence.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: Value::Null }
    }

    /// The same error with `details`, which is a JSON object.
    #[must_use]
    pub fn with_details(self, details: Value) -> Self {
        Self { details, ..self }
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.code)
    }
}

impl std::error::Error for ApiError {}

/// Defines [`ErrorCode`] with name, HTTP status and meaning in one table.
macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal, $status:literal;)+) => {
        /// The stable name of an error; a name is never changed and never used for anything else.
        ///
        /// `docs/errors.md` says of each what to do about it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[non_exhaustive]
        pub enum ErrorCode {
            $($(#[doc = $doc])+ #[serde(rename = $name)] $variant,)+
            /// A code that this version does not know: the server is newer.
            #[serde(other, rename = "unknown-code")]
            Unknown,
        }

        impl ErrorCode {
            /// Every code of this version.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name on the wire.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                    Self::Unknown => "unknown-code",
                }
            }

            /// The HTTP status that goes with it: 503 and 504 where the same request may succeed later.
            #[must_use]
            pub fn status(self) -> u16 {
                match self {
                    $(Self::$variant => $status,)+
                    Self::Unknown => 500,
                }
            }
        }
    };
}

codes! {
    /// The request is not what the path takes: not JSON, a field missing, unknown or malformed.
    BadRequest = "bad-request", 400;
    /// No such path.
    NotFound = "not-found", 404;
    /// The path does not take this method.
    MethodNotAllowed = "method-not-allowed", 405;
    /// The request's body is larger than is read.
    TooLarge = "too-large", 413;
    /// A value is well-formed and still not possible; the message says why.
    Invalid = "invalid", 422;
    /// The field cannot be changed after creation.
    Immutable = "immutable", 422;

    /// There is no network of this name.
    NetworkNotFound = "network-not-found", 404;
    /// There is no pool of this name.
    PoolNotFound = "pool-not-found", 404;
    /// There is no host of this name.
    HostNotFound = "host-not-found", 404;
    /// There is no reservation for this name.
    ReservationNotFound = "reservation-not-found", 404;
    /// The namespace has no quota.
    QuotaNotFound = "quota-not-found", 404;
    /// There is no such attachment, or not with this uid.
    AttachmentNotFound = "attachment-not-found", 404;

    /// A network of this name exists with other properties.
    NetworkExists = "network-exists", 409;
    /// A pool of this name exists with other properties.
    PoolExists = "pool-exists", 409;
    /// A host of this name exists with other properties.
    HostExists = "host-exists", 409;
    /// A reservation for this name exists with other properties.
    ReservationExists = "reservation-exists", 409;

    /// Another network has this VNI.
    VniTaken = "vni-taken", 409;
    /// All network indexes, 1 to 4095, are taken.
    NetworksFull = "networks-full", 409;
    /// The network still has pools.
    NetworkInUse = "network-in-use", 409;
    /// The pool still has addresses that are held or reserved.
    PoolInUse = "pool-in-use", 409;
    /// The host still has attachments.
    HostInUse = "host-in-use", 409;
    /// The reservation's addresses are held by an attachment.
    ReservationInUse = "reservation-in-use", 409;
    /// A container of this name holds addresses of its own.
    NameInUse = "name-in-use", 409;
    /// The host says that the attachment's container is there.
    AttachmentPresent = "attachment-present", 409;
    /// The host did not say in time whether the attachment's container is there.
    HostSilent = "host-silent", 503;

    /// The host is alive, so it is not down.
    HostAlive = "host-alive", 409;

    /// The pool has addresses in common with another pool.
    PoolOverlaps = "pool-overlaps", 409;
    /// The pool has addresses in common with another address space's, and a host would be a member of both.
    SpacesOverlap = "spaces-overlap", 409;
    /// The pool contains an address of a host, or a prefix behind a gateway.
    PoolContainsHost = "pool-contains-host", 409;
    /// The pool's exclusions leave no address to give.
    PoolEmpty = "pool-empty", 422;

    /// The pool has no free address.
    PoolFull = "pool-full", 503;
    /// The namespace would have more addresses than its quota.
    QuotaExceeded = "quota-exceeded", 503;
    /// No pool of the network may serve this workload.
    NoPool = "no-pool", 422;
    /// The address asked for is held by or reserved for somebody else.
    AddressHeld = "address-held", 409;
    /// The address asked for is in no pool, excluded, or never given out.
    AddressNotInPool = "address-not-in-pool", 422;
    /// The address asked for is not the one reserved for this name.
    ReservationMismatch = "reservation-mismatch", 409;
    /// The name's addresses are in use by another container.
    ReservationHeld = "reservation-held", 409;
    /// The MAC address asked for is in use.
    MacHeld = "mac-held", 409;

    /// Another installation is alive under this host's name.
    HostNameTaken = "host-name-taken", 409;
    /// A later boot of this installation has joined: this one is a copy, or late.
    HostSuperseded = "host-superseded", 409;
    /// An address of the host is inside a pool, or another host's.
    HostAddressConflict = "host-address-conflict", 409;
    /// The session is over: a newer one was opened for this host.
    SessionLost = "session-lost", 409;
    /// The host is not a member of the network.
    HostNotMember = "host-not-member", 409;
    /// The host has not the role for what it asks.
    RoleMissing = "role-missing", 403;

    /// A backup is restored into an empty store only, and this one is in use.
    StoreInUse = "store-in-use", 409;
    /// The file is no backup that can be restored: cut off, altered, of a newer version, or contradicting itself.
    BackupInvalid = "backup-invalid", 422;
    /// A restore is under way, or broke off: nothing else is done until it is over.
    StoreRestoring = "store-restoring", 503;
    /// The store was restored, and hosts have yet to say what lives on them before anything new is given.
    StoreRestored = "store-restored", 503;

    /// The store or the server cannot serve just now.
    Unavailable = "unavailable", 503;
    /// It is not known whether the request was carried out; ask again under the same names.
    OutcomeUnknown = "outcome-unknown", 503;
    /// The request took too long.
    TimedOut = "timed-out", 504;
    /// A defect of the server's.
    Internal = "internal", 500;

    /// The agent cannot reach a controller.
    ControllerUnreachable = "controller-unreachable", 503;
    /// The agent has not joined yet, or was refused.
    NotJoined = "not-joined", 503;
    /// The network's device is not there yet on this host.
    NetworkNotReady = "network-not-ready", 503;
}

impl ErrorCode {
    /// Whether the same request may succeed later with nothing changed by the caller.
    #[must_use]
    pub fn is_transient(self) -> bool {
        matches!(self.status(), 503 | 504)
            || matches!(self, Self::ReservationHeld | Self::SessionLost)
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_on_the_wire_what_it_is_called() {
        for code in ErrorCode::ALL {
            let json = serde_json::to_string(code).unwrap();
            assert_eq!(json, format!("\"{code}\""));
            assert_eq!(serde_json::from_str::<ErrorCode>(&json).unwrap(), *code);
        }
        let newer = serde_json::from_str::<ErrorCode>("\"of-tomorrow\"").unwrap();
        assert_eq!(newer, ErrorCode::Unknown);
    }

    #[test]
    fn an_error_without_details_has_no_such_field() {
        let error = ApiError::new(ErrorCode::NoPool, "no pool");
        assert_eq!(
            serde_json::to_string(&error).unwrap(),
            r#"{"code":"no-pool","message":"no pool"}"#
        );
    }
}

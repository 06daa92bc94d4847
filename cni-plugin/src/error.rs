//! Pure: the error object of the CNI specification, and what each of its codes is used for.

use std::error::Error;
use std::fmt;

use serde_json::{Value, json};

use crate::config::Version;

/// Defines [`Code`] with each number and meaning in one table.
macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $variant:ident = $number:literal;)+) => {
        /// Why the plugin failed: the specification's codes below 100, limpet's own from there.
        ///
        /// `docs/errors.md` says of each what to do about it; a test compares.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Code { $($(#[doc = $doc])+ $variant,)+ }

        impl Code {
            /// Every code.
            #[cfg(test)]
            pub(crate) const ALL: &[Self] = &[$(Self::$variant),+];

            /// The number on the wire.
            pub(crate) fn number(self) -> u16 {
                match self { $(Self::$variant => $number,)+ }
            }
        }
    };
}

codes! {
    /// The configuration's version, or the verb in that version, is not served.
    Version = 1;
    /// A field of the configuration is not known or not supported.
    Field = 2;
    /// The container's network namespace does not exist; nothing was done and no DEL is needed.
    UnknownContainer = 3;
    /// A variable of the environment is missing or wrong.
    Environment = 4;
    /// Standard input or output failed.
    Io = 5;
    /// Standard input is not JSON.
    Decode = 6;
    /// A field of the configuration has a value that is not possible.
    Config = 7;
    /// Something is away or busy; the same call may succeed later.
    TryLater = 11;
    /// An ADD cannot be served now; what is attached goes on.
    NotAvailable = 50;
    /// An ADD cannot be served now, and what is attached may have lost connectivity.
    LimitedConnectivity = 51;
    /// The container has an interface of the wanted name already.
    InterfaceExists = 100;
    /// The controller refuses the addresses; the message says why.
    Refused = 101;
    /// The kernel refuses to make or to remove the interface.
    Kernel = 102;
    /// CHECK found that the attachment is not as it should be.
    Broken = 103;
    /// Agent and plugin do not understand each other: their versions differ.
    Mismatch = 104;
}

/// What the runtime is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) code: Code,
    pub(crate) message: String,
    pub(crate) details: String,
}

impl Failure {
    /// A failure with a code and its sentence.
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: String::new() }
    }

    /// The failure that `error` is: its message, and its causes as details.
    pub(crate) fn of(code: Code, error: &dyn Error) -> Self {
        let causes = std::iter::successors(error.source(), |&cause| cause.source());
        let details = causes.map(ToString::to_string).collect::<Vec<_>>().join(": ");
        Self { code, message: error.to_string(), details }
    }

    /// The error object, in the version that was asked for.
    pub(crate) fn object(&self, version: Version) -> Value {
        let mut object = json!({
            "cniVersion": version.as_str(),
            "code": self.code.number(),
            "msg": self.message,
        });
        if !self.details.is_empty() {
            object["details"] = Value::from(self.details.as_str());
        }
        object
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if self.details.is_empty() { Ok(()) } else { write!(f, ": {}", self.details) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_documented() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/errors.md");
        let text = std::fs::read_to_string(path).unwrap();
        for code in Code::ALL {
            let row = format!("| {} |", code.number());
            assert!(text.contains(&row), "docs/errors.md has no row {row:?} for {code:?}");
        }
    }

    #[test]
    fn an_error_has_its_causes_as_details() {
        let cause = std::io::Error::from_raw_os_error(2);
        let error = limpet_rtnl::NetnsError::Open { path: "/x".into(), source: cause };
        let object = Failure::of(Code::UnknownContainer, &error).object(Version::V0_4_0);
        assert_eq!(
            object.to_string(),
            r#"{"cniVersion":"0.4.0","code":3,"details":"No such file or directory (os error 2)","msg":"cannot open the network namespace /x"}"#
        );
    }
}

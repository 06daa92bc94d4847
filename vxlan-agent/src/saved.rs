//! Pure: the form in which what is known of the cluster is kept on disk.
//!
//! Two lines: what the file is, and what was known. The first has the checksum of the second, so that a file that was cut
//! off or altered is found out, and a version, so that an older agent does not take a newer one's for damage. Fields may
//! be added; what is taken away or means something else is another version.

use std::fmt::Write as _;
use std::time::Duration;

use limpet_api::Revision;
use limpet_api::host::Snapshot;
use limpet_net_types::{HostName, Token};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// The version that is written, and the newest that is read.
const VERSION: u64 = 1;

/// What was known, of which store, and who knew it when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Saved {
    pub(crate) host: HostName,
    pub(crate) install: Token,
    pub(crate) store: Token,
    pub(crate) revision: Revision,
    /// By the host's clock, in seconds since 1970: for people.
    pub(crate) written: u64,
    pub(crate) snapshot: Snapshot,
}

/// The first line.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    limpet_snapshot: u64,
    /// Of the second line, its line feed included.
    #[serde(default)]
    bytes: usize,
    #[serde(default)]
    sha256: String,
}

/// Why a file is of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SavedError {
    /// Something else.
    #[error("it is no snapshot of limpet's")]
    Foreign,
    /// A newer agent wrote it.
    #[error("it is of version {0}, and this agent reads version {VERSION}")]
    Newer(u64),
    /// It was not written to its end, or somebody cut it.
    #[error("it is cut off: it has {found} bytes of {wanted}")]
    CutOff { found: usize, wanted: usize },
    /// It is not what was written.
    #[error("it was altered: its checksum is {found}, and {wanted} was written")]
    Altered { found: String, wanted: String },
    /// It is what was written, and makes no sense.
    #[error("it cannot be understood")]
    Unreadable(#[source] serde_json::Error),
    /// It was copied here.
    #[error("it is of host {host}, installation {install}: it was copied from there")]
    OfAnother { host: HostName, install: Token },
}

impl Saved {
    /// The file.
    ///
    /// # Errors
    ///
    /// None that a value of this type can cause.
    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut body = serde_json::to_vec(self)?;
        body.push(b'\n');
        let (bytes, sha256) = (body.len(), checksum(&body));
        let mut file = serde_json::to_vec(&Head { limpet_snapshot: VERSION, bytes, sha256 })?;
        file.push(b'\n');
        file.append(&mut body);
        Ok(file)
    }

    /// Reads a file of `host`, whose installation is `install`.
    ///
    /// # Errors
    ///
    /// [`SavedError`]. Nothing is made of a part.
    pub(crate) fn from_bytes(
        file: &[u8],
        (host, install): (&HostName, Token),
    ) -> Result<Self, SavedError> {
        let end = file.iter().position(|byte| *byte == b'\n').unwrap_or(file.len());
        let (head, rest) = file.split_at(end);
        let body = rest.strip_prefix(b"\n").unwrap_or_default();
        let head: Head = serde_json::from_slice(head).map_err(|_| SavedError::Foreign)?;
        if head.limpet_snapshot != VERSION {
            return Err(SavedError::Newer(head.limpet_snapshot));
        }
        if body.len() != head.bytes {
            return Err(SavedError::CutOff { found: body.len(), wanted: head.bytes });
        }
        let found = checksum(body);
        if found != head.sha256 {
            return Err(SavedError::Altered { found, wanted: head.sha256 });
        }
        let saved: Self = serde_json::from_slice(body).map_err(SavedError::Unreadable)?;
        if saved.host != *host || saved.install != install {
            let Self { host, install, .. } = saved;
            return Err(SavedError::OfAnother { host, install });
        }
        Ok(saved)
    }
}

fn checksum(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in Sha256::digest(bytes) {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// How long ago, in one unit, as people say it.
pub(crate) fn ago(age: Duration) -> String {
    let seconds = age.as_secs();
    match seconds {
        0..=119 => format!("{seconds} s ago"),
        120..=7_199 => format!("{} min ago", seconds / 60),
        7_200..=172_799 => format!("{} h ago", seconds / 3_600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fixture;

    fn saved() -> Saved {
        let snapshot = Snapshot {
            networks: vec![fixture::network(1)],
            attachments: vec![fixture::attachment(1, 7)],
            ..Snapshot::default()
        };
        let (store, revision) = (Token::from_bits(5), 12);
        let (host, install) = ("node-a".parse().unwrap(), Token::from_bits(9));
        Saved { host, install, store, revision, written: 1_700_000_000, snapshot }
    }

    fn read(file: &[u8]) -> Result<Saved, SavedError> {
        Saved::from_bytes(file, (&"node-a".parse().unwrap(), Token::from_bits(9)))
    }

    #[test]
    fn what_is_written_is_read_again() {
        assert_eq!(read(&saved().to_bytes().unwrap()).unwrap(), saved());
    }

    #[test]
    fn a_snapshot_of_another_host_or_installation_is_not_gone_by() {
        let file = saved().to_bytes().unwrap();
        let host = "node-b".parse().unwrap();
        let error = Saved::from_bytes(&file, (&host, Token::from_bits(9))).unwrap_err();
        assert!(error.to_string().contains("of host node-a"), "{error}");
        let host = "node-a".parse().unwrap();
        let error = Saved::from_bytes(&file, (&host, Token::from_bits(10))).unwrap_err();
        assert!(matches!(error, SavedError::OfAnother { .. }), "{error}");
    }

    #[test]
    fn a_newer_version_is_told_from_damage_whatever_else_it_says() {
        let file = b"{\"limpet_snapshot\":2,\"blake3\":\"00\"}\n\x00\x01";
        assert!(matches!(read(file), Err(SavedError::Newer(2))));
        for foreign in ["", "\n", "{}\n{}\n", "# notes\n", "\u{0}\u{0}\u{0}"] {
            assert!(matches!(read(foreign.as_bytes()), Err(SavedError::Foreign)), "{foreign:?}");
        }
    }

    #[test]
    fn an_age_has_one_unit() {
        let ages = [3, 119, 120, 7_199, 7_200, 172_800].map(|s| ago(Duration::from_secs(s)));
        assert_eq!(
            ages,
            ["3 s ago", "119 s ago", "2 min ago", "119 min ago", "2 h ago", "2 days ago"]
        );
    }

    proptest! {
        /// Power goes in the middle of a write, a disk loses a block, a bit flips.
        #[test]
        fn a_file_that_is_not_whole_is_never_taken_for_one(
            cut in any::<prop::sample::Index>(),
            flipped in any::<prop::sample::Index>(),
            bit in 0..8_u8,
        ) {
            let file = saved().to_bytes().unwrap();
            prop_assert!(read(&file[..cut.index(file.len())]).is_err());
            let mut file = file;
            let at = flipped.index(file.len());
            file[at] ^= 1 << bit;
            // Of the first line a letter's case or a space may change, and nothing of it that counts.
            prop_assert!(read(&file).map_or(true, |read| read == saved()));
        }

        #[test]
        fn whatever_a_file_has_reading_it_ends(file in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(read(&file).is_err());
        }
    }
}

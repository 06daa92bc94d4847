//! Edge: what was answered to this host about its attachments, in files that are gone after a boot, as its interfaces are.
//!
//! With them and the interfaces that there are, an agent knows what lives here even if the store has forgotten it. They
//! are evidence, never the truth: nothing is answered from them.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use limpet_api::Revision;
use limpet_api::book::Attachment;
use limpet_api::config::Network;
use limpet_net_types::{Token, Uid};
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::inside::Inside;

/// An attachment as it was answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) attachment: Attachment,
    /// Its network, at that time.
    pub(crate) network: Network,
    /// The store that answered, and the revision of the answer.
    pub(crate) store: Token,
    pub(crate) revision: Revision,
    /// Why its container was taken off the network, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) severed: Option<String>,
    /// What is limpet's inside the container, once that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) inside: Option<Inside>,
}

/// The directory of the records.
#[derive(Clone, Debug)]
pub(crate) struct Records(PathBuf);

impl Records {
    /// They are beside the file that says which boot this is: what is lost with one must be lost with the other.
    pub(crate) fn beside(boot_id_file: &Path) -> Self {
        Self(boot_id_file.with_file_name("attachments"))
    }

    /// All that can be read. One that cannot be is said to be so, and left to whoever wants to look.
    ///
    /// # Errors
    ///
    /// The directory is there and cannot be read.
    pub(crate) fn load(&self) -> io::Result<Vec<Record>> {
        let entries = match fs::read_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
            entries => entries?,
        };
        let mut records = Vec::new();
        for entry in entries {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let read = fs::read(&path).and_then(|text| Ok(serde_json::from_slice(&text)?));
            match read {
                Ok(record) => records.push(record),
                Err(error) => warn!(path = %path.display(), %error, "cannot read a record"),
            }
        }
        Ok(records)
    }

    /// Writes a record, in place of an older one. It need not outlive a boot, so that nothing waits for a disk.
    pub(crate) fn keep(&self, record: &Record) -> io::Result<()> {
        let path = self.path(record.attachment.uid);
        let draft = path.with_extension("new");
        let text = serde_json::to_vec(record)?;
        let write = || {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600);
            options.open(&draft)?.write_all(&text)
        };
        let written = match write() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.0)?;
                write()
            }
            other => other,
        };
        written.and_then(|()| fs::rename(&draft, &path))
    }

    /// Removes a record; that there is none is no error.
    pub(crate) fn forget(&self, uid: Uid) -> io::Result<()> {
        match fs::remove_file(self.path(uid)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn path(&self, uid: Uid) -> PathBuf {
        self.0.join(format!("{uid}.json"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn what_is_kept_is_read_again_until_it_is_forgotten() {
        let directory = fixture::Directory::new("records");
        let records = Records::beside(&directory.path("run/boot-id"));
        assert_eq!(records.load().unwrap(), []);
        let one = fixture::record(1, 7);
        records.keep(&one).unwrap();
        let severed = Record { severed: Some("why".to_owned()), ..fixture::record(2, 8) };
        records.keep(&fixture::record(2, 8)).unwrap();
        records.keep(&severed).unwrap();
        fs::write(directory.path("run/attachments/half.json"), "{").unwrap();
        fs::write(directory.path("run/attachments/x.new"), "{").unwrap();
        let mut found = records.load().unwrap();
        found.sort_by_key(|record| record.attachment.uid);
        assert_eq!(found, [one, severed.clone()]);
        records.forget(Token::from_bits(7)).unwrap();
        records.forget(Token::from_bits(7)).unwrap();
        assert_eq!(records.load().unwrap(), [severed]);
    }
}

//! Edge: a backup that was received into a file of its own: whether it is good, and its records, in
//! the order in which they are written.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek};

use bytes::Bytes;
use limpet_api::backup::{Footer, Header, Line, MOST_LINE, Reader};
use limpet_api::{ApiError, ErrorCode};
use limpet_net_types::Token;

use super::restoring::Stored;
use super::{comes_first, is_kept};
use crate::audit;
use crate::keys::{STORE_ID, Subject};
use crate::records::Alive;
use crate::state::{Loader, State};
use crate::store::{Revision, Versioned};

/// How many keys one transaction has: a store may take no more than 128 operations in one.
const PART_KEYS: usize = 100;

/// How many bytes one transaction has: a store may take no more than 1.5 MiB.
const PART_BYTES: usize = 512 << 10;

/// A backup that is whole, can be read, and does not contradict itself.
pub(crate) struct Backup {
    lines: Lines,
    /// Its last line.
    pub(crate) footer: Footer,
    /// How many of its keys are written.
    pub(crate) keys: u64,
    first: bool,
    /// The session that every host's is given: nobody knows it, so that all agents join anew.
    session: Token,
}

impl Backup {
    /// Reads all of a file, which blocks.
    ///
    /// # Errors
    ///
    /// `backup-invalid` says what is wrong with it; `unavailable` if it cannot be read.
    pub(crate) fn check(file: File, session: Token) -> Result<Self, ApiError> {
        let mut lines = Lines::rewound(file).map_err(|error| unreadable(&error))?;
        let (mut reader, mut keys) = (Reader::default(), 0);
        let mut loader = Loader::new(Revision(1));
        let mut footer = None;
        while let Some(line) = lines.next().map_err(|error| unreadable(&error))? {
            match reader.line(line).map_err(|error| invalid(&error.to_string()))? {
                Line::Header(Header { store, .. }) => {
                    take(&mut loader, STORE_ID, format!("\"{store}\"").into())?;
                }
                Line::Record(record) => {
                    let subject = parse(&record.key)?;
                    if is_kept(&subject) {
                        take(&mut loader, &record.key, value_of(record.value.get()))?;
                        keys += 1;
                    }
                }
                Line::Footer(last) => footer = Some(last),
            }
        }
        reader.end().map_err(|error| invalid(&error.to_string()))?;
        let Some(footer) = footer else { return Err(invalid("it has no last line")) };
        let state = loader.finish().map_err(|error| invalid(&error.to_string()))?;
        consistent(&state)?;
        let file = lines.reader.into_inner();
        let lines = Lines::rewound(file).map_err(|error| unreadable(&error))?;
        Ok(Self { lines, footer, keys, first: true, session })
    }

    /// Returns the next records to write in one transaction, none after the last; blocks.
    ///
    /// # Errors
    ///
    /// `unavailable` if the file cannot be read.
    pub(crate) fn next_part(&mut self) -> Result<Vec<Stored>, ApiError> {
        let (mut part, mut bytes) = (Vec::new(), 0);
        while part.len() < PART_KEYS && bytes < PART_BYTES {
            let Some((key, value)) = self.next()? else { break };
            bytes += key.len() + value.len();
            part.push((key, value));
        }
        Ok(part)
    }

    fn next(&mut self) -> Result<Option<Stored>, ApiError> {
        loop {
            let Some(line) = self.lines.next().map_err(|error| unreadable(&error))? else {
                if !self.first {
                    return Ok(None);
                }
                self.first = false;
                self.lines.rewind().map_err(|error| unreadable(&error))?;
                continue;
            };
            let Ok(record) = serde_json::from_slice::<limpet_api::backup::Record>(line) else {
                continue;
            };
            let subject = parse(&record.key)?;
            if is_kept(&subject) && comes_first(&subject) == self.first {
                let value = self.written(&subject, value_of(record.value.get()))?;
                return Ok(Some((record.key, value)));
            }
        }
    }

    /// What is written of a value: a session is nobody's until its host joins anew, and still says
    /// which installation and boot were there.
    fn written(&self, subject: &Subject, value: Bytes) -> Result<Bytes, ApiError> {
        if !matches!(subject, Subject::Session(_)) {
            return Ok(value);
        }
        let wrong = |error: serde_json::Error| invalid(&error.to_string());
        let alive: Alive = serde_json::from_slice(&value).map_err(wrong)?;
        let alive = Alive { session: self.session, ..alive };
        serde_json::to_vec(&alive).map(Bytes::from).map_err(wrong)
    }
}

/// Refuses what would give an address to two.
fn consistent(state: &State) -> Result<(), ApiError> {
    let found = audit::find(state);
    found.iter().find(|found| found.is_fatal()).map_or(Ok(()), |found| Err(invalid(&found.what)))
}

fn parse(key: &str) -> Result<Subject, ApiError> {
    Subject::parse(key).map_err(|_| {
        invalid(&format!(
            "it has a key that this version does not know, {key:?}: use a newer limpet"
        ))
    })
}

fn take(loader: &mut Loader, key: &str, value: Bytes) -> Result<(), ApiError> {
    let stored = Versioned { value, revision: Revision(1) };
    loader.take(key, stored).map_err(|_| {
        invalid(&format!("the record under {key} is not one that this version can read"))
    })
}

fn value_of(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn invalid(why: &str) -> ApiError {
    ApiError::new(ErrorCode::BackupInvalid, format!("this file cannot be restored: {why}"))
}

/// The error of a file that was received and cannot be kept or read again.
pub(crate) fn unreadable(error: &io::Error) -> ApiError {
    let place = std::env::temp_dir();
    let text = format!("the controller cannot keep the backup in {}: {error}", place.display());
    ApiError::new(ErrorCode::Unavailable, text)
}

/// The lines of a file, one after another in the same memory.
struct Lines {
    reader: BufReader<File>,
    line: Vec<u8>,
}

impl Lines {
    fn rewound(file: File) -> io::Result<Self> {
        let mut lines = Self { reader: BufReader::with_capacity(1 << 18, file), line: Vec::new() };
        lines.rewind()?;
        Ok(lines)
    }

    fn rewind(&mut self) -> io::Result<()> {
        self.reader.rewind()
    }

    /// The next line with its line feed, or the rest of the file.
    fn next(&mut self) -> io::Result<Option<&[u8]>> {
        self.line.clear();
        let most = u64::try_from(MOST_LINE).unwrap_or(u64::MAX);
        let read = self.reader.by_ref().take(most).read_until(b'\n', &mut self.line)?;
        Ok((read > 0).then_some(self.line.as_slice()))
    }
}

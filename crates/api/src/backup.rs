//! Pure: the file of a backup, line by line.
//!
//! The first line says what it is and of which store, each following one is a key with its value, and the last one
//! how many keys there are and the SHA-256 of all lines before it, so that a file that was cut off or altered is
//! known for one. Nothing needs more memory than a line.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::{FleetTime, Revision, WallTime};
use limpet_net_types::Token;

/// The version of the format that is written; all earlier ones are read.
pub const FORMAT: u32 = 1;

/// The longest line, in bytes: a value of the store has at most 1 MiB.
pub const MOST_LINE: usize = 4 << 20;

/// The first line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The version of the format.
    pub limpet_backup: u32,
    /// The store that it is of.
    pub store: Token,
    /// The revision at which all of it was read.
    pub revision: Revision,
    /// Fleet time when the reading began.
    pub fleet_time: FleetTime,
    /// The wall-clock time of the controller when the reading began.
    pub created: WallTime,
    /// The version of the controller that wrote it.
    pub version: String,
}

/// The last line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Footer {
    /// How many keys there are.
    pub keys: u64,
    /// The SHA-256 of all lines before this one, their ends included, in hexadecimal.
    pub sha256: String,
}

/// A key and its value: any line between the first and the last.
#[derive(Clone, Debug, Deserialize)]
pub struct Record {
    /// The key.
    #[serde(rename = "k")]
    pub key: String,
    /// The value, as it is in the store.
    #[serde(rename = "v")]
    pub value: Box<RawValue>,
}

/// One line.
#[derive(Clone, Debug)]
pub enum Line {
    /// The first.
    Header(Header),
    /// Any between.
    Record(Record),
    /// The last; all before it was as it was written.
    Footer(Footer),
}

/// Why a file is no backup that can be restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The first line is something else.
    #[error("it is no backup of limpet's: it does not begin with a line that says so")]
    Foreign,
    /// A newer program wrote it.
    #[error(
        "it has format {found}, and this version reads up to {FORMAT}: use the limpet that wrote it, or a newer one"
    )]
    Newer {
        /// The format that it has.
        found: u32,
    },
    /// There is no last line.
    #[error("it was cut off after {keys} keys")]
    CutOff {
        /// How many keys came before.
        keys: u64,
    },
    /// A line in the middle is not what it can be.
    #[error("line {line} is damaged")]
    Damaged {
        /// Which, from 1.
        line: u64,
    },
    /// Lines are missing, doubled or different from what was written.
    #[error("it was altered: its checksum is {found}, and {wanted} was written")]
    Altered {
        /// The checksum that it has.
        found: String,
        /// The one that it should have.
        wanted: String,
    },
    /// Something follows the last line.
    #[error("something follows its last line")]
    Longer,
    /// A key is not after the one before it.
    #[error("line {line}: key {key} stands twice, or out of order")]
    Order {
        /// Which, from 1.
        line: u64,
        /// The key.
        key: String,
    },
}

/// Writes a backup.
#[derive(Clone, Debug)]
pub struct Writer {
    hash: Sha256,
    keys: u64,
}

impl Writer {
    /// Begins one; the first line goes to `out`.
    pub fn begin(header: &Header, out: &mut Vec<u8>) -> Self {
        let mut writer = Self { hash: Sha256::new(), keys: 0 };
        writer.line(&json(header), out);
        writer
    }

    /// Adds a key with its value, which is JSON without line feeds, to `out`; keys come in their order.
    pub fn record(&mut self, key: &str, value: &[u8], out: &mut Vec<u8>) {
        self.keys += 1;
        let line = [b"{\"k\":", json(&key).as_slice(), b",\"v\":", value, b"}"].concat();
        self.line(&line, out);
    }

    /// How many keys were added.
    #[must_use]
    pub fn keys(&self) -> u64 {
        self.keys
    }

    /// Ends it: adds the last line to `out`.
    pub fn end(self, out: &mut Vec<u8>) {
        let footer = Footer { keys: self.keys, sha256: hex(&self.hash.finalize()) };
        out.extend_from_slice(&json(&footer));
        out.push(b'\n');
    }

    fn line(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let from = out.len();
        out.extend_from_slice(line);
        out.push(b'\n');
        self.hash.update(out.get(from..).unwrap_or_default());
    }
}

/// Reads a backup, and finds out whether it is whole and as it was written.
#[derive(Clone, Debug, Default)]
pub struct Reader {
    hash: Sha256,
    lines: u64,
    keys: u64,
    last: String,
    ended: bool,
}

impl Reader {
    /// Takes in the next line, with its line feed.
    ///
    /// # Errors
    ///
    /// [`BackupError`]; nothing of the file should be used, what came before neither.
    pub fn line(&mut self, line: &[u8]) -> Result<Line, BackupError> {
        if self.ended {
            return Err(BackupError::Longer);
        }
        self.lines += 1;
        let Some(text) = line.strip_suffix(b"\n") else {
            return Err(if self.lines == 1 { BackupError::Foreign } else { self.cut_off() });
        };
        if self.lines == 1 {
            let header = header(text)?;
            self.hash.update(line);
            return Ok(Line::Header(header));
        }
        if let Ok(record) = serde_json::from_slice::<Record>(text) {
            if record.key <= self.last {
                return Err(BackupError::Order { line: self.lines, key: record.key });
            }
            self.hash.update(line);
            self.keys += 1;
            self.last.clone_from(&record.key);
            return Ok(Line::Record(record));
        }
        let damaged = |_| BackupError::Damaged { line: self.lines };
        let footer: Footer = serde_json::from_slice(text).map_err(damaged)?;
        let found = hex(&self.hash.clone().finalize());
        if footer.sha256 != found || footer.keys != self.keys {
            return Err(BackupError::Altered { found, wanted: footer.sha256 });
        }
        self.ended = true;
        Ok(Line::Footer(footer))
    }

    /// Finds out at the end of the file whether that was all.
    ///
    /// # Errors
    ///
    /// [`BackupError::CutOff`], or [`BackupError::Foreign`] for an empty file.
    pub fn end(&self) -> Result<(), BackupError> {
        match (self.ended, self.lines) {
            (true, _) => Ok(()),
            (false, 0) => Err(BackupError::Foreign),
            (false, _) => Err(self.cut_off()),
        }
    }

    fn cut_off(&self) -> BackupError {
        BackupError::CutOff { keys: self.keys }
    }
}

fn header(text: &[u8]) -> Result<Header, BackupError> {
    #[derive(Deserialize)]
    struct Format {
        limpet_backup: u32,
    }
    // What a newer format has beside its number nobody can know.
    let Format { limpet_backup: found } =
        serde_json::from_slice(text).map_err(|_| BackupError::Foreign)?;
    if found > FORMAT {
        return Err(BackupError::Newer { found });
    }
    serde_json::from_slice(text).map_err(|_| BackupError::Foreign)
}

fn json<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value)
        .unwrap_or_else(|error| unreachable!("these types have nothing JSON lacks: {error}"))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header() -> Header {
        Header {
            limpet_backup: FORMAT,
            store: Token::from_bits(1),
            revision: 7,
            fleet_time: FleetTime(120),
            created: "2026-11-20T14:05:00Z".parse().unwrap(),
            version: "0.1.0".to_owned(),
        }
    }

    fn file(keys: &[&str]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut writer = Writer::begin(&header(), &mut out);
        for key in keys {
            writer.record(key, br#"{"a":1}"#, &mut out);
        }
        writer.end(&mut out);
        out
    }

    fn read(file: &[u8]) -> Result<Vec<String>, BackupError> {
        let mut reader = Reader::default();
        let mut keys = Vec::new();
        for line in file.split_inclusive(|byte| *byte == b'\n') {
            if let Line::Record(Record { key, .. }) = reader.line(line)? {
                keys.push(key);
            }
        }
        reader.end().map(|()| keys)
    }

    #[test]
    fn what_was_written_is_read() {
        assert_eq!(read(&file(&["a/1", "b"])).unwrap(), ["a/1", "b"]);
        assert_eq!(read(&file(&[])).unwrap(), [""; 0]);
        let mut reader = Reader::default();
        for line in file(&["a"]).split_inclusive(|byte| *byte == b'\n').take(2) {
            if let Line::Record(Record { value, .. }) = reader.line(line).unwrap() {
                assert_eq!(value.get(), r#"{"a":1}"#);
            }
        }
        let text = String::from_utf8(file(&["a"])).unwrap();
        assert_eq!(
            text,
            "{\"limpet_backup\":1,\"store\":\"00000000000000000000000000000001\",\"revision\":7,\
             \"fleet_time\":120,\"created\":\"2026-11-20T14:05:00Z\",\"version\":\"0.1.0\"}\n\
             {\"k\":\"a\",\"v\":{\"a\":1}}\n\
             {\"keys\":1,\"sha256\":\"SUM\"}\n"
                .replace("SUM", text.rsplit('"').nth(1).unwrap())
        );
    }

    #[test]
    fn what_is_no_backup_says_why() {
        assert!(matches!(read(b"").unwrap_err(), BackupError::Foreign));
        assert!(matches!(read(b"{\"a\":1}\n").unwrap_err(), BackupError::Foreign));
        assert!(matches!(read(b"\x1f\x8b\x08").unwrap_err(), BackupError::Foreign));
        let newer = b"{\"limpet_backup\":2,\"other\":1}\n";
        assert!(matches!(read(newer).unwrap_err(), BackupError::Newer { found: 2 }));
        assert!(matches!(read(&file(&["b", "a"])).unwrap_err(), BackupError::Order { .. }));
        let longer = [file(&["a"]), b"{}\n".to_vec()].concat();
        assert!(matches!(read(&longer).unwrap_err(), BackupError::Longer));
        let altered = String::from_utf8(file(&["a", "b"])).unwrap().replace("\"b\"", "\"c\"");
        assert!(matches!(read(altered.as_bytes()).unwrap_err(), BackupError::Altered { .. }));
    }

    proptest! {
        #[test]
        fn a_file_that_is_cut_off_anywhere_is_refused(cut in 0.0..1.0_f64) {
            let whole = file(&["a", "b", "c"]);
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within the file")]
            #[expect(clippy::cast_precision_loss, clippy::as_conversions, reason = "within the file")]
            let at = (cut * whole.len() as f64) as usize;
            prop_assert!(read(&whole[..at]).is_err());
        }

        #[test]
        fn a_file_with_any_byte_changed_is_refused_or_reads_the_same(
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
        ) {
            let whole = file(&["a", "b", "c"]);
            let mut changed = whole.clone();
            let at = at.index(whole.len());
            changed[at] = byte;
            prop_assert!(changed == whole || read(&changed).is_err());
        }
    }
}

//! Edge: reads that are under way, each at one revision, a page at a time.
//!
//! The file's thread keeps them: a reader elsewhere would keep a file open that has failed.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Weak};

use redb::ReadOnlyTable;

use super::super::{Key, Page, Revision};
use super::engine::Failure;
use super::open::Open;
use super::overlay::{Entry, Laid};
use super::tables::versioned;

/// How many keys a page has at most; few in tests, so that they see several.
const PAGE: usize = if cfg!(test) { 3 } else { 1024 };

/// How many bytes of values end a page, so that commits do not wait long for one.
const PAGE_BYTES: usize = 256 << 10;

/// The reads under way, by their numbers.
#[derive(Default)]
pub(super) struct Readers {
    running: BTreeMap<u64, Reader>,
    last: u64,
}

/// A read that has begun.
#[derive(Debug)]
pub(super) struct Begun {
    /// Its number.
    pub(super) number: u64,
    /// What is read is as of this revision.
    pub(super) revision: Revision,
    /// Dropped by whoever does not want the rest.
    _wanted: Arc<()>,
}

/// The table as it was, what was over it, and how far it is read.
struct Reader {
    keys: ReadOnlyTable<&'static str, &'static [u8]>,
    over: BTreeMap<Key, Entry>,
    prefix: String,
    after: Option<Key>,
    wanted: Weak<()>,
}

impl Readers {
    /// Lets go of reads that nobody wants the rest of: they keep old pages of the file in use.
    pub(super) fn drop_unwanted(&mut self) {
        self.running.retain(|_, reader| reader.wanted.strong_count() > 0);
    }
}

impl Open {
    /// Begins to read what starts with `prefix`.
    pub(super) fn begin(&mut self, prefix: String) -> Result<Begun, Failure> {
        let wanted = Arc::new(());
        let reader = Reader {
            keys: self.keys()?,
            over: self.overlay.range(&prefix, |key| key.starts_with(&prefix)),
            prefix,
            after: None,
            wanted: Arc::downgrade(&wanted),
        };
        let readers = &mut self.readers;
        readers.last += 1;
        readers.running.insert(readers.last, reader);
        Ok(Begun { number: readers.last, revision: self.revision(), _wanted: wanted })
    }

    /// Reads on; an empty page is the end.
    pub(super) fn page(&mut self, number: u64) -> Result<Page, Failure> {
        // The file was closed after a failure, and the read with it.
        let reader = self.readers.running.get_mut(&number).ok_or(Failure::ReaderGone)?;
        let page = reader.page()?;
        if page.is_empty() {
            self.readers.running.remove(&number);
        }
        Ok(page)
    }
}

impl Reader {
    fn page(&mut self) -> Result<Page, Failure> {
        let from = match &self.after {
            Some(last) => Bound::Excluded(last.as_str()),
            None => Bound::Included(self.prefix.as_str()),
        };
        let rows = self.keys.range::<&str>((from, Bound::Unbounded))?.map(|row| {
            let (key, value) = row?;
            Ok::<_, Failure>((key.value().to_owned(), versioned(value.value())?))
        });
        let prefix = &self.prefix;
        let rows =
            rows.take_while(|row| row.as_ref().map_or(true, |(key, _)| key.starts_with(prefix)));
        let (mut page, mut bytes) = (Page::new(), 0);
        for row in Laid::new(rows, &mut self.over) {
            let (key, value) = row?;
            bytes += value.value.len();
            page.push((key, value));
            if page.len() >= PAGE || bytes >= PAGE_BYTES {
                break;
            }
        }
        if let Some((last, _)) = page.last() {
            self.after = Some(last.clone());
        }
        Ok(page)
    }
}

//! Pure: records in one piece of memory each, in the order of the keys that they have inside.
//!
//! A tree of whole records beside their keys would have each key twice, and more room for records
//! than records.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::ops::Bound;

use limpet_api::book::{Attachment, AttachmentKey, Reservation};

use super::Entry;
use crate::keys::ReservationKey;

/// What a kind of record is ordered by.
pub(super) trait Keyed {
    /// The key, which both a record and a key by itself can be taken for.
    type Key: ?Sized + Ord;

    /// The record's own.
    fn key(&self) -> &Self::Key;
}

impl Keyed for Attachment {
    type Key = AttachmentKey;

    fn key(&self) -> &AttachmentKey {
        &self.key
    }
}

impl Keyed for Reservation {
    type Key = dyn Named;

    fn key(&self) -> &(dyn Named + 'static) {
        self
    }
}

/// What a reservation is kept for, wherever it is written down.
pub(crate) trait Named {
    /// Network, namespace and name, which is the order of reservations.
    fn parts(&self) -> [&str; 3];
}

impl Named for Reservation {
    fn parts(&self) -> [&str; 3] {
        [self.network.as_str(), self.namespace.as_str(), self.name.as_str()]
    }
}

impl Named for ReservationKey {
    fn parts(&self) -> [&str; 3] {
        [self.network.as_str(), self.namespace.as_str(), self.name.as_str()]
    }
}

/// Where reservations could be, whose parts are any text.
#[derive(Clone, Debug)]
pub(crate) struct Place(pub(crate) [String; 3]);

impl Place {
    /// A part that stands after all names: they are ASCII.
    pub(crate) const END: &str = "\u{7f}";
}

impl Named for Place {
    fn parts(&self) -> [&str; 3] {
        self.0.each_ref().map(String::as_str)
    }
}

impl PartialEq for dyn Named {
    fn eq(&self, other: &Self) -> bool {
        self.parts() == other.parts()
    }
}

impl Eq for dyn Named {}

impl PartialOrd for dyn Named {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for dyn Named {
    fn cmp(&self, other: &Self) -> Ordering {
        self.parts().cmp(&other.parts())
    }
}

/// A record in its place.
#[derive(Clone, Debug)]
pub(super) struct Row<T>(Box<Entry<T>>);

impl<T> Row<T> {
    /// Puts a record in its place.
    pub(super) fn of(entry: Entry<T>) -> Self {
        Self(Box::new(entry))
    }
}

impl<T: Keyed> PartialEq for Row<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<T: Keyed> Eq for Row<T> {}

impl<T: Keyed> PartialOrd for Row<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T: Keyed> Ord for Row<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.record.key().cmp(other.0.record.key())
    }
}

impl Borrow<AttachmentKey> for Row<Attachment> {
    fn borrow(&self) -> &AttachmentKey {
        self.0.record.key()
    }
}

impl Borrow<dyn Named> for Row<Reservation> {
    fn borrow(&self) -> &(dyn Named + 'static) {
        self.0.record.key()
    }
}

/// Records in the order of their keys.
#[derive(Clone, Debug)]
pub(super) struct Rows<T: Keyed>(BTreeSet<Row<T>>);

impl<T: Keyed> Default for Rows<T> {
    fn default() -> Self {
        Self(BTreeSet::new())
    }
}

/// Equal if the records are, not only their keys.
impl<T: Keyed + PartialEq> PartialEq for Rows<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0.iter().map(|row| &row.0).eq(other.0.iter().map(|row| &row.0))
    }
}

impl<T: Keyed + Eq> Eq for Rows<T> {}

impl<T: Keyed> Rows<T>
where
    Row<T>: Borrow<T::Key>,
{
    /// The record with a key.
    pub(super) fn get(&self, key: &T::Key) -> Option<&Entry<T>> {
        self.0.get(key).map(|row| &*row.0)
    }

    /// Puts a record in the place of the one with its key.
    pub(super) fn put(&mut self, entry: Entry<T>) {
        self.0.replace(Row::of(entry));
    }

    /// Puts all records in at once, no two of one key. Most come in their order, and then none is looked
    /// for, and no room is left between them.
    pub(super) fn of(rows: Vec<Row<T>>) -> Self {
        Self(rows.into_iter().collect())
    }

    /// Takes the record with a key out.
    pub(super) fn take(&mut self, key: &T::Key) -> Option<Entry<T>> {
        self.0.take(key).map(|row| *row.0)
    }

    /// The records from a key on.
    pub(super) fn from<'a>(
        &'a self,
        start: Bound<&T::Key>,
    ) -> impl Iterator<Item = &'a Entry<T>> + use<'a, T> {
        self.0.range::<T::Key, _>((start, Bound::Unbounded)).map(|row| &*row.0)
    }
}

//! Pure: what a transaction changes, one record at a time, as the state takes it.

use limpet_api::book::{Attachment, Reservation};

use super::BadRecord;
use crate::keys::Subject;
use crate::records::Slot;
use crate::store::Write;

/// A record that was decided just now: the state takes it as it is. To read it again from the JSON
/// that was made of it would cost more than the decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// Who has an address.
    Slot(Slot),
    /// An attachment.
    Attachment(Attachment),
    /// A reservation.
    Reservation(Reservation),
}

/// What happens to one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    /// What it is about.
    pub(crate) subject: Subject,
    /// What the store is told.
    pub(crate) write: Write,
    /// What is written, of the records that there are most of; the others are read from `write`.
    pub(crate) record: Option<Record>,
}

impl Change {
    /// Reads what a store tells.
    ///
    /// # Errors
    ///
    /// [`BadRecord`] if nobody knows the key.
    pub(crate) fn read(key: &str, write: &Write) -> Result<Self, BadRecord> {
        Ok(Self { subject: Subject::parse(key)?, write: write.clone(), record: None })
    }
}

//! Pure: backups: what is in one, and what a store must be for one to be restored into it.
//!
//! | file | is | does |
//! |---|---|---|
//! | [`mod@file`] | edge | a backup that was received: whether it is good, and its records |
//! | [`restoring`] | pure | a restore as decisions: begin, write, finish, discard |

pub(crate) mod file;
pub(crate) mod restoring;

use crate::keys::Subject;
use crate::state::State;

/// Whether a key is in a backup: what lasts is; what is of this store or of this moment is not.
pub(crate) fn is_kept(subject: &Subject) -> bool {
    match subject {
        Subject::Clock
        | Subject::Config
        | Subject::Network(_)
        | Subject::Pool(_)
        | Subject::Block(..)
        | Subject::Address(..)
        | Subject::Reservation(_)
        | Subject::Attachment(_)
        | Subject::Host(_)
        | Subject::MacChoice(_)
        | Subject::Tenure(_)
        | Subject::Quota(_)
        | Subject::Session(_) => true,
        Subject::StoreId
        | Subject::Mark
        | Subject::Restoring
        | Subject::Restored
        | Subject::Heard(_)
        | Subject::Silent(_)
        | Subject::Report(..)
        | Subject::Ask(..) => false,
    }
}

/// Whether a key is written before those that are counted by it, or refer to it.
fn comes_first(subject: &Subject) -> bool {
    !matches!(subject, Subject::Address(..) | Subject::Reservation(_) | Subject::Attachment(_))
}

/// What a store has that a restore would mix with what the backup has; nothing if it is empty.
pub(crate) fn holds(state: &State) -> Option<String> {
    let counts = [
        ("networks", state.networks().count()),
        ("pools", state.pools().count()),
        ("hosts", state.hosts().count()),
        ("quotas", state.quotas().count()),
        ("reservations", state.reservations().count()),
        ("attachments", state.attachments().count()),
    ];
    let some = counts.into_iter().filter(|(_, count)| *count > 0);
    let words: Vec<String> = some.map(|(what, count)| format!("{count} {what}")).collect();
    (!words.is_empty()).then(|| words.join(", "))
}

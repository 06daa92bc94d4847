//! Pure: backups: what is in one, and what a store must be for one to be restored into it.

use crate::state::State;

/// What a store has that a restore would mix with what the backup has; nothing if it is empty.
pub(crate) fn holds(state: &State) -> Option<String> {
    let counts = [
        ("networks", state.networks().count()),
        ("pools", state.pools().count()),
        ("hosts", state.hosts().count()),
        ("reservations", state.reservations().count()),
        ("attachments", state.attachments().count()),
    ];
    let some = counts.into_iter().filter(|(_, count)| *count > 0);
    let words: Vec<String> = some.map(|(what, count)| format!("{count} {what}")).collect();
    (!words.is_empty()).then(|| words.join(", "))
}

//! Pure: short texts that are in memory once, however many records have them.
//!
//! A fleet of a million addresses has each of its names in many records: the container's in its
//! attachment and in each of its addresses, the host's in all of its containers. A text is a
//! pointer to the one copy; the copy goes soon after the last of its records.

use std::collections::HashSet;
use std::sync::{LazyLock, Mutex, PoisonError};

use arcstr::ArcStr;
use foldhash::fast::RandomState;

/// How many tables the copies are in, so that threads seldom wait for each other, and none for
/// long when a table grows.
const TABLES: usize = 32;

/// Copies of texts.
type Table = HashSet<ArcStr, RandomState>;

static TABLE: LazyLock<[Mutex<Table>; TABLES]> = LazyLock::new(<[_; TABLES]>::default);

/// Returns the one copy of `text`.
pub(crate) fn shared(text: &str) -> ArcStr {
    let Some(table) = TABLE.get(table_of(text)) else { return ArcStr::from(text) };
    // A thread that panicked here left the table whole: nothing else is done under the lock.
    let mut table = table.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(copy) = table.get(text) {
        return copy.clone();
    }
    make_room(&mut table);
    let copy = ArcStr::from(text);
    table.insert(copy.clone());
    copy
}

/// The table of a text: names differ at their ends.
fn table_of(text: &str) -> usize {
    let end = text.bytes().rev().take(6);
    let mixed = end.fold(0_u32, |mixed, byte| (mixed ^ u32::from(byte)).wrapping_mul(0x9e37_79b1));
    usize::try_from(mixed >> 16).unwrap_or_default() % TABLES
}

/// Before a table would grow those copies go that only the table has. It grows if that gains less
/// than a quarter, so that it is looked through once in very many new texts.
fn make_room(table: &mut Table) {
    let room = table.capacity();
    if table.len() < room {
        return;
    }
    table.retain(|copy| ArcStr::strong_count(copy) != Some(1));
    if table.len() > room - room / 4 {
        table.reserve(room);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_are_one_copy() {
        let (one, other) =
            (shared("a text that is there once"), shared("a text that is there once"));
        assert!(ArcStr::ptr_eq(&one, &other));
        assert_eq!(shared("").as_str(), "");
    }

    #[test]
    fn names_that_are_counted_are_in_all_tables_alike() {
        let mut tables = [0; TABLES];
        for n in 0..32_000 {
            tables[table_of(&format!("web-{n}"))] += 1;
        }
        assert!(tables.iter().all(|count| (500..2000).contains(count)), "{tables:?}");
    }

    #[test]
    fn a_table_does_not_grow_with_what_nobody_has_any_more() {
        let mut table = Table::default();
        let kept: Vec<ArcStr> = (0..10).map(|n| ArcStr::from(format!("kept {n}"))).collect();
        table.extend(kept.iter().cloned());
        for n in 0..10_000 {
            make_room(&mut table);
            table.insert(ArcStr::from(format!("gone {n}")));
        }
        assert!(table.capacity() < 100, "{}", table.capacity());
        assert!(kept.iter().all(|text| table.contains(text)));
    }
}

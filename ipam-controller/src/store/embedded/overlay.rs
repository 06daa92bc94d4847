//! Pure: what the newest revisions changed, over the table of all keys, which has it later.
//!
//! A commit that put each key where it belongs would write a page of the file for each. So it
//! writes the log alone, and its changes stay here, in memory. When there are many, they are
//! *folded* into the table in the order of their keys, which then share pages, a chunk with each
//! commit, so that none waits for all. Opening the file reads the log from the last fold on.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::super::{Key, Revision, Versioned, Write};

/// So many changed keys begin a fold: enough that neighbours meet, and little to read again.
/// Tests fold all the time.
const KEYS: usize = if cfg!(test) { 12 } else { 8192 };

/// So many revisions begin a fold, too: the log cannot be cut before what is folded.
const REVISIONS: u64 = if cfg!(test) { 16 } else { 4096 };

/// The fewest keys that a commit folds.
const CHUNK: usize = if cfg!(test) { 2 } else { 64 };

/// What a key is now: its value, or deleted.
pub(super) type Entry = Option<Versioned>;

/// The changes that the table does not have yet, or not for sure.
#[derive(Debug, Default)]
pub(super) struct Overlay {
    /// Changed since the fold began, or since the last one.
    fresh: BTreeMap<Key, Entry>,
    /// Being folded: what is left of it.
    folding: BTreeMap<Key, Entry>,
    /// The newest revision of what is being folded.
    until: Option<Revision>,
    applied: Revision,
}

/// What one commit folds.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    /// What the table is to have.
    pub(super) entries: Vec<(Key, Entry)>,
    /// Up to where the table then has everything, if that changes.
    pub(super) applied: Option<Revision>,
}

impl Overlay {
    /// Begins over a table that has everything up to `applied`.
    pub(super) fn over(applied: Revision) -> Self {
        Self { applied, ..Self::default() }
    }

    /// Up to where the table has everything.
    pub(super) fn applied(&self) -> Revision {
        self.applied
    }

    /// What a key is now; `None` if the table knows.
    pub(super) fn get(&self, key: &str) -> Option<&Entry> {
        self.fresh.get(key).or_else(|| self.folding.get(key))
    }

    /// What is over the table from `from` on, as long as `goes_on`.
    pub(super) fn range(&self, from: &str, goes_on: impl Fn(&str) -> bool) -> BTreeMap<Key, Entry> {
        let mut range = BTreeMap::new();
        for entries in [&self.folding, &self.fresh] {
            let entries = entries
                .range::<str, _>((Bound::Included(from), Bound::Unbounded))
                .take_while(|(key, _)| goes_on(key));
            range.extend(entries.map(|(key, entry)| (key.clone(), entry.clone())));
        }
        range
    }

    /// Takes in what a revision changed.
    pub(super) fn add(&mut self, revision: Revision, changes: &BTreeMap<Key, Write>) {
        for (key, write) in changes {
            let entry = match write {
                Write::Put(value) | Write::Ephemeral(value) => {
                    Some(Versioned { value: value.clone(), revision })
                }
                Write::Delete => None,
            };
            self.fresh.insert(key.clone(), entry);
        }
    }

    /// Takes out what the next commit is to fold, after which the newest revision was `newest`
    /// and which changes `written` keys itself; `None` if there is nothing to fold now.
    ///
    /// It folds twice what it brings, so that a fold ends before the next begins.
    pub(super) fn fold(&mut self, newest: Revision, written: usize) -> Option<Chunk> {
        if self.until.is_none() {
            let behind = newest.0.saturating_sub(self.applied.0);
            if self.fresh.len() < KEYS && behind < REVISIONS {
                return None;
            }
            self.folding = std::mem::take(&mut self.fresh);
            self.until = Some(newest);
        }
        let chunk = CHUNK.max(written.saturating_mul(2));
        let entries = std::iter::from_fn(|| self.folding.pop_first()).take(chunk).collect();
        let mut applied = None;
        if self.folding.is_empty() {
            applied = self.until.take();
            self.applied = applied.unwrap_or(self.applied);
        }
        Some(Chunk { entries, applied })
    }
}

/// Lays what is over a table on its entries, both in the order of their keys.
///
/// What the table has no entry for comes where it belongs; the rest stays in `over` as long as
/// the table's entries have not come so far.
pub(super) struct Laid<'a, I: Iterator> {
    table: std::iter::Peekable<I>,
    over: &'a mut BTreeMap<Key, Entry>,
}

impl<'a, I, E> Laid<'a, I>
where
    I: Iterator<Item = Result<(Key, Versioned), E>>,
{
    /// Lays `over` on `table`.
    pub(super) fn new(table: I, over: &'a mut BTreeMap<Key, Entry>) -> Self {
        Self { table: table.peekable(), over }
    }

    fn is_over_next(&mut self) -> bool {
        match (self.table.peek(), self.over.first_key_value()) {
            (Some(Ok((key, _))), Some((over, _))) => over <= key,
            (None, Some(_)) => true,
            (Some(Err(_)), _) | (_, None) => false,
        }
    }
}

impl<I, E> Iterator for Laid<'_, I>
where
    I: Iterator<Item = Result<(Key, Versioned), E>>,
{
    type Item = Result<(Key, Versioned), E>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if !self.is_over_next() {
                return self.table.next();
            }
            let (key, entry) = self.over.pop_first()?;
            // What is over the table hides what is in it.
            let _ = self.table.next_if(|next| next.as_ref().is_ok_and(|(below, _)| *below == key));
            if let Some(versioned) = entry {
                return Some(Ok((key, versioned)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;

    use super::*;

    fn value(n: u8) -> Versioned {
        Versioned { value: vec![n].into(), revision: Revision(n.into()) }
    }

    fn changes() -> impl Strategy<Value = BTreeMap<Key, Write>> {
        let write =
            prop_oneof![Just(Write::Delete), (0..3_u8).prop_map(|n| Write::Put(vec![n].into())),];
        btree_map("[ab]{1,2}", write, 0..4)
    }

    proptest! {
        #[test]
        fn what_is_laid_over_a_table_hides_what_is_in_it(
            table in btree_map("[a-d]{1,2}", (0..9_u8).prop_map(value), 0..6),
            over in btree_map("[a-d]{1,2}", prop::option::of((0..9_u8).prop_map(value)), 0..6),
        ) {
            let mut expected = table.clone();
            for (key, entry) in over.clone() {
                match entry {
                    Some(versioned) => drop(expected.insert(key, versioned)),
                    None => drop(expected.remove(&key)),
                }
            }
            let mut left = over;
            let rows = table.into_iter().map(Ok::<_, Infallible>);
            let laid: Result<Vec<_>, _> = Laid::new(rows, &mut left).collect();
            prop_assert_eq!(laid.unwrap(), expected.into_iter().collect::<Vec<_>>());
            prop_assert!(left.is_empty());
        }

        /// However folds and changes alternate: table and overlay together are what was written,
        /// and what changed after `applied` is in the overlay or folded already.
        #[test]
        fn folding_loses_nothing(rounds in vec((changes(), any::<bool>()), 0..12)) {
            let (mut overlay, mut table) = (Overlay::over(Revision(0)), BTreeMap::new());
            let mut expected = BTreeMap::new();
            let mut newest = Revision(0);
            for (changes, begins) in rounds {
                newest = newest.next();
                // As if it were far behind.
                let at = if begins { Revision(newest.0 + REVISIONS) } else { newest };
                if let Some(chunk) = overlay.fold(at, 0) {
                    for (key, entry) in chunk.entries {
                        match entry {
                            Some(versioned) => drop(table.insert(key, versioned)),
                            None => drop(table.remove(&key)),
                        }
                    }
                }
                overlay.add(newest, &changes);
                for (key, write) in changes {
                    match write {
                        Write::Put(value) | Write::Ephemeral(value) => {
                            expected.insert(key, Versioned { value, revision: newest });
                        }
                        Write::Delete => drop(expected.remove(&key)),
                    }
                }
                let mut over = overlay.range("", |_| true);
                let rows = table.clone().into_iter().map(Ok::<_, Infallible>);
                let laid: Result<BTreeMap<_, _>, _> = Laid::new(rows, &mut over).collect();
                prop_assert_eq!(laid.unwrap(), expected.clone());
            }
        }
    }

    #[test]
    fn a_fold_goes_on_in_chunks_and_ends_before_the_next_begins() {
        let mut overlay = Overlay::over(Revision(0));
        let put = |n: usize| (format!("k/{n:05}"), Write::Put("x".into()));
        assert_eq!(overlay.fold(Revision(1), 1), None, "too little to fold");
        overlay.add(Revision(1), &(0..KEYS).map(put).collect());
        let (mut folded, mut newest) = (0, Revision(1));
        loop {
            let chunk = overlay.fold(newest, 1).unwrap();
            folded += chunk.entries.len();
            assert!(chunk.entries.len() <= CHUNK);
            newest = newest.next();
            overlay.add(newest, &[put(KEYS + folded)].into());
            if let Some(applied) = chunk.applied {
                assert_eq!((applied, overlay.applied()), (Revision(1), Revision(1)));
                break;
            }
        }
        assert_eq!(folded, KEYS);
        assert_eq!(overlay.fold(newest, 1), None, "what came meanwhile is no fold yet");
        assert!(overlay.get("k/00000").is_none(), "the table has it");
        assert!(overlay.get(&format!("k/{:05}", KEYS + folded)).is_some());
    }
}

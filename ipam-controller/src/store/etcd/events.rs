//! Pure: what etcd says of changes, joined to whole revisions.
//!
//! Etcd sends the changes of several revisions together, and takes long ones apart. A revision is
//! whole once a later one has begun, or once etcd has said that nothing is missing.

use std::collections::{BTreeMap, VecDeque};

use crate::store::{Event, Key, Revision, Write};

/// A revision that came once more, or before one that has been told already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("etcd told of revision {0} again, out of order")]
pub(super) struct Disorder(pub(super) Revision);

/// Joins changes.
#[derive(Debug)]
pub(super) struct Joiner {
    start: Revision,
    last: Revision,
    ready: VecDeque<Event>,
    open: Option<Event>,
}

impl Joiner {
    /// Begins after a revision.
    pub(super) fn after(start: Revision) -> Self {
        Self { start, last: start, ready: VecDeque::new(), open: None }
    }

    /// The newest revision that was told, or the one to begin after.
    pub(super) fn last(&self) -> Revision {
        self.last
    }

    /// Takes in a change.
    ///
    /// # Errors
    ///
    /// [`Disorder`]: what was told is not to be relied on.
    pub(super) fn push(&mut self, at: Revision, key: Key, write: Write) -> Result<(), Disorder> {
        if at <= self.start {
            // Etcd before 3.4.25 tells of old changes, where it is asked for those to come.
            return Ok(());
        }
        if let Some(open) = &mut self.open
            && open.revision == at
        {
            open.changes.insert(key, write);
            return Ok(());
        }
        let newest = self.open.as_ref().map_or(self.newest_ready(), |open| open.revision);
        if at <= newest {
            return Err(Disorder(at));
        }
        self.close();
        self.open = Some(Event { revision: at, changes: BTreeMap::from([(key, write)]) });
        Ok(())
    }

    fn newest_ready(&self) -> Revision {
        self.ready.back().map_or(self.last, |event| event.revision)
    }

    /// Nothing is missing of what was taken in.
    pub(super) fn close(&mut self) {
        self.ready.extend(self.open.take());
    }

    /// Returns the next revision that is whole.
    pub(super) fn next(&mut self) -> Option<Event> {
        let event = self.ready.pop_front()?;
        self.last = event.revision;
        Some(event)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn take(joiner: &mut Joiner, told: &mut Vec<(u64, usize)>) {
        while let Some(event) = joiner.next() {
            told.push((event.revision.0, event.changes.len()));
        }
    }

    proptest! {
        #[test]
        fn however_it_is_taken_apart_each_revision_is_told_once_and_whole(
            sizes in prop::collection::vec(1..4usize, 0..6),
            cuts in prop::collection::vec(any::<bool>(), 24),
        ) {
            let expected: Vec<(u64, usize)> =
                sizes.iter().zip(11..).map(|(size, at)| (at, *size)).collect();
            let mut changes = Vec::new();
            for (at, size) in &expected {
                changes.extend((0..*size).map(|n| (*at, n, n + 1 == *size)));
            }
            let mut joiner = Joiner::after(Revision(10));
            let mut told = Vec::new();
            for ((at, n, is_last), cut) in changes.into_iter().zip(cuts) {
                joiner.push(Revision(at), n.to_string(), Write::Delete).unwrap();
                // Etcd says that nothing is missing only where a revision ends.
                if cut && is_last {
                    joiner.close();
                }
                take(&mut joiner, &mut told);
            }
            joiner.close();
            take(&mut joiner, &mut told);
            prop_assert_eq!(told, expected);
        }
    }

    #[test]
    fn old_changes_are_passed_over_and_disorder_is_told() {
        let mut joiner = Joiner::after(Revision(10));
        let mut push = |at| joiner.push(Revision(at), "k".to_owned(), Write::Delete);
        assert_eq!(push(9), Ok(()));
        assert_eq!(push(10), Ok(()));
        assert_eq!(push(12), Ok(()));
        assert_eq!(push(11), Err(Disorder(Revision(11))));
        joiner.close();
        assert_eq!(joiner.next().unwrap().revision, Revision(12));
        let again = joiner.push(Revision(12), "late".to_owned(), Write::Delete);
        assert_eq!(again, Err(Disorder(Revision(12))), "a part of it came too late");
    }
}

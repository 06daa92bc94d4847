//! Pure: the newest revisions in memory, so that following the store costs no read of the file.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use super::super::{Event, Revision};

/// How many changed keys are kept. A batch of claims changes about a thousand.
const CHANGES: usize = 16_384;

/// The newest revisions, which the file's thread adds and watches share.
#[derive(Clone, Debug, Default)]
pub(super) struct Recent(Arc<Mutex<Ring>>);

/// Every revision after one, up to the newest.
#[derive(Debug, Default)]
pub(super) struct Ring {
    after: Revision,
    events: VecDeque<Arc<Event>>,
    changes: usize,
    keep: usize,
    closed: bool,
}

impl Ring {
    /// Begins after a revision, to keep at most so many.
    pub(super) fn after(revision: Revision, keep: u64) -> Self {
        let keep = usize::try_from(keep).unwrap_or(usize::MAX);
        Self { after: revision, keep, ..Self::default() }
    }

    /// Adds the revision after the newest.
    pub(super) fn push(&mut self, event: Event) {
        self.changes += event.changes.len();
        self.events.push_back(Arc::new(event));
        while self.changes > CHANGES || self.events.len() > self.keep {
            let Some(oldest) = self.events.pop_front() else { break };
            self.changes -= oldest.changes.len();
            self.after = oldest.revision;
        }
    }
}

impl Recent {
    /// Adds the revision after the newest.
    pub(super) fn push(&self, event: Event) {
        self.lock().push(event);
    }

    /// Begins anew with what the file has.
    pub(super) fn replace(&self, ring: Ring) {
        *self.lock() = ring;
    }

    /// Gives nothing any more: the store is closed.
    pub(super) fn close(&self) {
        let mut ring = self.lock();
        *ring = Ring { closed: true, ..Ring::default() };
    }

    /// Up to `limit` revisions after `after`; `None` if only the file can tell.
    pub(super) fn get(&self, after: Revision, limit: usize) -> Option<Vec<Arc<Event>>> {
        let ring = self.lock();
        let skip = usize::try_from(after.0.checked_sub(ring.after.0)?).ok()?;
        if ring.closed || skip > ring.events.len() {
            return None;
        }
        Some(ring.events.iter().skip(skip).take(limit).cloned().collect())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Ring> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Write;

    fn event(revision: u64, keys: usize) -> Event {
        let changes = (0..keys).map(|n| (n.to_string(), Write::Delete)).collect();
        Event { revision: Revision(revision), changes }
    }

    #[test]
    fn it_tells_what_it_has_and_says_when_only_the_file_knows() {
        let recent = Recent::default();
        recent.replace(Ring::after(Revision(4), 5));
        let get = |after| {
            let events = recent.get(Revision(after), 10)?;
            Some(events.iter().map(|event| event.revision.0).collect::<Vec<_>>())
        };
        assert_eq!(get(4), Some(vec![]));
        recent.push(event(5, 1));
        recent.push(event(6, 1));
        assert_eq!([get(3), get(4), get(6), get(7)], [None, Some(vec![5, 6]), Some(vec![]), None]);
        assert_eq!(recent.get(Revision(4), 1).unwrap().len(), 1);
        recent.push(event(7, CHANGES));
        assert_eq!([get(5), get(6)], [None, Some(vec![7])], "it is bounded by keys");
        (8..13).for_each(|revision| recent.push(event(revision, 0)));
        assert_eq!([get(6), get(11)], [None, Some(vec![12])], "and by revisions");
        recent.close();
        assert_eq!(get(6), None);
    }
}

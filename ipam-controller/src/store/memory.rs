//! Pure: a store in memory for tests: small, working, and as strict as the real one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::watch;

use super::{
    CommitError, Event, Key, Outcome, ReadError, Revision, Seen, Snapshot, Store, Txn, Versioned,
    Watch, WatchError, Write,
};

/// The store; clones are the same store.
#[derive(Clone, Debug)]
pub(crate) struct Memory {
    inner: Arc<Mutex<Inner>>,
    head: watch::Sender<Revision>,
    log_revisions: u64,
}

#[derive(Debug, Default)]
struct Inner {
    keys: BTreeMap<Key, Versioned>,
    log: BTreeMap<Revision, BTreeMap<Key, Write>>,
    compacted: Revision,
    closed: bool,
}

impl Memory {
    /// Makes a store whose change log keeps so many revisions.
    pub(crate) fn new(log_revisions: u64) -> Self {
        let store =
            Self { inner: Arc::default(), head: watch::channel(Revision(0)).0, log_revisions };
        let identity = Write::Put("\"00000000000000000000000000000001\"".into());
        let writes = [(crate::keys::STORE_ID.to_owned(), identity)].into();
        let _ = store.carry_out(&[Txn { compares: BTreeMap::new(), writes }]);
        store
    }

    fn carry_out(&self, batch: &[Txn]) -> Vec<Outcome> {
        let mut inner = self.lock();
        let mut revision = *self.head.borrow();
        let mut outcomes = Vec::new();
        for txn in batch {
            if let Some(key) = inner.conflict(txn) {
                outcomes.push(Outcome::Conflict(key));
                continue;
            }
            let changes = inner.write(txn, revision.next());
            if !changes.is_empty() {
                revision = revision.next();
                inner.log.insert(revision, changes);
            }
            outcomes.push(Outcome::Committed(revision));
        }
        let threshold = Revision(revision.0.saturating_sub(self.log_revisions));
        if threshold > inner.compacted {
            inner.log = inner.log.split_off(&threshold.next());
            inner.compacted = threshold;
        }
        drop(inner);
        self.head.send_replace(revision);
        outcomes
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn conflict(&self, txn: &Txn) -> Option<Key> {
        txn.compares.iter().find_map(|(key, seen)| {
            let found = self.keys.get(key).map_or(Seen::Absent, |value| Seen::At(value.revision));
            (found != *seen).then(|| key.clone())
        })
    }

    fn write(&mut self, txn: &Txn, revision: Revision) -> BTreeMap<Key, Write> {
        let mut changes = BTreeMap::new();
        for (key, write) in &txn.writes {
            let effective = match write {
                Write::Put(value) => {
                    self.keys.insert(key.clone(), Versioned { value: value.clone(), revision });
                    true
                }
                Write::Delete => self.keys.remove(key).is_some(),
            };
            if effective {
                changes.insert(key.clone(), write.clone());
            }
        }
        changes
    }
}

impl Store for Memory {
    fn read<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Snapshot, ReadError>> {
        async move {
            let inner = self.lock();
            if inner.closed {
                return Err(ReadError("the store is closed".into()));
            }
            let entries = inner
                .keys
                .range(prefix.to_owned()..)
                .take_while(|(key, _)| key.starts_with(prefix))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect();
            Ok(Snapshot { revision: *self.head.borrow(), entries })
        }
        .boxed()
    }

    fn commit(&self, batch: Vec<Txn>) -> BoxFuture<'_, Result<Vec<Outcome>, CommitError>> {
        async move {
            if self.lock().closed {
                return Err(CommitError::NotDone("the store is closed".into()));
            }
            Ok(self.carry_out(&batch))
        }
        .boxed()
    }

    fn watch(&self, after: Revision) -> BoxFuture<'_, Result<Box<dyn Watch>, WatchError>> {
        async move {
            let mut watch = MemoryWatch { store: self.clone(), head: self.head.subscribe(), after };
            watch.after_next()?;
            let watch: Box<dyn Watch> = Box::new(watch);
            Ok(watch)
        }
        .boxed()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        async move { self.lock().closed = true }.boxed()
    }
}

struct MemoryWatch {
    store: Memory,
    head: watch::Receiver<Revision>,
    after: Revision,
}

impl MemoryWatch {
    fn after_next(&mut self) -> Result<Option<Event>, WatchError> {
        let inner = self.store.lock();
        let (wanted, newest) = (self.after, *self.head.borrow());
        if inner.closed {
            return Err(WatchError::Cut("the store is closed".into()));
        }
        if wanted < inner.compacted {
            return Err(WatchError::Compacted { wanted, oldest: inner.compacted });
        }
        if wanted > newest {
            return Err(WatchError::Ahead { wanted, newest });
        }
        Ok(inner
            .log
            .range(wanted.next()..)
            .next()
            .map(|(revision, changes)| Event { revision: *revision, changes: changes.clone() }))
    }
}

impl Watch for MemoryWatch {
    fn next(&mut self) -> BoxFuture<'_, Result<Event, WatchError>> {
        async move {
            loop {
                if let Some(event) = self.after_next()? {
                    self.after = event.revision;
                    return Ok(event);
                }
                let after = self.after;
                if self.head.wait_for(|head| *head > after).await.is_err() {
                    return Err(WatchError::Cut("the store is closed".into()));
                }
            }
        }
        .boxed()
    }
}

//! Pure: a store in memory for tests: small, working, and as strict as the real one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::watch;

use super::{
    CommitError, Event, Key, Outcome, Page, Pages, ReadError, Revision, Seen, Store, Txn,
    Versioned, Watch, WatchError, Write, disjoint,
};

/// How many keys a page has: few, so that tests see several.
const PAGE: usize = 3;

/// The store as one of its clients has it; clones are the same client.
#[derive(Clone, Debug)]
pub(crate) struct Memory {
    inner: Arc<Mutex<Inner>>,
    head: watch::Sender<Revision>,
    log_revisions: u64,
    client: Option<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    keys: BTreeMap<Key, Versioned>,
    log: BTreeMap<Revision, BTreeMap<Key, Write>>,
    compacted: Revision,
    closed: BTreeSet<Option<u64>>,
    clients: u64,
    ephemeral: BTreeMap<Key, Option<u64>>,
}

impl Memory {
    /// Makes a store whose change log keeps so many revisions, with one client.
    pub(crate) fn new(log_revisions: u64) -> Self {
        let head = watch::channel(Revision(0)).0;
        let store = Self { inner: Arc::default(), head, log_revisions, client: None };
        let identity = Write::Put("\"00000000000000000000000000000001\"".into());
        let writes = [(crate::keys::STORE_ID.to_owned(), identity)].into();
        let _ = store.carry_out(&[Txn { writes, ..Txn::default() }]);
        store
    }

    /// Makes another client of the same store, which then is one of several.
    pub(crate) fn another(&self) -> Self {
        let mut inner = self.lock();
        inner.clients += 1;
        Self { client: Some(inner.clients), ..self.clone() }
    }

    /// Lets the lease of this client end: its ephemeral keys go.
    pub(crate) fn lapse(&self) {
        let inner = self.lock();
        let lapsed: Vec<Key> = inner
            .ephemeral
            .iter()
            .filter(|(_, client)| **client == self.client)
            .map(|(key, _)| key.clone())
            .collect();
        drop(inner);
        let writes = lapsed.into_iter().map(|key| (key, Write::Delete)).collect();
        let _ = self.carry_out(&[Txn { writes, ..Txn::default() }]);
    }

    fn carry_out(&self, batch: &[Txn]) -> Vec<Outcome> {
        let mut inner = self.lock();
        let mut revision = *self.head.borrow();
        let next = revision.next();
        let conflicts: Vec<_> = batch.iter().map(|txn| inner.conflict(txn)).collect();
        let mut changes = BTreeMap::new();
        for (txn, _) in batch.iter().zip(&conflicts).filter(|(_, conflict)| conflict.is_none()) {
            changes.extend(inner.write(txn, next, self.client));
        }
        if !changes.is_empty() {
            revision = next;
            inner.log.insert(revision, changes);
        }
        let outcome = |conflict: Option<Key>| match conflict {
            Some(key) => Outcome::Conflict(key),
            None => Outcome::Committed(revision),
        };
        let outcomes = conflicts.into_iter().map(outcome).collect();
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
        let changed = txn.compares.iter().find_map(|(key, seen)| {
            let found = self.keys.get(key).map_or(Seen::Absent, |value| Seen::At(value.revision));
            (found != *seen).then(|| key.clone())
        });
        changed.or_else(|| {
            txn.quiet.iter().find_map(|quiet| {
                let mut range = self.keys.range(quiet.from.clone()..quiet.to.clone());
                range.find(|(_, value)| value.revision > quiet.since).map(|(key, _)| key.clone())
            })
        })
    }

    fn write(
        &mut self,
        txn: &Txn,
        revision: Revision,
        client: Option<u64>,
    ) -> BTreeMap<Key, Write> {
        let mut changes = BTreeMap::new();
        for (key, write) in &txn.writes {
            let was_ephemeral = self.ephemeral.remove(key);
            let told = match write {
                Write::Put(value) | Write::Ephemeral(value) => {
                    if matches!(write, Write::Ephemeral(_)) {
                        self.ephemeral.insert(key.clone(), client);
                    }
                    self.keys.insert(key.clone(), Versioned { value: value.clone(), revision });
                    Write::Put(value.clone())
                }
                Write::Delete if self.keys.remove(key).is_some() => Write::Delete,
                Write::Delete => {
                    debug_assert!(was_ephemeral.is_none(), "what is ephemeral is there");
                    continue;
                }
            };
            changes.insert(key.clone(), told);
        }
        changes
    }
}

impl Store for Memory {
    fn read<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Box<dyn Pages>, ReadError>> {
        async move {
            let inner = self.lock();
            if inner.closed.contains(&self.client) {
                return Err(ReadError("the store is closed".into()));
            }
            let entries: Page = inner
                .keys
                .range(prefix.to_owned()..)
                .take_while(|(key, _)| key.starts_with(prefix))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect();
            let revision = *self.head.borrow();
            let pages: Box<dyn Pages> = Box::new(MemoryPages { revision, entries });
            Ok(pages)
        }
        .boxed()
    }

    fn commit(&self, batch: Vec<Txn>) -> BoxFuture<'_, Result<Vec<Outcome>, CommitError>> {
        async move {
            if self.lock().closed.contains(&self.client) {
                return Err(CommitError::NotDone("the store is closed".into()));
            }
            disjoint(&batch)?;
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

    fn is_shared(&self) -> bool {
        self.client.is_some()
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        async move {
            self.lapse();
            self.lock().closed.insert(self.client);
        }
        .boxed()
    }
}

struct MemoryPages {
    revision: Revision,
    entries: Page,
}

impl Pages for MemoryPages {
    fn revision(&self) -> Revision {
        self.revision
    }

    fn next(&mut self) -> BoxFuture<'_, Result<Option<Page>, ReadError>> {
        let rest = self.entries.split_off(self.entries.len().min(PAGE));
        let page = std::mem::replace(&mut self.entries, rest);
        std::future::ready(Ok((!page.is_empty()).then_some(page))).boxed()
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
        if inner.closed.contains(&self.store.client) {
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

//! Edge: how the task hears what other controllers write, and makes sure that it has heard all.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join;
use tokio::time::{self, Instant};
use tracing::{info, warn};

use super::LoadError;
use super::keeper::Keeper;
use crate::draft::Draft;
use crate::keys::Subject;
use crate::state::{Loader, State};
use crate::store::{Event, Outcome, Revision, Store, Watch, WatchError};
use crate::watch::Told;

/// How long the news of a revision may take before a mark is made whose news cannot fail to come:
/// others may keep things of their own in a store, which move its revision and are no news.
const NEWS: Duration = Duration::from_millis(50);

/// How long a controller tries to hear of a revision before it tells its callers to ask again.
const PATIENCE: Duration = Duration::from_secs(5);

/// Reads all that a store has, part by part.
pub(super) async fn read(store: &dyn Store) -> Result<State, LoadError> {
    let mut pages = store.read("").await?;
    let mut loader = Loader::new(pages.revision());
    let mut page = pages.next().await?;
    while let Some(current) = page {
        // The store reads on while this part is taken in.
        let taking = async { current.into_iter().try_for_each(|(key, it)| loader.take(&key, it)) };
        let (next, taken) = join(pages.next(), taking).await;
        taken?;
        page = next?;
    }
    Ok(loader.finish()?)
}

/// What is known of the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sync {
    /// The store had all of it.
    Good,
    /// The store had all of it, and may have more that this controller itself sent.
    Doubtful,
    /// It is not to be used.
    Lost,
}

/// A watch of the store, opened when it is first needed and again after it was cut.
pub(super) struct Ear {
    store: Arc<dyn Store>,
    watch: Option<Box<dyn Watch>>,
}

impl Ear {
    pub(super) fn new(store: Arc<dyn Store>) -> Self {
        Self { store, watch: None }
    }

    /// Opens the watch after a revision, if it is not open.
    async fn open(&mut self, after: Revision) -> Result<(), WatchError> {
        if self.watch.is_none() {
            self.watch = Some(self.store.watch(after).await?);
        }
        Ok(())
    }

    /// Returns the next change after a revision. Dropping the future loses nothing.
    pub(super) async fn next(&mut self, after: Revision) -> Result<Event, WatchError> {
        loop {
            self.open(after).await?;
            let Some(watch) = &mut self.watch else { continue };
            match watch.next().await {
                // What this controller wrote itself it knows already.
                Ok(event) if event.revision <= after => {}
                Ok(event) => return Ok(event),
                Err(error) => {
                    self.watch = None;
                    return Err(error);
                }
            }
        }
    }

    /// Forgets the watch: the next change is looked for anew.
    pub(super) fn close(&mut self) {
        self.watch = None;
    }
}

impl Keeper {
    /// Takes in what was heard, or what kept it from being heard.
    pub(super) fn hear(&mut self, heard: Result<Event, WatchError>) {
        match heard {
            Ok(event) => self.take_in(&event),
            Err(error @ WatchError::Cut(_)) => {
                let cause: &(dyn Error + 'static) = &error;
                warn!(error = cause, "the store's changes cannot be followed just now");
                self.sync = Sync::Doubtful;
            }
            Err(error @ (WatchError::Compacted { .. } | WatchError::Ahead { .. })) => {
                let cause: &(dyn Error + 'static) = &error;
                warn!(error = cause, "the store is to be read anew");
                self.sync = Sync::Lost;
            }
        }
    }

    fn take_in(&mut self, event: &Event) {
        let effects = match self.state.apply(event.revision, &event.changes) {
            Ok(effects) => effects,
            Err(error) => {
                let cause: &(dyn Error + 'static) = &error;
                warn!(error = cause, "another controller wrote what this one cannot read");
                self.sync = Sync::Lost;
                return;
            }
        };
        if effects.touched.contains(&Subject::StoreId) {
            self.sync = Sync::Lost;
            return;
        }
        if effects.touched.contains(&Subject::Clock) {
            self.ticked = Instant::now();
        }
        let told = Told::of(&self.state, effects);
        self.tell(self.state.store(), told);
    }

    /// Hears everything up to a revision that the store has, or finds out that it cannot.
    pub(super) async fn catch_up(&mut self, until: Revision) {
        if time::timeout(PATIENCE, self.listen(until)).await.is_err() {
            warn!(revision = %until, "the store's changes do not come");
            self.sync = Sync::Doubtful;
        }
        if !self.store.is_shared() {
            // Nobody else writes: it knows everything again, and does not follow.
            self.ear.close();
        }
    }

    async fn listen(&mut self, mut until: Revision) {
        while self.state.revision() < until && self.sync != Sync::Lost {
            let after = self.state.revision();
            // That it takes long to open a watch says nothing of what it will tell.
            let heard = match self.ear.open(after).await {
                Ok(()) => time::timeout(NEWS, self.ear.next(after)).await,
                Err(error) => Ok(Err(error)),
            };
            match heard {
                Ok(Err(WatchError::Cut(_))) => time::sleep(NEWS).await,
                Ok(heard) => self.hear(heard),
                Err(_) => until = self.mark().await.unwrap_or(until).max(until),
            }
        }
    }

    /// Hears everything that the store has by now.
    pub(super) async fn freshen(&mut self) {
        if self.sync == Sync::Lost {
            self.reload().await;
            return;
        }
        self.sync = Sync::Good;
        match time::timeout(PATIENCE, self.mark()).await {
            Ok(Some(mark)) => self.catch_up(mark).await,
            Ok(None) | Err(_) if self.sync == Sync::Lost => {}
            Ok(None) | Err(_) => self.sync = Sync::Doubtful,
        }
        if self.sync == Sync::Lost {
            self.reload().await;
        }
    }

    /// Writes something whose news cannot fail to come after that of everything before it.
    async fn mark(&mut self) -> Option<Revision> {
        let mut draft = Draft::default();
        draft.put(&Subject::Mark, &self.state.revision().0);
        match self
            .store
            .commit(vec![draft.into_txn()])
            .await
            .map(|outcomes| outcomes.into_iter().next())
        {
            Ok(Some(Outcome::Committed(revision))) => Some(revision),
            Ok(Some(Outcome::Conflict(key))) => {
                // It relies on nothing but on the store's being the one that was read.
                warn!(key, "the store was replaced by another one");
                self.sync = Sync::Lost;
                None
            }
            Ok(None) => None,
            Err(error) => {
                let cause: &(dyn Error + 'static) = &error;
                warn!(error = cause, "the store does not say what it has");
                None
            }
        }
    }

    /// Makes sure that the state is what the store had when this was called. Returns whether it is.
    pub(super) async fn resync(&mut self) -> bool {
        match self.sync {
            Sync::Good => {}
            Sync::Doubtful => self.freshen().await,
            Sync::Lost => self.reload().await,
        }
        self.sync == Sync::Good
    }

    /// Reads everything again.
    async fn reload(&mut self) {
        self.ear.close();
        match read(&*self.store).await {
            Ok(state) => {
                info!(revision = %state.revision(), "the store was read again");
                self.feed.reset();
                self.state = state;
                self.ticked = Instant::now();
                self.tellers.head.send_replace(self.state.revision());
                self.sync = Sync::Good;
            }
            Err(error) => {
                let cause: &(dyn Error + 'static) = &error;
                warn!(error = cause, "cannot read the store again");
            }
        }
    }
}

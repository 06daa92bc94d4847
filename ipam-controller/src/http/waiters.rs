//! Pure: who waits for the answer to which question, so that whoever is last takes it back.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use limpet_api::book::AttachmentRef;
use limpet_net_types::Uid;

/// How many wait for the answer about each incarnation.
#[derive(Clone, Debug, Default)]
pub(crate) struct Waiters(Arc<Mutex<HashMap<Uid, usize>>>);

/// The questions that one request waits for; clones are of the same request.
#[derive(Clone, Debug)]
pub(super) struct Questions {
    waiters: Waiters,
    asked: Arc<Mutex<Vec<AttachmentRef>>>,
}

impl Waiters {
    /// Begins a request, which waits for nothing yet.
    pub(super) fn begin(&self) -> Questions {
        Questions { waiters: self.clone(), asked: Arc::default() }
    }

    /// Whether any request waits for what is said of this incarnation.
    pub(super) fn any(&self, uid: Uid) -> bool {
        self.counts().contains_key(&uid)
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<Uid, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Questions {
    /// Waits for what is said of an attachment, from now on.
    ///
    /// It is said where the question is decided, before the question is written: in between no
    /// other can find it without anybody who waits.
    pub(super) fn wait(&self, about: &AttachmentRef) {
        let mut asked = self.asked();
        if asked.iter().all(|other| other.uid != about.uid) {
            asked.push(about.clone());
            *self.waiters.counts().entry(about.uid).or_default() += 1;
        }
    }

    /// Waits no more, and returns what was waited for.
    pub(super) fn leave(&self) -> Vec<AttachmentRef> {
        let asked = std::mem::take(&mut *self.asked());
        let mut counts = self.waiters.counts();
        for AttachmentRef { uid, .. } in &asked {
            match counts.get_mut(uid) {
                Some(count) if *count > 1 => *count -= 1,
                _ => drop(counts.remove(uid)),
            }
        }
        asked
    }

    fn asked(&self) -> MutexGuard<'_, Vec<AttachmentRef>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

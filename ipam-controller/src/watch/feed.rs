//! Pure: who watches, and what has been told lately.
//!
//! A watcher has a bounded queue. One that does not keep up is cut, and resumes from the last
//! revision that it knows; nothing is buffered for it without end.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use limpet_api::{ApiError, ErrorCode};
use limpet_net_types::{HostName, Token};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Line, Told, shared_snapshot};
use crate::keys::Subject;
use crate::state::State;
use crate::store::Revision;

/// How many lines may wait for a watcher before it is cut.
const QUEUE: usize = 1024;

/// How many revisions are kept in memory for watchers that come back.
const KEPT: usize = 4096;

/// How large these may be together, in bytes: a revision may have hundreds of claims. Who comes
/// back later is served from the change log.
const MOST_KEPT: usize = 16 << 20;

/// A host that wants to watch.
#[derive(Debug)]
pub(crate) struct Watcher {
    /// The host.
    pub(crate) host: HostName,
    /// What it knows.
    pub(crate) knows: Knows,
    /// Ends its connection, which may be stuck where no end of a queue is noticed.
    pub(crate) hangup: CancellationToken,
}

/// What a host knows when it begins to watch.
#[derive(Clone, Debug)]
pub(crate) enum Knows {
    /// Nothing, or nothing of use.
    Nothing,
    /// Everything up to this revision of this store.
    UpTo(Token, Revision),
    /// Everything up to a revision, and that these are all that changed from then up to this
    /// one: the change log was read for it.
    Logged(Token, Revision, BTreeSet<Subject>),
}

/// How a watch begins.
#[derive(Debug)]
pub(crate) enum Beginning {
    /// With these lines, then with what the queue brings.
    Lines {
        /// The store's identity.
        store: Token,
        /// The revision up to which the host knows everything after `first`.
        revision: Revision,
        /// What is sent first.
        first: Vec<Line>,
        /// What is sent then.
        queue: mpsc::Receiver<Line>,
    },
    /// The change log is to be read from the host's revision on.
    ReadLog,
}

struct Listener {
    queue: mpsc::Sender<Line>,
    hangup: CancellationToken,
}

/// Those who watch, and what they may come back for.
#[derive(Default)]
pub(crate) struct Feed {
    kept: VecDeque<Told>,
    /// What is kept, in bytes.
    size: usize,
    listeners: BTreeMap<HostName, Vec<Listener>>,
    /// The part of a snapshot that is the same for all, until it changes.
    shared: Option<Bytes>,
}

impl Feed {
    /// Tells everybody concerned of a revision that is durable.
    pub(crate) fn tell(&mut self, store: Token, told: Told) {
        if let Some(shared) = &told.shared {
            self.shared = None;
            let all = Line::changes(store, told.revision, Some(shared), None);
            self.listeners.retain(|host, listeners| {
                let own = told.own.contains_key(host).then(|| told.line(store, host)).flatten();
                keep(listeners, own.as_ref().unwrap_or(&all))
            });
        } else {
            for host in told.own.keys() {
                let Some(listeners) = self.listeners.get_mut(host) else { continue };
                let Some(line) = told.line(store, host) else { continue };
                if !keep(listeners, &line) {
                    self.listeners.remove(host);
                }
            }
        }
        self.size += told.size();
        self.kept.push_back(told);
        while self.kept.len() > KEPT || self.size > MOST_KEPT {
            let Some(gone) = self.kept.pop_front() else { break };
            self.size -= gone.size();
        }
    }

    /// Cuts everybody and forgets everything: what was told may not be all that happened.
    pub(crate) fn reset(&mut self) {
        for listener in self.listeners.values().flatten() {
            listener.hangup.cancel();
        }
        *self = Self::default();
    }

    /// Begins a watch.
    ///
    /// # Errors
    ///
    /// `host-not-found`, or `unavailable` if the host knows more than there is.
    pub(crate) fn begin(&mut self, state: &State, watcher: Watcher) -> Result<Beginning, ApiError> {
        let Watcher { host, knows, hangup } = watcher;
        if state.host(&host).is_none() {
            let text = format!("there is no host {host}");
            return Err(ApiError::new(ErrorCode::HostNotFound, text));
        }
        let first = match knows {
            Knows::UpTo(store, since) if store == state.store() => {
                match self.replay(state, &host, since)? {
                    Some(lines) => lines,
                    None => return Ok(Beginning::ReadLog),
                }
            }
            Knows::Logged(store, since, touched) if store == state.store() => {
                match self.caught_up(state, &host, since, touched)? {
                    Some(line) => vec![line],
                    None => return Ok(Beginning::ReadLog),
                }
            }
            Knows::Nothing | Knows::UpTo(..) | Knows::Logged(..) => {
                let shared = self.shared.get_or_insert_with(|| shared_snapshot(state));
                vec![Line::snapshot(state, &host, shared)]
            }
        };
        let (sender, queue) = mpsc::channel(QUEUE);
        let listeners = self.listeners.entry(host).or_default();
        // Who has gone is noticed when it is sent something, which may be long after.
        listeners.retain(|listener| !listener.queue.is_closed());
        listeners.push(Listener { queue: sender, hangup });
        Ok(Beginning::Lines { store: state.store(), revision: state.revision(), first, queue })
    }

    /// The lines since a revision, one for each, if all of them are kept.
    fn replay(
        &self,
        state: &State,
        host: &HostName,
        since: Revision,
    ) -> Result<Option<Vec<Line>>, ApiError> {
        let Some(missed) = self.missed(state, since)? else { return Ok(None) };
        Ok(Some(missed.filter_map(|told| told.line(state.store(), host)).collect()))
    }

    /// One line for all that was read from the log up to `since` and happened afterwards.
    fn caught_up(
        &self,
        state: &State,
        host: &HostName,
        since: Revision,
        mut touched: BTreeSet<Subject>,
    ) -> Result<Option<Line>, ApiError> {
        let Some(missed) = self.missed(state, since)? else { return Ok(None) };
        let mut ended = Vec::new();
        for told in missed {
            touched.extend(told.touched.iter().cloned());
            ended.extend(told.ended.iter().cloned());
        }
        Ok(Some(Line::caught_up(state, host, &touched, &ended)))
    }

    /// What was told after a revision; `None` if not all of it is kept.
    fn missed(
        &self,
        state: &State,
        since: Revision,
    ) -> Result<Option<impl Iterator<Item = &Told>>, ApiError> {
        if since > state.revision() {
            let text = format!(
                "the store is at revision {}, before revision {since} that the host knows: it was \
                 set back, or this controller is behind",
                state.revision()
            );
            return Err(ApiError::new(ErrorCode::Unavailable, text));
        }
        let oldest = self.kept.front().map_or(state.revision().next(), |told| told.revision);
        if since.next() < oldest {
            return Ok(None);
        }
        Ok(Some(self.kept.iter().filter(move |told| told.revision > since)))
    }
}

/// Sends a line to each, and drops those that have gone or did not keep up. Returns whether any
/// are left.
fn keep(listeners: &mut Vec<Listener>, line: &Line) -> bool {
    listeners.retain(|listener| match listener.queue.try_send(line.clone()) {
        Ok(()) => true,
        Err(mpsc::error::TrySendError::Closed(_)) => false,
        Err(mpsc::error::TrySendError::Full(_)) => {
            listener.hangup.cancel();
            false
        }
    });
    !listeners.is_empty()
}

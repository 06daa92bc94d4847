//! Edge: the watch: lines of JSON for as long as a host listens.

use std::collections::{BTreeSet, VecDeque};
use std::convert::Infallible;
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::State as Shared;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use limpet_api::host::{HEARTBEAT_SECONDS, WatchQuery};
use limpet_api::{ApiError, ErrorCode};
use limpet_net_types::{HostName, Token};
use tokio::sync::{mpsc, watch};
use tokio::time::{self, Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::extract::{Params, Query};
use super::serve::Hangup;
use super::{App, Failure};
use crate::keys::Subject;
use crate::store::{Revision, Store, WatchError, Write};
use crate::watch::Line;
use crate::watch::feed::{Beginning, Knows, Watcher};

/// How often a watcher hears that there is nothing new.
const HEARTBEAT: Duration = Duration::from_secs(HEARTBEAT_SECONDS);

/// How often the change log is read for one watcher that the store runs away from.
const READS: usize = 3;

/// How many things may have changed in the log before a snapshot is the shorter story.
const MOST_TOUCHED: usize = 20_000;

/// How long the log may take to tell of the next change. In a store that others use as well, the
/// newest revision may be theirs, of which it never tells.
const LOG_LIMIT: Duration = Duration::from_secs(1);

pub(super) async fn watch(
    Shared(app): Shared<App>,
    Extension(Hangup(hangup)): Extension<Hangup>,
    Params(host): Params<HostName>,
    Query(query): Query<WatchQuery>,
) -> Result<Response, Failure> {
    let knows = match (query.store, query.since) {
        (Some(store), Some(since)) => Knows::UpTo(store, Revision(since)),
        (None, None) => Knows::Nothing,
        _ => {
            let text = "store and since go together: a revision is of one store";
            return Err(ApiError::new(ErrorCode::BadRequest, text).into());
        }
    };
    let watching = begin(&app, host, knows, hangup).await?;
    let lines = stream::unfold(watching, |mut watching| async {
        let part = watching.next().await?;
        Some((Ok::<Bytes, Infallible>(part), watching))
    });
    let kind = [(CONTENT_TYPE, "application/x-ndjson")];
    Ok((kind, Body::from_stream(lines)).into_response())
}

async fn begin(
    app: &App,
    host: HostName,
    mut knows: Knows,
    hangup: CancellationToken,
) -> Result<Watching, ApiError> {
    for read in 0..=READS {
        if read == READS {
            knows = Knows::Nothing;
        }
        let watcher = Watcher { host: host.clone(), knows: knows.clone(), hangup: hangup.clone() };
        match app.book.watch(watcher).await? {
            Beginning::Lines { store, revision, first, queue } => {
                let mut beats = time::interval(HEARTBEAT);
                beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
                if !first.is_empty() {
                    beats.reset();
                }
                return Ok(Watching {
                    store,
                    told: revision,
                    parts: VecDeque::new(),
                    first: first.into(),
                    queue,
                    head: app.book.head(),
                    beats,
                    stop: app.stop.clone(),
                });
            }
            Beginning::ReadLog => knows = from_log(app, &host, knows).await?,
        }
    }
    Err(ApiError::new(ErrorCode::Unavailable, "the store changes too fast to begin a watch"))
}

/// Reads what changed from the host's revision up to the newest one.
async fn from_log(app: &App, host: &HostName, knows: Knows) -> Result<Knows, ApiError> {
    let (store, since, touched) = match knows {
        Knows::Nothing => return Ok(Knows::Nothing),
        Knows::UpTo(store, since) => (store, since, BTreeSet::new()),
        Knows::Logged(store, since, touched) => (store, since, touched),
    };
    let head = *app.book.head().borrow();
    match read_log(&*app.store, host, (since, head), touched).await {
        Ok(Some(touched)) => Ok(Knows::Logged(store, head, touched)),
        Ok(None) | Err(WatchError::Compacted { .. }) => Ok(Knows::Nothing),
        Err(error @ (WatchError::Ahead { .. } | WatchError::Cut(_))) => {
            Err(ApiError::new(ErrorCode::Unavailable, error.to_string()))
        }
    }
}

/// Collects what was changed after the first revision up to the second; `None` if the log does
/// not tell all that the host must hear, or too much.
async fn read_log(
    store: &dyn Store,
    host: &HostName,
    (since, head): (Revision, Revision),
    mut touched: BTreeSet<Subject>,
) -> Result<Option<BTreeSet<Subject>>, WatchError> {
    let mut watch = store.watch(since).await?;
    let mut at = since;
    while at < head {
        let Ok(event) = time::timeout(LOG_LIMIT, watch.next()).await else { return Ok(None) };
        let event = event?;
        at = event.revision;
        for (key, write) in event.changes {
            let Ok(subject) = Subject::parse(&key) else { return Ok(None) };
            // The log says that an attachment ended, but not which incarnation it was.
            if let (Subject::Attachment(key), Write::Delete) = (&subject, &write)
                && key.host == *host
            {
                return Ok(None);
            }
            touched.insert(subject);
        }
        if touched.len() > MOST_TOUCHED {
            return Ok(None);
        }
    }
    Ok(Some(touched))
}

/// A watch under way.
struct Watching {
    store: Token,
    told: Revision,
    /// What is left of the line that is being sent.
    parts: VecDeque<Bytes>,
    first: VecDeque<Line>,
    queue: mpsc::Receiver<Line>,
    head: watch::Receiver<Revision>,
    beats: Interval,
    stop: CancellationToken,
}

impl Watching {
    /// Returns the next part of a line, or nothing when the watch is cut or the controller stops,
    /// which is between two lines.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(part) = self.parts.pop_front() {
                return Some(part);
            }
            let line = self.line().await?;
            self.parts.extend(line.parts.into_iter().filter(|part| !part.is_empty()));
        }
    }

    async fn line(&mut self) -> Option<Line> {
        if let Some(line) = self.first.pop_front() {
            return Some(line);
        }
        // All may be dropped: a line is taken out of the queue only when its arm runs.
        tokio::select! {
            biased;
            () = self.stop.cancelled() => None,
            line = self.queue.recv() => line.map(|line| self.tell(line)),
            _ = self.beats.tick() => Some(self.beat()),
        }
    }

    fn tell(&mut self, line: Line) -> Line {
        self.told = self.told.max(line.revision);
        self.beats.reset();
        line
    }

    /// The head is read before the queue: whatever it counts as told was in the queue by then.
    fn beat(&mut self) -> Line {
        let head = *self.head.borrow();
        if let Ok(line) = self.queue.try_recv() {
            return self.tell(line);
        }
        self.told = self.told.max(head);
        Line::heartbeat(self.store, self.told)
    }
}

//! Edge: a backup on its way out, read from the store page by page, and one on its way in.

use std::fs::File;
use std::io::{self, Write};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State as Shared};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use limpet_api::backup::{FORMAT, Header, Writer};
use limpet_api::restore::{RestoreLine, RestoreStatus, Restoring};
use limpet_api::{ApiError, ErrorCode};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tracing::{info, warn};

use super::restored::describe;
use super::{App, Failure};
use crate::backup::file::{Backup, unreadable};
use crate::backup::restoring::{self, Stored};
use crate::backup::{holds, is_kept};
use crate::keys::Subject;
use crate::random;
use crate::state::State;
use crate::store::{Page, Pages};

/// How many transactions of a restore are decided at once.
const AT_ONCE: usize = 16;

/// How long nothing of a backup may arrive before it counts as broken off.
const IDLE: Duration = Duration::from_secs(30);

/// How many lines may wait for a caller who reads slowly.
const QUEUE: usize = 16;

/// How many keys one transaction deletes.
const ERASED: usize = 100;

pub(super) async fn backup(Shared(app): Shared<App>) -> Result<Response, Failure> {
    let begins = |state: &State| (state.store(), state.now(), state.wall());
    let (store, fleet_time, created) = app.book.read(begins).await?;
    let pages = app.store.read("").await.map_err(|error| {
        let text = format!("the store cannot be read: {:#}", anyhow::Error::from(error));
        ApiError::new(ErrorCode::Unavailable, text)
    })?;
    let header = Header {
        limpet_backup: FORMAT,
        store,
        revision: pages.revision().0,
        fleet_time,
        created,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let mut first = Vec::new();
    let identity = format!("\"{store}\"").into();
    let writing = Writing { writer: Writer::begin(&header, &mut first), pages, identity };
    let begun = stream::once(async { Ok(Bytes::from(first)) });
    let rest = stream::try_unfold(Some(writing), |writing| async {
        match writing {
            Some(writing) => writing.next().await.map(Some),
            None => Ok(None),
        }
    });
    let kind = [(CONTENT_TYPE, "application/x-ndjson")];
    Ok((kind, Body::from_stream(begun.chain(rest))).into_response())
}

/// A backup under way.
struct Writing {
    writer: Writer,
    pages: Box<dyn Pages>,
    identity: Bytes,
}

impl Writing {
    /// Returns the lines of the next page, or the last line.
    async fn next(mut self) -> io::Result<(Bytes, Option<Self>)> {
        let mut out = Vec::new();
        let Some(page) = self.pages.next().await.map_err(io::Error::other)? else {
            info!(keys = self.writer.keys(), "backed up");
            self.writer.end(&mut out);
            return Ok((out.into(), None));
        };
        self.add(page, &mut out)?;
        Ok((out.into(), Some(self)))
    }

    fn add(&mut self, page: Page, out: &mut Vec<u8>) -> io::Result<()> {
        for (key, stored) in page {
            let subject = Subject::parse(&key).map_err(io::Error::other)?;
            if subject == Subject::StoreId && stored.value != self.identity {
                return Err(io::Error::other("the store was restored meanwhile"));
            }
            if subject == Subject::Restoring {
                return Err(io::Error::other("a restore has begun meanwhile"));
            }
            if is_kept(&subject) {
                self.writer.record(&key, &stored.value, out);
            }
        }
        Ok(())
    }
}

pub(super) async fn restore(
    Shared(app): Shared<App>,
    request: Request,
) -> Result<Response, Failure> {
    let mut incoming = request.into_body().into_data_stream();
    let check = |state: &State| (state.restoring().is_none(), holds(state));
    if let (true, Some(holds)) = app.book.read_always(check).await? {
        // Who is still sending would not see an answer before the end.
        while let Ok(Some(Ok(_))) = timeout(IDLE, incoming.next()).await {}
        let text = format!("the store is in use, it has {holds}");
        return Err(ApiError::new(ErrorCode::StoreInUse, text).into());
    }
    let mut file = tempfile::tempfile().map_err(|error| unreadable(&error))?;
    loop {
        let chunk = timeout(IDLE, incoming.next()).await.map_err(|_| {
            let text = format!("nothing of the backup came for {IDLE:?}; nothing was done");
            ApiError::new(ErrorCode::TimedOut, text)
        })?;
        let Some(chunk) = chunk else { break };
        let chunk = chunk.map_err(|error| {
            let text = format!("the backup broke off; nothing was done: {error}");
            ApiError::new(ErrorCode::BadRequest, text)
        })?;
        file = blocking(move || append(file, &chunk)).await??;
    }
    let (attempt, session) = (token()?, token()?);
    let backup = blocking(move || Backup::check(file, session)).await??;
    let restoring = Restoring {
        attempt,
        sha256: backup.footer.sha256.clone(),
        keys: backup.keys,
        discarding: false,
    };
    let begun = restoring.clone();
    app.book.decide_always(move |state| restoring::begin(state, &begun)).await?;
    warn!(keys = restoring.keys, sha256 = restoring.sha256, "a restore has begun");
    Ok(told(&app, |app, lines| async move { write(&app, backup, &restoring, &lines).await }))
}

pub(super) async fn discard(Shared(app): Shared<App>) -> Result<Response, Failure> {
    let attempt = token()?;
    app.book.decide_always(move |state| restoring::discard(state, attempt)).await?;
    warn!("a restore that broke off is discarded");
    Ok(told(&app, move |app, lines| async move { erase(&app, attempt, &lines).await }))
}

fn token() -> Result<limpet_net_types::Token, ApiError> {
    random::token().map_err(|error| {
        ApiError::new(ErrorCode::Internal, format!("the system gives no random bits: {error}"))
    })
}

fn append(mut file: File, chunk: &[u8]) -> Result<File, ApiError> {
    file.write_all(chunk).map_err(|error| unreadable(&error))?;
    Ok(file)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    spawn_blocking(work).await.map_err(|_| {
        ApiError::new(ErrorCode::Internal, "the request ended unexpectedly; nothing was done")
    })
}

/// Where lines for the caller go; it may have gone, and the work goes on all the same.
type Lines = mpsc::Sender<Bytes>;

/// Does the work in a task of its own, and answers with the lines that it tells.
fn told<F>(app: &App, work: impl FnOnce(App, Lines) -> F) -> Response
where
    F: Future<Output = Result<RestoreStatus, ApiError>> + Send + 'static,
{
    let (lines, heard) = mpsc::channel(QUEUE);
    let work = work(app.clone(), lines.clone());
    app.tasks.spawn(async move {
        let last = match work.await {
            Ok(status) => RestoreLine::Done(Box::new(status)),
            Err(error) => {
                warn!(%error, "it broke off");
                RestoreLine::Failed(error)
            }
        };
        let _ = lines.send(json_line(&last)).await;
    });
    streamed(heard)
}

/// An answer of lines that are told one after another.
pub(super) fn streamed(heard: mpsc::Receiver<Bytes>) -> Response {
    let lines = stream::unfold(heard, |mut heard| async {
        let line = heard.recv().await?;
        Some((Ok::<Bytes, std::convert::Infallible>(line), heard))
    });
    let kind = [(CONTENT_TYPE, "application/x-ndjson")];
    (kind, Body::from_stream(lines)).into_response()
}

/// A line of JSON, with its end.
pub(super) fn json_line<T: Serialize>(line: &T) -> Bytes {
    let mut text = serde_json::to_vec(line)
        .unwrap_or_else(|error| unreachable!("the API's types have nothing JSON lacks: {error}"));
    text.push(b'\n');
    text.into()
}

async fn write(
    app: &App,
    mut backup: Backup,
    restoring: &Restoring,
    lines: &Lines,
) -> Result<RestoreStatus, ApiError> {
    let (attempt, of) = (restoring.attempt, restoring.keys);
    let mut keys = 0;
    loop {
        let parts;
        (backup, parts) = blocking(move || read_parts(backup)).await??;
        if parts.is_empty() {
            break;
        }
        keys += parts.iter().map(|part| u64::try_from(part.len()).unwrap_or(0)).sum::<u64>();
        let writes = parts.into_iter().map(|part| {
            app.book.decide_always(move |state| restoring::write(state, attempt, &part))
        });
        futures_util::future::try_join_all(writes).await?;
        let _ = lines.try_send(json_line(&RestoreLine::Written { keys, of }));
    }
    let fresh = token()?;
    app.book.decide_always(move |state| restoring::finish(state, attempt, fresh)).await?;
    warn!(keys, store = %fresh, "the store is restored, and waits for its hosts");
    app.book.read(describe).await
}

fn read_parts(mut backup: Backup) -> Result<(Backup, Vec<Vec<Stored>>), ApiError> {
    let mut parts = Vec::new();
    while parts.len() < AT_ONCE {
        let part = backup.next_part()?;
        if part.is_empty() {
            break;
        }
        parts.push(part);
    }
    Ok((backup, parts))
}

async fn erase(
    app: &App,
    attempt: limpet_net_types::Token,
    lines: &Lines,
) -> Result<RestoreStatus, ApiError> {
    let unreadable =
        |_| ApiError::new(ErrorCode::Unavailable, "the store cannot be read: ask again");
    let mut pages = app.store.read("").await.map_err(unreadable)?;
    let mut keys = 0;
    while let Some(page) = pages.next().await.map_err(unreadable)? {
        let subjects = page.iter().filter_map(|(key, _)| Subject::parse(key).ok());
        let written: Vec<Subject> = subjects.filter(is_kept).collect();
        for part in written.chunks(ERASED) {
            let (part, of) = (part.to_vec(), u64::try_from(part.len()).unwrap_or(0));
            app.book.decide_always(move |state| restoring::erase(state, attempt, &part)).await?;
            keys += of;
        }
        let _ = lines.try_send(json_line(&RestoreLine::Written { keys, of: 0 }));
    }
    app.book.decide_always(move |state| restoring::finish_discard(state, attempt)).await?;
    warn!(keys, "the store is empty again");
    app.book.read(describe).await
}

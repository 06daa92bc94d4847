//! Edge: following what etcd says of changes.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{EventType, GetOptions, WatchOptions, WatchResponse, WatchStream};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::time::{self, Instant};
use tokio_util::sync::CancellationToken;

use super::events::Joiner;
use super::failure::Failure;
use super::layout::Layout;
use super::members::{Member, Members, REQUEST};
use super::wire::{number, revision};
use super::{ANSWER, Closed};
use crate::store::{Event, Revision, Watch, WatchError, Write};

/// How long a stream may be quiet before its member is asked whether it is there.
const QUIET: Duration = Duration::from_secs(1);

/// A change that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("etcd told of a change that is none of this store's")]
struct BadEvent;

/// A watch that etcd ended, and why.
#[derive(Debug, thiserror::Error)]
#[error("etcd ended the watch: {0}")]
struct Ended(String);

/// A running watch.
pub(super) struct EtcdWatch {
    members: Arc<Members>,
    layout: Arc<Layout>,
    member: Member,
    stream: WatchStream,
    joiner: Joiner,
    /// When something was last heard.
    heard: Instant,
    /// When the member was asked since whether it is there.
    asked: Option<Instant>,
    closed: CancellationToken,
}

impl EtcdWatch {
    /// Begins after a revision.
    pub(super) async fn begin(
        members: Arc<Members>,
        layout: Arc<Layout>,
        after: Revision,
        closed: CancellationToken,
    ) -> Result<Self, WatchError> {
        match past(&members, &layout, after).await {
            Ok(()) => {}
            Err(Failure::Compacted) => {
                let oldest = compacted(&members, &layout).await.map_err(cut)?;
                return Err(WatchError::Compacted { wanted: after, oldest });
            }
            Err(Failure::Future) => {
                let newest = newest(&members, &layout).await.map_err(cut)?;
                return Err(WatchError::Ahead { wanted: after, newest });
            }
            Err(failure) => return Err(cut(failure)),
        }
        let member = members.chosen().await.map_err(cut)?;
        let options = WatchOptions::new()
            .with_range(layout.end_of(""))
            .with_start_revision(number(after.next()))
            .with_fragment();
        let mut client = member.client().watch_client().max_decoding_message_size(ANSWER);
        let watch = Box::pin(client.watch(layout.key(""), Some(options)));
        let stream = match member.asked(watch).await {
            Ok(stream) => stream,
            Err(failure) => {
                members.leave(&member, &failure).await;
                return Err(cut(failure));
            }
        };
        let (joiner, heard) = (Joiner::after(after), Instant::now());
        Ok(Self { members, layout, member, stream, joiner, heard, asked: None, closed })
    }

    async fn event(&mut self) -> Result<Event, WatchError> {
        loop {
            if self.closed.is_cancelled() {
                return Err(WatchError::Cut(Closed.into()));
            }
            if let Some(event) = self.joiner.next() {
                return Ok(event);
            }
            let limit = self.asked.map_or(self.heard + QUIET, |asked| asked + REQUEST);
            // All may be dropped: a message is taken out of the stream only when its arm runs. One
            // that is there comes before the limit: perhaps nobody has listened for long.
            let message = tokio::select! {
                biased;
                () = self.closed.cancelled() => continue,
                message = self.stream.message() => Some(message),
                () = time::sleep_until(limit) => None,
            };
            match message {
                Some(Ok(Some(response))) => {
                    self.heard = Instant::now();
                    self.asked = None;
                    self.take_in(&response).await?;
                }
                Some(Ok(None)) => return Err(cut(Ended("the member stops".to_owned()))),
                Some(Err(error)) => return self.give_up(self.member.failure(&error)).await,
                None if self.asked.is_some() => {
                    return self.give_up(self.member.silent(REQUEST)).await;
                }
                None => {
                    self.asked = Some(Instant::now());
                    if let Err(error) = self.stream.request_progress().await {
                        return self.give_up(self.member.failure(&error)).await;
                    }
                }
            }
        }
    }

    async fn give_up(&self, failure: Failure) -> Result<Event, WatchError> {
        self.members.leave(&self.member, &failure).await;
        Err(cut(failure))
    }

    async fn take_in(&mut self, response: &WatchResponse) -> Result<(), WatchError> {
        let wanted = self.joiner.last();
        if response.compact_revision() > 0 {
            let oldest = revision(response.compact_revision());
            return Err(WatchError::Compacted { wanted, oldest });
        }
        if response.canceled() {
            return Err(cut(Ended(response.cancel_reason().to_owned())));
        }
        for event in response.events() {
            let kv = event.kv().ok_or_else(|| cut(BadEvent))?;
            let key = self.layout.own(kv.key()).ok_or_else(|| cut(BadEvent))?;
            let write = match event.event_type() {
                EventType::Put => Write::Put(kv.value().to_vec().into()),
                EventType::Delete => Write::Delete,
            };
            if self.joiner.push(revision(kv.mod_revision()), key, write).is_err() {
                // What was told cannot be mended by watching on.
                let oldest = newest(&self.members, &self.layout).await.map_err(cut)?;
                return Err(WatchError::Compacted { wanted, oldest });
            }
        }
        if !response.0.fragment {
            self.joiner.close();
        }
        Ok(())
    }
}

fn cut(cause: impl std::error::Error + Send + Sync + 'static) -> WatchError {
    WatchError::Cut(cause.into())
}

/// Finds out whether etcd has come to a revision and still has what came after it.
async fn past(members: &Members, layout: &Layout, after: Revision) -> Result<(), Failure> {
    // Zero would mean the newest one.
    let at = number(after).max(1);
    read_at(members, layout, at).await.map(drop)
}

/// Returns the newest revision.
async fn newest(members: &Members, layout: &Layout) -> Result<Revision, Failure> {
    read_at(members, layout, 0).await
}

async fn read_at(members: &Members, layout: &Layout, at: i64) -> Result<Revision, Failure> {
    let get = |client: etcd_client::Client| {
        let options = GetOptions::new().with_revision(at).with_keys_only();
        async move { client.kv_client().get(layout.identity(), Some(options)).await }
    };
    let found = members.repeatedly(get).await?;
    Ok(found.header().map_or(Revision(0), |header| revision(header.revision())))
}

/// Returns the revision up to which etcd has compacted: it says so of a watch from the beginning.
async fn compacted(members: &Members, layout: &Layout) -> Result<Revision, Failure> {
    let ask = |client: etcd_client::Client| async move {
        let options = WatchOptions::new().with_start_revision(1);
        let mut watch = client.watch_client();
        let mut stream = watch.watch(layout.identity(), Some(options)).await?;
        while let Some(response) = stream.message().await? {
            if response.compact_revision() > 0 {
                return Ok(revision(response.compact_revision()));
            }
        }
        Err(etcd_client::Error::WatchError("the member stops".to_owned()))
    };
    members.repeatedly(ask).await
}

impl Watch for EtcdWatch {
    fn next(&mut self) -> BoxFuture<'_, Result<Event, WatchError>> {
        self.event().boxed()
    }
}

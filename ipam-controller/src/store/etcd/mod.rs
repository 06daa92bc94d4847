//! Edge: the store in etcd, which several controllers share.
//!
//! | file | is | does |
//! |---|---|---|
//! | [`options`] | pure | where etcd is, and who one is there |
//! | [`layout`] | pure | which keys are the store's |
//! | [`wire`] | pure | transactions as etcd takes them |
//! | [`events`] | pure | changes, joined to whole revisions |
//! | [`failure`] | pure | what a failed call means |
//! | [`members`] | edge | which member is asked, and for how long |
//! | [`open`] | edge | finding the store, or making it |
//! | [`pages`], [`follow`], [`lease`] | edge | reading, watching, what is ephemeral |

mod events;
mod failure;
mod follow;
mod layout;
mod lease;
mod members;
mod open;
mod options;
mod pages;
mod wire;

#[cfg(test)]
pub(crate) mod server;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use etcd_client::{Txn as EtcdTxn, TxnOp, TxnOpResponse};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::RwLock;
use tokio_util::sync::CancellationToken;

#[cfg(test)]
use self::open::OpenError;
pub(crate) use self::options::{Endpoint, Options, Prefix};

use self::failure::Failure;
use self::follow::EtcdWatch;
use self::layout::{FORMAT, Layout};
use self::lease::Lease;
use self::members::Members;
use self::pages::EtcdPages;
use self::wire::Answer;
use super::{
    CommitError, Outcome, Pages, ReadError, Revision, Store, Txn, Watch, WatchError, Write,
    disjoint,
};
use crate::keys;

/// How many bytes an answer may have.
const ANSWER: usize = 32 << 20;

/// The store in etcd. Dropping it leaves what is ephemeral to its lease.
#[derive(Debug)]
pub(crate) struct Etcd {
    members: Arc<Members>,
    layout: Arc<Layout>,
    /// The identity of the store that was read: no other is written to.
    identity: Mutex<Bytes>,
    lease: Lease,
    closed: CancellationToken,
    /// Held while a batch is under way.
    under_way: RwLock<()>,
}

/// The cause of every failure after [`Store::close`].
#[derive(Debug, thiserror::Error)]
#[error("the store is closed")]
struct Closed;

/// A layout that a newer program made while this one ran.
#[derive(Debug, thiserror::Error)]
#[error(
    "the store in etcd has format {found}, and this program knows formats up to {FORMAT}: start a newer limpet-controller"
)]
struct OtherFormat {
    found: String,
}

/// An answer that is none to what was asked.
#[derive(Debug, thiserror::Error)]
#[error("etcd's answer to a transaction cannot be read")]
struct BadAnswer;

impl Etcd {
    fn identity(&self) -> Bytes {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn adopt(&self, identity: Bytes) {
        *self.identity.lock().unwrap_or_else(PoisonError::into_inner) = identity;
    }

    /// Returns the newest revision, and the identity of the store at it.
    async fn newest(&self) -> Result<(Revision, Option<Bytes>), Failure> {
        let ask = |client: etcd_client::Client| async move {
            let gets = [TxnOp::get(self.layout.identity(), None)];
            client.kv_client().txn(EtcdTxn::new().and_then(gets)).await
        };
        let found = self.members.repeatedly(ask).await?;
        let revision = found.header().map_or(0, etcd_client::ResponseHeader::revision);
        let identity = found.op_responses().into_iter().find_map(|found| match found {
            TxnOpResponse::Get(found) => {
                found.kvs().first().map(|found| Bytes::copy_from_slice(found.value()))
            }
            _ => None,
        });
        Ok((wire::revision(revision), identity))
    }

    async fn pages(&self, prefix: &str) -> Result<EtcdPages, ReadError> {
        if self.closed.is_cancelled() {
            return Err(ReadError(Closed.into()));
        }
        let (revision, identity) =
            self.newest().await.map_err(|failure| ReadError(failure.into()))?;
        // Whoever reads all of it knows from then on which store it is.
        if let Some(identity) = identity.filter(|_| prefix.is_empty()) {
            self.adopt(identity);
        }
        let (members, layout) = (Arc::clone(&self.members), Arc::clone(&self.layout));
        Ok(EtcdPages::new(members, layout, prefix, revision))
    }

    async fn carry_out(&self, batch: &[Txn]) -> Result<Vec<Outcome>, CommitError> {
        disjoint(batch)?;
        let _under_way = self.under_way.read().await;
        if self.closed.is_cancelled() {
            return Err(CommitError::NotDone(Closed.into()));
        }
        let parts = wire::parts(batch, &self.layout)
            .map_err(|too_large| CommitError::NotDone(too_large.into()))?;
        let mut outcomes = Vec::with_capacity(batch.len());
        for part in parts {
            // One after another, so that revisions do not fall.
            match self.part(batch.get(part).unwrap_or_default()).await {
                Ok(part) => outcomes.extend(part),
                Err(CommitError::NotDone(cause)) if !outcomes.is_empty() => {
                    // What came before is done.
                    return Err(CommitError::Unknown(cause));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(outcomes)
    }

    async fn part(&self, batch: &[Txn]) -> Result<Vec<Outcome>, CommitError> {
        let identity = self.identity();
        let response = self.send(batch, &identity).await.map_err(|failure| {
            if failure.is_certain() {
                CommitError::NotDone(failure.into())
            } else {
                CommitError::Unknown(failure.into())
            }
        })?;
        match wire::answer(batch, &self.layout, &response) {
            Some(Answer::Outcomes(outcomes)) => {
                self.follow_identity(batch, &outcomes);
                Ok(outcomes)
            }
            Some(Answer::Replaced { format: Some(format) })
                if format != FORMAT.to_string().as_bytes() =>
            {
                let found = String::from_utf8_lossy(&format).into_owned();
                Err(CommitError::NotDone(OtherFormat { found }.into()))
            }
            Some(Answer::Replaced { .. }) => {
                let conflict = Outcome::Conflict(keys::STORE_ID.to_owned());
                Ok(vec![conflict; batch.len()])
            }
            None => Err(CommitError::Unknown(BadAnswer.into())),
        }
    }

    /// Takes note if the batch itself gave the store another identity.
    fn follow_identity(&self, batch: &[Txn], outcomes: &[Outcome]) {
        for (txn, outcome) in batch.iter().zip(outcomes) {
            if let (Outcome::Committed(_), Some(Write::Put(identity))) =
                (outcome, txn.writes.get(keys::STORE_ID))
            {
                self.adopt(identity.clone());
            }
        }
    }

    /// Sends a request. It is sent again only if it is certain that nothing was done: to another
    /// member, or with another lease.
    async fn send(
        &self,
        batch: &[Txn],
        identity: &[u8],
    ) -> Result<etcd_client::TxnResponse, Failure> {
        let mut tries = self.members.count() + 1;
        loop {
            let lease = if wire::is_ephemeral(batch) { self.lease.id().await? } else { 0 };
            let request = wire::request(batch, &self.layout, identity, lease);
            let sent = self
                .members
                .once(|client| async move { client.kv_client().txn(request).await })
                .await;
            tries = tries.saturating_sub(1);
            match sent {
                Err(Failure::NoLease) if tries > 0 => self.lease.forget(lease).await,
                Err(failure) if tries > 0 && failure.is_certain() && failure.may_pass() => {}
                answer => return answer,
            }
        }
    }
}

impl Store for Etcd {
    fn read<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Box<dyn Pages>, ReadError>> {
        async move {
            let pages: Box<dyn Pages> = Box::new(self.pages(prefix).await?);
            Ok(pages)
        }
        .boxed()
    }

    fn commit(&self, batch: Vec<Txn>) -> BoxFuture<'_, Result<Vec<Outcome>, CommitError>> {
        async move { self.carry_out(&batch).await }.boxed()
    }

    fn watch(&self, after: Revision) -> BoxFuture<'_, Result<Box<dyn Watch>, WatchError>> {
        async move {
            if self.closed.is_cancelled() {
                return Err(WatchError::Cut(Closed.into()));
            }
            let (members, layout) = (Arc::clone(&self.members), Arc::clone(&self.layout));
            let watch = EtcdWatch::begin(members, layout, after, self.closed.clone()).await?;
            let watch: Box<dyn Watch> = Box::new(watch);
            Ok(watch)
        }
        .boxed()
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        async move {
            let _under_way = self.under_way.write().await;
            if !self.closed.is_cancelled() {
                self.closed.cancel();
                self.lease.revoke().await;
            }
        }
        .boxed()
    }
}

//! Edge: reading all keys under a prefix as they were at one revision, some at a time.

use std::sync::Arc;

use bytes::Bytes;
use etcd_client::{GetOptions, KeyValue};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::ANSWER;
use super::failure::Failure;
use super::layout::Layout;
use super::members::Members;
use super::wire::{number, revision};
use crate::store::{Page, Pages, ReadError, Revision, Versioned};

/// How many keys are asked for at once, where they are small.
pub(super) const KEYS: i64 = 4096;

/// A key under the store's prefix that is no text.
#[derive(Debug, thiserror::Error)]
#[error("etcd has a key that is no text under the store's prefix: {0:?}")]
struct BadKey(Vec<u8>);

/// A read that is under way.
pub(super) struct EtcdPages {
    members: Arc<Members>,
    layout: Arc<Layout>,
    revision: Revision,
    /// Where the next page begins; none after the last one.
    from: Option<Vec<u8>>,
    to: String,
    limit: i64,
}

impl EtcdPages {
    /// Reads what was under a prefix at a revision.
    pub(super) fn new(
        members: Arc<Members>,
        layout: Arc<Layout>,
        prefix: &str,
        revision: Revision,
    ) -> Self {
        let (from, to) = (layout.key(prefix).into_bytes(), layout.end_of(prefix));
        Self { members, layout, revision, from: Some(from), to, limit: KEYS }
    }

    /// The same, with so many keys to a page.
    #[cfg(test)]
    pub(super) fn with_limit(self, limit: i64) -> Self {
        Self { limit, ..self }
    }

    async fn page(&mut self) -> Result<Option<Page>, ReadError> {
        let Some(from) = &self.from else { return Ok(None) };
        let (mut found, more) = loop {
            let options = GetOptions::new()
                .with_range(self.to.as_str())
                .with_revision(number(self.revision))
                .with_limit(self.limit);
            let get = |client: etcd_client::Client| {
                let (from, options) = (from.clone(), options.clone());
                async move {
                    let mut kv = client.kv_client().max_decoding_message_size(ANSWER);
                    kv.get(from, Some(options)).await
                }
            };
            match self.members.repeatedly(get).await {
                Ok(mut found) => break (found.take_kvs(), found.more()),
                Err(Failure::LargeAnswer) if self.limit > 1 => self.limit /= 2,
                Err(failure) => return Err(ReadError(failure.into())),
            }
        };
        self.from = match found.last() {
            Some(last) if more => Some([last.key(), b"\0"].concat()),
            _ => None,
        };
        let page = found.drain(..).map(|found| entry(&self.layout, found));
        let page: Page = page.collect::<Result<_, _>>().map_err(|bad| ReadError(bad.into()))?;
        Ok((!page.is_empty()).then_some(page))
    }
}

fn entry(layout: &Layout, found: KeyValue) -> Result<(crate::store::Key, Versioned), BadKey> {
    let revision = revision(found.mod_revision());
    let (key, value) = found.into_key_value();
    let key = layout.own(&key).ok_or(BadKey(key))?;
    Ok((key, Versioned { value: Bytes::from(value), revision }))
}

impl Pages for EtcdPages {
    fn revision(&self) -> Revision {
        self.revision
    }

    fn next(&mut self) -> BoxFuture<'_, Result<Option<Page>, ReadError>> {
        self.page().boxed()
    }
}

//! Edge: the controller that is asked, over the API's own client, one request after another.

use std::fs::File;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::Context;
use limpet_api::client::{
    Attempted, Call, Client, ClientError, Connection, Endpoint, Lines, Method,
};
use limpet_api::{ErrorCode, Listing, MOST_LISTED};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::runtime::{Builder, Runtime};

use crate::cli::{Global, Misuse};

/// How long nothing may come of an answer that comes line by line.
const LONG: Duration = Duration::from_secs(60);

/// How long a connection may take for a file to be sent by.
const CONNECT: Duration = Duration::from_secs(5);

/// How long a controller may take to receive a file and look through it.
const UPLOAD: Duration = Duration::from_secs(3600);

/// The controllers named on the command line, of which the first that can serve answers.
pub(crate) struct Controller {
    client: Client,
    runtime: Runtime,
}

impl Controller {
    /// Makes the client; nothing is asked yet.
    ///
    /// # Errors
    ///
    /// [`Misuse`] if requests would cross a network unencrypted and nobody said that they may.
    pub(crate) fn new(global: &Global) -> anyhow::Result<Self> {
        let open = global.controller.iter().find(|endpoint| !stays_here(endpoint));
        if let Some(endpoint) = open
            && !global.plain_http
        {
            return Err(Misuse(format!(
                "{endpoint} is not on this machine, and this version speaks no TLS: \
                 --plain-http allows unencrypted requests, for a network that you trust"
            ))
            .into());
        }
        let runtime = Builder::new_current_thread().enable_all().build().context("starting")?;
        Ok(Self { client: Client::new(global.controller.clone(), global.timeout), runtime })
    }

    /// GET.
    pub(crate) fn read<A: DeserializeOwned>(&self, path: &str) -> Result<A, ClientError> {
        self.ask(&Call::new(Method::GET, path))
    }

    /// GET of one page of a long list, with a query made of the fields of `query` that are there.
    pub(crate) fn page<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &impl Serialize,
    ) -> Result<Listing<T>, ClientError> {
        self.ask(&Call::new(Method::GET, path).with_query(query)?)
    }

    /// GET of a long list: all of its pages, one after another, with a query made of the fields of `query` that are
    /// there.
    ///
    /// What changes meanwhile is on the pages that follow, or not; the revision is the last page's.
    pub(crate) fn list<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &impl Serialize,
    ) -> Result<Listing<T>, ClientError> {
        let first = Call::new(Method::GET, path).with_query(query)?;
        let mut page: Listing<T> = self.ask(&first)?;
        let mut items = std::mem::take(&mut page.items);
        while let Some(after) = page.next.take() {
            // Where the first page was not all there may be very many.
            let more = json!({ "after": after, "limit": MOST_LISTED });
            page = self.ask(&first.clone().with_query(&more)?)?;
            items.append(&mut page.items);
        }
        Ok(Listing { items, ..page })
    }

    /// PUT.
    pub(crate) fn put<A: DeserializeOwned>(
        &self,
        path: &str,
        spec: &impl Serialize,
    ) -> Result<A, ClientError> {
        self.ask(&Call::with_body(Method::PUT, path, spec)?)
    }

    /// POST.
    pub(crate) fn post<A: DeserializeOwned>(
        &self,
        path: &str,
        request: &impl Serialize,
    ) -> Result<A, ClientError> {
        self.ask(&Call::with_body(Method::POST, path, request)?)
    }

    /// GET of an answer that comes line by line.
    pub(crate) fn lines<T: DeserializeOwned>(
        &self,
        path: &str,
        each: impl FnMut(T) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        self.lines_of(Method::GET, path, each)
    }

    /// The same, by another method.
    pub(crate) fn lines_of<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        each: impl FnMut(T) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        self.follow(&Call::new(method, path), each)
    }

    /// POST, with an answer that comes line by line.
    pub(crate) fn lines_with<T: DeserializeOwned>(
        &self,
        path: &str,
        request: &impl Serialize,
        each: &mut dyn FnMut(T) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        self.follow(&Call::with_body(Method::POST, path, request)?, each)
    }

    fn follow<T: DeserializeOwned>(
        &self,
        call: &Call,
        each: impl FnMut(T) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let client = self.client.with_limit(LONG);
        self.runtime.block_on(async { told(client.lines(call).await?, each).await })
    }

    /// POST of a file, with an answer that comes line by line. `sent` hears how many bytes are on
    /// their way.
    pub(crate) fn upload<T: DeserializeOwned>(
        &self,
        path: &str,
        file: File,
        sent: impl FnMut(u64) + Send + 'static,
        each: impl FnMut(T) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        self.runtime.block_on(async {
            let mut last = None;
            for endpoint in self.client.endpoints() {
                match Connection::open(endpoint, CONNECT).await {
                    Ok(connection) => {
                        return told(connection.upload(path, file, sent, UPLOAD).await?, each)
                            .await;
                    }
                    Err(error) => last = Some(error),
                }
            }
            Err(last.map_or_else(|| anyhow::anyhow!("no controller is named"), Into::into))
        })
    }

    /// PATCH.
    pub(crate) fn patch<A: DeserializeOwned>(
        &self,
        path: &str,
        change: &impl Serialize,
    ) -> Result<A, ClientError> {
        self.ask(&Call::with_body(Method::PATCH, path, change)?)
    }

    /// DELETE; none where it is gone and was so when the controller that answered was asked.
    ///
    /// A controller that did not answer may have deleted it, or somebody else in the same moment. Whoever wanted it gone
    /// has what he wanted, so that is no error. Without an earlier attempt it is one.
    pub(crate) fn delete<A: DeserializeOwned>(&self, path: &str) -> Result<Option<A>, ClientError> {
        self.deleted(&Call::new(Method::DELETE, path))
    }

    /// DELETE, with a query made of the fields of `query` that are there; otherwise as [`Self::delete`].
    pub(crate) fn delete_where<A: DeserializeOwned>(
        &self,
        path: &str,
        query: &impl Serialize,
    ) -> Result<Option<A>, ClientError> {
        self.deleted(&Call::new(Method::DELETE, path).with_query(query)?)
    }

    fn deleted<A: DeserializeOwned>(&self, call: &Call) -> Result<Option<A>, ClientError> {
        let Attempted { answer, unsure } = self.runtime.block_on(self.client.attempt(call));
        match answer {
            Err(ClientError::Refused(error)) if unsure && is_gone(error.code) => Ok(None),
            other => other.map(Some),
        }
    }

    fn ask<A: DeserializeOwned>(&self, call: &Call) -> Result<A, ClientError> {
        self.runtime.block_on(self.client.call(call))
    }
}

async fn told<T: DeserializeOwned>(
    mut lines: Lines,
    mut each: impl FnMut(T) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    while let Some(line) = lines.next(LONG).await? {
        each(line)?;
    }
    Ok(())
}

/// Whether a controller says by this that there is no such record. An unknown path says nothing of records.
fn is_gone(code: ErrorCode) -> bool {
    code.status() == 404 && code != ErrorCode::NotFound
}

/// Whether requests to `endpoint` never leave this machine.
fn stays_here(endpoint: &Endpoint) -> bool {
    let Endpoint::Http { authority } = endpoint else { return true };
    let host = authority.rsplit_once(':').map_or(authority.as_str(), |(host, _)| host);
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_record_that_is_not_there_is_gone() {
        assert!(is_gone(ErrorCode::PoolNotFound) && is_gone(ErrorCode::AttachmentNotFound));
        assert!(!is_gone(ErrorCode::NotFound) && !is_gone(ErrorCode::PoolInUse));
    }

    #[test]
    fn only_this_machine_needs_no_leave_for_plain_http() {
        let here = |url: &str| stays_here(&url.parse().unwrap());
        for url in
            ["http://127.0.0.1:7600", "http://[::1]:1", "http://localhost:1", "unix:/run/x.sock"]
        {
            assert!(here(url), "{url}");
        }
        for url in ["http://192.0.2.1:7600", "http://[2001:db8::1]:1", "http://localhost.example:1"]
        {
            assert!(!here(url), "{url}");
        }
    }
}

//! Edge: the members of etcd, of which one at a time is asked.
//!
//! The library would spread calls over all members, the dead included. Here one member is asked
//! until it fails; then all are asked at once for something that needs a leader, and the first that
//! answers is the next. So a member that is dead, frozen or cut off costs one call.

use std::fmt;
use std::time::Duration;

use etcd_client::{Client, ConnectOptions, Error, GetOptions};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::Mutex;
use tokio::time::{self, Instant};
use tracing::{debug, warn};

use super::failure::Failure;

/// How long a member may take for an answer.
pub(super) const REQUEST: Duration = Duration::from_millis(2500);

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(1);

/// How long what can be repeated is repeated.
const PATIENCE: Duration = Duration::from_secs(8);

/// The pause before it is repeated.
const PAUSE: Duration = Duration::from_millis(100);

/// How long a connection with a stream may be quiet before it is tried, and how long that may take.
/// Etcd cuts connections on which it is tried more often than every 5 s.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(3));

/// All members.
pub(super) struct Members {
    urls: Vec<String>,
    options: ConnectOptions,
    /// A key that may be read, to find out who answers.
    probe: String,
    chosen: Mutex<Option<Member>>,
}

/// A member with a connection to it.
#[derive(Clone)]
pub(super) struct Member {
    url: String,
    client: Client,
    generation: Instant,
}

impl fmt::Debug for Members {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Members").field("urls", &self.urls).finish_non_exhaustive()
    }
}

impl Member {
    /// The library's way to it.
    pub(super) fn client(&self) -> Client {
        self.client.clone()
    }

    /// Reads what the library says of a call to it.
    pub(super) fn failure(&self, error: &Error) -> Failure {
        Failure::of(&self.url, error)
    }

    /// Waits for a call to it, as long as a call may take.
    pub(super) async fn asked<T>(
        &self,
        call: impl Future<Output = Result<T, Error>> + Unpin,
    ) -> Result<T, Failure> {
        within(&self.url, call).await
    }

    /// The failure of a member that says nothing.
    pub(super) fn silent(&self, limit: Duration) -> Failure {
        Failure::Silent { url: self.url.clone(), limit }
    }
}

async fn within<T>(
    url: &str,
    call: impl Future<Output = Result<T, Error>> + Unpin,
) -> Result<T, Failure> {
    match time::timeout(REQUEST, call).await {
        Ok(answer) => answer.map_err(|error| Failure::of(url, &error)),
        Err(_) => Err(Failure::Silent { url: url.to_owned(), limit: REQUEST }),
    }
}

impl Members {
    /// Makes the list; nothing is connected yet.
    pub(super) fn new(urls: Vec<String>, options: ConnectOptions, probe: String) -> Self {
        let options = options
            .with_connect_timeout(CONNECT)
            .with_keep_alive(KEEP_ALIVE.0, KEEP_ALIVE.1)
            .with_auto_token_refresh(true)
            .with_require_leader(true);
        Self { urls, options, probe, chosen: Mutex::default() }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.urls.len()
    }

    /// Returns the member to ask: the one that answered last, or the first that answers now.
    ///
    /// # Errors
    ///
    /// What the member that failed last said, if none answers.
    pub(super) async fn chosen(&self) -> Result<Member, Failure> {
        let mut chosen = self.chosen.lock().await;
        if let Some(member) = &*chosen {
            return Ok(member.clone());
        }
        let mut probes: FuturesUnordered<_> = self.urls.iter().map(|url| self.probe(url)).collect();
        let mut worst = None;
        while let Some(answer) = probes.next().await {
            match answer {
                Ok(member) => {
                    debug!(url = member.url, "asking this member of etcd from now on");
                    return Ok(chosen.insert(member).clone());
                }
                // One that says what is wrong says more than one that is away.
                Err(failure) if worst.as_ref().is_none_or(Failure::may_pass) => {
                    worst = Some(failure);
                }
                Err(_) => {}
            }
        }
        Err(worst.unwrap_or(Failure::Failed {
            url: String::new(),
            reason: "there is no member to ask".to_owned(),
        }))
    }

    async fn probe(&self, url: &str) -> Result<Member, Failure> {
        // The library's calls are large.
        let connect = Box::pin(Client::connect([url], Some(self.options.clone())));
        let client = within(url, connect).await?;
        let mut kv = client.kv_client();
        let options = GetOptions::new().with_keys_only();
        within(url, Box::pin(kv.get(self.probe.as_str(), Some(options)))).await?;
        Ok(Member { url: url.to_owned(), client, generation: Instant::now() })
    }

    /// Lets another member be asked from now on, unless that was done already. The connection goes
    /// as well: it may be a dead one.
    pub(super) async fn leave(&self, member: &Member, failure: &Failure) {
        if !failure.may_pass() {
            return;
        }
        let mut chosen = self.chosen.lock().await;
        let is_chosen =
            |chosen: &Member| chosen.url == member.url && chosen.generation == member.generation;
        if chosen.as_ref().is_some_and(is_chosen) {
            warn!(%failure, "looking for a member of etcd that answers");
            *chosen = None;
        }
    }

    /// Asks once.
    ///
    /// # Errors
    ///
    /// [`Failure`]; whatever was asked for may have been done unless it is certain that it was not.
    pub(super) async fn once<T, F>(&self, ask: impl FnOnce(Client) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let member = self.chosen().await?;
        let answer = member.asked(Box::pin(ask(member.client()))).await;
        if let Err(failure) = &answer {
            self.leave(&member, failure).await;
        }
        answer
    }

    /// Asks for what changes nothing, or nothing more the second time, until somebody answers.
    ///
    /// # Errors
    ///
    /// [`Failure`] if trying again is in vain, or was for too long.
    pub(super) async fn repeatedly<T, F>(&self, ask: impl Fn(Client) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.once(&ask).await {
                Err(failure) if failure.may_pass() && Instant::now() < deadline => {
                    time::sleep(PAUSE).await;
                }
                answer => return answer,
            }
        }
    }
}

//! Edge: the lease on which all that is ephemeral hangs, and what keeps it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use super::failure::Failure;
use super::members::Members;

/// The pause after the lease could not be kept.
const PAUSE: Duration = Duration::from_millis(500);

/// The lease of this controller: granted when it is first needed, and kept until the end. When it
/// ended before, because this controller was frozen or cut off, the next one is another.
#[derive(Debug)]
pub(super) struct Lease {
    members: Arc<Members>,
    time: Duration,
    held: Mutex<Option<Held>>,
}

#[derive(Debug)]
struct Held {
    id: i64,
    ended: CancellationToken,
    /// Dropping it ends the task.
    _keeper: AbortOnDropHandle<()>,
}

impl Lease {
    pub(super) fn new(members: Arc<Members>, time: Duration) -> Self {
        Self { members, time, held: Mutex::default() }
    }

    /// Returns the lease to hang something on.
    ///
    /// # Errors
    ///
    /// [`Failure`] if none is granted.
    pub(super) async fn id(&self) -> Result<i64, Failure> {
        let mut held = self.held.lock().await;
        if let Some(held) = held.as_ref().filter(|held| !held.ended.is_cancelled()) {
            return Ok(held.id);
        }
        let seconds = i64::try_from(self.time.as_secs()).unwrap_or(i64::MAX);
        let grant = |client: etcd_client::Client| async move {
            client.lease_client().grant(seconds, None).await
        };
        let id = self.members.repeatedly(grant).await?.id();
        let ended = CancellationToken::new();
        let keeping = keep(Arc::clone(&self.members), id, self.time / 3, ended.clone());
        let keeper = AbortOnDropHandle::new(tokio::spawn(keeping));
        *held = Some(Held { id, ended, _keeper: keeper });
        Ok(id)
    }

    /// Takes note that this lease has ended, whatever its keeper knows.
    pub(super) async fn forget(&self, id: i64) {
        let mut held = self.held.lock().await;
        if held.as_ref().is_some_and(|held| held.id == id) {
            *held = None;
        }
    }

    /// Ends the lease, and with it all that hangs on it.
    pub(super) async fn revoke(&self) {
        let Some(Held { id, .. }) = self.held.lock().await.take() else { return };
        let revoke =
            |client: etcd_client::Client| async move { client.lease_client().revoke(id).await };
        if let Err(failure) = self.members.once(revoke).await {
            warn!(%failure, "what is ephemeral goes when its lease ends by itself");
        }
    }
}

/// Keeps a lease until it has ended.
async fn keep(members: Arc<Members>, id: i64, every: Duration, ended: CancellationToken) {
    let mut pause = every;
    loop {
        time::sleep(pause).await;
        let keep =
            |client: etcd_client::Client| async move { client.lease_client().keep_alive(id).await };
        pause = match members.once(keep).await {
            Ok(_) => every,
            Err(Failure::NoLease) => break,
            Err(failure) => {
                warn!(%failure, retry_in = ?PAUSE, "the lease was not kept");
                PAUSE
            }
        };
    }
    info!(lease = id, "the lease has ended, and what hung on it is gone");
    ended.cancel();
}

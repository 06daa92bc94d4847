//! Edge: opening the store; while it cannot be reached yet, whoever asks is told so.

use std::error::Error;
use std::net::TcpListener as StdListener;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::time;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::config::StorePlace;
use crate::http;
use crate::store::{Embedded, Etcd, Store};

/// The pause before a store is looked for again.
const PAUSE: Duration = Duration::from_secs(1);

/// For how long systemd is told to be patient, each time.
const PATIENCE: Duration = Duration::from_secs(60);

/// Opens the store.
///
/// A store in etcd is waited for as long as it is only away: whoever starts a whole site starts
/// everything at once. What somebody must mend is an error.
///
/// # Errors
///
/// Says why it cannot be opened, and what to do.
pub(crate) async fn open(
    place: &StorePlace,
    listener: &StdListener,
) -> anyhow::Result<Arc<dyn Store>> {
    match place {
        StorePlace::File(options) => Ok(Arc::new(Embedded::open(options)?)),
        StorePlace::Etcd(options) => {
            let etcd = Etcd::prepare(options)?;
            let listener = listener.try_clone().context("copying the listening socket")?;
            let listener = TcpListener::from_std(listener).context("listening")?;
            let stop = CancellationToken::new();
            let serving = tokio::spawn(http::serve(listener, http::unavailable(), stop.clone()));
            let opened = wait_for(&etcd).await;
            stop.cancel();
            serving.await.context("answering that the store is not there yet")?;
            opened?;
            Ok(Arc::new(etcd))
        }
    }
}

async fn wait_for(etcd: &Etcd) -> anyhow::Result<()> {
    loop {
        match etcd.open().await {
            Ok(()) => return Ok(()),
            Err(error) if error.may_pass() => {
                let cause: &(dyn Error + 'static) = &error;
                warn!(error = cause, retry_in = ?PAUSE, "waiting for the store");
                // Without systemd there is nobody to tell.
                let _ = sd_notify::notify(&[
                    NotifyState::Status("waiting for the store"),
                    NotifyState::ExtendTimeoutUsec(micros(PATIENCE)),
                ]);
            }
            Err(error) => return Err(error.into()),
        }
        time::sleep(PAUSE).await;
    }
}

fn micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}

//! Edge: what the service manager is told: that requests are served, that the one task that decides still turns, and
//! how things stand. Without one nobody is told, and that is no failure.

use std::net::SocketAddr;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{self, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::book::Book;

/// How often it is looked whether other words are due.
const WORDS: Duration = Duration::from_secs(1);

/// Tells it that requests are served.
pub(crate) fn ready() {
    notify(&[NotifyState::Ready]);
}

/// Tells it that the controller stops.
pub(crate) fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// Tells it how things stand, until `stop`.
pub(crate) async fn run(book: Book, address: SocketAddr, stop: CancellationToken) {
    // Both may be dropped: a question to the book that nobody waits for is nothing to it.
    let telling = async { tokio::join!(beat(&book), say(&book, address)) };
    let _ = stop.run_until_cancelled(telling).await;
}

/// Says that the controller is alive as often as it is asked to, and only when the task that decides has come round: a
/// timer would go on while that stands still, and with it every request.
async fn beat(book: &Book) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    let mut every = time::interval((limit / 3).max(Duration::from_millis(1)));
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        if book.turns().await.is_err() {
            return;
        }
        notify(&[NotifyState::Watchdog]);
    }
}

/// Keeps the line that `systemctl status` shows true.
async fn say(book: &Book, address: SocketAddr) {
    let (mut every, head) = (time::interval(WORDS), book.head());
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut said = None;
    loop {
        every.tick().await;
        let revision = *head.borrow();
        if said != Some(revision) {
            notify(&[NotifyState::Status(&format!("serving at {address}, revision {revision}"))]);
            said = Some(revision);
        }
    }
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!(%error, "cannot notify the service manager");
    }
}

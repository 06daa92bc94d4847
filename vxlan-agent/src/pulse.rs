//! Edge: whether a loop still turns, found out by asking it.
//!
//! A timer of its own would go on while the loop that matters stands still. So the loop is rung, among the other
//! things that it waits for, and answers when it comes round.

use tokio::sync::{Notify, watch};

/// One loop's pulse.
#[derive(Debug)]
pub(crate) struct Pulse {
    asked: Notify,
    turns: watch::Sender<u64>,
}

impl Default for Pulse {
    fn default() -> Self {
        Self { asked: Notify::new(), turns: watch::Sender::new(0) }
    }
}

impl Pulse {
    /// For the loop: waits until somebody asks. May be dropped: what was asked stays asked.
    pub(crate) async fn asked(&self) {
        self.asked.notified().await;
    }

    /// For the loop: it has come round.
    pub(crate) fn turned(&self) {
        self.turns.send_modify(|turns| *turns = turns.wrapping_add(1));
    }

    /// Asks, and waits until the loop has come round since; for ever, if it does not.
    pub(crate) async fn felt(&self) {
        let mut turns = self.turns.subscribe();
        self.asked.notify_one();
        // The sender is this value's own, and lives as long as it is borrowed.
        let _ = turns.changed().await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use tokio::time::{sleep, timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_loop_is_felt_while_it_turns_and_not_while_it_stands_still() {
        let pulse = Arc::new(Pulse::default());
        let turning = {
            let pulse = Arc::clone(&pulse);
            tokio::spawn(async move {
                for _ in 0..2 {
                    pulse.asked().await;
                    pulse.turned();
                }
                // A pass that takes long, or for ever.
                sleep(Duration::from_secs(60)).await;
                pulse.turned();
                std::future::pending::<()>().await;
            })
        };
        let soon = |limit| timeout(Duration::from_secs(limit), pulse.felt());
        assert!(soon(1).await.is_ok());
        assert!(soon(1).await.is_ok());
        assert!(soon(30).await.is_err(), "it stands still");
        assert!(soon(31).await.is_ok(), "it has come round");
        assert!(soon(1000).await.is_err());
        turning.abort();
    }
}

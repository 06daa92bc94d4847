//! Pure: which hosts' agents were heard of lately. Kept in memory only: what a controller has
//! not heard itself it does not judge.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use limpet_api::host::LEASE_SECONDS;
use limpet_net_types::{HostName, Token};

use crate::rules::sessions::Liveness;

/// How long a host counts as alive after it was heard of.
const LEASE: Duration = Duration::from_secs(LEASE_SECONDS);

/// When each host was heard of.
#[derive(Clone, Debug)]
pub(crate) struct Leases {
    started: Instant,
    heard: HashMap<HostName, Heard>,
}

/// When a host was heard of last, and in which session.
#[derive(Clone, Copy, Debug)]
struct Heard {
    session: Token,
    at: Instant,
}

impl Leases {
    /// Starts without having heard of any host.
    pub(crate) fn new(started: Instant) -> Self {
        Self { started, heard: HashMap::new() }
    }

    /// Notes that a host was heard of in its present session.
    pub(crate) fn hear(&mut self, host: &HostName, session: Token, at: Instant) {
        self.heard.insert(host.clone(), Heard { session, at });
    }

    /// Notes that a host was heard of, if it was heard of in this session before: then that needs
    /// no look into the store, which may be away just when many hosts could seem to be silent.
    pub(crate) fn hear_again(&mut self, host: &HostName, session: Token, now: Instant) {
        if let Some(heard) = self.heard.get_mut(host).filter(|heard| heard.session == session) {
            heard.at = now;
        }
    }

    /// Forgets a host that was removed.
    pub(crate) fn forget(&mut self, host: &HostName) {
        self.heard.remove(host);
    }

    /// Whether a host that has a session is alive. For one lease after the start all are: the
    /// silence before it was the controller's own.
    pub(crate) fn liveness(&self, host: &HostName, now: Instant) -> Liveness {
        let heard = self.heard.get(host).map_or(self.started, |heard| heard.at);
        if now.saturating_duration_since(heard) < LEASE {
            Liveness::Alive
        } else {
            Liveness::Lapsed
        }
    }

    /// How long ago a host was heard of, if it was since the start.
    pub(crate) fn last_seen(&self, host: &HostName, now: Instant) -> Option<Duration> {
        self.heard.get(host).map(|heard| now.saturating_duration_since(heard.at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_start_every_host_is_alive_for_one_lease() {
        let start = Instant::now();
        let host: HostName = "a".parse().unwrap();
        let mut leases = Leases::new(start);
        assert_eq!(leases.liveness(&host, start + LEASE / 2), Liveness::Alive);
        assert_eq!(leases.liveness(&host, start + LEASE), Liveness::Lapsed);
        leases.hear(&host, Token::from_bits(1), start + LEASE);
        assert_eq!(leases.liveness(&host, start + LEASE * 3 / 2), Liveness::Alive);
        assert_eq!(leases.last_seen(&host, start + LEASE * 3), Some(LEASE * 2));
        leases.hear_again(&host, Token::from_bits(2), start + LEASE * 3);
        assert_eq!(
            leases.last_seen(&host, start + LEASE * 3),
            Some(LEASE * 2),
            "not in its session"
        );
        leases.hear_again(&host, Token::from_bits(1), start + LEASE * 2);
        assert_eq!(leases.last_seen(&host, start + LEASE * 3), Some(LEASE));
        leases.forget(&host);
        assert_eq!(leases.last_seen(&host, start + LEASE * 3), None);
    }
}

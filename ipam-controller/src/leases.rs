//! Pure: which hosts' agents this controller hears, and which nobody does.
//!
//! An agent says that it lives to any one controller. That one answers for it to the others, by a
//! key of the store that goes when the controller itself does. So a controller judges by what it
//! has heard itself and by the keys that it has seen missing while it served; of a time in which it
//! was frozen, or the store away, it knows nothing, and for one lease after it judges nobody.

#[cfg(test)]
mod simulation;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use limpet_api::host::{HEARTBEAT_SECONDS, LEASE_SECONDS};
use limpet_api::{FleetTime, Span};
use limpet_net_types::{HostName, Token};

use crate::records;
use crate::rules::sessions::Liveness;
use crate::state::State;

/// How long a host counts as alive after it was heard of.
pub(crate) const LEASE: Duration = Duration::from_secs(LEASE_SECONDS);

/// How long a host that is going may not have been heard of: it has missed a word.
const GOING: Duration = Duration::from_secs(LEASE_SECONDS - HEARTBEAT_SECONDS);

/// The longest time between two looks after which the controller still knows what was in between.
const GAP: Duration = Duration::from_secs(HEARTBEAT_SECONDS);

/// How long a host that was found silent counts as one that went just now.
const LATELY: Span = Span::from_seconds(2 * LEASE_SECONDS);

/// Of how many hosts one may fall silent at once. When more do it is rather the controllers, or
/// what is between them and the hosts, that fail.
const ONE_OF: usize = 5;

/// What this controller has heard, and since when it listens.
#[derive(Clone, Debug)]
pub(crate) struct Leases {
    replica: Token,
    listening: Instant,
    looked: Instant,
    hosts: HashMap<HostName, Lease>,
}

/// What is known of a host.
#[derive(Clone, Copy, Debug, Default)]
struct Lease {
    heard: Option<Heard>,
    /// Whether this controller is the last that answered for it.
    mine: bool,
    /// Since when it is seen that nobody answers for it.
    unanswered: Option<Instant>,
}

/// When a host was heard of last, and in which session.
#[derive(Clone, Copy, Debug)]
struct Heard {
    session: Token,
    at: Instant,
}

/// What a look comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Look {
    /// Hosts for which this controller can answer no longer.
    pub(crate) unheard: Vec<HostName>,
    /// Hosts that are silent, with their sessions.
    pub(crate) silent: Vec<(HostName, Token)>,
    /// Why none of several hosts is taken for silent.
    pub(crate) crowd: Option<Crowd>,
}

/// More hosts than can be believed seem silent at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Crowd {
    /// How many.
    pub(crate) going: usize,
    /// Of how many that have joined.
    pub(crate) joined: usize,
}

impl Leases {
    /// Starts to listen; `replica` names this process among the controllers.
    pub(crate) fn new(replica: Token, now: Instant) -> Self {
        Self { replica, listening: now, looked: now, hosts: HashMap::new() }
    }

    /// This process among the controllers.
    pub(crate) fn replica(&self) -> Token {
        self.replica
    }

    /// Notes that a host was heard of in its present session.
    pub(crate) fn hear(&mut self, host: &HostName, session: Token, at: Instant) {
        self.hosts.entry(host.clone()).or_default().heard = Some(Heard { session, at });
    }

    /// Notes that a host was heard of, if it was heard of in this session before: then that needs
    /// no look into the store, which may be away just when many hosts could seem to be silent.
    pub(crate) fn hear_again(&mut self, host: &HostName, session: Token, now: Instant) {
        let heard = self.hosts.get_mut(host).and_then(|lease| lease.heard.as_mut());
        if let Some(heard) = heard.filter(|heard| heard.session == session) {
            heard.at = now;
        }
    }

    /// Forgets a host that was removed.
    pub(crate) fn forget(&mut self, host: &HostName) {
        self.hosts.remove(host);
    }

    /// Whether a host that has a session is alive. One that this controller cannot judge is.
    pub(crate) fn liveness(&self, state: &State, host: &HostName, now: Instant) -> Liveness {
        let answered = state.heard(host).is_some();
        let lapsed = !answered
            && self.may_judge(now)
            && self.hosts.get(host).and_then(Lease::unheard_since).is_some_and(|unheard| {
                now.saturating_duration_since(unheard.max(self.listening)) >= LEASE
            });
        if lapsed { Liveness::Lapsed } else { Liveness::Alive }
    }

    /// Whether this controller has heard the host itself within the lease.
    pub(crate) fn hears(&self, host: &HostName, now: Instant) -> bool {
        self.last_seen(host, now).is_some_and(|ago| ago < LEASE)
    }

    /// Whether this controller has listened for long enough to say who is silent.
    pub(crate) fn may_judge(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.looked) <= GAP
            && now.saturating_duration_since(self.listening) >= LEASE
    }

    /// How long ago a host was heard of, if it was since the start.
    pub(crate) fn last_seen(&self, host: &HostName, now: Instant) -> Option<Duration> {
        let heard = self.hosts.get(host)?.heard?;
        Some(now.saturating_duration_since(heard.at))
    }

    /// Looks who answers for whom; to be done every second, on what is in the store now.
    pub(crate) fn look(&mut self, state: &State, now: Instant) -> Look {
        if now.saturating_duration_since(self.looked) > GAP {
            self.listening = now;
            for lease in self.hosts.values_mut() {
                lease.unanswered = None;
                lease.mine = false;
            }
        }
        self.looked = now;
        self.hosts.retain(|host, _| state.session(host).is_some());
        let (mut look, mut joined, mut going) = (Look::default(), 0, 0);
        for (host, session) in state.sessions() {
            joined += 1;
            let answering = state.heard(host).map(|heard| heard.record);
            let lease = self.hosts.entry(host.clone()).or_default();
            lease.follow(answering, self.replica, now);
            let is_anothers = answering.is_some_and(|heard| heard.replica != self.replica);
            let ago = |then: Instant| now.saturating_duration_since(then.max(self.listening));
            let heard = lease.heard.map(|heard| ago(heard.at));
            let is_well = heard.is_some_and(|heard| heard < GOING);
            if is_anothers || is_well || state.silence(host).is_some() {
                continue;
            }
            going += 1;
            if heard.is_some_and(|heard| heard < LEASE) {
                continue;
            }
            match lease.unanswered {
                None => look.unheard.push(host.clone()),
                Some(since) if ago(since) >= LEASE => {
                    look.silent.push((host.clone(), session.record.session));
                }
                Some(_) => {}
            }
        }
        let lately = |since: FleetTime| since.plus(LATELY) > state.now();
        going += state.silences().filter(|(_, entry)| lately(entry.record.since)).count();
        if going > (joined / ONE_OF).max(1) && !look.silent.is_empty() {
            look.silent.clear();
            look.crowd = Some(Crowd { going, joined });
        }
        look
    }
}

impl Lease {
    /// Notes which controller answers for the host.
    fn follow(&mut self, answering: Option<records::Heard>, replica: Token, now: Instant) {
        let mine = answering.filter(|heard| heard.replica == replica);
        if let Some(records::Heard { session, .. }) = mine {
            // Written by a request whose outcome was not known, perhaps.
            self.heard.get_or_insert(Heard { session, at: now });
        }
        if answering.is_some() {
            self.mine = mine.is_some();
            self.unanswered = None;
        } else {
            self.unanswered.get_or_insert(now);
        }
    }

    /// Since when nobody is known to have heard the host; nothing while another controller answers
    /// for it, or if that was not looked for yet.
    fn unheard_since(&self) -> Option<Instant> {
        let heard = self.heard.map(|heard| heard.at);
        if self.mine {
            // Whoever had heard it since would answer for it.
            return heard;
        }
        self.unanswered.map(|since| heard.map_or(since, |heard| heard.max(since)))
    }
}

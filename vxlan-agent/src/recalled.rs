//! Pure: whether the kernel is to follow what is known from disk alone.
//!
//! It is while no controller answers, so that a host that was rebooted meanwhile has its network. It is not where somebody
//! may know better: a controller that does not let this host in, an agent of this boot that knew more, or the host itself,
//! whose underlay is elsewhere now. Then the kernel stays as it is.

use std::net::IpAddr;
use std::time::Duration;

use limpet_net_types::HostName;
use tokio::time::Instant;

use crate::agent::State;
use crate::saved::ago;

/// Where what is known is from, if not from a controller.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Recalled {
    /// How old it was by the wall clock when it was read.
    pub(crate) age: Duration,
    /// When it was read.
    pub(crate) read: Instant,
    /// Whether an agent of this boot had been told more.
    pub(crate) ahead: bool,
}

impl Recalled {
    /// How old it is.
    pub(crate) fn age(&self, now: Instant) -> Duration {
        self.age + now.saturating_duration_since(self.read)
    }
}

/// What the kernel is to follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stance {
    /// What a controller has told.
    Told,
    /// What is recalled; nothing is taken away by it.
    Recalled,
    /// Nothing: it stays as it is.
    Still(Still),
}

/// Why the kernel does not follow what is recalled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Still {
    /// A controller answers, and has not told of everything yet.
    #[error("a controller answers and has not told of everything yet")]
    Soon,
    /// A controller has said no.
    #[error("the controller does not let this host in")]
    Refused,
    /// An agent of this boot was ended before it could write what it knew.
    #[error("the kernel has what an agent was told after that")]
    Ahead,
    /// The host has moved.
    #[error("this host had its underlay at {then} and has it at {now}")]
    Moved { then: IpAddr, now: IpAddr },
    /// The host had not joined, or is not connected.
    #[error("it does not say where this host has its underlay, or the host has none")]
    Nowhere,
}

impl State {
    /// What the kernel of `host` is to follow now.
    pub(crate) fn stance(&self, host: &HostName) -> Stance {
        let Some(recalled) = self.recalled.filter(|_| self.view.unconfirmed().is_some()) else {
            return Stance::Told;
        };
        let then = self.view.hosts.get(host).and_then(|host| host.underlay);
        let now = self.reach.as_ref().and_then(|reach| Some(reach.as_ref().ok()?.underlay));
        Stance::Still(match (then, now) {
            _ if self.contact.refused.is_some() => Still::Refused,
            _ if self.contact.silent.is_none() => Still::Soon,
            _ if recalled.ahead => Still::Ahead,
            (Some(then), Some(now)) if then == now => return Stance::Recalled,
            (Some(then), Some(now)) => Still::Moved { then, now },
            _ => Still::Nowhere,
        })
    }

    /// What people are told of it; nothing once a controller has told of everything.
    pub(crate) fn recalled_words(&self, host: &HostName, now: Instant) -> Option<String> {
        let (store, revision) = self.view.unconfirmed()?;
        let ago = ago(self.recalled?.age(now));
        let of = format!("the snapshot of revision {revision} of store {store}, from {ago}");
        Some(match self.stance(host) {
            Stance::Still(why) => format!("the kernel stays as it is, {of}, is not gone by: {why}"),
            Stance::Told | Stance::Recalled => format!("the kernel goes by {of}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use limpet_api::host::Snapshot;
    use limpet_api::{ApiError, ErrorCode};
    use limpet_net_types::Token;

    use super::*;
    use crate::facts::Reach;
    use crate::fixture;
    use crate::view::View;

    const UNDERLAY: &str = "192.0.2.1";

    fn reach(underlay: &str) -> Reach {
        Reach {
            underlay: underlay.parse().unwrap(),
            mtu: 1500,
            addresses: vec![],
            on_link: [].into(),
            led_to: vec![],
        }
    }

    /// What is recalled by a host whose controllers are silent.
    fn state() -> State {
        let mut host = fixture::session().host;
        host.underlay = Some(UNDERLAY.parse().unwrap());
        let snapshot = Snapshot { hosts: vec![host], ..Snapshot::default() };
        let view = View::recalled(Token::from_bits(5), 12, snapshot);
        let mut state = State { view, ..State::default() };
        let (age, read) = (Duration::from_secs(7_200), Instant::now());
        state.recalled = Some(Recalled { age, read, ahead: false });
        state.contact.silent = Some((Instant::now(), "no controller".to_owned()));
        state.reach = Some(Ok(reach(UNDERLAY)));
        state
    }

    fn stance(change: impl FnOnce(&mut State)) -> Stance {
        let mut state = state();
        change(&mut state);
        state.stance(&"node-a".parse().unwrap())
    }

    #[test]
    fn the_snapshot_is_gone_by_only_where_nobody_knows_better() {
        assert_eq!(stance(|_| ()), Stance::Recalled);
        assert_eq!(stance(|state| state.contact.silent = None), Stance::Still(Still::Soon));
        let refused = ApiError::new(ErrorCode::HostSuperseded, "a copy");
        let stands = stance(|state| state.contact.refused = Some(refused));
        assert_eq!(stands, Stance::Still(Still::Refused));
        let ahead = |state: &mut State| state.recalled.as_mut().unwrap().ahead = true;
        assert_eq!(stance(ahead), Stance::Still(Still::Ahead));
        let (then, now) = (UNDERLAY.parse().unwrap(), "192.0.2.7".parse().unwrap());
        let moved = stance(|state| state.reach = Some(Ok(reach("192.0.2.7"))));
        assert_eq!(moved, Stance::Still(Still::Moved { then, now }));
        assert_eq!(stance(|state| state.reach = None), Stance::Still(Still::Nowhere));
        assert_eq!(stance(|state| state.view.hosts.clear()), Stance::Still(Still::Nowhere));
    }

    #[test]
    fn what_a_controller_has_told_is_followed_whatever_was_recalled() {
        let told = stance(|state| assert!(state.view.confirm(Token::from_bits(5), 12)));
        assert_eq!(told, Stance::Told);
        let more = stance(|state| assert!(!state.view.confirm(Token::from_bits(5), 13)));
        assert_eq!(more, Stance::Recalled, "it has not told of everything");
        let other = stance(|state| assert!(!state.view.confirm(Token::from_bits(6), 1)));
        assert_eq!(other, Stance::Recalled, "of another store");
    }

    #[test]
    fn people_are_told_of_which_revision_and_from_when() {
        let (state, host) = (state(), "node-a".parse().unwrap());
        let later = state.recalled.unwrap().read + Duration::from_secs(3_600);
        let words = state.recalled_words(&host, later).unwrap();
        assert!(words.contains("goes by the snapshot of revision 12 of store"), "{words}");
        assert!(words.ends_with("from 3 h ago"), "{words}");
    }
}

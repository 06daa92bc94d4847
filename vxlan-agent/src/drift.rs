//! Pure: drift: what of limpet's somebody else changed or deleted, so that it had to be put back.
//!
//! A step is drift if it was needed although nothing is wanted differently since the kernel was last right. Each is
//! counted by its kind and named by the command that mended it; the same one again is the same drift once more.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::time::{Duration, SystemTime};

use crate::step::Step;

/// How many drifts are remembered by name.
const MOST: usize = 100;

/// Somebody who undoes the same thing as often as [`OFTEN`] within this time does it on purpose.
const FIGHT: Duration = Duration::from_secs(60);

/// How often within [`FIGHT`].
const OFTEN: u32 = 10;

/// What it was that had to be put back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    /// A VXLAN device, or the host's end of a container's veth pair.
    Device,
    /// An address of a VXLAN device.
    Address,
    /// A forwarding entry.
    Fdb,
    /// A neighbour entry of the host's.
    Neighbour,
    /// A nexthop object.
    Nexthop,
    /// A route of the host's.
    Route,
    /// A policy rule.
    Rule,
    /// The nftables table.
    Nftables,
    /// A setting below `/proc/sys/net`.
    Setting,
    /// Something inside a container: its address, route or neighbour entry.
    Container,
}

impl Kind {
    /// All of them, in their order.
    pub(crate) const ALL: [Self; 10] = [
        Self::Device,
        Self::Address,
        Self::Fdb,
        Self::Neighbour,
        Self::Nexthop,
        Self::Route,
        Self::Rule,
        Self::Nftables,
        Self::Setting,
        Self::Container,
    ];

    /// What kind of thing a step mends.
    pub(crate) fn of(step: &Step) -> Self {
        match step {
            Step::NewDevice { .. } | Step::ChangeDevice { .. } | Step::DelDevice(_) => Self::Device,
            Step::SetAddress(_) => Self::Address,
            Step::SetFdb(_) | Step::DelFdb(_) => Self::Fdb,
            Step::SetNeighbour { .. } | Step::DelNeighbour { .. } => Self::Neighbour,
            Step::SetNexthop(..) | Step::DelNexthop(_) => Self::Nexthop,
            Step::SetRoute(_) | Step::DelRoute(_) => Self::Route,
            Step::SetRule(_) | Step::DelRule(_) => Self::Rule,
            Step::SetRuleset(_) => Self::Nftables,
            Step::SetSetting(..) => Self::Setting,
        }
    }

    /// Its stable name, in metrics and JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Address => "address",
            Self::Fdb => "fdb",
            Self::Neighbour => "neighbour",
            Self::Nexthop => "nexthop",
            Self::Route => "route",
            Self::Rule => "rule",
            Self::Nftables => "nftables",
            Self::Setting => "setting",
            Self::Container => "container",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A time, by both clocks: the wall's to be shown, and one that never jumps to be reckoned with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment {
    pub(crate) at: SystemTime,
    /// Since the agent started.
    pub(crate) uptime: Duration,
}

/// One thing that was put back, once or more often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Drift {
    pub(crate) kind: Kind,
    /// The command that mended it.
    pub(crate) what: String,
    /// When it was put back first and last.
    pub(crate) first: SystemTime,
    pub(crate) last: SystemTime,
    /// How often.
    pub(crate) times: u64,
    /// How often since this uptime.
    recent: (u32, Duration),
}

/// Whether a drift is one of many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Frequency {
    /// Now and then.
    Seldom,
    /// It has just become so frequent that somebody must be fighting limpet. Told once for each time it is so.
    Fought,
}

/// What was put back since the agent started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Drifts {
    /// The last ones, the latest last; each thing once.
    last: VecDeque<Drift>,
    counts: BTreeMap<Kind, u64>,
}

impl Drifts {
    /// Takes in that something was put back.
    pub(crate) fn note(&mut self, kind: Kind, what: String, now: Moment) -> Frequency {
        *self.counts.entry(kind).or_default() += 1;
        let known = self.last.iter().position(|old| old.kind == kind && old.what == what);
        let mut drift = known.and_then(|at| self.last.remove(at)).unwrap_or(Drift {
            kind,
            what,
            first: now.at,
            last: now.at,
            times: 0,
            recent: (0, now.uptime),
        });
        drift.last = now.at;
        drift.times += 1;
        if now.uptime.saturating_sub(drift.recent.1) > FIGHT {
            drift.recent = (0, now.uptime);
        }
        drift.recent.0 += 1;
        let frequency = if drift.recent.0 == OFTEN { Frequency::Fought } else { Frequency::Seldom };
        self.last.push_back(drift);
        if self.last.len() > MOST {
            self.last.pop_front();
        }
        frequency
    }

    /// How many there were of each kind, of none included.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (Kind, u64)> {
        Kind::ALL.into_iter().map(|kind| (kind, self.counts.get(&kind).copied().unwrap_or(0)))
    }

    /// The last hundred, the latest first.
    pub(crate) fn last(&self) -> impl Iterator<Item = &Drift> {
        self.last.iter().rev()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        let uptime = Duration::from_secs(seconds);
        Moment { at: SystemTime::UNIX_EPOCH + uptime, uptime }
    }

    #[test]
    fn the_same_thing_again_is_one_drift_and_counts_twice() {
        let mut drifts = Drifts::default();
        for (second, what) in [(1, "a"), (2, "b"), (3, "a")] {
            assert_eq!(drifts.note(Kind::Route, what.to_owned(), at(second)), Frequency::Seldom);
        }
        let last: Vec<_> = drifts.last().map(|drift| (drift.what.as_str(), drift.times)).collect();
        assert_eq!(last, [("a", 2), ("b", 1)]);
        let first = drifts.last().next().unwrap();
        assert_eq!((first.first, first.last), (at(1).at, at(3).at));
        let counts: BTreeMap<_, _> = drifts.counts().collect();
        assert_eq!(counts.len(), Kind::ALL.len());
        assert_eq!((counts[&Kind::Route], counts[&Kind::Fdb]), (3, 0));
    }

    #[test]
    fn only_the_last_hundred_are_remembered_and_all_are_counted() {
        let mut drifts = Drifts::default();
        for n in 0..250 {
            drifts.note(Kind::Fdb, n.to_string(), at(n));
        }
        assert_eq!(drifts.last().count(), MOST);
        assert_eq!(drifts.last().next().unwrap().what, "249");
        assert!(drifts.counts().any(|(kind, count)| kind == Kind::Fdb && count == 250));
    }

    #[test]
    fn who_undoes_the_same_thing_ten_times_in_a_minute_is_said_to_fight_once() {
        let mut drifts = Drifts::default();
        let mut fought = |seconds: &mut dyn Iterator<Item = u64>| {
            let noted = seconds.map(|s| drifts.note(Kind::Rule, "x".to_owned(), at(s)));
            noted.filter(|frequency| *frequency == Frequency::Fought).count()
        };
        assert_eq!(fought(&mut (0..9)), 0);
        assert_eq!(fought(&mut (9..30)), 1);
        assert_eq!(fought(&mut (100..1000).step_by(10)), 0);
    }
}

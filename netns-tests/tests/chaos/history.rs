//! Pure: what callers asked and were told, and whether one address book can have answered so.
//!
//! An address is a lock, so addresses are looked at one by one. A claim that was answered held its
//! address at the latest from the answer, and at least until its end was asked for; each caller does
//! one thing after another. A history is linearizable if, and only if, those times of one address
//! have nothing in common: then holding exactly for so long is one order that explains all answers.
//! The revisions in the answers are a second witness, which must agree with the clock.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

use limpet_net_types::Uid;

/// A claim, from its question to whatever became of it.
#[derive(Clone, Debug)]
pub(crate) struct Hold {
    pub(crate) uid: Uid,
    /// The name, if the claim had one that keeps its addresses.
    pub(crate) name: Option<String>,
    pub(crate) asked: Instant,
    /// When it was answered, the revision of the answer, and what was given; none if that is not known.
    pub(crate) granted: Option<(Instant, u64, Vec<IpAddr>)>,
    /// When its end was first asked for.
    pub(crate) ending: Option<Instant>,
    /// When its end was confirmed, and the revision of that.
    pub(crate) ended: Option<(Instant, u64)>,
}

/// Everything that stood in a list of attachments, read between two moments.
#[derive(Clone, Debug)]
pub(crate) struct Look {
    pub(crate) asked: Instant,
    pub(crate) answered: Instant,
    pub(crate) revision: u64,
    pub(crate) held: BTreeMap<IpAddr, Uid>,
}

/// All of it.
#[derive(Debug, Default)]
pub(crate) struct History {
    pub(crate) holds: Vec<Hold>,
    pub(crate) looks: Vec<Look>,
}

impl History {
    /// Says what no address book can have answered.
    pub(crate) fn wrongs(&self) -> Vec<String> {
        let mut wrongs = self.overlaps();
        wrongs.extend(self.backwards());
        wrongs.extend(self.changed_names());
        wrongs.extend(self.looks.iter().flat_map(|look| self.unseen(look)));
        wrongs
    }

    fn granted(&self) -> impl Iterator<Item = (&Hold, Instant, u64, &Vec<IpAddr>)> {
        self.holds.iter().filter_map(|hold| {
            let (at, revision, addresses) = hold.granted.as_ref()?;
            Some((hold, *at, *revision, addresses))
        })
    }

    /// Two that held one address at the same time.
    fn overlaps(&self) -> Vec<String> {
        let mut of_address: BTreeMap<IpAddr, Vec<(Instant, &Hold)>> = BTreeMap::new();
        for (hold, at, _, addresses) in self.granted() {
            for address in addresses {
                of_address.entry(*address).or_default().push((at, hold));
            }
        }
        let mut wrongs = Vec::new();
        for (address, mut held) in of_address {
            held.sort_by_key(|(at, _)| *at);
            for pair in held.windows(2) {
                let ((_, first), (from, second)) = (pair[0], pair[1]);
                if first.ending.is_none_or(|until| until > from) {
                    wrongs.push(format!("{address} is held by {first:?} and {second:?}"));
                }
            }
        }
        wrongs
    }

    /// What was answered before another thing was asked has the smaller revision.
    fn backwards(&self) -> Vec<String> {
        let mut times: Vec<(Instant, Instant, u64)> = Vec::new();
        for (hold, at, revision, _) in self.granted() {
            times.push((hold.asked, at, revision));
            if let (Some(ending), Some((ended, revision))) = (hold.ending, hold.ended) {
                times.push((ending, ended, revision));
            }
        }
        times.extend(self.looks.iter().map(|look| (look.asked, look.answered, look.revision)));
        times.sort_by_key(|(_, answered, _)| *answered);
        let (mut newest, mut answered) = (0, times.iter().peekable());
        let mut asked = times.clone();
        asked.sort_by_key(|(asked, ..)| *asked);
        let mut wrongs = Vec::new();
        for (question, _, revision) in asked {
            while let Some((.., before)) = answered.next_if(|(_, answered, _)| *answered < question)
            {
                newest = newest.max(*before);
            }
            if revision < newest {
                wrongs.push(format!("revision {revision} was told after {newest}"));
            }
        }
        wrongs
    }

    /// A name that keeps its addresses has always the same ones.
    fn changed_names(&self) -> Vec<String> {
        let mut kept: BTreeMap<&str, &Vec<IpAddr>> = BTreeMap::new();
        let mut wrongs = Vec::new();
        for (hold, _, _, addresses) in self.granted() {
            let Some(name) = &hold.name else { continue };
            let first = kept.entry(name).or_insert(addresses);
            if *first != addresses {
                wrongs.push(format!("{name} had {first:?}, and then {addresses:?}"));
            }
        }
        wrongs
    }

    /// What a list says that was not so at any moment while it was read.
    fn unseen(&self, look: &Look) -> Vec<String> {
        let by_uid: BTreeMap<Uid, &Hold> = self.holds.iter().map(|hold| (hold.uid, hold)).collect();
        let mut wrongs = Vec::new();
        for (address, uid) in &look.held {
            let possible = by_uid.get(uid).is_some_and(|hold| {
                hold.asked <= look.answered && hold.ended.is_none_or(|(at, _)| at >= look.asked)
            });
            if !possible {
                wrongs.push(format!("{address} is listed as {uid}'s: {:?}", by_uid.get(uid)));
            }
        }
        for (hold, at, _, addresses) in self.granted() {
            let throughout =
                at < look.asked && hold.ending.is_none_or(|ending| ending > look.answered);
            for address in addresses.iter().filter(|_| throughout) {
                if look.held.get(address) != Some(&hold.uid) {
                    wrongs.push(format!("{address} of {hold:?} is not listed"));
                }
            }
        }
        wrongs
    }

    /// What must be there in the end, and what may be.
    pub(crate) fn left(&self) -> (BTreeSet<Uid>, BTreeSet<Uid>) {
        let must = self.granted().filter(|(hold, ..)| hold.ending.is_none());
        let must: BTreeSet<Uid> = must.map(|(hold, ..)| hold.uid).collect();
        let may = self.holds.iter().filter(|hold| hold.ended.is_none());
        (must, may.map(|hold| hold.uid).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn hold(uid: u128, from: u64, until: Option<u64>, revision: u64) -> Hold {
        let epoch = *EPOCH.get_or_init(Instant::now);
        let at = |second: u64| epoch + Duration::from_secs(second);
        Hold {
            uid: Uid::from_bits(uid),
            name: None,
            asked: at(from),
            granted: Some((at(from + 1), revision, vec![[10, 0, 0, 1].into()])),
            ending: until.map(at),
            ended: until.map(|until| (at(until + 1), revision + 1)),
        }
    }

    static EPOCH: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();

    fn wrongs(holds: Vec<Hold>) -> usize {
        History { holds, looks: vec![] }.wrongs().len()
    }

    #[test]
    fn one_after_another_may_hold_an_address_and_two_at_once_may_not() {
        assert_eq!(wrongs(vec![hold(1, 0, Some(5), 1), hold(2, 4, None, 3)]), 0, "it was ending");
        assert!(wrongs(vec![hold(1, 0, Some(9), 1), hold(2, 4, None, 3)]) > 0);
        assert_eq!(wrongs(vec![hold(1, 0, None, 1), hold(2, 4, None, 3)]), 1);
    }

    #[test]
    fn a_revision_that_goes_back_is_noticed() {
        assert_eq!(wrongs(vec![hold(1, 0, Some(2), 5), hold(2, 4, None, 3)]), 1);
    }
}

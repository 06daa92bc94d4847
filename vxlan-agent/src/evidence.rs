//! Pure: which attachments are gone, by what the host itself can see.
//!
//! An attachment is ended by the agent's own judgement only if an earlier boot made it, or if it has no interface
//! and its namespace is gone too: either alone may be a moment in an ADD, or a directory that the agent
//! does not see. Never more than half of this boot's at once: if that many seem gone, the look is wrong rather.

use std::collections::BTreeSet;

use limpet_api::book::Attachment;
use limpet_net_types::{Token, Uid};

use crate::flights::Flights;
use crate::view::{Key, View};

/// What was known when a look at the interfaces began.
///
/// It is taken down first: a plugin makes its interface, confirms it and is in flight no more, all while they are
/// looked at. Who asked afterwards whether it is in flight would find it neither there nor in the making.
pub(crate) struct Begun {
    /// The incarnations that the look is about.
    known: BTreeSet<Uid>,
    flights: Flights,
}

impl Begun {
    /// Takes down what is known now.
    pub(crate) fn now(view: &View, flights: &Flights) -> Self {
        let known = view.attachments().map(|(_, attachment)| attachment.uid);
        Self { known: known.chain(view.asks.keys().copied()).collect(), flights: flights.clone() }
    }

    /// The look, once it has found the interfaces of `living`.
    pub(crate) fn found(self, living: BTreeSet<Uid>) -> Sight {
        Sight { begun: self, living }
    }
}

/// A look at the interfaces that there are.
pub(crate) struct Sight {
    begun: Begun,
    living: BTreeSet<Uid>,
}

impl Sight {
    /// Whether an incarnation had an interface, or one was being made for it. What was not known yet when the look
    /// began is not judged by it, and counts as there.
    pub(crate) fn is_there(&self, uid: Uid) -> bool {
        !self.begun.known.contains(&uid)
            || self.begun.flights.has(uid)
            || self.living.contains(&uid)
    }
}

/// What the host can see of its attachments.
pub(crate) struct Evidence<'a> {
    /// This boot.
    pub(crate) boot: Token,
    /// Whether an incarnation has an interface, or one is being made for it.
    pub(crate) is_there: &'a dyn Fn(Uid) -> bool,
    /// Whether a namespace is mounted at the path.
    pub(crate) netns_exists: &'a dyn Fn(&str) -> bool,
}

/// Which attachments are gone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Gone {
    /// Those to end now.
    pub(crate) now: Vec<(Key, Uid)>,
    /// How many more seem gone, and must wait.
    pub(crate) doubtful: usize,
}

/// Returns those of `attachments` that are gone. They must be all of the host's, or the half is not the half.
pub(crate) fn gone<'a>(
    attachments: impl Iterator<Item = (&'a Key, &'a Attachment)>,
    evidence: &Evidence<'_>,
) -> Gone {
    let (mut gone, mut of_this_boot, mut total) = (Gone::default(), Vec::new(), 0_usize);
    for (key, attachment) in attachments {
        let earlier = attachment.boot != evidence.boot;
        total += usize::from(!earlier);
        if (evidence.is_there)(attachment.uid) {
            continue;
        }
        if earlier {
            gone.now.push((key.clone(), attachment.uid));
        } else if !(evidence.netns_exists)(&attachment.netns) {
            of_this_boot.push((key.clone(), attachment.uid));
        }
    }
    let most = total.div_ceil(2);
    gone.doubtful = of_this_boot.len().saturating_sub(most);
    of_this_boot.truncate(most);
    gone.now.append(&mut of_this_boot);
    gone
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    fn ended(boots: &[u128], there: &[u128], mounted: bool) -> (Vec<u128>, usize) {
        let attachments: Vec<_> = (1_u8..)
            .zip(boots)
            .map(|(n, boot)| {
                let mut attachment = fixture::attachment(n, n.into());
                attachment.boot = Token::from_bits(*boot);
                (Key::of(&attachment), attachment)
            })
            .collect();
        let evidence = Evidence {
            boot: Token::from_bits(1),
            is_there: &|uid| there.contains(&uid.bits()),
            netns_exists: &|_| mounted,
        };
        let gone = gone(attachments.iter().map(|(key, attachment)| (key, attachment)), &evidence);
        (gone.now.into_iter().map(|(_, uid)| uid.bits()).collect(), gone.doubtful)
    }

    /// Who is taken for gone in a look: the view when it began, what was in flight then, who was listed.
    fn missed(attachments: &[u8], flights: &Flights, listed: &[u128]) -> Vec<u128> {
        let known = attachments.iter().map(|n| fixture::attachment(*n, u128::from(*n)));
        let snapshot = limpet_api::host::Snapshot {
            attachments: known.collect(),
            ..limpet_api::host::Snapshot::default()
        };
        let begun = Begun::now(&fixture::view(snapshot), flights);
        let sight = begun.found(listed.iter().map(|uid| Token::from_bits(*uid)).collect());
        (1..=4).filter(|uid| !sight.is_there(Token::from_bits(*uid))).collect()
    }

    /// Whereabouts 207: the living were listed before the reservations were read.
    #[test]
    fn a_pod_that_started_after_the_living_were_listed_is_not_collected() {
        assert_eq!(missed(&[1, 2], &Flights::default(), &[1]), [2], "3 and 4 came later");
    }

    /// Whereabouts 162: a pod that is starting shows no address yet.
    #[test]
    fn a_pending_pod_that_has_no_interface_yet_is_not_collected() {
        let mut flights = Flights::default();
        flights.begin(Token::from_bits(2), 1, Key::of(&fixture::attachment(2, 2)));
        assert_eq!(missed(&[1, 2, 3], &flights, &[1]), [3]);
    }

    #[test]
    fn what_an_earlier_boot_made_is_gone_however_much_it_is() {
        assert_eq!(ended(&[0, 0, 0], &[], true), (vec![1, 2, 3], 0));
    }

    #[test]
    fn an_interface_or_a_namespace_is_enough_to_stay() {
        assert_eq!(ended(&[1, 1], &[1, 2], false), (vec![], 0));
        assert_eq!(ended(&[1, 1], &[], true), (vec![], 0));
        assert_eq!(ended(&[0], &[1], false), (vec![], 0));
    }

    #[test]
    fn never_more_than_half_of_this_boots_at_once() {
        assert_eq!(ended(&[1, 1, 1, 1], &[], false), (vec![1, 2], 2));
        assert_eq!(ended(&[1], &[], false), (vec![1], 0));
        assert_eq!(ended(&[0, 0, 1, 1], &[], false), (vec![1, 2, 3], 1));
    }
}

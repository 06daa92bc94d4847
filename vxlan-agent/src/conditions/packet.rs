//! Pure: what becomes of limpet's packets in other programs' chains, as far as their rules can be understood.
//!
//! A rule either matches a packet, or does not, or may. What may be accepted is not called dropped, and what some rule
//! drops for a reason of its own (a block list, say) is its maker's will: only what falls through to a drop counts.

use std::collections::BTreeMap;

use limpet_net_types::{Family, Range};

/// How deep chains may call each other: as deep as the kernel lets them.
const DEEPEST: usize = 16;

/// A packet of limpet's that must pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) family: Family,
    pub(crate) from: Device,
    /// None of a packet for the host itself.
    pub(crate) to: Option<Device>,
    /// Where it may come from.
    pub(crate) sources: Vec<Range>,
    /// Where it may go to; none if that is any of the host's addresses.
    pub(crate) destinations: Vec<Range>,
    /// The UDP port that it is for, if it is VXLAN's own.
    pub(crate) port: Option<u16>,
}

/// A device as rules name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) name: String,
    pub(crate) group: u32,
}

/// Whether something is so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Truth {
    No,
    Maybe,
    Yes,
}

impl Truth {
    pub(crate) fn not(self) -> Self {
        match self {
            Self::No => Self::Yes,
            Self::Maybe => Self::Maybe,
            Self::Yes => Self::No,
        }
    }

    /// Whether both are so.
    pub(crate) fn and(self, other: Self) -> Self {
        self.min(other)
    }

    /// Whether either is so.
    pub(crate) fn or(self, other: Self) -> Self {
        self.max(other)
    }
}

impl From<bool> for Truth {
    fn from(so: bool) -> Self {
        if so { Self::Yes } else { Self::No }
    }
}

/// What a rule does with what it matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Continue,
    Accept,
    Drop,
    Return,
    Jump(String),
    Goto(String),
    /// Something that is not understood.
    Unknown,
}

/// A rule, as far as one packet is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) matches: Truth,
    pub(crate) verdict: Verdict,
    /// The rule in its own language.
    pub(crate) text: String,
}

/// A chain, as far as one packet is concerned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chain {
    /// Whether what falls through is dropped.
    pub(crate) drops: bool,
    pub(crate) rules: Vec<Rule>,
}

/// Chains of one table by their names.
pub(crate) type Chains = BTreeMap<String, Chain>;

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Passes,
    /// It is dropped, by the rule or the policy named; for certain unless some rule may accept it before.
    Dropped {
        by: String,
        certain: bool,
    },
}

impl Packet {
    /// Whether a packet's source, or its destination, is among the addresses from `first` to `last`.
    pub(crate) fn address_in(ranges: &[Range], among: Range) -> Truth {
        let disjoint = |range: &Range| range.last() < among.first() || among.last() < range.first();
        let inside = |range: &Range| among.first() <= range.first() && range.last() <= among.last();
        if ranges.is_empty() {
            return Truth::Maybe;
        }
        if ranges.iter().all(inside) {
            return Truth::Yes;
        }
        if ranges.iter().all(disjoint) { Truth::No } else { Truth::Maybe }
    }
}

/// What becomes of the packet in the base chain of this name.
pub(crate) fn fate(chains: &Chains, base: &str) -> Fate {
    let mut maybe_accepted = false;
    let by = match walk(chains, base, 0, &mut maybe_accepted) {
        End::Dropped(by) => by,
        End::Fell if chains.get(base).is_some_and(|chain| chain.drops) => {
            format!("the policy of the chain {base}")
        }
        End::Accepted | End::Fell => return Fate::Passes,
    };
    Fate::Dropped { by, certain: !maybe_accepted }
}

enum End {
    Accepted,
    Dropped(String),
    Fell,
}

fn walk(chains: &Chains, name: &str, depth: usize, maybe_accepted: &mut bool) -> End {
    let Some(chain) = chains.get(name).filter(|_| depth < DEEPEST) else {
        *maybe_accepted = true;
        return End::Fell;
    };
    for rule in &chain.rules {
        let surely = match rule.matches {
            Truth::No => continue,
            Truth::Maybe => false,
            Truth::Yes => true,
        };
        let end = match &rule.verdict {
            Verdict::Continue => continue,
            Verdict::Unknown => {
                *maybe_accepted = true;
                continue;
            }
            Verdict::Drop => End::Dropped(format!("the rule `{}`", rule.text)),
            Verdict::Return if surely => return End::Fell,
            // What may have returned meets what its caller says, which may accept it too.
            Verdict::Accept | Verdict::Return => End::Accepted,
            Verdict::Jump(to) | Verdict::Goto(to) => walk(chains, to, depth + 1, maybe_accepted),
        };
        match (end, surely) {
            (End::Fell, true) if matches!(rule.verdict, Verdict::Goto(_)) => return End::Fell,
            // Or it goes on here.
            (End::Fell, false) if matches!(rule.verdict, Verdict::Goto(_)) => {
                *maybe_accepted = true;
            }
            (End::Fell, _) | (End::Dropped(_), false) => {}
            (End::Accepted, false) => *maybe_accepted = true,
            (end, true) => return end,
        }
    }
    End::Fell
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rule(matches: Truth, verdict: Verdict) -> Rule {
        Rule { matches, verdict, text: "r".to_owned() }
    }

    fn chains(drops: bool, rules: Vec<Rule>) -> Chains {
        let called = vec![rule(Truth::Yes, Verdict::Drop)];
        let empty = Chain::default();
        let base = Chain { drops, rules };
        [("base", base), ("drop", Chain { drops: false, rules: called }), ("empty", empty)]
            .map(|(name, chain)| (name.to_owned(), chain))
            .into()
    }

    #[test]
    fn a_packet_falls_to_the_policy_unless_a_rule_takes_it() {
        use Truth::{Maybe, No, Yes};
        let dropped = |by: &str, certain| Fate::Dropped { by: by.to_owned(), certain };
        let policy = "the policy of the chain base";
        for (drops, rules, wanted) in [
            (true, vec![], dropped(policy, true)),
            (false, vec![], Fate::Passes),
            (true, vec![rule(No, Verdict::Accept)], dropped(policy, true)),
            (true, vec![rule(Maybe, Verdict::Accept)], dropped(policy, false)),
            (true, vec![rule(Yes, Verdict::Accept)], Fate::Passes),
            (false, vec![rule(Maybe, Verdict::Drop)], Fate::Passes),
            (false, vec![rule(Yes, Verdict::Drop)], dropped("the rule `r`", true)),
            (false, vec![rule(Yes, Verdict::Jump("drop".into()))], dropped("the rule `r`", true)),
            (true, vec![rule(Yes, Verdict::Jump("empty".into()))], dropped(policy, true)),
            (true, vec![rule(Yes, Verdict::Jump("unheard".into()))], dropped(policy, false)),
            (
                true,
                vec![rule(Yes, Verdict::Goto("empty".into())), rule(Yes, Verdict::Accept)],
                dropped(policy, true),
            ),
            (true, vec![rule(Yes, Verdict::Unknown)], dropped(policy, false)),
            (true, vec![rule(Yes, Verdict::Return), rule(Yes, Verdict::Accept)], {
                dropped(policy, true)
            }),
        ] {
            assert_eq!(fate(&chains(drops, rules.clone()), "base"), wanted, "{rules:?}");
        }
    }

    #[test]
    fn chains_that_call_each_other_in_a_circle_end() {
        let circle =
            Chain { drops: true, rules: vec![rule(Truth::Yes, Verdict::Jump("a".into()))] };
        let chains = [("a".to_owned(), circle)].into();
        assert!(matches!(fate(&chains, "a"), Fate::Dropped { certain: false, .. }));
    }

    #[test]
    fn an_address_is_in_a_prefix_or_not_or_perhaps() {
        let pool = |text: &str| text.parse::<Range>().unwrap();
        let pools = [pool("10.32.0.0/16"), pool("10.33.0.0/16")];
        assert_eq!(Packet::address_in(&pools, pool("10.0.0.0/8")), Truth::Yes);
        assert_eq!(Packet::address_in(&pools, pool("10.32.0.0/16")), Truth::Maybe);
        assert_eq!(Packet::address_in(&pools, pool("192.0.2.0/24")), Truth::No);
        assert_eq!(Packet::address_in(&[], pool("192.0.2.0/24")), Truth::Maybe);
    }

    fn any_rule() -> impl Strategy<Value = Rule> {
        let truth = prop_oneof![Just(Truth::No), Just(Truth::Maybe), Just(Truth::Yes)];
        let verdict = prop_oneof![
            Just(Verdict::Continue),
            Just(Verdict::Accept),
            Just(Verdict::Drop),
            Just(Verdict::Return),
            Just(Verdict::Jump("drop".into())),
            Just(Verdict::Jump("base".into())),
            Just(Verdict::Goto("empty".into())),
            Just(Verdict::Unknown),
        ];
        (truth, verdict).prop_map(|(matches, verdict)| rule(matches, verdict))
    }

    proptest! {
        #[test]
        fn what_may_be_so_never_makes_a_fate_certain_that_would_be_another_if_it_is(
            rules in prop::collection::vec(any_rule(), 0..5), drops: bool,
        ) {
            let told = fate(&chains(drops, rules.clone()), "base");
            if let Fate::Dropped { certain: true, .. } = told {
                // However the doubtful ones turn out, it is dropped.
                for bits in 0..32u32 {
                    let mut decided = rules.clone();
                    for (n, rule) in decided.iter_mut().enumerate() {
                        if rule.matches == Truth::Maybe {
                            rule.matches = (bits >> n & 1 == 1).into();
                        }
                    }
                    let really = fate(&chains(drops, decided), "base");
                    prop_assert!(matches!(really, Fate::Dropped { .. }), "{:?}", rules);
                }
            }
        }
    }
}

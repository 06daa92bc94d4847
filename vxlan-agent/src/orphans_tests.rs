//! Pure: which interfaces are judged, over hosts with few of everything.

use std::collections::{BTreeMap, BTreeSet};

use limpet_api::host::Snapshot;
use proptest::prelude::*;

use super::*;
use crate::fixture;
use crate::veths::Interface;

/// One incarnation: what there is of it.
#[expect(clippy::struct_excessive_bools, reason = "each is there or not by itself")]
#[derive(Clone, Copy, Debug)]
struct Case {
    /// Which container; several incarnations may be of one.
    container: u8,
    interface: bool,
    severed: bool,
    attached: bool,
    recorded: bool,
    flying: bool,
    ending: bool,
    /// Whether this boot made it.
    of_boot: bool,
    /// The revision of its answer: 1 is what the watch has told, 2 is newer.
    revision: u64,
    /// Whether another store answered, whose revisions say nothing.
    elsewhere: bool,
}

fn case() -> impl Strategy<Value = Case> {
    let flags = any::<[bool; 8]>();
    (1..3_u8, flags, 1..3_u64).prop_map(|(container, flags, revision)| {
        let [interface, severed, attached, recorded, flying, ending, of_boot, elsewhere] = flags;
        Case {
            container,
            interface,
            severed,
            attached,
            recorded,
            flying,
            ending,
            of_boot,
            revision,
            elsewhere,
        }
    })
}

/// What is done about the incarnations 0, 1, ... of these cases.
fn judged(cases: &[Case], all: bool) -> (BTreeSet<u128>, BTreeSet<u128>) {
    let attachment = |uid: usize, case: &Case| {
        let mut attachment = fixture::attachment(case.container, u128::try_from(uid).unwrap());
        attachment.boot = Token::from_bits(if case.of_boot { 1 } else { 2 });
        attachment
    };
    let of = |wanted: fn(&Case) -> bool| {
        cases
            .iter()
            .enumerate()
            .filter(move |(_, case)| wanted(case))
            .map(|(uid, case)| (attachment(uid, case), *case))
            .collect::<Vec<_>>()
    };
    let attachments = of(|case| case.attached).into_iter().map(|(a, _)| a).collect();
    let view = fixture::view(Snapshot { attachments, ..Snapshot::default() });
    let records = of(|case| case.recorded)
        .into_iter()
        .map(|(attachment, case)| {
            let mut record = fixture::record(1, 0);
            record.store = Token::from_bits(if case.elsewhere { 2 } else { 1 });
            (record.revision, record.attachment) = (case.revision, attachment);
            (record.attachment.uid, record)
        })
        .collect();
    let interfaces: Interfaces = of(|case| case.interface)
        .into_iter()
        .map(|(attachment, case)| {
            let key = Key::of(&attachment);
            let name = host_ifname(&key.network, &key.container, &key.ifname);
            (
                attachment.uid,
                Interface {
                    name,
                    up: !case.severed,
                    severed: case.severed,
                    index: 7,
                    mtu: 1450,
                    peer: 2,
                    netns: None,
                },
            )
        })
        .collect();
    let mut flights = Flights::default();
    for (attachment, _) in of(|case| case.flying) {
        flights.begin(attachment.uid, 1, Key::of(&attachment));
    }
    let endings: BTreeMap<Uid, Key> =
        of(|case| case.ending).into_iter().map(|(a, _)| (a.uid, Key::of(&a))).collect();
    let known = Known {
        host: &"node-a".parse().unwrap(),
        boot: Token::from_bits(1),
        view: &view,
        flights: &flights,
        records: &records,
        endings: &endings,
    };
    let found = orphans(&interfaces, all, &known);
    let Orphans { assert, sever } = found.still(&interfaces, &flights);
    let bits = |uid: &Uid| uid.bits();
    (assert.iter().map(|a| a.uid.bits()).collect(), sever.iter().map(bits).collect())
}

const LIVES: Case = Case {
    container: 1,
    interface: true,
    severed: false,
    attached: false,
    recorded: true,
    flying: false,
    ending: false,
    of_boot: true,
    revision: 1,
    elsewhere: false,
};

#[test]
fn what_lives_and_is_missing_is_asserted_and_what_nothing_is_known_of_is_severed() {
    let case = |case| judged(&[case], false);
    let (none, it) = (BTreeSet::new(), BTreeSet::from([0]));
    assert_eq!(case(LIVES), (it.clone(), none.clone()));
    assert_eq!(case(Case { recorded: false, ..LIVES }), (none.clone(), it.clone()));
    let newer = Case { revision: 2, ..LIVES };
    assert_eq!(case(newer), (none.clone(), none.clone()), "the watch has not told of it yet");
    assert_eq!(case(Case { elsewhere: true, ..newer }), (it.clone(), none.clone()));
    for left_alone in [
        Case { attached: true, ..LIVES },
        Case { flying: true, ..LIVES },
        Case { ending: true, ..LIVES },
        Case { of_boot: false, ..LIVES },
        Case { severed: true, ..LIVES },
        Case { severed: true, recorded: false, ..LIVES },
        Case { interface: false, ..LIVES },
    ] {
        assert_eq!(case(left_alone), (none.clone(), none.clone()), "{left_alone:?}");
    }
    let all = |case| judged(&[case], true);
    assert_eq!(all(Case { attached: true, ..LIVES }), (it.clone(), none.clone()));
    assert_eq!(all(Case { severed: true, ..LIVES }), (it.clone(), none.clone()));
    assert_eq!(all(Case { attached: true, of_boot: false, ..LIVES }), (it.clone(), none.clone()));
    let begun = Case { flying: true, interface: false, ..LIVES };
    assert_eq!(all(begun), (it, none.clone()), "what is being made is not to be ended");
    assert_eq!(all(Case { ending: true, ..LIVES }), (none.clone(), none));
}

#[test]
fn an_interface_is_not_judged_while_an_add_of_its_name_is_under_way() {
    let flying = Case { interface: false, recorded: false, flying: true, ..LIVES };
    let unknown = Case { recorded: false, ..LIVES };
    assert_eq!(judged(&[unknown, flying], false), (BTreeSet::new(), BTreeSet::new()));
    let elsewhere = Case { container: 2, ..flying };
    assert_eq!(judged(&[unknown, elsewhere], false).1, BTreeSet::from([0]));
}

proptest! {
    #[test]
    fn only_what_is_here_and_settled_is_touched(
        cases in prop::collection::vec(case(), 0..5),
        all in any::<bool>(),
    ) {
        let (asserted, severed) = judged(&cases, all);
        prop_assert!(asserted.is_disjoint(&severed));
        for (uid, case) in cases.iter().enumerate() {
            let uid = u128::try_from(uid).unwrap();
            // Of two attachments of one key the view has one.
            let begun = all && case.flying;
            let touched = asserted.contains(&uid) || severed.contains(&uid);
            if touched && !begun {
                prop_assert!(case.interface && !case.flying && !case.ending, "{case:?}");
            }
            if asserted.contains(&uid) {
                prop_assert!(begun || case.of_boot || (all && case.attached), "{case:?}");
                prop_assert!(case.recorded || case.attached, "nothing is invented: {case:?}");
                let old = case.recorded && case.revision > 1 && !case.elsewhere;
                prop_assert!(all || !old, "judged by an older state: {case:?}");
            }
            if severed.contains(&uid) {
                prop_assert!(!case.recorded && !case.severed, "{case:?}");
            }
        }
    }
}

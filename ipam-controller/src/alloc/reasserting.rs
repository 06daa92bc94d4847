//! Pure: a store that is older than the truth, and hosts that say what lives on them, in any order.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use limpet_api::ErrorCode;
use limpet_api::book::{Attachment, AttachmentKey, EndReason};
use limpet_api::host::{ClaimRequest, EndRequest, ReassertOutcome, Wanted};
use limpet_api::restore::RestoreCause;
use limpet_net_types::{HostName, Token};
use proptest::prelude::*;

use super::claim::claim;
use super::ends::end;
use super::reassert::{Fate, missing, reassert};
use super::{Patience, reserve, restored};
use crate::draft::Draft;
use crate::state::reservation_key;
use crate::state::sample::{Sample, name};
use crate::store::Revision;

const HOSTS: [&str; 3] = ["a", "b", "c"];

/// The session of every host of a [`Sample`].
fn session() -> Token {
    Token::from_bits(7)
}

fn sample() -> Sample {
    let mut sample = Sample::new();
    sample.network("blue");
    for host in HOSTS {
        sample.host(host);
    }
    sample.pool("p", "10.0.0.0/29", |pool| pool.block_size = 2);
    sample
}

fn key(host: &str, container: &str) -> AttachmentKey {
    AttachmentKey {
        host: name(host),
        network: name("blue"),
        container: name(container),
        ifname: name("eth0"),
    }
}

fn attach(sample: &mut Sample, host: &str, container: &str, workload: Option<&str>) -> bool {
    let uid = Token::from_bits(sample.state().revision().0.into());
    let wanted = Wanted { name: workload.map(name), ..Wanted::default() };
    let request = ClaimRequest { session: session(), uid, wanted };
    let key = key(host, container);
    sample.decided(|state| claim(state, &key, &request, Patience::Over)).is_ok()
}

fn detach(sample: &mut Sample, key: &AttachmentKey) {
    let Some(entry) = sample.state().attachment(key) else { return };
    let request =
        EndRequest { session: session(), uid: entry.record.uid, reason: EndReason::Detached };
    sample.decided(|state| end(state, key, &request)).unwrap();
}

/// Makes the copy of an earlier time the store.
fn restore(backup: &mut Sample) {
    let mut draft = Draft::default();
    let fresh = Token::from_bits(2);
    restored::write_restored(backup.state(), &mut draft, fresh, RestoreCause::Restored);
    backup.commit(&draft.into_txn());
}

/// What lives: by its key.
type Living = BTreeMap<AttachmentKey, Attachment>;

fn living(truth: &Sample) -> Living {
    truth.state().attachments().map(|it| (it.record.key.clone(), it.record.clone())).collect()
}

/// A host says all that lives on it, as its controller takes it in. Returns whether it is done with,
/// and what became of what is.
fn speak(sample: &mut Sample, host: &str, living: &Living) -> (bool, Vec<ReassertOutcome>) {
    let host: HostName = name(host);
    let mine: Vec<_> = living.values().filter(|it| it.key.host == host).collect();
    let spoken = sample.state().restored().is_some_and(|it| it.record.spoken.contains(&host));
    let known: Vec<_> =
        sample.state().attachments_of(&host).map(|entry| entry.record.clone()).collect();
    for old in known.iter().filter(|old| !spoken && mine.iter().all(|it| it.uid != old.uid)) {
        sample.decided(|state| missing(state, &old.key, old.uid, session())).unwrap();
    }
    sample.decided(|state| restored::spoke(state, &host, session())).unwrap();
    let mut outcomes = Vec::new();
    for asserted in &mine {
        match sample.decided(|state| reassert(state, asserted, session())).unwrap() {
            Fate::Known(outcome) => outcomes.push(outcome),
            Fate::Waits(other) => assert_ne!(other, host, "nobody waits for itself"),
        }
    }
    let is_done = outcomes.len() == mine.len();
    if is_done {
        sample.decided(|state| restored::complete(state, &host, session())).unwrap();
    }
    (is_done, outcomes)
}

/// Every host speaks until it is done with, in the order given; it must end.
fn speak_all(sample: &mut Sample, order: &[usize], living: &Living) -> Vec<ReassertOutcome> {
    let mut left: Vec<&str> = order.iter().map(|index| HOSTS[*index]).collect();
    left.extend(HOSTS);
    let mut seen = BTreeSet::new();
    left.retain(|host| seen.insert(*host));
    let mut all = Vec::new();
    for _ in 0..=HOSTS.len() {
        left.retain(|host| {
            let (is_done, outcomes) = speak(sample, host, living);
            all.extend(outcomes);
            !is_done
        });
    }
    assert!(left.is_empty(), "somebody waits for ever: {left:?}");
    all
}

/// No address has two attachments, and slots and attachments agree.
fn nobody_shares(sample: &Sample) {
    let mut holders: BTreeMap<IpAddr, Token> = BTreeMap::new();
    for entry in sample.state().attachments() {
        for held in &entry.record.addresses {
            let before = holders.insert(held.address, entry.record.uid);
            assert_eq!(before, None, "{} has two attachments", held.address);
            let slot = sample.state().slot(&name("blue"), held.address).unwrap();
            assert_eq!(slot.record.attachment.as_ref().map(|it| it.uid), Some(entry.record.uid));
        }
    }
    for pool in sample.state().pools() {
        for (address, slot) in sample.state().slots_of(&pool.record) {
            let holder = slot.record.attachment.as_ref().map(|it| it.uid);
            assert_eq!(holder, holders.get(&address).copied(), "{address}");
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Attach(usize, usize, Option<usize>),
    Detach(usize),
    Release(usize),
    Wait,
}

fn step(releases: bool) -> impl Strategy<Value = Step> {
    let last = if releases { 4_u8 } else { 3 };
    (0..=last, 0..3_usize, 0..4_usize, prop::option::of(0..3_usize)).prop_map(
        move |(kind, host, container, workload)| match kind {
            0 | 1 => Step::Attach(host, container, workload),
            2 => Step::Detach(container),
            3 => Step::Wait,
            _ => Step::Release(container),
        },
    )
}

fn go(sample: &mut Sample, step: &Step) {
    match step {
        Step::Attach(host, container, workload) => {
            let workload = workload.map(|index| format!("web-{index}"));
            attach(sample, HOSTS[*host], &format!("c{container}"), workload.as_deref());
        }
        Step::Detach(nth) => {
            let keys: Vec<_> = living(sample).into_keys().collect();
            if let Some(key) = keys.get(*nth) {
                detach(sample, key);
            }
        }
        Step::Release(index) => {
            let key = reservation_key(&name("blue"), &name("_"), &name(&format!("web-{index}")));
            let _ = sample.decided(|state| reserve::release(state, &key));
        }
        Step::Wait => sample.wait(10),
    }
}

fn all(sample: &mut Sample, steps: &[Step]) {
    for step in steps {
        go(sample, step);
    }
}

proptest! {
    #[test]
    fn however_old_the_backup_all_that_lives_keeps_its_address_in_any_order(
        before in prop::collection::vec(step(false), 0..12),
        after in prop::collection::vec(step(false), 0..12),
        order in prop::collection::vec(0..3_usize, 0..4),
    ) {
        let mut truth = sample();
        all(&mut truth, &before);
        let mut backup = truth.copy();
        all(&mut truth, &after);
        restore(&mut backup);
        let lives = living(&truth);
        speak_all(&mut backup, &order, &lives);
        nobody_shares(&backup);
        let known: Living = living(&backup);
        prop_assert_eq!(known.keys().collect::<Vec<_>>(), lives.keys().collect::<Vec<_>>());
        for (key, lives) in &lives {
            prop_assert_eq!(known[key].uid, lives.uid);
            prop_assert_eq!(&known[key].addresses, &lives.addresses);
        }
        prop_assert!(backup.state().restored().unwrap().record.waiting.is_empty());
    }

    #[test]
    fn where_reservations_were_released_since_nothing_is_given_twice_and_the_rest_lives(
        before in prop::collection::vec(step(true), 0..12),
        after in prop::collection::vec(step(true), 0..12),
        order in prop::collection::vec(0..3_usize, 0..4),
    ) {
        let mut truth = sample();
        all(&mut truth, &before);
        let mut backup = truth.copy();
        all(&mut truth, &after);
        restore(&mut backup);
        let lives = living(&truth);
        let outcomes = speak_all(&mut backup, &order, &lives);
        nobody_shares(&backup);
        let mut severed = 0;
        for outcome in outcomes {
            if let ReassertOutcome::Severed { why, .. } = outcome {
                prop_assert!(why.contains("reserved for"), "{why}");
                severed += 1;
            }
        }
        prop_assert!(living(&backup).len() + severed >= lives.len());
    }
}

#[test]
fn nothing_new_is_given_until_every_host_has_spoken_or_is_waived() {
    let mut sample = sample();
    attach(&mut sample, "a", "c1", Some("web-0"));
    let lives = living(&sample);
    restore(&mut sample);
    let refused = |sample: &mut Sample| {
        let key = key("b", "c2");
        let request =
            ClaimRequest { session: session(), uid: session(), wanted: Wanted::default() };
        sample.decided(|state| claim(state, &key, &request, Patience::Over)).unwrap_err()
    };
    let error = refused(&mut sample);
    assert_eq!(error.code, ErrorCode::StoreRestored);
    assert!(error.message.contains("3 of 3 hosts") && error.message.contains("a, b, c"), "{error}");
    let again = ClaimRequest {
        session: session(),
        uid: lives.values().next().unwrap().uid,
        wanted: Wanted::default(),
    };
    let mine = key("a", "c1");
    sample.decided(|state| claim(state, &mine, &again, Patience::Over)).unwrap();
    assert!(speak(&mut sample, "a", &lives).0);
    assert!(speak(&mut sample, "b", &lives).0);
    assert!(refused(&mut sample).message.contains("1 of 3 hosts"), "and so on");
    detach(&mut sample, &mine);
    sample.decided(|state| restored::waive(state, &[name("c")])).unwrap();
    assert!(attach(&mut sample, "b", "c2", None));
}

#[test]
fn a_waived_host_that_comes_late_keeps_what_nobody_has_and_is_told_who_has_the_rest() {
    let mut truth = sample();
    let mut backup = truth.copy();
    for container in ["c1", "c2"] {
        attach(&mut truth, "a", container, None);
        truth.wait(10);
    }
    let lives = living(&truth);
    restore(&mut backup);
    backup.decided(|state| restored::waive(state, &HOSTS.map(name))).unwrap();
    attach(&mut backup, "b", "c3", None);
    let taken = backup.state().attachment(&key("b", "c3")).unwrap().record.clone();
    let lost = lives.values().find(|it| it.addresses == taken.addresses).cloned();
    let (is_done, outcomes) = speak(&mut backup, "a", &lives);
    assert!(is_done);
    nobody_shares(&backup);
    let severed = outcomes.iter().filter_map(|outcome| match outcome {
        ReassertOutcome::Severed { holder, .. } => holder.clone(),
        _ => None,
    });
    let severed: Vec<_> = severed.map(|holder| holder.uid).collect();
    assert_eq!(severed, lost.map(|_| taken.uid).into_iter().collect::<Vec<_>>());
    assert!(outcomes.contains(&ReassertOutcome::Restored));
}

#[test]
fn an_attachment_of_an_earlier_boot_is_not_restored() {
    let mut truth = sample();
    let mut backup = truth.copy();
    attach(&mut truth, "a", "c1", None);
    let mut old = living(&truth).into_values().next().unwrap();
    old.boot = Token::from_bits(1);
    restore(&mut backup);
    let fate = backup.decided(|state| reassert(state, &old, session())).unwrap();
    assert!(matches!(fate, Fate::Known(ReassertOutcome::Severed { .. })), "{fate:?}");
}

#[test]
fn a_store_that_is_behind_what_a_host_knows_becomes_another_one() {
    let mut sample = sample();
    let (store, newest) = (sample.state().store(), sample.state().revision());
    let fresh = Token::from_bits(9);
    for known in [newest, Revision(newest.0 - 1)] {
        let is = sample.decided(|state| restored::set_back(state, (store, known), fresh)).unwrap();
        assert!(!is && sample.state().restored().is_none());
    }
    let known = newest.next();
    assert!(sample.decided(|state| restored::set_back(state, (store, known), fresh)).unwrap());
    let record = &sample.state().restored().unwrap().record;
    assert_eq!((record.cause, record.waiting.len()), (RestoreCause::SetBack, 3));
    assert_eq!(sample.state().store(), fresh);
    let again = sample.decided(|state| restored::set_back(state, (store, known), store)).unwrap();
    assert!(!again, "it is another store already");
}

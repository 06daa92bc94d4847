//! Pure: the steps by which names lose, pass on and take over what is reserved, beside what ought to
//! come of them.

use std::collections::BTreeSet;

use limpet_api::book::{AttachmentKey, Rename};
use limpet_api::holding::PoolRelease;
use limpet_api::{ErrorCode, Span};
use limpet_net_types::{HostName, Token, WorkloadName};

use super::{Model, RETENTION, reservation, try_claim};
use crate::alloc::{Patience, rename, retention, sweep};
use crate::rules::silence;
use crate::state::State;
use crate::state::sample::{Sample, name};

/// The names that nobody has held for so many seconds.
fn idle(sample: &Sample, model: &Model, seconds: u64) -> BTreeSet<WorkloadName> {
    let now = sample.state().now();
    let is_idle = |name: &&WorkloadName| {
        model.idle.get(*name).is_some_and(|since| now.since(*since).seconds() >= seconds)
    };
    model.kept.keys().filter(is_idle).cloned().collect()
}

pub(super) fn expire(sample: &mut Sample, model: &mut Model) {
    let mut expected = idle(sample, model, RETENTION);
    expected.retain(|name| !model.operators.contains(name));
    let over: Vec<_> = retention::over(sample.state()).collect();
    let names: BTreeSet<_> = over.iter().map(|key| key.name.clone()).collect();
    assert_eq!(names, expected, "those whose time is over, and no others");
    for key in over {
        sample.decided(|state| retention::expire(state, &key)).unwrap();
        model.forget(&key.name);
    }
    let cooled: Vec<_> = retention::cooled(sample.state()).collect();
    sample.decided(|state| retention::forget(state, &cooled)).unwrap();
}

pub(super) fn release_all(sample: &mut Sample, model: &mut Model, seconds: u64) {
    let expected = idle(sample, model, seconds);
    let mut wanted = PoolRelease {
        detached_for: Some(Span::from_seconds(seconds)),
        limit: Some(1),
        ..PoolRelease::default()
    };
    let (pool, mut names) = (name("p4"), BTreeSet::new());
    loop {
        let found = sweep::idle(sample.state(), &pool, &wanted).unwrap();
        for (key, _) in found.found {
            let decide = |state: &State| sweep::release(state, &pool, &key, &wanted);
            let gone = sample.decided(decide).unwrap().expect("nothing has happened since");
            assert_eq!(model.holder_of(&gone.addresses), None, "nobody loses what is in use");
            model.forget(&gone.name);
            names.insert(gone.name);
        }
        wanted.after = found.next;
        if found.next.is_none() {
            break;
        }
    }
    assert_eq!(names, expected, "all that were idle, and no others");
}

pub(super) fn give_name(
    sample: &mut Sample,
    model: &mut Model,
    from: &WorkloadName,
    to: &WorkloadName,
) {
    let running: Vec<AttachmentKey> =
        sample.state().attachments().map(|entry| entry.record.key.clone()).collect();
    let asked = Rename { namespace: name("_"), name: to.clone() };
    let before = sample.state().clone();
    let kept = model.kept.get(from).cloned();
    let decide = |state: &State| rename::rename(state, &reservation(from), &asked, &running);
    match sample.decided(decide) {
        Ok(_) if from == to => assert_eq!(*sample.state(), before, "to itself"),
        Ok(entry) => {
            let given: Vec<_> = entry.record.addresses.iter().map(|h| h.address).collect();
            assert_eq!(Some(&given), kept.as_ref(), "the same addresses");
            assert!(model.holder_of(&given).is_none() && !model.kept.contains_key(to));
            let (since, operators) =
                (model.idle.get(from).copied(), model.operators.contains(from));
            model.forget(from);
            model.kept.insert(to.clone(), given);
            model.idle.extend(since.map(|since| (to.clone(), since)));
            model.operators.extend(operators.then(|| to.clone()));
        }
        Err(error) => {
            assert_eq!(*sample.state(), before, "a refusal changes nothing");
            match error.code {
                ErrorCode::ReservationNotFound => assert_eq!(kept, None),
                ErrorCode::ReservationInUse => {
                    assert!(model.holder_of(&kept.unwrap()).is_some());
                }
                ErrorCode::ReservationExists => assert!(model.kept.contains_key(to)),
                ErrorCode::NameInUse => {
                    assert!(before.attachments().any(|entry| entry.record.name == *to));
                }
                _ => panic!("{error}"),
            }
        }
    }
}

/// The other host is silent for as long as the pools wait, and a name comes up on this one.
pub(super) fn take_over(
    sample: &mut Sample,
    model: &mut Model,
    key: &AttachmentKey,
    workload: &WorkloadName,
) {
    let other: HostName = name(if key.host.as_str() == "a" { "b" } else { "a" });
    let (session, replica) = (Token::from_bits(7), Token::from_bits(5));
    assert!(sample.decided(|state| silence::mark(state, &other, session)).unwrap());
    sample.wait(60);
    let holder = model.kept.get(workload).and_then(|kept| model.holder_of(kept)).cloned();
    let is_free = sample.state().attachment(key).is_none();
    try_claim(sample, model, (key.clone(), Some(workload.clone())), &[], Patience::Left);
    if is_free && holder.is_some_and(|holder| holder.host == other) {
        let holder = model.holder_of(&model.kept[workload]).unwrap();
        assert_eq!(holder, key, "what a silent host held is had");
    }
    sample.decided(|state| silence::hear(state, &other, session, replica)).unwrap();
    sample.decided(|state| silence::unhear(state, &other, replica)).unwrap();
}

//! Pure: what holds after any sequence of claims, ends, takeovers, reservations, releases, renames and
//! of time that passes, over pools so small that everything collides.

mod given_up;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use limpet_api::book::{AttachmentKey, EndReason, ReservationSpec};
use limpet_api::host::{ClaimRequest, EndRequest, Wanted};
use limpet_api::{ApiError, ErrorCode, FleetTime, Retention, Span};
use limpet_net_types::{Family, Token, WorkloadName};
use proptest::prelude::*;

use super::claim::{Granted, claim};
use super::ends::end;
use super::{Outcome, Patience, pick, reserve};
use crate::keys::ReservationKey;
use crate::state::State;
use crate::state::sample::{Sample, name};

/// Two pools of six addresses each, one address excluded from the IPv4 one.
const V4: &str = "10.0.0.0/29";
const V6: &str = "fd00::/125";
const EXCLUDED: &str = "10.0.0.3";

/// How long what was reserved by itself is kept, in seconds.
const RETENTION: u64 = 100;

#[derive(Clone, Debug)]
enum Step {
    Claim { host: u8, container: u8, ifname: u8, name: Option<u8>, ask: Option<u8> },
    End { which: usize },
    Reserve { name: u8, ask: Option<u8> },
    Release { name: u8 },
    Wait { seconds: u64 },
    Drain { draining: bool },
    Expire,
    ReleaseAll { seconds: u64 },
    Rename { from: u8, to: u8 },
    TakeOver { host: u8, container: u8, name: u8 },
}

fn step() -> impl Strategy<Value = Step> {
    let name = || prop_oneof![2 => (0..3_u8).prop_map(Some), 1 => Just(None)];
    let ask = || prop_oneof![5 => Just(None), 1 => (0..9_u8).prop_map(Some)];
    prop_oneof![
        8 => (0..2_u8, 0..4_u8, 0..2_u8, name(), ask()).prop_map(
            |(host, container, ifname, name, ask)| Step::Claim { host, container, ifname, name, ask }
        ),
        6 => (0..64_usize).prop_map(|which| Step::End { which }),
        1 => (0..3_u8, ask()).prop_map(|(name, ask)| Step::Reserve { name, ask }),
        1 => (0..3_u8).prop_map(|name| Step::Release { name }),
        1 => (0..90_u64).prop_map(|seconds| Step::Wait { seconds }),
        1 => any::<bool>().prop_map(|draining| Step::Drain { draining }),
        1 => Just(Step::Expire),
        1 => (0..90_u64).prop_map(|seconds| Step::ReleaseAll { seconds }),
        2 => (0..3_u8, 0..3_u8).prop_map(|(from, to)| Step::Rename { from, to }),
        2 => (0..2_u8, 0..4_u8, 0..3_u8).prop_map(
            |(host, container, name)| Step::TakeOver { host, container, name }
        ),
    ]
}

/// What ought to be: which incarnation has which addresses, and which name keeps which.
#[derive(Default)]
struct Model {
    held: BTreeMap<Token, (AttachmentKey, Vec<IpAddr>)>,
    kept: BTreeMap<WorkloadName, Vec<IpAddr>>,
    /// Since when nobody has held what a name keeps.
    idle: BTreeMap<WorkloadName, FleetTime>,
    /// Whose addresses are kept for ever.
    operators: BTreeSet<WorkloadName>,
    used: Vec<(AttachmentKey, Token)>,
}

impl Model {
    fn taken(&self, family: Family) -> BTreeSet<IpAddr> {
        let held = self.held.values().flat_map(|(_, addresses)| addresses);
        let all = held.chain(self.kept.values().flatten()).copied();
        all.filter(|address| Family::of(*address) == family).collect()
    }

    /// The name keeps nothing any more.
    fn forget(&mut self, name: &WorkloadName) {
        self.kept.remove(name);
        self.idle.remove(name);
        self.operators.remove(name);
    }

    /// An incarnation holds nothing any more: what it held is its name's, or nobody's.
    fn end(&mut self, uid: Token, now: FleetTime) -> bool {
        let Some((_, addresses)) = self.held.remove(&uid) else { return false };
        let keeper = self.kept.iter().find(|(_, kept)| **kept == addresses);
        self.idle.extend(keeper.map(|(name, _)| (name.clone(), now)));
        true
    }

    fn is_held(&self, address: IpAddr) -> bool {
        self.held.values().any(|(_, addresses)| addresses.contains(&address))
    }

    fn holder_of(&self, addresses: &[IpAddr]) -> Option<&AttachmentKey> {
        let has = |held: &Vec<IpAddr>| addresses.iter().any(|address| held.contains(address));
        self.held.values().find(|(_, held)| has(held)).map(|(key, _)| key)
    }
}

fn sample() -> Sample {
    let mut sample = Sample::new();
    sample.network("blue");
    for host in ["a", "b"] {
        sample.host(host);
    }
    sample.pool("p4", V4, |pool| {
        pool.block_size = 2;
        pool.retention = Retention::For(Span::from_seconds(RETENTION));
        pool.exclude = vec![name(EXCLUDED)];
    });
    sample.pool("p6", V6, |pool| pool.block_size = 2);
    sample
}

fn key(host: u8, container: u8, ifname: u8) -> AttachmentKey {
    AttachmentKey {
        host: name(["a", "b"][usize::from(host)]),
        network: name("blue"),
        container: name(&format!("c{container}")),
        ifname: name(&format!("eth{ifname}")),
    }
}

fn workload(number: u8) -> WorkloadName {
    name(&format!("web-{number}"))
}

fn reservation(name: &WorkloadName) -> ReservationKey {
    crate::state::reservation_key(&self::name("blue"), &self::name("_"), name)
}

fn asked(ask: Option<u8>) -> Vec<IpAddr> {
    ask.map(|last| IpAddr::from([10, 0, 0, last])).into_iter().collect()
}

fn run(sample: &mut Sample, model: &mut Model, step: &Step) {
    match step {
        Step::Claim { host, container, ifname, name, ask } => {
            let who = (key(*host, *container, *ifname), name.map(workload));
            try_claim(sample, model, who, &asked(*ask), Patience::Over);
        }
        Step::End { which } => try_end(sample, model, *which),
        Step::Reserve { name, ask } => try_reserve(sample, model, &workload(*name), asked(*ask)),
        Step::Release { name } => try_release(sample, model, &workload(*name)),
        Step::Wait { seconds } => sample.wait(*seconds),
        Step::Expire => given_up::expire(sample, model),
        Step::ReleaseAll { seconds } => given_up::release_all(sample, model, *seconds),
        Step::Rename { from, to } => {
            given_up::give_name(sample, model, &workload(*from), &workload(*to));
        }
        Step::TakeOver { host, container, name } => {
            given_up::take_over(sample, model, &key(*host, *container, 0), &workload(*name));
        }
        Step::Drain { draining } => {
            let change = limpet_api::config::PoolChange {
                state: Some(if *draining {
                    limpet_api::config::PoolState::Draining
                } else {
                    limpet_api::config::PoolState::Active
                }),
                ..limpet_api::config::PoolChange::default()
            };
            let p4 = self::name("p4");
            sample.decided(|state| crate::rules::pools::change(state, &p4, &change)).unwrap();
        }
    }
}

fn try_claim(
    sample: &mut Sample,
    model: &mut Model,
    (key, workload): (AttachmentKey, Option<WorkloadName>),
    addresses: &[IpAddr],
    patience: Patience,
) {
    let uid = Token::from_bits(u128::try_from(model.used.len()).unwrap() + 100);
    model.used.push((key.clone(), uid));
    let wanted = Wanted {
        netns: "/n".to_owned(),
        name: workload.clone(),
        addresses: addresses.to_vec(),
        ..Wanted::default()
    };
    let request = ClaimRequest { session: Token::from_bits(7), uid, wanted };
    let before = sample.state().clone();
    let answer = sample.decided(|state| claim(state, &key, &request, patience));
    let kept = workload.as_ref().and_then(|name| model.kept.get(name).cloned());
    match answer {
        Ok(Outcome::Done(Granted { attachment, taken_over, .. })) => {
            for old in taken_over {
                assert_ne!(old.key.host, key.host, "from a silent host");
                assert!(model.end(old.uid, before.now()), "one that was there");
            }
            let given: Vec<IpAddr> = attachment.addresses.iter().map(|h| h.address).collect();
            assert_eq!(given.len(), 2, "both families, or neither");
            assert!(given.iter().all(|address| !model.is_held(*address)), "one holder");
            assert!(addresses.iter().all(|address| given.contains(address)), "as asked");
            match &kept {
                Some(kept) if attachment.sticky => assert_eq!(given, *kept, "as reserved"),
                Some(kept) => {
                    let holder = model.holder_of(kept).expect("only while it is held");
                    assert_eq!((&holder.host, &holder.container), (&key.host, &key.container));
                }
                None => assert_eq!(attachment.sticky, workload.is_some()),
            }
            if attachment.sticky {
                let workload = workload.unwrap();
                model.idle.remove(&workload);
                model.kept.insert(workload, given.clone());
            }
            let again = sample.decided(|state| claim(state, &key, &request, Patience::Left));
            let Ok(Outcome::Done(Granted { attachment: same, .. })) = again else {
                panic!("repeated: {again:?}")
            };
            assert_eq!(same, attachment, "repeated, the same answer");
            model.held.insert(uid, (key, given));
        }
        Ok(Outcome::Asked(_)) if patience == Patience::Left => {}
        Ok(Outcome::Asked(about)) => panic!("asked about {about:?} when patience was over"),
        Err(error) => {
            assert_eq!(*sample.state(), before, "a refusal changes nothing");
            check_refusal(model, &error, kept.as_deref());
        }
    }
}

fn check_refusal(model: &Model, error: &ApiError, kept: Option<&[IpAddr]>) {
    match error.code {
        ErrorCode::PoolFull => {
            let full4 = model.taken(Family::V4).len() == 5;
            let full6 = model.taken(Family::V6).len() == 7;
            assert!(full4 || full6, "full, and only then: {error}");
            let count = |name: &str| error.details[name].as_u64().unwrap();
            assert!(count("held") + count("reserved") >= count("size"), "{error}");
        }
        ErrorCode::ReservationHeld => {
            assert!(model.holder_of(kept.unwrap()).is_some(), "held by somebody: {error}");
        }
        ErrorCode::AttachmentPresent
        | ErrorCode::ReservationMismatch
        | ErrorCode::AddressHeld
        | ErrorCode::AddressNotInPool
        | ErrorCode::NoPool => {}
        _ => panic!("{error}"),
    }
}

fn try_end(sample: &mut Sample, model: &mut Model, which: usize) {
    let Some((key, uid)) = model.used.get(which % model.used.len().max(1)).cloned() else {
        return;
    };
    let before = sample.state().clone();
    let request = EndRequest { session: Token::from_bits(7), uid, reason: EndReason::Detached };
    sample.decided(|state| end(state, &key, &request)).unwrap();
    if !model.end(uid, before.now()) {
        assert_eq!(*sample.state(), before, "a late end touches nothing newer");
    }
    assert!(sample.state().attachment(&key).is_none_or(|entry| entry.record.uid != uid));
}

fn try_reserve(
    sample: &mut Sample,
    model: &mut Model,
    workload: &WorkloadName,
    addresses: Vec<IpAddr>,
) {
    let spec = ReservationSpec { addresses, ..ReservationSpec::default() };
    let key = reservation(workload);
    let before = sample.state().clone();
    match sample.decided(|state| reserve::create(state, &key, &spec)) {
        Ok(entry) => {
            let given: Vec<IpAddr> = entry.record.addresses.iter().map(|h| h.address).collect();
            if let Some(kept) = model.kept.get(workload) {
                assert_eq!(*kept, given, "reserved once and for all");
            } else {
                let idle = model.holder_of(&given).is_none().then(|| before.now());
                model.idle.extend(idle.map(|now| (workload.clone(), now)));
                model.operators.insert(workload.clone());
                model.kept.insert(workload.clone(), given);
            }
        }
        Err(_) => assert_eq!(*sample.state(), before, "a refusal changes nothing"),
    }
}

fn try_release(sample: &mut Sample, model: &mut Model, workload: &WorkloadName) {
    let key = reservation(workload);
    let kept = model.kept.get(workload).cloned();
    match sample.decided(|state| reserve::release(state, &key)) {
        Ok(addresses) => {
            assert_eq!(Some(addresses.clone()), kept);
            assert_eq!(model.holder_of(&addresses), None, "nobody loses an address in use");
            model.forget(workload);
        }
        Err(error) if error.code == ErrorCode::ReservationNotFound => assert_eq!(kept, None),
        Err(error) => {
            assert_eq!(error.code, ErrorCode::ReservationInUse);
            assert!(model.holder_of(&kept.unwrap()).is_some());
        }
    }
}

/// What the state says of itself, looked at from every side.
fn check(state: &State, model: &Model) {
    let mut seen = BTreeSet::new();
    for entry in state.attachments() {
        let (key, addresses) = &model.held[&entry.record.uid];
        assert_eq!(*key, entry.record.key);
        let held: Vec<IpAddr> = entry.record.addresses.iter().map(|h| h.address).collect();
        assert_eq!(held, *addresses);
        for address in held {
            assert!(seen.insert(address), "{address} is held twice");
            assert_ne!(address, name::<IpAddr>(EXCLUDED));
            let slot = state.slot(&name("blue"), address).unwrap();
            assert_eq!(slot.record.attachment.as_ref().map(|h| h.uid), Some(entry.record.uid));
        }
    }
    assert_eq!(state.attachments().count(), model.held.len());
    for entry in state.reservations() {
        let kept: Vec<IpAddr> = entry.record.addresses.iter().map(|h| h.address).collect();
        assert_eq!(model.kept.get(&entry.record.name), Some(&kept));
        for address in kept {
            let slot = &state.slot(&name("blue"), address).unwrap().record;
            let owner = slot.reservation.as_ref().map(|owner| &owner.name);
            assert_eq!(owner, Some(&entry.record.name), "{address}");
        }
    }
    assert_eq!(state.reservations().count(), model.kept.len());
    let slots = || state.slots().map(|(_, address, slot)| (address, &slot.record));
    let reserved = slots().filter(|(_, slot)| slot.reservation.is_some()).count();
    assert_eq!(reserved, model.kept.values().flatten().count(), "no address is kept for nobody");
    let held = slots().filter(|(_, slot)| slot.attachment.is_some()).count();
    assert_eq!(held, seen.len(), "no address is held by nobody");
    for pool in state.pools() {
        let usage = pick::usage(state, state.now(), pool);
        let taken = model.taken(pool.record.family()).len();
        assert_eq!(usage.held + usage.reserved, u64::try_from(taken).unwrap());
        assert_eq!(usage.size, usage.held + usage.reserved + usage.cooling + usage.free);
    }
    for ((network, address), host) in state.strays() {
        let slot = state.slot(network, *address).unwrap();
        assert_eq!(slot.record.attachment.as_ref().map(|held| &held.key.host), Some(host));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_address_has_two_holders_and_every_name_keeps_its_own(
        steps in prop::collection::vec(step(), 0..40),
    ) {
        let (mut sample, mut model) = (sample(), Model::default());
        for step in steps {
            run(&mut sample, &mut model, &step);
            check(sample.state(), &model);
        }
    }
}

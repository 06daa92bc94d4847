//! Pure: what holds after any sequence of claims, ends, reservations and releases, over pools so
//! small that everything collides.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use limpet_api::book::{AttachmentKey, EndReason, ReservationSpec};
use limpet_api::host::{ClaimRequest, EndRequest, Wanted};
use limpet_api::{ApiError, ErrorCode};
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

#[derive(Clone, Debug)]
enum Step {
    Claim { host: u8, container: u8, ifname: u8, name: Option<u8>, ask: Option<u8> },
    End { which: usize },
    Reserve { name: u8, ask: Option<u8> },
    Release { name: u8 },
    Wait { seconds: u64 },
    Drain { draining: bool },
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
    ]
}

/// What ought to be: which incarnation has which addresses, and which name keeps which.
#[derive(Default)]
struct Model {
    held: BTreeMap<Token, (AttachmentKey, Vec<IpAddr>)>,
    kept: BTreeMap<WorkloadName, Vec<IpAddr>>,
    used: Vec<(AttachmentKey, Token)>,
}

impl Model {
    fn taken(&self, family: Family) -> BTreeSet<IpAddr> {
        let held = self.held.values().flat_map(|(_, addresses)| addresses);
        let all = held.chain(self.kept.values().flatten()).copied();
        all.filter(|address| Family::of(*address) == family).collect()
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
        pool.exclude = vec![name(EXCLUDED)];
    });
    sample.pool("p6", V6, |pool| pool.block_size = 2);
    sample
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
            let key = AttachmentKey {
                host: self::name(["a", "b"][usize::from(*host)]),
                network: self::name("blue"),
                container: self::name(&format!("c{container}")),
                ifname: self::name(&format!("eth{ifname}")),
            };
            try_claim(sample, model, key, name.map(workload), &asked(*ask));
        }
        Step::End { which } => try_end(sample, model, *which),
        Step::Reserve { name, ask } => try_reserve(sample, model, &workload(*name), asked(*ask)),
        Step::Release { name } => try_release(sample, model, &workload(*name)),
        Step::Wait { seconds } => sample.wait(*seconds),
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
    key: AttachmentKey,
    workload: Option<WorkloadName>,
    addresses: &[IpAddr],
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
    let answer = sample.decided(|state| claim(state, &key, &request, Patience::Over));
    let kept = workload.as_ref().and_then(|name| model.kept.get(name).cloned());
    match answer {
        Ok(Outcome::Done(Granted { attachment, .. })) => {
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
                model.kept.insert(workload.unwrap(), given.clone());
            }
            let again = sample.decided(|state| claim(state, &key, &request, Patience::Left));
            let Ok(Outcome::Done(Granted { attachment: same, .. })) = again else {
                panic!("repeated: {again:?}")
            };
            assert_eq!(same, attachment, "repeated, the same answer");
            model.held.insert(uid, (key, given));
        }
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
    if model.held.remove(&uid).is_none() {
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
            let kept = model.kept.entry(workload.clone()).or_insert_with(|| given.clone());
            assert_eq!(*kept, given, "reserved once and for all");
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
            model.kept.remove(workload);
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
    }
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

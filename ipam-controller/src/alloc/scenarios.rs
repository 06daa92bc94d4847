//! Pure: claims and ends as they happen, one story each.

use std::net::IpAddr;

use limpet_api::book::{Attachment, AttachmentKey, EndReason, ReleaseRequest, ReservationSpec};
use limpet_api::config::{Role, Sticky};
use limpet_api::host::{ClaimRequest, EndRequest, Wanted};
use limpet_api::{ApiError, ErrorCode, FleetTime};
use limpet_net_types::{Family, Mac, Token};

use super::claim::claim;
use super::ends::{end, withdraw};
use super::{Outcome, Patience, release, reserve};
use crate::draft::Draft;
use crate::keys::Subject;
use crate::records::{Owner, Slot};
use crate::rules::sessions::Liveness;
use crate::state::reservation_key;
use crate::state::sample::{Sample, name};

pub(super) fn sample() -> Sample {
    let mut sample = Sample::new();
    sample.network("blue");
    sample.host("a");
    sample.host("b");
    sample.pool("p", "10.0.0.0/27", |_| {});
    sample
}

pub(super) fn key(host: &str, container: &str) -> AttachmentKey {
    AttachmentKey {
        host: name(host),
        network: name("blue"),
        container: name(container),
        ifname: name("eth0"),
    }
}

pub(super) fn uid(bits: u128) -> Token {
    Token::from_bits(bits)
}

pub(super) fn named(workload: &str) -> Wanted {
    Wanted { netns: "/n".to_owned(), name: Some(name(workload)), ..Wanted::default() }
}

pub(super) fn nameless() -> Wanted {
    Wanted { netns: "/n".to_owned(), ..Wanted::default() }
}

pub(super) fn ask(
    sample: &mut Sample,
    key: &AttachmentKey,
    uid: Token,
    wanted: Wanted,
    patience: Patience,
) -> Result<Outcome<Attachment>, ApiError> {
    let request = ClaimRequest { session: Token::from_bits(7), uid, wanted };
    let outcome = sample.decided(|state| claim(state, key, &request, patience))?;
    Ok(match outcome {
        Outcome::Done(granted) => Outcome::Done(granted.attachment),
        Outcome::Asked(about) => Outcome::Asked(about),
    })
}

pub(super) fn given(
    sample: &mut Sample,
    key: &AttachmentKey,
    bits: u128,
    wanted: Wanted,
) -> Vec<String> {
    match ask(sample, key, uid(bits), wanted, Patience::Left) {
        Ok(Outcome::Done(attachment)) => {
            attachment.addresses.iter().map(|held| held.address.to_string()).collect()
        }
        other => panic!("not given: {other:?}"),
    }
}

pub(super) fn refused(sample: &mut Sample, key: &AttachmentKey, wanted: Wanted) -> ApiError {
    let before = sample.state().clone();
    let error = ask(sample, key, uid(999), wanted, Patience::Over).unwrap_err();
    assert_eq!(*sample.state(), before, "a refusal changes nothing");
    error
}

pub(super) fn ended(sample: &mut Sample, key: &AttachmentKey, bits: u128) {
    let request =
        EndRequest { session: Token::from_bits(7), uid: uid(bits), reason: EndReason::Detached };
    sample.decided(|state| end(state, key, &request)).unwrap();
}

#[test]
fn a_name_comes_back_to_its_address_on_another_host() {
    let mut sample = sample();
    let first = given(&mut sample, &key("a", "c1"), 1, named("web-0"));
    ended(&mut sample, &key("a", "c1"), 1);
    for n in 0..10 {
        given(&mut sample, &key("b", &format!("x{n}")), 100 + n, nameless());
    }
    assert_eq!(given(&mut sample, &key("b", "c2"), 2, named("web-0")), first);
    let strays: Vec<_> =
        sample.state().strays().map(|(key, host)| (key.1, host.to_string())).collect();
    assert_eq!(strays, [(name::<IpAddr>(&first[0]), "b".to_owned())]);
    let reservation = reservation_key(&name("blue"), &name("_"), &name("web-0"));
    let record = &sample.state().reservation(&reservation).unwrap().record;
    assert_eq!((record.last_host.clone(), record.detached_at), (Some(name("b")), None));
}

#[test]
fn a_late_end_of_an_old_incarnation_touches_nothing_of_the_newer_one() {
    let mut sample = sample();
    given(&mut sample, &key("a", "c1"), 1, named("web-0"));
    ended(&mut sample, &key("a", "c1"), 1);
    given(&mut sample, &key("a", "c1"), 2, named("web-0"));
    let before = sample.state().clone();
    ended(&mut sample, &key("a", "c1"), 1);
    ended(&mut sample, &key("b", "c1"), 1);
    assert_eq!(*sample.state(), before);
}

#[test]
fn a_name_in_use_is_asked_for_and_then_refused_naming_host_and_container() {
    let mut sample = sample();
    given(&mut sample, &key("a", "c1"), 1, named("web-0"));
    let mine = key("b", "c2");
    for _ in 0..2 {
        let outcome = ask(&mut sample, &mine, uid(2), named("web-0"), Patience::Left).unwrap();
        let Outcome::Asked(about) = outcome else { panic!("{outcome:?}") };
        assert_eq!((about.key, about.uid), (key("a", "c1"), uid(1)));
    }
    assert_eq!(sample.state().asks_of(&name("a")).count(), 1, "asked once");
    let error = refused(&mut sample, &mine, named("web-0"));
    assert_eq!(error.code, ErrorCode::ReservationHeld);
    assert!(error.message.contains("container c1 (eth0) on host a"), "{error}");
    sample.decided(|state| withdraw(state, &name("a"), uid(1))).unwrap();
    assert_eq!(sample.state().asks_of(&name("a")).count(), 0);

    ask(&mut sample, &mine, uid(2), named("web-0"), Patience::Left).unwrap();
    ended(&mut sample, &key("a", "c1"), 1);
    assert_eq!(sample.state().asks_of(&name("a")).count(), 0, "the end is the answer");
    assert_eq!(given(&mut sample, &mine, 2, named("web-0")), ["10.0.0.1"]);
}

#[test]
fn the_same_interface_again_asks_its_own_host_about_the_old_incarnation() {
    let mut sample = sample();
    given(&mut sample, &key("a", "c1"), 1, nameless());
    let outcome = ask(&mut sample, &key("a", "c1"), uid(2), nameless(), Patience::Left).unwrap();
    assert!(matches!(outcome, Outcome::Asked(about) if about.uid == uid(1)));
    let error = refused(&mut sample, &key("a", "c1"), nameless());
    assert_eq!(error.code, ErrorCode::AttachmentPresent);
    ended(&mut sample, &key("a", "c1"), 1);
    given(&mut sample, &key("a", "c1"), 2, nameless());
}

#[test]
fn a_second_interface_of_the_same_container_gets_an_address_besides() {
    let mut sample = sample();
    let first = given(&mut sample, &key("a", "c1"), 1, named("web-0"));
    let second = AttachmentKey { ifname: name("eth1"), ..key("a", "c1") };
    let other = given(&mut sample, &second, 2, named("web-0"));
    assert_ne!(first, other);
    assert!(!sample.state().attachment(&second).unwrap().record.sticky);
    ended(&mut sample, &second, 2);
    ended(&mut sample, &key("a", "c1"), 1);
    assert_eq!(given(&mut sample, &key("b", "c9"), 3, named("web-0")), first);
}

#[test]
fn addresses_of_a_host_come_from_its_block_and_one_given_back_is_not_next() {
    let mut sample = sample();
    let a: Vec<_> = (1..=3)
        .flat_map(|n| given(&mut sample, &key("a", &format!("c{n}")), n, nameless()))
        .collect();
    assert_eq!(a, ["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
    assert_eq!(given(&mut sample, &key("b", "d1"), 11, nameless()), ["10.0.0.4"]);
    assert_eq!(given(&mut sample, &key("a", "c4"), 4, nameless()), ["10.0.0.8"]);
    ended(&mut sample, &key("a", "c4"), 4);
    assert_eq!(given(&mut sample, &key("a", "c5"), 5, nameless()), ["10.0.0.9"]);
    let blocks: Vec<_> = sample.state().blocks().map(|b| b.record.prefix.to_string()).collect();
    assert_eq!(blocks, ["10.0.0.0/30", "10.0.0.4/30", "10.0.0.8/30"]);
    assert_eq!(sample.state().strays().count(), 0);
}

#[test]
fn a_host_without_a_block_left_takes_the_top_of_anothers() {
    let mut sample = Sample::new();
    sample.network("blue");
    sample.host("a");
    sample.host("b");
    sample.pool("p", "10.0.0.0/29", |_| {});
    given(&mut sample, &key("a", "c1"), 1, nameless());
    for n in 2..=4 {
        given(&mut sample, &key("a", &format!("c{n}")), n, nameless());
    }
    assert_eq!(sample.state().blocks().count(), 2, "all blocks are a's");
    assert_eq!(given(&mut sample, &key("b", "d1"), 11, nameless()), ["10.0.0.6"]);
    assert_eq!(sample.state().strays().count(), 1);
    given(&mut sample, &key("b", "d2"), 12, nameless());
    let error = refused(&mut sample, &key("b", "d3"), nameless());
    assert_eq!(
        error.message,
        "pool p (10.0.0.0/29) is full: of 6 addresses 6 are held by attachments, 0 are reserved \
         and not held, 0 are cooling"
    );
}

#[test]
fn an_address_given_back_cools_and_comes_last() {
    let mut sample = Sample::new();
    sample.network("blue");
    sample.host("a");
    sample.pool("p", "10.0.0.0/30", |_| {});
    assert_eq!(given(&mut sample, &key("a", "c1"), 1, nameless()), ["10.0.0.1"]);
    ended(&mut sample, &key("a", "c1"), 1);
    assert_eq!(given(&mut sample, &key("a", "c2"), 2, nameless()), ["10.0.0.2"]);
    assert_eq!(
        given(&mut sample, &key("a", "c3"), 3, nameless()),
        ["10.0.0.1"],
        "cooling is a preference, not a refusal"
    );
}

#[test]
fn an_address_asked_for_is_given_or_its_holder_is_named() {
    let mut sample = sample();
    let asking = |address: &str| Wanted { addresses: vec![name(address)], ..nameless() };
    assert_eq!(given(&mut sample, &key("a", "c1"), 1, asking("10.0.0.9")), ["10.0.0.9"]);
    let error = refused(&mut sample, &key("b", "c2"), asking("10.0.0.9"));
    assert_eq!(error.code, ErrorCode::AddressHeld);
    assert_eq!(error.message, "10.0.0.9 is held by container c1 on host a");
    for outside in ["10.0.0.0", "10.0.0.31", "10.0.1.1", "fd00::1"] {
        let error = refused(&mut sample, &key("b", "c2"), asking(outside));
        assert_eq!(error.code, ErrorCode::AddressNotInPool, "{outside}");
    }
    let two = Wanted { addresses: vec![name("10.0.0.5"), name("10.0.0.6")], ..nameless() };
    assert_eq!(refused(&mut sample, &key("b", "c2"), two).code, ErrorCode::Invalid);

    given(&mut sample, &key("a", "c3"), 3, named("web-0"));
    ended(&mut sample, &key("a", "c3"), 3);
    let reserved = asking("10.0.0.1");
    let error = refused(&mut sample, &key("b", "c2"), reserved.clone());
    assert_eq!(error.message, "10.0.0.1 is reserved for _/web-0");
    let other = Wanted { addresses: vec![name("10.0.0.2")], ..named("web-0") };
    let error = refused(&mut sample, &key("b", "c2"), other);
    assert_eq!(error.code, ErrorCode::ReservationMismatch);
    assert_eq!(error.message, "10.0.0.2 was asked for, but 10.0.0.1 is reserved for _/web-0");
    let own = Wanted { addresses: reserved.addresses, ..named("web-0") };
    assert_eq!(given(&mut sample, &key("b", "c2"), 4, own), ["10.0.0.1"]);
}

#[test]
fn a_dual_stack_network_gives_both_families_or_neither() {
    let mut sample = sample();
    sample.pool("p6", "fd00::/127", |pool| pool.block_size = 2);
    assert_eq!(given(&mut sample, &key("a", "c1"), 1, nameless()), ["10.0.0.1", "fd00::"]);
    given(&mut sample, &key("a", "c2"), 2, nameless());
    let error = refused(&mut sample, &key("a", "c3"), nameless());
    assert_eq!((error.code, error.details["pool"].as_str()), (ErrorCode::PoolFull, Some("p6")));
}

#[test]
fn a_reservation_made_before_the_second_family_stays_as_it_is() {
    let mut sample = sample();
    given(&mut sample, &key("a", "c1"), 1, named("web-0"));
    ended(&mut sample, &key("a", "c1"), 1);
    sample.pool("p6", "fd00::/64", |_| {});
    assert_eq!(given(&mut sample, &key("a", "c2"), 2, named("web-0")), ["10.0.0.1"]);
    assert_eq!(given(&mut sample, &key("a", "c3"), 3, named("web-1")).len(), 2);
}

#[test]
fn a_draining_pool_keeps_its_reservations_working() {
    let mut sample = sample();
    given(&mut sample, &key("a", "c1"), 1, named("web-0"));
    ended(&mut sample, &key("a", "c1"), 1);
    let change = limpet_api::config::PoolChange {
        state: Some(limpet_api::config::PoolState::Draining),
        ..limpet_api::config::PoolChange::default()
    };
    sample.decided(|state| crate::rules::pools::change(state, &name("p"), &change)).unwrap();
    assert_eq!(given(&mut sample, &key("b", "c2"), 2, named("web-0")), ["10.0.0.1"]);
    assert_eq!(refused(&mut sample, &key("b", "c3"), named("web-1")).code, ErrorCode::NoPool);
}

#[test]
fn a_mac_address_is_of_the_ipv4_address_or_as_asked_and_never_twice() {
    let mut sample = sample();
    given(&mut sample, &key("a", "c1"), 1, nameless());
    let attachment = |sample: &Sample, container| {
        sample.state().attachment(&key("a", container)).unwrap().record.clone()
    };
    assert_eq!(attachment(&sample, "c1").mac.to_string(), "02:4c:0a:00:00:01");
    let mac: Mac = name("02:00:00:00:00:01");
    let asking = |workload| Wanted { mac: Some(mac), ..named(workload) };
    given(&mut sample, &key("a", "c2"), 2, asking("web-0"));
    assert_eq!(attachment(&sample, "c2").mac, mac);
    assert_eq!(refused(&mut sample, &key("a", "c3"), asking("web-1")).code, ErrorCode::MacHeld);
    ended(&mut sample, &key("a", "c2"), 2);
    given(&mut sample, &key("a", "c4"), 4, named("web-0"));
    assert_eq!(attachment(&sample, "c4").mac, mac, "the reservation keeps it");
}

#[test]
fn a_mac_address_that_another_has_is_not_reserved_and_a_derived_one_gives_way() {
    let mut sample = sample();
    let derived: Mac = name("02:4c:0a:00:00:01");
    let asking = |mac| Wanted { mac: Some(mac), addresses: vec![name("10.0.0.9")], ..nameless() };
    given(&mut sample, &key("a", "c1"), 1, asking(derived));
    given(
        &mut sample,
        &key("a", "c2"),
        2,
        Wanted { addresses: vec![name("10.0.0.1")], ..nameless() },
    );
    let given_mac = sample.state().attachment(&key("a", "c2")).unwrap().record.mac;
    assert_ne!(given_mac, derived);

    let mut reserve = |workload: &str, mac: Option<Mac>| {
        let key = reservation_key(&name("blue"), &name("_"), &name(workload));
        let spec = ReservationSpec { mac, ..ReservationSpec::default() };
        sample.decided(|state| reserve::create(state, &key, &spec))
    };
    let error = reserve("db", Some(derived)).unwrap_err();
    assert_eq!(error.code, ErrorCode::MacHeld);
    assert!(error.message.ends_with("is in use by container c1 on host a"), "{error}");
    let own: Mac = name("02:00:00:00:00:07");
    reserve("db", Some(own)).unwrap();
    reserve("db", Some(own)).expect("repeated, the same");
    let error = reserve("db2", Some(own)).unwrap_err();
    assert!(error.message.ends_with("is reserved for _/db"), "{error}");
    let refusal = refused(&mut sample, &key("a", "c3"), Wanted { mac: Some(own), ..nameless() });
    assert_eq!(refusal.code, ErrorCode::MacHeld);
    given(&mut sample, &key("a", "c4"), 4, Wanted { mac: Some(own), ..named("db") });
}

#[test]
fn a_new_block_comes_before_what_cools_and_what_cools_at_home_before_a_stray() {
    let mut sample = Sample::new();
    sample.network("blue");
    sample.host("a");
    sample.host("b");
    sample.pool("p", "10.0.0.0/29", |_| {});
    for n in 1..=3 {
        given(&mut sample, &key("a", &format!("c{n}")), n, nameless());
    }
    ended(&mut sample, &key("a", "c2"), 2);
    assert_eq!(given(&mut sample, &key("a", "c4"), 4, nameless()), ["10.0.0.4"]);
    sample.pool("q", "10.9.0.0..10.9.0.2", |pool| pool.block_size = 2);
    assert_eq!(given(&mut sample, &key("a", "c5"), 5, nameless()), ["10.0.0.5"]);
    assert_eq!(given(&mut sample, &key("a", "c6"), 6, nameless()), ["10.0.0.6"]);
    assert_eq!(given(&mut sample, &key("a", "c7"), 7, nameless()), ["10.0.0.2"], "it cools");

    let from_q = || Wanted { pools: vec![name("q")], ..nameless() };
    assert_eq!(given(&mut sample, &key("a", "d1"), 11, from_q()), ["10.9.0.0"]);
    ended(&mut sample, &key("a", "d1"), 11);
    given(&mut sample, &key("a", "d2"), 12, from_q());
    assert_eq!(
        given(&mut sample, &key("a", "d3"), 13, from_q()),
        ["10.9.0.0"],
        "its own block's, though it cools, and not the free 10.9.0.2 outside all blocks"
    );
    assert_eq!(given(&mut sample, &key("a", "d4"), 14, from_q()), ["10.9.0.2"]);
}

#[test]
fn a_pool_reserved_from_the_top_is_filled_to_the_last_address() {
    let mut sample = Sample::new();
    sample.network("blue");
    sample.host("a");
    sample.pool("p", "10.0.0.0/27", |pool| pool.exclude = vec![name("10.0.0.20..10.0.0.22")]);
    given(&mut sample, &key("a", "c1"), 1, nameless());
    let mut reserved = Vec::new();
    for n in 0..26 {
        let db = reservation_key(&name("blue"), &name("_"), &name(&format!("db-{n}")));
        let spec = ReservationSpec::default();
        let made = sample.decided(|state| reserve::create(state, &db, &spec)).unwrap();
        reserved.push(made.record.addresses[0].address);
    }
    let expected: Vec<IpAddr> = (4..=30)
        .rev()
        .filter(|n| !(20..=22).contains(n))
        .chain([3, 2])
        .map(|n| IpAddr::from([10, 0, 0, n]))
        .collect();
    assert_eq!(reserved, expected);
    let one_more = reservation_key(&name("blue"), &name("_"), &name("one-more"));
    let spec = ReservationSpec::default();
    let error = sample.decided(|state| reserve::create(state, &one_more, &spec)).unwrap_err();
    assert_eq!(error.code, ErrorCode::PoolFull);
}

#[test]
fn a_name_finds_an_address_below_any_number_of_taken_ones() {
    let mut sample = Sample::new();
    sample.network("blue");
    sample.pool("p", "fd00::/64", |_| {});
    let at =
        |below: u128| limpet_net_types::address_at(Family::V6, (0xfd00 << 112 | 1 << 64) - below);
    let mut draft = Draft::default();
    for below in 1..=70_000 {
        let owner = Owner { namespace: name("_"), name: name("x") };
        let slot = Slot { reservation: Some(owner), ..Slot::default() };
        draft.put(&Subject::Address(name("blue"), at(below)), &slot);
    }
    sample.commit(&draft.into_txn());
    let state = sample.state();
    let pool = state.pool(&name("p")).unwrap();
    let started = std::time::Instant::now();
    for _ in 0..1000 {
        assert_eq!(super::pick::for_nobody(state, state.now(), pool), Some(at(70_001)));
    }
    assert!(started.elapsed().as_secs() < 5, "each looks at one run, not at 70,000 addresses");
}

#[test]
fn without_a_session_a_role_or_a_network_nothing_is_claimed() {
    let mut sample = sample();
    let request = ClaimRequest { session: uid(8), uid: uid(1), wanted: nameless() };
    let stale = sample.decided(|state| claim(state, &key("a", "c"), &request, Patience::Left));
    assert_eq!(stale.unwrap_err().code, ErrorCode::SessionLost);
    let elsewhere = AttachmentKey { network: name("red"), ..key("a", "c") };
    assert_eq!(refused(&mut sample, &elsewhere, nameless()).code, ErrorCode::NetworkNotFound);
    sample.change_host("a", |host| host.roles = [Role::Member].into());
    assert_eq!(refused(&mut sample, &key("a", "c"), nameless()).code, ErrorCode::RoleMissing);
    let request = EndRequest { session: uid(8), uid: uid(1), reason: EndReason::Detached };
    let stale = sample.decided(|state| end(state, &key("a", "c"), &request));
    assert_eq!(stale.unwrap_err().code, ErrorCode::SessionLost);
}

#[test]
fn an_end_starts_the_retention_in_fleet_time() {
    let mut sample = sample();
    given(&mut sample, &key("a", "c1"), 1, named("web-0"));
    sample.wait(100);
    ended(&mut sample, &key("a", "c1"), 1);
    let reservation = reservation_key(&name("blue"), &name("_"), &name("web-0"));
    let detached_at = sample.state().reservation(&reservation).unwrap().record.detached_at;
    assert_eq!(detached_at, Some(FleetTime(100)));
}

#[test]
fn a_pool_that_is_never_sticky_makes_no_reservation_but_honours_an_operators() {
    let mut sample = Sample::new();
    sample.network("blue");
    sample.host("a");
    sample.pool("p", "10.0.0.0/27", |pool| pool.sticky = Sticky::Never);
    given(&mut sample, &key("a", "c1"), 1, named("web-0"));
    assert_eq!(sample.state().reservations().count(), 0);
    let spec = ReservationSpec { addresses: vec![name("10.0.0.20")], ..ReservationSpec::default() };
    let web1 = reservation_key(&name("blue"), &name("_"), &name("web-1"));
    sample.decided(|state| reserve::create(state, &web1, &spec)).unwrap();
    assert_eq!(given(&mut sample, &key("a", "c2"), 2, named("web-1")), ["10.0.0.20"]);
}

#[test]
fn a_running_name_can_be_given_a_reservation_of_what_it_has() {
    let mut sample = sample();
    sample.pool("p6", "fd00::/64", |_| {});
    let plain = given(&mut sample, &key("a", "c1"), 1, named("web"));
    let spec = ReservationSpec { addresses: vec![name(&plain[0])], ..ReservationSpec::default() };
    let web = reservation_key(&name("blue"), &name("_"), &name("web"));
    sample.decided(|state| reserve::create(state, &web, &spec)).unwrap();
    let repeated = sample.decided(|state| reserve::create(state, &web, &spec));
    assert!(repeated.is_ok(), "repeated, the same: {repeated:?}");
    assert!(sample.state().attachment(&key("a", "c1")).unwrap().record.sticky);
    let error = sample.decided(|state| reserve::release(state, &web)).unwrap_err();
    assert_eq!(error.code, ErrorCode::ReservationInUse);
    ended(&mut sample, &key("a", "c1"), 1);
    assert_eq!(given(&mut sample, &key("a", "c2"), 2, named("web")), plain);
}

#[test]
fn an_operator_ends_an_attachment_only_through_its_host() {
    let mut sample = sample();
    given(&mut sample, &key("a", "c1"), 1, nameless());
    let asked = sample.state().attachment(&key("a", "c1")).unwrap().record.clone();
    let how = ReleaseRequest::default();
    let end_it = |sample: &mut Sample, patience| {
        sample.decided(|state| release::end(state, &asked, how, patience, Liveness::Alive))
    };
    assert!(matches!(end_it(&mut sample, Patience::Left), Ok(Outcome::Asked(_))));
    assert_eq!(end_it(&mut sample, Patience::Over).unwrap_err().code, ErrorCode::HostSilent);
    sample
        .decided(|state| {
            crate::rules::sessions::present(state, &name("a"), uid(1), Token::from_bits(7))
        })
        .unwrap();
    let error = end_it(&mut sample, Patience::Left).unwrap_err();
    assert_eq!(error.code, ErrorCode::AttachmentPresent);
    ended(&mut sample, &key("a", "c1"), 1);
    assert!(matches!(end_it(&mut sample, Patience::Left), Ok(Outcome::Done(()))));
}

#[test]
fn a_claim_and_an_end_compare_all_that_they_rely_on() {
    let mut sample = sample();
    let relied_on = |sample: &Sample, request: &ClaimRequest, key: &AttachmentKey| {
        let txn = claim(sample.state(), key, request, Patience::Left).draft.into_txn();
        txn.compares.into_keys().collect::<Vec<_>>()
    };
    let request = |uid, wanted| ClaimRequest { session: Token::from_bits(7), uid, wanted };
    let claimed = relied_on(&sample, &request(uid(1), named("web-0")), &key("a", "c1"));
    assert_eq!(
        claimed,
        [
            "addresses/blue/0a000001",
            "alive/a",
            "attachments/a/blue/c1/eth0",
            "blocks/p/0a000000-30",
            "hosts/a",
            "macs/blue",
            "meta/restored",
            "networks/blue",
            "pools/p",
            "quotas/_",
            "reservations/blue/_/web-0",
        ]
    );
    given(&mut sample, &key("a", "c1"), 1, named("web-0"));
    let again = relied_on(&sample, &request(uid(1), named("web-0")), &key("a", "c1"));
    assert!(again.contains(&"alive/a".to_owned()), "also when nothing is written: {again:?}");
    assert!(again.contains(&"attachments/a/blue/c1/eth0".to_owned()), "{again:?}");
    let plain = relied_on(&sample, &request(uid(2), named("web")), &key("a", "c2"));
    assert!(plain.contains(&"reservations/blue/_/web".to_owned()), "not sticky: {plain:?}");

    let request =
        EndRequest { session: Token::from_bits(7), uid: uid(1), reason: EndReason::Detached };
    let ended = end(sample.state(), &key("a", "c1"), &request).draft.into_txn();
    assert_eq!(
        ended.compares.into_keys().collect::<Vec<_>>(),
        [
            "addresses/blue/0a000001",
            "alive/a",
            "attachments/a/blue/c1/eth0",
            "reservations/blue/_/web-0",
        ]
    );
}

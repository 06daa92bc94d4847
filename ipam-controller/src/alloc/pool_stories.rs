//! Pure: what becomes of names and addresses as their pools are chosen, drained and released, and as
//! names change, one story each.

use std::net::IpAddr;

use limpet_api::book::{AttachmentKey, Rename, Reservation, ReservationSpec};
use limpet_api::config::{PoolChange, PoolState};
use limpet_api::holding::{Holding, HoldingQuery, PoolRelease, ReleasedName};
use limpet_api::host::{ClaimRequest, Wanted};
use limpet_api::{ApiError, ErrorCode, Retention, Span};
use limpet_net_types::{Mac, Token};

use super::claim::claim;
use super::scenarios::{ended, given, key, named, nameless, refused, sample};
use super::{Patience, rename, reserve, sweep};
use crate::keys::ReservationKey;
use crate::state::sample::{Sample, name};
use crate::state::{State, reservation_key};

fn of(namespace: &str, workload: &str) -> ReservationKey {
    reservation_key(&name("blue"), &name(namespace), &name(workload))
}

fn reserve(sample: &mut Sample, namespace: &str, workload: &str) -> Reservation {
    let key = of(namespace, workload);
    let spec = ReservationSpec::default();
    sample.decided(|state| reserve::create(state, &key, &spec)).unwrap().record
}

fn set(sample: &mut Sample, pool: &str, to: PoolState) {
    let change = PoolChange { state: Some(to), ..PoolChange::default() };
    sample.decided(|state| crate::rules::pools::change(state, &name(pool), &change)).unwrap();
}

/// Releases as a controller does, request after request, and returns the names.
fn swept(sample: &mut Sample, wanted: &PoolRelease) -> Vec<String> {
    let (mut wanted, mut names) = (wanted.clone(), Vec::new());
    loop {
        let idle = sweep::idle(sample.state(), &name("p"), &wanted).unwrap();
        for (key, _) in idle.found {
            let decide = |state: &State| sweep::release(state, &name("p"), &key, &wanted);
            let done: Option<ReleasedName> = sample.decided(decide).unwrap();
            names.extend(done.map(|done| format!("{}/{}", done.namespace, done.name)));
        }
        wanted.after = idle.next;
        if idle.next.is_none() {
            return names;
        }
    }
}

fn holdings(sample: &Sample, query: &HoldingQuery) -> Vec<Holding> {
    sweep::holdings(sample.state(), &name("p"), query).unwrap().items
}

fn renamed(sample: &mut Sample, from: &str, to: &str) -> Result<Reservation, ApiError> {
    let to = Rename { namespace: name("_"), name: name(to) };
    let running: Vec<AttachmentKey> =
        sample.state().attachments().map(|entry| entry.record.key.clone()).collect();
    let decide = |state: &State| rename::rename(state, &of("_", from), &to, &running);
    sample.decided(decide).map(|entry| entry.record)
}

#[test]
fn a_release_by_pool_takes_what_nobody_holds_and_leaves_the_rest() {
    let mut sample = sample();
    sample.pool("q", "10.9.0.0/29", |_| {});
    let from_q = Wanted { pools: vec![name("q")], ..named("far-0") };
    given(&mut sample, &key("a", "c1"), 1, named("web-0"));
    given(&mut sample, &key("a", "c2"), 2, named("web-1"));
    given(&mut sample, &key("a", "c3"), 3, from_q);
    given(&mut sample, &key("a", "c4"), 4, nameless());
    ended(&mut sample, &key("a", "c2"), 2);
    ended(&mut sample, &key("a", "c3"), 3);
    reserve(&mut sample, "prod", "db");
    assert_eq!(swept(&mut sample, &PoolRelease::default()), ["_/web-1", "prod/db"]);
    let left: Vec<_> =
        sample.state().reservations().map(|entry| entry.record.name.to_string()).collect();
    assert_eq!(left, ["far-0", "web-0"], "of another pool, and in use");
    assert_eq!(swept(&mut sample, &PoolRelease::default()), Vec::<String>::new());
}

#[test]
fn a_release_by_pool_in_small_pieces_meets_every_reservation_once() {
    let mut sample = sample();
    for n in 0..7 {
        reserve(&mut sample, "_", &format!("db-{n}"));
    }
    let wanted = PoolRelease { limit: Some(2), ..PoolRelease::default() };
    let first = sweep::idle(sample.state(), &name("p"), &wanted).unwrap();
    assert_eq!(first.found.len(), 2);
    assert!(first.next.is_some());
    let names = swept(&mut sample, &wanted);
    assert_eq!(names.len(), 7, "{names:?}");
    for limit in [0, 257] {
        let wanted = PoolRelease { limit: Some(limit), ..PoolRelease::default() };
        let error = sweep::idle(sample.state(), &name("p"), &wanted).unwrap_err();
        assert_eq!(error.code, ErrorCode::BadRequest);
    }
    let elsewhere = PoolRelease { after: Some(name("10.9.0.1")), ..PoolRelease::default() };
    let error = sweep::idle(sample.state(), &name("p"), &elsewhere).unwrap_err();
    assert_eq!(error.code, ErrorCode::BadRequest);
}

#[test]
fn a_name_that_comes_back_before_its_release_by_pool_keeps_its_address() {
    let mut sample = sample();
    let first = given(&mut sample, &key("a", "c1"), 1, named("web-0"));
    ended(&mut sample, &key("a", "c1"), 1);
    let wanted = PoolRelease::default();
    let idle = sweep::idle(sample.state(), &name("p"), &wanted).unwrap();
    assert_eq!(idle.found.len(), 1);
    assert_eq!(given(&mut sample, &key("b", "c2"), 2, named("web-0")), first);
    let decide = |state: &State| sweep::release(state, &name("p"), &idle.found[0].0, &wanted);
    assert_eq!(sample.decided(decide).unwrap(), None);
    assert!(sample.state().reservation(&of("_", "web-0")).is_some());
}

#[test]
fn a_release_by_pool_can_be_for_a_namespace_and_for_what_was_idle_long_enough() {
    let mut sample = sample();
    reserve(&mut sample, "prod", "never-attached");
    given(&mut sample, &key("a", "c1"), 1, named("web-0"));
    given(&mut sample, &key("a", "c2"), 2, named("web-1"));
    sample.wait(50);
    ended(&mut sample, &key("a", "c1"), 1);
    sample.wait(50);
    ended(&mut sample, &key("a", "c2"), 2);
    let idle_for = |seconds| PoolRelease {
        detached_for: Some(Span::from_seconds(seconds)),
        ..PoolRelease::default()
    };
    assert_eq!(swept(&mut sample, &idle_for(101)), Vec::<String>::new());
    assert_eq!(swept(&mut sample, &idle_for(51)), ["prod/never-attached"]);
    let elsewhere = PoolRelease { namespace: Some(name("prod")), ..PoolRelease::default() };
    assert_eq!(swept(&mut sample, &elsewhere), Vec::<String>::new());
    assert_eq!(swept(&mut sample, &idle_for(50)), ["_/web-0"]);
    assert_eq!(swept(&mut sample, &idle_for(0)), ["_/web-1"]);
}

#[test]
fn a_dual_stack_reservation_that_is_released_by_one_pool_gives_up_both_families() {
    let mut sample = sample();
    sample.pool("p6", "fd00::/64", |_| {});
    let both = reserve(&mut sample, "_", "db");
    assert_eq!(both.addresses.len(), 2);
    assert_eq!(swept(&mut sample, &PoolRelease::default()), ["_/db"]);
    for held in &both.addresses {
        let slot = &sample.state().slot(&name("blue"), held.address).unwrap().record;
        assert!(!slot.is_taken() && slot.released.is_some(), "it cools");
    }
}

#[test]
fn a_draining_pool_gives_nothing_new_whichever_way_it_is_asked() {
    let mut sample = sample();
    set(&mut sample, "p", PoolState::Draining);
    let asks = [
        Wanted { addresses: vec![name("10.0.0.9")], ..nameless() },
        Wanted { pools: vec![name("p")], ..nameless() },
        Wanted { pools: vec![name("p")], addresses: vec![name("10.0.0.9")], ..named("web-0") },
    ];
    for wanted in asks {
        let error = refused(&mut sample, &key("a", "c1"), wanted);
        assert_eq!(error.code, ErrorCode::NoPool);
        assert_eq!(error.message, "pool p is draining: it gives no new addresses");
    }
    let error = refused(&mut sample, &key("a", "c1"), named("web-0"));
    assert_eq!(error.message, "no IPv4 pool of network blue serves _/web-0: p is draining");
    for spec in [
        ReservationSpec { addresses: vec![name("10.0.0.9")], ..ReservationSpec::default() },
        ReservationSpec { pools: vec![name("p")], ..ReservationSpec::default() },
        ReservationSpec::default(),
    ] {
        let made = sample.decided(|state| reserve::create(state, &of("_", "db"), &spec));
        assert_eq!(made.unwrap_err().code, ErrorCode::NoPool);
    }
    set(&mut sample, "p", PoolState::Active);
    assert_eq!(given(&mut sample, &key("a", "c1"), 1, named("web-0")), ["10.0.0.1"]);
}

#[test]
fn a_network_of_which_one_family_drains_gives_neither() {
    let mut sample = sample();
    sample.pool("p6", "fd00::/64", |_| {});
    set(&mut sample, "p6", PoolState::Draining);
    assert_eq!(refused(&mut sample, &key("a", "c1"), nameless()).code, ErrorCode::NoPool);
    sample.pool("q6", "fd01::/64", |_| {});
    assert_eq!(given(&mut sample, &key("a", "c1"), 1, nameless()), ["10.0.0.1", "fd01::1"]);
}

#[test]
fn a_draining_pool_shows_who_is_left_until_it_is_empty_and_can_be_removed() {
    let mut sample = sample();
    sample.pool("q", "10.9.0.0/29", |_| {});
    let from_p = |workload| Wanted { pools: vec![name("p")], ..named(workload) };
    given(&mut sample, &key("a", "c1"), 1, from_p("web-0"));
    given(&mut sample, &key("a", "c2"), 2, from_p("plain"));
    given(&mut sample, &key("a", "c3"), 3, from_p("web-1"));
    ended(&mut sample, &key("a", "c3"), 3);
    sample.wait(30);
    set(&mut sample, "p", PoolState::Draining);
    let left = |sample: &Sample| -> Vec<String> {
        let shown = |it: &Holding| {
            let host = it.attachment.as_ref().map_or("nobody", |held| held.key.host.as_str());
            let since = it.detached_for.map_or(String::new(), |since| format!(" for {since}"));
            format!("{} {} {} {host}{since}", it.address, it.name, it.reserved)
        };
        holdings(sample, &HoldingQuery::default()).iter().map(shown).collect()
    };
    assert_eq!(
        left(&sample),
        ["10.0.0.1 web-0 true a", "10.0.0.2 plain false a", "10.0.0.3 web-1 true nobody for 30s"]
    );
    let one = HoldingQuery { limit: Some(1), after: Some(name("10.0.0.1")) };
    let page = sweep::holdings(sample.state(), &name("p"), &one).unwrap();
    assert_eq!((page.items.len(), page.next.as_deref()), (1, Some("10.0.0.2")));

    let error = sample.decided(|state| crate::rules::pools::delete(state, &name("p")));
    assert_eq!(error.unwrap_err().code, ErrorCode::PoolInUse);
    ended(&mut sample, &key("a", "c1"), 1);
    ended(&mut sample, &key("a", "c2"), 2);
    assert_eq!(
        given(&mut sample, &key("b", "c4"), 4, named("web-1")),
        ["10.0.0.3"],
        "it is its own"
    );
    ended(&mut sample, &key("b", "c4"), 4);
    assert_eq!(swept(&mut sample, &PoolRelease::default()), ["_/web-0", "_/web-1"]);
    assert_eq!(left(&sample), Vec::<String>::new(), "what cools is nobody's");
    sample.decided(|state| crate::rules::pools::delete(state, &name("p"))).unwrap();
    assert_eq!(given(&mut sample, &key("a", "c5"), 5, named("web-1")), ["10.9.0.1"]);
}

#[test]
fn a_reservation_that_is_claimed_relies_on_its_pool() {
    let mut sample = sample();
    reserve(&mut sample, "_", "db");
    let request = ClaimRequest {
        session: Token::from_bits(7),
        uid: Token::from_bits(1),
        wanted: named("db"),
    };
    let claimed = claim(sample.state(), &key("a", "c1"), &request, Patience::Left);
    let relied_on = claimed.draft.into_txn().compares;
    assert!(relied_on.contains_key("pools/p"), "{relied_on:?}");
}

#[test]
fn a_renamed_workload_keeps_addresses_mac_and_retention_and_its_old_name_keeps_nothing() {
    let mut sample = sample();
    sample.pool("p6", "fd00::/64", |_| {});
    let mac: Mac = name("02:00:00:00:00:07");
    let spec = ReservationSpec {
        mac: Some(mac),
        retention: Some(Retention::For(Span::from_seconds(90))),
        ..ReservationSpec::default()
    };
    sample.decided(|state| reserve::create(state, &of("_", "web-0"), &spec)).unwrap();
    let old = given(&mut sample, &key("a", "c1"), 1, named("web-0"));
    ended(&mut sample, &key("a", "c1"), 1);
    let before = sample.state().reservation(&of("_", "web-0")).unwrap().record.clone();

    let after = renamed(&mut sample, "web-0", "shop-0").unwrap();
    assert_eq!(after, Reservation { name: name("shop-0"), ..before });
    assert_eq!(sample.state().reservation(&of("_", "web-0")), None);
    assert_eq!(sample.state().mac_keeper(&name("blue"), mac), Some(of("_", "shop-0")));
    assert_ne!(given(&mut sample, &key("b", "c2"), 2, named("web-0")), old, "a new name's");
    assert_eq!(given(&mut sample, &key("b", "c3"), 3, named("shop-0")), old);
    assert_eq!(sample.state().attachment(&key("b", "c3")).unwrap().record.mac, mac);
}

#[test]
fn a_name_is_renamed_neither_while_it_runs_nor_to_one_that_has_something() {
    let mut sample = sample();
    given(&mut sample, &key("a", "c1"), 1, named("web-0"));
    given(&mut sample, &key("a", "c2"), 2, named("plain"));
    reserve(&mut sample, "_", "db");
    let mut refusal = |from: &str, to: &str| {
        let before = sample.state().clone();
        let error = renamed(&mut sample, from, to).unwrap_err();
        assert_eq!(*sample.state(), before, "a refusal changes nothing");
        error
    };
    let running = refusal("web-0", "new");
    assert_eq!(running.code, ErrorCode::ReservationInUse);
    assert!(running.message.contains("container c1 on host a"), "{running}");
    let taken = refusal("db", "web-0");
    assert_eq!(taken.code, ErrorCode::ReservationExists);
    assert_eq!(taken.message, "_/web-0 has a reservation already: 10.0.0.1");
    let attached = refusal("db", "plain");
    assert_eq!(attached.code, ErrorCode::NameInUse);
    assert_eq!(attached.message, "_/plain has 10.0.0.2 already, in container c2 on host a");
    assert_eq!(refusal("nobody", "new").code, ErrorCode::ReservationNotFound);

    let revision = sample.state().revision();
    renamed(&mut sample, "db", "db").unwrap();
    assert_eq!(sample.state().revision(), revision, "to its own name: nothing is written");
    ended(&mut sample, &key("a", "c2"), 2);
    renamed(&mut sample, "db", "plain").unwrap();
}

#[test]
fn a_pool_asked_for_comes_before_rules_and_a_rule_before_the_networks_default() {
    let mut sample = sample();
    sample.pool("prod", "10.1.0.0/28", |pool| {
        pool.select.namespaces.insert(name("prod"));
    });
    sample.pool("ssd", "10.2.0.0/28", |pool| {
        pool.select.host_labels.insert(name("disk"), "ssd".to_owned());
        pool.priority = 1;
    });
    sample.pool("names", "10.3.0.0/28", |pool| {
        pool.select.names.insert(name("db-*"));
        pool.priority = 2;
    });
    sample.change_host("b", |host| {
        host.labels.insert(name("disk"), "ssd".to_owned());
    });
    let prod = |workload: &str| Wanted { namespace: name("prod"), ..named(workload) };
    let mut first = |host: &str, bits, wanted| {
        given(&mut sample, &key(host, &format!("c{bits}")), bits, wanted).remove(0)
    };
    let in_pool = |address: &str, pool: &str| address.starts_with(pool);
    assert!(in_pool(&first("a", 1, named("plain")), "10.0.0."), "the default");
    assert!(in_pool(&first("a", 2, prod("web")), "10.1.0."), "by namespace");
    assert!(in_pool(&first("b", 3, prod("web")), "10.2.0."), "by the host's label");
    assert!(in_pool(&first("b", 4, prod("db-x")), "10.3.0."), "by name, and priority");
    assert!(in_pool(&first("b", 5, nameless()), "10.2.0."), "a name is not needed for a label");
    let asked = Wanted { pools: vec![name("p")], ..prod("db-y") };
    assert!(in_pool(&first("b", 6, asked), "10.0.0."), "asked for");
    let by_address = Wanted { addresses: vec![name("10.1.0.9")], ..nameless() };
    assert_eq!(first("b", 7, by_address), "10.1.0.9", "an address asked for says its pool");
}

#[test]
fn a_pool_with_a_rule_that_is_full_does_not_spill_into_the_default() {
    let mut sample = sample();
    sample.pool("prod", "10.1.0.0/31", |pool| {
        pool.block_size = 2;
        pool.select.namespaces.insert(name("prod"));
    });
    let prod = || Wanted { namespace: name("prod"), ..nameless() };
    let size = sample.state().pool(&name("prod")).unwrap().givable.size();
    for n in 0..size {
        let got = given(&mut sample, &key("a", &format!("c{n}")), n + 1, prod());
        assert!(got[0].starts_with("10.1.0."), "{got:?}");
    }
    let error = refused(&mut sample, &key("a", "more"), prod());
    assert_eq!((error.code, error.details["pool"].as_str()), (ErrorCode::PoolFull, Some("prod")));
    given(&mut sample, &key("a", "other"), 99, nameless());
}

#[test]
fn who_has_an_address_that_is_excluded_later_keeps_it_and_nobody_else_gets_it() {
    let mut sample = sample();
    let first = given(&mut sample, &key("a", "c1"), 1, named("web-0"));
    let plain = given(&mut sample, &key("a", "c2"), 2, nameless());
    let change = PoolChange { exclude: Some(vec![name("10.0.0.0/29")]), ..PoolChange::default() };
    sample.decided(|state| crate::rules::pools::change(state, &name("p"), &change)).unwrap();
    ended(&mut sample, &key("a", "c1"), 1);
    ended(&mut sample, &key("a", "c2"), 2);
    assert_eq!(given(&mut sample, &key("b", "c3"), 3, named("web-0")), first, "it is reserved");
    let asked = Wanted { addresses: vec![name(&plain[0])], ..nameless() };
    let error = refused(&mut sample, &key("a", "c4"), asked);
    assert_eq!(error.code, ErrorCode::AddressNotInPool);
    for n in 0..23 {
        let got = given(&mut sample, &key("a", &format!("d{n}")), 100 + n, nameless());
        let address: IpAddr = name(&got[0]);
        assert!(address >= name::<IpAddr>("10.0.0.8"), "{address} is excluded");
    }
    assert_eq!(refused(&mut sample, &key("a", "d"), nameless()).code, ErrorCode::PoolFull);
}

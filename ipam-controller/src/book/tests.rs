//! Pure: the book over a store in memory that fails when it is told to.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use limpet_api::book::AttachmentKey;
use limpet_api::config::{HostSpec, NetworkSpec};
use limpet_api::host::{ClaimRequest, Wanted};
use limpet_net_types::Token;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time;
use tokio_util::sync::CancellationToken;

use super::keeper::ATTEMPTS;
use super::*;
use crate::alloc::claim::{Granted, claim};
use crate::alloc::{self, Patience};
use crate::keys::{ReservationKey, Subject};
use crate::records::Alive;
use crate::rules::{hosts, networks, pools};
use crate::state::sample::name;
use crate::store::faulty::{Fault, Faulty};
use crate::store::memory::Memory;
use crate::store::{Seen, Snapshot, Txn, Write};
use crate::watch::feed::Knows;

/// A book over a store that can fail, and the store beneath.
struct Fixture {
    book: Book,
    faults: Faulty,
    store: Memory,
    stop: CancellationToken,
    keeping: JoinHandle<()>,
}

impl Fixture {
    /// Two hosts with sessions, a network, and a pool of 254 addresses.
    async fn new() -> Self {
        let store = Memory::new(1000);
        let faults = Faulty::around(Arc::new(store.clone()));
        let (book, keeper) = open(Arc::new(faults.clone())).await.unwrap();
        let stop = CancellationToken::new();
        let keeping = tokio::spawn(keeper.run(stop.clone()));
        let fixture = Self { book, faults, store, stop, keeping };
        fill(&fixture.book).await;
        fixture
    }

    async fn claim(&self, host: &str, uid: u128) -> Result<IpAddr, ApiError> {
        claim_on(self.book.clone(), host.to_owned(), uid).await
    }

    /// The keys of the store that begin so.
    async fn keys(&self, prefix: &str) -> Vec<String> {
        Snapshot::of(&self.store, prefix).await.unwrap().entries.into_keys().collect()
    }
}

async fn fill(book: &Book) {
    let spec = NetworkSpec::default();
    book.decide(move |s| networks::create(s, &name("blue"), &spec)).await.unwrap();
    let spec: limpet_api::config::PoolSpec =
        serde_json::from_str(r#"{"network": "blue", "range": "10.0.0.0/24"}"#).unwrap();
    book.decide(move |s| pools::create(s, &name("p"), &spec)).await.unwrap();
    for host in ["a", "b"] {
        let spec = HostSpec::default();
        book.decide(move |s| hosts::create(s, &name(host), &spec)).await.unwrap();
        let session = move |_: &State| {
            Decision::make(|draft| {
                let token = Token::from_bits(7);
                let (install, made) = (token, token);
                let (superseded, on_link, version) = (vec![], [].into(), String::new());
                let alive =
                    Alive { session: token, install, boot: made, superseded, on_link, version };
                draft.put(&Subject::Session(name(host)), &alive);
                Ok(())
            })
        };
        book.decide(session).await.unwrap();
    }
}

async fn claim_on(book: Book, host: String, uid: u128) -> Result<IpAddr, ApiError> {
    book.decide(claim_of(&host, uid)).await.map(|(outcome, _)| given(outcome))
}

/// The decision of a claim.
fn claim_of(host: &str, uid: u128) -> impl Fn(&State) -> Decision<alloc::Outcome<Granted>> + use<> {
    let key = AttachmentKey {
        host: name(host),
        network: name("blue"),
        container: name(&format!("c{uid}")),
        ifname: name("eth0"),
    };
    let wanted = Wanted { netns: "/n".to_owned(), ..Wanted::default() };
    let request = ClaimRequest { session: Token::from_bits(7), uid: Token::from_bits(uid), wanted };
    move |state: &State| claim(state, &key, &request, Patience::Left)
}

fn given(outcome: alloc::Outcome<Granted>) -> IpAddr {
    match outcome {
        alloc::Outcome::Done(granted) => granted.attachment.addresses[0].address,
        alloc::Outcome::Asked(about) => panic!("asked about {about:?}"),
    }
}

#[tokio::test]
async fn many_claims_at_once_never_share_an_address() {
    let fixture = Fixture::new().await;
    let mut claims = JoinSet::new();
    for uid in 1..=200 {
        let host = if uid % 2 == 0 { "a" } else { "b" };
        claims.spawn(claim_on(fixture.book.clone(), host.to_owned(), uid));
    }
    let given = claims.join_all().await;
    let distinct: BTreeSet<IpAddr> = given.into_iter().map(Result::unwrap).collect();
    assert_eq!(distinct.len(), 200);
    assert_eq!(fixture.keys("attachments/").await.len(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_claim_whose_outcome_is_unknown_has_one_answer_and_one_attachment() {
    for fault in [Fault::NotDone, Fault::LostUntold, Fault::DoneUntold] {
        let fixture = Fixture::new().await;
        fixture.faults.plan(fault);
        let address = fixture.claim("a", 1).await.unwrap();
        assert_eq!(fixture.claim("a", 1).await.unwrap(), address, "{fault:?}");
        assert_eq!(fixture.keys("attachments/").await.len(), 1, "{fault:?}");
        assert_eq!(fixture.keys("addresses/").await.len(), 1, "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_takes_nothing_is_no_reason_to_wait_for_ever() {
    let fixture = Fixture::new().await;
    for _ in 0..ATTEMPTS {
        fixture.faults.plan(Fault::NotDone);
    }
    let error = fixture.claim("a", 1).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Unavailable);
    for _ in 0..ATTEMPTS {
        fixture.faults.plan(Fault::LostUntold);
    }
    let error = fixture.claim("a", 1).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::OutcomeUnknown);
    fixture.claim("a", 1).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_removal_that_may_have_happened_is_not_called_missing() {
    let fixture = Fixture::new().await;
    fixture.faults.plan(Fault::DoneUntold);
    let removed = fixture.book.decide(|state| pools::delete(state, &name("p"))).await;
    assert_eq!(removed.unwrap_err().code, ErrorCode::OutcomeUnknown);
    assert_eq!(fixture.keys("pools/").await.len(), 0);
    let again = fixture.book.decide(|state| pools::delete(state, &name("p"))).await;
    assert_eq!(again.unwrap_err().code, ErrorCode::PoolNotFound);
}

#[tokio::test(start_paused = true)]
async fn a_decision_on_what_somebody_else_changed_is_made_again() {
    let fixture = Fixture::new().await;
    let reservation = r#"{"network":"blue","namespace":"_","name":"db","addresses":[],
        "mac":"02:00:00:00:00:01","retention":"forever","origin":"operator"}"#;
    let writes = [("reservations/blue/_/db".to_owned(), Write::Put(reservation.to_owned().into()))];
    let behind = Txn { writes: writes.into(), ..Txn::default() };
    fixture.store.commit(vec![behind]).await.unwrap();

    let key: ReservationKey =
        ReservationKey { network: name("blue"), namespace: name("_"), name: name("db") };
    let spec = limpet_api::book::ReservationSpec {
        mac: Some(name("02:00:00:00:00:02")),
        ..limpet_api::book::ReservationSpec::default()
    };
    let made = fixture.book.decide(move |state| alloc::reserve::create(state, &key, &spec)).await;
    assert_eq!(made.unwrap_err().code, ErrorCode::ReservationExists, "it was seen in time");
}

#[tokio::test(start_paused = true)]
async fn nobody_is_told_what_is_not_durable() {
    let fixture = Fixture::new().await;
    let watcher =
        Watcher { host: name("a"), knows: Knows::Nothing, hangup: CancellationToken::new() };
    let Beginning::Lines { mut queue, .. } = fixture.book.watch(watcher).await.unwrap() else {
        panic!("a new watcher needs no log");
    };
    let head = *fixture.book.head().borrow();
    fixture.faults.plan(Fault::Slow(Duration::from_secs(5)));
    let claiming = tokio::spawn(claim_on(fixture.book.clone(), "a".to_owned(), 1));
    time::sleep(Duration::from_secs(1)).await;
    assert!(queue.try_recv().is_err());
    assert_eq!(*fixture.book.head().borrow(), head);
    let read = fixture.book.read(|state| state.attachments().count());
    assert!(time::timeout(Duration::from_secs(1), read).await.is_err(), "a reader waits for it");
    claiming.await.unwrap().unwrap();
    assert!(queue.recv().await.unwrap().revision > head);
}

/// A claim, and whether it was decided by now.
fn claiming_seen(fixture: &Fixture, uid: u128) -> (JoinHandle<Result<IpAddr, ApiError>>, Seeing) {
    let seen = Seeing::default();
    let (noted, book) = (Arc::clone(&seen), fixture.book.clone());
    let decide = claim_of("b", uid);
    let claiming = async move {
        let decide = move |state: &State| {
            noted.fetch_add(1, Ordering::Relaxed);
            decide(state)
        };
        book.decide(decide).await.map(|(outcome, _)| given(outcome))
    };
    (tokio::spawn(claiming), seen)
}

type Seeing = Arc<AtomicUsize>;

#[tokio::test(start_paused = true)]
async fn while_the_store_writes_a_batch_the_next_is_decided_and_nobody_is_told() {
    let fixture = Fixture::new().await;
    fixture.faults.plan(Fault::Slow(Duration::from_secs(5)));
    let first = tokio::spawn(claim_on(fixture.book.clone(), "a".to_owned(), 1));
    time::sleep(Duration::from_secs(1)).await;
    let (second, decided) = claiming_seen(&fixture, 2);
    time::sleep(Duration::from_secs(1)).await;
    assert_eq!(decided.load(Ordering::Relaxed), 1, "on top of what is being written");
    assert!(!first.is_finished() && !second.is_finished());
    assert_eq!(fixture.keys("attachments/").await.len(), 0);
    let watching = listening(&fixture.book, "a");
    assert!(time::timeout(Duration::from_secs(1), watching).await.is_err(), "nor a watcher");
    assert_ne!(first.await.unwrap().unwrap(), second.await.unwrap().unwrap());
    assert_eq!(decided.load(Ordering::Relaxed), 1);
    assert_eq!(fixture.keys("attachments/").await.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_was_decided_on_top_of_a_batch_that_failed_is_decided_again() {
    for done in [false, true] {
        let fixture = Fixture::new().await;
        fixture.faults.plan(Fault::Stuck { pause: Duration::from_secs(5), done });
        let first = tokio::spawn(claim_on(fixture.book.clone(), "a".to_owned(), 1));
        time::sleep(Duration::from_secs(1)).await;
        let (second, decided) = claiming_seen(&fixture, 2);
        // The same once more meets its key, and waits for the batch after.
        let (again, _) = claiming_seen(&fixture, 2);
        let (first, second) = (first.await.unwrap().unwrap(), second.await.unwrap().unwrap());
        assert_eq!(again.await.unwrap().unwrap(), second);
        assert_ne!(first, second);
        assert_eq!(decided.load(Ordering::Relaxed), 2, "done: {done}");
        assert_eq!(fixture.keys("attachments/").await.len(), 2);
        assert_eq!(fixture.keys("addresses/").await.len(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_asks_to_watch_while_batch_follows_batch_is_answered() {
    let fixture = Fixture::new().await;
    let (pause, between) = (Duration::from_millis(10), Duration::from_millis(2));
    for _ in 0..2 {
        fixture.faults.plan(Fault::Slow(pause));
    }
    let claiming = |uid| tokio::spawn(claim_on(fixture.book.clone(), "a".to_owned(), uid));
    let watching = |host: &str| {
        let (book, host) = (fixture.book.clone(), name(host));
        let watcher = Watcher { host, knows: Knows::Nothing, hangup: CancellationToken::new() };
        tokio::spawn(async move { book.watch(watcher).await.map(drop) })
    };
    let first = claiming(1);
    time::sleep(between).await;
    let second = claiming(2);
    time::sleep(between).await;
    let earlier = watching("a");
    // Now the second batch is written.
    time::sleep(pause).await;
    assert!(first.is_finished() && !second.is_finished());
    let later = watching("b");
    earlier.await.unwrap().unwrap();
    later.await.unwrap().unwrap();
    second.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn whoever_asks_while_fleet_time_is_written_is_answered_after_it() {
    let fixture = Fixture::new().await;
    let period = fixture.book.periods();
    time::sleep(Duration::from_millis(9900)).await;
    fixture.faults.plan(Fault::Slow(Duration::from_secs(5)));
    time::sleep(Duration::from_secs(1)).await;
    assert!(!period.has_changed().unwrap());
    time::timeout(Duration::from_secs(6), fixture.book.turns()).await.unwrap().unwrap();
    assert!(period.has_changed().unwrap(), "it came while fleet time was written");
}

#[tokio::test(start_paused = true)]
async fn what_was_done_untold_is_told_to_watchers_all_the_same() {
    let fixture = Fixture::new().await;
    let mut queue = listening(&fixture.book, "a").await;
    fixture.faults.plan(Fault::DoneUntold);
    fixture.claim("a", 1).await.unwrap();
    let line = queue.recv().await.unwrap().parts.concat();
    assert!(String::from_utf8(line).unwrap().contains("attachment-set"));
}

#[tokio::test(start_paused = true)]
async fn fleet_time_goes_on_while_the_controller_runs_and_survives_it() {
    let fixture = Fixture::new().await;
    time::sleep(Duration::from_secs(35)).await;
    let now = fixture.book.read(State::now).await.unwrap();
    assert!((20..=35).contains(&now.0), "{now:?}");
    fixture.faults.plan(Fault::NotDone);
    time::sleep(Duration::from_secs(35)).await;
    let now = fixture.book.read(State::now).await.unwrap();
    assert!((50..=70).contains(&now.0), "a tick that failed is made up for: {now:?}");

    fixture.stop.cancel();
    fixture.keeping.await.unwrap();
    let (_, keeper) = open(Arc::new(fixture.store.clone())).await.unwrap();
    assert!(keeper.state.now() >= now);
}

#[tokio::test]
async fn a_request_after_the_end_is_refused() {
    let fixture = Fixture::new().await;
    fixture.stop.cancel();
    fixture.keeping.await.unwrap();
    let refused = fixture.book.decide(|_| Decision::make(|_| Ok(()))).await;
    assert_eq!(refused.unwrap_err().code, ErrorCode::Unavailable);
}

async fn listening(book: &Book, host: &str) -> tokio::sync::mpsc::Receiver<crate::watch::Line> {
    let hangup = CancellationToken::new();
    let watcher = Watcher { host: name(host), knows: Knows::Nothing, hangup };
    match book.watch(watcher).await.unwrap() {
        Beginning::Lines { queue, .. } => queue,
        Beginning::ReadLog => panic!("a new watcher needs no log"),
    }
}

/// Books over one store, each with faults of its own.
struct Replicas {
    books: Vec<(Book, Faulty)>,
}

impl Replicas {
    async fn new(count: usize) -> Self {
        let store = Memory::new(100_000);
        let mut books = Vec::new();
        for _ in 0..count {
            let faults = Faulty::around(Arc::new(store.another()));
            let (book, keeper) = open(Arc::new(faults.clone())).await.unwrap();
            tokio::spawn(keeper.run(CancellationToken::new()));
            books.push((book, faults));
        }
        fill(&books[0].0).await;
        Self { books }
    }

    fn book(&self, n: usize) -> Book {
        self.books[n % self.books.len()].0.clone()
    }
}

#[tokio::test]
async fn what_one_controller_has_told_all_others_know() {
    let replicas = Replicas::new(3).await;
    for uid in 1..=30 {
        let n = usize::try_from(uid).unwrap();
        let address = claim_on(replicas.book(n), "a".to_owned(), uid).await.unwrap();
        let again = claim_on(replicas.book(n + 1), "a".to_owned(), uid).await.unwrap();
        assert_eq!(again, address, "the same incarnation has the same answer everywhere");
        let seen = replicas.book(n + 2).read(|state| state.attachments().count()).await.unwrap();
        assert_eq!(seen, n);
    }
}

#[tokio::test]
async fn claims_through_all_controllers_at_once_never_share_an_address() {
    let replicas = Replicas::new(3).await;
    let mut claims = JoinSet::new();
    for uid in 1..=254 {
        let host = if uid % 2 == 0 { "a" } else { "b" };
        let book = replicas.book(usize::try_from(uid).unwrap());
        claims.spawn(claim_on(book, host.to_owned(), uid));
    }
    let given = claims.join_all().await;
    let distinct: BTreeSet<IpAddr> = given.into_iter().map(Result::unwrap).collect();
    assert_eq!(distinct.len(), 254, "and every address of the pool was found");
    let full = claim_on(replicas.book(0), "a".to_owned(), 999).await.unwrap_err();
    assert_eq!(full.code, ErrorCode::PoolFull);
}

#[tokio::test]
async fn a_host_hears_at_one_controller_what_it_did_at_another() {
    let replicas = Replicas::new(2).await;
    let mut queue = listening(&replicas.book(1), "a").await;
    claim_on(replicas.book(0), "a".to_owned(), 1).await.unwrap();
    let line = queue.recv().await.unwrap().parts.concat();
    assert!(String::from_utf8(line).unwrap().contains("block-set"), "the host's first block");
}

#[tokio::test(start_paused = true)]
async fn what_is_committed_long_after_it_was_given_up_finds_its_place_taken_or_is_known() {
    let replicas = Replicas::new(2).await;
    replicas.books[0].1.plan(Fault::Late(Duration::from_secs(3)));
    let address = claim_on(replicas.book(0), "a".to_owned(), 1).await.unwrap();
    time::sleep(Duration::from_secs(10)).await;
    let held = |state: &State| {
        let record = |e: &crate::state::Entry<limpet_api::book::Attachment>| e.record.clone();
        state.attachments().map(record).collect::<Vec<_>>()
    };
    for n in 0..2 {
        let held = replicas.book(n).read(held).await.unwrap();
        assert_eq!(held.len(), 1);
        assert_eq!(held[0].addresses[0].address, address);
    }
}

#[tokio::test(start_paused = true)]
async fn a_controller_whose_watch_is_cut_goes_on_and_misses_nothing() {
    let replicas = Replicas::new(2).await;
    for uid in 1..=20 {
        replicas.books[1].1.cut_watch();
        claim_on(replicas.book(0), "a".to_owned(), uid).await.unwrap();
        let seen = replicas.book(1).read(|state| state.attachments().count()).await.unwrap();
        assert_eq!(seen, usize::try_from(uid).unwrap());
    }
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_is_slow_to_begin_is_waited_for() {
    let replicas = Replicas::new(2).await;
    replicas.books[1].1.slow_watches(Duration::from_millis(400));
    for uid in 1..=5 {
        replicas.books[1].1.cut_watch();
        claim_on(replicas.book(0), "a".to_owned(), uid).await.unwrap();
        let seen = replicas.book(1).read(|state| state.attachments().count()).await.unwrap();
        assert_eq!(seen, usize::try_from(uid).unwrap());
    }
}

#[tokio::test(start_paused = true)]
async fn fleet_time_runs_no_faster_with_more_controllers() {
    let replicas = Replicas::new(3).await;
    time::sleep(Duration::from_secs(300)).await;
    let now = replicas.book(0).read(State::now).await.unwrap();
    assert!((250..=300).contains(&now.0), "{now:?}");
}

#[tokio::test]
async fn a_store_with_unknown_records_is_not_opened() {
    for (key, value) in [("pools/p", "{}"), ("of/tomorrow", "1")] {
        let store = Memory::new(10);
        let writes = [(key.to_owned(), Write::Put(value.into()))].into();
        let compares = [(key.to_owned(), Seen::Absent)].into();
        store.commit(vec![Txn { compares, writes, ..Txn::default() }]).await.unwrap();
        let error = open(Arc::new(store)).await.err().unwrap();
        assert!(error.to_string().contains(key), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_mac_address_that_two_controllers_are_asked_for_at_once_goes_to_one_container() {
    let replicas = Replicas::new(2).await;
    for (host, uid) in [("a", 101), ("b", 102)] {
        // With a block each, they have nothing but the MAC address in common.
        claim_on(replicas.book(0), host.to_owned(), uid).await.unwrap();
    }
    let claiming = |n: usize| {
        let (book, uid) = (replicas.book(n), u128::try_from(n).unwrap() + 1);
        let key = AttachmentKey {
            host: name(["a", "b"][n]),
            network: name("blue"),
            container: name(&format!("c{uid}")),
            ifname: name("eth0"),
        };
        let wanted = Wanted { mac: Some(name("02:00:00:00:00:09")), ..Wanted::default() };
        let (session, uid) = (Token::from_bits(7), Token::from_bits(uid));
        let request = ClaimRequest { session, uid, wanted };
        let decide = move |state: &State| claim(state, &key, &request, Patience::Left);
        tokio::spawn(async move { book.decide(decide).await.map(drop).map_err(|e| e.code) })
    };
    replicas.books[0].1.plan(Fault::Slow(Duration::from_secs(2)));
    let decided_first = claiming(0);
    time::sleep(Duration::from_secs(1)).await;
    assert_eq!(claiming(1).await.unwrap(), Ok(()));
    assert_eq!(decided_first.await.unwrap(), Err(ErrorCode::MacHeld));
}

#[tokio::test(start_paused = true)]
async fn the_last_address_of_a_quota_goes_to_one_of_two_that_two_controllers_are_asked_for_at_once()
{
    let replicas = Replicas::new(2).await;
    for (host, uid) in [("a", 101), ("b", 102)] {
        // With a block each, they have nothing but the quota in common.
        claim_on(replicas.book(0), host.to_owned(), uid).await.unwrap();
    }
    let spec = limpet_api::quota::QuotaSpec { addresses: 3 };
    let set = move |state: &State| crate::rules::quotas::set(state, &name("_"), spec);
    replicas.book(0).decide(set).await.unwrap();
    replicas.books[0].1.plan(Fault::Slow(Duration::from_secs(2)));
    let decided_first = tokio::spawn(claim_on(replicas.book(0), "a".to_owned(), 1));
    time::sleep(Duration::from_secs(1)).await;
    claim_on(replicas.book(1), "b".to_owned(), 2).await.unwrap();
    let refused = decided_first.await.unwrap().unwrap_err();
    assert_eq!(refused.code, ErrorCode::QuotaExceeded);
    assert_eq!(refused.details["held"], 3);
}

#[tokio::test]
async fn however_many_claim_at_once_a_quota_is_filled_and_not_exceeded() {
    let replicas = Replicas::new(2).await;
    let spec = limpet_api::quota::QuotaSpec { addresses: 5 };
    let set = move |state: &State| crate::rules::quotas::set(state, &name("_"), spec);
    replicas.book(0).decide(set).await.unwrap();
    let mut claims = JoinSet::new();
    for uid in 1..=12 {
        let book = replicas.book(usize::try_from(uid).unwrap());
        claims.spawn(claim_on(book, "a".to_owned(), uid));
    }
    let given = claims.join_all().await;
    let refused: Vec<ErrorCode> =
        given.into_iter().filter_map(Result::err).map(|error| error.code).collect();
    assert_eq!(refused, [ErrorCode::QuotaExceeded; 7]);
}

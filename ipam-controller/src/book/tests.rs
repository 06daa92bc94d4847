//! Pure: the book over a store in memory that fails when it is told to.

use std::collections::BTreeSet;
use std::net::IpAddr;

use limpet_api::book::AttachmentKey;
use limpet_api::config::{HostSpec, NetworkSpec};
use limpet_api::host::{ClaimRequest, Wanted};
use limpet_net_types::Token;
use tokio::task::{JoinHandle, JoinSet};

use super::*;
use crate::alloc::claim::claim;
use crate::alloc::{self, Patience};
use crate::keys::ReservationKey;
use crate::records::Alive;
use crate::rules::{hosts, networks, pools};
use crate::state::sample::name;
use crate::store::faulty::{Fault, Faulty};
use crate::store::memory::Memory;
use crate::store::{Seen, Snapshot, Write};
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
        fixture.fill().await;
        fixture
    }

    async fn fill(&self) {
        let spec = NetworkSpec::default();
        self.book.decide(move |s| networks::create(s, &name("blue"), &spec)).await.unwrap();
        let spec: limpet_api::config::PoolSpec =
            serde_json::from_str(r#"{"network": "blue", "range": "10.0.0.0/24"}"#).unwrap();
        self.book.decide(move |s| pools::create(s, &name("p"), &spec)).await.unwrap();
        for host in ["a", "b"] {
            let spec = HostSpec::default();
            self.book.decide(move |s| hosts::create(s, &name(host), &spec)).await.unwrap();
            let session = move |_: &State| {
                Decision::make(|draft| {
                    let token = Token::from_bits(7);
                    let (install, boot) = (token, token);
                    let (superseded, on_link, version) = (vec![], [].into(), String::new());
                    let alive =
                        Alive { session: token, install, boot, superseded, on_link, version };
                    draft.put(&Subject::Session(name(host)), &alive);
                    Ok(())
                })
            };
            self.book.decide(session).await.unwrap();
        }
    }

    async fn claim(&self, host: &str, uid: u128) -> Result<IpAddr, ApiError> {
        claim_on(self.book.clone(), host.to_owned(), uid).await
    }

    /// The keys of the store that begin so.
    async fn keys(&self, prefix: &str) -> Vec<String> {
        Snapshot::of(&self.store, prefix).await.unwrap().entries.into_keys().collect()
    }
}

async fn claim_on(book: Book, host: String, uid: u128) -> Result<IpAddr, ApiError> {
    let key = AttachmentKey {
        host: name(&host),
        network: name("blue"),
        container: name(&format!("c{uid}")),
        ifname: name("eth0"),
    };
    let wanted = Wanted { netns: "/n".to_owned(), ..Wanted::default() };
    let request = ClaimRequest { session: Token::from_bits(7), uid: Token::from_bits(uid), wanted };
    let decide = move |state: &State| claim(state, &key, &request, Patience::Left);
    match book.decide(decide).await?.0 {
        alloc::Outcome::Done((attachment, _)) => Ok(attachment.addresses[0].address),
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

#[tokio::test(start_paused = true)]
async fn after_a_failure_watchers_are_cut_and_come_back_through_the_log() {
    let fixture = Fixture::new().await;
    let watcher = |knows| Watcher { host: name("a"), knows, hangup: CancellationToken::new() };
    let begun = fixture.book.watch(watcher(Knows::Nothing)).await.unwrap();
    let Beginning::Lines { store, revision, mut queue, .. } = begun else {
        panic!("a new watcher needs no log");
    };
    fixture.faults.plan(Fault::DoneUntold);
    fixture.claim("a", 1).await.unwrap();
    assert!(queue.recv().await.is_none(), "cut");
    let begun = fixture.book.watch(watcher(Knows::UpTo(store, revision))).await.unwrap();
    assert!(matches!(begun, Beginning::ReadLog), "what was missed was not kept");
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

#[tokio::test]
async fn questions_that_an_earlier_process_left_behind_are_gone_after_the_start() {
    let fixture = Fixture::new().await;
    fixture.claim("a", 1).await.unwrap();
    let key = AttachmentKey {
        host: name("a"),
        network: name("blue"),
        container: name("c1"),
        ifname: name("eth0"),
    };
    let ask = move |s: &State| alloc::reserve::end(s, &key, None, Patience::Left);
    fixture.book.decide(ask).await.unwrap();
    assert_eq!(fixture.keys("asks/").await.len(), 1);
    fixture.stop.cancel();
    let (_, keeper) = open(Arc::new(fixture.store.clone())).await.unwrap();
    assert_eq!(keeper.state.asks().count(), 0);
    assert_eq!(fixture.keys("asks/").await.len(), 0);
    assert_eq!(keeper.state.attachments().count(), 1);
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

//! Edge: the same truth asked of real books: several controllers, each with its own task, over one
//! store that fails in every way that a store may, under a clock that jumps.

use std::sync::Arc;
use std::time::Duration;

use limpet_api::book::{AttachmentKey, EndReason};
use limpet_api::host::{ClaimRequest, EndRequest, Wanted};
use limpet_net_types::Token;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::actions::pool_spec;
use super::dice::{Dice, fresh_seed};
use super::model::Model;
use super::replica::{Caller, Reply};
use super::request::{Answer, Circumstances, Request};
use super::run::number;
use super::truth;
use crate::alloc::Patience;
use crate::book::{Book, open};
use crate::draft::{Decision, Draft};
use crate::keys::{STORE_ID, Subject};
use crate::records::Alive;
use crate::rules::sessions::Liveness;
use crate::rules::{hosts, networks, pools};
use crate::state::sample::name;
use crate::state::{State, reservation_key};
use crate::store::faulty::{Fault, Faulty};
use crate::store::memory::Memory;
use crate::store::{Revision, Snapshot, Store, WatchError};

/// How many controllers there are.
const CONTROLLERS: usize = 3;

/// How many callers ask at the same time, and how often each.
const CALLERS: usize = 6;
const CALLS: usize = 40;

/// The session that every host has.
fn session() -> Token {
    Token::from_bits(7)
}

/// Decides as a handler does.
fn deciding(request: Request) -> impl FnMut(&State) -> Decision<Answer> + Send + 'static {
    let circumstances = Circumstances {
        patience: Patience::Over,
        liveness: Liveness::Alive,
        hears: true,
        replica: Token::from_bits(1),
    };
    move |state| {
        let (txn, answer) = request.decide(state, circumstances);
        Decision { draft: Draft::of(txn), answer }
    }
}

async fn head(store: &Memory) -> Revision {
    Snapshot::of(store, STORE_ID).await.unwrap().revision
}

async fn fill(book: &Book) {
    let spec = limpet_api::config::NetworkSpec::default();
    book.decide(move |s| networks::create(s, &name("blue"), &spec)).await.unwrap();
    book.decide(|s| pools::create(s, &name("p"), &pool_spec("10.0.0.0/29"))).await.unwrap();
    for host in ["a", "b", "c"] {
        let spec = limpet_api::config::HostSpec::default();
        book.decide(move |s| hosts::create(s, &name(host), &spec)).await.unwrap();
        let open = move |_: &State| {
            Decision::make(|draft| {
                let token = session();
                let alive = Alive {
                    session: token,
                    install: token,
                    boot: token,
                    superseded: vec![],
                    on_link: [].into(),
                    version: String::new(),
                };
                draft.put(&Subject::Session(name(host)), &alive);
                Ok(())
            })
        };
        book.decide(open).await.unwrap();
    }
}

/// One caller: an agent that has four containers on its host, and asks any controller.
async fn caller(
    number: usize,
    seed: u64,
    books: Vec<Book>,
    store: Memory,
) -> Vec<(Reply, Revision)> {
    let mut dice = Dice::new(seed);
    let mut told = Vec::new();
    let mut uids = [None; 4];
    for call in 0..CALLS {
        let container = dice.below(4);
        let key = AttachmentKey {
            host: name(["a", "b", "c"][number % 3]),
            network: name("blue"),
            container: name(&format!("c{container}-{number}")),
            ifname: name("eth0"),
        };
        let workload = ["web-0", "web-1", "db", "db", "db"][dice.below(5)];
        let reservation = reservation_key(&name("blue"), &name("_"), &name(workload));
        let fresh = Token::from_bits(u128::try_from(number * 1_000 + call + 100).unwrap());
        let request = match (dice.below(10), uids[container]) {
            (0..=4, None) => {
                uids[container] = Some((fresh, workload));
                claim(key, fresh, workload)
            }
            (0..=2, Some((uid, workload))) => claim(key, uid, workload),
            (3..=6, Some((uid, _))) => {
                uids[container] = None;
                let (session, reason) = (session(), EndReason::Detached);
                Request::End { key, request: EndRequest { session, uid, reason } }
            }
            (7, _) => Request::Release { key: reservation },
            _ => Request::Reserve { key: reservation, address: None },
        };
        let sent = head(&store).await;
        let book = &books[dice.below(books.len())];
        let answer = timeout(Duration::from_secs(120), book.decide(deciding(request.clone())));
        let result = answer.await.expect("every wait ends");
        let reply = Reply { caller: Caller::Operator, request, sent, result };
        told.push((reply, head(&store).await));
        sleep(Duration::from_millis(u64::try_from(dice.below(300)).unwrap())).await;
    }
    told
}

fn claim(key: AttachmentKey, uid: Token, workload: &str) -> Request {
    let wanted = Wanted { netns: "/n".to_owned(), name: Some(name(workload)), ..Wanted::default() };
    Request::Claim { key, request: ClaimRequest { session: session(), uid, wanted } }
}

/// Breaks stores until it is stopped. What is carried out late was written by somebody else, whom a
/// store with one controller does not have.
async fn break_things(seed: u64, stores: Vec<Faulty>, stop: CancellationToken) {
    let mut dice = Dice::new(seed);
    while !stop.is_cancelled() {
        sleep(Duration::from_millis(u64::try_from(dice.below(600)).unwrap())).await;
        let store = &stores[dice.below(stores.len())];
        let pause = Duration::from_millis(u64::try_from(dice.below(3_000)).unwrap());
        match dice.below(17) {
            0 => store.plan(Fault::NotDone),
            1 | 2 => store.plan(Fault::DoneUntold),
            3 => store.plan(Fault::LostUntold),
            4 | 5 => store.plan(Fault::Slow(pause)),
            6 if store.is_shared() => store.plan(Fault::Late(pause)),
            6 | 8 => store.plan(Fault::Stuck { pause, done: dice.below(2) == 0 }),
            7 => store.cut_watch(),
            9 => store.cut_read(),
            10.. => store.lag_watch(pause),
        }
    }
}

/// Everything that the store has told, held against the model.
async fn history(store: &Memory, from: Revision) -> Model {
    let mut model = Model { revision: from, ..Model::default() };
    let mut watch = store.watch(from).await.unwrap();
    let newest = head(store).await;
    while model.revision < newest {
        let event = watch.next().await.map_err(|error: WatchError| error.to_string()).unwrap();
        model.take(&event).unwrap();
    }
    model
}

async fn run(seed: u64, controllers: usize) -> usize {
    let mut dice = Dice::new(seed);
    let store = Memory::new(1_000_000);
    let begin = head(&store).await;
    let (stop, mut keepers) = (CancellationToken::new(), JoinSet::new());
    let (mut books, mut stores) = (Vec::new(), Vec::new());
    for _ in 0..controllers {
        let client = if controllers > 1 { store.another() } else { store.clone() };
        let faulty = Faulty::around(Arc::new(client));
        let (book, keeper) = open(Arc::new(faulty.clone())).await.unwrap();
        keepers.spawn(keeper.run(stop.clone()));
        books.push(book);
        stores.push(faulty);
    }
    fill(&books[0]).await;
    let breaking = tokio::spawn(break_things(dice.next(), stores, stop.clone()));
    let mut callers = JoinSet::new();
    for number in 0..CALLERS {
        callers.spawn(caller(number, dice.next(), books.clone(), store.clone()));
    }
    let told = callers.join_all().await;
    stop.cancel();
    breaking.await.unwrap();
    keepers.join_all().await;
    let model = history(&store, begin).await;
    let mut definite = 0;
    for (reply, at) in told.into_iter().flatten() {
        definite += usize::from(reply.result.is_ok());
        truth::check(&model, &reply, at).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
    definite
}

#[tokio::test(start_paused = true)]
async fn books_of_several_controllers_tell_nothing_that_is_not_so() {
    let seed = number("LIMPET_PROOF_SEED").unwrap_or_else(fresh_seed);
    let runs = number("LIMPET_PROOF_STEPS").map_or(6, |steps| 1 + steps / 5_000);
    println!("books of {CONTROLLERS} controllers: LIMPET_PROOF_SEED={seed}, {runs} runs");
    let mut dice = Dice::new(seed);
    let mut granted = 0;
    for _ in 0..runs {
        granted += run(dice.next(), CONTROLLERS).await;
    }
    println!("books of {CONTROLLERS} controllers: {granted} requests carried out");
    assert!(granted > 0);
}

/// A store that nobody else has, in which the next batch is decided while one is written.
#[tokio::test(start_paused = true)]
async fn a_book_that_decides_ahead_tells_nothing_that_is_not_so() {
    let seed = number("LIMPET_PROOF_SEED").unwrap_or_else(fresh_seed);
    let runs = number("LIMPET_PROOF_STEPS").map_or(12, |steps| 1 + steps / 2_500);
    println!("a book alone: LIMPET_PROOF_SEED={seed}, {runs} runs");
    let mut dice = Dice::new(seed);
    let mut granted = 0;
    for _ in 0..runs {
        granted += run(dice.next(), 1).await;
    }
    println!("a book alone: {granted} requests carried out");
    assert!(granted > 0);
}

/// Two controllers, of which the second hears late of what the first did.
#[tokio::test(start_paused = true)]
async fn a_controller_that_is_behind_refuses_nobody_what_is_free_by_now() {
    let store = Memory::new(1_000);
    let (stop, mut keepers) = (CancellationToken::new(), JoinSet::new());
    let late = Faulty::around(Arc::new(store.another()));
    let (first, keeper) = open(Arc::new(store.another())).await.unwrap();
    keepers.spawn(keeper.run(stop.clone()));
    fill(&first).await;
    let key = |number: u128| AttachmentKey {
        host: name("a"),
        network: name("blue"),
        container: name(&format!("c{number}")),
        ifname: name("eth0"),
    };
    let uid = |number: u128| Token::from_bits(number + 100);
    for number in 0..6 {
        first.decide(deciding(claim(key(number), uid(number), "db"))).await.unwrap();
    }
    let (second, keeper) = open(Arc::new(late.clone())).await.unwrap();
    keepers.spawn(keeper.run(stop.clone()));
    let refused = second.decide(deciding(claim(key(7), uid(7), "db"))).await;
    assert_eq!(refused.unwrap_err().code, limpet_api::ErrorCode::PoolFull);
    late.lag_watch(Duration::from_secs(2));
    let (session, reason) = (session(), EndReason::Detached);
    let end = EndRequest { session, uid: uid(0), reason };
    first.decide(deciding(Request::End { key: key(0), request: end })).await.unwrap();
    second.decide(deciding(claim(key(7), uid(7), "db"))).await.unwrap();
    stop.cancel();
    keepers.join_all().await;
}

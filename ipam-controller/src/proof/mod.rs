//! Pure: the proof that no address is given twice: a simulated world, held against a model after
//! every step.
//!
//! | file | is |
//! |---|---|
//! | [`model`] | what must hold of the store, a page long |
//! | [`truth`] | whether what callers are told was so |
//! | [`world`], [`actions`] | a real store, controllers, machines, messages; what each step does |
//! | [`request`], [`replica`] | controllers: the real decisions on states that lag |
//! | [`machine`], [`agent`] | a kernel, a runtime, plugins, and an agent that keeps the real one's rules |
//! | [`step`], [`dice`] | which step is next |
//! | [`books`] | real books of several controllers, over a store that fails |
//! | [`field`] | what users of other address managers saw, one test each |
//! | [`quiet`] | that everything comes to rest |
//! | [`run`] | seeds, lengths, the fewest steps that go wrong |
//!
//! What it finds it prints with its seed: `LIMPET_PROOF_SEED` repeats a run, `LIMPET_PROOF_STEPS`
//! makes it longer.

mod actions;
mod agent;
mod books;
mod dice;
mod field;
mod machine;
mod model;
mod quiet;
mod replica;
mod request;
mod run;
mod step;
mod truth;
mod world;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tokio::runtime::Runtime;

use self::run::{days, number};
use self::world::{Client, Setting};
use crate::store::etcd::server::Cluster;
use crate::store::etcd::{self, Etcd};
use crate::store::memory::Memory;
use crate::store::{Embedded, Options, Store};

/// How many steps a run has unless it is told otherwise, over the store in memory.
const STEPS: usize = 30_000;

/// The same over the file, each commit of which waits for the disk.
const STEPS_ON_DISK: usize = 1_500;

/// The same over etcd, which is asked over the network.
const STEPS_ON_ETCD: usize = 1_500;

fn steps(usual: usize) -> usize {
    number("LIMPET_PROOF_STEPS").map_or(usual, |steps| usize::try_from(steps).unwrap())
}

#[test]
fn no_address_is_given_twice_whatever_the_order_of_events() {
    days("three controllers, store in memory", steps(STEPS), &mut |day| {
        let store = Memory::new(1_000_000);
        let client = move |_: &Runtime| {
            let client = store.another();
            let store = Arc::new(client.clone());
            Client { store, lapse: Box::new(move |_| client.lapse()), survives: true }
        };
        let controllers = if day % 2 == 0 { 2 } else { 3 };
        Setting { client: Box::new(client), controllers, is_dual: day % 5 == 0 }
    });
}

#[test]
fn no_address_is_given_twice_over_the_embedded_store() {
    let directory = tempfile::tempdir().unwrap();
    let steps = steps(STEPS_ON_DISK).min(100_000);
    let mut count = 0;
    days("embedded store", steps, &mut |_| {
        count += 1;
        let path = directory.path().join(format!("{count}"));
        let options = Options { path, cache_bytes: 1 << 20, log_revisions: 1_000_000 };
        let mut before: Option<Arc<dyn Store>> = None;
        let client = move |_: &Runtime| {
            if let Some(before) = before.take() {
                before.close().now_or_never();
            }
            let store: Arc<dyn Store> = Arc::new(opened(&options));
            before = Some(Arc::clone(&store));
            // Opening the file lets ephemeral keys go.
            Client { store, lapse: Box::new(|_| ()), survives: false }
        };
        Setting { client: Box::new(client), controllers: 1, is_dual: false }
    });
}

#[test]
fn no_address_is_given_twice_over_etcd() {
    let cluster = Cluster::start(1);
    let mut count = 0;
    days("etcd", steps(STEPS_ON_ETCD).min(30_000), &mut |_| {
        count += 1;
        let options = etcd::Options {
            lease: Duration::from_secs(600),
            ..cluster.options(&format!("/{count}"))
        };
        let client = move |runtime: &Runtime| {
            let store = runtime.block_on(async {
                let store = Etcd::prepare(&options).unwrap();
                store.open().await.unwrap();
                Arc::new(store)
            });
            let closes = Arc::clone(&store);
            let lapse = move |runtime: &Runtime| runtime.block_on(closes.close());
            Client { store, lapse: Box::new(lapse), survives: false }
        };
        Setting { client: Box::new(client), controllers: 2, is_dual: false }
    });
}

/// Opens the store's file, once the thread that had it has let go.
fn opened(options: &Options) -> Embedded {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        match Embedded::open(options) {
            Ok(store) => return store,
            Err(error) if Instant::now() > end => panic!("{error}"),
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

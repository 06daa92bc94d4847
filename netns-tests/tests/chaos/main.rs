//! Several controllers over several members of etcd, killed, frozen and cut off while ten hosts' worth of
//! clients claim and end: nobody was told what one address book cannot have said, and nothing that was
//! acknowledged is lost.
#![expect(clippy::unwrap_used, reason = "also what helps a test stops at the first surprise")]
#![expect(clippy::print_stdout, reason = "what was tried is part of what a test finds")]

mod client;
mod history;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use limpet_api::client::Client;
use limpet_net_types::Uid;
use netns_tests::{Cluster, Controller, Host, Program};
use tokio::task::JoinSet;

use crate::client::{Agent, look};
use crate::history::History;

/// How many of each there are.
const MEMBERS: usize = 3;
const AGENTS: usize = 10;

/// How long a controller has for an answer before another one is asked.
const PATIENCE: Duration = Duration::from_secs(3);

/// Numbers that only look random (`SplitMix64`).
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(bound).unwrap()).unwrap()
    }

    pub(crate) fn bits(&mut self) -> u128 {
        u128::from(self.next()) << 64 | u128::from(self.next())
    }
}

fn seed() -> u64 {
    let fresh = || {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        u64::from(now.subsec_nanos()) ^ now.as_secs()
    };
    std::env::var("LIMPET_PROOF_SEED").map_or_else(|_| fresh(), |text| text.parse().unwrap())
}

fn seconds(usual: u64) -> Duration {
    let text = std::env::var("LIMPET_CHAOS_SECONDS");
    Duration::from_secs(text.map_or(usual, |text| text.parse().unwrap()))
}

/// Ten hosts' worth of clients until `until`, on a thread of their own on `host`.
fn load(host: &Host, urls: &[String], seed: u64, until: Instant, history: &Arc<Mutex<History>>) {
    host.inside(|| {
        runtime().block_on(async {
            let mut dice = Dice::new(seed);
            let mut agents = JoinSet::new();
            for number in 0..AGENTS {
                let mut endpoints: Vec<_> = urls.iter().map(|url| url.parse().unwrap()).collect();
                endpoints.rotate_left(number % urls.len());
                agents.spawn(
                    Agent {
                        client: Client::new(endpoints, PATIENCE),
                        number,
                        history: Arc::clone(history),
                        dice: Dice::new(dice.next()),
                        until,
                        is_unsure: false,
                    }
                    .run(),
                );
            }
            while let Some(ended) = agents.join_next().await {
                ended.unwrap();
            }
        });
    });
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// One thing that goes wrong, and is right again after a while.
fn break_something(cluster: &mut Cluster, dice: &mut Dice) -> &'static str {
    let n = dice.below(MEMBERS);
    let program = if dice.below(2) == 0 { Program::Etcd } else { Program::Controller };
    let while_it_lasts = Duration::from_millis(500 + u64::try_from(dice.below(4_000)).unwrap());
    match dice.below(4) {
        0 => {
            cluster.freeze(program, n);
            thread::sleep(while_it_lasts);
            cluster.thaw(program, n);
            "frozen"
        }
        1 => {
            cluster.cut(n);
            thread::sleep(while_it_lasts);
            cluster.connect(n);
            "cut off"
        }
        _ => {
            cluster.kill(program, n);
            thread::sleep(while_it_lasts / 3);
            cluster.restart(program, n);
            "killed"
        }
    }
}

fn furnish(ctl: impl Fn(&str)) {
    ctl("network create blue");
    ctl("pool create p --network blue --range 10.0.0.0/26 --block-size 4 --takeover-after never");
}

/// Looks at what is left in the end, and at everything that was told.
fn judge(host: &Host, urls: &[String], history: History) {
    let History { holds, .. } = &history;
    let granted = holds.iter().filter(|hold| hold.granted.is_some()).count();
    let unknown = holds.iter().filter(|hold| hold.granted.is_none() && hold.ending.is_some());
    println!(
        "{} claims, {granted} granted, {} unknown, {} looks",
        holds.len(),
        unknown.count(),
        history.looks.len()
    );
    let endpoints = urls.iter().map(|url| url.parse().unwrap()).collect();
    let last = host.inside(|| {
        runtime().block_on(async { look(&Client::new(endpoints, PATIENCE)).await.unwrap() })
    });
    let left: BTreeSet<Uid> = last.held.values().copied().collect();
    let (must, may) = history.left();
    assert!(must.is_subset(&left), "lost: {:?}", must.difference(&left));
    assert!(left.is_subset(&may), "never acknowledged: {:?}", left.difference(&may));
    let mut history = history;
    history.looks.push(last);
    let wrongs = history.wrongs();
    assert!(wrongs.is_empty(), "{wrongs:#?}");
    assert!(granted > 10, "hardly anything was granted");
}

#[test]
fn three_controllers_and_three_members_of_etcd_are_one_address_book_whatever_fails() {
    let (seed, lasts) = (seed(), seconds(12));
    println!("chaos: LIMPET_PROOF_SEED={seed} LIMPET_CHAOS_SECONDS={}", lasts.as_secs());
    let mut cluster = Cluster::start(MEMBERS);
    let urls = cluster.urls();
    furnish(|words| cluster.ctl(words));
    let history = Arc::new(Mutex::new(History::default()));
    let until = Instant::now() + lasts;
    let clients = cluster.clients.clone();
    let mut dice = Dice::new(seed);
    let loading = {
        let (clients, urls, history) = (clients.clone(), urls.clone(), Arc::clone(&history));
        thread::spawn(move || load(&clients, &urls, seed, until, &history))
    };
    let mut broken = std::collections::BTreeMap::new();
    while Instant::now() < until {
        thread::sleep(Duration::from_millis(300));
        *broken.entry(break_something(&mut cluster, &mut dice)).or_insert(0) += 1;
    }
    cluster.await_all();
    loading.join().unwrap();
    println!("broken: {broken:?}");
    judge(&clients, &urls, Arc::into_inner(history).unwrap().into_inner().unwrap());
}

#[test]
fn one_controller_that_is_killed_again_and_again_loses_nothing_that_it_acknowledged() {
    let (seed, lasts) = (seed(), seconds(8));
    println!("kills: LIMPET_PROOF_SEED={seed} LIMPET_CHAOS_SECONDS={}", lasts.as_secs());
    let host = Host::new("one");
    let mut controller = Controller::start(&host, "127.0.0.1");
    furnish(|words| controller.run(words));
    let history = Arc::new(Mutex::new(History::default()));
    let (urls, until) = (vec![controller.url()], Instant::now() + lasts);
    let loading = {
        let (host, urls, history) = (host.clone(), urls.clone(), Arc::clone(&history));
        thread::spawn(move || load(&host, &urls, seed, until, &history))
    };
    let (mut dice, mut kills) = (Dice::new(seed), 0);
    while Instant::now() < until {
        thread::sleep(Duration::from_millis(200 + u64::try_from(dice.below(800)).unwrap()));
        controller.kill();
        controller.resume();
        kills += 1;
    }
    loading.join().unwrap();
    println!("killed {kills} times");
    judge(&host, &urls, Arc::into_inner(history).unwrap().into_inner().unwrap());
}

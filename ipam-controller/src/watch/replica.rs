//! Pure: what a host makes of its lines, and that it is always what it ought to be.

use std::collections::BTreeMap;

use limpet_api::book::{AttachmentKey, EndReason};
use limpet_api::host::{
    Ask, Block, ClaimRequest, EndRequest, OwnChange, SharedChange, Snapshot, Stray, Wanted,
    WatchEvent, WatchLine,
};
use limpet_net_types::{HostName, NetworkName, Token};
use proptest::prelude::*;
use tokio_util::sync::CancellationToken;

use super::feed::{Beginning, Feed, Knows, Watcher};
use super::*;
use crate::alloc::Patience;
use crate::alloc::claim::claim;
use crate::alloc::ends::{end, withdraw};
use crate::state::sample::{Sample, name};

/// What a host knows, in the order of a snapshot.
#[derive(Clone, Debug, Default, PartialEq)]
struct Replica {
    at: u64,
    known: Snapshot,
}

fn set<T, K: Ord>(all: &mut Vec<T>, new: T, key: impl Fn(&T) -> K) {
    all.retain(|old| key(old) != key(&new));
    all.push(new);
    all.sort_by_key(key);
}

impl Replica {
    fn hear(&mut self, line: &Line) {
        let text = line.parts.concat();
        let text = std::str::from_utf8(&text).unwrap();
        assert!(text.ends_with('\n') && !text.trim_end().contains('\n'), "one line: {text}");
        let heard: WatchLine = serde_json::from_str(text).unwrap();
        assert_eq!(heard.revision, line.revision.0);
        assert!(heard.revision >= self.at, "never back");
        self.at = heard.revision;
        match heard.event {
            WatchEvent::Snapshot(snapshot) => self.known = *snapshot,
            WatchEvent::Changes(changes) => {
                changes.shared.into_iter().for_each(|change| self.hear_shared(change));
                changes.own.into_iter().for_each(|change| self.hear_own(change));
            }
            WatchEvent::Heartbeat {} => {}
        }
    }

    fn hear_shared(&mut self, change: SharedChange) {
        let known = &mut self.known;
        let block = |b: &Block| (b.pool.clone(), b.prefix.address());
        let stray = |s: &Stray| (s.network.clone(), s.address);
        match change {
            SharedChange::NetworkSet(new) => set(&mut known.networks, new, |n| n.name.clone()),
            SharedChange::NetworkGone(gone) => known.networks.retain(|n| n.name != gone),
            SharedChange::PoolSet(new) => set(&mut known.pools, new, |p| p.name.clone()),
            SharedChange::PoolGone(gone) => known.pools.retain(|p| p.name != gone),
            SharedChange::HostSet(new) => set(&mut known.hosts, new, |h| h.name.clone()),
            SharedChange::HostGone(gone) => known.hosts.retain(|h| h.name != gone),
            SharedChange::BlockSet(new) => set(&mut known.blocks, new, block),
            SharedChange::BlockGone { pool, prefix } => {
                known.blocks.retain(|b| (&b.pool, b.prefix) != (&pool, prefix));
            }
            SharedChange::StraySet(new) => set(&mut known.strays, new, stray),
            SharedChange::StrayGone { network, address } => {
                known.strays.retain(|s| (&s.network, s.address) != (&network, address));
            }
        }
    }

    fn hear_own(&mut self, change: OwnChange) {
        let known = &mut self.known;
        match change {
            OwnChange::AttachmentSet(new) => set(&mut known.attachments, new, |a| a.key.clone()),
            OwnChange::AttachmentGone { uid, .. } => known.attachments.retain(|a| a.uid != uid),
            OwnChange::AskSet(new) => set(&mut known.asks, new, |a: &Ask| a.attachment.uid),
            OwnChange::AskGone(uid) => known.asks.retain(|a| a.attachment.uid != uid),
            OwnChange::ReportWanted(new) => set(&mut known.reports, new, |r| r.id),
            OwnChange::ReportGone(id) => known.reports.retain(|r| r.id != id),
        }
    }
}

fn begin(feed: &mut Feed, state: &State, host: &str, knows: Knows) -> Option<Replay> {
    let hangup = CancellationToken::new();
    let watcher = Watcher { host: name(host), knows, hangup: hangup.clone() };
    match feed.begin(state, watcher).unwrap() {
        Beginning::Lines { first, queue, .. } => Some(Replay { first, queue, hangup }),
        Beginning::ReadLog => None,
    }
}

struct Replay {
    first: Vec<Line>,
    queue: tokio::sync::mpsc::Receiver<Line>,
    hangup: CancellationToken,
}

impl Replay {
    fn hear_all(&mut self, replica: &mut Replica) {
        for line in self.first.drain(..) {
            replica.hear(&line);
        }
        while let Ok(line) = self.queue.try_recv() {
            replica.hear(&line);
        }
    }
}

/// What a host ought to know.
fn expected(state: &State, host: &str) -> Snapshot {
    let mut replica = Replica::default();
    begin(&mut Feed::default(), state, host, Knows::Nothing).unwrap().hear_all(&mut replica);
    replica.known
}

#[derive(Clone, Debug)]
enum Step {
    Claim { host: usize, container: usize, workload: usize },
    End { which: usize },
    Withdraw { which: usize },
    Pool { network: usize },
    DeleteBlock,
    DeletePool,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..2_usize, 0..4_usize, 0..3_usize)
            .prop_map(|(host, container, workload)| Step::Claim { host, container, workload }),
        4 => (0..32_usize).prop_map(|which| Step::End { which }),
        1 => (0..32_usize).prop_map(|which| Step::Withdraw { which }),
        1 => (0..3_usize).prop_map(|network| Step::Pool { network }),
        1 => Just(Step::DeleteBlock),
        1 => Just(Step::DeletePool),
    ]
}

/// A store's state, what was told of it, and all that a log would have.
struct World {
    sample: Sample,
    feed: Feed,
    used: Vec<(AttachmentKey, Token)>,
    log: BTreeMap<u64, Effects>,
}

impl World {
    fn new() -> Self {
        let mut sample = Sample::new();
        sample.network("blue");
        sample.host("a");
        sample.host("b");
        sample.pool("p", "10.0.0.0/29", |pool| pool.block_size = 2);
        Self { sample, feed: Feed::default(), used: vec![], log: BTreeMap::new() }
    }

    fn decided<T>(
        &mut self,
        decide: impl FnOnce(&State) -> crate::draft::Decision<T>,
    ) -> Result<T, limpet_api::ApiError> {
        let decision = decide(self.sample.state());
        let txn = decision.draft.into_txn();
        if !txn.writes.is_empty() {
            let effects = self.sample.commit(&txn);
            let state = self.sample.state();
            self.log.insert(state.revision().0, effects.clone());
            self.feed.tell(state.store(), Told::of(state, effects));
        }
        decision.answer
    }

    fn take(&mut self, step: &Step) {
        let session = Token::from_bits(7);
        match step {
            Step::Claim { host, container, workload } => {
                let host: HostName = name(["a", "b"][*host]);
                let network: NetworkName = name("blue");
                let (container, ifname) = (name(&format!("c{container}")), name("eth0"));
                let key = AttachmentKey { host, network, container, ifname };
                let uid = Token::from_bits(u128::try_from(self.used.len()).unwrap() + 1);
                self.used.push((key.clone(), uid));
                let workload = (*workload > 0).then(|| name(&format!("web-{workload}")));
                let wanted = Wanted { name: workload, ..Wanted::default() };
                let request = ClaimRequest { session, uid, wanted };
                let _ = self.decided(|state| claim(state, &key, &request, Patience::Left));
            }
            Step::End { which } => {
                let Some((key, uid)) = self.used.get(*which).cloned() else { return };
                let request = EndRequest { session, uid, reason: EndReason::Detached };
                self.decided(|state| end(state, &key, &request)).unwrap();
            }
            Step::Withdraw { which } => {
                let Some((key, uid)) = self.used.get(*which).cloned() else { return };
                self.decided(|state| withdraw(state, &key.host, uid)).unwrap();
            }
            Step::Pool { network } => {
                let priority = i32::try_from(*network).unwrap();
                let change = limpet_api::config::PoolChange {
                    priority: Some(priority),
                    ..limpet_api::config::PoolChange::default()
                };
                let _ =
                    self.decided(|state| crate::rules::pools::change(state, &name("p"), &change));
            }
            Step::DeleteBlock => {
                let Some(block) = self.sample.state().blocks().next().cloned() else { return };
                let subject = Subject::Block(block.record.pool, block.record.prefix);
                let _ = self.decided(|_| {
                    crate::draft::Decision::make(|draft| {
                        draft.delete(&subject);
                        Ok(())
                    })
                });
            }
            Step::DeletePool => {
                let _ = self.decided(|state| crate::rules::pools::delete(state, &name("p")));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn who_follows_knows_what_who_begins_is_told(
        steps in prop::collection::vec(step(), 0..30),
        gap in (0..15_usize, 0..15_usize),
    ) {
        let mut world = World::new();
        let (mut steady, mut back) = (Replica::default(), Replica::default());
        let mut steady_watch =
            begin(&mut world.feed, world.sample.state(), "a", Knows::Nothing).unwrap();
        let mut back_watch =
            begin(&mut world.feed, world.sample.state(), "a", Knows::Nothing);
        let (from, to) = (gap.0, gap.0 + gap.1);
        for (number, step) in steps.iter().enumerate() {
            if number == from && let Some(mut watch) = back_watch.take() {
                watch.hear_all(&mut back);
            }
            if number == to && back_watch.is_none() {
                let state = world.sample.state();
                let knows = Knows::UpTo(state.store(), Revision(back.at));
                back_watch = begin(&mut world.feed, state, "a", knows);
            }
            world.take(step);
            steady_watch.hear_all(&mut steady);
            prop_assert_eq!(&steady.known, &expected(world.sample.state(), "a"));
        }
        if let Some(mut watch) = back_watch {
            watch.hear_all(&mut back);
            prop_assert_eq!(&back.known, &expected(world.sample.state(), "a"));
        }
    }

    #[test]
    fn who_comes_back_after_a_restart_catches_up_from_the_log(
        steps in prop::collection::vec(step(), 0..20),
        gap in 0..20_usize,
        more in prop::collection::vec(step(), 0..5),
    ) {
        let mut world = World::new();
        let mut replica = Replica::default();
        let mut watch = begin(&mut world.feed, world.sample.state(), "a", Knows::Nothing).unwrap();
        for step in steps.iter().take(gap) {
            world.take(step);
        }
        watch.hear_all(&mut replica);
        for step in steps.iter().skip(gap) {
            world.take(step);
        }
        world.feed = Feed::default();
        let state = world.sample.state();
        let (store, head) = (state.store(), state.revision());
        let missed: Vec<Effects> =
            world.log.range(replica.at + 1..).map(|(_, effects)| effects.clone()).collect();
        let touched = missed.iter().flat_map(|effects| effects.touched.clone()).collect();
        for step in &more {
            world.take(step);
        }
        // The log does not say which incarnation ended: a host whose own did is told everything.
        let ended = missed.iter().flat_map(|effects| &effects.ended);
        let knows = if ended.into_iter().any(|(key, _)| key.host.as_str() == "a") {
            Knows::Nothing
        } else {
            Knows::Logged(store, head, touched)
        };
        let mut watch = begin(&mut world.feed, world.sample.state(), "a", knows).unwrap();
        watch.hear_all(&mut replica);
        prop_assert_eq!(&replica.known, &expected(world.sample.state(), "a"));
    }
}

#[test]
fn a_first_time_claim_in_a_routed_block_is_no_other_hosts_business() {
    let mut world = World::new();
    let claim = |container| Step::Claim { host: 0, container, workload: 0 };
    world.take(&claim(0));
    world.take(&Step::Claim { host: 0, container: 2, workload: 0 });
    let state = world.sample.state();
    let mut other = begin(&mut world.feed, state, "b", Knows::Nothing).unwrap();
    other.hear_all(&mut Replica::default());
    world.take(&claim(1));
    assert!(other.queue.try_recv().is_err(), "nothing for the other host");
}

#[test]
fn what_all_hosts_hear_is_in_memory_once() {
    let mut world = World::new();
    let state = world.sample.state();
    let mut watches =
        ["a", "b", "a"].map(|host| begin(&mut world.feed, state, host, Knows::Nothing).unwrap());
    let one_piece = |lines: &[Line]| {
        let all = lines.iter().map(|line| &line.parts[1]);
        all.clone().zip(all.skip(1)).all(|(one, other)| one.as_ptr() == other.as_ptr())
    };
    assert!(one_piece(&watches.each_ref().map(|watch| watch.first[0].clone())), "the snapshot");
    world.take(&Step::Claim { host: 0, container: 0, workload: 1 });
    let lines = watches.each_mut().map(|watch| watch.queue.try_recv().unwrap());
    assert!(one_piece(&lines), "a change, also in the line of the host whose own it is too");
    assert_ne!(lines[0].parts[2], lines[1].parts[2]);
}

#[test]
fn a_watcher_that_does_not_keep_up_is_cut() {
    let mut world = World::new();
    let mut slow = begin(&mut world.feed, world.sample.state(), "a", Knows::Nothing).unwrap();
    for round in 0..1500 {
        world.take(&Step::Pool { network: round % 2 });
    }
    assert!(slow.hangup.is_cancelled());
    let mut replica = Replica::default();
    slow.hear_all(&mut replica);
    assert!(replica.at < world.sample.state().revision().0);
    let knows = Knows::UpTo(world.sample.state().store(), Revision(replica.at));
    let mut again = begin(&mut world.feed, world.sample.state(), "a", knows).unwrap();
    again.hear_all(&mut replica);
    assert_eq!(replica.known, expected(world.sample.state(), "a"), "and resumes without a gap");
}

#[test]
fn what_is_kept_for_those_who_come_back_has_a_limit_in_bytes() {
    let mut world = World::new();
    let mut feed = Feed::default();
    let store = world.sample.state().store();
    let mut revisions = vec![world.sample.state().revision()];
    for _ in 0..2 {
        world.sample.wait(1);
        let revision = world.sample.state().revision();
        let shared = Some(Bytes::from(vec![b' '; 10 << 20]));
        let (touched, ended, own) = (vec![], vec![], BTreeMap::new());
        feed.tell(store, Told { revision, touched, ended, shared, own });
        revisions.push(revision);
    }
    let state = world.sample.state();
    let mut goes_on = |since| begin(&mut feed, state, "a", Knows::UpTo(store, since)).is_some();
    assert!(goes_on(revisions[1]) && goes_on(revisions[2]));
    assert!(!goes_on(revisions[0]), "from the log");
}

#[test]
fn who_knows_more_than_there_is_is_told_to_wait() {
    let world = World::new();
    let state = world.sample.state();
    let mut feed = Feed::default();
    let knows = Knows::UpTo(state.store(), state.revision().next());
    let watcher = Watcher { host: name("a"), knows, hangup: CancellationToken::new() };
    let error = feed.begin(state, watcher).unwrap_err();
    assert_eq!(error.code, limpet_api::ErrorCode::Unavailable);
    let stranger =
        Watcher { host: name("x"), knows: Knows::Nothing, hangup: CancellationToken::new() };
    let error = feed.begin(state, stranger).unwrap_err();
    assert_eq!(error.code, limpet_api::ErrorCode::HostNotFound);
}

#[test]
fn another_stores_revision_is_worth_nothing() {
    let world = World::new();
    let state = world.sample.state();
    let knows = Knows::UpTo(Token::from_bits(99), Revision(1000));
    let first = begin(&mut Feed::default(), state, "a", knows).unwrap().first;
    assert!(first[0].parts[0].ends_with(b"\"snapshot\":{"));
}

//! Pure: silence over simulated time: hosts that die and come back, controllers whose clocks differ
//! and that freeze, one store.

use std::time::{Duration, Instant};

use limpet_net_types::{HostName, Token};
use proptest::prelude::*;

use super::{Crowd, LEASE, Leases, Look};
use crate::rules::sessions::Liveness;
use crate::rules::silence;
use crate::state::sample::{Sample, name};

const BEAT: u64 = 5;

/// The session of all hosts that a sample makes.
fn session() -> Token {
    Token::from_bits(7)
}

struct Replica {
    leases: Leases,
    /// What its clock shows at the second 0 of all.
    clock: Instant,
    /// The second since which it runs; none while it is frozen.
    running: Option<u64>,
    frozen: u64,
}

struct Host {
    name: HostName,
    alive: bool,
    prefers: usize,
    heard: Option<u64>,
}

struct Fleet {
    sample: Sample,
    replicas: Vec<Replica>,
    hosts: Vec<Host>,
    now: u64,
    marked: Vec<(u64, HostName)>,
    crowd: Option<Crowd>,
}

impl Fleet {
    fn new(hosts: usize, replicas: usize) -> Self {
        let mut sample = Sample::new();
        let base = Instant::now();
        let hosts: Vec<Host> = (0..hosts)
            .map(|n| {
                let host = format!("h{n}");
                sample.host(&host);
                Host { name: name(&host), alive: true, prefers: n, heard: None }
            })
            .collect();
        let replicas = (0..replicas)
            .map(|n| {
                let clock = base + Duration::from_secs(1000 * u64::try_from(n).unwrap());
                let replica = Token::from_bits(100 + u128::try_from(n).unwrap());
                let leases = Leases::new(replica, clock);
                Replica { leases, clock, running: Some(0), frozen: 0 }
            })
            .collect();
        Self { sample, replicas, hosts, now: 0, marked: Vec::new(), crowd: None }
    }

    fn clock(&self, replica: usize) -> Instant {
        self.replicas[replica].clock + Duration::from_secs(self.now)
    }

    fn run(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.now += 1;
            if self.now.is_multiple_of(10) && self.replicas.iter().any(|r| r.running.is_some()) {
                self.sample.wait(10);
            }
            self.lose_frozen();
            for host in 0..self.hosts.len() {
                let phase = u64::try_from(host).unwrap() % BEAT;
                if self.hosts[host].alive && self.now % BEAT == phase {
                    self.beat(host);
                }
            }
            for replica in 0..self.replicas.len() {
                if self.replicas[replica].running.is_some() {
                    self.look(replica);
                }
            }
        }
    }

    /// The store drops the keys of a controller that it has not heard of for a lease.
    fn lose_frozen(&mut self) {
        for replica in 0..self.replicas.len() {
            let Replica { running, frozen, .. } = &self.replicas[replica];
            if running.is_none() && self.now - frozen == LEASE.as_secs() {
                let me = self.replicas[replica].leases.replica();
                for host in 0..self.hosts.len() {
                    let host = self.hosts[host].name.clone();
                    self.sample.decided(|state| silence::unhear(state, &host, me)).unwrap();
                }
            }
        }
    }

    /// An agent says that it lives, to the controller that it knows, or else to the next.
    fn beat(&mut self, host: usize) {
        let count = self.replicas.len();
        let Host { prefers, name, .. } = &self.hosts[host];
        let order = (0..count).map(|n| (prefers + n) % count);
        let Some(replica) = order.into_iter().find(|n| self.replicas[*n].running.is_some()) else {
            return;
        };
        let (name, now) = (name.clone(), self.clock(replica));
        let leases = &mut self.replicas[replica].leases;
        let me = leases.replica();
        self.sample.decided(|state| silence::hear(state, &name, session(), me)).unwrap();
        leases.hear(&name, session(), now);
        assert!(self.sample.state().silence(&name).is_none());
        self.hosts[host].heard = Some(self.now);
        self.hosts[host].prefers = replica;
    }

    fn look(&mut self, replica: usize) {
        let now = self.clock(replica);
        let leases = &mut self.replicas[replica].leases;
        let me = leases.replica();
        let Look { unheard, silent, crowd } = leases.look(self.sample.state(), now);
        for host in unheard {
            self.sample.decided(|state| silence::unhear(state, &host, me)).unwrap();
        }
        for (host, session) in silent {
            let leases = &self.replicas[replica].leases;
            assert_eq!(leases.liveness(self.sample.state(), &host, now), Liveness::Lapsed);
            if self.sample.decided(|state| silence::mark(state, &host, session)).unwrap() {
                self.check_mark(replica, &host);
                self.marked.push((self.now, host));
            }
        }
        self.crowd = self.crowd.or(crowd);
    }

    /// Nobody is silent who was heard within the lease, or on the word of one that did not listen.
    fn check_mark(&self, replica: usize, host: &HostName) {
        let lease = LEASE.as_secs();
        let listened = self.now - self.replicas[replica].running.unwrap();
        assert!(listened >= lease, "{host} is silent after {listened} s of listening");
        let heard = self.hosts.iter().find(|h| h.name == *host).unwrap().heard;
        if let Some(heard) = heard {
            let ago = self.now - heard;
            assert!(ago >= lease, "{host} is silent and was heard {ago} s ago");
        }
    }

    fn silent(&self) -> usize {
        self.sample.state().silences().count()
    }

    fn freeze(&mut self, replica: usize) {
        let now = self.now;
        let replica = &mut self.replicas[replica];
        if replica.running.take().is_some() {
            replica.frozen = now;
        }
    }

    fn thaw(&mut self, replica: usize) {
        let now = self.now;
        let replica = &mut self.replicas[replica];
        // One that comes back at once has missed nothing, and does not begin to listen anew.
        let since = if now - replica.frozen < BEAT { 0 } else { now };
        replica.running.get_or_insert(since);
    }

    fn kill(&mut self, hosts: std::ops::Range<usize>) {
        self.hosts[hosts].iter_mut().for_each(|host| host.alive = false);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Run(u64),
    Kill(usize),
    Revive(usize),
    Move(usize),
    Freeze(usize),
    Thaw(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1..40_u64).prop_map(Step::Run),
        3 => (0..11_usize).prop_map(Step::Kill),
        2 => (0..11_usize).prop_map(Step::Revive),
        2 => (0..11_usize).prop_map(Step::Move),
        2 => (0..3_usize).prop_map(Step::Freeze),
        2 => (0..3_usize).prop_map(Step::Thaw),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// `check_mark` checks each mark; here the rest.
    #[test]
    fn nobody_is_silent_who_was_heard_and_never_many_at_once(
        steps in proptest::collection::vec(step(), 1..25)
    ) {
        let mut fleet = Fleet::new(11, 3);
        for step in steps {
            match step {
                Step::Run(seconds) => fleet.run(seconds),
                Step::Kill(host) => fleet.hosts[host].alive = false,
                Step::Revive(host) => fleet.hosts[host].alive = true,
                Step::Move(host) => fleet.hosts[host].prefers += 1,
                Step::Freeze(replica) => fleet.freeze(replica),
                Step::Thaw(replica) => fleet.thaw(replica),
            }
        }
        for (at, _) in &fleet.marked {
            let together = fleet.marked.iter().filter(|(t, _)| (*at..at + 10).contains(t)).count();
            prop_assert!(together <= 2, "{:?}", fleet.marked);
        }
        // Whoever lives is heard in the end, and then it is not silent.
        (0..3).for_each(|replica| fleet.thaw(replica));
        fleet.hosts.iter_mut().for_each(|host| host.alive = true);
        fleet.run(BEAT);
        prop_assert_eq!(fleet.silent(), 0);
    }
}

#[test]
fn a_dead_host_is_silent_a_lease_after_its_key_went_and_no_more_when_it_is_heard_again() {
    for replicas in [1, 3] {
        let mut fleet = Fleet::new(3, replicas);
        fleet.run(100);
        assert_eq!(fleet.silent(), 0);
        fleet.kill(0..1);
        fleet.run(LEASE.as_secs() + 1);
        assert!(fleet.sample.state().heard(&fleet.hosts[0].name).is_none());
        assert_eq!(fleet.silent(), 0);
        fleet.run(LEASE.as_secs());
        assert_eq!(fleet.silent(), 1, "{replicas} controllers");
        assert_eq!(fleet.marked[0].1, fleet.hosts[0].name);
        fleet.hosts[0].alive = true;
        fleet.run(BEAT);
        assert_eq!(fleet.silent(), 0);
    }
}

#[test]
fn when_more_than_a_fifth_go_at_once_nobody_is_taken_for_silent() {
    let mut fleet = Fleet::new(10, 3);
    fleet.run(100);
    fleet.kill(0..5);
    fleet.run(300);
    assert_eq!((fleet.silent(), fleet.crowd.unwrap().going), (0, 5));
    fleet.hosts[2..5].iter_mut().for_each(|host| host.alive = true);
    fleet.run(BEAT + 1);
    assert_eq!(fleet.silent(), 2, "two of ten may");
    fleet.run(60);
    fleet.kill(5..7);
    fleet.run(60);
    assert_eq!(fleet.silent(), 4, "those that were silent before do not count");
}

#[test]
fn one_host_may_always_fall_silent() {
    let mut fleet = Fleet::new(1, 1);
    fleet.run(30);
    fleet.kill(0..1);
    fleet.run(2 * LEASE.as_secs() + 1);
    assert_eq!(fleet.silent(), 1);
}

#[test]
fn controllers_that_were_away_for_longer_than_a_lease_take_nobody_for_silent() {
    let mut fleet = Fleet::new(5, 2);
    fleet.run(60);
    fleet.freeze(0);
    fleet.freeze(1);
    fleet.run(1000);
    fleet.kill(0..1);
    fleet.thaw(0);
    fleet.thaw(1);
    fleet.run(LEASE.as_secs() - 1);
    assert_eq!(fleet.silent(), 0);
    fleet.run(2);
    assert_eq!(fleet.silent(), 1, "the one that is dead");
}

#[test]
fn a_controller_that_dies_takes_no_host_along() {
    let mut fleet = Fleet::new(9, 3);
    fleet.run(60);
    fleet.freeze(1);
    fleet.run(100);
    assert_eq!((fleet.silent(), fleet.crowd), (0, None));
    let me = fleet.replicas[1].leases.replica();
    let hosts = fleet.hosts.iter().map(|host| fleet.sample.state().heard(&host.name));
    assert!(hosts.flatten().all(|heard| heard.record.replica != me));
}

#[test]
fn an_agent_that_says_the_same_to_the_same_controller_writes_nothing() {
    let mut fleet = Fleet::new(1, 1);
    fleet.run(9);
    let before = fleet.sample.state().revision();
    fleet.run(BEAT - 4);
    fleet.beat(0);
    assert!(fleet.sample.state().heard(&fleet.hosts[0].name).is_some());
    let clock = u64::from(fleet.now / 10 > 0);
    assert!(fleet.sample.state().revision().0 - before.0 <= clock);
}

#[test]
fn whom_a_controller_cannot_judge_is_alive() {
    let mut fleet = Fleet::new(1, 1);
    let host = fleet.hosts[0].name.clone();
    fleet.kill(0..1);
    let alive = |fleet: &Fleet| {
        fleet.replicas[0].leases.liveness(fleet.sample.state(), &host, fleet.clock(0))
            == Liveness::Alive
    };
    fleet.run(LEASE.as_secs());
    assert!(alive(&fleet), "the silence before the start was its own");
    fleet.run(1);
    assert!(!alive(&fleet));
    // It has not looked for a while.
    fleet.now += 6;
    assert!(alive(&fleet));
    fleet.run(LEASE.as_secs() - 1);
    assert!(alive(&fleet));
    fleet.run(2);
    assert!(!alive(&fleet));
}

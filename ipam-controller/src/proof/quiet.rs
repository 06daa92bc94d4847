//! Pure: the end of a run: no more faults, everything that can go on does, in turn. Then every wait
//! has ended, nothing is left behind, and every count adds up.

use std::collections::BTreeSet;

use limpet_net_types::Uid;

use super::machine::{CONTAINERS, Veth};
use super::step::{Kind, Step};
use super::world::{MACHINES, World};
use crate::alloc::pick::usage;

/// How many rounds a fair schedule may need.
const ROUNDS: usize = 80;

/// How many rounds nothing happens before it is rest: agents look at what came last, and judge.
const REST: usize = 4;

/// How many batches a controller commits in a round.
const BATCHES: usize = 8;

fn step(kind: Kind, numbers: [usize; 3]) -> Step {
    Step { kind, numbers }
}

impl World {
    /// Lets the world come to rest, and checks what is left.
    pub(super) fn settle_down(&mut self) -> Result<(), String> {
        while !self.adrift.is_empty() {
            self.step(step(Kind::Arrive, [0, 0, 0]))?;
        }
        for machine in &mut self.machines {
            machine.is_cut_off = false;
        }
        for replica in &mut self.replicas {
            replica.is_frozen = false;
        }
        let mut rested = 0;
        for round in 0..ROUNDS {
            // What comes after the first rounds has been said before.
            let story = if round > 2 { self.story.take() } else { None };
            let went = self.round(round);
            self.story = story.or_else(|| self.story.take());
            went?;
            rested = if self.is_idle() { rested + 1 } else { 0 };
            if rested == REST {
                return self.at_rest();
            }
        }
        let agents = self.machines.iter().map(|machine| {
            let waits = machine.agent.as_ref().map(super::agent::Agent::waiting);
            format!("{}: {waits:?}, {:?}", machine.host, machine.containers)
        });
        let agents: Vec<String> = agents.collect();
        let asks = &self.model.asks;
        Err(format!("it does not come to rest: {agents:#?}, asks {asks:?}"))
    }

    /// Everybody does what there is to do, once.
    fn round(&mut self, round: usize) -> Result<(), String> {
        self.pass(3)?;
        let controllers = self.replicas.len();
        for host in 0..MACHINES {
            if round % 12 == 11 && self.is_locked_out(host) {
                self.step(step(Kind::Reboot, [host, 0, 0]))?;
            }
            let agents = [
                Kind::StartAgent,
                Kind::Open,
                Kind::Beat,
                Kind::Hear,
                Kind::Look,
                Kind::Found,
                Kind::Judge,
                Kind::EndAll,
                Kind::Resend,
                Kind::Tell,
            ];
            for kind in agents {
                self.step(step(kind, [host, (host + round) % controllers, round]))?;
            }
            for container in 0..CONTAINERS {
                self.step(step(Kind::Make, [host, container, round]))?;
                self.step(step(Kind::Confirm, [host, container, round]))?;
                if self.machines[host].is_over(container) {
                    self.step(step(Kind::Delete, [host, container, round]))?;
                }
            }
        }
        for which in 0..2 {
            let controller = round % controllers;
            self.step(step(Kind::Clear, [controller, which, controller]))?;
        }
        while !self.messages.is_empty() {
            self.step(step(Kind::Deliver, [0, 0, 0]))?;
        }
        for controller in 0..controllers {
            self.step(step(Kind::Tick, [controller, 0, 0]))?;
            for _ in 0..BATCHES {
                self.step(step(Kind::Decide, [controller, 0, 3]))?;
                self.step(step(Kind::Commit, [controller, 0, 0]))?;
            }
            self.step(step(Kind::SyncAll, [controller, 0, 0]))?;
        }
        while !self.replies.is_empty() {
            self.step(step(Kind::Answer, [0, 0, 0]))?;
        }
        Ok(())
    }

    /// Whether a copy of a machine has taken its place.
    fn is_locked_out(&self, host: usize) -> bool {
        self.machines[host].agent.as_ref().is_none_or(|agent| agent.session.is_none())
    }

    fn is_idle(&self) -> bool {
        self.messages.is_empty()
            && self.replies.is_empty()
            && self.model.asks.is_empty()
            && self.machines.iter().all(super::machine::Machine::is_idle)
            && self.replicas.iter().all(|replica| replica.jobs.is_empty())
    }

    /// Nothing leaks: the store has what the kernels have, and counts nothing else.
    fn at_rest(&mut self) -> Result<(), String> {
        self.excused.clear();
        self.check_kernels()?;
        for replica in 0..self.replicas.len() {
            self.sync(replica, usize::MAX)?;
        }
        let answering = |(uid, veth): (&Uid, &Veth)| veth.answers().then_some(*uid);
        let machines = self.machines.iter();
        let in_kernels: BTreeSet<Uid> =
            machines.flat_map(|machine| machine.veths.iter().filter_map(answering)).collect();
        let in_store: BTreeSet<Uid> = self.attachments().into_iter().map(|(_, uid)| uid).collect();
        if in_kernels != in_store {
            return Err(format!("at rest the kernels have {in_kernels:?}, the store {in_store:?}"));
        }
        for replica in &self.replicas {
            for pool in replica.state.pools() {
                let usage = usage(&replica.state, replica.state.now(), pool);
                let range = pool.record.range;
                let slots = self.model.slots.range(range.first()..=range.last());
                let slots: Vec<_> = slots.map(|(_, slot)| slot).collect();
                let held = slots.iter().filter(|slot| slot.attachment.is_some()).count();
                let taken = slots.iter().filter(|slot| slot.is_taken()).count();
                let count = |number: u64| usize::try_from(number).unwrap();
                if count(usage.held) != held || count(usage.reserved) != taken - held {
                    return Err(format!("{held} are held, {taken} taken, and counted {usage:?}"));
                }
                if usage.size != usage.held + usage.reserved + usage.cooling + usage.free {
                    return Err(format!("the addresses do not add up: {usage:?}"));
                }
            }
        }
        Ok(())
    }
}

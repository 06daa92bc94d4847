//! Pure: what each step does in the simulated world.

use std::net::IpAddr;

use limpet_api::book::ReleaseRequest;
use limpet_api::config::{PoolSpec, PoolState};
use limpet_api::host::Wanted;

use super::machine::CONTAINERS;
use super::replica::Caller;
use super::request::Request;
use super::step::{Kind, Step};
use super::world::{MACHINES, TAKEOVER, World};
use crate::state::reservation_key;
use crate::state::sample::name;

/// The names that containers have: three that keep their addresses, one that does not, and none.
const WORKLOADS: [Option<&str>; 5] =
    [Some("web-0"), Some("web-1"), Some("web-2"), Some("db"), None];

impl World {
    /// Carries a step out. Returns whether it did anything.
    pub(super) fn step(&mut self, step: Step) -> Result<bool, String> {
        let said = self.story.as_ref().map(Vec::len);
        self.say(|| format!("-- {step:?}"));
        let [a, b, c] = step.numbers;
        let did = match step.kind {
            Kind::Start
            | Kind::Make
            | Kind::Confirm
            | Kind::KillPlugin
            | Kind::Stop
            | Kind::Delete
            | Kind::LateDelete
            | Kind::Tell
            | Kind::TellTwice
            | Kind::StartAgent
            | Kind::KillAgent
            | Kind::Reboot => self.on_machine(step),
            Kind::Open
            | Kind::Beat
            | Kind::Hear
            | Kind::Look
            | Kind::Found
            | Kind::FoundShort
            | Kind::Judge
            | Kind::EndAll
            | Kind::Resend
            | Kind::GiveUp => self.by_agent(step),
            Kind::Deliver | Kind::Answer | Kind::Lose | Kind::Forsake => self.on_the_way(step),
            Kind::CutOff | Kind::Reach => {
                let (cut, machine) = (step.kind == Kind::CutOff, &mut self.machines[a % MACHINES]);
                std::mem::replace(&mut machine.is_cut_off, cut) != cut
            }
            Kind::Freeze | Kind::Thaw => {
                let (still, at) = (step.kind == Kind::Freeze, a % self.replicas.len());
                self.served_since[at] = self.now;
                std::mem::replace(&mut self.replicas[at].is_frozen, still) != still
            }
            Kind::Decide
            | Kind::Commit
            | Kind::NotDone
            | Kind::Untold
            | Kind::Adrift
            | Kind::Sync
            | Kind::SyncAll
            | Kind::Restart
            | Kind::Tick
            | Kind::Clear => self.at_controller(step)?,
            Kind::Lapse => {
                self.lapse(a % self.replicas.len())?;
                true
            }
            Kind::Arrive => {
                if self.adrift.is_empty() {
                    return Ok(false);
                }
                let (client, txns) = self.adrift.remove(a % self.adrift.len());
                self.commit(client, txns)?;
                true
            }
            Kind::Time => {
                self.pass([1, 2, 3, 5, 20, 40][a % 6])?;
                true
            }
            Kind::Leap => {
                self.now += [6, 16, 70][a % 3];
                true
            }
            _ => self.by_operator(step.kind, [a, b, c]),
        };
        self.post(c % self.replicas.len());
        if did {
            self.check_kernels()?;
        } else if let (Some(said), Some(story)) = (said, &mut self.story) {
            story.truncate(said);
        }
        Ok(did)
    }

    /// Time passes, second by second: controllers listen, and agents say that they live.
    pub(super) fn pass(&mut self, seconds: u64) -> Result<(), String> {
        for second in 0..seconds {
            self.now += 1;
            self.forget_dead()?;
            if second % 4 == 0 {
                self.beat(usize::try_from(second).unwrap());
            }
            for at in 0..self.replicas.len() {
                if !self.serves(at) {
                    continue;
                }
                self.sync(at, usize::MAX)?;
                let now = self.now;
                self.replicas[at].listen(now);
                self.replicas[at].tick(now);
                self.replicas[at].decide(0, usize::MAX, now);
                if let Some(batch) = self.replicas[at].batch.take() {
                    let outcomes = self.commit(at, batch.txns.clone())?;
                    self.settle(at, batch, Some(outcomes))?;
                }
            }
        }
        Ok(())
    }

    /// Whether a controller answers: it is not frozen, and does not wait for the store.
    fn serves(&self, at: usize) -> bool {
        !self.replicas[at].is_frozen && self.replicas[at].batch.is_none()
    }

    /// All agents that reach a controller say that they live.
    fn beat(&mut self, turn: usize) {
        let controllers = self.replicas.len();
        for host in 0..MACHINES {
            let machine = &self.machines[host];
            let session = machine.agent.as_ref().and_then(|agent| agent.session);
            let (Some(session), false) = (session, machine.is_cut_off) else { continue };
            let reaches = |offset: usize| (host + turn + offset) % controllers;
            let to = (0..controllers).map(reaches).find(|to| self.serves(*to));
            let Some(to) = to else { continue };
            if self.model.session(&machine.host) != Some(session) {
                // It is told so at once.
                if let Some(agent) = &mut self.machines[host].agent {
                    agent.session = None;
                }
                continue;
            }
            let request = Request::Beat { host: machine.host.clone(), session };
            let job = super::replica::Job::new(Caller::Nobody, request, self.model.revision);
            let now = self.now;
            self.replicas[to].take(job, now);
        }
    }

    fn on_machine(&mut self, step: Step) -> bool {
        let [a, b, c] = step.numbers;
        let uid = self.token();
        let machine = &mut self.machines[a % MACHINES];
        let container = b % CONTAINERS;
        match step.kind {
            Kind::Start => {
                let addresses = if c % 11 == 0 { vec![given(c)] } else { vec![] };
                let workload = WORKLOADS[c / 7 % 5].map(name);
                machine.start(
                    container,
                    uid,
                    Wanted { name: workload, addresses, ..Wanted::default() },
                )
            }
            Kind::Make => machine.make(container),
            Kind::Confirm => machine.confirm(container),
            Kind::KillPlugin => machine.kill_plugin(container),
            Kind::Stop => machine.stop(container),
            Kind::Delete => machine.delete(container, false),
            Kind::LateDelete => machine.delete(container, true),
            Kind::Tell => machine.tell(false),
            Kind::TellTwice => machine.tell(true),
            Kind::StartAgent => machine.start_agent(),
            Kind::KillAgent => machine.kill_agent(),
            Kind::Reboot => {
                machine.reboot();
                true
            }
            _ => false,
        }
    }

    fn by_agent(&mut self, step: Step) -> bool {
        let [a, b, c] = step.numbers;
        let (host, controller) = (a % MACHINES, b % self.replicas.len());
        let boot = self.machines[host].boot;
        let joining = (step.kind == Kind::Open).then(|| self.joining(host, boot));
        let Self { machines, replicas, .. } = self;
        let machine = &mut machines[host];
        let living = machine.living();
        let is_reached = !machine.is_cut_off && !replicas[controller].is_frozen;
        if step.kind == Kind::Judge {
            return machine.judge();
        }
        if step.kind == Kind::GiveUp {
            return machine.give_up(c % CONTAINERS);
        }
        let Some(agent) = &mut machine.agent else { return false };
        match step.kind {
            Kind::Open => joining.is_some_and(|joining| agent.open(joining)),
            Kind::Beat => agent.beat(),
            Kind::Hear => is_reached && agent.hear(&replicas[controller].state),
            Kind::Look => {
                agent.look();
                true
            }
            Kind::Found => agent.found(Some(living)),
            Kind::FoundShort => agent.found(None),
            Kind::EndAll => agent.end_all(),
            Kind::Resend => {
                let uids: Vec<_> = agent.claims.keys().copied().collect();
                uids.into_iter().filter(|uid| agent.resend(*uid)).count() > 0
            }
            _ => false,
        }
    }

    fn on_the_way(&mut self, step: Step) -> bool {
        let [a, b, _] = step.numbers;
        let is_answer = step.kind == Kind::Answer || (step.kind == Kind::Lose && b % 2 == 0);
        if is_answer {
            if self.replies.is_empty() {
                return false;
            }
            let reply = self.replies.remove(a % self.replies.len());
            if step.kind == Kind::Lose || self.is_cut_off(reply.caller) {
                self.lose(reply.caller);
                return true;
            }
            self.say(|| format!("{:?} hears {:?}", reply.caller, reply.result));
            self.answer(reply);
            return true;
        }
        if self.messages.is_empty() {
            return false;
        }
        let at = a % self.messages.len();
        let message = &self.messages[at];
        let (to, caller) = (message.to, message.job.caller);
        match step.kind {
            Kind::Forsake => self.lose(caller),
            Kind::Lose => {
                self.messages.remove(at);
                self.lose(caller);
            }
            _ if self.is_cut_off(caller) => {
                self.messages.remove(at);
                self.lose(caller);
            }
            _ if self.replicas[to].is_frozen => return false,
            _ => {
                let message = self.messages.remove(at);
                let now = self.now;
                self.replicas[to].take(message.job, now);
            }
        }
        true
    }

    fn is_cut_off(&self, caller: Caller) -> bool {
        matches!(caller, Caller::Agent { host, .. } if self.machines[host].is_cut_off)
    }

    fn at_controller(&mut self, step: Step) -> Result<bool, String> {
        let [a, b, c] = step.numbers;
        let (at, now) = (a % self.replicas.len(), self.now);
        let replica = &mut self.replicas[at];
        if replica.is_frozen && step.kind != Kind::Restart {
            return Ok(false);
        }
        match step.kind {
            Kind::Decide => return Ok(replica.decide(b, 1 + c % 4, now)),
            Kind::Sync | Kind::SyncAll if replica.batch.is_some() => return Ok(false),
            Kind::Sync => return self.sync(at, 1),
            Kind::SyncAll => return self.sync(at, usize::MAX),
            Kind::Tick => return Ok(replica.tick(now)),
            Kind::Restart => {
                self.restart(at, b % 2 == 0)?;
                return Ok(true);
            }
            Kind::Clear => {
                self.send(at, Caller::Nobody, Request::Clear { which: b % 4 });
                return Ok(true);
            }
            _ => {}
        }
        let Some(batch) = replica.batch.take() else { return Ok(false) };
        match step.kind {
            Kind::NotDone => {
                let replies = replica.repeat(batch, now);
                self.told(replies)?;
            }
            Kind::Adrift => {
                self.adrift.push((at, batch.txns.clone()));
                self.was_adrift = true;
                self.settle(at, batch, None)?;
            }
            Kind::Untold => {
                self.commit(at, batch.txns.clone())?;
                self.settle(at, batch, None)?;
            }
            _ => {
                let outcomes = self.commit(at, batch.txns.clone())?;
                self.settle(at, batch, Some(outcomes))?;
            }
        }
        Ok(true)
    }

    fn by_operator(&mut self, kind: Kind, [a, b, c]: [usize; 3]) -> bool {
        let to = c % self.replicas.len();
        let key = |number: usize| {
            let workload = WORKLOADS[number % 4].unwrap();
            reservation_key(&name("blue"), &name("_"), &name(workload))
        };
        let request = match kind {
            Kind::Reserve => {
                Request::Reserve { key: key(a), address: (c % 3 == 0).then(|| given(b)) }
            }
            Kind::Release => Request::Release { key: key(a) },
            Kind::Remove => {
                let known: Vec<_> = self.model.attachments.values().collect();
                if known.is_empty() {
                    return false;
                }
                Request::Remove {
                    attachment: known[a % known.len()].clone(),
                    how: ReleaseRequest { force: b % 3 > 0, host_is_down: b % 3 == 2 },
                }
            }
            Kind::Drain => {
                let state = if a % 2 == 0 { PoolState::Draining } else { PoolState::Active };
                Request::Drain { pool: name("p4"), state }
            }
            Kind::Pool => {
                let (pool, range) =
                    [("q1", "10.0.0.8/30"), ("q2", "10.0.0.8/29"), ("q3", "10.0.0.4/30")][a % 3];
                Request::Pool { name: name(pool), spec: pool_spec(range) }
            }
            Kind::PoolGone => Request::PoolGone { name: name(["q1", "q2", "q3"][a % 3]) },
            Kind::Reinstalled => Request::Reinstalled { host: self.host(a % MACHINES) },
            Kind::Clone => {
                let copy = limpet_net_types::Token::from_bits(900_000_000);
                let mut joining = self.joining(a % MACHINES, copy);
                if let Request::Open { request, .. } = &mut joining {
                    request.underlay =
                        IpAddr::from([192, 0, 2, 200 + u8::try_from(a % MACHINES).unwrap()]);
                    request.addresses = vec![request.underlay];
                }
                joining
            }
            _ => return false,
        };
        self.send(to, Caller::Operator, request);
        true
    }
}

/// One of the addresses that the first pool can give.
fn given(number: usize) -> IpAddr {
    IpAddr::from([10, 0, 0, u8::try_from(1 + number % 6).unwrap()])
}

/// A pool of network blue, with blocks of two addresses.
pub(super) fn pool_spec(range: &str) -> PoolSpec {
    let text = format!(
        r#"{{"network": "blue", "range": "{range}", "block_size": 2,
            "takeover_after": "{TAKEOVER}s", "retention": "90s"}}"#
    );
    serde_json::from_str(&text).unwrap()
}

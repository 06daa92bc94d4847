//! Pure: the simulated world: a real store, controllers made of the real decisions, machines, the
//! messages between them. After each step it is held against the model.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use limpet_api::book::{Attachment, AttachmentKey};
use limpet_api::host::{LEASE_SECONDS, SessionRequest};
use limpet_api::{Retention, Span};
use limpet_net_types::{HostName, Token, Uid};
use tokio::runtime::Runtime;

use super::machine::Machine;
use super::model::{Model, News, addresses_of};
use super::replica::{Batch, Caller, Job, Replica, Reply};
use super::request::{Answer, Request};
use super::truth;
use crate::keys::ReservationKey;
use crate::state::sample::name;
use crate::state::{Loader, State, reservation_key};
use crate::store::{CommitError, Event, Outcome, Revision, Snapshot, Store, Txn, Watch};

/// How long a host must have been silent, in seconds, before its addresses are taken over.
pub(super) const TAKEOVER: u64 = 20;

/// How many machines there are.
pub(super) const MACHINES: usize = 3;

/// How soon a store tells of what was committed.
const SOON: Duration = Duration::from_secs(2);

/// From here on tokens are those of controllers' processes.
const PROCESS: u128 = 1 << 64;

/// A controller's way to the store, and how the store forgets it: its ephemeral keys go.
pub(super) struct Client {
    pub(super) store: Arc<dyn Store>,
    pub(super) lapse: Box<dyn Fn(&Runtime)>,
    /// Whether it goes on after that.
    pub(super) survives: bool,
}

/// Which store the world has, and how many controllers.
pub(super) struct Setting {
    /// Makes a controller's way to the one store.
    pub(super) client: Box<dyn FnMut(&Runtime) -> Client>,
    /// How many controllers there are.
    pub(super) controllers: usize,
    /// Whether the network has IPv6 addresses as well.
    pub(super) is_dual: bool,
}

/// A request on its way to a controller.
#[derive(Clone, Debug)]
pub(super) struct Message {
    pub(super) to: usize,
    pub(super) job: Job,
}

/// All of it.
pub(super) struct World {
    runtime: Arc<Runtime>,
    client: Box<dyn FnMut(&Runtime) -> Client>,
    clients: Vec<Client>,
    /// The ways of controllers that were killed, and when.
    dead: Vec<(u64, Client)>,
    watch: Box<dyn Watch>,
    /// What the store has told, from the revision after that at which the world began.
    log: Vec<Event>,
    pub(super) replicas: Vec<Replica>,
    pub(super) machines: Vec<Machine>,
    pub(super) messages: Vec<Message>,
    pub(super) replies: Vec<Reply>,
    pub(super) adrift: Vec<(usize, Vec<Txn>)>,
    /// Whether any batch ever was.
    pub(super) was_adrift: bool,
    pub(super) model: Model,
    pub(super) now: u64,
    tokens: u128,
    /// The sessions in which each incarnation was claimed.
    claimed_in: BTreeMap<Uid, BTreeSet<Token>>,
    /// The incarnations whose end their own host has asked for.
    end_asked: BTreeSet<Uid>,
    /// The incarnations that an operator ended because their host was said to be down.
    said_down: BTreeSet<Uid>,
    /// The incarnations that ended without their host, which was silent: it may not know yet.
    pub(super) excused: BTreeSet<Uid>,
    /// When each host was heard last by any controller, and since when each controller serves.
    pub(super) heard_at: [u64; MACHINES],
    pub(super) served_since: Vec<u64>,
    /// When the lease of a living controller was revoked last.
    revoked_at: u64,
    /// The reservations whose release an operator has asked for.
    release_asked: BTreeSet<ReservationKey>,
    /// How often what happened.
    pub(super) counts: BTreeMap<String, usize>,
    /// Said of each step, if somebody reads it.
    pub(super) story: Option<Vec<String>>,
}

impl World {
    /// A network with a pool of eight addresses, in blocks of two, and nobody there yet.
    pub(super) fn new(runtime: &Arc<Runtime>, setting: Setting) -> Result<Self, String> {
        let Setting { mut client, controllers, is_dual } = setting;
        let clients: Vec<Client> = (0..controllers).map(|_| client(runtime)).collect();
        let store = Arc::clone(&clients[0].store);
        let snapshot = runtime.block_on(Snapshot::of(&*store, "")).map_err(said)?;
        let watch = runtime.block_on(store.watch(snapshot.revision)).map_err(said)?;
        let state = load(&snapshot)?;
        let process = |number: usize| Token::from_bits(PROCESS + u128::try_from(number).unwrap());
        let replicas = clients.iter().enumerate();
        let replicas = replicas.map(|(number, _)| Replica::new(process(number), state.clone(), 0));
        let replicas = replicas.collect();
        let served = clients.len();
        let mut world = Self {
            runtime: Arc::clone(runtime),
            client,
            clients,
            dead: Vec::new(),
            watch,
            log: Vec::new(),
            replicas,
            machines: (0..MACHINES).map(Machine::new).collect(),
            messages: Vec::new(),
            replies: Vec::new(),
            adrift: Vec::new(),
            was_adrift: false,
            model: Model { revision: snapshot.revision, ..Model::default() },
            now: 0,
            tokens: 0,
            claimed_in: BTreeMap::new(),
            end_asked: BTreeSet::new(),
            said_down: BTreeSet::new(),
            excused: BTreeSet::new(),
            heard_at: [0; MACHINES],
            served_since: vec![0; served],
            revoked_at: 0,
            release_asked: BTreeSet::new(),
            counts: BTreeMap::new(),
            story: None,
        };
        world.furnish(is_dual)?;
        Ok(world)
    }

    fn furnish(&mut self, is_dual: bool) -> Result<(), String> {
        let spec = limpet_api::config::NetworkSpec::default();
        let network = crate::rules::networks::create(&self.replicas[0].state, &name("blue"), &spec);
        self.commit(0, vec![network.draft.into_txn()])?;
        self.sync(0, usize::MAX)?;
        for (pool, range) in [("p4", "10.0.0.0/29"), ("p6", "fd00::/125")] {
            if pool == "p4" || is_dual {
                let spec = super::actions::pool_spec(range);
                let made = crate::rules::pools::create(&self.replicas[0].state, &name(pool), &spec);
                made.answer.map_err(said)?;
                self.commit(0, vec![made.draft.into_txn()])?;
                self.sync(0, usize::MAX)?;
            }
        }
        for replica in 1..self.replicas.len() {
            self.sync(replica, usize::MAX)?;
        }
        Ok(())
    }

    /// A token that nothing else has.
    pub(super) fn token(&mut self) -> Token {
        self.tokens += 1;
        Token::from_bits(self.tokens)
    }

    /// Counts what happened.
    pub(super) fn count(&mut self, what: &str) {
        match self.counts.get_mut(what) {
            Some(count) => *count += 1,
            None => drop(self.counts.insert(what.to_owned(), 1)),
        }
    }

    /// Says what happens, if somebody reads it.
    pub(super) fn say(&mut self, words: impl FnOnce() -> String) {
        if let Some(story) = &mut self.story {
            story.push(words());
        }
    }

    /// Sends a request to a controller.
    pub(super) fn send(&mut self, to: usize, caller: Caller, request: Request) {
        match &request {
            Request::Claim { request, .. } => {
                self.claimed_in.entry(request.uid).or_default().insert(request.session);
            }
            Request::End { request, .. } => drop(self.end_asked.insert(request.uid)),
            Request::Reassert { attachment, session } => {
                self.claimed_in.entry(attachment.uid).or_default().insert(*session);
            }
            Request::Remove { attachment, how } if how.host_is_down => {
                self.said_down.insert(attachment.uid);
            }
            Request::Release { key } => drop(self.release_asked.insert(key.clone())),
            _ => {}
        }
        self.say(|| format!("to controller {to}: {request:?}"));
        let job = Job::new(caller, request, self.model.revision);
        self.messages.push(Message { to, job });
    }

    /// Sends what agents have to say, each to this controller.
    pub(super) fn post(&mut self, to: usize) {
        let mut out = Vec::new();
        for (host, machine) in self.machines.iter_mut().enumerate() {
            let Some(agent) = &mut machine.agent else { continue };
            let life = agent.life;
            out.extend(
                agent
                    .out
                    .drain(..)
                    .map(|(call, request)| (Caller::Agent { host, life, call }, request)),
            );
        }
        for (caller, request) in out {
            self.send(to, caller, request);
        }
    }

    /// Commits transactions as a controller, and holds what the store then tells against the model.
    pub(super) fn commit(&mut self, client: usize, txns: Vec<Txn>) -> Result<Vec<Outcome>, String> {
        let committed = self.runtime.block_on(self.clients[client].store.commit(txns));
        let outcomes = match committed {
            Ok(outcomes) => outcomes,
            Err(CommitError::NotDone(cause) | CommitError::Unknown(cause)) => {
                return Err(format!("the store failed: {cause}"));
            }
        };
        if outcomes.len() > 1 {
            self.count("batches of several");
        }
        let newest = outcomes.iter().filter_map(|outcome| match outcome {
            Outcome::Committed(revision) => Some(*revision),
            Outcome::Conflict(_) => None,
        });
        let newest = newest.max().unwrap_or_default();
        for _ in outcomes.iter().filter(|outcome| matches!(outcome, Outcome::Conflict(_))) {
            self.count("conflicts");
        }
        self.drain(newest)?;
        Ok(outcomes)
    }

    /// Takes in what the store tells, up to a revision.
    fn drain(&mut self, newest: Revision) -> Result<(), String> {
        while self.model.revision < newest {
            let Some(event) = self.runtime.block_on(next(&mut *self.watch)).transpose()? else {
                // Others have keys of their own in the store, which move its revision.
                self.model.revision = newest;
                break;
            };
            let news = self.model.take(&event)?;
            self.log.push(event);
            self.justify(news)?;
        }
        Ok(())
    }

    /// Everything that began, ended or was released has a reason.
    fn justify(&mut self, news: News) -> Result<(), String> {
        if self.model.now.0 > self.now {
            return Err(format!("fleet time is {:?} after {} s", self.model.now, self.now));
        }
        for Attachment { uid, key, .. } in news.begun {
            self.count("begins");
            let session = self.model.session(&key.host);
            let claimed_in = self.claimed_in.get(&uid);
            if !session.is_some_and(|now| claimed_in.is_some_and(|tokens| tokens.contains(&now))) {
                return Err(format!(
                    "{uid} was claimed in sessions {claimed_in:?}, and made in {session:?}"
                ));
            }
        }
        for Attachment { uid, key, .. } in news.again {
            self.count("made again");
            let machine = self.machines.iter().find(|machine| machine.host == key.host);
            let agent = machine.and_then(|machine| machine.agent.as_ref());
            let expected = agent.is_none_or(|agent| agent.expects(uid));
            if !expected && !self.was_adrift {
                return Err(format!("{uid} had ended, and its agent does not expect it again"));
            }
        }
        for end in news.ended {
            self.count("ends");
            let uid = end.attachment.uid;
            if self.end_asked.contains(&uid) {
                continue;
            }
            let long_silent = end
                .silent
                .is_some_and(|since| since.plus(Span::from_seconds(TAKEOVER)) <= self.model.now);
            let said_down = self.said_down.contains(&uid) && !end.is_heard;
            if !(long_silent || said_down) {
                return Err(format!(
                    "{uid} was ended, and its host never asked for that: {:?} of {:?}",
                    end.silent, self.model.now
                ));
            }
            self.count("ends without the host");
            self.excused.insert(uid);
        }
        for host in news.silent {
            self.count("silences");
            let number = self.machines.iter().position(|machine| machine.host == host);
            let ago = number.map(|number| self.now.saturating_sub(self.heard_at[number]));
            // Between two looks of one controller another's word can be written and revoked: the
            // next heartbeat ends such a silence, long before anything is taken over.
            let is_revoked = self.now.saturating_sub(self.revoked_at) <= LEASE_SECONDS;
            let lately = ago.is_some_and(|ago| ago < LEASE_SECONDS) && !is_revoked;
            if self.model.heard.contains(&host) || lately {
                return Err(format!("host {host} was found silent, heard {ago:?} s ago"));
            }
        }
        for reservation in news.released {
            let network = &reservation.network;
            let key = reservation_key(network, &reservation.namespace, &reservation.name);
            let is_over = match (reservation.retention, reservation.detached_at) {
                (Retention::For(span), Some(since)) => since.plus(span) <= self.model.now,
                _ => false,
            };
            self.count(if is_over { "retentions over" } else { "releases" });
            if !is_over && !self.release_asked.contains(&key) {
                return Err(format!("{} was released, and nobody asked for that", key.name));
            }
            let held = |held: &limpet_api::book::Held| {
                self.model.slots.get(&held.address).is_some_and(|slot| slot.attachment.is_some())
            };
            if reservation.addresses.iter().any(held) {
                return Err(format!("{} was released while it was held", key.name));
            }
        }
        Ok(())
    }

    /// A controller hears of at most so many changes. Returns whether there was one.
    pub(super) fn sync(&mut self, replica: usize, most: usize) -> Result<bool, String> {
        let Self { replicas, log, now, .. } = self;
        let replica = &mut replicas[replica];
        let known = replica.state.revision();
        let from = log.partition_point(|event| event.revision <= known);
        for event in log[from..].iter().take(most) {
            replica.hear(event, *now)?;
        }
        Ok(from < log.len())
    }

    /// A controller is told what became of its batch.
    pub(super) fn settle(
        &mut self,
        replica: usize,
        batch: Batch,
        outcomes: Option<Vec<Outcome>>,
    ) -> Result<(), String> {
        let conflict = outcomes.as_ref().is_none_or(|outcomes| {
            outcomes.iter().any(|outcome| matches!(outcome, Outcome::Conflict(_)))
        });
        let newest = outcomes.iter().flatten().filter_map(|outcome| match outcome {
            Outcome::Committed(revision) => Some(*revision),
            Outcome::Conflict(_) => None,
        });
        let newest = newest.max().unwrap_or_default();
        while conflict || self.replicas[replica].state.revision() < newest {
            if !self.sync(replica, if conflict { usize::MAX } else { 1 })? || conflict {
                break;
            }
        }
        let now = self.now;
        let replies = match outcomes {
            Some(outcomes) => self.replicas[replica].settle(batch, outcomes, now),
            None => self.replicas[replica].doubt(batch, now),
        };
        self.told(replies)
    }

    /// Answers leave a controller: each must be true now.
    pub(super) fn told(&mut self, replies: Vec<Reply>) -> Result<(), String> {
        for reply in replies {
            truth::check(&self.model, &reply, self.model.revision)?;
            self.count(match &reply.result {
                Ok((answer, _)) => answer.word(&reply.request),
                Err(error) => error.code.as_str(),
            });
            self.say(|| format!("answer to {:?}: {:?}", reply.request, reply.result));
            let is_word = matches!(reply.request, Request::Open { .. } | Request::Beat { .. });
            if let (true, Ok(_), Some(host)) = (is_word, &reply.result, reply.request.host())
                && let Some(number) = self.machines.iter().position(|it| it.host == *host)
            {
                self.heard_at[number] = self.now;
            }
            if let Caller::Agent { .. } = reply.caller {
                self.replies.push(reply);
            }
        }
        Ok(())
    }

    /// An answer reaches its agent, if that still lives.
    pub(super) fn answer(&mut self, reply: Reply) {
        let Caller::Agent { host, life, call } = reply.caller else { return };
        let machine = &mut self.machines[host];
        let Some(agent) = machine.agent.as_mut().filter(|agent| agent.life == life) else { return };
        let fate = match &reply.result {
            Ok((Answer::Fate(fate), revision)) => Some((fate.clone(), *revision)),
            _ => None,
        };
        let granted = agent.answered(call, reply.result);
        if let (Request::Claim { request, .. }, Some(granted)) = (&reply.request, granted) {
            machine.granted(request.uid, granted);
        }
        if let (Request::Reassert { attachment, .. }, Some((fate, revision))) =
            (&reply.request, fate)
        {
            machine.fate(attachment, &fate, revision);
        }
    }

    /// A controller is killed and started again; a batch that was under way may arrive yet.
    pub(super) fn restart(&mut self, replica: usize, arrives: bool) -> Result<(), String> {
        let killed = &mut self.replicas[replica];
        let (jobs, batch) = (std::mem::take(&mut killed.jobs), killed.batch.take());
        let callers = jobs.iter().map(|job| job.caller);
        let callers: Vec<_> = callers.chain(batch.iter().flat_map(Batch::callers)).collect();
        if let Some(batch) = batch.filter(|_| arrives) {
            self.adrift.push((replica, batch.txns));
            self.was_adrift = true;
        }
        for caller in callers {
            self.lose(caller);
        }
        let client = (self.client)(&self.runtime);
        let store = Arc::clone(&client.store);
        self.dead.push((self.now, std::mem::replace(&mut self.clients[replica], client)));
        let snapshot = self.runtime.block_on(Snapshot::of(&*store, "")).map_err(said)?;
        self.watch = self.runtime.block_on(store.watch(self.model.revision)).map_err(said)?;
        self.drain(snapshot.revision)?;
        let process = Token::from_bits(2 * PROCESS + self.token().bits());
        self.served_since[replica] = self.now;
        self.replicas[replica] = Replica::new(process, load(&snapshot)?, self.now);
        Ok(())
    }

    /// The store forgets controllers that were killed a lease ago.
    pub(super) fn forget_dead(&mut self) -> Result<(), String> {
        let lapsed = self.now.saturating_sub(LEASE_SECONDS);
        let (gone, dead): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.dead).into_iter().partition(|(killed, _)| *killed <= lapsed);
        self.dead = dead;
        for (_, client) in &gone {
            (client.lapse)(&self.runtime);
        }
        if gone.is_empty() { Ok(()) } else { self.catch_up() }
    }

    /// The store takes a controller for dead.
    pub(super) fn lapse(&mut self, replica: usize) -> Result<(), String> {
        if !self.clients[replica].survives {
            return Ok(());
        }
        (self.clients[replica].lapse)(&self.runtime);
        self.revoked_at = self.now;
        self.catch_up()
    }

    fn catch_up(&mut self) -> Result<(), String> {
        let store = Arc::clone(&self.clients[0].store);
        let identity = self.runtime.block_on(Snapshot::of(&*store, crate::keys::STORE_ID));
        self.drain(identity.map_err(said)?.revision)
    }

    /// A caller will have no answer.
    pub(super) fn lose(&mut self, caller: Caller) {
        let Caller::Agent { host, life, call } = caller else { return };
        if let Some(agent) = self.machines[host].agent.as_mut().filter(|agent| agent.life == life) {
            agent.lose(call);
        }
    }

    /// Invariant 1b: whoever has an address in a kernel has it in the store, and so nobody else has;
    /// except who lost it because its host was silent, and does not know yet.
    pub(super) fn check_kernels(&self) -> Result<(), String> {
        let mut seen: BTreeMap<IpAddr, Uid> = BTreeMap::new();
        for machine in &self.machines {
            let answering = machine.veths.iter().filter(|(_, veth)| veth.answers());
            for (uid, veth) in answering.filter(|(uid, _)| !self.excused.contains(uid)) {
                for address in &veth.addresses {
                    if let Some(other) = seen.insert(*address, *uid) {
                        return Err(format!("{address} is {uid}'s and {other}'s, in kernels"));
                    }
                }
                let stored = self.model.attachments.get(&veth.key);
                if !stored.is_some_and(|stored| {
                    stored.uid == *uid && addresses_of(stored).eq(veth.addresses.iter().copied())
                }) {
                    return Err(format!(
                        "{uid} on {} is in the kernel, and the store has {stored:?}",
                        machine.host
                    ));
                }
            }
        }
        Ok(())
    }

    /// What an agent joins with.
    pub(super) fn joining(&mut self, host: usize, boot: Token) -> Request {
        let last = u8::try_from(host).unwrap() + 1;
        let underlay = IpAddr::from([192, 0, 2, last]);
        let machine = &self.machines[host];
        let (name, install) = (machine.host.clone(), Token::from_bits(1_000 + u128::from(last)));
        let request = SessionRequest {
            install,
            boot,
            underlay,
            addresses: vec![underlay],
            on_link: [].into(),
            roles: [].into(),
            external: [].into(),
            version: String::new(),
        };
        Request::Open { host: name, request, fresh: self.token() }
    }

    /// The attachments that the store has, in order.
    pub(super) fn attachments(&self) -> Vec<(AttachmentKey, Uid)> {
        self.model.attachments.values().map(|a| (a.key.clone(), a.uid)).collect()
    }

    /// The host of a machine.
    pub(super) fn host(&self, machine: usize) -> HostName {
        self.machines[machine].host.clone()
    }
}

/// The next change that the store tells of, if it does so soon.
async fn next(watch: &mut dyn Watch) -> Option<Result<Event, String>> {
    let event = tokio::time::timeout(SOON, watch.next()).await.ok()?;
    Some(event.map_err(said))
}

fn load(snapshot: &Snapshot) -> Result<State, String> {
    let mut loader = Loader::new(snapshot.revision);
    for (key, stored) in &snapshot.entries {
        loader.take(key, stored.clone()).map_err(said)?;
    }
    loader.finish().map_err(said)
}

fn said(error: impl std::fmt::Display) -> String {
    error.to_string()
}

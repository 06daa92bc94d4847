//! Pure: a machine of the simulated world: its kernel, its runtime's containers, the plugins that
//! run, its agent. What a kernel has is what counts: who has an address is who answers on it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use limpet_api::book::{Attachment, AttachmentKey};
use limpet_api::host::{ReassertOutcome, Wanted};
use limpet_net_types::{HostName, Token, Uid};

use super::agent::{Agent, Granted, Known, Record};
use crate::alloc::reassert::Fate;
use crate::state::sample::name;
use crate::store::Revision;

/// How many containers a machine can have.
pub(super) const CONTAINERS: usize = 3;

/// A container's interface, as the host's kernel has it.
#[derive(Clone, Debug)]
pub(super) struct Veth {
    pub(super) key: AttachmentKey,
    pub(super) addresses: Vec<IpAddr>,
    /// Its ADD has succeeded, or may do so yet: the connection to the agent is not broken.
    pub(super) counts: bool,
    /// Its container was taken off the network.
    pub(super) is_severed: bool,
}

impl Veth {
    /// Whether somebody answers on its addresses.
    pub(super) fn answers(&self) -> bool {
        self.counts && !self.is_severed
    }
}

/// How far the ADD of a container is.
#[derive(Clone, Debug)]
enum Plugin {
    /// It waits for the agent.
    Waits(Uid),
    /// It was given addresses, and is about to make the interface.
    Makes { attachment: Box<Attachment>, is_cut: bool },
    /// It has made the interface, and is about to confirm it.
    Confirms { uid: Uid, is_cut: bool },
}

/// A container, as its runtime sees it.
#[derive(Clone, Debug, Default)]
pub(super) struct Container {
    netns: bool,
    plugin: Option<Plugin>,
    is_running: bool,
    /// DEL is to come: the ADD failed, or the container has stopped.
    is_over: bool,
}

/// A machine.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) number: usize,
    pub(super) host: HostName,
    pub(super) boot: Token,
    pub(super) is_cut_off: bool,
    pub(super) veths: BTreeMap<Uid, Veth>,
    pub(super) containers: Vec<Container>,
    pub(super) agent: Option<Agent>,
    /// What was answered to this host, for as long as the boot lasts.
    pub(super) records: BTreeMap<Uid, Record>,
    /// DELs whose word for the agent has not come yet, or comes again.
    pub(super) late: Vec<(AttachmentKey, Uid)>,
    lives: u64,
}

impl Machine {
    pub(super) fn new(number: usize) -> Self {
        let containers = vec![Container::default(); CONTAINERS];
        Self {
            number,
            host: name(["a", "b", "c"][number]),
            boot: boot(number, 0),
            is_cut_off: false,
            veths: BTreeMap::new(),
            containers,
            agent: None,
            records: BTreeMap::new(),
            late: Vec::new(),
            lives: 0,
        }
    }

    fn key(&self, container: usize) -> AttachmentKey {
        AttachmentKey {
            host: self.host.clone(),
            network: name("blue"),
            container: name(&format!("c{container}")),
            ifname: name("eth0"),
        }
    }

    /// The interfaces that are there.
    pub(super) fn living(&self) -> BTreeSet<Uid> {
        self.veths.keys().copied().collect()
    }

    /// Whether nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.late.is_empty()
            && self.containers.iter().all(|c| c.plugin.is_none() && !c.is_over)
            && self.agent.as_ref().is_some_and(Agent::is_idle)
    }

    /// A container is started: ADD.
    pub(super) fn start(&mut self, container: usize, uid: Uid, wanted: Wanted) -> bool {
        let key = self.key(container);
        let living = self.living();
        let of = &mut self.containers[container];
        if of.netns || of.is_over || of.plugin.is_some() {
            return false;
        }
        *of = Container { netns: true, ..Container::default() };
        let Some(agent) = &mut self.agent else {
            of.is_over = true;
            return true;
        };
        of.plugin = Some(Plugin::Waits(uid));
        let wanted = Wanted { netns: format!("/{container}"), ..wanted };
        agent.attach(&key, (uid, container), wanted, &living);
        true
    }

    /// What the agent says of an ADD that waits.
    pub(super) fn granted(&mut self, uid: Uid, granted: Granted) {
        let (Granted::Yes { container, .. } | Granted::No { container }) = &granted;
        let of = &mut self.containers[*container];
        if !matches!(of.plugin, Some(Plugin::Waits(waits)) if waits == uid) {
            return;
        }
        match granted {
            Granted::Yes { attachment, revision, .. } => {
                let record = Record { attachment: *attachment.clone(), revision };
                self.records.insert(uid, record);
                of.plugin = Some(Plugin::Makes { attachment, is_cut: false });
            }
            Granted::No { .. } => of.fail(),
        }
    }

    /// The plugin makes the interface.
    pub(super) fn make(&mut self, container: usize) -> bool {
        let key = self.key(container);
        let of = &mut self.containers[container];
        let Some(Plugin::Makes { attachment, is_cut }) = &of.plugin else { return false };
        if !of.netns {
            return false;
        }
        let (uid, is_cut) = (attachment.uid, *is_cut);
        let addresses = attachment.addresses.iter().map(|held| held.address).collect();
        self.veths.insert(uid, Veth { key, addresses, counts: !is_cut, is_severed: false });
        of.plugin = Some(Plugin::Confirms { uid, is_cut });
        true
    }

    /// The plugin confirms, and ADD has succeeded; or it undoes what it made.
    pub(super) fn confirm(&mut self, container: usize) -> bool {
        let key = self.key(container);
        let of = &mut self.containers[container];
        let Some(Plugin::Confirms { uid, is_cut }) = of.plugin else { return false };
        let stands = !is_cut && self.agent.as_mut().is_some_and(|agent| agent.confirm(&key, uid));
        if stands {
            of.plugin = None;
            of.is_running = true;
        } else {
            self.veths.remove(&uid);
            of.fail();
        }
        true
    }

    /// The plugin is killed, or the runtime's patience is over.
    pub(super) fn kill_plugin(&mut self, container: usize) -> bool {
        let of = &mut self.containers[container];
        let uid = match of.plugin.take() {
            None => return false,
            Some(Plugin::Waits(uid) | Plugin::Confirms { uid, .. }) => uid,
            Some(Plugin::Makes { attachment, .. }) => attachment.uid,
        };
        of.fail();
        if let Some(agent) = &mut self.agent {
            agent.landed(uid);
        }
        true
    }

    /// The claim has taken too long: the agent gives it up.
    pub(super) fn give_up(&mut self, container: usize) -> bool {
        let of = &mut self.containers[container];
        let Some(Plugin::Waits(uid)) = of.plugin else { return false };
        of.fail();
        self.agent.as_mut().is_some_and(|agent| agent.give_up(uid))
    }

    /// The container ends by itself: its namespace goes, and its interface with it.
    pub(super) fn stop(&mut self, container: usize) -> bool {
        let key = self.key(container);
        let of = &mut self.containers[container];
        if !of.is_running {
            return false;
        }
        (of.is_running, of.is_over, of.netns) = (false, true, false);
        self.veths.retain(|_, veth| veth.key != key);
        true
    }

    /// DEL: the interface goes first, then the agent is told, now or `late`.
    pub(super) fn delete(&mut self, container: usize, late: bool) -> bool {
        let key = self.key(container);
        let of = &mut self.containers[container];
        if of.plugin.is_some() || !(of.is_running || of.is_over) {
            return false;
        }
        *of = Container::default();
        let uid = self.veths.iter().find(|(_, veth)| veth.key == key).map(|(uid, _)| *uid);
        self.veths.retain(|_, veth| veth.key != key);
        match (uid, &mut self.agent) {
            (Some(uid), _) if late => self.late.push((key, uid)),
            (uid, Some(agent)) => agent.detach(&key, uid),
            (_, None) => {}
        }
        true
    }

    /// The word of a DEL comes late, and perhaps once more later.
    pub(super) fn tell(&mut self, again: bool) -> bool {
        let Some((key, uid)) = self.late.first().cloned() else { return false };
        if !again {
            self.late.remove(0);
        }
        if let Some(agent) = &mut self.agent {
            agent.detach(&key, Some(uid));
        }
        true
    }

    /// Whether a container waits for its DEL.
    pub(super) fn is_over(&self, container: usize) -> bool {
        self.containers[container].is_over
    }

    /// The agent is started.
    pub(super) fn start_agent(&mut self) -> bool {
        if self.agent.is_some() {
            return false;
        }
        self.lives += 1;
        let life = self.lives;
        self.agent = Some(Agent::new(life, self.host.clone(), self.boot));
        true
    }

    /// The agent is killed: plugins' connections are broken.
    pub(super) fn kill_agent(&mut self) -> bool {
        let killed = self.agent.take().is_some();
        for of in &mut self.containers {
            match &mut of.plugin {
                Some(Plugin::Waits(_)) => of.fail(),
                Some(Plugin::Makes { is_cut, .. } | Plugin::Confirms { is_cut, .. }) if killed => {
                    *is_cut = true;
                }
                _ => {}
            }
            if let Some(Plugin::Confirms { uid, is_cut: true }) = &of.plugin
                && let Some(veth) = self.veths.get_mut(uid)
            {
                veth.counts = false;
            }
        }
        killed
    }

    /// The machine starts anew: nothing of its kernel is left.
    pub(super) fn reboot(&mut self) {
        self.kill_agent();
        self.veths.clear();
        self.records.clear();
        self.late.clear();
        self.containers.iter_mut().for_each(|of| *of = Container::default());
        self.lives += 1;
        self.boot = boot(self.number, self.lives);
    }

    /// The agent judges by what it has seen.
    pub(super) fn judge(&mut self) -> bool {
        let mounted: BTreeSet<String> = (0..CONTAINERS)
            .filter(|container| self.containers[*container].netns)
            .map(|container| format!("/{container}"))
            .collect();
        let Self { agent: Some(agent), veths, records, .. } = self else { return false };
        let known = Known { veths, records, netns_exists: &|path| mounted.contains(path) };
        let Some(sever) = agent.judge(&known) else { return false };
        for uid in sever {
            self.sever(uid);
        }
        let Self { agent, veths, records, .. } = self;
        let has = |uid: &Uid| agent.as_ref().is_some_and(|agent| agent.has(*uid));
        records.retain(|uid, _| veths.contains_key(uid) || has(uid));
        true
    }

    /// A container is taken off the network, and an ADD of it that is under way fails.
    pub(super) fn sever(&mut self, uid: Uid) {
        for of in &mut self.containers {
            match &mut of.plugin {
                Some(Plugin::Makes { attachment, is_cut }) if attachment.uid == uid => {
                    *is_cut = true;
                }
                Some(Plugin::Confirms { uid: makes, is_cut }) if *makes == uid => *is_cut = true,
                _ => {}
            }
        }
        if let Some(veth) = self.veths.get_mut(&uid) {
            veth.is_severed = true;
        }
    }

    /// The agent hears what becomes of an attachment that it re-asserted.
    pub(super) fn fate(&mut self, attachment: &Attachment, fate: &Fate, revision: Revision) {
        let uid = attachment.uid;
        match fate {
            Fate::Waits(_) => {}
            Fate::Known(ReassertOutcome::Severed { .. }) => self.sever(uid),
            Fate::Known(outcome) => {
                let is_there = self.veths.contains_key(&uid);
                let Some(agent) = &mut self.agent else { return };
                let stands = agent.stands(attachment, revision);
                if *outcome == ReassertOutcome::Restored && !is_there {
                    agent.list(attachment.key.clone(), uid);
                }
                if let Some(veth) = self.veths.get_mut(&uid).filter(|_| stands) {
                    veth.is_severed = false;
                }
            }
        }
    }
}

impl Container {
    fn fail(&mut self) {
        self.plugin = None;
        self.is_over = true;
    }
}

fn boot(host: usize, life: u64) -> Token {
    Token::from_bits(u128::try_from(host).unwrap() * 1_000_000 + 500_000 + u128::from(life))
}

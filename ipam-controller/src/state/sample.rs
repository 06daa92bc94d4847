//! Pure: a state to try decisions on, committed as a store would: each at its own revision,
//! and only if what it relied on holds.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::str::FromStr;

use limpet_api::ApiError;
use limpet_api::book::AttachmentKey;
use limpet_api::config::{Host, Pool, PoolState, Sticky};
use limpet_api::host::{ClaimRequest, Wanted};
use limpet_net_types::{HostName, NetworkName, Token};

use super::{Change, Effects, Loader, State, Undo};
use crate::alloc::Patience;
use crate::alloc::claim::claim;
use crate::draft::{Decision, Draft};
use crate::keys::Subject;
use crate::records::Alive;
use crate::store::{Key, Revision, Seen, Txn, Versioned, Write};

/// A name, address or prefix.
pub(crate) fn name<T: FromStr<Err: Debug>>(text: &str) -> T {
    text.parse().unwrap()
}

fn loaded(revision: Revision, entries: &BTreeMap<Key, Versioned>) -> State {
    let mut loader = Loader::new(revision);
    for (key, stored) in entries {
        loader.take(key, stored.clone()).unwrap();
    }
    loader.finish().unwrap()
}

/// The state, and the store's contents beside it.
pub(crate) struct Sample {
    state: State,
    entries: BTreeMap<Key, Versioned>,
    undone: Vec<Undo>,
    base: State,
}

impl Sample {
    /// A new store's.
    pub(crate) fn new() -> Self {
        let identity = Versioned {
            value: format!("\"{}\"", Token::from_bits(1)).into(),
            revision: Revision(1),
        };
        let entries: BTreeMap<_, _> = [(crate::keys::STORE_ID.to_owned(), identity)].into();
        let state = loaded(Revision(1), &entries);
        Self { base: state.clone(), state, entries, undone: vec![] }
    }

    /// The same store as it is now, which goes its own way from here on.
    pub(crate) fn copy(&self) -> Self {
        let (state, entries) = (self.state.clone(), self.entries.clone());
        Self { base: state.clone(), state, entries, undone: vec![] }
    }

    /// The state.
    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// Decides, checks what was relied on, commits, and checks that loading gives what applying
    /// gave.
    pub(crate) fn decided<T>(
        &mut self,
        decide: impl FnOnce(&State) -> Decision<T>,
    ) -> Result<T, ApiError> {
        let decision = decide(&self.state);
        let (txn, changes) = decision.draft.into_parts();
        self.carry_out(&txn, changes);
        decision.answer
    }

    /// Commits a transaction, of which nothing is known but what the store is told.
    pub(crate) fn commit(&mut self, txn: &Txn) -> Effects {
        let changes = txn.writes.iter().map(|(key, write)| Change::read(key, write).unwrap());
        self.carry_out(txn, changes.collect())
    }

    fn carry_out(&mut self, txn: &Txn, changes: Vec<Change>) -> Effects {
        for (key, seen) in &txn.compares {
            let found = self.entries.get(key).map_or(Seen::Absent, |e| Seen::At(e.revision));
            assert_eq!(found, *seen, "{key} was relied on as it is not");
        }
        for quiet in &txn.quiet {
            let mut range = self.entries.range(quiet.from.clone()..quiet.to.clone());
            let put = range.find(|(_, entry)| entry.revision > quiet.since);
            assert_eq!(put, None, "something was put where nothing was to be");
        }
        if txn.writes.is_empty() {
            return Effects::default();
        }
        let revision = self.state.revision().next();
        for (key, write) in &txn.writes {
            match write {
                Write::Put(value) | Write::Ephemeral(value) => {
                    let entry = Versioned { value: value.clone(), revision };
                    self.entries.insert(key.clone(), entry);
                }
                Write::Delete => drop(self.entries.remove(key)),
            }
        }
        let before = self.state.clone();
        let undo = self.state.before(&changes);
        let effects = self.state.take(revision, changes).unwrap();
        self.undone.push(undo);
        self.check();
        self.check_undo(before);
        effects
    }

    /// What was applied can be taken back: this transaction, and all of them one after another.
    fn check_undo(&self, mut before: State) {
        let mut state = self.state.clone();
        let mut undone = self.undone.iter().rev();
        state.revert(undone.next().unwrap().clone());
        before.pointers.clone_from(&state.pointers);
        assert_eq!(state, before, "reverted is as before");
        if self.undone.len().is_multiple_of(16) {
            undone.for_each(|undo| state.revert(undo.clone()));
            let mut new = self.base.clone();
            new.pointers.clone_from(&state.pointers);
            assert_eq!(state, new, "all reverted is as new");
        }
    }

    /// The state that the store's contents give is the one that its changes gave.
    fn check(&self) {
        let mut loaded = loaded(self.state.revision(), &self.entries);
        loaded.pointers.clone_from(&self.state.pointers);
        loaded.wall = self.state.wall;
        assert_eq!(loaded, self.state, "loaded is applied");
    }

    /// Adds or replaces a record.
    pub(crate) fn put<T: serde::Serialize>(&mut self, subject: &Subject, record: &T) {
        let mut draft = Draft::default();
        draft.put(subject, record);
        self.commit(&draft.into_txn());
    }

    /// Moves fleet time on.
    pub(crate) fn wait(&mut self, seconds: u64) {
        let now = self.state.now().plus(limpet_api::Span::from_seconds(seconds));
        self.put(&Subject::Clock, &now);
    }

    /// Adds a network.
    pub(crate) fn network(&mut self, network: &str) {
        let spec = limpet_api::config::NetworkSpec::default();
        self.decided(|state| crate::rules::networks::create(state, &name(network), &spec)).unwrap();
    }

    /// Adds a host with the role node and a session whose token is 7.
    pub(crate) fn host(&mut self, host: &str) {
        let spec = limpet_api::config::HostSpec::default();
        self.decided(|state| crate::rules::hosts::create(state, &name(host), &spec)).unwrap();
        let token = Token::from_bits(7);
        let alive = Alive {
            session: token,
            install: token,
            boot: token,
            superseded: vec![],
            on_link: [].into(),
            version: String::new(),
        };
        self.put(&Subject::Session(name(host)), &alive);
    }

    /// Attaches a container without a name to network `blue`, on a host from [`Self::host`].
    pub(crate) fn attach(&mut self, host: &str, container: &str) {
        let (network, ifname) = (name("blue"), name("eth0"));
        let key = AttachmentKey { host: name(host), network, container: name(container), ifname };
        let (session, uid) =
            (Token::from_bits(7), Token::from_bits(self.state.revision().0.into()));
        let request = ClaimRequest { session, uid, wanted: Wanted::default() };
        self.decided(|state| claim(state, &key, &request, Patience::Over)).unwrap();
    }

    /// Attaches a container that has a name, as [`Self::attach`].
    pub(crate) fn attach_named(&mut self, host: &str, container: &str, workload: &str) {
        let (network, ifname) = (name("blue"), name("eth0"));
        let key = AttachmentKey { host: name(host), network, container: name(container), ifname };
        let (session, uid) =
            (Token::from_bits(7), Token::from_bits(self.state.revision().0.into()));
        let wanted = Wanted { name: Some(name(workload)), ..Wanted::default() };
        let request = ClaimRequest { session, uid, wanted };
        self.decided(|state| claim(state, &key, &request, Patience::Over)).unwrap();
    }

    /// Changes a host in any way.
    pub(crate) fn change_host(&mut self, host: &str, change: impl FnOnce(&mut Host)) {
        let host: HostName = name(host);
        let mut record = self.state.host(&host).unwrap().record.clone();
        change(&mut record);
        self.put(&Subject::Host(host), &record);
    }

    /// Adds a pool of network `blue`, changed in any way.
    pub(crate) fn pool(&mut self, pool: &str, range: &str, change: impl FnOnce(&mut Pool)) {
        let network: NetworkName = name("blue");
        let mut record = Pool {
            name: name(pool),
            network,
            range: name(range),
            exclude: vec![],
            block_size: 4,
            sticky: Sticky::Auto,
            retention: limpet_api::config::DEFAULT_RETENTION,
            cooldown: limpet_api::Span::from_seconds(60),
            takeover_after: limpet_api::config::DEFAULT_TAKEOVER_AFTER,
            select: limpet_api::config::Select::default(),
            priority: 0,
            state: PoolState::Active,
        };
        change(&mut record);
        self.put(&Subject::Pool(record.name.clone()), &record);
    }
}

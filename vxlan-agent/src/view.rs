//! Pure: what this host knows of the cluster: the watch's lines and the answers to its own claims, put together.
//!
//! Two sources tell of the host's own attachments, and either may be ahead: the watch, line by line, and the
//! answer to a claim, which carries its revision. What is older than what is known is ignored, so that an
//! attachment is never judged by a state from before it was made. A uid that has ended never comes back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use limpet_api::Revision;
use limpet_api::book::Attachment;
use limpet_api::config::{Host, Network, Pool};
use limpet_api::host::{
    Ask, Block, Changes, Claimed, OwnChange, ReportWanted, SharedChange, Snapshot, Stray,
    WatchEvent, WatchLine,
};
use limpet_net_types::{ContainerId, HostName, IfName, NetworkName, PoolName, Prefix, Token, Uid};

/// An attachment of this host: network, container, interface inside it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) network: NetworkName,
    pub(crate) container: ContainerId,
    pub(crate) ifname: IfName,
}

impl Key {
    pub(crate) fn of(attachment: &Attachment) -> Self {
        let key = &attachment.key;
        Self {
            network: key.network.clone(),
            container: key.container.clone(),
            ifname: key.ifname.clone(),
        }
    }
}

/// An attachment, and the revision at which it is known to have been so.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    attachment: Attachment,
    revision: Revision,
}

/// The cluster as this host knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct View {
    /// The store, once there was a snapshot of it.
    store: Option<Token>,
    /// The watch's last revision.
    revision: Revision,
    /// Whether all of it is from disk, and no controller has told of everything since.
    unconfirmed: bool,
    pub(crate) networks: BTreeMap<NetworkName, Network>,
    pub(crate) pools: BTreeMap<PoolName, Pool>,
    pub(crate) hosts: BTreeMap<HostName, Host>,
    pub(crate) blocks: BTreeMap<(PoolName, Prefix), Block>,
    pub(crate) strays: BTreeMap<(NetworkName, IpAddr), HostName>,
    pub(crate) asks: BTreeMap<Uid, Ask>,
    attachments: BTreeMap<Key, Known>,
    /// Incarnations that ended after the watch's last revision, and when.
    ended: BTreeMap<Uid, Revision>,
    /// Incarnations that are not there any more by the watch's word alone: their containers may live.
    lost: BTreeSet<Uid>,
    /// Whether the controller is to be told of all that lives here: its store is another one, or it asks.
    pub(crate) reassert: bool,
    /// The reports that the controller waits for.
    pub(crate) reports: BTreeMap<Token, ReportWanted>,
}

/// A line of the watch cannot follow on what is known: the watch must be opened anew.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ViewError {
    /// Changes of a store whose snapshot was never seen.
    #[error("the watch tells of changes in store {line}, known is {}", known.map_or_else(|| "none".to_owned(), |known| known.to_string()))]
    OtherStore { line: Token, known: Option<Token> },
    /// A controller that is behind what another one has told.
    #[error("the controller's snapshot is of revision {line}, known is {known} already")]
    Behind { line: Revision, known: Revision },
}

/// What a line of the watch brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// Nothing that was not known.
    None,
    /// Of this host's own attachments: whoever made or unmade an interface has seen to the kernel.
    OfOwn,
    /// Of what every host must follow.
    OfAll,
}

impl View {
    /// The store and the revision up to which a controller has told of everything; none before the first snapshot.
    pub(crate) fn position(&self) -> Option<(Token, Revision)> {
        self.resumption().filter(|_| !self.unconfirmed)
    }

    /// The store and revision that the watch is to go on from.
    pub(crate) fn resumption(&self) -> Option<(Token, Revision)> {
        self.store.map(|store| (store, self.revision))
    }

    /// Whether what is told of a revision of `store` can be more than is known.
    pub(crate) fn is_news(&self, store: Token, revision: Revision) -> bool {
        self.store != Some(store) || revision > self.revision
    }

    /// What an earlier agent of this host had been told.
    pub(crate) fn recalled(store: Token, revision: Revision, snapshot: Snapshot) -> Self {
        let mut view = Self { store: Some(store), revision, ..Self::default() };
        view.reassert = snapshot.reassert;
        view.restart(snapshot, Self::default());
        view.unconfirmed = true;
        view
    }

    /// The store and revision of what is only recalled.
    pub(crate) fn unconfirmed(&self) -> Option<(Token, Revision)> {
        self.resumption().filter(|_| self.unconfirmed)
    }

    /// Takes in that a session was opened at `revision` of `store`: what has been told up to there is all that any agent
    /// of this host can have known. Returns whether what was recalled is confirmed by that.
    pub(crate) fn confirm(&mut self, store: Token, revision: Revision) -> bool {
        let confirmed = self.unconfirmed && self.store == Some(store) && self.revision >= revision;
        self.unconfirmed &= !confirmed;
        confirmed
    }

    /// All that a controller has told, as it would tell it at once; none before it has.
    ///
    /// What is known by answers alone it will tell again.
    pub(crate) fn saved(&self) -> Option<(Token, Revision, Snapshot)> {
        let (store, revision) = self.position()?;
        let stray = |((network, address), host): (&(NetworkName, IpAddr), &HostName)| Stray {
            network: network.clone(),
            address: *address,
            host: host.clone(),
        };
        let told = self.attachments.values().filter(|known| known.revision <= revision);
        let snapshot = Snapshot {
            networks: self.networks.values().cloned().collect(),
            pools: self.pools.values().cloned().collect(),
            hosts: self.hosts.values().cloned().collect(),
            blocks: self.blocks.values().cloned().collect(),
            strays: self.strays.iter().map(stray).collect(),
            attachments: told.map(|known| known.attachment.clone()).collect(),
            asks: self.asks.values().cloned().collect(),
            reports: self.reports.values().cloned().collect(),
            reassert: self.reassert,
        };
        Some((store, revision, snapshot))
    }

    /// Takes in one line of the watch, and returns whether anything that matters is different now.
    ///
    /// # Errors
    ///
    /// [`ViewError`], with nothing taken in.
    pub(crate) fn apply(&mut self, line: WatchLine) -> Result<News, ViewError> {
        let WatchLine { store, revision, event } = line;
        match event {
            WatchEvent::Snapshot(snapshot) => {
                let same = self.store == Some(store);
                if same && revision < self.revision {
                    return Err(ViewError::Behind { line: revision, known: self.revision });
                }
                let restored = self.store.is_some() && !same;
                let lost = self.attachments().map(|(_, attachment)| attachment.uid).collect();
                let before = if same { std::mem::take(self) } else { Self::default() };
                *self = Self { store: Some(store), revision, lost, ..Self::default() };
                self.reassert = restored || before.reassert || snapshot.reassert;
                self.restart(*snapshot, before);
                let known: BTreeSet<Uid> =
                    self.attachments().map(|(_, attachment)| attachment.uid).collect();
                self.lost.retain(|uid| !known.contains(uid));
                Ok(News::OfAll)
            }
            _ if self.store != Some(store) => {
                Err(ViewError::OtherStore { line: store, known: self.store })
            }
            WatchEvent::Heartbeat {} => {
                self.advance(revision);
                Ok(News::None)
            }
            WatchEvent::Changes(_) if revision <= self.revision => Ok(News::None),
            WatchEvent::Changes(changes) => {
                let Changes { shared, own } = changes;
                let news = if shared.is_empty() { News::OfOwn } else { News::OfAll };
                for change in shared {
                    self.change_shared(change, revision);
                }
                for change in own {
                    self.change_own(change, revision);
                }
                self.advance(revision);
                Ok(news)
            }
        }
    }

    /// Takes in the answer to a claim, and returns whether the claim still stands.
    ///
    /// Of a revision that the watch has told of, the watch knows: what it does not have has ended since.
    #[must_use]
    pub(crate) fn claimed(&mut self, claimed: &Claimed) -> bool {
        self.answered(&claimed.attachment, claimed.revision)
    }

    /// Takes in an answer that the store had an attachment at a revision, and returns whether it still has.
    #[must_use]
    pub(crate) fn answered(&mut self, attachment: &Attachment, revision: Revision) -> bool {
        if revision > self.revision {
            self.know(attachment.clone(), revision);
        }
        self.has(attachment.uid)
    }

    /// Whether an incarnation is known.
    pub(crate) fn has(&self, uid: Uid) -> bool {
        self.attachments.values().any(|known| known.attachment.uid == uid)
    }

    /// The incarnations that are not there any more by the watch's word alone.
    pub(crate) fn lost(&self) -> &BTreeSet<Uid> {
        &self.lost
    }

    /// It was looked what has become of these incarnations.
    pub(crate) fn looked_for(&mut self, lost: &BTreeSet<Uid>) {
        self.lost.retain(|uid| !lost.contains(uid));
    }

    /// Takes in that the controller does not know an incarnation: it has ended since it was heard of.
    pub(crate) fn unknown(&mut self, uid: Uid) {
        let mut known = self.attachments.values().filter(|known| known.attachment.uid == uid);
        match known.next().map(|known| known.revision) {
            Some(revision) => self.ended(uid, revision),
            None => {
                self.lost.remove(&uid);
            }
        }
    }

    /// Takes in that an incarnation has ended, by the answer to its end.
    pub(crate) fn ended(&mut self, uid: Uid, revision: Revision) {
        self.attachments.retain(|_, known| known.attachment.uid != uid);
        self.lost.remove(&uid);
        if revision > self.revision {
            self.ended.insert(uid, revision);
        }
    }

    /// The attachments of this host.
    pub(crate) fn attachments(&self) -> impl Iterator<Item = (&Key, &Attachment)> {
        self.attachments.iter().map(|(key, known)| (key, &known.attachment))
    }

    /// The attachment of this key.
    pub(crate) fn attachment(&self, key: &Key) -> Option<&Attachment> {
        self.attachments.get(key).map(|known| &known.attachment)
    }

    fn restart(&mut self, snapshot: Snapshot, before: Self) {
        let Snapshot { networks, pools, hosts, blocks, strays, attachments, asks, reports, .. } =
            snapshot;
        let shared = (networks.into_iter().map(SharedChange::NetworkSet))
            .chain(pools.into_iter().map(SharedChange::PoolSet))
            .chain(hosts.into_iter().map(SharedChange::HostSet))
            .chain(blocks.into_iter().map(SharedChange::BlockSet))
            .chain(strays.into_iter().map(SharedChange::StraySet));
        let revision = self.revision;
        self.ended = before.ended.into_iter().filter(|(_, at)| *at > revision).collect();
        for (key, known) in before.attachments {
            if known.revision > revision {
                self.attachments.insert(key, known);
            }
        }
        shared.for_each(|change| self.change_shared(change, revision));
        let own = (attachments.into_iter().map(OwnChange::AttachmentSet))
            .chain(asks.into_iter().map(OwnChange::AskSet))
            .chain(reports.into_iter().map(OwnChange::ReportWanted));
        own.for_each(|change| self.change_own(change, revision));
    }

    fn change_shared(&mut self, change: SharedChange, revision: Revision) {
        match change {
            SharedChange::NetworkSet(network) => {
                self.networks.insert(network.name.clone(), network);
            }
            SharedChange::NetworkGone(name) => {
                self.networks.remove(&name);
            }
            SharedChange::PoolSet(pool) => {
                self.pools.insert(pool.name.clone(), pool);
            }
            SharedChange::PoolGone(name) => {
                self.pools.remove(&name);
            }
            SharedChange::HostSet(host) => {
                self.hosts.insert(host.name.clone(), host);
            }
            SharedChange::HostGone(name) => {
                self.hosts.remove(&name);
            }
            SharedChange::BlockSet(block) => {
                self.blocks.insert((block.pool.clone(), block.prefix), block);
            }
            SharedChange::BlockGone { pool, prefix } => {
                self.blocks.remove(&(pool, prefix));
            }
            SharedChange::StraySet(Stray { network, address, host }) => {
                if !self.held_since(&network, address, revision) {
                    self.strays.insert((network, address), host);
                }
            }
            SharedChange::StrayGone { network, address } => {
                self.strays.remove(&(network, address));
            }
        }
    }

    fn change_own(&mut self, change: OwnChange, revision: Revision) {
        match change {
            OwnChange::AttachmentSet(attachment) => self.know(attachment, revision),
            OwnChange::AttachmentGone { network, container, ifname, uid } => {
                let key = Key { network, container, ifname };
                if self.attachments.get(&key).is_some_and(|known| known.attachment.uid == uid) {
                    self.attachments.remove(&key);
                    self.lost.insert(uid);
                }
            }
            OwnChange::AskSet(ask) => {
                self.asks.insert(ask.attachment.uid, ask);
            }
            OwnChange::AskGone(uid) => {
                self.asks.remove(&uid);
            }
            OwnChange::ReportWanted(wanted) => {
                self.reports.insert(wanted.id, wanted);
            }
            OwnChange::ReportGone(id) => {
                self.reports.remove(&id);
            }
        }
    }

    fn know(&mut self, attachment: Attachment, revision: Revision) {
        let key = Key::of(&attachment);
        let newer = self.attachments.get(&key).is_some_and(|known| known.revision > revision);
        if !newer && !self.ended.contains_key(&attachment.uid) {
            // An address that is here now is not elsewhere any more, before the watch tells so.
            for held in &attachment.addresses {
                let stray = (key.network.clone(), held.address);
                if self.strays.get(&stray).is_some_and(|host| *host != attachment.key.host) {
                    self.strays.remove(&stray);
                }
            }
            self.attachments.insert(key, Known { attachment, revision });
        }
    }

    /// Whether a claim that was answered after `revision` has brought an address here.
    fn held_since(&self, network: &NetworkName, address: IpAddr, revision: Revision) -> bool {
        self.attachments.iter().any(|(key, known)| {
            let holds = || known.attachment.addresses.iter().any(|held| held.address == address);
            known.revision > revision && key.network == *network && holds()
        })
    }

    /// The watch has told everything up to `revision`: what ended before cannot come up again.
    fn advance(&mut self, revision: Revision) {
        self.revision = self.revision.max(revision);
        let told = self.revision;
        self.ended.retain(|_, at| *at > told);
    }
}

#[cfg(test)]
mod tests;

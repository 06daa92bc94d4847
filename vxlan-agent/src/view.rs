//! Pure: what this host knows of the cluster: the watch's lines and the answers to its own claims, put together.
//!
//! Two sources tell of the host's own attachments, and either may be ahead: the watch, line by line, and the
//! answer to a claim, which carries its revision. What is older than what is known is ignored, so that an
//! attachment is never judged by a state from before it was made. A uid that has ended never comes back.

use std::collections::BTreeMap;
use std::net::IpAddr;

use limpet_api::Revision;
use limpet_api::book::Attachment;
use limpet_api::config::{Host, Network, Pool};
use limpet_api::host::{
    Ask, Block, Changes, Claimed, OwnChange, SharedChange, Snapshot, Stray, WatchEvent, WatchLine,
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
    pub(crate) networks: BTreeMap<NetworkName, Network>,
    pub(crate) pools: BTreeMap<PoolName, Pool>,
    pub(crate) hosts: BTreeMap<HostName, Host>,
    pub(crate) blocks: BTreeMap<(PoolName, Prefix), Block>,
    pub(crate) strays: BTreeMap<(NetworkName, IpAddr), HostName>,
    pub(crate) asks: BTreeMap<Uid, Ask>,
    attachments: BTreeMap<Key, Known>,
    /// Incarnations that ended after the watch's last revision, and when.
    ended: BTreeMap<Uid, Revision>,
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
    /// The store and revision to go on from; none before the first snapshot.
    pub(crate) fn position(&self) -> Option<(Token, Revision)> {
        self.store.map(|store| (store, self.revision))
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
                let before = if same { std::mem::take(self) } else { Self::default() };
                *self = Self { store: Some(store), revision, ..Self::default() };
                self.restart(*snapshot, before);
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
        if claimed.revision > self.revision {
            self.know(claimed.attachment.clone(), claimed.revision);
        }
        let uid = claimed.attachment.uid;
        self.attachment(&Key::of(&claimed.attachment)).is_some_and(|known| known.uid == uid)
    }

    /// Takes in that the controller does not know an incarnation: it has ended since it was heard of.
    pub(crate) fn unknown(&mut self, uid: Uid) {
        let mut known = self.attachments.values().filter(|known| known.attachment.uid == uid);
        if let Some(revision) = known.next().map(|known| known.revision) {
            self.ended(uid, revision);
        }
    }

    /// Takes in that an incarnation has ended, by the answer to its end.
    pub(crate) fn ended(&mut self, uid: Uid, revision: Revision) {
        self.attachments.retain(|_, known| known.attachment.uid != uid);
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
        let Snapshot { networks, pools, hosts, blocks, strays, attachments, asks, .. } = snapshot;
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
            .chain(asks.into_iter().map(OwnChange::AskSet));
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
                }
            }
            OwnChange::AskSet(ask) => {
                self.asks.insert(ask.attachment.uid, ask);
            }
            OwnChange::AskGone(uid) => {
                self.asks.remove(&uid);
            }
            OwnChange::ReportWanted(_) | OwnChange::ReportGone(_) => {}
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
mod tests {
    use super::*;
    use crate::fixture::{self, claimed};

    fn line(revision: Revision, event: WatchEvent) -> WatchLine {
        WatchLine { store: Token::from_bits(1), revision, event }
    }

    fn snapshot(attachments: Vec<Attachment>) -> WatchEvent {
        WatchEvent::Snapshot(Box::new(Snapshot { attachments, ..Snapshot::default() }))
    }

    fn own(change: OwnChange) -> WatchEvent {
        WatchEvent::Changes(Changes { own: vec![change], ..Changes::default() })
    }

    fn uids(view: &View) -> Vec<u128> {
        view.attachments().map(|(_, attachment)| attachment.uid.bits()).collect()
    }

    #[test]
    fn a_claim_answered_before_the_watch_tells_of_it_is_known_and_stays() {
        let mut view = View::default();
        view.apply(line(5, snapshot(vec![]))).unwrap();
        assert!(view.claimed(&claimed(fixture::attachment(1, 7), 9)));
        // A controller that is behind the one that answered sends its snapshot.
        view.apply(line(6, snapshot(vec![]))).unwrap();
        assert_eq!(uids(&view), [7]);
        view.apply(line(9, own(OwnChange::AttachmentSet(fixture::attachment(1, 7))))).unwrap();
        assert_eq!(uids(&view), [7]);
        view.apply(line(10, snapshot(vec![]))).unwrap();
        assert_eq!(uids(&view), [0_u128; 0]);
    }

    #[test]
    fn an_ended_incarnation_does_not_come_back_with_an_older_line() {
        let mut view = View::default();
        view.apply(line(5, snapshot(vec![]))).unwrap();
        assert!(view.claimed(&claimed(fixture::attachment(1, 7), 6)));
        view.ended(Token::from_bits(7), 8);
        view.apply(line(6, own(OwnChange::AttachmentSet(fixture::attachment(1, 7))))).unwrap();
        assert_eq!(uids(&view), [0_u128; 0]);
        view.apply(line(8, WatchEvent::Heartbeat {})).unwrap();
        assert!(view.ended.is_empty(), "what the watch is past need not be remembered");
    }

    #[test]
    fn the_end_of_an_old_incarnation_leaves_the_new_one() {
        let mut view = View::default();
        view.apply(line(5, snapshot(vec![fixture::attachment(1, 7)]))).unwrap();
        assert!(view.claimed(&claimed(fixture::attachment(1, 8), 7)));
        let key = Key::of(&fixture::attachment(1, 7));
        let gone = OwnChange::AttachmentGone {
            network: key.network,
            container: key.container,
            ifname: key.ifname,
            uid: Token::from_bits(7),
        };
        view.apply(line(6, own(gone))).unwrap();
        assert_eq!(uids(&view), [8]);
    }

    #[test]
    fn a_claim_that_the_watch_has_told_the_end_of_stands_no_more() {
        let mut view = View::default();
        view.apply(line(5, snapshot(vec![]))).unwrap();
        view.apply(line(6, own(OwnChange::AttachmentSet(fixture::attachment(1, 7))))).unwrap();
        assert!(view.claimed(&claimed(fixture::attachment(1, 7), 6)));
        view.apply(line(7, own(OwnChange::AttachmentSet(fixture::attachment(1, 8))))).unwrap();
        assert!(!view.claimed(&claimed(fixture::attachment(1, 7), 6)), "another has its place");
        view.apply(line(9, snapshot(vec![]))).unwrap();
        assert!(!view.claimed(&claimed(fixture::attachment(1, 8), 7)));
        assert!(!view.claimed(&claimed(fixture::attachment(2, 9), 9)));
        assert_eq!(uids(&view), [0_u128; 0]);
        view.ended(Token::from_bits(10), 11);
        assert!(!view.claimed(&claimed(fixture::attachment(1, 10), 10)), "its end was answered");
        assert_eq!(uids(&view), [0_u128; 0]);
    }

    #[test]
    fn what_the_controller_does_not_know_is_known_no_more_and_does_not_come_back() {
        let mut view = View::default();
        view.apply(line(5, snapshot(vec![fixture::attachment(1, 7)]))).unwrap();
        assert!(view.claimed(&claimed(fixture::attachment(2, 8), 7)));
        view.unknown(Token::from_bits(7));
        view.unknown(Token::from_bits(8));
        view.unknown(Token::from_bits(9));
        assert_eq!(uids(&view), [0_u128; 0]);
        view.apply(line(7, own(OwnChange::AttachmentSet(fixture::attachment(2, 8))))).unwrap();
        assert_eq!(uids(&view), [0_u128; 0]);
        assert!(view.ended.is_empty());
    }

    #[test]
    fn an_address_that_was_claimed_here_is_no_stray_elsewhere_however_late_the_watch_is() {
        let stray = |host: &str| Stray {
            network: "n1".parse().unwrap(),
            address: "10.32.0.1".parse().unwrap(),
            host: host.parse().unwrap(),
        };
        let set = |host| {
            let shared = vec![SharedChange::StraySet(stray(host))];
            WatchEvent::Changes(Changes { shared, ..Changes::default() })
        };
        let hosts = |view: &View| view.strays.values().map(ToString::to_string).collect::<Vec<_>>();
        let mut view = View::default();
        view.apply(line(5, set("node-b"))).unwrap_err();
        view.apply(line(5, snapshot(vec![]))).unwrap();
        view.apply(line(6, set("node-b"))).unwrap();
        assert_eq!(hosts(&view), ["node-b"]);
        assert!(view.claimed(&claimed(fixture::attachment(1, 7), 9)));
        assert_eq!(hosts(&view), [""; 0]);
        view.apply(line(7, set("node-c"))).unwrap();
        let strays = vec![stray("node-c")];
        let late = Box::new(Snapshot { strays, ..Snapshot::default() });
        view.apply(line(8, WatchEvent::Snapshot(late))).unwrap();
        assert_eq!(hosts(&view), [""; 0]);
        view.apply(line(9, set("node-a"))).unwrap();
        assert_eq!(hosts(&view), ["node-a"]);
        view.apply(line(10, set("node-b"))).unwrap();
        assert_eq!(hosts(&view), ["node-b"], "it has moved on");
    }

    #[test]
    fn a_watch_never_goes_back() {
        let mut view = View::default();
        view.apply(line(5, snapshot(vec![]))).unwrap();
        assert!(matches!(view.apply(line(4, snapshot(vec![]))), Err(ViewError::Behind { .. })));
        let repeated = own(OwnChange::AttachmentSet(fixture::attachment(1, 7)));
        assert_eq!(view.apply(line(5, repeated)), Ok(News::None));
        let other =
            WatchLine { store: Token::from_bits(2), revision: 9, event: WatchEvent::Heartbeat {} };
        assert!(matches!(view.apply(other), Err(ViewError::OtherStore { .. })));
        let restored =
            WatchLine { store: Token::from_bits(2), revision: 1, event: snapshot(vec![]) };
        assert_eq!(view.apply(restored), Ok(News::OfAll));
    }
}

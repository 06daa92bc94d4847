//! Pure: what hosts are told of a change: the part that all hear, and each host's own.
//!
//! What all hear is serialised once, however many hosts there are; a change that is no other
//! host's business costs them nothing.

pub(crate) mod feed;
#[cfg(test)]
mod replica;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use limpet_api::book::AttachmentKey;
use limpet_api::host::{OwnChange, SharedChange, Snapshot, Stray};
use limpet_net_types::{HostName, Token, Uid};
use serde::Serialize;

use crate::keys::Subject;
use crate::rules::reports::Question;
use crate::state::{Effects, State};
use crate::store::Revision;

/// What one revision changed, ready to be sent.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    revision: Revision,
    touched: Vec<Subject>,
    ended: Vec<(AttachmentKey, Uid)>,
    shared: Option<Bytes>,
    /// Not in words yet: most hosts hear it once, and some are not there.
    own: BTreeMap<HostName, Vec<OwnChange>>,
}

impl Told {
    /// Puts a revision into words; `state` is as it left it.
    pub(crate) fn of(state: &State, effects: Effects) -> Self {
        let mut shared = Vec::new();
        let mut own: BTreeMap<HostName, Vec<OwnChange>> = BTreeMap::new();
        for (key, uid) in &effects.ended {
            own.entry(key.host.clone()).or_default().push(gone(key, *uid));
        }
        for subject in &effects.touched {
            shared.extend(shared_change(state, subject));
            if let Some((host, change)) = own_change(state, subject) {
                own.entry(host.clone()).or_default().push(change);
            }
        }
        for ((network, address), host) in &effects.strays {
            let (network, address) = (network.clone(), *address);
            shared.push(match host {
                Some(host) => {
                    SharedChange::StraySet(Stray { network, address, host: host.clone() })
                }
                None => SharedChange::StrayGone { network, address },
            });
        }
        Self {
            revision: state.revision(),
            touched: effects.touched,
            ended: effects.ended,
            shared: (!shared.is_empty()).then(|| json(&shared)),
            own,
        }
    }

    /// About how many bytes it has, of which names are somebody else's.
    fn size(&self) -> usize {
        let own = self.own.values().map(Vec::len).sum::<usize>();
        self.shared.as_ref().map_or(0, Bytes::len)
            + own * size_of::<OwnChange>()
            + self.touched.len() * size_of::<Subject>()
            + self.ended.len() * size_of::<(AttachmentKey, Uid)>()
    }

    /// The revision.
    pub(crate) fn revision(&self) -> Revision {
        self.revision
    }

    /// The incarnations that ended.
    pub(crate) fn ended(&self) -> impl Iterator<Item = Uid> {
        self.ended.iter().map(|(_, uid)| *uid)
    }

    /// Whether revisions are another store's from here on: whoever watches begins anew.
    pub(crate) fn is_new_store(&self) -> bool {
        self.touched.contains(&Subject::StoreId)
    }

    /// The line for a host, if the revision is any business of its.
    fn line(&self, store: Token, host: &HostName) -> Option<Line> {
        let own = self.own.get(host);
        if self.shared.is_none() && own.is_none() {
            return None;
        }
        let own = own.map(|changes| own_part(changes));
        Some(Line::changes(store, self.revision, self.shared.as_ref(), own.as_ref()))
    }
}

/// A line of a watch, with its end, as the parts that it is sent in: what all hosts hear is one
/// piece of memory, however many of them have the line still to come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// The revision up to which a host knows everything after it.
    pub(crate) revision: Revision,
    /// Its beginning, what all hear, what one hears, its end; any may be empty.
    pub(crate) parts: [Bytes; 4],
}

impl Line {
    fn new(store: Token, revision: Revision, event: &str, [shared, own]: [Bytes; 2]) -> Self {
        let head = format!("{{\"store\":\"{store}\",\"revision\":{revision},{event}");
        let end = Bytes::from_static(b"}}\n");
        Self { revision, parts: [Bytes::from(head), shared, own, end] }
    }

    /// `own` is from [`own_part`].
    fn changes(
        store: Token,
        revision: Revision,
        shared: Option<&Bytes>,
        own: Option<&Bytes>,
    ) -> Self {
        let shared = shared.cloned().unwrap_or(Bytes::from_static(b"[]"));
        let own = own.cloned().unwrap_or(Bytes::from_static(b",\"own\":[]"));
        Self::new(store, revision, "\"changes\":{\"shared\":", [shared, own])
    }

    /// The line that says that there is nothing new up to a revision.
    pub(crate) fn heartbeat(store: Token, revision: Revision) -> Self {
        Self::new(store, revision, "\"heartbeat\":{", [Bytes::new(), Bytes::new()])
    }

    /// The line that says everything to a host; `shared` is from [`shared_snapshot`].
    fn snapshot(state: &State, host: &HostName, shared: &Bytes) -> Self {
        let attachments: Vec<_> = state.attachments_of(host).map(|entry| &entry.record).collect();
        let asks: Vec<_> = state.asks_of(host).map(|entry| &entry.record).collect();
        let reassert = state.restored().is_some_and(|it| it.record.waiting.contains(host));
        let own = joined(&[
            b",\"attachments\":",
            &json(&attachments),
            b",\"asks\":",
            &json(&asks),
            b",\"reports\":",
            &json(&state.reports_wanted(host)),
            b",\"reassert\":",
            &json(&reassert),
        ]);
        Self::new(state.store(), state.revision(), "\"snapshot\":{", [shared.clone(), own])
    }

    /// The line that says what has become of `touched`, for a host that knew all of it once.
    ///
    /// It may say of things that never were that they are gone; of its own attachments it says
    /// so of those in `ended` only.
    fn caught_up(
        state: &State,
        host: &HostName,
        touched: &BTreeSet<Subject>,
        ended: &[(AttachmentKey, Uid)],
    ) -> Self {
        let mut shared = Vec::new();
        let mut own: Vec<OwnChange> = ended
            .iter()
            .filter(|(key, _)| key.host == *host)
            .map(|(key, uid)| gone(key, *uid))
            .collect();
        let mut addresses = BTreeSet::new();
        for subject in touched {
            shared.extend(shared_change(state, subject));
            match subject {
                Subject::Address(network, address) => {
                    addresses.insert((network.clone(), *address));
                }
                Subject::Block(pool, prefix) => {
                    // A pool that is gone takes its blocks along, and had no address in use.
                    let Some(pool) = state.pool(pool) else { continue };
                    let network = &pool.record.network;
                    let held = state.held_between(network, prefix.range());
                    addresses.extend(held.map(|address| (network.clone(), address)));
                }
                _ => {}
            }
            let change = own_change(state, subject).filter(|(owner, _)| *owner == host);
            own.extend(change.map(|(_, change)| change));
        }
        for (network, address) in addresses {
            let stray = state.stray(&network, address).cloned();
            shared.push(match stray {
                Some(host) => SharedChange::StraySet(Stray { network, address, host }),
                None => SharedChange::StrayGone { network, address },
            });
        }
        Self::changes(state.store(), state.revision(), Some(&json(&shared)), Some(&own_part(&own)))
    }
}

/// Returns the part of a snapshot that all hosts are told alike: the members of its object.
fn shared_snapshot(state: &State) -> Bytes {
    let snapshot = Snapshot {
        networks: state.networks().map(|entry| entry.record.clone()).collect(),
        pools: state.pools().map(|entry| entry.record.clone()).collect(),
        hosts: state.hosts().map(|entry| entry.record.clone()).collect(),
        blocks: state.blocks().map(|entry| entry.record.clone()).collect(),
        strays: state
            .strays()
            .map(|((network, address), host)| Stray {
                network: network.clone(),
                address: *address,
                host: host.clone(),
            })
            .collect(),
        ..Snapshot::default()
    };
    let members = [
        ("networks", json(&snapshot.networks)),
        ("pools", json(&snapshot.pools)),
        ("hosts", json(&snapshot.hosts)),
        ("blocks", json(&snapshot.blocks)),
        ("strays", json(&snapshot.strays)),
    ];
    let members = members.map(|(name, value)| joined(&[b"\"", name.as_bytes(), b"\":", &value]));
    Bytes::from(members.join(&b','))
}

/// Returns the part of a line of changes that is one host's: a member of its object.
fn own_part(changes: &[OwnChange]) -> Bytes {
    joined(&[b",\"own\":", &json(changes)])
}

fn joined(parts: &[&[u8]]) -> Bytes {
    Bytes::from(parts.concat())
}

fn gone(key: &AttachmentKey, uid: Uid) -> OwnChange {
    let AttachmentKey { network, container, ifname, .. } = key.clone();
    OwnChange::AttachmentGone { network, container, ifname, uid }
}

/// What every host is told of a subject, strays left aside.
fn shared_change(state: &State, subject: &Subject) -> Option<SharedChange> {
    Some(match subject {
        Subject::Network(name) => match state.network(name) {
            Some(network) => SharedChange::NetworkSet(network.record.clone()),
            None => SharedChange::NetworkGone(name.clone()),
        },
        Subject::Pool(name) => match state.pool(name) {
            Some(pool) => SharedChange::PoolSet(pool.record.clone()),
            None => SharedChange::PoolGone(name.clone()),
        },
        Subject::Host(name) => match state.host(name) {
            Some(host) => SharedChange::HostSet(host.record.clone()),
            None => SharedChange::HostGone(name.clone()),
        },
        Subject::Block(pool, prefix) => {
            match state.block(pool, crate::state::bits(prefix.address())) {
                Some(block) => SharedChange::BlockSet(block.record.clone()),
                None => SharedChange::BlockGone { pool: pool.clone(), prefix: *prefix },
            }
        }
        _ => return None,
    })
}

/// What the host that a subject belongs to is told of it, ended attachments left aside.
fn own_change<'a>(state: &State, subject: &'a Subject) -> Option<(&'a HostName, OwnChange)> {
    match subject {
        Subject::Attachment(key) => {
            let attachment = state.attachment(key)?;
            Some((&key.host, OwnChange::AttachmentSet(attachment.record.clone())))
        }
        Subject::Report(host, id) => Some((
            host,
            match state.question(host, *id).map(|entry| &entry.record) {
                Some(Question { wanted, answer: None }) => OwnChange::ReportWanted(wanted.clone()),
                _ => OwnChange::ReportGone(*id),
            },
        )),
        Subject::Ask(host, uid) => Some((
            host,
            match state.ask(host, *uid) {
                Some(ask) => OwnChange::AskSet(ask.record.clone()),
                None => OwnChange::AskGone(*uid),
            },
        )),
        _ => None,
    }
}

fn json<T: Serialize + ?Sized>(value: &T) -> Bytes {
    let bytes = serde_json::to_vec(value)
        .unwrap_or_else(|error| unreachable!("the API's types have nothing JSON lacks: {error}"));
    Bytes::from(bytes)
}

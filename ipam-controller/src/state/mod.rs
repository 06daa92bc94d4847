//! Pure: everything that the store holds, in memory, with the indexes that decisions need.
//!
//! It is made from a snapshot of the store and kept by applying what each revision changed; it
//! never changes otherwise. What to change is decided elsewhere.

mod change;
mod index;
mod load;
mod look;
mod rows;
#[cfg(test)]
pub(crate) mod sample;
mod slots;
mod undo;
mod used;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use bytes::Bytes;
use limpet_api::book::{Attachment, AttachmentKey, Reservation};
use limpet_api::config::{Host, Network, Pool};
use limpet_api::host::{Ask, Block};
use limpet_api::quota::Quota;
use limpet_api::restore::{Restored, Restoring};
use limpet_api::{FleetTime, WallTime};
use limpet_net_types::{
    Family, HostName, Mac, Namespace, NetworkName, PoolName, Prefix, Token, Uid, WorkloadName,
    address_at, address_bits,
};
use serde::de::DeserializeOwned;

use crate::givable::Givable;
use crate::keys::{ReservationKey, Subject, UnknownKey};
use crate::records::{Alive, Heard, Silent};
use crate::rules::reports::Question;
use crate::runs::Runs;
use crate::store::{Key, Revision, Write};

use self::rows::Rows;
use self::slots::Slots;

pub(crate) use self::change::{Change, Record};
pub(crate) use self::load::Loader;
pub(crate) use self::rows::{Named, Place};
pub(crate) use self::undo::Undo;
pub(crate) use self::used::Use;
use self::used::Used;
use crate::tenures::{Tenures, Traits};

/// A record and the revision that wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry<T> {
    /// The record.
    pub(crate) record: T,
    /// The revision of the transaction that put it.
    pub(crate) revision: Revision,
}

/// A pool with what is derived from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PoolEntry {
    /// The pool.
    pub(crate) record: Pool,
    /// The revision of the transaction that put it.
    pub(crate) revision: Revision,
    /// What it can give out.
    pub(crate) givable: Givable,
    /// How its addresses are used.
    pub(crate) tally: Tally,
    /// Those of its addresses that are held or reserved.
    pub(crate) taken: Runs,
}

/// Addresses of a pool, counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Held by an attachment.
    pub(crate) held: u64,
    /// Reserved and not held.
    pub(crate) reserved: u64,
    /// Neither, but can be given out and were given up by somebody: how many at which time.
    pub(crate) released: BTreeMap<FleetTime, u64>,
    /// Held or reserved, and can be given out: an exclusion made later does not count.
    pub(crate) taken: u64,
}

/// A block with what is derived from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BlockEntry {
    /// The block.
    pub(crate) record: Block,
    /// The revision of the transaction that put it.
    pub(crate) revision: Revision,
    /// How many of its addresses can be given out and are held or reserved.
    pub(crate) taken: u64,
}

/// A value of the store that is not what its key says.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadRecord {
    /// The key is unknown.
    #[error(transparent)]
    Key(#[from] UnknownKey),
    /// The value is not of the key's kind.
    #[error(
        "the store has a record under {key} that this program cannot read: start the newer limpet-controller that wrote it, or restore the store from a backup"
    )]
    Value {
        /// The key.
        key: Key,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The store has no identity.
    #[error("the store has no record under {}: restore it from a backup", crate::keys::STORE_ID)]
    NoIdentity,
}

/// What a revision did besides what its keys say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Effects {
    /// What the keys that it changed are about.
    pub(crate) touched: Vec<Subject>,
    /// Addresses that are strays from now on, on this host, or are none any more.
    pub(crate) strays: BTreeMap<(NetworkName, IpAddr), Option<HostName>>,
    /// Attachments that ended.
    pub(crate) ended: Vec<(AttachmentKey, Uid)>,
}

impl Effects {
    /// Adds what another transaction of the same revision did after this one.
    pub(crate) fn merge(&mut self, later: Self) {
        self.touched.extend(later.touched);
        self.strays.extend(later.strays);
        self.ended.extend(later.ended);
    }
}

/// Everything, at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct State {
    revision: Revision,
    store: Token,
    clock: Option<Entry<FleetTime>>,
    config: Option<Revision>,
    restoring: Option<Entry<Restoring>>,
    restored: Option<Entry<Restored>>,
    mac_choices: BTreeMap<NetworkName, Revision>,
    networks: BTreeMap<NetworkName, Entry<Network>>,
    pools: BTreeMap<PoolName, PoolEntry>,
    blocks: BTreeMap<PoolName, BTreeMap<u128, BlockEntry>>,
    slots: BTreeMap<NetworkName, Slots>,
    reservations: Rows<Reservation>,
    attachments: Rows<Attachment>,
    hosts: BTreeMap<HostName, Entry<Host>>,
    sessions: BTreeMap<HostName, Entry<Alive>>,
    heard: BTreeMap<HostName, Entry<Heard>>,
    silent: BTreeMap<HostName, Entry<Silent>>,
    questions: BTreeMap<(HostName, Token), Entry<Question>>,
    asks: BTreeMap<(HostName, Uid), Entry<Ask>>,
    tenures: Tenures,
    quotas: BTreeMap<Namespace, Entry<Quota>>,
    wall: WallTime,
    /// The pools of a network by their first addresses; they have none in common.
    ranges: BTreeMap<NetworkName, BTreeMap<IpAddr, PoolName>>,
    /// The first addresses of the blocks that a host has in a pool.
    owned: BTreeMap<(PoolName, HostName), BTreeSet<u128>>,
    /// The address that a host was last given from its blocks of a pool.
    pointers: BTreeMap<(PoolName, HostName), u128>,
    strays: BTreeMap<(NetworkName, IpAddr), HostName>,
    used: Used,
    /// The attachments that have a MAC address, and the reservations that keep one, where that is
    /// not the one of their own IPv4 address, by which they are found.
    macs: HashMap<(NetworkName, Mac), AttachmentKey>,
    kept_macs: HashMap<(NetworkName, Mac), ReservationKey>,
    /// The hosts that have a VTEP's MAC address, an underlay address or one that they are reached at.
    vteps: HashMap<Mac, HostName>,
    places: HashMap<IpAddr, HostName>,
}

impl State {
    /// Applies what `revision` changed.
    ///
    /// # Errors
    ///
    /// [`BadRecord`] if a value is not of its key's kind; the state is then to be loaded anew.
    pub(crate) fn apply(
        &mut self,
        revision: Revision,
        changes: &BTreeMap<Key, Write>,
    ) -> Result<Effects, BadRecord> {
        let changes = changes.iter().map(|(key, write)| Change::read(key, write));
        let changes = changes.collect::<Result<Vec<_>, _>>()?;
        self.take(revision, changes)
    }

    /// Takes in what `revision` changes, in the order of the keys.
    ///
    /// # Errors
    ///
    /// As [`Self::apply`].
    pub(crate) fn take(
        &mut self,
        revision: Revision,
        changes: Vec<Change>,
    ) -> Result<Effects, BadRecord> {
        let mut effects = Effects::default();
        effects.touched.reserve(changes.len());
        for Change { subject, write, record } in changes {
            match (write, record) {
                (Write::Delete, _) => self.delete(&subject, &mut effects),
                (_, Some(record)) => self.put_decided(&subject, record, revision, &mut effects),
                (Write::Put(value) | Write::Ephemeral(value), None) => {
                    self.put(&subject, &value, revision, &mut effects)?;
                }
            }
            effects.touched.push(subject);
        }
        self.settle_strays(&mut effects);
        self.revision = revision;
        Ok(effects)
    }

    /// Puts a record that need not be read.
    fn put_decided(
        &mut self,
        subject: &Subject,
        record: Record,
        revision: Revision,
        effects: &mut Effects,
    ) {
        match record {
            Record::Slot(record) => {
                let Subject::Address(network, address) = subject else {
                    unreachable!("{subject:?} is no address")
                };
                self.put_slot(network, *address, Some(Entry { record, revision }), effects);
            }
            Record::Attachment(record) => self.put_attachment(Entry { record, revision }, effects),
            Record::Reservation(record) => self.put_reservation(Entry { record, revision }),
        }
    }

    /// Says what the wall clock of this controller says. It is no record, and the one thing here
    /// that the store does not know.
    pub(crate) fn set_wall(&mut self, wall: WallTime) {
        self.wall = wall;
    }

    fn put(
        &mut self,
        subject: &Subject,
        value: &Bytes,
        revision: Revision,
        effects: &mut Effects,
    ) -> Result<(), BadRecord> {
        let key = || subject.key();
        match subject {
            Subject::StoreId => self.store = parse(key, value)?,
            Subject::Clock => self.clock = Some(entry(key, value, revision)?),
            Subject::Config => self.config = Some(revision),
            Subject::Mark => {}
            Subject::Restoring => self.restoring = Some(entry(key, value, revision)?),
            Subject::Restored => self.restored = Some(entry(key, value, revision)?),
            Subject::Network(name) => {
                self.networks.insert(name.clone(), entry(key, value, revision)?);
            }
            Subject::Pool(_) => self.put_pool(parse(key, value)?, revision),
            Subject::Block(..) => self.put_block(parse(key, value)?, revision, effects),
            Subject::Address(network, address) => {
                let slot = entry(key, value, revision)?;
                self.put_slot(network, *address, Some(slot), effects);
            }
            Subject::Reservation(_) => {
                self.put_reservation(entry(key, value, revision)?);
            }
            Subject::Attachment(_) => {
                self.put_attachment(entry(key, value, revision)?, effects);
            }
            Subject::Host(name) => self.put_host(name, entry(key, value, revision)?),
            Subject::MacChoice(network) => {
                self.mac_choices.insert(network.clone(), revision);
            }
            Subject::Session(host) => {
                self.sessions.insert(host.clone(), entry(key, value, revision)?);
            }
            Subject::Heard(host) => {
                self.heard.insert(host.clone(), entry(key, value, revision)?);
            }
            Subject::Silent(host) => {
                self.silent.insert(host.clone(), entry(key, value, revision)?);
            }
            Subject::Report(host, id) => {
                self.questions.insert((host.clone(), *id), entry(key, value, revision)?);
            }
            Subject::Ask(host, uid) => {
                self.asks.insert((host.clone(), *uid), entry(key, value, revision)?);
            }
            Subject::Quota(namespace) => {
                self.quotas.insert(namespace.clone(), entry(key, value, revision)?);
            }
            Subject::Tenure(tenure) => {
                let traits: Traits<'_> = serde_json::from_slice(value)
                    .map_err(|source| BadRecord::Value { key: key(), source })?;
                self.tenures.insert(*tenure, &traits);
            }
        }
        Ok(())
    }

    fn delete(&mut self, subject: &Subject, effects: &mut Effects) {
        match subject {
            Subject::StoreId | Subject::Mark => {}
            Subject::Clock => self.clock = None,
            Subject::Config => self.config = None,
            Subject::Restoring => self.restoring = None,
            Subject::Restored => self.restored = None,
            Subject::Network(name) => drop(self.networks.remove(name)),
            Subject::Pool(name) => self.delete_pool(name),
            Subject::Block(pool, block) => self.delete_block(pool, *block, effects),
            Subject::Address(network, address) => self.put_slot(network, *address, None, effects),
            Subject::Reservation(name) => self.delete_reservation(name),
            Subject::Attachment(key) => self.delete_attachment(key, effects),
            Subject::Host(name) => self.delete_host(name),
            Subject::MacChoice(network) => drop(self.mac_choices.remove(network)),
            Subject::Session(host) => drop(self.sessions.remove(host)),
            Subject::Heard(host) => drop(self.heard.remove(host)),
            Subject::Silent(host) => drop(self.silent.remove(host)),
            Subject::Report(host, id) => drop(self.questions.remove(&(host.clone(), *id))),
            Subject::Ask(host, uid) => drop(self.asks.remove(&(host.clone(), *uid))),
            Subject::Quota(namespace) => drop(self.quotas.remove(namespace)),
            Subject::Tenure(tenure) => self.tenures.remove(*tenure),
        }
    }
}

/// The key of the reservation of a name.
pub(crate) fn reservation_key(
    network: &NetworkName,
    namespace: &Namespace,
    name: &WorkloadName,
) -> ReservationKey {
    ReservationKey { network: network.clone(), namespace: namespace.clone(), name: name.clone() }
}

/// The block of a pool in which an address lies, whether a host has it or not; `None` where it
/// would not be wholly inside the pool.
pub(crate) fn block_around(pool: &Pool, bits: u128) -> Option<Prefix> {
    let family = pool.family();
    let host_bits = u8::try_from(pool.block_size.trailing_zeros()).unwrap_or(u8::MAX);
    let length = family.bits().checked_sub(host_bits)?;
    let prefix = Prefix::containing(address_at(family, bits), length);
    pool.range.covers(prefix.range()).then_some(prefix)
}

/// Whether an address is of a family.
pub(crate) fn is_of(family: Family, address: IpAddr) -> bool {
    Family::of(address) == family
}

/// The number of an address, which orders those of one family.
pub(crate) fn bits(address: IpAddr) -> u128 {
    address_bits(address)
}

fn entry<T: DeserializeOwned>(
    key: impl FnOnce() -> Key,
    value: &Bytes,
    revision: Revision,
) -> Result<Entry<T>, BadRecord> {
    Ok(Entry { record: parse(key, value)?, revision })
}

/// Reads a value; its key is made only to say that it cannot be read.
fn parse<T: DeserializeOwned>(key: impl FnOnce() -> Key, value: &Bytes) -> Result<T, BadRecord> {
    serde_json::from_slice(value).map_err(|source| BadRecord::Value { key: key(), source })
}

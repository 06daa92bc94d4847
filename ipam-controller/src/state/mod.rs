//! Pure: everything that the store holds, in memory, with the indexes that decisions need.
//!
//! It is made from a snapshot of the store and kept by applying what each revision changed; it
//! never changes otherwise. What to change is decided elsewhere.

mod index;
#[cfg(test)]
pub(crate) mod sample;
mod undo;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use bytes::Bytes;
use limpet_api::FleetTime;
use limpet_api::book::{Attachment, AttachmentKey, Reservation};
use limpet_api::config::{Host, Network, Pool};
use limpet_api::host::{Ask, Block};
use limpet_net_types::{
    Family, HostName, Mac, Namespace, NetworkName, PoolName, Prefix, Range, Token, Uid,
    WorkloadName, address_at, address_bits,
};
use serde::de::DeserializeOwned;

use crate::givable::Givable;
use crate::keys::{ReservationKey, Subject, UnknownKey};
use crate::records::{Alive, Heard, Silent, Slot};
use crate::runs::Runs;
use crate::store::{Key, Revision, Snapshot, Write};

pub(crate) use self::undo::Undo;

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
    mac_choices: BTreeMap<NetworkName, Revision>,
    networks: BTreeMap<NetworkName, Entry<Network>>,
    pools: BTreeMap<PoolName, PoolEntry>,
    blocks: BTreeMap<PoolName, BTreeMap<u128, BlockEntry>>,
    slots: BTreeMap<NetworkName, BTreeMap<IpAddr, Entry<Slot>>>,
    reservations: BTreeMap<ReservationKey, Entry<Reservation>>,
    attachments: BTreeMap<AttachmentKey, Entry<Attachment>>,
    hosts: BTreeMap<HostName, Entry<Host>>,
    sessions: BTreeMap<HostName, Entry<Alive>>,
    heard: BTreeMap<HostName, Entry<Heard>>,
    silent: BTreeMap<HostName, Entry<Silent>>,
    asks: BTreeMap<(HostName, Uid), Entry<Ask>>,
    /// The pools of a network by their first addresses; they have none in common.
    ranges: BTreeMap<NetworkName, BTreeMap<IpAddr, PoolName>>,
    /// The first addresses of the blocks that a host has in a pool.
    owned: BTreeMap<(PoolName, HostName), BTreeSet<u128>>,
    /// The address that a host was last given from its blocks of a pool.
    pointers: BTreeMap<(PoolName, HostName), u128>,
    strays: BTreeMap<(NetworkName, IpAddr), HostName>,
    /// The attachments that have a MAC address, and the reservations that keep one.
    macs: HashMap<(NetworkName, Mac), AttachmentKey>,
    kept_macs: HashMap<(NetworkName, Mac), ReservationKey>,
    /// The hosts that have a VTEP's MAC address, an underlay address or one that they are reached at.
    vteps: HashMap<Mac, HostName>,
    places: HashMap<IpAddr, HostName>,
}

impl State {
    /// Makes the state from everything in the store.
    ///
    /// # Errors
    ///
    /// [`BadRecord`] names the key that this program cannot read.
    pub(crate) fn load(snapshot: &Snapshot) -> Result<Self, BadRecord> {
        let identity = snapshot.entries.get(crate::keys::STORE_ID).ok_or(BadRecord::NoIdentity)?;
        let mut state = Self {
            revision: snapshot.revision,
            store: parse(crate::keys::STORE_ID, &identity.value)?,
            clock: None,
            config: None,
            mac_choices: BTreeMap::new(),
            networks: BTreeMap::new(),
            pools: BTreeMap::new(),
            blocks: BTreeMap::new(),
            slots: BTreeMap::new(),
            reservations: BTreeMap::new(),
            attachments: BTreeMap::new(),
            hosts: BTreeMap::new(),
            sessions: BTreeMap::new(),
            heard: BTreeMap::new(),
            silent: BTreeMap::new(),
            asks: BTreeMap::new(),
            ranges: BTreeMap::new(),
            owned: BTreeMap::new(),
            pointers: BTreeMap::new(),
            strays: BTreeMap::new(),
            macs: HashMap::new(),
            kept_macs: HashMap::new(),
            vteps: HashMap::new(),
            places: HashMap::new(),
        };
        // Pools and blocks count their slots, so they come first.
        let (first, rest): (Vec<_>, Vec<_>) = snapshot
            .entries
            .iter()
            .partition(|(key, _)| key.starts_with("pools/") || key.starts_with("blocks/"));
        let (pools, blocks): (Vec<_>, Vec<_>) =
            first.into_iter().partition(|(key, _)| key.starts_with("pools/"));
        let mut effects = Effects::default();
        for (key, entry) in pools.into_iter().chain(blocks).chain(rest) {
            state.put(&Subject::parse(key)?, &entry.value, entry.revision, &mut effects)?;
        }
        state.settle_strays(&mut effects);
        // Reading has gone through the attachments in the order of their names, not of time.
        state.pointers.clear();
        Ok(state)
    }

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
        let mut effects = Effects::default();
        for (key, write) in changes {
            let subject = Subject::parse(key)?;
            match write {
                Write::Put(value) | Write::Ephemeral(value) => {
                    self.put(&subject, value, revision, &mut effects)?;
                }
                Write::Delete => self.delete(&subject, &mut effects),
            }
            effects.touched.push(subject);
        }
        self.settle_strays(&mut effects);
        self.revision = revision;
        Ok(effects)
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
            Subject::StoreId => self.store = parse(&key(), value)?,
            Subject::Clock => self.clock = Some(entry(&key(), value, revision)?),
            Subject::Config => self.config = Some(revision),
            Subject::Mark => {}
            Subject::Network(name) => {
                self.networks.insert(name.clone(), entry(&key(), value, revision)?);
            }
            Subject::Pool(_) => self.put_pool(parse(&key(), value)?, revision),
            Subject::Block(..) => self.put_block(parse(&key(), value)?, revision, effects),
            Subject::Address(network, address) => {
                let slot = entry(&key(), value, revision)?;
                self.put_slot(network, *address, Some(slot), effects);
            }
            Subject::Reservation(name) => {
                self.put_reservation(name, entry(&key(), value, revision)?);
            }
            Subject::Attachment(_) => {
                self.put_attachment(entry(&key(), value, revision)?, effects);
            }
            Subject::Host(name) => self.put_host(name, entry(&key(), value, revision)?),
            Subject::MacChoice(network) => {
                self.mac_choices.insert(network.clone(), revision);
            }
            Subject::Session(host) => {
                self.sessions.insert(host.clone(), entry(&key(), value, revision)?);
            }
            Subject::Heard(host) => {
                self.heard.insert(host.clone(), entry(&key(), value, revision)?);
            }
            Subject::Silent(host) => {
                self.silent.insert(host.clone(), entry(&key(), value, revision)?);
            }
            Subject::Ask(host, uid) => {
                self.asks.insert((host.clone(), *uid), entry(&key(), value, revision)?);
            }
        }
        Ok(())
    }

    fn delete(&mut self, subject: &Subject, effects: &mut Effects) {
        match subject {
            Subject::StoreId | Subject::Mark => {}
            Subject::Clock => self.clock = None,
            Subject::Config => self.config = None,
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
            Subject::Ask(host, uid) => drop(self.asks.remove(&(host.clone(), *uid))),
        }
    }

    /// The newest revision that is in it.
    pub(crate) fn revision(&self) -> Revision {
        self.revision
    }

    /// The identity of the store.
    pub(crate) fn store(&self) -> Token {
        self.store
    }

    /// Fleet time; nothing was written if it never moved.
    pub(crate) fn clock(&self) -> Option<&Entry<FleetTime>> {
        self.clock.as_ref()
    }

    /// Fleet time.
    pub(crate) fn now(&self) -> FleetTime {
        self.clock.as_ref().map_or(FleetTime(0), |clock| clock.record)
    }

    /// The revision of the last change of networks, pools or hosts.
    pub(crate) fn config(&self) -> Option<Revision> {
        self.config
    }

    /// The revision of the last choice of a MAC address in a network by a caller.
    pub(crate) fn mac_choice(&self, network: &NetworkName) -> Option<Revision> {
        self.mac_choices.get(network).copied()
    }

    /// All networks, by name.
    pub(crate) fn networks(&self) -> impl Iterator<Item = &Entry<Network>> {
        self.networks.values()
    }

    /// A network.
    pub(crate) fn network(&self, name: &NetworkName) -> Option<&Entry<Network>> {
        self.networks.get(name)
    }

    /// All pools, by name.
    pub(crate) fn pools(&self) -> impl Iterator<Item = &PoolEntry> {
        self.pools.values()
    }

    /// The pools of a network, in the order of their addresses.
    pub(crate) fn pools_of(&self, network: &NetworkName) -> impl Iterator<Item = &PoolEntry> {
        self.ranges
            .get(network)
            .into_iter()
            .flat_map(|ranges| ranges.values())
            .filter_map(|name| self.pools.get(name))
    }

    /// A pool.
    pub(crate) fn pool(&self, name: &PoolName) -> Option<&PoolEntry> {
        self.pools.get(name)
    }

    /// The pool of a network that has an address.
    pub(crate) fn pool_at(&self, network: &NetworkName, address: IpAddr) -> Option<&PoolEntry> {
        let (_, name) = self.ranges.get(network)?.range(..=address).next_back()?;
        self.pools.get(name).filter(|pool| pool.record.range.contains(address))
    }

    /// All blocks.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = &BlockEntry> {
        self.blocks.values().flat_map(BTreeMap::values)
    }

    /// The blocks of a pool that hosts have, by their first address.
    pub(crate) fn blocks_of(
        &self,
        pool: &PoolName,
    ) -> impl DoubleEndedIterator<Item = &BlockEntry> {
        self.blocks.get(pool).into_iter().flat_map(BTreeMap::values)
    }

    /// How many blocks of a pool hosts have.
    pub(crate) fn block_count(&self, pool: &PoolName) -> usize {
        self.blocks.get(pool).map_or(0, BTreeMap::len)
    }

    /// The block that starts at an address.
    pub(crate) fn block(&self, pool: &PoolName, first: u128) -> Option<&BlockEntry> {
        self.blocks.get(pool)?.get(&first)
    }

    /// The addresses of a network in a range which attachments hold.
    pub(crate) fn held_between<'a>(
        &'a self,
        network: &'a NetworkName,
        range: Range,
    ) -> impl Iterator<Item = IpAddr> + 'a {
        self.slots_between(network, range.first(), range.last())
            .filter(|(_, slot)| slot.record.attachment.is_some())
            .map(|(address, _)| address)
    }

    /// The first addresses of a host's blocks of a pool, in order.
    pub(crate) fn owned(&self, pool: &PoolName, host: &HostName) -> impl Iterator<Item = u128> {
        let key = (pool.clone(), host.clone());
        self.owned.get(&key).into_iter().flatten().copied()
    }

    /// The address that a host was last given from its blocks of a pool, since this state was
    /// loaded.
    pub(crate) fn pointer(&self, pool: &PoolName, host: &HostName) -> Option<u128> {
        self.pointers.get(&(pool.clone(), host.clone())).copied()
    }

    /// Who has an address.
    pub(crate) fn slot(&self, network: &NetworkName, address: IpAddr) -> Option<&Entry<Slot>> {
        self.slots.get(network)?.get(&address)
    }

    /// Who has which address of a pool, in order; addresses that nobody ever had are left out.
    pub(crate) fn slots_of<'a>(
        &'a self,
        pool: &'a Pool,
    ) -> impl Iterator<Item = (IpAddr, &'a Entry<Slot>)> {
        self.slots_between(&pool.network, pool.range.first(), pool.range.last())
    }

    fn slots_between(
        &self,
        network: &NetworkName,
        first: IpAddr,
        last: IpAddr,
    ) -> impl Iterator<Item = (IpAddr, &Entry<Slot>)> {
        self.slots
            .get(network)
            .into_iter()
            .flat_map(move |slots| slots.range(first..=last))
            .map(|(address, slot)| (*address, slot))
    }

    /// All reservations, by network, namespace and name.
    pub(crate) fn reservations(&self) -> impl Iterator<Item = &Entry<Reservation>> {
        self.reservations.values()
    }

    /// A reservation.
    pub(crate) fn reservation(&self, key: &ReservationKey) -> Option<&Entry<Reservation>> {
        self.reservations.get(key)
    }

    /// All attachments, by host, network, container and interface.
    pub(crate) fn attachments(&self) -> impl Iterator<Item = &Entry<Attachment>> {
        self.attachments.values()
    }

    /// The attachments of a host.
    pub(crate) fn attachments_of(
        &self,
        host: &HostName,
    ) -> impl Iterator<Item = &Entry<Attachment>> {
        index::with_host(&self.attachments, host)
    }

    /// An attachment.
    pub(crate) fn attachment(&self, key: &AttachmentKey) -> Option<&Entry<Attachment>> {
        self.attachments.get(key)
    }

    /// All hosts, by name.
    pub(crate) fn hosts(&self) -> impl Iterator<Item = &Entry<Host>> {
        self.hosts.values()
    }

    /// A host.
    pub(crate) fn host(&self, name: &HostName) -> Option<&Entry<Host>> {
        self.hosts.get(name)
    }

    /// The sessions of all hosts' agents.
    pub(crate) fn sessions(&self) -> impl Iterator<Item = (&HostName, &Entry<Alive>)> {
        self.sessions.iter()
    }

    /// The session of a host's agent.
    pub(crate) fn session(&self, host: &HostName) -> Option<&Entry<Alive>> {
        self.sessions.get(host)
    }

    /// Which controller hears a host's agent.
    pub(crate) fn heard(&self, host: &HostName) -> Option<&Entry<Heard>> {
        self.heard.get(host)
    }

    /// The hosts whose agents no controller hears.
    pub(crate) fn silences(&self) -> impl Iterator<Item = (&HostName, &Entry<Silent>)> {
        self.silent.iter()
    }

    /// Since when no controller hears a host's agent.
    pub(crate) fn silence(&self, host: &HostName) -> Option<&Entry<Silent>> {
        self.silent.get(host)
    }

    /// The questions to all hosts.
    pub(crate) fn asks(&self) -> impl Iterator<Item = (&(HostName, Uid), &Entry<Ask>)> {
        self.asks.iter()
    }

    /// The questions to a host.
    pub(crate) fn asks_of(&self, host: &HostName) -> impl Iterator<Item = &Entry<Ask>> {
        let first = (host.clone(), Token::from_bits(0));
        let last = (host.clone(), Token::from_bits(u128::MAX));
        self.asks.range(first..=last).map(|(_, ask)| ask)
    }

    /// The question to a host about one incarnation of an attachment.
    pub(crate) fn ask(&self, host: &HostName, uid: Uid) -> Option<&Entry<Ask>> {
        self.asks.get(&(host.clone(), uid))
    }

    /// Addresses that are on another host than their block's, with that host.
    pub(crate) fn strays(&self) -> impl Iterator<Item = (&(NetworkName, IpAddr), &HostName)> {
        self.strays.iter()
    }

    /// The host that a stray is on.
    pub(crate) fn stray(&self, network: &NetworkName, address: IpAddr) -> Option<&HostName> {
        self.strays.get(&(network.clone(), address))
    }

    /// The attachment whose interface has a MAC address in a network.
    pub(crate) fn mac_holder(&self, network: &NetworkName, mac: Mac) -> Option<&Entry<Attachment>> {
        self.attachments.get(self.macs.get(&(network.clone(), mac))?)
    }

    /// The reservation that keeps a MAC address of a network.
    pub(crate) fn mac_keeper(&self, network: &NetworkName, mac: Mac) -> Option<&ReservationKey> {
        self.kept_macs.get(&(network.clone(), mac))
    }

    /// The host whose VTEPs have a MAC address.
    pub(crate) fn vtep_holder(&self, mac: Mac) -> Option<&HostName> {
        self.vteps.get(&mac)
    }

    /// The host that an address belongs to, in the underlay or as one that it is reached at.
    pub(crate) fn host_at(&self, address: IpAddr) -> Option<&HostName> {
        self.places.get(&address)
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
    key: &str,
    value: &Bytes,
    revision: Revision,
) -> Result<Entry<T>, BadRecord> {
    Ok(Entry { record: parse(key, value)?, revision })
}

fn parse<T: DeserializeOwned>(key: &str, value: &Bytes) -> Result<T, BadRecord> {
    serde_json::from_slice(value).map_err(|source| BadRecord::Value { key: key.to_owned(), source })
}

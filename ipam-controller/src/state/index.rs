//! Pure: how the indexes of the state follow its records.

use std::collections::BTreeMap;
use std::net::IpAddr;

use limpet_api::book::{Attachment, AttachmentKey, Held, Reservation};
use limpet_api::config::{Host, Pool};
use limpet_api::host::Block;
use limpet_net_types::{HostName, Mac, NetworkName, PoolName, Prefix};

use super::{
    BlockEntry, Effects, Entry, PoolEntry, State, Tally, bits, block_around, reservation_key,
};
use crate::givable::Givable;
use crate::keys::ReservationKey;
use crate::records::{Slot, v4_of_mac};
use crate::runs::Runs;
use crate::store::Revision;

/// Whether a MAC address is the one of an own IPv4 address, by which it is found without an index.
fn is_found_by_address(mac: Mac, addresses: &[Held]) -> bool {
    v4_of_mac(mac).is_some_and(|v4| addresses.iter().any(|held| held.address == v4))
}

impl State {
    pub(super) fn put_pool(&mut self, pool: Pool, revision: Revision) {
        self.delete_pool(&pool.name);
        let givable = Givable::of(&pool);
        let (mut tally, mut taken) = (Tally::default(), Runs::default());
        for (address, slot) in self.slots_of(&pool) {
            count(&mut tally, &slot.record, givable.allows(bits(address)), 1);
            if slot.record.is_taken() {
                taken.insert(bits(address));
            }
        }
        self.ranges
            .entry(pool.network.clone())
            .or_default()
            .insert(pool.range.first(), pool.name.clone());
        let name = pool.name.clone();
        self.pools
            .insert(name.clone(), PoolEntry { record: pool, revision, givable, tally, taken });
        // What can be given out has changed, and so has what counts as taken in each block.
        let blocks: Vec<Block> = self.blocks_of(&name).map(|block| block.record.clone()).collect();
        for block in blocks {
            let taken = self.taken_in(&block);
            let entry = self
                .blocks
                .get_mut(&name)
                .and_then(|blocks| blocks.get_mut(&bits(block.prefix.address())));
            if let Some(entry) = entry {
                entry.taken = taken;
            }
        }
    }

    pub(super) fn delete_pool(&mut self, name: &PoolName) {
        let Some(pool) = self.pools.remove(name) else { return };
        if let Some(ranges) = self.ranges.get_mut(&pool.record.network) {
            ranges.remove(&pool.record.range.first());
            if ranges.is_empty() {
                self.ranges.remove(&pool.record.network);
            }
        }
    }

    pub(super) fn put_block(&mut self, block: Block, revision: Revision, effects: &mut Effects) {
        let first = bits(block.prefix.address());
        self.delete_block(&block.pool, block.prefix, effects);
        self.note_strays(&block, effects);
        self.owned.entry((block.pool.clone(), block.host.clone())).or_default().insert(first);
        let taken = self.taken_in(&block);
        self.blocks
            .entry(block.pool.clone())
            .or_default()
            .insert(first, BlockEntry { record: block, revision, taken });
    }

    pub(super) fn delete_block(&mut self, pool: &PoolName, prefix: Prefix, effects: &mut Effects) {
        let first = bits(prefix.address());
        let Some(blocks) = self.blocks.get_mut(pool) else { return };
        let Some(block) = blocks.remove(&first) else { return };
        if blocks.is_empty() {
            self.blocks.remove(pool);
        }
        let owner = (pool.clone(), block.record.host.clone());
        if let Some(owned) = self.owned.get_mut(&owner) {
            owned.remove(&first);
            if owned.is_empty() {
                self.owned.remove(&owner);
                self.pointers.remove(&owner);
            }
        }
        self.note_strays(&block.record, effects);
    }

    fn taken_in(&self, block: &Block) -> u64 {
        let Some(pool) = self.pools.get(&block.pool) else { return 0 };
        let range = block.prefix.range();
        let taken = self
            .slots_between(&block.network, range.first(), range.last())
            .filter(|(address, slot)| slot.record.is_taken() && pool.givable.allows(bits(*address)))
            .count();
        u64::try_from(taken).unwrap_or(u64::MAX)
    }

    pub(super) fn put_slot(
        &mut self,
        network: &NetworkName,
        address: IpAddr,
        slot: Option<Entry<Slot>>,
        effects: &mut Effects,
    ) {
        let slots = self.slots.entry(network.clone()).or_default();
        let after = slot.as_ref().map(|slot| slot.record.clone());
        let before = match slot {
            Some(slot) => slots.insert(address, slot),
            None => slots.remove(address),
        };
        if slots.is_empty() {
            self.slots.remove(network);
        }
        self.count_slot(network, address, before.as_ref().map(|slot| &slot.record), -1);
        self.count_slot(network, address, after.as_ref(), 1);
        effects.strays.insert((network.clone(), address), None);
    }

    fn count_slot(&mut self, network: &NetworkName, address: IpAddr, slot: Option<&Slot>, by: i64) {
        let Some(slot) = slot else { return };
        let Some(name) = self.pool_at(network, address).map(|pool| pool.record.name.clone()) else {
            return;
        };
        let Some(pool) = self.pools.get_mut(&name) else { return };
        let givable = pool.givable.allows(bits(address));
        count(&mut pool.tally, slot, givable, by);
        match slot.is_taken() {
            true if by > 0 => pool.taken.insert(bits(address)),
            true => pool.taken.remove(bits(address)),
            false => {}
        }
        if !(givable && slot.is_taken()) {
            return;
        }
        let Some(block) = block_around(&pool.record, bits(address)) else { return };
        let blocks = self.blocks.get_mut(&name);
        if let Some(block) = blocks.and_then(|blocks| blocks.get_mut(&bits(block.address()))) {
            block.taken = block.taken.saturating_add_signed(by);
        }
    }

    pub(super) fn put_attachment(&mut self, attachment: Entry<Attachment>, effects: &mut Effects) {
        let Attachment { key, uid, addresses, .. } = &attachment.record;
        for held in addresses {
            let Some(pool) = self.pools.get(&held.pool) else { continue };
            let Some(block) = block_around(&pool.record, bits(held.address)) else { continue };
            let owner = (held.pool.clone(), key.host.clone());
            let first = bits(block.address());
            if self.owned.get(&owner).is_some_and(|owned| owned.contains(&first)) {
                self.pointers.insert(owner, bits(held.address));
            }
        }
        let (key, uid) = (key.clone(), *uid);
        if let Some(old) = self.forget_attachment(&key).filter(|old| old.uid != uid) {
            effects.ended.push((key, old.uid));
        }
        self.index_attachment(&attachment.record);
        self.attachments.put(attachment);
    }

    /// Takes an attachment into the indexes, which is not there yet.
    pub(super) fn index_attachment(&mut self, attachment: &Attachment) {
        let Attachment { key, mac, addresses, .. } = attachment;
        if !is_found_by_address(*mac, addresses) {
            self.macs.insert((key.network.clone(), *mac), key.clone());
        }
        self.used.count_attachment(attachment, 1);
    }

    pub(super) fn delete_attachment(&mut self, key: &AttachmentKey, effects: &mut Effects) {
        let Some(ended) = self.forget_attachment(key) else { return };
        effects.ended.push((key.clone(), ended.uid));
    }

    fn forget_attachment(&mut self, key: &AttachmentKey) -> Option<Attachment> {
        let Entry { record, .. } = self.attachments.take(key)?;
        self.used.count_attachment(&record, -1);
        let mac = (key.network.clone(), record.mac);
        if self.macs.get(&mac) == Some(key) {
            self.macs.remove(&mac);
        }
        Some(record)
    }

    pub(super) fn put_reservation(&mut self, entry: Entry<Reservation>) {
        let Reservation { network, namespace, name, .. } = &entry.record;
        self.delete_reservation(&reservation_key(network, namespace, name));
        self.index_reservation(&entry.record);
        self.reservations.put(entry);
    }

    /// Takes a reservation into the indexes, which is not there yet.
    pub(super) fn index_reservation(&mut self, reservation: &Reservation) {
        let Reservation { network, namespace, name, mac, addresses, .. } = reservation;
        if !is_found_by_address(*mac, addresses) {
            let key = reservation_key(network, namespace, name);
            self.kept_macs.insert((network.clone(), *mac), key);
        }
        self.used.count_reservation(reservation, 1);
    }

    pub(super) fn delete_reservation(&mut self, key: &ReservationKey) {
        let Some(gone) = self.reservations.take(key) else { return };
        self.used.count_reservation(&gone.record, -1);
        let mac = (key.network.clone(), gone.record.mac);
        if self.kept_macs.get(&mac) == Some(key) {
            self.kept_macs.remove(&mac);
        }
    }

    pub(super) fn put_host(&mut self, name: &HostName, entry: Entry<Host>) {
        self.delete_host(name);
        self.vteps.insert(entry.record.vtep_mac, name.clone());
        for address in entry.record.addresses.iter().chain(&entry.record.underlay) {
            self.places.insert(*address, name.clone());
        }
        self.hosts.insert(name.clone(), entry);
    }

    pub(super) fn delete_host(&mut self, name: &HostName) {
        let Some(Entry { record: gone, .. }) = self.hosts.remove(name) else { return };
        if self.vteps.get(&gone.vtep_mac) == Some(name) {
            self.vteps.remove(&gone.vtep_mac);
        }
        for address in gone.addresses.iter().chain(&gone.underlay) {
            if self.places.get(address) == Some(name) {
                self.places.remove(address);
            }
        }
    }

    /// Notes every held address of a block as one that may have become a stray, or none.
    fn note_strays(&self, block: &Block, effects: &mut Effects) {
        for address in self.held_between(&block.network, block.prefix.range()) {
            effects.strays.insert((block.network.clone(), address), None);
        }
    }

    /// Finds out what became of the addresses that were noted, and keeps those that changed.
    pub(super) fn settle_strays(&mut self, effects: &mut Effects) {
        let noted = std::mem::take(&mut effects.strays);
        for (key, _) in noted {
            let host = self.strays_on(&key.0, key.1);
            let before = match &host {
                Some(host) => self.strays.insert(key.clone(), host.clone()),
                None => self.strays.remove(&key),
            };
            if before != host {
                effects.strays.insert(key, host);
            }
        }
    }

    /// Finds all strays, of which none is known yet.
    pub(super) fn find_strays(&mut self) {
        let mut strays = BTreeMap::new();
        for (network, slots) in &self.slots {
            for (address, slot) in slots.iter() {
                if let Some(host) = self.astray(network, address, &slot.record) {
                    strays.insert((network.clone(), address), host);
                }
            }
        }
        self.strays = strays;
    }

    fn strays_on(&self, network: &NetworkName, address: IpAddr) -> Option<HostName> {
        self.astray(network, address, &self.slot(network, address)?.record)
    }

    /// The host that an address is on, if that is not the host of its block.
    fn astray(&self, network: &NetworkName, address: IpAddr, slot: &Slot) -> Option<HostName> {
        let host = &slot.attachment.as_ref()?.key.host;
        let pool = self.pool_at(network, address)?;
        let block = block_around(&pool.record, bits(address));
        let owner = block
            .and_then(|block| self.block(&pool.record.name, bits(block.address())))
            .map(|block| &block.record.host);
        (owner != Some(host)).then(|| host.clone())
    }
}

fn count(tally: &mut Tally, slot: &Slot, givable: bool, by: i64) {
    let add = |counter: &mut u64| *counter = counter.saturating_add_signed(by);
    if slot.attachment.is_some() {
        add(&mut tally.held);
    } else if slot.reservation.is_some() {
        add(&mut tally.reserved);
    } else if let Some(released) = slot.released.filter(|_| givable) {
        let then = tally.released.entry(released).or_default();
        add(then);
        if *then == 0 {
            tally.released.remove(&released);
        }
    }
    if givable && slot.is_taken() {
        add(&mut tally.taken);
    }
}

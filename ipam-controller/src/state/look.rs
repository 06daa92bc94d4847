//! Pure: what can be looked up in the state.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::Bound;

use limpet_api::book::{Attachment, AttachmentKey, Reservation};
use limpet_api::config::{Host, Network, Pool};
use limpet_api::host::{Ask, ReportWanted};
use limpet_api::quota::Quota;
use limpet_api::restore::{Restored, Restoring};
use limpet_api::{FleetTime, WallTime};
use limpet_net_types::{HostName, Mac, Namespace, NetworkName, PoolName, Range, Token, Uid};

use super::rows::Named;
use super::{BlockEntry, Entry, PoolEntry, State, Use, reservation_key};
use crate::keys::ReservationKey;
use crate::records::{Alive, Heard, Owner, Silent, Slot, v4_of_mac};
use crate::rules::reports::Question;
use crate::store::Revision;
use crate::tenures::Tenures;

impl State {
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

    /// What the wall clock of this controller says: to be written down for people, and for no
    /// decision to depend on.
    pub(crate) fn wall(&self) -> WallTime {
        self.wall
    }

    /// Which records of history there are.
    pub(crate) fn tenures(&self) -> &Tenures {
        &self.tenures
    }

    /// The revision of the last change of networks, pools or hosts.
    pub(crate) fn config(&self) -> Option<Revision> {
        self.config
    }

    /// The restore that is under way.
    pub(crate) fn restoring(&self) -> Option<&Entry<Restoring>> {
        self.restoring.as_ref()
    }

    /// The last restore of this store, and the hosts that are waited for.
    pub(crate) fn restored(&self) -> Option<&Entry<Restored>> {
        self.restored.as_ref()
    }

    /// The revision of the last choice of a MAC address in a network by a caller.
    pub(crate) fn mac_choice(&self, network: &NetworkName) -> Option<Revision> {
        self.mac_choices.get(network).copied()
    }

    /// All quotas, by namespace.
    pub(crate) fn quotas(&self) -> impl Iterator<Item = &Entry<Quota>> {
        self.quotas.values()
    }

    /// The quota of a namespace.
    pub(crate) fn quota(&self, namespace: &Namespace) -> Option<&Entry<Quota>> {
        self.quotas.get(namespace)
    }

    /// How many addresses a namespace has in all networks together.
    pub(crate) fn used(&self, namespace: &Namespace) -> Use {
        self.used.of(namespace)
    }

    /// How many addresses of a pool each namespace has. Looks at every namespace.
    pub(crate) fn used_of<'a>(
        &'a self,
        pool: &'a PoolName,
    ) -> impl Iterator<Item = (&'a Namespace, Use)> {
        self.used.in_pool(pool)
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

    /// The first addresses of a host's blocks of a pool from an address on, in order.
    pub(crate) fn owned(
        &self,
        pool: &PoolName,
        host: &HostName,
        from: u128,
    ) -> impl Iterator<Item = u128> {
        let key = (pool.clone(), host.clone());
        self.owned.get(&key).into_iter().flat_map(move |owned| owned.range(from..)).copied()
    }

    /// The address that a host was last given from its blocks of a pool, since this state was
    /// loaded.
    pub(crate) fn pointer(&self, pool: &PoolName, host: &HostName) -> Option<u128> {
        self.pointers.get(&(pool.clone(), host.clone())).copied()
    }

    /// Who has an address.
    pub(crate) fn slot(&self, network: &NetworkName, address: IpAddr) -> Option<&Entry<Slot>> {
        self.slots.get(network)?.get(address)
    }

    /// Who has which address of a pool, in order; addresses that nobody ever had are left out.
    pub(crate) fn slots_of<'a>(
        &'a self,
        pool: &'a Pool,
    ) -> impl Iterator<Item = (IpAddr, &'a Entry<Slot>)> {
        self.slots_between(&pool.network, pool.range.first(), pool.range.last())
    }

    /// The same between two addresses of a network, both included.
    pub(crate) fn slots_between(
        &self,
        network: &NetworkName,
        first: IpAddr,
        last: IpAddr,
    ) -> impl Iterator<Item = (IpAddr, &Entry<Slot>)> {
        self.slots.get(network).into_iter().flat_map(move |slots| slots.between(first, last))
    }

    /// Who has which address of every network; addresses that nobody ever had are left out.
    pub(crate) fn slots(&self) -> impl Iterator<Item = (&NetworkName, IpAddr, &Entry<Slot>)> {
        self.slots.iter().flat_map(|(network, slots)| {
            slots.iter().map(move |(address, slot)| (network, address, slot))
        })
    }

    /// All reservations, by network, namespace and name.
    pub(crate) fn reservations(&self) -> impl Iterator<Item = &Entry<Reservation>> {
        self.reservations.from(Bound::Unbounded)
    }

    /// The reservations from a key on.
    pub(crate) fn reservations_from<'a>(
        &'a self,
        start: Bound<&(dyn Named + 'static)>,
    ) -> impl Iterator<Item = &'a Entry<Reservation>> + use<'a> {
        self.reservations.from(start)
    }

    /// A reservation.
    pub(crate) fn reservation(&self, key: &ReservationKey) -> Option<&Entry<Reservation>> {
        self.reservations.get(key)
    }

    /// All attachments, by host, network, container and interface.
    pub(crate) fn attachments(&self) -> impl Iterator<Item = &Entry<Attachment>> {
        self.attachments.from(Bound::Unbounded)
    }

    /// The attachments from a key on.
    pub(crate) fn attachments_from<'a>(
        &'a self,
        start: Bound<&AttachmentKey>,
    ) -> impl Iterator<Item = &'a Entry<Attachment>> + use<'a> {
        self.attachments.from(start)
    }

    /// The attachments of a host: the host is the first part of their order.
    pub(crate) fn attachments_of(
        &self,
        host: &HostName,
    ) -> impl Iterator<Item = &Entry<Attachment>> {
        // The smallest names that there can be stand before all others of the host.
        let first = "0".parse().ok().zip("0".parse().ok()).zip("!".parse().ok());
        let host = host.clone();
        let start = first.map(|((network, container), ifname)| AttachmentKey {
            host: host.clone(),
            network,
            container,
            ifname,
        });
        self.attachments
            .from(start.as_ref().map_or(Bound::Unbounded, Bound::Included))
            .take_while(move |entry| entry.record.key.host == host)
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

    /// The questions to hosts about their kernels.
    pub(crate) fn questions(&self) -> impl Iterator<Item = (&(HostName, Token), &Entry<Question>)> {
        self.questions.iter()
    }

    /// A question to a host about its kernel.
    pub(crate) fn question(&self, host: &HostName, id: Token) -> Option<&Entry<Question>> {
        self.questions.get(&(host.clone(), id))
    }

    /// The questions to a host about its kernel that it has not answered.
    pub(crate) fn reports_wanted(&self, host: &HostName) -> Vec<ReportWanted> {
        let first = (host.clone(), Token::from_bits(0));
        let last = (host.clone(), Token::from_bits(u128::MAX));
        let open = self.questions.range(first..=last).map(|(_, entry)| &entry.record);
        let open = open.filter(|question| question.answer.is_none());
        open.map(|question| question.wanted.clone()).collect()
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
        let by_address = || {
            let slot = self.slot(network, v4_of_mac(mac)?.into())?;
            let found = self.attachment(&slot.record.attachment.as_ref()?.key)?;
            (found.record.mac == mac).then_some(found)
        };
        by_address().or_else(|| self.attachments.get(self.macs.get(&(network.clone(), mac))?))
    }

    /// What the reservation is kept for that keeps a MAC address of a network.
    pub(crate) fn mac_keeper(&self, network: &NetworkName, mac: Mac) -> Option<ReservationKey> {
        let by_address = || {
            let slot = self.slot(network, v4_of_mac(mac)?.into())?;
            let Owner { namespace, name } = slot.record.reservation.as_ref()?;
            let key = reservation_key(network, namespace, name);
            let found = self.reservation(&key)?;
            (found.record.mac == mac).then_some(key)
        };
        by_address().or_else(|| self.kept_macs.get(&(network.clone(), mac)).cloned())
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

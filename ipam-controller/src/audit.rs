//! Pure: whether the store agrees with itself, and what would repair it where it does not.
//!
//! limpet's own transactions leave nothing of this behind. It is for stores that a defect, a disk or
//! a hand has changed. A repair compares all that it looks at, and an attachment always wins: no
//! address that one has is freed.

use std::collections::BTreeMap;
use std::net::IpAddr;

use limpet_api::book::{Attachment, AttachmentKey, AttachmentRef, Reservation};
use limpet_api::check::StoreFinding;
use limpet_net_types::{HostName, Mac, NetworkName, PoolName, Prefix};

use crate::draft::{Decision, Draft};
use crate::keys::{ReservationKey, Subject};
use crate::records::{Owner, Slot};
use crate::state::{Entry, State, bits, block_around, reservation_key};

/// Something in which the store does not agree with itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Of which kind.
    pub(crate) kind: StoreFinding,
    /// The key that it is about.
    pub(crate) subject: Subject,
    /// What is wrong.
    pub(crate) what: String,
    /// What would repair it.
    pub(crate) repair: String,
    /// The repair that is safe to do without looking.
    pub(crate) mend: Option<Mend>,
}

/// A repair, decided anew when it is carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Mend {
    /// Make an address say who has it: what it says, as far as that is so, else these.
    Slot(NetworkName, IpAddr, Option<AttachmentKey>, Option<ReservationKey>),
    /// Make an attachment say whether a reservation keeps its addresses.
    Sticky(AttachmentKey),
    /// Make a reservation say whether it is attached.
    Detached(ReservationKey),
    /// Give a block back.
    Block(PoolName, Prefix),
    /// Forget that a host is silent that has no session.
    Silent(HostName),
}

impl Found {
    /// Whether an address has two, which no restore may bring back.
    pub(crate) fn is_fatal(&self) -> bool {
        self.kind == StoreFinding::AddressHeldTwice
    }
}

/// Returns everything in which the store does not agree with itself.
pub(crate) fn find(state: &State) -> Vec<Found> {
    let mut found = Vec::new();
    let mut macs = BTreeMap::new();
    for entry in state.attachments() {
        attachment(state, &entry.record, &mut found);
        mac_of(&entry.record, &mut macs, &mut found);
    }
    for (network, address, slot) in state.slots() {
        slot_of(state, network, address, &slot.record, &mut found);
    }
    for entry in state.reservations() {
        reservation(state, &entry.record, &mut found);
    }
    for block in state.blocks() {
        let (pool, prefix) = (&block.record.pool, block.record.prefix);
        let entry = state.pool(pool);
        let fits = entry.and_then(|pool| block_around(&pool.record, bits(prefix.address())));
        let host = &block.record.host;
        if fits == Some(prefix) && state.host(host).is_some() {
            continue;
        }
        let what = format!("block {prefix} of pool {pool} on host {host} is of no pool or no host");
        let mend = Mend::Block(pool.clone(), prefix);
        let subject = Subject::Block(pool.clone(), prefix);
        found.push(Found {
            kind: StoreFinding::BlockWithoutOwner,
            subject,
            what,
            repair: "give the block back; its addresses stay whose they are".to_owned(),
            mend: Some(mend),
        });
    }
    for (host, _) in state.silences().filter(|(host, _)| state.session(host).is_none()) {
        found.push(Found {
            kind: StoreFinding::SilentWithoutSession,
            subject: Subject::Silent(host.clone()),
            what: format!("host {host} counts as silent and has no session"),
            repair: "forget it".to_owned(),
            mend: Some(Mend::Silent(host.clone())),
        });
    }
    counters(state, &mut found);
    found
}

fn has(attachment: &Attachment, address: IpAddr) -> bool {
    attachment.addresses.iter().any(|held| held.address == address)
}

/// The attachment that a slot names, if it is there and says the same.
fn living<'a>(
    state: &'a State,
    holder: &AttachmentRef,
    address: IpAddr,
) -> Option<&'a Entry<Attachment>> {
    let entry = state.attachment(&holder.key)?;
    (entry.record.uid == holder.uid && has(&entry.record, address)).then_some(entry)
}

fn owner_of(reservation: &Reservation) -> Owner {
    Owner { namespace: reservation.namespace.clone(), name: reservation.name.clone() }
}

/// The reservation that a slot names, if it is there and says the same.
fn keeping<'a>(
    state: &'a State,
    network: &NetworkName,
    owner: &Owner,
    address: IpAddr,
) -> Option<&'a Entry<Reservation>> {
    let entry = state.reservation(&reservation_key(network, &owner.namespace, &owner.name))?;
    entry.record.addresses.iter().any(|held| held.address == address).then_some(entry)
}

fn attachment(state: &State, attachment: &Attachment, found: &mut Vec<Found>) {
    let Attachment { key, uid, namespace, name, .. } = attachment;
    let AttachmentKey { host, network, container, .. } = key;
    let subject = Subject::Attachment(key.clone());
    let who = format!("container {container} on host {host}");
    let mut tell = |kind, what, repair: &str, mend| {
        let repair = repair.to_owned();
        found.push(Found { kind, subject: subject.clone(), what, repair, mend });
    };
    if state.host(host).is_none() {
        let what = format!("{who} is attached, and there is no such host");
        let repair = "if the host is gone for good: limpetctl attachment release --force";
        tell(StoreFinding::AttachmentWithoutHost, what, repair, None);
    }
    let (at, of) = (state.host(host), state.network(network));
    if at.zip(of).is_some_and(|(host, network)| !host.record.is_member_of(&network.record)) {
        let what =
            format!("{who} is attached to network {network}, and host {host} is no member of it");
        let repair = "make it one: limpetctl host set --networks; or stop the container";
        tell(StoreFinding::AttachmentOfNonMember, what, repair, None);
    }
    for held in &attachment.addresses {
        let address = held.address;
        let slot = state.slot(network, address).map(|entry| &entry.record);
        let holder = slot.and_then(|slot| slot.attachment.as_ref());
        let is_this = |holder: &AttachmentRef| holder.key == *key && holder.uid == *uid;
        if !holder.is_some_and(is_this) {
            if let Some(other) = holder.and_then(|holder| living(state, holder, address)) {
                let AttachmentKey { host, container, .. } = &other.record.key;
                let what = format!(
                    "{address} of network {network} is held by {who} and by container \
                     {container} on host {host}"
                );
                let repair = "stop one of the two containers";
                tell(StoreFinding::AddressHeldTwice, what, repair, None);
            } else {
                let what = format!("{who} has {address}, which does not say so");
                let mend = Mend::Slot(network.clone(), address, Some(key.clone()), None);
                let repair = "note the attachment at the address";
                tell(StoreFinding::AddressUnmarked, what, repair, Some(mend));
            }
        }
        if state.pool_at(network, address).is_none() {
            let what = format!("{who} has {address}, which is in no pool of network {network}");
            let repair = "create a pool that has it, or stop the container";
            tell(StoreFinding::AddressOutsidePool, what, repair, None);
        }
    }
    let owner = Owner { namespace: namespace.clone(), name: name.clone() };
    let is_kept = attachment
        .addresses
        .iter()
        .all(|held| keeping(state, network, &owner, held.address).is_some());
    if attachment.sticky && !is_kept {
        let what = format!("{who} counts as reserved for {namespace}/{name}, and is not");
        let repair = "note that no reservation keeps its addresses";
        let mend = Mend::Sticky(key.clone());
        tell(StoreFinding::StickyWithoutReservation, what, repair, Some(mend));
    }
}

fn mac_of<'a>(
    attachment: &'a Attachment,
    macs: &mut BTreeMap<(&'a NetworkName, Mac), &'a AttachmentKey>,
    found: &mut Vec<Found>,
) {
    let key = &attachment.key;
    let Some(other) = macs.insert((&key.network, attachment.mac), key) else { return };
    found.push(Found {
        kind: StoreFinding::MacHeldTwice,
        subject: Subject::Attachment(key.clone()),
        what: format!(
            "MAC address {} of network {} is that of container {} on host {} and of container {} \
             on host {}",
            attachment.mac, key.network, other.container, other.host, key.container, key.host
        ),
        repair: "start one of the two containers anew".to_owned(),
        mend: None,
    });
}

fn slot_of(
    state: &State,
    network: &NetworkName,
    address: IpAddr,
    slot: &Slot,
    found: &mut Vec<Found>,
) {
    let mend = Mend::Slot(network.clone(), address, None, None);
    let mut tell = |kind, what: String, repair: &str| {
        found.push(Found {
            kind,
            subject: Subject::Address(network.clone(), address),
            what,
            repair: repair.to_owned(),
            mend: Some(mend.clone()),
        });
    };
    let holder = slot.attachment.as_ref();
    if let Some(gone) = holder.filter(|holder| living(state, holder, address).is_none()) {
        let AttachmentKey { host, container, .. } = &gone.key;
        let what =
            format!("{address} is held by container {container} on host {host}, which has it not");
        tell(
            StoreFinding::AddressWithoutAttachment,
            what,
            "let the address cool, or its reservation have it",
        );
    }
    let owner = slot.reservation.as_ref();
    if let Some(Owner { namespace, name }) =
        owner.filter(|owner| keeping(state, network, owner, address).is_none())
    {
        let what =
            format!("{address} is reserved for {namespace}/{name}, whose reservation has it not");
        tell(
            StoreFinding::AddressWithoutReservation,
            what,
            "let the address cool, or its attachment keep it",
        );
    }
    if !slot.is_taken() && state.pool_at(network, address).is_none() {
        let what = format!("{address} cools down in no pool of network {network}");
        tell(StoreFinding::AddressOutsidePool, what, "forget the address");
    }
}

fn reservation(state: &State, reservation: &Reservation, found: &mut Vec<Found>) {
    let Reservation { network, namespace, name, .. } = reservation;
    let key = reservation_key(network, namespace, name);
    let subject = Subject::Reservation(key.clone());
    let mut tell = |kind, what, repair: &str, mend| {
        let repair = repair.to_owned();
        found.push(Found { kind, subject: subject.clone(), what, repair, mend });
    };
    for held in &reservation.addresses {
        let address = held.address;
        let slot = state.slot(network, address).map(|entry| &entry.record);
        let owner = slot.and_then(|slot| slot.reservation.as_ref());
        if owner.is_none_or(|owner| *owner != owner_of(reservation)) {
            let other = owner.filter(|owner| keeping(state, network, owner, address).is_some());
            if let Some(Owner { namespace: others, name: other }) = other {
                let what = format!(
                    "{address} is reserved for {namespace}/{name} and for {others}/{other}"
                );
                let repair = "release one of the two: limpetctl reservation release";
                tell(StoreFinding::AddressReservedTwice, what, repair, None);
            } else {
                let what =
                    format!("{address} is reserved for {namespace}/{name}, and does not say so");
                let mend = Mend::Slot(network.clone(), address, None, Some(key.clone()));
                tell(
                    StoreFinding::AddressUnmarked,
                    what,
                    "note the reservation at the address",
                    Some(mend),
                );
            }
        }
        if state.pool_at(network, address).is_none() {
            let what = format!(
                "{address} is reserved for {namespace}/{name} and in no pool of network {network}"
            );
            let repair = "create a pool that has it, or release the reservation";
            tell(StoreFinding::AddressOutsidePool, what, repair, None);
        }
    }
    if detached(state, reservation) != reservation.detached_at {
        let what =
            format!("the reservation of {namespace}/{name} is wrong about whether it is attached");
        tell(StoreFinding::ReservationTimes, what, "correct it", Some(Mend::Detached(key)));
    }
}

/// Since when a reservation is detached, as it should say.
fn detached(state: &State, reservation: &Reservation) -> Option<limpet_api::FleetTime> {
    let is_held = reservation.addresses.iter().any(|held| {
        let slot = state.slot(&reservation.network, held.address);
        let holder = slot.and_then(|slot| slot.record.attachment.as_ref());
        holder.is_some_and(|holder| living(state, holder, held.address).is_some())
    });
    let was_held = reservation.last_host.is_some();
    match reservation.detached_at {
        _ if is_held => None,
        None if was_held => Some(state.now()),
        since => since,
    }
}

fn counters(state: &State, found: &mut Vec<Found>) {
    for pool in state.pools() {
        let (mut held, mut reserved) = (0, 0);
        for (_, slot) in state.slots_of(&pool.record) {
            held += u64::from(slot.record.attachment.is_some());
            let only = slot.record.attachment.is_none() && slot.record.reservation.is_some();
            reserved += u64::from(only);
        }
        if (held, reserved) != (pool.tally.held, pool.tally.reserved) {
            let name = &pool.record.name;
            found.push(Found {
                kind: StoreFinding::CountersWrong,
                subject: Subject::Pool(name.clone()),
                what: format!(
                    "pool {name} has {held} addresses held and {reserved} reserved, and this \
                     controller counts {} and {}",
                    pool.tally.held, pool.tally.reserved
                ),
                repair: "start the controller anew".to_owned(),
                mend: None,
            });
        }
    }
}

/// Decides a repair on what is there by now. Returns whether there was anything to do.
pub(crate) fn mend(state: &State, mend: &Mend) -> Decision<bool> {
    Decision::make(|draft| {
        Ok(match mend {
            Mend::Slot(network, address, holder, keeper) => {
                let wanted = Wanted { state, network, address: *address };
                wanted.mend(draft, holder.as_ref(), keeper.as_ref())
            }
            Mend::Sticky(key) => sticky(state, draft, key),
            Mend::Detached(key) => times(state, draft, key),
            Mend::Block(pool, prefix) => {
                let subject = Subject::Block(pool.clone(), *prefix);
                let block = state.block(pool, bits(prefix.address()));
                draft.rely_on(&subject, block.map(|block| block.revision));
                draft.rely_on(&Subject::Pool(pool.clone()), state.pool(pool).map(|it| it.revision));
                draft.delete(&subject);
                block.is_some()
            }
            Mend::Silent(host) => {
                let subject = Subject::Silent(host.clone());
                draft.rely(&subject, state.silence(host));
                draft.rely(&Subject::Session(host.clone()), state.session(host));
                let is_wrong = state.silence(host).is_some() && state.session(host).is_none();
                if is_wrong {
                    draft.delete(&subject);
                }
                is_wrong
            }
        })
    })
}

fn sticky(state: &State, draft: &mut Draft, key: &AttachmentKey) -> bool {
    let subject = Subject::Attachment(key.clone());
    let entry = state.attachment(key);
    draft.rely(&subject, entry);
    let Some(entry) = entry.filter(|entry| entry.record.sticky) else { return false };
    let Attachment { namespace, name, .. } = &entry.record;
    let reserved = reservation_key(&key.network, namespace, name);
    draft.rely(&Subject::Reservation(reserved.clone()), state.reservation(&reserved));
    let owner = Owner { namespace: namespace.clone(), name: name.clone() };
    let is_kept = |address| keeping(state, &key.network, &owner, address).is_some();
    if entry.record.addresses.iter().all(|held| is_kept(held.address)) {
        return false;
    }
    draft.put_attachment(&Attachment { sticky: false, ..entry.record.clone() });
    true
}

fn times(state: &State, draft: &mut Draft, key: &ReservationKey) -> bool {
    let subject = Subject::Reservation(key.clone());
    let entry = state.reservation(key);
    draft.rely(&subject, entry);
    let Some(entry) = entry else { return false };
    for held in &entry.record.addresses {
        let slot = state.slot(&key.network, held.address);
        draft.rely(&Subject::Address(key.network.clone(), held.address), slot);
    }
    let detached_at = detached(state, &entry.record);
    if detached_at == entry.record.detached_at {
        return false;
    }
    draft.put_reservation(&Reservation { detached_at, ..entry.record.clone() });
    true
}

/// An address, and who should have it.
struct Wanted<'a> {
    state: &'a State,
    network: &'a NetworkName,
    address: IpAddr,
}

impl Wanted<'_> {
    fn mend(
        &self,
        draft: &mut Draft,
        holder: Option<&AttachmentKey>,
        keeper: Option<&ReservationKey>,
    ) -> bool {
        let Self { state, network, address } = *self;
        let subject = Subject::Address(network.clone(), address);
        let entry = state.slot(network, address);
        draft.rely(&subject, entry);
        let before = entry.map(|entry| entry.record.clone()).unwrap_or_default();
        let named = before.attachment.as_ref().map(|holder| holder.key.clone());
        let kept = before.reservation.as_ref();
        let kept = kept.map(|owner| reservation_key(network, &owner.namespace, &owner.name));
        let attachment = named.as_ref().into_iter().chain(holder).find_map(|key| {
            let entry = state.attachment(key);
            draft.rely(&Subject::Attachment(key.clone()), entry);
            let entry = entry.filter(|entry| has(&entry.record, address))?;
            Some(AttachmentRef { key: key.clone(), uid: entry.record.uid })
        });
        let reservation = kept.as_ref().into_iter().chain(keeper).find_map(|key| {
            let entry = state.reservation(key);
            draft.rely(&Subject::Reservation(key.clone()), entry);
            let owner = owner_of(&entry?.record);
            keeping(state, network, &owner, address).map(|_| owner)
        });
        let is_taken = attachment.is_some() || reservation.is_some();
        let released = (!is_taken).then(|| before.released.unwrap_or(state.now()));
        let slot = Slot { reservation, attachment, released };
        if !is_taken && state.pool_at(network, address).is_none() {
            draft.delete(&subject);
            return entry.is_some();
        }
        if slot == before || (!is_taken && entry.is_none()) {
            return false;
        }
        draft.put_slot(subject, slot);
        true
    }
}

#[cfg(test)]
mod tests;

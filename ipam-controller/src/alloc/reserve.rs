//! Pure: what operators reserve, change and release.

use std::collections::BTreeSet;
use std::net::IpAddr;

use limpet_api::book::{
    Addresses, Attachment, AttachmentKey, AttachmentRef, Held, Origin, Reservation,
    ReservationChange, ReservationSpec,
};
use limpet_api::config::PoolState;
use limpet_api::{ApiError, ErrorCode, Retention};
use limpet_net_types::{Family, Mac, PoolName};
use serde_json::json;

use super::pools::{Workload, families, named, serving};
use super::restored::settled;
use super::wanted::{asked_for, draining, mac_choice, mac_held, mac_of, not_kept, one_per_family};
use super::{full, pick, quota};
use crate::draft::{Decision, Draft, refuse};
use crate::keys::{ReservationKey, Subject};
use crate::records::{Owner, Slot};
use crate::state::{Entry, PoolEntry, State, is_of};
use crate::store::Revision;

/// Decides a reservation by an operator. Repeated, it changes nothing.
pub(crate) fn create(
    state: &State,
    key: &ReservationKey,
    spec: &ReservationSpec,
) -> Decision<Entry<Reservation>> {
    Decision::make(|draft| {
        let network = state.network(&key.network);
        draft.rely(&Subject::Network(key.network.clone()), network);
        if network.is_none() {
            let text = format!("there is no network {}", key.network);
            return refuse(ErrorCode::NetworkNotFound, text);
        }
        one_per_family(&spec.addresses)?;
        let existing = state.reservation(key);
        draft.rely(&Subject::Reservation(key.clone()), existing);
        if let Some(existing) = existing {
            return same(existing, spec);
        }
        settled(state, draft)?;
        let addresses = choose(state, draft, key, spec)?;
        let is_new = |held: &&Held| holding(state, key, held.address).is_none();
        let wanted = addresses.iter().filter(is_new).count();
        quota::take(state, draft, &key.namespace, wanted)?;
        mac_choice(state, draft, &key.network, spec.mac.is_some());
        let mac = mac(state, key, spec, &addresses)?;
        let reservation = Reservation {
            network: key.network.clone(),
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            addresses,
            mac,
            retention: spec.retention.unwrap_or(Retention::Forever),
            origin: Origin::Operator,
            attachment: None,
            last_host: None,
            detached_at: None,
            created: Some(state.now()),
        };
        let reservation = write(state, draft, key, reservation);
        Ok(Entry { record: reservation, revision: Revision::OWN })
    })
}

/// Decides a change of a reservation.
pub(crate) fn change(
    state: &State,
    key: &ReservationKey,
    change: &ReservationChange,
) -> Decision<Entry<Reservation>> {
    Decision::make(|draft| {
        let entry = found(state, draft, key)?;
        let retention = change.retention.unwrap_or(entry.record.retention);
        if retention == entry.record.retention {
            return Ok(entry.clone());
        }
        let record = Reservation { retention, ..entry.record.clone() };
        draft.put_reservation(&record);
        Ok(Entry { record, revision: Revision::OWN })
    })
}

/// Decides the release of a reservation, and returns the addresses that are free from then on.
pub(crate) fn release(state: &State, key: &ReservationKey) -> Decision<Vec<IpAddr>> {
    Decision::make(|draft| {
        let reservation = &found(state, draft, key)?.record;
        if let Some(holder) = holder(state, reservation) {
            return Err(in_use(key, holder));
        }
        give_up(state, draft, key, reservation);
        Ok(reservation.addresses.iter().map(|held| held.address).collect())
    })
}

/// The refusal of what would take a reservation's addresses from a container.
pub(super) fn in_use(key: &ReservationKey, holder: &AttachmentRef) -> ApiError {
    let AttachmentKey { host, container, .. } = &holder.key;
    let text = format!(
        "the addresses of {}/{} are held by container {container} on host {host}: end its \
         attachment first",
        key.namespace, key.name
    );
    let details = json!({ "host": host, "container": container });
    ApiError::new(ErrorCode::ReservationInUse, text).with_details(details)
}

/// Writes the end of a reservation that nobody holds: its addresses cool.
pub(super) fn give_up(
    state: &State,
    draft: &mut Draft,
    key: &ReservationKey,
    reservation: &Reservation,
) {
    draft.delete(&Subject::Reservation(key.clone()));
    for held in &reservation.addresses {
        let subject = Subject::Address(key.network.clone(), held.address);
        draft.rely(&subject, state.slot(&key.network, held.address));
        draft.put_slot(subject, Slot { released: Some(state.now()), ..Slot::default() });
    }
}

/// The attachment that holds a reservation's addresses.
pub(crate) fn holder<'a>(state: &'a State, reservation: &Reservation) -> Option<&'a AttachmentRef> {
    reservation
        .addresses
        .iter()
        .find_map(|held| state.slot(&reservation.network, held.address)?.record.attachment.as_ref())
}

/// The reservation, or the refusal of what needs one.
pub(super) fn found<'a>(
    state: &'a State,
    draft: &mut Draft,
    key: &ReservationKey,
) -> Result<&'a Entry<Reservation>, ApiError> {
    let entry = state.reservation(key);
    draft.rely(&Subject::Reservation(key.clone()), entry);
    let ReservationKey { network, namespace, name } = key;
    entry.ok_or_else(|| {
        let text = format!("network {network} has no reservation for {namespace}/{name}");
        ApiError::new(ErrorCode::ReservationNotFound, text)
    })
}

/// Accepts a reservation that is there already, if it is what `spec` wants.
fn same(
    existing: &Entry<Reservation>,
    spec: &ReservationSpec,
) -> Result<Entry<Reservation>, ApiError> {
    let Reservation { addresses, mac, retention, namespace, name, .. } = &existing.record;
    let has_address = |asked: &IpAddr| addresses.iter().any(|held| held.address == *asked);
    let has_pool = |asked: &PoolName| addresses.iter().any(|held| held.pool == *asked);
    let same = spec.addresses.iter().all(has_address)
        && spec.pools.iter().all(has_pool)
        && spec.mac.is_none_or(|asked| asked == *mac)
        && spec.retention.unwrap_or(Retention::Forever) == *retention;
    if same {
        return Ok(existing.clone());
    }
    let addresses: Vec<String> = addresses.iter().map(|held| held.address.to_string()).collect();
    let addresses = addresses.join(" and ");
    let text = format!(
        "{namespace}/{name} has a reservation with other properties: {addresses}, MAC address {mac}, \
         retention {retention}"
    );
    refuse(ErrorCode::ReservationExists, text)
}

fn choose(
    state: &State,
    draft: &mut Draft,
    key: &ReservationKey,
    spec: &ReservationSpec,
) -> Result<Addresses, ApiError> {
    let network = &key.network;
    let asked_pools = named(state, network, &spec.pools)?;
    let mut families: BTreeSet<Family> = families(state, network).into_iter().collect();
    families.extend(spec.addresses.iter().map(|address| Family::of(*address)));
    // What the name holds already it keeps, in the family that was not asked for as well.
    let now = spec.addresses.iter().find_map(|address| holding(state, key, *address));
    let kept = |family| {
        let held = &now?.record.addresses;
        held.iter().map(|held| &held.address).find(|address| is_of(family, **address))
    };
    let mut addresses = Addresses::new();
    for family in families {
        let asked = spec.addresses.iter().find(|address| is_of(family, **address));
        let asked = asked.or_else(|| kept(family));
        let (pool, address) = match (asked, asked_pools.get(&family)) {
            (Some(&address), pool) => (available(state, key, address, pool.copied())?, address),
            (None, Some(pool)) => first_of(state, &[active(pool)?])?,
            (None, None) => {
                let workload =
                    Workload { namespace: &key.namespace, name: Some(&key.name), host: None };
                first_of(state, &serving(state, network, family, workload)?)?
            }
        };
        draft.rely_on(&Subject::Pool(pool.record.name.clone()), Some(pool.revision));
        addresses.push(Held { address, pool: pool.record.name.clone() });
    }
    if addresses.is_empty() {
        return refuse(ErrorCode::NoPool, format!("network {network} has no pool"));
    }
    Ok(addresses)
}

/// The MAC address asked for, or one that nobody has.
fn mac(
    state: &State,
    key: &ReservationKey,
    spec: &ReservationSpec,
    addresses: &[Held],
) -> Result<Mac, ApiError> {
    if let Some(asked) = spec.mac {
        return check_mac(state, key, asked).map(|()| asked);
    }
    let distinct = format!("{}/{}", key.namespace, key.name);
    let is_free = |mac| check_mac(state, key, mac).is_ok();
    Ok(mac_of(&key.network, addresses, &distinct, is_free))
}

/// Refuses a MAC address that another name has: what it is reserved for, or a running one's.
fn check_mac(state: &State, key: &ReservationKey, mac: Mac) -> Result<(), ApiError> {
    not_kept(state, key, mac)?;
    let holder = state.mac_holder(&key.network, mac).map(|entry| &entry.record);
    let others = |held: &&Attachment| (&held.namespace, &held.name) != (&key.namespace, &key.name);
    holder.filter(others).map_or(Ok(()), |holder| Err(mac_held(mac, holder)))
}

fn active(pool: &PoolEntry) -> Result<&PoolEntry, ApiError> {
    match pool.record.state {
        PoolState::Active => Ok(pool),
        PoolState::Draining => refuse(ErrorCode::NoPool, draining(pool)),
    }
}

fn first_of<'a>(
    state: &State,
    pools: &[&'a PoolEntry],
) -> Result<(&'a PoolEntry, IpAddr), ApiError> {
    let now = state.now();
    let picked = pools.iter().find_map(|pool| Some((*pool, pick::for_nobody(state, now, pool)?)));
    picked.ok_or_else(|| full::full(state, now, pools))
}

/// An address that a name holds already, without a reservation, can be reserved for it.
fn available<'a>(
    state: &'a State,
    key: &ReservationKey,
    address: IpAddr,
    pool: Option<&PoolEntry>,
) -> Result<&'a PoolEntry, ApiError> {
    if holding(state, key, address).is_some()
        && let Some(pool) = state.pool_at(&key.network, address)
    {
        return Ok(pool);
    }
    asked_for(state, &key.network, address, pool)
}

/// The attachment of this very name that holds the address without a reservation.
fn holding<'a>(
    state: &'a State,
    key: &ReservationKey,
    address: IpAddr,
) -> Option<&'a Entry<Attachment>> {
    let slot = &state.slot(&key.network, address)?.record;
    let holder = slot.attachment.as_ref().filter(|_| slot.reservation.is_none())?;
    state.attachment(&holder.key).filter(|entry| {
        let Attachment { namespace, name, .. } = &entry.record;
        (namespace, name) == (&key.namespace, &key.name)
    })
}

fn write(
    state: &State,
    draft: &mut Draft,
    key: &ReservationKey,
    mut reservation: Reservation,
) -> Reservation {
    let owner = Owner { namespace: key.namespace.clone(), name: key.name.clone() };
    for held in &reservation.addresses {
        let subject = Subject::Address(key.network.clone(), held.address);
        let slot = state.slot(&key.network, held.address);
        draft.rely(&subject, slot);
        let attachment = slot.and_then(|slot| slot.record.attachment.clone());
        draft.put_slot(
            subject,
            Slot { reservation: Some(owner.clone()), attachment, released: None },
        );
    }
    let holders = reservation.addresses.iter().filter_map(|held| holding(state, key, held.address));
    for holder in holders {
        let record = Attachment { sticky: true, ..holder.record.clone() };
        let subject = Subject::Attachment(record.key.clone());
        draft.rely(&subject, Some(holder));
        draft.put_attachment(&record);
        reservation.last_host = Some(record.key.host);
    }
    draft.put_reservation(&reservation);
    reservation
}

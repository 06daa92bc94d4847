//! Pure: what a caller asks for by address or MAC address: whether it can be had, and what is had
//! where nothing was asked for.

use std::net::IpAddr;

use limpet_api::book::{Attachment, AttachmentKey, AttachmentRef, Held};
use limpet_api::config::PoolState;
use limpet_api::{ApiError, ErrorCode};
use limpet_net_types::{Family, Mac, NetworkName};
use serde_json::json;

use crate::draft::{Draft, refuse};
use crate::keys::{ReservationKey, Subject};
use crate::records::{Owner, Slot, mac_of_v4};
use crate::state::{PoolEntry, State, is_of};

/// Refuses two addresses of one family.
pub(super) fn one_per_family(addresses: &[IpAddr]) -> Result<(), ApiError> {
    for family in Family::BOTH {
        let mut of_family = addresses.iter().filter(|address| is_of(family, **address));
        if let (Some(first), Some(second)) = (of_family.next(), of_family.next()) {
            let text = format!("{first} and {second} are both of {family}: ask for one");
            return refuse(ErrorCode::Invalid, text);
        }
    }
    Ok(())
}

/// Checks that an address asked for can be had by somebody new, and returns its pool.
pub(super) fn asked_for<'a>(
    state: &'a State,
    network: &NetworkName,
    address: IpAddr,
    pool: Option<&PoolEntry>,
) -> Result<&'a PoolEntry, ApiError> {
    let Some(found) = state.pool_at(network, address) else {
        return refuse(ErrorCode::AddressNotInPool, not_in_pool(address, network));
    };
    if let Some(pool) = pool.filter(|pool| pool.record.name != found.record.name) {
        let (asked, has) = (&pool.record.name, &found.record.name);
        let text = format!("{address} is in pool {has}, and pool {asked} was asked for");
        return refuse(ErrorCode::AddressNotInPool, text);
    }
    if !found.givable.allows(crate::state::bits(address)) {
        let text = format!("{address} is excluded from pool {}", found.record.name);
        return refuse(ErrorCode::AddressNotInPool, text);
    }
    if let Some(slot) = state.slot(network, address).filter(|slot| slot.record.is_taken()) {
        return Err(taken(address, &slot.record));
    }
    if found.record.state == PoolState::Draining {
        return refuse(ErrorCode::NoPool, draining(found));
    }
    Ok(found)
}

fn taken(address: IpAddr, slot: &Slot) -> ApiError {
    let mut details = json!({ "address": address });
    let text = if let Some(AttachmentRef { key, .. }) = &slot.attachment {
        details["host"] = json!(key.host);
        details["container"] = json!(key.container);
        format!("{address} is held by container {} on host {}", key.container, key.host)
    } else if let Some(Owner { namespace, name }) = &slot.reservation {
        details["namespace"] = json!(namespace);
        details["name"] = json!(name);
        format!("{address} is reserved for {namespace}/{name}")
    } else {
        unreachable!("an address that is taken is held or reserved")
    };
    ApiError::new(ErrorCode::AddressHeld, text).with_details(details)
}

/// The words for an address that no pool has.
pub(super) fn not_in_pool(address: IpAddr, network: &NetworkName) -> String {
    format!("{address} is in no pool of network {network}")
}

/// The words for a pool that gives nothing new.
pub(super) fn draining(pool: &PoolEntry) -> String {
    format!("pool {} is draining: it gives no new addresses", pool.record.name)
}

/// Refuses a MAC address that is kept for another name.
pub(super) fn not_kept(state: &State, key: &ReservationKey, mac: Mac) -> Result<(), ApiError> {
    match state.mac_keeper(&key.network, mac).filter(|keeper| keeper != key) {
        Some(ReservationKey { network, namespace, name }) => {
            let text = format!(
                "MAC address {mac} of network {network} is reserved for {namespace}/{name}"
            );
            Err(ApiError::new(ErrorCode::MacHeld, text)
                .with_details(json!({ "mac": mac, "namespace": namespace, "name": name })))
        }
        None => Ok(()),
    }
}

/// Refuses a MAC address that an interface has.
pub(super) fn mac_held(mac: Mac, holder: &Attachment) -> ApiError {
    let AttachmentKey { host, network, container, .. } = &holder.key;
    let text = format!(
        "MAC address {mac} of network {network} is in use by container {container} on host {host}"
    );
    ApiError::new(ErrorCode::MacHeld, text)
        .with_details(json!({ "mac": mac, "host": host, "container": container }))
}

/// Relies on nobody having chosen a MAC address meanwhile; with `chosen`, this is such a choice.
pub(super) fn mac_choice(state: &State, draft: &mut Draft, network: &NetworkName, chosen: bool) {
    let subject = Subject::MacChoice(network.clone());
    draft.rely_on(&subject, state.mac_choice(network));
    if chosen {
        draft.put(&subject, &state.revision().0);
    }
}

/// The MAC address of an interface for which none was asked: of its IPv4 address, which makes
/// it unique in its network, or a hash of the IPv6 one. Where somebody asked for just that one it
/// is a hash with `distinct`, which nobody else has.
pub(super) fn mac_of(
    network: &NetworkName,
    addresses: &[Held],
    distinct: &str,
    is_free: impl Fn(Mac) -> bool,
) -> Mac {
    let first = addresses.first().map(|held| held.address);
    let address = first.map(|address| address.to_string()).unwrap_or_default();
    let of_v4 = match first {
        Some(IpAddr::V4(v4)) => mac_of_v4(v4),
        _ => None,
    };
    let usual = of_v4.unwrap_or_else(|| Mac::derived(&[network.as_str(), &address]));
    if is_free(usual) { usual } else { Mac::derived(&[network.as_str(), &address, distinct]) }
}

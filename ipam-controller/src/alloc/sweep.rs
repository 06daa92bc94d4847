//! Pure: who has which address of a pool, and the release of all that nobody holds.

use std::net::IpAddr;

use limpet_api::book::Reservation;
use limpet_api::config::Pool;
use limpet_api::holding::{Holding, HoldingQuery, PoolRelease, ReleasedName};
use limpet_api::{ApiError, ErrorCode, Listing, MOST_LISTED, Span, USUALLY_LISTED};
use limpet_net_types::PoolName;

use super::reserve::{give_up, holder};
use crate::draft::{Decision, refuse};
use crate::keys::{ReservationKey, Subject};
use crate::records::Slot;
use crate::state::{Entry, State, reservation_key};

/// How many addresses one request looks at: a few thousandths of a second's work.
const MOST_LOOKED_AT: usize = 20_000;

/// How many reservations one request releases unless it is said.
const USUALLY_RELEASED: usize = 64;

/// How many reservations one request releases at most: a second's work for a store that is slow.
const MOST_RELEASED: usize = 256;

/// What one request is to release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Idle {
    /// The reservations that nobody holds, by address.
    pub(crate) found: Vec<(ReservationKey, ReleasedName)>,
    /// The last address that was looked at, if there may be more after it.
    pub(crate) next: Option<IpAddr>,
}

/// Lists who holds or keeps which address of a pool, by address.
///
/// # Errors
///
/// `pool-not-found`, or `bad-request` for a limit out of range or an address that is not the pool's.
pub(crate) fn holdings(
    state: &State,
    name: &PoolName,
    query: &HoldingQuery,
) -> Result<Listing<Holding>, ApiError> {
    let pool = found(state, name)?;
    let limit = limit(query.limit, USUALLY_LISTED, MOST_LISTED)?;
    let mut page = Listing { items: Vec::new(), revision: state.revision().0, next: None };
    let next = look(state, pool, query.after, MOST_LOOKED_AT, |address, slot| {
        page.items.extend(holding(state, pool, address, &slot.record));
        page.items.len() < limit
    })?;
    page.next = next.map(|address| address.to_string());
    Ok(page)
}

/// Finds the reservations that a request is to release.
///
/// # Errors
///
/// As [`holdings`].
pub(crate) fn idle(state: &State, name: &PoolName, wanted: &PoolRelease) -> Result<Idle, ApiError> {
    idle_among(state, name, wanted, MOST_LOOKED_AT)
}

fn idle_among(
    state: &State,
    name: &PoolName,
    wanted: &PoolRelease,
    patience: usize,
) -> Result<Idle, ApiError> {
    let pool = found(state, name)?;
    let limit = limit(wanted.limit, USUALLY_RELEASED, MOST_RELEASED)?;
    let mut found = Vec::new();
    let next = look(state, pool, wanted.after, patience, |_, slot| {
        let keeper = slot.record.reservation.as_ref().filter(|_| slot.record.attachment.is_none());
        let key = keeper.map(|owner| reservation_key(&pool.network, &owner.namespace, &owner.name));
        let entry = key.as_ref().and_then(|key| state.reservation(key));
        if let Some((key, entry)) =
            key.zip(entry.filter(|entry| fits(state, &entry.record, wanted)))
        {
            found.push((key, released(state, &entry.record)));
        }
        found.len() < limit
    })?;
    Ok(Idle { found, next })
}

/// Decides the release of one of them. One that has come into use, or is no longer what is wanted,
/// stays.
pub(crate) fn release(
    state: &State,
    pool: &PoolName,
    key: &ReservationKey,
    wanted: &PoolRelease,
) -> Decision<Option<ReleasedName>> {
    Decision::make(|draft| {
        let entry = state.reservation(key);
        draft.rely(&Subject::Reservation(key.clone()), entry);
        let goes = |found: &Reservation| {
            found.addresses.iter().any(|held| held.pool == *pool) && fits(state, found, wanted)
        };
        let Some(entry) = entry.filter(|entry| goes(&entry.record)) else { return Ok(None) };
        give_up(state, draft, key, &entry.record);
        Ok(Some(released(state, &entry.record)))
    })
}

fn found<'a>(state: &'a State, name: &PoolName) -> Result<&'a Pool, ApiError> {
    let pool = state.pool(name).map(|pool| &pool.record);
    pool.ok_or_else(|| ApiError::new(ErrorCode::PoolNotFound, format!("there is no pool {name}")))
}

fn limit(asked: Option<usize>, usual: usize, most: usize) -> Result<usize, ApiError> {
    let limit = asked.unwrap_or(usual);
    if (1..=most).contains(&limit) {
        return Ok(limit);
    }
    let text = format!("limit is {limit}, from 1 to {most} can be asked for");
    refuse(ErrorCode::BadRequest, text)
}

/// Looks at the addresses of a pool that somebody has or had, while `each` wants more, and returns
/// the last of them if it is not the last of all.
fn look<'a>(
    state: &'a State,
    pool: &Pool,
    after: Option<IpAddr>,
    mut patience: usize,
    mut each: impl FnMut(IpAddr, &'a Entry<Slot>) -> bool,
) -> Result<Option<IpAddr>, ApiError> {
    if let Some(after) = after.filter(|after| !pool.range.contains(*after)) {
        let text = format!("after is {after}, which is not in pool {} ({})", pool.name, pool.range);
        return refuse(ErrorCode::BadRequest, text);
    }
    let first = after.unwrap_or(pool.range.first());
    let slots = state.slots_between(&pool.network, first, pool.range.last());
    let mut slots = slots.filter(|(address, _)| Some(*address) != after).peekable();
    while let Some((address, slot)) = slots.next() {
        patience = patience.saturating_sub(1);
        if !each(address, slot) || patience == 0 {
            return Ok(slots.peek().map(|_| address));
        }
    }
    Ok(None)
}

/// Who has an address; nobody, if it only cools.
fn holding(state: &State, pool: &Pool, address: IpAddr, slot: &Slot) -> Option<Holding> {
    let attachment = slot.attachment.clone();
    let (namespace, name) = if let Some(owner) = &slot.reservation {
        (owner.namespace.clone(), owner.name.clone())
    } else {
        let holder = &state.attachment(&attachment.as_ref()?.key)?.record;
        (holder.namespace.clone(), holder.name.clone())
    };
    let reserved = slot.reservation.is_some();
    let key = reservation_key(&pool.network, &namespace, &name);
    let reservation = state.reservation(&key).filter(|_| reserved && attachment.is_none());
    let detached_for = reservation.and_then(|entry| detached_for(state, &entry.record));
    Some(Holding { address, namespace, name, reserved, attachment, detached_for })
}

/// For how long nobody has held what is reserved, or since when it has been there.
fn detached_for(state: &State, reservation: &Reservation) -> Option<Span> {
    let since = reservation.detached_at.or(reservation.created)?;
    holder(state, reservation).is_none().then(|| state.now().since(since))
}

/// Whether nobody holds a reservation, and it is one that is wanted.
fn fits(state: &State, found: &Reservation, wanted: &PoolRelease) -> bool {
    let is_wanted = wanted.namespace.as_ref().is_none_or(|wanted| *wanted == found.namespace);
    let for_long = wanted
        .detached_for
        .is_none_or(|least| detached_for(state, found).is_some_and(|idle| idle >= least));
    is_wanted && for_long && holder(state, found).is_none()
}

fn released(state: &State, found: &Reservation) -> ReleasedName {
    ReleasedName {
        namespace: found.namespace.clone(),
        name: found.name.clone(),
        addresses: found.addresses.iter().map(|held| held.address).collect(),
        detached_for: detached_for(state, found),
    }
}

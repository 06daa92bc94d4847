//! Pure: pools: no two share an address, none has a host's address, each can give some.

use std::net::IpAddr;

use limpet_api::config::{
    DEFAULT_BLOCK_SIZE, DEFAULT_COOLDOWN, DEFAULT_RETENTION, Host, Pool, PoolChange, PoolSpec,
    PoolState,
};
use limpet_api::{ApiError, ErrorCode};
use limpet_net_types::{Family, PoolName, Prefix, Range};
use serde_json::json;

use crate::draft::{Decision, Draft, refuse};
use crate::givable::Givable;
use crate::keys::Subject;
use crate::state::{Entry, PoolEntry, State, block_around};

/// The largest block: more addresses would make one host's block most of a usual pool.
const MOST_BLOCK_SIZE: u32 = 65_536;

/// What no container can have as its address: it never leaves a host, or means many.
const NEVER: [(&str, &str); 8] = [
    ("0.0.0.0/8", "\"this network\" (RFC 791)"),
    ("127.0.0.0/8", "the loopback (RFC 1122)"),
    ("169.254.0.0/16", "link-local (RFC 3927)"),
    ("224.0.0.0/4", "multicast (RFC 5771)"),
    ("240.0.0.0/4", "reserved (RFC 1112)"),
    ("::/8", "unspecified, loopback and mapped addresses (RFC 4291)"),
    ("fe80::/10", "link-local (RFC 4291)"),
    ("ff00::/8", "multicast (RFC 4291)"),
];

/// Decides the creation of a pool.
pub(crate) fn create(state: &State, name: &PoolName, spec: &PoolSpec) -> Decision<Entry<Pool>> {
    Decision::make(|draft| {
        let network = state.network(&spec.network);
        draft.rely(&Subject::Network(spec.network.clone()), network);
        if network.is_none() {
            let text = format!("there is no network {}", spec.network);
            return refuse(ErrorCode::NetworkNotFound, text);
        }
        let existing = state.pool(name);
        draft.rely_on(&Subject::Pool(name.clone()), existing.map(|pool| pool.revision));
        let pool = wanted(name, spec);
        if let Some(existing) = existing {
            return same(existing, spec, pool);
        }
        usable(pool.range)?;
        block_size(&pool, spec)?;
        gives(&pool)?;
        overlaps(state, &pool)?;
        holds_no_host(state, pool.range, name)?;
        draft.change_config(state);
        draft.put(&Subject::Pool(name.clone()), &pool);
        Ok(Entry { record: pool, revision: state.revision().next() })
    })
}

/// Decides a change of a pool.
pub(crate) fn change(state: &State, name: &PoolName, change: &PoolChange) -> Decision<Entry<Pool>> {
    Decision::make(|draft| {
        let entry = found(state, draft, name)?;
        let before = &entry.record;
        let change = change.clone();
        let pool = Pool {
            exclude: change.exclude.unwrap_or_else(|| before.exclude.clone()),
            sticky: change.sticky.unwrap_or(before.sticky),
            retention: change.retention.unwrap_or(before.retention),
            cooldown: change.cooldown.unwrap_or(before.cooldown),
            select: change.select.unwrap_or_else(|| before.select.clone()),
            priority: change.priority.unwrap_or(before.priority),
            state: change.state.unwrap_or(before.state),
            ..before.clone()
        };
        if pool == *before {
            return Ok(Entry { record: pool, revision: entry.revision });
        }
        gives(&pool)?;
        draft.change_config(state);
        draft.put(&Subject::Pool(name.clone()), &pool);
        Ok(Entry { record: pool, revision: state.revision().next() })
    })
}

/// Decides the removal of a pool, with its blocks and what is left of addresses given back.
pub(crate) fn delete(state: &State, name: &PoolName) -> Decision<()> {
    Decision::make(|draft| {
        let pool = found(state, draft, name)?;
        let (held, reserved) = (pool.tally.held, pool.tally.reserved);
        if held + reserved > 0 {
            let text = format!(
                "pool {name} is in use: {held} of its addresses are held by attachments, \
                 {reserved} are reserved and not held"
            );
            return Err(ApiError::new(ErrorCode::PoolInUse, text)
                .with_details(json!({ "held": held, "reserved": reserved })));
        }
        draft.change_config(state);
        draft.delete(&Subject::Pool(name.clone()));
        for block in state.blocks_of(name) {
            let subject = Subject::Block(name.clone(), block.record.prefix);
            draft.rely_on(&subject, Some(block.revision));
            draft.delete(&subject);
        }
        for (address, slot) in state.slots_of(&pool.record) {
            let subject = Subject::Address(pool.record.network.clone(), address);
            draft.rely(&subject, Some(slot));
            draft.delete(&subject);
        }
        Ok(())
    })
}

fn found<'a>(
    state: &'a State,
    draft: &mut Draft,
    name: &PoolName,
) -> Result<&'a PoolEntry, ApiError> {
    let entry = state.pool(name);
    draft.rely_on(&Subject::Pool(name.clone()), entry.map(|pool| pool.revision));
    entry.ok_or_else(|| ApiError::new(ErrorCode::PoolNotFound, format!("there is no pool {name}")))
}

/// The pool that `spec` describes, with what it leaves out filled in.
fn wanted(name: &PoolName, spec: &PoolSpec) -> Pool {
    let mut pool = Pool {
        name: name.clone(),
        network: spec.network.clone(),
        range: spec.range,
        exclude: spec.exclude.clone(),
        block_size: spec.block_size.unwrap_or(DEFAULT_BLOCK_SIZE),
        sticky: spec.sticky,
        retention: spec.retention.unwrap_or(DEFAULT_RETENTION),
        cooldown: spec.cooldown.unwrap_or(DEFAULT_COOLDOWN),
        select: spec.select.clone(),
        priority: spec.priority,
        state: PoolState::Active,
    };
    // A small pool gets blocks that fit, so that hosts share it by blocks and not by strays.
    if spec.block_size.is_none() {
        while pool.block_size > 1 && !fits_a_block(&pool) {
            pool.block_size /= 2;
        }
    }
    pool
}

/// Whether a block lies wholly inside the pool: its first or its second aligned one does.
fn fits_a_block(pool: &Pool) -> bool {
    let (first, last) = pool.range.bits();
    let second = first.saturating_add(u128::from(pool.block_size)).min(last);
    block_around(pool, first).or_else(|| block_around(pool, second)).is_some()
}

/// Accepts a pool that is there already, if it is what `spec` wants.
fn same(existing: &PoolEntry, spec: &PoolSpec, wanted: Pool) -> Result<Entry<Pool>, ApiError> {
    let (record, revision) = (&existing.record, existing.revision);
    let block_size = spec.block_size.unwrap_or(record.block_size);
    let same = Pool { block_size, state: record.state, ..wanted } == *record;
    if same {
        return Ok(Entry { record: record.clone(), revision });
    }
    let Pool { name, network, range, .. } = record;
    let text = format!("pool {name} exists with other properties: {range} of network {network}");
    refuse(ErrorCode::PoolExists, text)
}

fn usable(range: Range) -> Result<(), ApiError> {
    for (never, why) in NEVER {
        if never.parse::<Range>().is_ok_and(|never| never.overlaps(range)) {
            let text = format!("{range} has addresses that containers cannot have: {never}, {why}");
            return refuse(ErrorCode::Invalid, text);
        }
    }
    Ok(())
}

fn block_size(pool: &Pool, spec: &PoolSpec) -> Result<(), ApiError> {
    let Some(size) = spec.block_size else { return Ok(()) };
    if !size.is_power_of_two() || size > MOST_BLOCK_SIZE {
        let text = format!("block size {size} is not a power of two from 1 to {MOST_BLOCK_SIZE}");
        return refuse(ErrorCode::Invalid, text);
    }
    if !fits_a_block(pool) {
        let text = format!(
            "no aligned block of {size} addresses is wholly inside {}: ask for a smaller block size",
            pool.range
        );
        return refuse(ErrorCode::Invalid, text);
    }
    Ok(())
}

fn gives(pool: &Pool) -> Result<(), ApiError> {
    let outside = pool.exclude.iter().find(|exclude| !exclude.overlaps(pool.range));
    if let Some(outside) = outside {
        let text = format!("exclusion {outside} is not in the pool's range {}", pool.range);
        return refuse(ErrorCode::Invalid, text);
    }
    if Givable::of(pool).size() == 0 {
        let text = format!("pool {} would have no address to give: all are excluded", pool.name);
        return refuse(ErrorCode::PoolEmpty, text);
    }
    Ok(())
}

/// All networks share one address space, so an address of two pools would be in two places.
fn overlaps(state: &State, pool: &Pool) -> Result<(), ApiError> {
    let Some(other) = state.pools().find(|other| other.record.range.overlaps(pool.range)) else {
        return Ok(());
    };
    let Pool { name, network, range, .. } = &other.record;
    let text = format!(
        "{} has addresses in common with {range} of pool {name} in network {network}",
        pool.range
    );
    Err(ApiError::new(ErrorCode::PoolOverlaps, text)
        .with_details(json!({ "pool": name, "network": network, "range": range })))
}

fn holds_no_host(state: &State, range: Range, name: &PoolName) -> Result<(), ApiError> {
    for host in state.hosts() {
        if let Some(found) = conflict(range, &host.record) {
            let host = &host.record.name;
            let text = format!("{range} of pool {name} contains {found} of host {host}");
            return Err(ApiError::new(ErrorCode::PoolContainsHost, text)
                .with_details(json!({ "host": host, "found": found })));
        }
    }
    Ok(())
}

/// Returns what of a host lies in a range: an address of its own, or a prefix behind it.
///
/// A prefix that is larger than the range is none: the pool's routes are the longer ones.
fn conflict(range: Range, host: &Host) -> Option<String> {
    let own = |address: &&IpAddr| range.contains(**address);
    let behind = |prefix: &&Prefix| range.covers(prefix.range());
    let underlay = host.underlay.iter().find(own).map(|a| format!("underlay address {a}"));
    underlay
        .or_else(|| host.addresses.iter().find(own).map(|a| format!("address {a}")))
        .or_else(|| host.external.iter().find(behind).map(|p| format!("external prefix {p}")))
}

/// Returns the pool that has an address or prefix of a host, and which that is.
pub(super) fn pool_with<'a>(state: &'a State, host: &Host) -> Option<(&'a Pool, String)> {
    let mut pools = state.pools().map(|pool| &pool.record);
    pools.find_map(|pool| Some((pool, conflict(pool.range, host)?)))
}

/// Returns whether an address can be a host's: one that others can send to.
pub(super) fn is_host_address(address: IpAddr) -> bool {
    let mut never = NEVER.iter().filter_map(|(never, _)| never.parse::<Range>().ok());
    let family = Family::of(address);
    !never.any(|never| never.family() == family && never.contains(address))
}

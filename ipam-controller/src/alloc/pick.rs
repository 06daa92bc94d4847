//! Pure: which address of a pool is next.
//!
//! A host's addresses come from its own blocks, so that one route covers them; then from a block
//! that nobody has; and only then from what other hosts' blocks leave, from the top, where their
//! owners come last.

use std::net::IpAddr;

use limpet_api::FleetTime;
use limpet_api::config::Usage;
use limpet_api::host::Block;
use limpet_net_types::{HostName, Prefix, address_at};

use crate::records::Vacancy;
use crate::state::{BlockEntry, PoolEntry, State, bits, block_around};

/// An address to give out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pick {
    /// The address.
    pub(crate) address: IpAddr,
    /// The block that the host gets with it, if it needs another one.
    pub(crate) block: Option<Block>,
}

/// Where addresses of a pool are looked for.
struct Search<'a> {
    state: &'a State,
    pool: &'a PoolEntry,
    now: FleetTime,
    /// The one that has cooled longest of those seen, with when it was released.
    coolest: Option<(FleetTime, u128)>,
}

impl Search<'_> {
    fn vacancy(&self, bits: u128) -> Vacancy {
        let pool = &self.pool.record;
        self.state
            .slot(&pool.network, address_at(pool.family(), bits))
            .map_or(Vacancy::Free, |slot| slot.record.vacancy(self.now, pool.cooldown))
    }

    /// Returns the first of `candidates` that is free, and notes those that are cooling.
    fn first_free(&mut self, candidates: impl Iterator<Item = u128>) -> Option<u128> {
        for bits in candidates {
            match self.vacancy(bits) {
                Vacancy::Free => return Some(bits),
                Vacancy::Taken => {}
                Vacancy::Cooling(released) => {
                    if self.coolest.is_none_or(|(earliest, _)| released < earliest) {
                        self.coolest = Some((released, bits));
                    }
                }
            }
        }
        None
    }

    /// The first address of the host's block that an address is in.
    fn owned_block(&self, bits: u128) -> Option<u128> {
        let pool = &self.pool.record;
        let first = self::bits(block_around(pool, bits)?.address());
        self.state.block(&pool.name, first).map(|_| first)
    }
}

/// Whether every address of a block that can be given out is taken.
fn is_full(pool: &PoolEntry, block: &BlockEntry) -> bool {
    let (first, last) = block.record.prefix.range().bits();
    u128::from(block.taken) >= pool.givable.count(first, last)
}

/// Returns the next address of `pool` for a container on `host`; none if all are taken.
pub(crate) fn next(
    state: &State,
    now: FleetTime,
    pool: &PoolEntry,
    host: &HostName,
) -> Option<Pick> {
    if u128::from(pool.tally.taken) >= pool.givable.size() {
        return None;
    }
    let family = pool.record.family();
    let mut search = Search { state, pool, now, coolest: None };
    let stays = |bits| Pick { address: address_at(family, bits), block: None };
    if let Some(bits) = in_own_blocks(&mut search, host) {
        return Some(stays(bits));
    }
    let own = search.coolest.take();
    if let Some((bits, prefix)) = in_new_block(&mut search) {
        return Some(with_block(pool, host, bits, prefix));
    }
    // A cooling address of its own costs no host a route, as one of a new block would.
    if let Some((_, bits)) = own {
        return Some(stays(bits));
    }
    if let Some((_, bits)) = search.coolest
        && let Some(prefix) = block_around(&pool.record, bits)
    {
        return Some(with_block(pool, host, bits, prefix));
    }
    astray(&mut search).or(search.coolest.map(|(_, bits)| bits)).map(stays)
}

/// Returns an address of `pool` for a name that no host has yet: from the top, so that it takes
/// nothing from blocks, which begin at the bottom; none if all are taken.
pub(crate) fn for_nobody(state: &State, now: FleetTime, pool: &PoolEntry) -> Option<IpAddr> {
    let mut search = Search { state, pool, now, coolest: None };
    outside_blocks(&mut search)
        .or_else(|| astray(&mut search))
        .or(search.coolest.map(|(_, bits)| bits))
        .map(|bits| address_at(pool.record.family(), bits))
}

/// Finds the highest free address that is in no host's block. Looks once at each run of taken
/// addresses, at each host's block and at each cooling address above it.
fn outside_blocks(search: &mut Search<'_>) -> Option<u128> {
    let pool = search.pool;
    let (first, mut next) = pool.record.range.bits();
    loop {
        let bits = pool.givable.downwards(first, next).next()?;
        let below = if let Some((from, _)) = pool.taken.around(bits) {
            from
        } else if let Some(block) = search.owned_block(bits) {
            block
        } else if let Some(found) = search.first_free(std::iter::once(bits)) {
            return Some(found);
        } else {
            bits
        };
        next = below.checked_sub(1)?;
    }
}

fn with_block(pool: &PoolEntry, host: &HostName, bits: u128, prefix: Prefix) -> Pick {
    let block = Block {
        pool: pool.record.name.clone(),
        network: pool.record.network.clone(),
        prefix,
        host: host.clone(),
    };
    Pick { address: address_at(pool.record.family(), bits), block: Some(block) }
}

/// Goes on from the last address given, so that one given back is not given again at once.
fn in_own_blocks(search: &mut Search<'_>, host: &HostName) -> Option<u128> {
    let pool = search.pool;
    let name = &pool.record.name;
    let state = search.state;
    let spans = |from| {
        state
            .owned(name, host, from)
            .filter_map(|first| state.block(name, first))
            .filter(|block| !is_full(pool, block))
            .map(|block| block.record.prefix.range().bits())
    };
    if let Some(pointer) = state.pointer(name, host) {
        let after = pointer.saturating_add(1);
        let here = block_around(&pool.record, pointer).map_or(pointer, |at| bits(at.address()));
        let later = spans(here).flat_map(|(from, to)| pool.givable.upwards(from.max(after), to));
        if let Some(found) = search.first_free(later) {
            return Some(found);
        }
    }
    search.first_free(spans(0).flat_map(|(from, to)| pool.givable.upwards(from, to)))
}

/// Finds the first block that nobody has with a free address in it.
fn in_new_block(search: &mut Search<'_>) -> Option<(u128, Prefix)> {
    let pool = search.pool;
    let (_, last) = pool.record.range.bits();
    let size = u128::from(pool.record.block_size);
    let mut next = first_block(pool)?;
    while next <= last {
        let prefix = block_around(&pool.record, next)?;
        let (first, end) = prefix.range().bits();
        // Full blocks mostly lie beside each other: thousands of them are one run.
        if let Some((_, to)) = pool.taken.around(first).filter(|(_, to)| *to >= end) {
            next = (to.checked_add(1)? / size).checked_mul(size)?;
            continue;
        }
        if search.state.block(&pool.record.name, first).is_none() {
            if let Some(found) = search.first_free(pool.givable.upwards(first, end)) {
                return Some((found, prefix));
            }
            // One exclusion may cover very many blocks.
            if let Some((_, hole)) = pool.givable.hole_at(first).filter(|hole| hole.1 > end) {
                next = (hole.checked_add(1)? / size).checked_mul(size)?;
                continue;
            }
        }
        next = end.checked_add(1)?;
    }
    None
}

/// The first address of the first block that is wholly inside the pool.
fn first_block(pool: &PoolEntry) -> Option<u128> {
    let (first, _) = pool.record.range.bits();
    let size = u128::from(pool.record.block_size);
    let aligned = first.div_ceil(size).checked_mul(size)?;
    block_around(&pool.record, aligned).map(|block| bits(block.address()))
}

/// Finds an address outside all blocks, else one at the top of some other host's block.
fn astray(search: &mut Search<'_>) -> Option<u128> {
    let (pool, state) = (search.pool, search.state);
    let (first, last) = pool.record.range.bits();
    let ragged = |bits: &u128| block_around(&pool.record, *bits).is_none();
    let size = u128::from(pool.record.block_size);
    let top = pool.givable.downwards(last.saturating_sub(size), last).filter(ragged);
    let bottom = pool.givable.downwards(first, first.saturating_add(size)).filter(ragged);
    if let Some(found) = search.first_free(top.chain(bottom)) {
        return Some(found);
    }
    let blocks: Vec<&BlockEntry> =
        state.blocks_of(&pool.record.name).rev().filter(|block| !is_full(pool, block)).collect();
    let mut tops = blocks.into_iter().flat_map(|block| {
        let (from, to) = block.record.prefix.range().bits();
        pool.givable.downwards(from, to)
    });
    search.first_free(&mut tops)
}

/// Returns how a pool's addresses are used.
pub(crate) fn usage(state: &State, now: FleetTime, pool: &PoolEntry) -> Usage {
    let clamp = |count: u128| u64::try_from(count).unwrap_or(u64::MAX);
    // Time has steps of many seconds, so there are few of these even where many cool.
    let still = |released: &FleetTime| now < released.plus(pool.record.cooldown);
    let released = pool.tally.released.iter().rev();
    let cooling: u64 = released.take_while(|(at, _)| still(at)).map(|(_, count)| count).sum();
    let size = pool.givable.size();
    let free = size.saturating_sub(u128::from(pool.tally.taken) + u128::from(cooling));
    Usage {
        size: clamp(size),
        held: pool.tally.held,
        reserved: pool.tally.reserved,
        cooling,
        free: clamp(free),
        blocks: u64::try_from(state.block_count(&pool.record.name)).unwrap_or(u64::MAX),
    }
}

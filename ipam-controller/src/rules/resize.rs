//! Pure: what must be gone before a pool loses addresses, all of them or some: nobody has one of them, and
//! what is left of those who had goes along.
//!
//! A pool may have more blocks and cooling addresses than a transaction takes changes. They go in several, and the
//! last one makes sure that nobody was given an address meanwhile, through whichever controller.

use std::net::IpAddr;

use limpet_api::config::Pool;
use limpet_api::{ApiError, ErrorCode};
use limpet_net_types::{Family, PoolName, Range, address_at};
use serde_json::json;

use crate::draft::{Decision, Draft};
use crate::keys::Subject;
use crate::state::{PoolEntry, State};
use crate::store::{Revision, end_of};

/// How many of its leftovers a pool loses in one transaction.
const TOGETHER: usize = 48;

/// How many of the addresses in use an error names.
const NAMED: usize = 10;

/// Decides that a part of what a pool's lost addresses leave behind is cleared away; `range` is what it
/// keeps. Returns whether all of it is gone.
pub(crate) fn clear(state: &State, name: &PoolName, range: Option<Range>) -> Decision<bool> {
    Decision::make(|draft| {
        let pool = state.pool(name);
        draft.rely_on(&Subject::Pool(name.clone()), pool.map(|pool| pool.revision));
        let Some(pool) = pool else { return Ok(true) };
        let lost = lost(pool.record.range, range);
        is_free(state, pool, &lost)?;
        Ok(sweep(state, draft, pool, &lost))
    })
}

/// Takes what is left of a pool's lost addresses along, and relies on nobody being given one of them.
///
/// # Errors
///
/// `pool-in-use` names who has one; `unavailable` if more is left than a transaction takes.
pub(super) fn lose(
    state: &State,
    draft: &mut Draft,
    pool: &PoolEntry,
    range: Option<Range>,
) -> Result<(), ApiError> {
    let lost = lost(pool.record.range, range);
    is_free(state, pool, &lost)?;
    if !sweep(state, draft, pool, &lost) {
        let text =
            format!("addresses of pool {} are given and given up just now", pool.record.name);
        return Err(ApiError::new(ErrorCode::Unavailable, text));
    }
    let network = &pool.record.network;
    let key = |address| Subject::Address(network.clone(), address).key();
    for part in lost {
        let slots = state.slots_between(network, part.first(), part.last());
        let newest = slots.map(|(_, slot)| slot.revision).max().unwrap_or_default();
        draft.rely_on_quiet(key(part.first()), end_of(&key(part.last())), newest);
    }
    // A block of them can be had only with an address of it, except by one whose rest the pool keeps.
    let blocks = state.blocks_of(&pool.record.name);
    let newest = blocks.map(|block| block.revision).max().unwrap_or_default();
    let prefix = format!("blocks/{}/", pool.record.name);
    draft.rely_on_quiet(prefix.clone(), end_of(&prefix), newest);
    Ok(())
}

/// The parts of a range that are not in what is kept of it.
fn lost(range: Range, kept: Option<Range>) -> Vec<Range> {
    let (first, last) = range.bits();
    let Some((from, to)) = kept.filter(|kept| kept.overlaps(range)).map(Range::bits) else {
        return vec![range];
    };
    let below = from.checked_sub(1).filter(|_| first < from).map(|end| (first, end));
    let above = to.checked_add(1).filter(|_| to < last).map(|start| (start, last));
    let part = |(first, last)| between(range.family(), first, last);
    below.into_iter().chain(above).filter_map(part).collect()
}

fn between(family: Family, first: u128, last: u128) -> Option<Range> {
    Range::between(address_at(family, first), address_at(family, last))
}

/// Refuses if anybody has one of the lost addresses.
fn is_free(state: &State, pool: &PoolEntry, lost: &[Range]) -> Result<(), ApiError> {
    let Pool { name, network, .. } = &pool.record;
    let (mut held, mut reserved, mut named) = (0_u64, 0_u64, Vec::<IpAddr>::new());
    for part in lost {
        for (address, slot) in state.slots_between(network, part.first(), part.last()) {
            if slot.record.attachment.is_some() {
                held += 1;
            } else if slot.record.reservation.is_some() {
                reserved += 1;
            } else {
                continue;
            }
            if named.len() < NAMED {
                named.push(address);
            }
        }
    }
    if held + reserved == 0 {
        return Ok(());
    }
    let words: Vec<String> = named.iter().map(IpAddr::to_string).collect();
    let more =
        if held + reserved > u64::try_from(NAMED).unwrap_or(u64::MAX) { " and more" } else { "" };
    let text = format!(
        "pool {name} is in use: {held} of the addresses that it would lose are held by attachments, \
         {reserved} are reserved and not held: {}{more}",
        words.join(", ")
    );
    Err(ApiError::new(ErrorCode::PoolInUse, text)
        .with_details(json!({ "held": held, "reserved": reserved, "addresses": named })))
}

/// Deletes blocks and cooling addresses, as many as go together. Returns whether those are all.
fn sweep(state: &State, draft: &mut Draft, pool: &PoolEntry, lost: &[Range]) -> bool {
    let Pool { name, network, .. } = &pool.record;
    let is_lost = |range: Range| lost.iter().any(|part| part.overlaps(range));
    let blocks = state.blocks_of(name).filter(|block| is_lost(block.record.prefix.range()));
    let blocks =
        blocks.map(|block| (Subject::Block(name.clone(), block.record.prefix), block.revision));
    let slots =
        lost.iter().flat_map(|part| state.slots_between(network, part.first(), part.last()));
    let slots = slots.map(|(at, slot)| (Subject::Address(network.clone(), at), slot.revision));
    let mut left: Vec<(Subject, Revision)> = blocks.chain(slots).take(TOGETHER + 1).collect();
    let is_all = left.len() <= TOGETHER;
    left.truncate(TOGETHER);
    for (subject, revision) in left {
        draft.rely_on(&subject, Some(revision));
        draft.delete(&subject);
    }
    is_all
}

#[cfg(test)]
mod tests {
    use limpet_api::config::PoolChange;
    use limpet_net_types::Token;
    use proptest::prelude::*;

    use super::*;
    use crate::rules::pools::{change, delete};
    use crate::state::sample::{Sample, name};

    fn sample() -> Sample {
        let mut sample = Sample::new();
        sample.network("blue");
        sample.host("a");
        sample.pool("p", "10.0.0.0/24", |pool| pool.block_size = 4);
        sample
    }

    fn resize(sample: &mut Sample, range: &str) -> Result<Pool, ApiError> {
        let range: Range = name(range);
        while !sample.decided(|state| clear(state, &name("p"), Some(range)))? {}
        let wanted = PoolChange { range: Some(range), ..PoolChange::default() };
        sample.decided(|state| change(state, &name("p"), &wanted)).map(|entry| entry.record)
    }

    #[test]
    fn a_pool_grows_at_either_end_and_gives_what_it_got() {
        let mut sample = sample();
        sample.pool("q", "10.0.2.0/24", |_| {});
        assert_eq!(resize(&mut sample, "10.0.0.0/23").unwrap().range, name("10.0.0.0/23"));
        let error = resize(&mut sample, "10.0.0.0/22").unwrap_err();
        assert_eq!(error.code, ErrorCode::PoolOverlaps);
        let error = resize(&mut sample, "fd00::/64").unwrap_err();
        assert_eq!(error.code, ErrorCode::Invalid);
        sample.change_host("a", |host| host.addresses = vec![name("10.0.4.1")]);
        sample.decided(|state| delete(state, &name("q"))).unwrap();
        let error = resize(&mut sample, "10.0.0.0/21").unwrap_err();
        assert_eq!(error.code, ErrorCode::PoolContainsHost);
    }

    #[test]
    fn a_pool_shrinks_over_addresses_that_nobody_has_and_says_who_has_one() {
        let mut sample = sample();
        for n in 0..3 {
            sample.attach("a", &format!("c{n}"));
        }
        let error = resize(&mut sample, "10.0.0.2..10.0.0.255").unwrap_err();
        assert_eq!(error.code, ErrorCode::PoolInUse);
        assert_eq!(error.details["held"], 1, "{error}");
        assert!(error.message.contains("10.0.0.1"), "{error}");
        assert_eq!(resize(&mut sample, "10.0.0.0..10.0.0.9").unwrap().range.size(), 10);
        assert_eq!(sample.state().blocks().count(), 1, "the host's block is wholly inside");
        assert_eq!(resize(&mut sample, "10.0.0.1..10.0.0.9").unwrap().range.size(), 9);
        assert_eq!(sample.state().blocks().count(), 0, "it lost an address");
        assert_eq!(sample.state().strays().count(), 3, "and its containers are strays");
    }

    #[test]
    fn more_leftovers_than_a_transaction_takes_go_in_several() {
        let mut sample = sample();
        for n in 0..200 {
            sample.attach("a", &format!("c{n}"));
        }
        let attached: Vec<_> = sample
            .state()
            .attachments()
            .map(|entry| (entry.record.key.clone(), entry.record.uid))
            .collect();
        for (key, uid) in attached {
            let session = Token::from_bits(7);
            let reason = limpet_api::book::EndReason::Detached;
            let request = limpet_api::host::EndRequest { session, uid, reason };
            sample.decided(|state| crate::alloc::ends::end(state, &key, &request)).unwrap();
        }
        let pool = name("p");
        let error = sample.decided(|state| delete(state, &pool)).unwrap_err();
        assert_eq!(error.code, ErrorCode::Unavailable);
        let mut rounds = 1;
        while !sample.decided(|state| clear(state, &pool, None)).unwrap() {
            rounds += 1;
        }
        assert!(rounds > 3, "{rounds}");
        sample.decided(|state| delete(state, &pool)).unwrap();
        assert_eq!(sample.state().slots().count(), 0);
        assert_eq!(sample.state().blocks().count(), 0);
    }

    #[test]
    fn whoever_is_given_a_lost_address_meanwhile_is_noticed() {
        let sample = sample();
        let txn = delete(sample.state(), &name("p")).draft.into_txn();
        let inside = Subject::Address(name("blue"), name("10.0.0.77")).key();
        assert!(txn.quiet.iter().any(|quiet| quiet.covers(&inside)));
        let outside = Subject::Address(name("blue"), name("10.0.1.0")).key();
        assert!(!txn.quiet.iter().any(|quiet| quiet.covers(&outside)));
    }

    proptest! {
        #[test]
        fn what_is_lost_is_what_is_not_kept(a in 0..20_u128, b in 0..20_u128, c in 0..20_u128, d in 0..20_u128) {
            let range = |x: u128, y: u128| between(Family::V4, x.min(y), x.max(y)).unwrap();
            let (before, after) = (range(a, b), range(c, d));
            let lost = lost(before, Some(after));
            for bits in 0..20 {
                let address = address_at(Family::V4, bits);
                let expected = before.contains(address) && !after.contains(address);
                prop_assert_eq!(lost.iter().any(|part| part.contains(address)), expected);
            }
        }
    }
}

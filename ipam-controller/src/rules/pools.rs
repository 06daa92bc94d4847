//! Pure: pools: no two of one address space share an address, none has a host's address, each can give some.

use std::net::IpAddr;

use limpet_api::config::{
    DEFAULT_BLOCK_SIZE, DEFAULT_COOLDOWN, DEFAULT_RETENTION, DEFAULT_TAKEOVER_AFTER, Pool,
    PoolChange, PoolSpec, PoolState,
};
use limpet_api::{ApiError, ErrorCode};
use limpet_net_types::{Family, PoolName, Range};

use super::{resize::lose, spaces};
use crate::draft::{Decision, Draft, refuse};
use crate::givable::Givable;
use crate::keys::Subject;
use crate::state::{Entry, PoolEntry, State, block_around};
use crate::store::Revision;

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
        let Some(network) = network else {
            let text = format!("there is no network {}", spec.network);
            return refuse(ErrorCode::NetworkNotFound, text);
        };
        let existing = state.pool(name);
        draft.rely_on(&Subject::Pool(name.clone()), existing.map(|pool| pool.revision));
        let pool = wanted(name, spec);
        if let Some(existing) = existing {
            return same(existing, spec, pool);
        }
        usable(pool.range)?;
        block_size(&pool, spec)?;
        gives(&pool)?;
        spaces::can_have(state, &network.record, &pool)?;
        draft.change_config(state);
        draft.put(&Subject::Pool(name.clone()), &pool);
        Ok(Entry { record: pool, revision: Revision::OWN })
    })
}

/// Decides a change of a pool.
pub(crate) fn change(state: &State, name: &PoolName, change: &PoolChange) -> Decision<Entry<Pool>> {
    Decision::make(|draft| {
        let entry = found(state, draft, name)?;
        let before = &entry.record;
        let change = change.clone();
        let pool = Pool {
            range: change.range.unwrap_or(before.range),
            exclude: change.exclude.unwrap_or_else(|| before.exclude.clone()),
            sticky: change.sticky.unwrap_or(before.sticky),
            retention: change.retention.unwrap_or(before.retention),
            cooldown: change.cooldown.unwrap_or(before.cooldown),
            takeover_after: change.takeover_after.unwrap_or(before.takeover_after),
            select: change.select.unwrap_or_else(|| before.select.clone()),
            priority: change.priority.unwrap_or(before.priority),
            state: change.state.unwrap_or(before.state),
            ..before.clone()
        };
        if pool == *before {
            return Ok(Entry { record: pool, revision: entry.revision });
        }
        gives(&pool)?;
        if pool.range != before.range {
            can_be(state, before, &pool)?;
            lose(state, draft, entry, Some(pool.range))?;
        }
        draft.change_config(state);
        draft.put(&Subject::Pool(name.clone()), &pool);
        Ok(Entry { record: pool, revision: Revision::OWN })
    })
}

/// Checks that a pool can have another range than before.
fn can_be(state: &State, before: &Pool, pool: &Pool) -> Result<(), ApiError> {
    let Pool { name, range, .. } = pool;
    if range.family() != before.range.family() {
        let text = format!(
            "pool {name} is of {}, and {range} is not: make another pool for it",
            before.range.family()
        );
        return refuse(ErrorCode::Invalid, text);
    }
    usable(*range)?;
    fits(pool)?;
    let Some(network) = state.network(&pool.network) else { return Ok(()) };
    spaces::can_have(state, &network.record, pool)
}

/// Decides the removal of a pool, with its blocks and what is left of addresses given back.
pub(crate) fn delete(state: &State, name: &PoolName) -> Decision<()> {
    Decision::make(|draft| {
        let pool = found(state, draft, name)?;
        lose(state, draft, pool, None)?;
        draft.change_config(state);
        draft.delete(&Subject::Pool(name.clone()));
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
        takeover_after: spec.takeover_after.unwrap_or(DEFAULT_TAKEOVER_AFTER),
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
    fits(pool)
}

fn fits(pool: &Pool) -> Result<(), ApiError> {
    if fits_a_block(pool) {
        return Ok(());
    }
    let Pool { range, block_size, .. } = pool;
    let text = format!(
        "no aligned block of {block_size} addresses is wholly inside {range}, so that hosts could not share it by blocks"
    );
    refuse(ErrorCode::Invalid, text)
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

/// Returns whether an address can be a host's: one that others can send to.
pub(super) fn is_host_address(address: IpAddr) -> bool {
    let mut never = NEVER.iter().filter_map(|(never, _)| never.parse::<Range>().ok());
    let family = Family::of(address);
    !never.any(|never| never.family() == family && never.contains(address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::sample::{Sample, name};

    fn spec(range: &str) -> PoolSpec {
        PoolSpec {
            network: name("blue"),
            range: name(range),
            exclude: vec![],
            block_size: None,
            sticky: limpet_api::config::Sticky::Auto,
            retention: None,
            cooldown: None,
            takeover_after: None,
            select: limpet_api::config::Select::default(),
            priority: 0,
        }
    }

    fn made(sample: &mut Sample, pool: &str, spec: &PoolSpec) -> Result<Pool, ApiError> {
        let before = sample.state().clone();
        let made = sample.decided(|state| create(state, &name(pool), spec));
        if made.is_err() {
            assert_eq!(*sample.state(), before, "a refusal changes nothing");
        }
        made.map(|entry| entry.record)
    }

    fn code(sample: &mut Sample, spec: &PoolSpec) -> ErrorCode {
        made(sample, "new", spec).unwrap_err().code
    }

    fn sample() -> Sample {
        let mut sample = Sample::new();
        sample.network("blue");
        sample.network("red");
        sample.host("a");
        sample.change_host("a", |host| {
            host.underlay = Some(name("192.0.2.1"));
            host.addresses = vec![name("198.51.100.1"), name("2001:db8::1")];
            host.external = [name("203.0.113.0/24")].into();
        });
        sample
    }

    #[test]
    fn overlapping_pools_are_refused_in_whichever_network() {
        let mut sample = sample();
        made(&mut sample, "p", &spec("10.0.0.0/24")).unwrap();
        made(&mut sample, "q", &spec("fd00::/64")).unwrap();
        for range in ["10.0.0.0/16", "10.0.0.255..10.0.1.3", "fd00::1..fd00::2"] {
            let red = PoolSpec { network: name("red"), ..spec(range) };
            let error = made(&mut sample, "new", &red).unwrap_err();
            assert_eq!(error.code, ErrorCode::PoolOverlaps, "{range}");
        }
        made(&mut sample, "new", &spec("10.0.1.0/24")).unwrap();
    }

    #[test]
    fn a_pool_around_a_hosts_address_is_refused_and_says_whose() {
        let mut sample = sample();
        let alive = sample.state().session(&name("a")).unwrap().record.clone();
        let on_link = [name("192.168.0.0/16")].into();
        let alive = crate::records::Alive { on_link, ..alive };
        sample.put(&Subject::Session(name("a")), &alive);
        for range in ["192.168.7.0/24", "192.0.0.0/8"] {
            let error = made(&mut sample, "new", &spec(range)).unwrap_err();
            assert_eq!(error.code, ErrorCode::PoolContainsHost, "{range}");
        }
        for range in ["192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/64"] {
            let error = made(&mut sample, "new", &spec(range)).unwrap_err();
            assert_eq!(error.code, ErrorCode::PoolContainsHost, "{range}");
            assert!(error.message.ends_with("of host a"), "{error}");
        }
        made(&mut sample, "part", &spec("203.0.113.128/25")).unwrap();
    }

    #[test]
    fn a_pool_without_an_address_to_give_is_refused() {
        let mut sample = sample();
        let all = PoolSpec { exclude: vec![name("10.0.0.0/24")], ..spec("10.0.0.0/30") };
        assert_eq!(code(&mut sample, &all), ErrorCode::PoolEmpty);
        let both = vec![name("10.0.0.1..10.0.0.1"), name("10.0.0.2..10.0.0.2")];
        assert_eq!(
            code(&mut sample, &PoolSpec { exclude: both, ..spec("10.0.0.0/30") }),
            ErrorCode::PoolEmpty
        );
        let elsewhere = PoolSpec { exclude: vec![name("10.9.0.0/24")], ..spec("10.0.0.0/30") };
        assert_eq!(code(&mut sample, &elsewhere), ErrorCode::Invalid);
        made(&mut sample, "one", &spec("10.0.0.7/32")).unwrap();
    }

    #[test]
    fn what_no_container_can_have_is_no_pool() {
        let mut sample = sample();
        for range in
            ["127.0.0.0/24", "224.1.0.0/24", "169.254.1.0/24", "fe80::/64", "::/0", "0.0.0.0/0"]
        {
            assert_eq!(code(&mut sample, &spec(range)), ErrorCode::Invalid, "{range}");
        }
    }

    #[test]
    fn the_block_size_fits_the_pool_or_is_refused() {
        let mut sample = sample();
        let sized = |size| PoolSpec { block_size: Some(size), ..spec("10.0.0.0/28") };
        for wrong in [0, 3, 32, 131_072] {
            assert_eq!(code(&mut sample, &sized(wrong)), ErrorCode::Invalid, "{wrong}");
        }
        assert_eq!(made(&mut sample, "p", &sized(16)).unwrap().block_size, 16);
        let small = made(&mut sample, "q", &spec("10.0.1.0/28")).unwrap();
        assert_eq!(small.block_size, 16, "left out, it is made to fit");
        let ragged = made(&mut sample, "r", &spec("10.0.2.3..10.0.2.6")).unwrap();
        assert_eq!(ragged.block_size, 2);
        assert_eq!(made(&mut sample, "s", &spec("10.1.0.0/16")).unwrap().block_size, 64);
    }

    #[test]
    fn a_pool_repeated_is_the_same_and_changed_is_refused() {
        let mut sample = sample();
        let first = made(&mut sample, "p", &spec("10.0.0.0/24")).unwrap();
        let before = sample.state().revision();
        assert_eq!(made(&mut sample, "p", &spec("10.0.0.0/24")).unwrap(), first);
        assert_eq!(sample.state().revision(), before, "nothing was written");
        let other = made(&mut sample, "p", &spec("10.0.0.0/25")).unwrap_err();
        assert_eq!(other.code, ErrorCode::PoolExists);
        let unknown = PoolSpec { network: name("none"), ..spec("10.9.0.0/24") };
        assert_eq!(code(&mut sample, &unknown), ErrorCode::NetworkNotFound);
    }

    #[test]
    fn a_pool_in_use_stays_and_one_that_was_goes_with_all_its_traces() {
        let mut sample = sample();
        made(&mut sample, "p", &spec("10.0.0.0/24")).unwrap();
        let key = crate::state::reservation_key(&name("blue"), &name("_"), &name("db"));
        let spec = limpet_api::book::ReservationSpec::default();
        sample.decided(|state| crate::alloc::reserve::create(state, &key, &spec)).unwrap();
        let error = sample.decided(|state| delete(state, &name("p"))).unwrap_err();
        assert_eq!(error.code, ErrorCode::PoolInUse);
        sample.decided(|state| crate::alloc::reserve::release(state, &key)).unwrap();
        sample.decided(|state| delete(state, &name("p"))).unwrap();
        sample.pool("again", "10.0.0.0/24", |_| {});
        let pool = sample.state().pool(&name("again")).unwrap();
        assert_eq!(sample.state().slots_of(&pool.record).count(), 0);
    }

    #[test]
    fn a_change_that_leaves_nothing_to_give_is_refused() {
        let mut sample = sample();
        made(&mut sample, "p", &spec("10.0.0.0/30")).unwrap();
        let exclude =
            |range: &str| PoolChange { exclude: Some(vec![name(range)]), ..PoolChange::default() };
        let mut changed =
            |range| sample.decided(|state| change(state, &name("p"), &exclude(range)));
        assert_eq!(changed("10.0.0.0/30").unwrap_err().code, ErrorCode::PoolEmpty);
        assert_eq!(changed("10.0.0.1").unwrap().record.exclude, [name::<Range>("10.0.0.1")]);
    }
}

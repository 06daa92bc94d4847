//! Pure: what is said of pools that have no address left: who has them all, and what could be released.
//!
//! It is put together only for a refusal, and however large a pool is, only so much is looked at.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::ops::Bound;

use limpet_api::book::Reservation;
use limpet_api::config::Usage;
use limpet_api::{ApiError, ErrorCode, FleetTime};
use serde_json::{Value, json};

use super::pick::usage;
use crate::state::{Place, PoolEntry, State};

/// How many namespaces are named, those with the most addresses.
const NAMESPACES: usize = 5;

/// How many reservations are named, those that were detached longest ago.
const RESERVATIONS: usize = 5;

/// How many reservations of the network are looked at for that.
const LOOKED_AT: usize = 50_000;

/// The refusal of an address where all `pools` that could give one have none left.
pub(super) fn full(state: &State, now: FleetTime, pools: &[&PoolEntry]) -> ApiError {
    let text: Vec<String> = pools.iter().map(|pool| words(state, now, pool)).collect();
    let mut told = pools.iter().map(|pool| details(state, now, pool));
    let mut first = told.next().unwrap_or_default();
    let others: Vec<Value> = told.collect();
    if !others.is_empty() {
        first["others"] = Value::Array(others);
    }
    ApiError::new(ErrorCode::PoolFull, text.join("; ")).with_details(first)
}

fn words(state: &State, now: FleetTime, pool: &PoolEntry) -> String {
    let Usage { size, held, reserved, cooling, .. } = usage(state, now, pool);
    format!(
        "pool {} ({}) is full: of {size} addresses {held} are held by attachments, {reserved} are reserved \
         and not held, {cooling} are cooling",
        pool.record.name, pool.record.range
    )
}

fn details(state: &State, now: FleetTime, pool: &PoolEntry) -> Value {
    let Usage { size, held, reserved, cooling, .. } = usage(state, now, pool);
    let mut by: Vec<_> = state.used_of(&pool.record.name).collect();
    by.sort_by_key(|(_, used)| Reverse((used.held, used.reserved)));
    let by = by.into_iter().take(NAMESPACES).map(|(namespace, used)| {
        json!({ "namespace": namespace, "held": used.held, "reserved": used.reserved })
    });
    let detached = if reserved == 0 { Vec::new() } else { detached(state, now, pool) };
    json!({
        "pool": pool.record.name, "range": pool.record.range, "size": size, "held": held,
        "reserved": reserved, "cooling": cooling, "releasable": reserved,
        "by": by.collect::<Vec<_>>(), "detached": detached,
    })
}

/// The reservations that were detached longest ago, or were never attached, and could be released.
fn detached(state: &State, now: FleetTime, pool: &PoolEntry) -> Vec<Value> {
    let network = &pool.record.network;
    let start = Place([network.to_string(), String::new(), String::new()]);
    let of_network = state
        .reservations_from(Bound::Included(&start))
        .map(|entry| &entry.record)
        .take_while(|reservation| reservation.network == *network)
        .take(LOOKED_AT);
    let mut longest = BTreeSet::new();
    for (place, reservation) in of_network.enumerate() {
        if !is_releasable(state, pool, reservation) {
            continue;
        }
        let since = reservation.detached_at.or(reservation.created).unwrap_or_default();
        longest.insert((since, place, &reservation.namespace, &reservation.name));
        if longest.len() > RESERVATIONS {
            longest.pop_last();
        }
    }
    let told = longest.into_iter().map(|(since, _, namespace, name)| {
        json!({ "namespace": namespace, "name": name, "since": since, "for": now.since(since) })
    });
    told.collect()
}

fn is_releasable(state: &State, pool: &PoolEntry, reservation: &Reservation) -> bool {
    let has = reservation.addresses.iter().any(|held| held.pool == pool.record.name);
    has && super::reserve::holder(state, reservation).is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alloc::pick::next;
    use crate::alloc::{Outcome, Patience, claim::claim, ends::end};
    use crate::state::sample::{Sample, name};
    use limpet_api::book::{AttachmentKey, EndReason};
    use limpet_api::host::{ClaimRequest, EndRequest, Wanted};
    use limpet_net_types::Token;

    fn ask(
        sample: &mut Sample,
        bits: u128,
        workload: Option<(&str, &str)>,
    ) -> Result<(), ApiError> {
        let container = name(&format!("c{bits}"));
        let (host, network) = (name("a"), name("blue"));
        let key = AttachmentKey { host, network, container, ifname: name("eth0") };
        let mut wanted = Wanted { name: workload.map(|(_, n)| name(n)), ..Wanted::default() };
        if let Some((namespace, _)) = workload {
            wanted.namespace = name(namespace);
        }
        let (session, uid) = (Token::from_bits(7), Token::from_bits(bits));
        let request = ClaimRequest { session, uid, wanted };
        let outcome = sample.decided(|state| claim(state, &key, &request, Patience::Over))?;
        assert!(matches!(outcome, Outcome::Done(_)));
        if workload.is_some_and(|(namespace, _)| namespace == "gone") {
            let request = EndRequest { session, uid, reason: EndReason::Detached };
            sample.decided(|state| end(state, &key, &request)).unwrap();
        }
        Ok(())
    }

    #[test]
    fn a_full_pool_says_who_has_it_and_which_reservations_wait_longest() {
        let mut sample = Sample::new();
        sample.network("blue");
        sample.host("a");
        sample.pool("p", "10.0.0.0/28", |_| {});
        for n in 0..7 {
            sample.wait(100);
            ask(&mut sample, n, Some(("gone", &format!("web-{}", 9 - n)))).unwrap();
        }
        for n in 7..10 {
            ask(&mut sample, n, Some(("prod", &format!("db-{n}")))).unwrap();
        }
        for n in 10..14 {
            ask(&mut sample, n, None).unwrap();
        }
        sample.wait(100);
        let error = ask(&mut sample, 99, None).unwrap_err();
        assert_eq!(
            error.message,
            "pool p (10.0.0.0/28) is full: of 14 addresses 7 are held by attachments, 7 are reserved and not held, \
             0 are cooling"
        );
        let details = &error.details;
        assert_eq!(details["releasable"], 7);
        assert_eq!(details["by"][0], json!({"namespace": "_", "held": 4, "reserved": 0}));
        assert_eq!(details["by"][1]["namespace"], "prod");
        assert_eq!(details["by"][2], json!({"namespace": "gone", "held": 0, "reserved": 7}));
        let longest = details["detached"].as_array().unwrap();
        let names: Vec<&str> = longest.iter().map(|one| one["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["web-9", "web-8", "web-7", "web-6", "web-5"]);
        assert_eq!((&longest[0]["since"], &longest[0]["for"]), (&json!(100), &json!("700s")));
        assert_eq!(details["others"], Value::Null);
    }

    #[test]
    fn all_pools_of_equal_rank_are_named_when_none_has_an_address() {
        let mut sample = Sample::new();
        sample.network("blue");
        sample.host("a");
        sample.pool("p", "10.0.0.0/30", |_| {});
        sample.pool("q", "10.0.1.0/30", |_| {});
        sample.pool("low", "10.0.2.0/30", |pool| pool.priority = -1);
        for n in 0..4 {
            ask(&mut sample, n, None).unwrap();
        }
        let error = ask(&mut sample, 99, None).unwrap_err();
        assert!(error.message.contains("pool p (10.0.0.0/30) is full"), "{error}");
        assert!(error.message.contains("; pool q (10.0.1.0/30) is full"), "{error}");
        assert!(!error.message.contains("low"), "{error}");
        assert_eq!(
            (&error.details["pool"], &error.details["others"][0]["pool"]),
            (&json!("p"), &json!("q"))
        );
        let state = sample.state();
        let low = state.pool(&name("low")).unwrap();
        assert!(next(state, state.now(), low, &name("a")).is_some());
    }
}

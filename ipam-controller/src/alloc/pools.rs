//! Pure: which pool serves whom: one asked for, else one whose rules match, else one without.

use std::collections::BTreeMap;

use limpet_api::config::{Host, Pool, PoolState, Select, Sticky};
use limpet_api::{ApiError, ErrorCode};
use limpet_net_types::{Family, LabelKey, Namespace, NetworkName, PoolName, WorkloadName};

use crate::draft::refuse;
use crate::state::{PoolEntry, State};

/// Who wants an address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Workload<'a> {
    /// Its namespace.
    pub(crate) namespace: &'a Namespace,
    /// Its name, if it has one.
    pub(crate) name: Option<&'a WorkloadName>,
    /// The host that it runs on, if it runs.
    pub(crate) host: Option<&'a Host>,
}

/// Returns the families that a network's pools have, IPv4 first.
pub(crate) fn families(state: &State, network: &NetworkName) -> Vec<Family> {
    let has = |family| state.pools_of(network).any(|pool| pool.record.family() == family);
    Family::BOTH.into_iter().filter(|&family| has(family)).collect()
}

/// Returns the pools named, by their families.
///
/// # Errors
///
/// `pool-not-found`, or `invalid` if one is of another network or two are of one family.
pub(crate) fn named<'a>(
    state: &'a State,
    network: &NetworkName,
    names: &[PoolName],
) -> Result<BTreeMap<Family, &'a PoolEntry>, ApiError> {
    let mut pools = BTreeMap::new();
    for name in names {
        let Some(pool) = state.pool(name) else {
            return refuse(ErrorCode::PoolNotFound, format!("there is no pool {name}"));
        };
        if pool.record.network != *network {
            let of = &pool.record.network;
            let text = format!("pool {name} is of network {of}, not of {network}");
            return refuse(ErrorCode::Invalid, text);
        }
        let family = pool.record.family();
        if let Some(other) = pools.insert(family, pool) {
            let text =
                format!("pools {} and {name} are both of {family}: ask for one", other.record.name);
            return refuse(ErrorCode::Invalid, text);
        }
    }
    Ok(pools)
}

/// Returns the pools of a family that may serve `workload`, to be tried in this order.
///
/// They are of equal rank: all with rules that match or all without rules, and of one priority.
/// A pool of lower rank is not tried when these are full: it was not given to this workload.
///
/// # Errors
///
/// `no-pool`, saying what stands in the way.
pub(crate) fn serving<'a>(
    state: &'a State,
    network: &NetworkName,
    family: Family,
    workload: Workload<'_>,
) -> Result<Vec<&'a PoolEntry>, ApiError> {
    let rank = |pool: &Pool| (!pool.select.is_empty(), pool.priority);
    let mut serving: Vec<&PoolEntry> = state
        .pools_of(network)
        .filter(|pool| pool.record.family() == family)
        .filter(|pool| pool.record.state == PoolState::Active)
        .filter(|pool| matches(&pool.record.select, workload))
        .collect();
    serving.sort_by(|a, b| {
        rank(&b.record).cmp(&rank(&a.record)).then_with(|| a.record.name.cmp(&b.record.name))
    });
    let Some(best) = serving.first().map(|pool| rank(&pool.record)) else {
        let of_family = state.pools_of(network).filter(|pool| pool.record.family() == family);
        let others: Vec<String> = of_family
            .map(|pool| match pool.record.state {
                PoolState::Draining => format!("{} is draining", pool.record.name),
                PoolState::Active => format!("{} is for others", pool.record.name),
            })
            .collect();
        let others = if others.is_empty() { "it has none".to_owned() } else { others.join(", ") };
        let who =
            workload.name.map_or("it".to_owned(), |name| format!("{}/{name}", workload.namespace));
        let text = format!("no {family} pool of network {network} serves {who}: {others}");
        return refuse(ErrorCode::NoPool, text);
    };
    serving.retain(|pool| rank(&pool.record) == best);
    Ok(serving)
}

/// Whether a pool's rule lets `workload` use it without naming it.
fn matches(select: &Select, workload: Workload<'_>) -> bool {
    let namespace = select.namespaces.is_empty() || select.namespaces.contains(workload.namespace);
    let name = select.names.is_empty()
        || workload
            .name
            .is_some_and(|name| select.names.iter().any(|pattern| pattern.matches(name.as_str())));
    let has = |(key, value): (&LabelKey, &String)| {
        workload.host.is_some_and(|host| host.labels.get(key) == Some(value))
    };
    namespace && name && select.host_labels.iter().all(has)
}

/// Whether a name gets a reservation from a pool with this rule.
pub(crate) fn is_sticky(rule: Sticky, name: Option<&WorkloadName>, asked: Option<bool>) -> bool {
    match (rule, name) {
        (_, None) | (Sticky::Never, _) => false,
        (Sticky::Always, Some(_)) => true,
        (Sticky::Auto, Some(name)) => asked.unwrap_or_else(|| name.has_ordinal()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::sample::{Sample, name};

    fn chosen(sample: &Sample, namespace: &str, name: Option<&str>) -> Result<Vec<String>, String> {
        let (namespace, name) = (namespace.parse().unwrap(), name.map(|n| n.parse().unwrap()));
        let state = sample.state();
        let host = state.host(&self::name("a")).map(|host| host.record.clone());
        let workload = Workload { namespace: &namespace, name: name.as_ref(), host: host.as_ref() };
        serving(state, &self::name("blue"), Family::V4, workload)
            .map(|pools| pools.iter().map(|pool| pool.record.name.to_string()).collect())
            .map_err(|error| error.message)
    }

    #[test]
    fn a_rule_that_matches_comes_before_priority_and_priority_before_the_name() {
        let mut sample = Sample::new();
        sample.network("blue");
        sample.host("a");
        sample.pool("any", "10.0.0.0/24", |pool| pool.priority = 9);
        sample.pool("any-low", "10.0.1.0/24", |_| {});
        assert_eq!(chosen(&sample, "db", None), Ok(vec!["any".to_owned()]));
        sample.pool("z-db", "10.0.2.0/24", |pool| {
            pool.select.namespaces.insert(name("db"));
        });
        sample.pool("y-db", "10.0.3.0/24", |pool| {
            pool.select.namespaces.insert(name("db"));
        });
        assert_eq!(chosen(&sample, "db", None), Ok(vec!["y-db".to_owned(), "z-db".to_owned()]));
        assert_eq!(chosen(&sample, "web", None), Ok(vec!["any".to_owned()]));
        sample.pool("names", "10.0.4.0/24", |pool| {
            pool.select.names.insert(name("web-*"));
            pool.priority = 1;
        });
        assert_eq!(chosen(&sample, "db", Some("web-0")), Ok(vec!["names".to_owned()]));
        assert_eq!(chosen(&sample, "db", None), Ok(vec!["y-db".to_owned(), "z-db".to_owned()]));
    }

    #[test]
    fn host_labels_must_all_match() {
        let mut sample = Sample::new();
        sample.network("blue");
        sample.host("a");
        sample.pool("ssd", "10.0.0.0/24", |pool| {
            pool.select.host_labels.insert(name("disk"), "ssd".to_owned());
        });
        let error = chosen(&sample, "db", Some("db-0")).unwrap_err();
        assert_eq!(error, "no IPv4 pool of network blue serves db/db-0: ssd is for others");
        sample.change_host("a", |host| {
            host.labels.insert(name("disk"), "ssd".to_owned());
        });
        assert_eq!(chosen(&sample, "db", None), Ok(vec!["ssd".to_owned()]));
    }

    #[test]
    fn a_draining_pool_serves_nobody() {
        let mut sample = Sample::new();
        sample.network("blue");
        sample.pool("old", "10.0.0.0/24", |pool| pool.state = PoolState::Draining);
        let error = chosen(&sample, "db", None).unwrap_err();
        assert_eq!(error, "no IPv4 pool of network blue serves it: old is draining");
    }

    #[test]
    fn what_is_sticky() {
        let (ordinal, plain) = (name("web-0"), name("web-7f9c"));
        let cases = [
            (Sticky::Auto, Some(&ordinal), None, true),
            (Sticky::Auto, Some(&plain), None, false),
            (Sticky::Auto, Some(&plain), Some(true), true),
            (Sticky::Auto, Some(&ordinal), Some(false), false),
            (Sticky::Auto, None, Some(true), false),
            (Sticky::Always, Some(&plain), None, true),
            (Sticky::Always, None, None, false),
            (Sticky::Never, Some(&ordinal), Some(true), false),
        ];
        for (rule, name, asked, expected) in cases {
            assert_eq!(is_sticky(rule, name, asked), expected, "{rule:?} {name:?} {asked:?}");
        }
    }
}

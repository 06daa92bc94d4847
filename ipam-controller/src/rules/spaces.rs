//! Pure: address spaces: which pools may have addresses in common, and which hosts may be members of both.
//!
//! Networks share one space unless they were created with one of their own. A host tells the containers of two such
//! spaces apart by marks. Packets of the shared space have none, so no host is in it and in another by one address. Nor
//! has a host marks for its own packets and those that come from behind a gateway: so the machines that joined for
//! these, members and gateways, are in one space by any address.

use std::collections::BTreeSet;
use std::net::IpAddr;

use limpet_api::config::{Host, Network, Pool, Role};
use limpet_api::{ApiError, ErrorCode};
use limpet_net_types::{HostName, NetworkName, PoolName, Prefix, Range};
use serde_json::json;

use crate::draft::refuse;
use crate::state::State;

/// The address space of a network, in words.
pub(super) fn words(own_space: bool) -> &'static str {
    if own_space { "an address space of its own" } else { "the shared address space" }
}

/// Whether an address of both networks would be in two places.
fn is_one(a: &Network, b: &Network) -> bool {
    a.name == b.name || !(a.own_space || b.own_space)
}

/// The pools of all networks that have addresses of a range, but for the pool itself.
fn others<'a>(
    state: &'a State,
    range: Range,
    name: &PoolName,
) -> impl Iterator<Item = (&'a Pool, &'a Network)> {
    let pools = state.pools().map(|pool| &pool.record);
    pools
        .filter(move |other| other.name != *name && other.range.overlaps(range))
        .filter_map(|other| Some((other, &state.network(&other.network)?.record)))
}

/// Checks the range of a pool of `network` against all other pools and all hosts.
///
/// # Errors
///
/// `pool-overlaps`, `spaces-overlap` or `pool-contains-host`, which name what is in the way.
pub(super) fn can_have(state: &State, network: &Network, pool: &Pool) -> Result<(), ApiError> {
    let Pool { name, range, .. } = pool;
    let mut same = others(state, *range, name).filter(|(_, other)| is_one(network, other));
    if let Some((Pool { name, network, range: theirs, .. }, _)) = same.next() {
        let text = format!(
            "{range} has addresses in common with {theirs} of pool {name} in network {network}"
        );
        return Err(ApiError::new(ErrorCode::PoolOverlaps, text)
            .with_details(json!({ "pool": name, "network": network, "range": theirs })));
    }
    for (other, theirs) in others(state, *range, name) {
        let mut hosts = state.hosts().map(|host| &host.record);
        if let Some(host) = hosts.find(|host| !can_be_in_both(host, network, theirs)) {
            return Err(ambiguous(host, (pool, network), (other, theirs)));
        }
    }
    holds_no_host(state, network, *range, name)
}

/// Whether a host is not a member of both of two networks that have addresses in common, or can tell them apart.
fn can_be_in_both(host: &Host, one: &Network, other: &Network) -> bool {
    let is_member_of_both = host.is_member_of(one) && host.is_member_of(other);
    !is_member_of_both || (one.own_space && other.own_space && is_only_node(host))
}

/// Whether a host is there for its containers alone.
fn is_only_node(host: &Host) -> bool {
    host.roles.iter().all(|role| *role == Role::Node)
}

fn ambiguous(host: &Host, one: (&Pool, &Network), other: (&Pool, &Network)) -> ApiError {
    let name = &host.name;
    let said = |(pool, _): (&Pool, &Network)| format!("{} of network {}", pool.range, pool.network);
    let shared = [one, other].into_iter().find(|(_, network)| !network.own_space);
    let why = if let Some((_, Network { name, .. })) = shared {
        format!(
            "no host can be, because network {name} has {}, whose packets carry no mark",
            words(false)
        )
    } else {
        "only a host that has no role but node can be, because its own packets to such an address \
         could mean either"
            .to_owned()
    };
    let text = format!(
        "{} and {} have addresses in common, and host {name} would be a member of both: {why}",
        said(one),
        said(other)
    );
    let pools = [&one.0.name, &other.0.name];
    ApiError::new(ErrorCode::SpacesOverlap, text)
        .with_details(json!({ "host": name, "pools": pools }))
}

/// Whether a host cannot have an address that a pool has.
///
/// With the shared space that is every host: whoever is a member of it sends the packets of its tunnels by the same
/// tables.
fn excludes(state: &State, pool: &Pool, host: &Host) -> bool {
    let network = state.network(&pool.network).map(|network| &network.record);
    network.is_none_or(|network| !network.own_space || host.is_member_of(network))
}

fn holds_no_host(
    state: &State,
    network: &Network,
    range: Range,
    name: &PoolName,
) -> Result<(), ApiError> {
    let concerned = |host: &&Host| !network.own_space || host.is_member_of(network);
    for host in state.hosts().map(|host| &host.record).filter(concerned) {
        let on_link = state.session(&host.name).map(|session| &session.record.on_link);
        let (found, text) = if let Some(found) = conflict(range, host) {
            let text = format!("{range} of pool {name} contains {found} of host {}", host.name);
            (found, text)
        } else if let Some(found) = on_link.and_then(|on_link| shared(range, on_link)) {
            let text = format!(
                "{range} of pool {name} has addresses in common with {found}, which is on a link of \
                 host {}",
                host.name
            );
            (found.to_string(), text)
        } else {
            continue;
        };
        return Err(ApiError::new(ErrorCode::PoolContainsHost, text)
            .with_details(json!({ "host": host.name, "found": found })));
    }
    Ok(())
}

fn shared(range: Range, on_link: &BTreeSet<Prefix>) -> Option<Prefix> {
    on_link.iter().copied().find(|on_link| on_link.range().overlaps(range))
}

/// Returns what of a host lies in a range: an address of its own, or a prefix behind it.
///
/// A prefix that is larger than the range is none: hosts pass over it for what is a pool's.
fn conflict(range: Range, host: &Host) -> Option<String> {
    let own = |address: &&IpAddr| range.contains(**address);
    let behind = |prefix: &&Prefix| range.covers(prefix.range());
    let underlay = host.underlay.iter().find(own).map(|a| format!("underlay address {a}"));
    underlay
        .or_else(|| host.addresses.iter().find(own).map(|a| format!("address {a}")))
        .or_else(|| host.external.iter().find(behind).map(|p| format!("external prefix {p}")))
}

/// Checks what a host has against all pools.
///
/// # Errors
///
/// `host-address-conflict`, which names what is in the way.
pub(super) fn has_no_pools(state: &State, host: &Host) -> Result<(), ApiError> {
    let name = &host.name;
    let mut concerned =
        state.pools().map(|pool| &pool.record).filter(|pool| excludes(state, pool, host));
    let found = concerned.find_map(|pool| Some((pool, conflict(pool.range, host)?)));
    let Some((pool, found)) = found else { return Ok(()) };
    let (pool, range) = (&pool.name, pool.range);
    let text = format!("{found} of host {name} is inside {range} of pool {pool}");
    Err(ApiError::new(ErrorCode::HostAddressConflict, text)
        .with_details(json!({ "host": name, "pool": pool, "found": found })))
}

/// Checks what a host is a member of against all pools.
///
/// That is for operators to decide: a host that only has another address is not asked for it.
///
/// # Errors
///
/// `spaces-overlap`, which names the two networks.
pub(super) fn can_be_in(state: &State, host: &Host) -> Result<(), ApiError> {
    // A member of all is a member of those that share one space.
    if host.networks.is_none() {
        return Ok(());
    }
    let pools = state.pools().map(|pool| &pool.record);
    let all = pools.filter_map(|pool| Some((pool, &state.network(&pool.network)?.record)));
    let mut own = all.filter(|(_, network)| host.is_member_of(network));
    let two = own.find_map(|(pool, network)| {
        let mut others = others(state, pool.range, &pool.name);
        let other = others
            .find(|(_, other)| !is_one(network, other) && !can_be_in_both(host, network, other));
        other.map(|other| ((pool, network), other))
    });
    two.map_or(Ok(()), |(one, other)| Err(ambiguous(host, one, other)))
}

/// Checks the prefixes on a host's links against the pools of what it is a member of: a pool there would have two
/// meanings, this container and that neighbour.
///
/// # Errors
///
/// `host-address-conflict`, which names both.
pub(super) fn links_have_no_pool(
    state: &State,
    host: &Host,
    on_link: &BTreeSet<Prefix>,
) -> Result<(), ApiError> {
    let pools = state.pools().map(|pool| &pool.record);
    let mut pools = pools.filter(|pool| excludes(state, pool, host));
    let found = pools.find_map(|pool| Some((pool, shared(pool.range, on_link)?)));
    let Some((pool, found)) = found else { return Ok(()) };
    let (name, pool, range) = (&host.name, &pool.name, pool.range);
    let text = format!(
        "{found}, which is on a link of host {name}, has addresses in common with {range} of pool {pool}"
    );
    Err(ApiError::new(ErrorCode::HostAddressConflict, text)
        .with_details(json!({ "host": name, "pool": pool, "found": found })))
}

/// Checks what a host is said to be a member of.
///
/// # Errors
///
/// `network-not-found` for a network that there is not, `host-in-use` for one that a container of the host is in
/// which the host would leave.
pub(super) fn memberships(
    state: &State,
    before: Option<&Host>,
    host: &Host,
) -> Result<(), ApiError> {
    for network in host.networks.iter().flatten() {
        if state.network(network).is_none() {
            let text = format!("there is no network {network}");
            return refuse(ErrorCode::NetworkNotFound, text);
        }
    }
    let Some(before) = before else { return Ok(()) };
    let leaves = |name: &NetworkName| {
        let network = state.network(name).map(|network| &network.record);
        network.is_some_and(|network| before.is_member_of(network) && !host.is_member_of(network))
    };
    let keys = state.attachments_of(&host.name).map(|entry| &entry.record.key);
    let mut left = keys.filter(|key| leaves(&key.network));
    let Some(key) = left.next() else { return Ok(()) };
    let (name, network, container) = (&host.name, &key.network, &key.container);
    let text = format!(
        "host {name} still has attachments to network {network}, of container {container} at least"
    );
    Err(ApiError::new(ErrorCode::HostInUse, text)
        .with_details(json!({ "network": network, "attachments": 1 + left.count() })))
}

/// How many names a message lists.
const NAMED: usize = 8;

/// The refusal of a claim on a host that is no member of the network.
pub(crate) fn not_member(state: &State, host: &Host, network: &Network) -> ApiError {
    let (name, wanted) = (&host.name, &network.name);
    let others = state.networks().map(|other| &other.record);
    let mut all: Vec<&str> = others
        .filter(|other| host.is_member_of(other))
        .map(|other| other.name.as_str())
        .take(NAMED)
        .collect();
    if all.len() == NAMED {
        all = vec!["<those before>"];
    }
    all.push(wanted.as_str());
    let all = all.join(",");
    let text = format!(
        "host {name} is not a member of network {wanted}: limpetctl host set {name} --networks {all}"
    );
    ApiError::new(ErrorCode::HostNotMember, text)
        .with_details(json!({ "host": name, "network": wanted }))
}

/// The hosts that are said to be members of a network, and the networks that it is allowed into.
pub(super) fn named_by<'a>(
    state: &'a State,
    name: &'a NetworkName,
) -> (Vec<&'a HostName>, Vec<&'a NetworkName>) {
    let hosts = state.hosts().map(|host| &host.record);
    let hosts =
        hosts.filter(|host| host.networks.as_ref().is_some_and(|named| named.contains(name)));
    let networks = state.networks().map(|network| &network.record);
    let networks = networks.filter(|network| network.allow.contains(name));
    (hosts.map(|host| &host.name).collect(), networks.map(|network| &network.name).collect())
}

#[cfg(test)]
#[path = "spaces_tests.rs"]
mod tests;

//! Pure: sessions: which agent speaks for a host, and the host that it brings along.

use std::net::IpAddr;

use limpet_api::config::{Host, HostSpec};
use limpet_api::host::SessionRequest;
use limpet_api::{ApiError, ErrorCode};
use limpet_net_types::{Family, HostName, Token, Uid};
use serde_json::json;

use super::hosts::{may_be, new};
use super::pools::is_host_address;
use crate::alloc::claim::session;
use crate::draft::{Decision, Draft, refuse};
use crate::keys::Subject;
use crate::records::Alive;
use crate::state::State;

/// How many addresses a host may have: each is a route on every other host.
const MOST_ADDRESSES: usize = 64;

/// Whether a host's agent was heard of within the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Liveness {
    /// It was.
    Alive,
    /// It was not.
    Lapsed,
}

/// Decides whether an agent may speak for a host from now on, under the token `fresh`.
///
/// A later boot of the same installation takes over at once, and earlier ones may not come back:
/// of two copies of a machine the one that started first is told. Another installation takes
/// over only from one that is not heard of any more.
pub(crate) fn open(
    state: &State,
    name: &HostName,
    request: &SessionRequest,
    liveness: Liveness,
    fresh: Token,
) -> Decision<Host> {
    Decision::make(|draft| {
        let before = state.session(name);
        draft.rely(&Subject::Session(name.clone()), before);
        let superseded = match before.map(|entry| &entry.record) {
            None => Vec::new(),
            Some(before) if before.install != request.install => {
                if liveness == Liveness::Alive {
                    return Err(taken(state, name, before, request));
                }
                Vec::new()
            }
            Some(before) if before.superseded.contains(&request.boot) => {
                return Err(late(name, before, request));
            }
            Some(before) => before.superseded_by(request.boot),
        };
        let host = joined(state, draft, name, request)?;
        if before.map(|before| &before.record.on_link) != Some(&request.on_link) {
            links_have_no_pool(state, name, request)?;
            draft.change_config(state);
        }
        let alive = Alive {
            session: fresh,
            install: request.install,
            boot: request.boot,
            superseded,
            on_link: request.on_link.clone(),
            version: request.version.chars().take(64).collect(),
        };
        draft.put(&Subject::Session(name.clone()), &alive);
        Ok(host)
    })
}

/// Checks that a host's agent may speak for it.
pub(crate) fn check(state: &State, name: &HostName, token: Token) -> Decision<()> {
    Decision::make(|draft| session(state, draft, name, token).map(drop))
}

/// Notes that a host says of an attachment it was asked about that it is there.
pub(crate) fn present(state: &State, name: &HostName, uid: Uid, token: Token) -> Decision<()> {
    Decision::make(|draft| {
        session(state, draft, name, token)?;
        let subject = Subject::Ask(name.clone(), uid);
        let asked = state.ask(name, uid);
        draft.rely(&subject, asked);
        // Nobody may be waiting for the answer any more, and that is no fault of the host's.
        if let Some(ask) = asked.filter(|ask| !ask.record.present) {
            let mut ask = ask.record.clone();
            ask.present = true;
            draft.put(&subject, &ask);
        }
        Ok(())
    })
}

fn taken(state: &State, name: &HostName, before: &Alive, request: &SessionRequest) -> ApiError {
    let Alive { install, .. } = before;
    let at = state.host(name).and_then(|host| host.record.underlay);
    let at = at.map_or_else(|| "an unknown address".to_owned(), |at| at.to_string());
    let text = format!(
        "host name {name} is in use by installation {install} at {at}, which is alive; \
         installation {} at {} needs another name",
        request.install, request.underlay
    );
    ApiError::new(ErrorCode::HostNameTaken, text)
        .with_details(json!({ "alive": install, "refused": request.install }))
}

fn late(name: &HostName, before: &Alive, request: &SessionRequest) -> ApiError {
    let text = format!(
        "boot {} of host {name} was followed by boot {} of the same installation {}: this machine \
         is a copy of it, or the other one is",
        request.boot, before.boot, before.install
    );
    ApiError::new(ErrorCode::HostSuperseded, text).with_details(
        json!({ "install": before.install, "newer": before.boot, "refused": request.boot }),
    )
}

/// Returns the host as it is once its agent has joined, and writes it if that is news.
fn joined(
    state: &State,
    draft: &mut Draft,
    name: &HostName,
    request: &SessionRequest,
) -> Result<Host, ApiError> {
    let before = state.host(name);
    draft.rely(&Subject::Host(name.clone()), before);
    if request.addresses.len() > MOST_ADDRESSES {
        let count = request.addresses.len();
        let text = format!("host {name} has {count} addresses, at most {MOST_ADDRESSES} are taken");
        return refuse(ErrorCode::Invalid, text);
    }
    for address in request.addresses.iter().chain([&request.underlay]) {
        if !is_host_address(*address) {
            let text =
                format!("host {name} cannot have address {address}: no other can send to it");
            return refuse(ErrorCode::Invalid, text);
        }
    }
    let known = before.map_or_else(
        || {
            let (roles, external) = (request.roles.clone(), request.external.clone());
            new(state, name, HostSpec { roles, external, ..HostSpec::default() })
        },
        |entry| entry.record.clone(),
    );
    let addresses = distinct(state, name, request)?;
    let host = Host { underlay: Some(request.underlay), addresses, ..known };
    if before.is_some_and(|before| before.record == host) {
        return Ok(host);
    }
    may_be(state, &host)?;
    draft.change_config(state);
    draft.put(&Subject::Host(name.clone()), &host);
    Ok(host)
}

/// A pool on a host's own link would have two meanings there: this container, and that neighbour.
fn links_have_no_pool(
    state: &State,
    name: &HostName,
    request: &SessionRequest,
) -> Result<(), ApiError> {
    let count = request.on_link.len();
    if count > MOST_ADDRESSES {
        let text = format!(
            "host {name} has {count} prefixes on its links, at most {MOST_ADDRESSES} are taken"
        );
        return refuse(ErrorCode::Invalid, text);
    }
    let mut pools = state.pools().map(|pool| &pool.record);
    let shared = pools.find_map(|pool| {
        let on_link = &request.on_link;
        Some((pool, on_link.iter().find(|on_link| on_link.range().overlaps(pool.range))?))
    });
    let Some((pool, found)) = shared else { return Ok(()) };
    let (pool, range) = (&pool.name, pool.range);
    let text = format!(
        "{found}, which is on a link of host {name}, has addresses in common with {range} of pool {pool}"
    );
    Err(ApiError::new(ErrorCode::HostAddressConflict, text)
        .with_details(json!({ "host": name, "pool": pool, "found": found })))
}

/// Returns the addresses at which the host can be reached, which no other host has.
///
/// Its underlay address and the primary one of each family must be its own. Others are often
/// the same on many hosts, as a container engine's bridge is: they are nobody's then but the
/// first one's.
fn distinct(
    state: &State,
    name: &HostName,
    request: &SessionRequest,
) -> Result<Vec<IpAddr>, ApiError> {
    let owner = |address: IpAddr| {
        state.hosts().map(|entry| &entry.record).find(|other| {
            other.name != *name
                && (other.underlay == Some(address) || other.addresses.contains(&address))
        })
    };
    let primary = |family| request.addresses.iter().find(|address| Family::of(**address) == family);
    let needed = [primary(Family::V4), primary(Family::V6), Some(&request.underlay)];
    for address in needed.into_iter().flatten() {
        if let Some(other) = owner(*address) {
            let other = &other.name;
            let text = format!(
                "address {address} of host {name} is host {other}'s: delete that host if it is gone"
            );
            return Err(ApiError::new(ErrorCode::HostAddressConflict, text)
                .with_details(json!({ "address": address, "host": other })));
        }
    }
    let mut distinct: Vec<IpAddr> = Vec::new();
    for address in &request.addresses {
        if owner(*address).is_none() && !distinct.contains(address) {
            distinct.push(*address);
        }
    }
    Ok(distinct)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::sample::{Sample, name};

    fn token(bits: u128) -> Token {
        Token::from_bits(bits)
    }

    fn request(install: u128, boot: u128, last: u8) -> SessionRequest {
        let address: IpAddr = [192, 0, 2, last].into();
        SessionRequest {
            install: token(install),
            boot: token(boot),
            underlay: address,
            addresses: vec![address],
            on_link: [].into(),
            roles: [].into(),
            external: [].into(),
            version: "1".to_owned(),
        }
    }

    fn join(
        sample: &mut Sample,
        host: &str,
        request: &SessionRequest,
        liveness: Liveness,
    ) -> Result<Host, ApiError> {
        sample.decided(|state| open(state, &name(host), request, liveness, token(99)))
    }

    #[test]
    fn a_second_live_installation_is_refused_and_both_are_named() {
        let mut sample = Sample::new();
        join(&mut sample, "a", &request(1, 1, 1), Liveness::Alive).unwrap();
        let error = join(&mut sample, "a", &request(2, 1, 2), Liveness::Alive).unwrap_err();
        assert_eq!(error.code, ErrorCode::HostNameTaken);
        assert!(error.message.contains(&token(1).to_string()), "{error}");
        assert!(error.message.contains(&token(2).to_string()), "{error}");
        join(&mut sample, "a", &request(2, 1, 2), Liveness::Lapsed).unwrap();
    }

    #[test]
    fn a_later_boot_takes_over_and_the_earlier_one_cannot_come_back() {
        let mut sample = Sample::new();
        for boot in [1, 1, 2] {
            join(&mut sample, "a", &request(1, boot, 1), Liveness::Alive).unwrap();
        }
        let error = join(&mut sample, "a", &request(1, 1, 1), Liveness::Alive).unwrap_err();
        assert_eq!(error.code, ErrorCode::HostSuperseded);
        assert!(error.message.contains("is a copy"), "{error}");
        for boot in 3..40 {
            join(&mut sample, "a", &request(1, boot, 1), Liveness::Alive).unwrap();
        }
        let error = join(&mut sample, "a", &request(1, 30, 1), Liveness::Alive).unwrap_err();
        assert_eq!(error.code, ErrorCode::HostSuperseded);
        let kept = &sample.state().session(&name("a")).unwrap().record.superseded;
        assert_eq!(kept.len(), 16, "the memory of boots is bounded");
    }

    #[test]
    fn a_host_with_an_address_inside_a_pool_is_refused() {
        let mut sample = Sample::new();
        sample.network("blue");
        sample.pool("p", "192.0.2.0/24", |_| {});
        let before = sample.state().clone();
        let error = join(&mut sample, "a", &request(1, 1, 1), Liveness::Alive).unwrap_err();
        assert_eq!(error.code, ErrorCode::HostAddressConflict);
        assert_eq!(
            error.message,
            "underlay address 192.0.2.1 of host a is inside 192.0.2.0/24 of pool p"
        );
        assert_eq!(*sample.state(), before);
    }

    #[test]
    fn a_host_with_a_pool_on_its_link_is_refused_also_when_the_link_is_new() {
        let mut sample = Sample::new();
        sample.network("blue");
        sample.pool("p", "10.1.0.0/16", |_| {});
        let on =
            |prefix: &str| SessionRequest { on_link: [name(prefix)].into(), ..request(1, 1, 1) };
        join(&mut sample, "a", &on("10.2.0.0/16"), Liveness::Alive).unwrap();
        for prefix in ["10.0.0.0/8", "10.1.7.0/24"] {
            let before = sample.state().clone();
            let error = join(&mut sample, "a", &on(prefix), Liveness::Alive).unwrap_err();
            assert_eq!(error.code, ErrorCode::HostAddressConflict, "{prefix}");
            assert_eq!(*sample.state(), before);
        }
    }

    #[test]
    fn two_hosts_cannot_have_one_primary_address_but_a_bridge_address_is_left_out() {
        let mut sample = Sample::new();
        let bridge: IpAddr = [172, 17, 0, 1].into();
        let mut first = request(1, 1, 1);
        first.addresses.push(bridge);
        assert!(
            join(&mut sample, "a", &first, Liveness::Alive).unwrap().addresses.contains(&bridge)
        );
        let mut second = request(2, 2, 2);
        second.addresses.push(bridge);
        let host = join(&mut sample, "b", &second, Liveness::Alive).unwrap();
        assert_eq!(host.addresses, [IpAddr::from([192, 0, 2, 2])]);
        let error = join(&mut sample, "c", &request(3, 3, 1), Liveness::Alive).unwrap_err();
        assert_eq!(error.code, ErrorCode::HostAddressConflict);
        assert!(error.message.contains("is host a's"), "{error}");
    }

    #[test]
    fn what_an_operator_said_of_a_host_stays_when_its_agent_joins() {
        let mut sample = Sample::new();
        let roles: std::collections::BTreeSet<_> = [limpet_api::config::Role::Member].into();
        let spec = HostSpec { roles: roles.clone(), ..HostSpec::default() };
        sample.decided(|state| super::super::hosts::create(state, &name("a"), &spec)).unwrap();
        let host = join(&mut sample, "a", &request(1, 1, 1), Liveness::Alive).unwrap();
        assert_eq!(host.roles, roles);
        assert_eq!(host.underlay, Some([192, 0, 2, 1].into()));
    }

    #[test]
    fn an_address_that_nobody_can_send_to_is_refused() {
        let mut sample = Sample::new();
        for wrong in ["127.0.0.1", "fe80::1", "224.0.0.1", "::"] {
            let mut request = request(1, 1, 1);
            request.addresses.push(wrong.parse().unwrap());
            let error = join(&mut sample, "a", &request, Liveness::Alive).unwrap_err();
            assert_eq!(error.code, ErrorCode::Invalid, "{wrong}");
        }
    }
}

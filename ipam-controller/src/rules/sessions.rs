//! Pure: sessions: which agent speaks for a host, and the host that it brings along.

use std::net::IpAddr;

use limpet_api::config::{Host, HostSpec};
use limpet_api::host::{LEASE_SECONDS, SessionRequest};
use limpet_api::{ApiError, ErrorCode};
use limpet_net_types::{Family, HostName, Token, Uid};
use serde_json::json;

use super::hosts::{self, may_be, new};
use super::pools::is_host_address;
use super::silence::answer_for;
use super::spaces;
use crate::alloc::claim::session;
use crate::draft::{Decision, Draft, refuse};
use crate::keys::Subject;
use crate::records::{Alive, Heard};
use crate::state::{Entry, State};

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

/// What an agent that asks for a session is told by the controller that it asks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Opening {
    /// Whether the host is alive.
    pub(crate) liveness: Liveness,
    /// The new session.
    pub(crate) session: Token,
    /// The controller, which answers for the host from now on.
    pub(crate) replica: Token,
}

/// Decides whether an agent may speak for a host from now on.
///
/// While the host is alive only the same machine may: the same boot, or another boot of the same
/// installation at the same underlay address, since two machines cannot share one. Earlier boots
/// may not come back: of two copies of a machine the one that started first is told. Another
/// installation cannot know the host's containers, so it takes over only where there are none, or
/// once an operator has said that the host was installed anew.
pub(crate) fn open(
    state: &State,
    name: &HostName,
    request: &SessionRequest,
    opening: Opening,
) -> Decision<Host> {
    let Opening { liveness, session, replica } = opening;
    Decision::make(|draft| {
        let before = state.session(name);
        draft.rely(&Subject::Session(name.clone()), before);
        let superseded = match before {
            None => Vec::new(),
            Some(Entry { record: before, .. }) => {
                if before.install != request.install {
                    // That the earlier one has no attachments must still be so.
                    hosts::has_none_more(state, draft, name);
                }
                Successor { state, name, before, request }.superseded(liveness)?
            }
        };
        let host = joined(state, draft, name, request)?;
        if before.map(|before| &before.record.on_link) != Some(&request.on_link) {
            links_are_few(name, request)?;
            spaces::links_have_no_pool(state, &host, &request.on_link)?;
            draft.change_config(state);
        }
        let alive = Alive {
            session,
            install: request.install,
            boot: request.boot,
            superseded,
            on_link: request.on_link.clone(),
            version: request.version.chars().take(64).collect(),
        };
        draft.put(&Subject::Session(name.clone()), &alive);
        answer_for(state, draft, name, Heard { session, replica });
        Ok(host)
    })
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

/// An agent that joins a host that another one spoke for, or the same one earlier.
struct Successor<'a> {
    state: &'a State,
    name: &'a HostName,
    before: &'a Alive,
    request: &'a SessionRequest,
}

impl Successor<'_> {
    /// Returns the boots that may not come back once this one has joined.
    fn superseded(&self, liveness: Liveness) -> Result<Vec<Token>, ApiError> {
        let Self { state, name, before, request } = self;
        let is_alive = liveness == Liveness::Alive;
        if before.install != request.install {
            let attachments = state.attachments_of(name).count();
            return match (is_alive, attachments) {
                (true, _) => Err(self.taken()),
                (false, 0) => Ok(Vec::new()),
                (false, attachments) => Err(self.occupied(attachments)),
            };
        }
        if before.superseded.contains(&request.boot) {
            return Err(self.late());
        }
        if is_alive && before.boot != request.boot && self.underlay() != Some(request.underlay) {
            return Err(self.twin());
        }
        Ok(before.superseded_by(request.boot))
    }

    fn underlay(&self) -> Option<IpAddr> {
        self.state.host(self.name).and_then(|host| host.record.underlay)
    }

    /// Where the host is, in words.
    fn place(&self) -> String {
        self.underlay().map_or_else(|| "an unknown address".to_owned(), |at| at.to_string())
    }

    fn taken(&self) -> ApiError {
        let Self { name, before, request, .. } = self;
        let text = format!(
            "host name {name} is in use by installation {} at {}, which is alive; installation {} \
             at {} needs another name, or that one is to be stopped first",
            before.install,
            self.place(),
            request.install,
            request.underlay
        );
        self.refusal(text)
    }

    fn occupied(&self, attachments: usize) -> ApiError {
        let Self { name, before, request, .. } = self;
        let text = format!(
            "host {name} still has {attachments} attachments of installation {} at {}; if \
             installation {} at {} replaces it, say so: limpetctl host set {name} --reinstalled",
            before.install,
            self.place(),
            request.install,
            request.underlay
        );
        self.refusal(text)
    }

    fn twin(&self) -> ApiError {
        let Self { name, before, request, .. } = self;
        let text = format!(
            "host {name} is alive with boot {} at {}, and boot {} of the same installation {} is \
             at {}: one of the two machines is a copy, or the host has a new address and may join \
             {LEASE_SECONDS} s after it was last heard of",
            before.boot,
            self.place(),
            request.boot,
            request.install,
            request.underlay
        );
        self.refusal(text)
    }

    fn late(&self) -> ApiError {
        let Self { name, before, request, .. } = self;
        let text = format!(
            "boot {} of host {name} was followed by boot {} of the same installation {}: this \
             machine is a copy of it, or the other one is",
            request.boot, before.boot, before.install
        );
        ApiError::new(ErrorCode::HostSuperseded, text).with_details(
            json!({ "install": before.install, "newer": before.boot, "refused": request.boot }),
        )
    }

    fn refusal(&self, text: String) -> ApiError {
        let Self { before, request, .. } = self;
        ApiError::new(ErrorCode::HostNameTaken, text).with_details(json!({
            "present": { "install": before.install, "boot": before.boot, "underlay": self.underlay() },
            "refused": { "install": request.install, "boot": request.boot, "underlay": request.underlay },
        }))
    }
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

fn links_are_few(name: &HostName, request: &SessionRequest) -> Result<(), ApiError> {
    let count = request.on_link.len();
    if count > MOST_ADDRESSES {
        let text = format!(
            "host {name} has {count} prefixes on its links, at most {MOST_ADDRESSES} are taken"
        );
        return refuse(ErrorCode::Invalid, text);
    }
    Ok(())
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
    let owner = |address| state.host_at(address).filter(|other| *other != name);
    let primary = |family| request.addresses.iter().find(|address| Family::of(**address) == family);
    let needed = [primary(Family::V4), primary(Family::V6), Some(&request.underlay)];
    for address in needed.into_iter().flatten() {
        if let Some(other) = owner(*address) {
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
    use limpet_api::config::HostChange;

    use super::*;
    use crate::state::sample::{Sample, name};

    fn token(bits: u128) -> Token {
        Token::from_bits(bits)
    }

    fn at(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    fn request(install: u128, boot: u128, last: u8) -> SessionRequest {
        let address = at(last);
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
        let opening = Opening { liveness, session: token(99), replica: token(98) };
        sample.decided(|state| open(state, &name(host), request, opening))
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
    fn a_copy_that_boots_beside_the_living_machine_is_refused_and_both_are_named() {
        let mut sample = Sample::new();
        join(&mut sample, "a", &request(1, 1, 1), Liveness::Alive).unwrap();
        let before = sample.state().clone();
        let error = join(&mut sample, "a", &request(1, 2, 2), Liveness::Alive).unwrap_err();
        assert_eq!(error.code, ErrorCode::HostNameTaken);
        for named in ["192.0.2.1", "192.0.2.2", &token(1).to_string(), &token(2).to_string()] {
            assert!(error.message.contains(named), "{named}: {error}");
        }
        assert_eq!(*sample.state(), before);
        join(&mut sample, "a", &request(1, 1, 3), Liveness::Alive).unwrap();
        let moved = "the same boot may have a new address";
        assert_eq!(
            sample.state().host(&name("a")).unwrap().record.underlay,
            Some(at(3)),
            "{moved}"
        );
        join(&mut sample, "a", &request(1, 2, 3), Liveness::Alive).unwrap();
        join(&mut sample, "a", &request(1, 3, 2), Liveness::Lapsed).unwrap();
    }

    #[test]
    fn what_the_earlier_installation_is_given_at_the_same_moment_refuses_another_one() {
        let mut sample = Sample::new();
        join(&mut sample, "a", &request(1, 1, 1), Liveness::Alive).unwrap();
        let covers = |sample: &Sample, install| {
            let opening =
                Opening { liveness: Liveness::Lapsed, session: token(99), replica: token(98) };
            let request = request(install, 1, 1);
            let txn = open(sample.state(), &name("a"), &request, opening).draft.into_txn();
            let claimed = format!("{}blue/c1/eth0", crate::keys::attachments_of(&name("a")));
            txn.quiet.iter().any(|quiet| quiet.covers(&claimed))
        };
        assert!(covers(&sample, 2));
        assert!(!covers(&sample, 1), "the same one keeps what it has");
    }

    #[test]
    fn another_installation_needs_an_operators_word_while_there_are_attachments() {
        let mut sample = Sample::new();
        sample.network("blue");
        sample.host("a");
        sample.pool("p", "10.0.0.0/24", |_| {});
        sample.attach("a", "c1");
        let anew = request(2, 1, 2);
        let error = join(&mut sample, "a", &anew, Liveness::Lapsed).unwrap_err();
        assert_eq!(error.code, ErrorCode::HostNameTaken);
        assert!(error.message.contains("limpetctl host set a --reinstalled"), "{error}");
        let change = HostChange { reinstalled: true, ..HostChange::default() };
        let mut change =
            |liveness| sample.decided(|s| hosts::change(s, &name("a"), &change, liveness));
        assert_eq!(change(Liveness::Alive).unwrap_err().code, ErrorCode::HostNameTaken);
        change(Liveness::Lapsed).unwrap();
        change(Liveness::Alive).expect("said again, nothing is left to do");
        assert_eq!(sample.state().attachments().count(), 1, "the new agent judges them");
        join(&mut sample, "a", &anew, Liveness::Alive).unwrap();
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

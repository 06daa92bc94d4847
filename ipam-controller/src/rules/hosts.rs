//! Pure: hosts: what operators say of them.

use limpet_api::config::{Host, HostChange, HostSpec, Role};
use limpet_api::host::LEASE_SECONDS;
use limpet_api::{ApiError, ErrorCode};
use limpet_net_types::{HostName, Mac};
use serde_json::json;

use super::sessions::Liveness;
use super::{silence, spaces};
use crate::alloc::release::is_down;
use crate::draft::{Decision, Draft, refuse};
use crate::keys::{Subject, attachments_of};
use crate::records::Alive;
use crate::state::{Entry, State};
use crate::store::{Revision, end_of};

/// Decides the creation of a host before its agent joins.
pub(crate) fn create(state: &State, name: &HostName, spec: &HostSpec) -> Decision<Entry<Host>> {
    Decision::make(|draft| {
        let existing = state.host(name);
        draft.rely(&Subject::Host(name.clone()), existing);
        let host = new(state, name, spec.clone());
        if let Some(existing) = existing {
            let Host { roles, labels, external, networks, .. } = &existing.record;
            let same = (&host.roles, &host.labels) == (roles, labels)
                && (&host.external, &host.networks) == (external, networks);
            if same {
                return Ok(existing.clone());
            }
            let text = format!(
                "host {name} exists with other roles, labels, external prefixes or networks"
            );
            return refuse(ErrorCode::HostExists, text);
        }
        spaces::memberships(state, None, &host)?;
        may_be(state, &host)?;
        spaces::can_be_in(state, &host)?;
        draft.change_config(state);
        draft.put(&Subject::Host(name.clone()), &host);
        Ok(Entry { record: host, revision: Revision::OWN })
    })
}

/// Decides a change of a host.
pub(crate) fn change(
    state: &State,
    name: &HostName,
    change: &HostChange,
    liveness: Liveness,
) -> Decision<Entry<Host>> {
    Decision::make(|draft| {
        let entry = found(state, draft, name)?;
        if change.reinstalled {
            end_session(state, draft, name, liveness)?;
        }
        let before = &entry.record;
        let change = change.clone();
        let mut networks = before.networks.clone();
        change.networks.apply(&mut networks);
        let host = Host {
            networks,
            roles: change.roles.unwrap_or_else(|| before.roles.clone()),
            labels: change.labels.unwrap_or_else(|| before.labels.clone()),
            external: change.external.unwrap_or_else(|| before.external.clone()),
            ..before.clone()
        };
        if host == *before {
            return Ok(entry.clone());
        }
        if before.is(Role::Node)
            && !host.is(Role::Node)
            && let Some(attachment) = state.attachments_of(name).next()
        {
            let container = &attachment.record.key.container;
            let text =
                format!("host {name} still has attachments, of container {container} at least");
            return refuse(ErrorCode::HostInUse, text);
        }
        if host.networks != before.networks {
            spaces::memberships(state, Some(before), &host)?;
            if let Some(session) = state.session(name) {
                spaces::links_have_no_pool(state, &host, &session.record.on_link)?;
            }
        }
        let gives_up_some = host.networks != before.networks;
        if gives_up_some || (before.is(Role::Node) && !host.is(Role::Node)) {
            has_none_more(state, draft, name);
        }
        may_be(state, &host)?;
        if host.networks != before.networks || host.roles != before.roles {
            spaces::can_be_in(state, &host)?;
        }
        draft.change_config(state);
        draft.put(&Subject::Host(name.clone()), &host);
        Ok(Entry { record: host, revision: Revision::OWN })
    })
}

/// How many blocks go with their host in one transaction: stores take few more than a hundred
/// changes. The others are given back by whoever clears away.
const MOST_BLOCKS: usize = 64;

/// Decides the removal of a host, with its session and its blocks. One that is alive would only
/// join again, and what it has would be lost meanwhile.
pub(crate) fn delete(state: &State, name: &HostName, liveness: Liveness) -> Decision<()> {
    Decision::make(|draft| {
        found(state, draft, name)?;
        is_down(state, draft, name, liveness)?;
        let attachments = state.attachments_of(name).count();
        if attachments > 0 {
            let text = format!("host {name} still has {attachments} attachments");
            return Err(ApiError::new(ErrorCode::HostInUse, text)
                .with_details(json!({ "attachments": attachments })));
        }
        has_none_more(state, draft, name);
        draft.change_config(state);
        draft.delete(&Subject::Host(name.clone()));
        let session = Subject::Session(name.clone());
        draft.rely(&session, state.session(name));
        draft.delete(&session);
        silence::forget(state, draft, name);
        let blocks = state.blocks().filter(|block| block.record.host == *name);
        for block in blocks.take(MOST_BLOCKS) {
            let subject = Subject::Block(block.record.pool.clone(), block.record.prefix);
            draft.rely_on(&subject, Some(block.revision));
            draft.delete(&subject);
        }
        Ok(())
    })
}

/// Relies on a host having been given no attachment, through whichever controller, since what is known.
pub(super) fn has_none_more(state: &State, draft: &mut Draft, name: &HostName) {
    let newest = state.attachments_of(name).map(|entry| entry.revision).max().unwrap_or_default();
    let prefix = attachments_of(name);
    draft.rely_on_quiet(prefix.clone(), end_of(&prefix), newest);
}

/// Forgets which installation the host was, so that any may join next.
fn end_session(
    state: &State,
    draft: &mut Draft,
    name: &HostName,
    liveness: Liveness,
) -> Result<(), ApiError> {
    let subject = Subject::Session(name.clone());
    let session = state.session(name);
    draft.rely(&subject, session);
    // Whichever controller hears it writes that down, and no session.
    draft.rely(&Subject::Heard(name.clone()), state.heard(name));
    let Some(Entry { record: Alive { install, .. }, .. }) = session else { return Ok(()) };
    if liveness == Liveness::Alive {
        let text = format!(
            "installation {install} of host {name} is alive: stop its agent, and say this again \
             {LEASE_SECONDS} s later"
        );
        return Err(ApiError::new(ErrorCode::HostNameTaken, text)
            .with_details(json!({ "present": { "install": install } })));
    }
    draft.delete(&subject);
    Ok(())
}

fn found<'a>(
    state: &'a State,
    draft: &mut Draft,
    name: &HostName,
) -> Result<&'a Entry<Host>, ApiError> {
    let entry = state.host(name);
    draft.rely(&Subject::Host(name.clone()), entry);
    entry.ok_or_else(|| ApiError::new(ErrorCode::HostNotFound, format!("there is no host {name}")))
}

/// A host of which nothing but `spec` is known yet.
pub(super) fn new(state: &State, name: &HostName, spec: HostSpec) -> Host {
    let roles = if spec.roles.is_empty() { [Role::Node].into() } else { spec.roles };
    Host {
        name: name.clone(),
        roles,
        labels: spec.labels,
        external: spec.external,
        networks: spec.networks,
        vtep_mac: vtep_mac(state, name),
        underlay: None,
        addresses: Vec::new(),
    }
}

/// The MAC address of a host's VTEPs: derived from its name, and from a counter as well where
/// two names happen to have one hash.
fn vtep_mac(state: &State, name: &HostName) -> Mac {
    let free = |mac: &Mac| {
        *mac != Mac::GATEWAY && state.vtep_holder(*mac).is_none_or(|holder| holder == name)
    };
    let first = Mac::derived(&["vtep", name.as_str()]);
    let others =
        (1_u64..).map(|number| Mac::derived(&["vtep", name.as_str(), &number.to_string()]));
    // There are fewer hosts than MAC addresses.
    std::iter::once(first).chain(others).find(free).unwrap_or(first)
}

/// Checks a host against itself and against all pools and hosts.
pub(super) fn may_be(state: &State, host: &Host) -> Result<(), ApiError> {
    let name = &host.name;
    if host.roles.is_empty() {
        let text = format!("host {name} needs a role: node, member or gateway");
        return refuse(ErrorCode::Invalid, text);
    }
    if let (false, Some(prefix)) = (host.is(Role::Gateway), host.external.first()) {
        let text = format!(
            "host {name} has external prefix {prefix} and not the role gateway, which it needs for it"
        );
        return refuse(ErrorCode::Invalid, text);
    }
    spaces::has_no_pools(state, host)
}

#[cfg(test)]
mod tests {
    use limpet_net_types::Family;

    use super::*;
    use crate::state::sample::{Sample, name};

    #[test]
    fn a_host_is_a_node_unless_it_is_said_otherwise() {
        let mut sample = Sample::new();
        let spec = HostSpec::default();
        let host = sample.decided(|state| create(state, &name("a"), &spec)).unwrap().record;
        assert!(host.is(Role::Node));
        assert_eq!((host.underlay, host.primary(Family::V4)), (None, None));
        sample.decided(|state| create(state, &name("a"), &spec)).unwrap();
        let other = HostSpec { roles: [Role::Member].into(), ..HostSpec::default() };
        let error = sample.decided(|state| create(state, &name("a"), &other)).unwrap_err();
        assert_eq!(error.code, ErrorCode::HostExists);
    }

    #[test]
    fn external_prefixes_need_the_gateway_role() {
        let mut sample = Sample::new();
        let spec = HostSpec { external: [name("10.9.0.0/24")].into(), ..HostSpec::default() };
        let error = sample.decided(|state| create(state, &name("g"), &spec)).unwrap_err();
        assert_eq!(error.code, ErrorCode::Invalid);
        let spec = HostSpec { roles: [Role::Gateway].into(), ..spec };
        sample.decided(|state| create(state, &name("g"), &spec)).unwrap();
        let spec = HostSpec { roles: [Role::Gateway].into(), ..spec };
        sample.decided(|state| create(state, &name("g2"), &spec)).unwrap();
        let none = HostChange { roles: Some([].into()), ..HostChange::default() };
        let error =
            sample.decided(|state| change(state, &name("g"), &none, Liveness::Alive)).unwrap_err();
        assert_eq!(error.code, ErrorCode::Invalid);
    }

    #[test]
    fn an_external_prefix_inside_a_pool_is_refused() {
        let mut sample = Sample::new();
        sample.network("blue");
        sample.pool("p", "10.9.0.0/16", |_| {});
        let spec = |external: &str| HostSpec {
            roles: [Role::Gateway].into(),
            external: [name(external)].into(),
            ..HostSpec::default()
        };
        let error = sample.decided(|state| create(state, &name("g"), &spec("10.9.1.0/24")));
        assert_eq!(error.unwrap_err().code, ErrorCode::HostAddressConflict);
        sample.decided(|state| create(state, &name("g"), &spec("10.0.0.0/8"))).unwrap();
    }

    #[test]
    fn a_host_that_goes_takes_its_session_and_blocks_along() {
        let mut sample = Sample::new();
        sample.network("blue");
        sample.host("a");
        sample.pool("p", "10.0.0.0/24", |_| {});
        let block = limpet_api::host::Block {
            pool: name("p"),
            network: name("blue"),
            prefix: name("10.0.0.4/30"),
            host: name("a"),
        };
        sample.put(&Subject::Block(name("p"), block.prefix), &block);
        let mut gone = |liveness| sample.decided(|state| delete(state, &name("a"), liveness));
        assert_eq!(gone(Liveness::Alive).unwrap_err().code, ErrorCode::HostAlive);
        gone(Liveness::Lapsed).unwrap();
        assert_eq!(sample.state().blocks().count(), 0);
        assert!(sample.state().session(&name("a")).is_none());
        let error =
            sample.decided(|state| delete(state, &name("a"), Liveness::Lapsed)).unwrap_err();
        assert_eq!(error.code, ErrorCode::HostNotFound);
    }

    #[test]
    fn what_takes_a_hosts_place_away_relies_on_what_other_controllers_may_write_of_it() {
        let mut sample = Sample::new();
        sample.host("a");
        let host = name("a");
        let change = |change: &HostChange| {
            super::change(sample.state(), &host, change, Liveness::Lapsed).draft.into_txn()
        };
        let member = HostChange { roles: Some([Role::Member].into()), ..HostChange::default() };
        let claimed = format!("{}blue/c1/eth0", attachments_of(&host));
        assert!(change(&member).quiet.iter().any(|quiet| quiet.covers(&claimed)));
        let anew = HostChange { reinstalled: true, ..HostChange::default() };
        let heard = Subject::Heard(host.clone()).key();
        assert!(change(&anew).compares.contains_key(&heard));
    }

    #[test]
    fn no_two_hosts_have_one_vtep_mac_address() {
        let mut sample = Sample::new();
        sample.host("a");
        let derived = vtep_mac(sample.state(), &name("b"));
        sample.change_host("a", |host| host.vtep_mac = derived);
        let spec = HostSpec::default();
        let host = sample.decided(|state| create(state, &name("b"), &spec)).unwrap().record;
        assert_ne!(host.vtep_mac, derived);
    }
}

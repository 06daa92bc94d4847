//! Pure: networks: one VNI and one index each.

use std::collections::BTreeSet;

use limpet_api::config::{Network, NetworkChange, NetworkSpec, VXLAN_PORT};
use limpet_api::{ApiError, ErrorCode};
use limpet_net_types::{NetworkIndex, NetworkName, Vni};
use serde_json::json;

use super::spaces;
use crate::draft::{Decision, Draft, refuse};
use crate::keys::Subject;
use crate::state::{Entry, State};
use crate::store::Revision;

/// How many hosts the details of an error name.
const NAMED: usize = 20;

/// Decides the creation of a network.
pub(crate) fn create(
    state: &State,
    name: &NetworkName,
    spec: &NetworkSpec,
) -> Decision<Entry<Network>> {
    Decision::make(|draft| {
        let existing = state.network(name);
        draft.rely(&Subject::Network(name.clone()), existing);
        if let Some(existing) = existing {
            return same(existing, spec);
        }
        if spec.port == Some(0) {
            return refuse(ErrorCode::Invalid, "UDP port 0 is not a port: leave it out for 4789");
        }
        let network = Network {
            name: name.clone(),
            vni: vni(state, spec.vni)?,
            index: index(state)?,
            mtu: spec.mtu,
            port: spec.port.unwrap_or(VXLAN_PORT),
            own_space: spec.own_space,
            allow: BTreeSet::new(),
        };
        draft.change_config(state);
        draft.put(&Subject::Network(name.clone()), &network);
        Ok(Entry { record: network, revision: Revision::OWN })
    })
}

/// Decides a change of a network.
pub(crate) fn change(
    state: &State,
    name: &NetworkName,
    change: &NetworkChange,
) -> Decision<Entry<Network>> {
    Decision::make(|draft| {
        let entry = found(state, draft, name)?;
        let mut record = entry.record.clone();
        change.mtu.apply(&mut record.mtu);
        let allow = change.allow.as_ref().unwrap_or(&record.allow);
        let allow = allow | &change.also_allow;
        let allow = &allow - &change.deny;
        can_allow(state, &record, &allow)?;
        record.allow = allow;
        if record == entry.record {
            return Ok(entry.clone());
        }
        draft.change_config(state);
        draft.put(&Subject::Network(name.clone()), &record);
        Ok(Entry { record, revision: Revision::OWN })
    })
}

/// Decides the removal of a network.
pub(crate) fn delete(state: &State, name: &NetworkName) -> Decision<()> {
    Decision::make(|draft| {
        found(state, draft, name)?;
        let pools: Vec<String> =
            state.pools_of(name).map(|pool| pool.record.name.to_string()).collect();
        if !pools.is_empty() {
            let text = format!("network {name} still has pools: {}", pools.join(", "));
            return Err(ApiError::new(ErrorCode::NetworkInUse, text)
                .with_details(json!({ "pools": pools })));
        }
        is_unnamed(state, name)?;
        draft.change_config(state);
        draft.delete(&Subject::Network(name.clone()));
        draft.delete(&Subject::MacChoice(name.clone()));
        Ok(())
    })
}

/// Checks that the containers of other networks can be let into a network: an address means the same to both.
fn can_allow(
    state: &State,
    network: &Network,
    allow: &BTreeSet<NetworkName>,
) -> Result<(), ApiError> {
    let name = &network.name;
    for from in allow.difference(&network.allow) {
        if from == name {
            let text = format!("network {name} is open to itself as it is");
            return refuse(ErrorCode::Invalid, text);
        }
        let Some(other) = state.network(from) else {
            return refuse(ErrorCode::NetworkNotFound, format!("there is no network {from}"));
        };
        if let Some(closed) = [network, &other.record].into_iter().find(|it| it.own_space) {
            let text = format!(
                "network {from} cannot be allowed into network {name}: network {} has {}, and only \
                 networks of one space can be opened to each other",
                closed.name,
                spaces::words(true)
            );
            return refuse(ErrorCode::Invalid, text);
        }
    }
    Ok(())
}

/// Refuses while hosts or other networks name a network: a later one of its name is not what was meant.
fn is_unnamed(state: &State, name: &NetworkName) -> Result<(), ApiError> {
    let (hosts, networks) = spaces::named_by(state, name);
    let text = if let Some(into) = networks.first() {
        format!(
            "network {name} is allowed into network {into}: limpetctl network deny {name} {into}"
        )
    } else if let Some(host) = hosts.first() {
        let count = hosts.len();
        format!(
            "{count} hosts are said to be members of network {name}, host {host} at least: limpetctl \
             host set {host} --networks <the others>, or --all-networks"
        )
    } else {
        return Ok(());
    };
    Err(ApiError::new(ErrorCode::NetworkInUse, text).with_details(
        json!({ "allowed-into": networks, "hosts": hosts.get(..NAMED).unwrap_or(&hosts) }),
    ))
}

fn found<'a>(
    state: &'a State,
    draft: &mut Draft,
    name: &NetworkName,
) -> Result<&'a Entry<Network>, ApiError> {
    let entry = state.network(name);
    draft.rely(&Subject::Network(name.clone()), entry);
    entry.ok_or_else(|| {
        ApiError::new(ErrorCode::NetworkNotFound, format!("there is no network {name}"))
    })
}

fn same(existing: &Entry<Network>, spec: &NetworkSpec) -> Result<Entry<Network>, ApiError> {
    let Network { name, vni, mtu, port, own_space, .. } = &existing.record;
    let same = spec.vni.is_none_or(|asked| asked == *vni)
        && spec.mtu == *mtu
        && spec.port.unwrap_or(VXLAN_PORT) == *port
        && spec.own_space == *own_space;
    if same {
        return Ok(existing.clone());
    }
    let mtu = mtu.map_or("of each host's underlay".to_owned(), |mtu| mtu.to_string());
    let space = spaces::words(*own_space);
    let text =
        format!("network {name} exists with VNI {vni}, MTU {mtu}, UDP port {port} and {space}");
    refuse(ErrorCode::NetworkExists, text)
}

fn vni(state: &State, asked: Option<Vni>) -> Result<Vni, ApiError> {
    if let Some(asked) = asked {
        return match state.networks().find(|network| network.record.vni == asked) {
            Some(Entry { record: Network { name, .. }, .. }) => {
                let text = format!("VNI {asked} is network {name}'s");
                Err(ApiError::new(ErrorCode::VniTaken, text)
                    .with_details(json!({ "vni": asked, "network": name })))
            }
            None => Ok(asked),
        };
    }
    let taken: BTreeSet<Vni> = state.networks().map(|network| network.record.vni).collect();
    // There are far more VNIs than networks can be.
    (1..)
        .map_while(|number| Vni::try_from(number).ok())
        .find(|vni| !taken.contains(vni))
        .ok_or_else(all_taken)
}

fn index(state: &State) -> Result<NetworkIndex, ApiError> {
    let taken: BTreeSet<NetworkIndex> =
        state.networks().map(|network| network.record.index).collect();
    (1..)
        .map_while(|number| NetworkIndex::try_from(number).ok())
        .find(|index| !taken.contains(index))
        .ok_or_else(all_taken)
}

fn all_taken() -> ApiError {
    ApiError::new(ErrorCode::NetworksFull, "all 4095 network indexes are taken: delete a network")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::sample::{Sample, name};

    fn spec(vni: u32) -> NetworkSpec {
        NetworkSpec { vni: Some(Vni::try_from(vni).unwrap()), ..NetworkSpec::default() }
    }

    #[test]
    fn a_network_gets_the_smallest_free_vni_and_index() {
        let mut sample = Sample::new();
        let mut create = |network: &str, spec: &NetworkSpec| {
            let network = sample.decided(|state| create(state, &name(network), spec));
            let network = network.unwrap().record;
            (u32::from(network.vni), u16::from(network.index))
        };
        assert_eq!(create("a", &spec(2)), (2, 1));
        assert_eq!(create("b", &NetworkSpec::default()), (1, 2));
        assert_eq!(create("c", &NetworkSpec::default()), (3, 3));
        assert_eq!(create("c", &NetworkSpec::default()), (3, 3), "repeated, the same");
        sample.decided(|state| delete(state, &name("b"))).unwrap();
        let again =
            sample.decided(|state| super::create(state, &name("d"), &NetworkSpec::default()));
        assert_eq!(u16::from(again.unwrap().record.index), 2);
    }

    #[test]
    fn a_taken_vni_is_refused_and_changes_nothing() {
        let mut sample = Sample::new();
        sample.decided(|state| create(state, &name("a"), &spec(7))).unwrap();
        let before = sample.state().clone();
        let error = sample.decided(|state| create(state, &name("b"), &spec(7))).unwrap_err();
        assert_eq!(
            (error.code, error.message.as_str()),
            (ErrorCode::VniTaken, "VNI 7 is network a's")
        );
        let error = sample.decided(|state| create(state, &name("a"), &spec(8))).unwrap_err();
        assert_eq!(error.code, ErrorCode::NetworkExists);
        assert_eq!(*sample.state(), before);
    }

    #[test]
    fn a_network_with_pools_stays() {
        let mut sample = Sample::new();
        sample.network("blue");
        sample.pool("p", "10.0.0.0/24", |_| {});
        let error = sample.decided(|state| delete(state, &name("blue"))).unwrap_err();
        assert_eq!(error.code, ErrorCode::NetworkInUse);
        assert_eq!(error.message, "network blue still has pools: p");
    }
}

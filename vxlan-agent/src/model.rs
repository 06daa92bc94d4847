//! Pure: a kernel for tests: it carries steps out on tables, and takes along what the real one takes along.

use crate::desired::{Forwarding6, device_settings};
use crate::layout::{FoundNexthop, Nexthop, Route, Tables, Target, is_device_name};
use crate::plan::{prune, without};
use crate::step::Step;

/// Carries out one step.
///
/// # Panics
///
/// Where the real kernel would refuse.
pub(crate) fn carry_out(tables: &mut Tables, step: &Step) {
    let has =
        |device: &str| tables.devices.contains_key(device) || tables.veths.contains_key(device);
    match step.clone() {
        Step::NewDevice { name, device, anew } => {
            assert_eq!(has(&name), anew, "{step}");
            *tables = without(tables, &[name.clone()].into());
            let down = crate::layout::Device { up: false, ..device };
            tables.devices.insert(name.clone(), down);
            add_settings(tables, &name);
        }
        Step::ChangeDevice { name, mtu, group, up } => {
            assert!(has(&name), "{step}");
            if let Some(device) = tables.devices.get_mut(&name) {
                device.mtu = mtu.unwrap_or(device.mtu);
                device.group = group.unwrap_or(device.group);
                device.up |= up;
            }
            if let Some(veth) = tables.veths.get_mut(&name) {
                veth.group = group.unwrap_or(veth.group);
                veth.up |= up;
            }
        }
        Step::DelDevice(name) => {
            assert!(is_device_name(&name), "{step}");
            *tables = without(tables, &[name].into());
        }
        Step::SetSetting(setting, value) => {
            let found = tables.settings.iter_mut().find(|(found, _)| *found == setting);
            found.unwrap_or_else(|| panic!("no such setting: {step}")).1 = value;
        }
        Step::SetAddress(address) => {
            assert!(tables.devices.contains_key(&address.device), "{step}");
            tables.addresses.insert(address);
        }
        Step::SetRuleset(ruleset) => tables.ruleset = Some(ruleset.listing()),
        Step::SetFdb(entry) => {
            assert!(tables.devices.contains_key(&entry.device), "{step}");
            tables.fdb.retain(|old| (&old.device, old.mac) != (&entry.device, entry.mac));
            tables.fdb.insert(entry);
        }
        Step::DelFdb(entry) => assert!(tables.fdb.remove(&entry), "{step}"),
        Step::SetNeighbour { device, address, mac } => {
            assert!(has(&device), "{step}");
            tables.neighbours.insert((device, address), mac);
        }
        Step::DelNeighbour { device, address } => {
            tables.neighbours.remove(&(device, address)).unwrap_or_else(|| panic!("{step}"));
        }
        Step::SetNexthop(id, leads) => {
            match &leads {
                Nexthop::Hop(hop) => assert!(tables.devices[&hop.device].up, "{step}"),
                Nexthop::Group(members) => {
                    assert!(members.iter().all(|id| tables.nexthops.contains_key(id)), "{step}");
                }
                Nexthop::Other => panic!("{step}"),
            }
            if let Some(old) = tables.nexthops.get(&id) {
                assert!(old.ours, "{step}");
                let same_kind =
                    matches!(old.leads, Nexthop::Group(_)) == matches!(leads, Nexthop::Group(_));
                assert!(same_kind, "{step}");
            }
            tables.nexthops.insert(id, FoundNexthop { ours: true, leads });
        }
        Step::DelNexthop(id) => {
            assert!(tables.nexthops.remove(&id).is_some_and(|old| old.ours), "{step}");
            prune(tables);
        }
        Step::SetRoute(route) => {
            check_target(tables, &route, step);
            let old = tables.routes.iter().find(|old| old.key == route.key).cloned();
            old.map(|old| tables.routes.remove(&old));
            tables.routes.insert(route);
        }
        Step::DelRoute(route) => {
            tables.routes.remove(&route);
        }
        Step::SetRule(rule) => assert!(tables.rules.insert(rule), "{step}"),
        Step::DelRule(rule) => assert!(tables.rules.remove(&rule), "{step}"),
    }
}

/// The settings that every device comes with.
pub(crate) fn add_settings(tables: &mut Tables, device: &str) {
    let settings = device_settings(device, &Forwarding6::PerDevice);
    tables.settings.extend(settings.into_iter().map(|(setting, _)| (setting, "?".to_owned())));
}

fn check_target(tables: &Tables, route: &Route, step: &Step) {
    match &route.target {
        Target::Nexthop(id) => assert!(tables.nexthops.contains_key(id), "{step}"),
        Target::Link(device) => assert!(tables.veths[device].up, "{step}"),
        Target::Unreachable | Target::Throw => {}
        Target::Other => panic!("{step}"),
    }
}

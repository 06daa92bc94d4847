//! Pure: a kernel for tests: it carries steps out on tables, and takes along what the real one takes along.

use crate::desired::{Forwarding6, device_settings};
use crate::layout::{Address, Fdb, Nexthop, Route, Tables, Target, is_device_name};
use crate::mirror::take;
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
                veth.mtu = mtu.unwrap_or(veth.mtu);
                veth.group = group.unwrap_or(veth.group);
                veth.up |= up;
            }
        }
        Step::DelDevice(name) => {
            assert!(is_device_name(&name), "{step}");
            *tables = without(tables, &[name].into());
        }
        Step::SetSetting(setting, _) => {
            assert!(tables.settings.iter().any(|(found, _)| *found == setting), "{step}");
            take(tables, step);
        }
        Step::SetAddress(Address { device, .. })
        | Step::SetFdb(Fdb { device, .. })
        | Step::SetNeighbour { device, .. } => {
            assert!(has(&device), "{step}");
            take(tables, step);
        }
        Step::DelFdb(entry) => {
            assert!(tables.fdb.contains(&entry), "{step}");
            take(tables, step);
        }
        Step::DelNeighbour { device, address } => {
            assert!(tables.neighbours.contains_key(&(device, address)), "{step}");
            take(tables, step);
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
            take(tables, step);
        }
        Step::DelNexthop(id) => {
            assert!(tables.nexthops.get(&id).is_some_and(|old| old.ours), "{step}");
            take(tables, step);
            prune(tables);
        }
        Step::SetRoute(route) => {
            check_target(tables, &route, step);
            take(tables, step);
        }
        Step::SetRule(rule) => {
            assert!(!tables.rules.contains(&rule), "{step}");
            take(tables, step);
        }
        Step::DelRule(rule) => {
            assert!(tables.rules.contains(&rule), "{step}");
            take(tables, step);
        }
        Step::SetRuleset(_) | Step::DelRoute(_) => {
            take(tables, step);
        }
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
        Target::Link(device) if is_device_name(device) => {
            assert!(tables.devices[device].up, "{step}");
        }
        Target::Link(device) => assert!(tables.veths[device].up, "{step}"),
        Target::Unreachable | Target::Throw => {}
        Target::Other => panic!("{step}"),
    }
}

//! Pure: programs that manage networks, and whether they were told to leave limpet's alone.

use std::collections::BTreeMap;

use limpet_api::condition::{Condition, ConditionCode, Mending, Severity};

use super::surroundings::{Managers, Surroundings};

/// What systemd-networkd must be told, all of it with `no`.
const FOREIGN: [&str; 3] =
    ["ManageForeignRoutes", "ManageForeignRoutingPolicyRules", "ManageForeignNextHops"];

/// What `NetworkManager` must be told not to manage.
const UNMANAGED: [&str; 2] = ["interface-name:limpet*", "interface-name:lc*"];

/// The conditions of programs that manage networks.
pub(crate) fn judge(around: &Surroundings) -> Vec<Condition> {
    let managers = &around.managers;
    let mut found = Vec::new();
    found.extend(managers.firewalld.as_deref().map(|backend| firewalld(around, backend)));
    found.extend(managers.networkd.as_ref().and_then(networkd));
    found.extend(managers.networkd_devices.iter().map(|device| networkd_device(device)));
    found.extend(network_manager(managers));
    found.extend(managers.network_manager_devices.iter().map(|device| managed_device(device)));
    found
}

fn firewalld(around: &Surroundings, backend: &str) -> Condition {
    let iptables = backend == "iptables";
    let pools: Vec<_> = around.pools.iter().map(ToString::to_string).collect();
    Condition {
        code: ConditionCode::Firewalld,
        severity: if iptables { Severity::Risk } else { Severity::Note },
        about: None,
        what: format!("firewalld runs with the backend {backend}"),
        breaks: if iptables {
            "its reload flushes every rule of iptables, and rejects what it was not told of"
                .to_owned()
        } else {
            "its reload leaves limpet's table alone; it rejects what it was not told of".to_owned()
        },
        remedy: format!(
            "put the pools ({}) into the zone trusted with `--add-source`, and open 4789/udp with \
             `--add-port`",
            pools.join(", ")
        ),
        mending: Mending::ByHand,
    }
}

fn is_no(value: &str) -> bool {
    ["no", "false", "off", "0", "n", "f"].contains(&value.trim().to_ascii_lowercase().as_str())
}

fn networkd(told: &BTreeMap<String, String>) -> Option<Condition> {
    let untold = FOREIGN.iter().filter(|key| !told.get(**key).is_some_and(|value| is_no(value)));
    let untold: Vec<&str> = untold.copied().collect();
    let first = untold.first()?;
    Some(Condition {
        code: ConditionCode::NetworkdForeignRoutes,
        severity: Severity::Risk,
        about: None,
        what: format!("systemd-networkd runs, and {} is not `no`", untold.join(", ")),
        breaks: "when it is restarted or configured anew it deletes limpet's routes, rules and nexthops; \
                 the agent puts them back, and packets are lost meanwhile"
            .to_owned(),
        remedy: format!(
            "put `{first}=no` and its likes below [Network] into /etc/systemd/networkd.conf.d/limpet.conf, \
             then `systemctl restart systemd-networkd`"
        ),
        mending: Mending::ByHand,
    })
}

fn networkd_device(device: &str) -> Condition {
    Condition {
        code: ConditionCode::NetworkdDevice,
        severity: Severity::Risk,
        about: Some(device.to_owned()),
        what: format!("systemd-networkd configures the device {device}"),
        breaks: "it may change the device's MAC address, addresses, MTU and state".to_owned(),
        remedy: "let no .network file match it: put `[Match] Name=limpet[0-9]* lc??????????? lb???????????` and \
                 `[Link] Unmanaged=yes` into /etc/systemd/network/05-limpet.network"
            .to_owned(),
        mending: Mending::ByHand,
    }
}

fn network_manager(managers: &Managers) -> Option<Condition> {
    let told = managers.network_manager.as_ref()?;
    let spoken = told.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';']));
    let spoken: Vec<&str> = spoken.collect();
    let says = |device: &&str| spoken.iter().any(|line| line.contains(*device));
    let untold: Vec<&str> = UNMANAGED.iter().filter(|device| !says(device)).copied().collect();
    (!untold.is_empty()).then(|| Condition {
        code: ConditionCode::NetworkManagerUntold,
        severity: Severity::Risk,
        about: None,
        what: format!("NetworkManager runs and was not told to leave {} alone", untold.join(" and ")),
        breaks: "it may configure limpet's devices by a connection profile that matches any device".to_owned(),
        remedy: format!(
            "put `[keyfile]` and `unmanaged-devices={}` into /etc/NetworkManager/conf.d/limpet.conf, then \
             `systemctl reload NetworkManager`",
            UNMANAGED.join(";")
        ),
        mending: Mending::ByHand,
    })
}

fn managed_device(device: &str) -> Condition {
    Condition {
        code: ConditionCode::NetworkManagerDevice,
        severity: Severity::Risk,
        about: Some(device.to_owned()),
        what: format!("NetworkManager manages the device {device}"),
        breaks: "it may change the device's MAC address, addresses, MTU and state".to_owned(),
        remedy: format!(
            "`nmcli device set {device} managed no`, and unmanaged-devices in \
             /etc/NetworkManager/conf.d/limpet.conf for good"
        ),
        mending: Mending::ByHand,
    }
}

/// Takes the lines of one configuration file into what was told before: in systemd's files the last word counts.
pub(crate) fn take_section(told: &mut BTreeMap<String, String>, section: &str, text: &str) {
    let mut inside = false;
    for line in text.lines().map(str::trim) {
        if line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            inside = name == section;
        } else if let (true, Some((key, value))) = (inside, line.split_once('=')) {
            told.insert(key.trim().to_owned(), value.trim().to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::around;
    use super::*;

    fn codes(managers: Managers) -> Vec<ConditionCode> {
        judge(&Surroundings { managers, ..around() }).iter().map(|found| found.code).collect()
    }

    #[test]
    fn networkd_is_to_be_told_three_times_no() {
        let mut told = BTreeMap::new();
        let text = "[DHCPv4]\nManageForeignNextHops=no\n[Network]\n#ManageForeignNextHops=no\n\
                    ManageForeignRoutes = no\nManageForeignRoutingPolicyRules=yes\n";
        take_section(&mut told, "Network", text);
        let found = judge(&Surroundings {
            managers: Managers { networkd: Some(told.clone()), ..Managers::default() },
            ..around()
        });
        assert_eq!(found.len(), 1);
        let missing = "ManageForeignRoutingPolicyRules, ManageForeignNextHops is not `no`";
        assert!(found[0].what.ends_with(missing), "{}", found[0].what);
        let rest = "[Network]\nManageForeignRoutingPolicyRules=false\nManageForeignNextHops=0\n";
        take_section(&mut told, "Network", rest);
        assert_eq!(codes(Managers { networkd: Some(told), ..Managers::default() }), []);
    }

    #[test]
    fn network_manager_is_to_be_told_of_both_kinds_of_devices() {
        let nm = |text: &str| {
            codes(Managers { network_manager: Some(text.to_owned()), ..Managers::default() })
        };
        assert_eq!(nm("[main]\nplugins=keyfile\n"), [ConditionCode::NetworkManagerUntold]);
        let told = "unmanaged-devices=interface-name:limpet*;interface-name:lc*";
        assert_eq!(nm(&format!("[keyfile]\n#{told}\n")), [ConditionCode::NetworkManagerUntold]);
        assert_eq!(nm(&format!("[keyfile]\n{told}\n")), []);
    }

    #[test]
    fn what_manages_limpets_devices_is_named() {
        let managers = Managers {
            firewalld: Some("nftables".to_owned()),
            networkd_devices: vec!["limpet1".to_owned()],
            network_manager_devices: vec!["lc0123456789a".to_owned()],
            ..Managers::default()
        };
        assert_eq!(
            codes(managers),
            [
                ConditionCode::Firewalld,
                ConditionCode::NetworkdDevice,
                ConditionCode::NetworkManagerDevice,
            ]
        );
    }
}

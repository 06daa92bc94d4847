//! Pure: VXLAN devices of others that are in the way of limpet's.

use limpet_api::condition::{Condition, ConditionCode, Mending, Severity};
use limpet_rtnl::Tunnel;

use super::surroundings::{Overlay, Surroundings};
use crate::layout::is_device_name;

/// The conditions of the host's VXLAN devices.
pub(crate) fn judge(around: &Surroundings) -> Vec<Condition> {
    let v6 = around.underlay.as_ref().is_some_and(|underlay| underlay.address.is_ipv6());
    let mut found = Vec::new();
    for tunnel in around.tunnels.iter().filter(|tunnel| !is_device_name(&tunnel.name)) {
        if !tunnel.is_external() && tunnel.v6 != v6 {
            continue;
        }
        let same: Vec<&Overlay> =
            around.networks.iter().filter(|overlay| overlay.port == tunnel.port).collect();
        let Some(first) = same.first() else { continue };
        found.push(if !tunnel.reading.is_empty() {
            port_taken(tunnel, first)
        } else if let Some(taken) = same.iter().find(|overlay| overlay.vni == tunnel.vni) {
            vni_taken(tunnel, taken)
        } else {
            port_shared(tunnel, first)
        });
    }
    found
}

fn port_taken(tunnel: &Tunnel, overlay: &Overlay) -> Condition {
    let Tunnel { name, port, .. } = tunnel;
    let how = tunnel.reading.join(", ");
    Condition {
        code: ConditionCode::VxlanPortTaken,
        severity: if tunnel.up { Severity::Broken } else { Severity::Risk },
        about: Some(name.clone()),
        what: format!(
            "VXLAN device {name} ({how}) is on UDP port {port} too, which it reads otherwise"
        ),
        breaks: format!(
            "the kernel gives the port to one of them: {} and {name} cannot both be up",
            overlay.device
        ),
        remedy: remedy(name),
        mending: Mending::ByHand,
    }
}

fn vni_taken(tunnel: &Tunnel, overlay: &Overlay) -> Condition {
    let Tunnel { name, port, vni, .. } = tunnel;
    Condition {
        code: ConditionCode::VniTaken,
        severity: Severity::Broken,
        about: Some(name.clone()),
        what: format!("VXLAN device {name} has VNI {vni} on UDP port {port}"),
        breaks: format!("network {} cannot have its device on this host", overlay.name),
        remedy: format!("delete {name} if nobody needs it; else {}", remedy(name)),
        mending: Mending::ByHand,
    }
}

fn port_shared(tunnel: &Tunnel, overlay: &Overlay) -> Condition {
    let Tunnel { name, port, vni, .. } = tunnel;
    Condition {
        code: ConditionCode::VxlanPortShared,
        severity: Severity::Note,
        about: Some(name.clone()),
        what: format!("VXLAN device {name} (VNI {vni}) is on UDP port {port} too"),
        breaks: format!(
            "nothing: the kernel tells them apart by VNI; a firewall's rule for the port meets {} as well",
            overlay.device
        ),
        remedy: "nothing to do".to_owned(),
        mending: Mending::ByHand,
    }
}

/// How a port is changed, of those who are known by their devices.
fn remedy(name: &str) -> String {
    let theirs = [
        ("flannel.", "`Port` of the Backend in flannel's net-conf.json"),
        ("cilium_vxlan", "cilium's `tunnel-port`"),
        ("vxlan.calico", "`vxlanPort` of Calico's FelixConfiguration"),
        ("vx-", "`docker swarm init --data-path-port`"),
        ("vxlan_sys_", "Open vSwitch's `options:dst_port`"),
        ("antrea-", "`tunnelPort` of antrea-agent.conf"),
    ];
    let known = theirs.iter().find(|(beginning, _)| name.starts_with(beginning));
    let other = known.map_or(format!("{name} another UDP port"), |(_, setting)| {
        format!("it another UDP port by {setting}")
    });
    format!("give {other}, or limpet's network: `limpetctl network create --port`")
}

#[cfg(test)]
mod tests {
    use super::super::fixture::around;
    use super::*;

    fn tunnel(name: &str, vni: u32, reading: &[&'static str]) -> Tunnel {
        Tunnel {
            name: name.to_owned(),
            vni,
            port: 4789,
            local: None,
            v6: false,
            reading: reading.to_vec(),
            up: true,
        }
    }

    fn code(tunnel: Tunnel) -> Option<(ConditionCode, Severity)> {
        let around = Surroundings { tunnels: vec![tunnel], ..around() };
        judge(&around).first().map(|found| (found.code, found.severity))
    }

    #[test]
    fn another_device_is_in_the_way_by_port_and_vni_and_how_it_reads() {
        use ConditionCode::{VniTaken, VxlanPortShared, VxlanPortTaken};
        assert_eq!(code(tunnel("limpet1", 100, &[])), None, "limpet's own");
        assert_eq!(code(tunnel("flannel.1", 100, &[])), Some((VniTaken, Severity::Broken)));
        assert_eq!(code(tunnel("vx-001001-x", 4097, &[])), Some((VxlanPortShared, Severity::Note)));
        let cilium = tunnel("cilium_vxlan", 0, &["external"]);
        assert_eq!(code(cilium.clone()), Some((VxlanPortTaken, Severity::Broken)));
        let down = Tunnel { up: false, ..cilium.clone() };
        assert_eq!(code(down), Some((VxlanPortTaken, Severity::Risk)));
        assert_eq!(code(Tunnel { port: 8472, ..cilium.clone() }), None, "another port");
        assert_eq!(
            code(Tunnel { v6: true, ..tunnel("other", 100, &[]) }),
            None,
            "the other family"
        );
        assert!(code(Tunnel { v6: true, ..cilium }).is_some(), "one that speaks both");
        assert_eq!(code(tunnel("gbp", 5, &["gbp"])), Some((VxlanPortTaken, Severity::Broken)));
    }

    #[test]
    fn who_is_known_is_told_where_its_port_is_set() {
        let around = Surroundings { tunnels: vec![tunnel("flannel.1", 100, &[])], ..around() };
        let found = &judge(&around)[0];
        assert!(found.remedy.contains("net-conf.json"), "{}", found.remedy);
        assert!(found.what.contains("VNI 100 on UDP port 4789"), "{}", found.what);
    }
}

//! Pure: for tests: a host with one network and nothing wrong.

use super::surroundings::{Overlay, Surroundings, Underlay};

/// A host with the network `pods`, of VNI 100, on a good machine.
pub(crate) fn around() -> Surroundings {
    let overlay = Overlay {
        name: "pods".to_owned(),
        device: "limpet1".to_owned(),
        group: 4097,
        vni: 100,
        port: 4789,
        mtu: None,
    };
    let (address, device) = ("192.0.2.1".parse().unwrap(), "eth0".to_owned());
    Surroundings {
        kernel: "6.18.4".to_owned(),
        networks: vec![overlay],
        pools: vec!["10.32.0.0/16".parse().unwrap(), "fd32::/64".parse().unwrap()],
        underlay: Some(Underlay { address, device, mtu: 1500 }),
        peers: vec!["192.0.2.2".parse().unwrap()],
        has_ipv6: true,
        ..Surroundings::default()
    }
}

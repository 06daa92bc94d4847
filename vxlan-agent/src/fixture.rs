//! Pure: small values for tests.

use limpet_api::FleetTime;
use limpet_api::book::{Attachment, AttachmentKey, Held};
use limpet_api::config::Network;
use limpet_net_types::{Token, Vni};

/// A network `n<index>` with the VNI `100 * index`.
pub(crate) fn network(index: u16) -> Network {
    Network {
        name: format!("n{index}").parse().unwrap(),
        vni: Vni::try_from(u32::from(index) * 100).unwrap(),
        index: index.try_into().unwrap(),
        mtu: None,
        port: 4789,
    }
}

/// An attachment of container `c<n>` on `node-a` to `n1`, with the addresses `10.32.0.<n>` and `fd32::<n>`.
pub(crate) fn attachment(n: u8, uid: u128) -> Attachment {
    let held = |address: String, pool: &str| Held {
        address: address.parse().unwrap(),
        pool: pool.parse().unwrap(),
    };
    Attachment {
        key: AttachmentKey {
            host: "node-a".parse().unwrap(),
            network: "n1".parse().unwrap(),
            container: format!("c{n}").parse().unwrap(),
            ifname: "eth0".parse().unwrap(),
        },
        uid: Token::from_bits(uid),
        boot: Token::from_bits(1),
        namespace: limpet_net_types::Namespace::default(),
        name: format!("c{n}").parse().unwrap(),
        sticky: false,
        addresses: vec![held(format!("10.32.0.{n}"), "p4"), held(format!("fd32::{n:x}"), "p6")],
        mac: format!("02:4c:00:00:01:{n:02x}").parse().unwrap(),
        runtime: limpet_net_types::RuntimeName::default(),
        netns: "/run/netns/none".to_owned(),
        created: FleetTime(0),
    }
}

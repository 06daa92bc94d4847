//! Pure: small values for tests.

use clap::Parser as _;
use limpet_api::FleetTime;
use limpet_api::book::{Attachment, AttachmentKey, Held};
use limpet_api::config::Network;
use limpet_api::host::{Claimed, Snapshot, WatchEvent, WatchLine};
use limpet_net_types::{Token, Vni};

use crate::agent::{Agent, Identity};
use crate::config::Cli;
use crate::view::View;

/// The agent of `node-a`, which no controller has heard of.
pub(crate) fn agent() -> Agent {
    let cli = Cli::try_parse_from(["limpet-agent", "--controller", "unix:/no/controller"]);
    let (install, boot) = (Token::from_bits(9), Token::from_bits(1));
    let identity = Identity { host: "node-a".parse().unwrap(), install, boot };
    Agent::new(cli.unwrap().config, identity)
}

/// What is known after a first snapshot, at revision 1.
pub(crate) fn view(snapshot: Snapshot) -> View {
    let mut view = View::default();
    let event = WatchEvent::Snapshot(Box::new(snapshot));
    view.apply(WatchLine { store: Token::from_bits(1), revision: 1, event }).unwrap();
    view
}

/// The answer to a claim.
pub(crate) fn claimed(attachment: Attachment, revision: u64) -> Claimed {
    Claimed { attachment, network: network(1), revision }
}

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

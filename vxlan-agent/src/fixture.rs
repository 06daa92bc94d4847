//! Edge: small values for tests, and a directory.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher as _, Hasher as _};
use std::path::PathBuf;

use clap::Parser as _;
use limpet_api::FleetTime;
use limpet_api::book::{Attachment, AttachmentKey, Held};
use limpet_api::config::{Host, Network, Role};
use limpet_api::host::{Claimed, Session, Snapshot, WatchEvent, WatchLine};
use limpet_net_types::{Mac, Token, Vni};

use crate::agent::{Agent, Identity};
use crate::config::Cli;
use crate::records::Record;
use crate::view::View;

/// The agent of `node-a`, which no controller has heard of.
pub(crate) fn agent() -> Agent {
    agent_of("unix:/no/controller")
}

/// The agent of `node-a`, of another controller.
pub(crate) fn agent_of(controller: &str) -> Agent {
    agent_with(&["--controller", controller])
}

/// The agent of `node-a`, whose files are in a directory.
pub(crate) fn agent_in(directory: &Directory) -> Agent {
    let (state, boot) = (directory.path(""), directory.path("boot-id"));
    let paths = ["--state-dir", state.to_str().unwrap(), "--boot-id-file", boot.to_str().unwrap()];
    agent_with(&paths)
}

fn agent_with(flags: &[&str]) -> Agent {
    let cli = Cli::try_parse_from(["limpet-agent"].iter().chain(flags));
    let (install, boot) = (Token::from_bits(9), Token::from_bits(1));
    let identity = Identity { host: "node-a".parse().unwrap(), install, boot };
    Agent::new(cli.unwrap().config, identity)
}

/// A session of `node-a`.
pub(crate) fn session() -> Session {
    let host = Host {
        name: "node-a".parse().unwrap(),
        roles: [Role::Node].into(),
        labels: BTreeMap::default(),
        external: BTreeSet::default(),
        networks: None,
        vtep_mac: Mac::new([2, 0x4c, 0, 0, 0, 1]).unwrap(),
        underlay: None,
        addresses: vec![],
    };
    Session { session: Token::from_bits(1), host, store: Token::from_bits(1), revision: 1 }
}

/// A directory that is gone when it is dropped.
pub(crate) struct Directory(PathBuf);

impl Directory {
    pub(crate) fn new(name: &str) -> Self {
        // Test programs have process numbers of their own, so that another's may be the same; this directory they share.
        let unique = std::hash::RandomState::new().build_hasher().finish();
        let path = std::env::temp_dir().join(format!("agent-{unique:x}-{name}"));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
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

/// What was recorded of an attachment, at revision 1 of store 1.
pub(crate) fn record(n: u8, uid: u128) -> Record {
    let (attachment, network) = (attachment(n, uid), network(1));
    Record {
        attachment,
        network,
        store: Token::from_bits(1),
        revision: 1,
        severed: None,
        inside: None,
    }
}

/// A network `n<index>` with the VNI `100 * index`.
pub(crate) fn network(index: u16) -> Network {
    Network {
        name: format!("n{index}").parse().unwrap(),
        vni: Vni::try_from(u32::from(index) * 100).unwrap(),
        index: index.try_into().unwrap(),
        mtu: None,
        port: 4789,
        own_space: false,
        allow: BTreeSet::default(),
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
        addresses: [held(format!("10.32.0.{n}"), "p4"), held(format!("fd32::{n:x}"), "p6")].into(),
        mac: format!("02:4c:00:00:01:{n:02x}").parse().unwrap(),
        runtime: limpet_net_types::RuntimeName::default(),
        netns: "/run/netns/none".into(),
        created: FleetTime(0),
        created_wall: None,
    }
}

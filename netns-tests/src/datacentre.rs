//! Edge: the set-up that most tests start from: two nodes, a member, a gateway with a network behind it, and on
//! that network a machine that never joined.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::agent::Agent;
use crate::container::Pod;
use crate::controller::Controller;
use crate::fabric::Fabric;
use crate::host::Host;
use crate::run::wait_until;

/// The ranges of the pools that every [`Datacentre`] has, IPv4 and IPv6.
pub const POOLS: [&str; 2] = ["10.32.0.0/16", "fd32::/64"];

/// The networks behind the gateway.
const EXTERNAL: [&str; 2] = ["198.51.100.0/24", "2001:db8:e::/64"];

/// Hosts that have joined, a network and its pools, and one machine that has not joined.
///
/// Everything ends before the hosts that it runs on: fields are dropped in their order.
#[derive(Debug)]
pub struct Datacentre {
    /// The agent of `node-a`.
    pub a: Agent,
    /// The agent of `node-b`.
    pub b: Agent,
    /// The agent of `metal-1`, a member.
    pub metal: Option<Agent>,
    /// The agent of `gw-1`, a gateway with `plain` behind it.
    pub gateway: Option<Agent>,
    /// A machine that never joined and has a static route to each pool.
    pub plain: Option<Host>,
    /// The controller, on a host of its own.
    pub controller: Controller,
    /// What connects the hosts.
    pub underlay: Fabric,
    /// What connects the gateway and the machine that never joined.
    pub outside: Fabric,
}

impl Datacentre {
    /// Two nodes and a controller.
    #[must_use]
    pub fn small() -> Self {
        Self::controlled_by(|host| Controller::start(host, "192.0.2.200"))
    }

    /// Two nodes and a member, whose programs are there to be killed: the agents run from files of their own, and the
    /// controller has its store in etcd.
    #[must_use]
    pub fn to_be_shaken() -> Self {
        let mut made = Self::controlled_by(|host| Controller::start_over_etcd(host, "192.0.2.200"));
        let metal = on(&made.underlay, "metal-1", 50);
        made.metal = Some(Agent::new(&metal, &made.controller.url(), "--role member").started());
        made.settle();
        made
    }

    fn controlled_by(controller: impl FnOnce(&Host) -> Controller) -> Self {
        let underlay = Fabric::new("underlay");
        let on = |name: &str, number: u8| on(&underlay, name, number);
        let controller = controller(&on("ctl", 200));
        controller.run("network create pods --vni 100");
        controller.run(&format!("pool create pods-v4 --network pods --range {}", POOLS[0]));
        controller.run(&format!("pool create pods-v6 --network pods --range {}", POOLS[1]));
        let agent = |name, number| {
            Agent::new(&on(name, number), &controller.url(), "--role node").started()
        };
        let (a, b) = (agent("node-a", 1), agent("node-b", 2));
        let outside = Fabric::new("outside");
        let made =
            Self { a, b, metal: None, gateway: None, plain: None, controller, underlay, outside };
        made.settle();
        made
    }

    /// All of it.
    #[must_use]
    pub fn full() -> Self {
        let mut made = Self::small();
        let on = |name: &str, number: u8| on(&made.underlay, name, number);
        let (metal, gateway, plain) = (on("metal-1", 50), on("gw-1", 9), Host::new("plain-1"));
        made.outside.join(&gateway, "eth1", &["198.51.100.1/24", "2001:db8:e::1/64"]);
        made.outside.join(&plain, "eth0", &["198.51.100.77/24", "2001:db8:e::77/64"]);
        plain.run(&format!("ip route add {} via 198.51.100.1", POOLS[0]));
        plain.run(&format!("ip route add {} via 2001:db8:e::1", POOLS[1]));
        let url = made.controller.url();
        made.metal = Some(Agent::new(&metal, &url, "--role member").started());
        // The gateway's underlay address is named: it has two devices with a global address.
        let external = EXTERNAL.map(|prefix| format!("--external {prefix}")).join(" ");
        let flags = format!("--role gateway --underlay 192.0.2.9 {external}");
        made.gateway = Some(Agent::new(&gateway, &url, &flags).started());
        for router in ["198.51.100.1", "2001:db8:e::1"] {
            plain.wait_for(router);
        }
        made.plain = Some(plain);
        made.settle();
        made
    }

    /// All agents.
    pub fn agents(&self) -> impl Iterator<Item = &Agent> {
        [Some(&self.a), Some(&self.b), self.metal.as_ref(), self.gateway.as_ref()]
            .into_iter()
            .flatten()
    }

    /// The host of `metal-1`, of a [`Datacentre::full`].
    #[must_use]
    pub fn metal_host(&self) -> &Host {
        self.metal.as_ref().expect("a full datacentre has a member").host()
    }

    /// The host of `gw-1`, of a [`Datacentre::full`].
    #[must_use]
    pub fn gateway_host(&self) -> &Host {
        self.gateway.as_ref().expect("a full datacentre has a gateway").host()
    }

    /// The machine that never joined, of a [`Datacentre::full`].
    #[must_use]
    pub fn plain_host(&self) -> &Host {
        self.plain.as_ref().expect("a full datacentre has a machine that never joined")
    }

    /// Waits until every host has a way to every other.
    pub fn settle(&self) {
        let others = self.agents().count() - 1;
        for agent in self.agents() {
            wait_until(
                Duration::from_secs(15),
                &format!("{} has a way to every host", agent.host().name()),
                || {
                    let nexthops = agent.host().json("ip -j nexthop show");
                    nexthops.iter().filter(|hop| hop.get("gateway").is_some()).count() == others
                },
            );
        }
    }

    /// Waits until a name's addresses are known to be on this agent's host, everywhere.
    pub fn settle_on(&self, pod: &Pod, agent: &Agent) {
        let target = pod.v4();
        for other in self.agents().filter(|other| other.host().name() != agent.host().name()) {
            wait_until(
                Duration::from_secs(10),
                &format!("{} has a way to {target}", other.host().name()),
                || other.host().pings(target, 1),
            );
        }
    }
}

/// A host on the underlay that is as careful about source addresses as a host can be.
fn on(underlay: &Fabric, name: &str, number: u8) -> Host {
    let host = Host::new(name);
    host.run("sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.default.rp_filter=1");
    underlay.join(
        &host,
        "eth0",
        &[&format!("192.0.2.{number}/24"), &format!("2001:db8::{number}/64")],
    );
    host
}

/// A place that traffic comes from or goes to, with its address of a family.
#[derive(Clone, Debug)]
pub struct Place {
    /// What a failed test calls it.
    pub name: String,
    /// Its network namespace.
    pub netns: PathBuf,
    /// The address that others see and reach it by.
    pub address: IpAddr,
}

impl Place {
    /// A pod, by its own address of the family of `like`.
    #[must_use]
    pub fn pod(pod: &Pod, v6: bool) -> Self {
        let address = if v6 { pod.v6() } else { pod.v4() };
        Self { name: pod.name.clone(), netns: pod.container.netns(), address }
    }

    /// A host, by the address given.
    #[must_use]
    pub fn host(host: &Host, address: &str) -> Self {
        Self {
            name: host.name().to_owned(),
            netns: host.netns(),
            address: address.parse().unwrap(),
        }
    }
}

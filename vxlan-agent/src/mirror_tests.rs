//! Edge: the mirror beside the real kernel: whatever is done to it, and by whom, the mirror says what a reading says, or
//! that it does not know.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use limpet_api::host::{Snapshot, Stray};
use limpet_rtnl::{Event, Monitor, Netns};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use crate::desired::desired;
use crate::fixture;
use crate::kernel::{Kernel, Look, complete};
use crate::mirror::{Mirror, Verdict, take};
use crate::plan::plan;
use crate::plan::tests::{facts, ifname, small, view};

/// One thing that happens on a host.
#[derive(Clone, Debug)]
enum Act {
    /// The cluster changes, and the agent follows. What of it there is.
    Follow {
        hosts: usize,
        blocks: usize,
        strays: usize,
        underlay: u8,
    },
    /// The plugin makes an interface, buries it, deletes it.
    Make(u8),
    Bury(u8),
    Delete(u8),
    /// Somebody does something else.
    Other(&'static str),
}

const OTHERS: [&str; 16] = [
    "ip route del 10.32.0.64/26 table 7601",
    "ip -6 route flush table 7601 proto 76",
    "ip nexthop flush proto 76",
    "ip rule del pref 200",
    "bridge fdb append 00:00:00:00:00:00 dev limpet1 dst 192.0.2.66 self permanent",
    "ip neigh flush dev limpet1 nud permanent",
    "ip link set limpet1 down",
    "ip link set limpet1 up",
    "ip link del limpet1",
    "ip nexthop replace id 7 blackhole",
    "ip nexthop del id 7",
    "ip link add other0 type bridge; ip addr add 203.0.113.1/24 dev other0; ip link set other0 up",
    "ip link del other0",
    "ip route replace 203.0.113.0/24 via 192.0.2.254",
    "for i in lc*; do ip link set $i down; done",
    "sysctl -qw net.ipv6.conf.limpet1.disable_ipv6=1",
];

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (1..=3_usize, 0..=2_usize, 0..=1_usize, 0..3_u8).prop_map(
            |(hosts, blocks, strays, underlay)| Act::Follow { hosts, blocks, strays, underlay }
        ),
        2 => (1..4_u8).prop_map(Act::Make),
        1 => (1..4_u8).prop_map(Act::Bury),
        1 => (1..4_u8).prop_map(Act::Delete),
        4 => prop::sample::select(OTHERS.to_vec()).prop_map(Act::Other),
    ]
}

fn cluster(hosts: usize, blocks: usize, strays: usize, underlay: u8) -> Snapshot {
    let mut cluster = small();
    cluster.hosts.truncate(hosts);
    cluster.blocks.truncate(blocks);
    if let Some(host) = cluster.hosts.get_mut(1) {
        host.underlay = Some(format!("192.0.2.{}", 20 + underlay).parse().unwrap());
    }
    cluster.strays.truncate(strays);
    let address = "10.32.0.77".parse().unwrap();
    let network = fixture::network(1).name;
    cluster.strays.push(Stray { network, address, host: "node-b".parse().unwrap() });
    cluster.attachments = (1..4).map(|n| fixture::attachment(n, n.into())).collect();
    cluster
}

/// Whether or not it can be done.
fn sh(command: &str) {
    drop(Command::new("sh").args(["-c", command]).output().unwrap());
}

/// A host, its agent's picture of its kernel, and what the kernel tells.
struct World {
    kernel: Kernel,
    monitor: Monitor,
    mirror: Mirror,
}

impl World {
    async fn new() -> Self {
        sh("ip link set lo up; ip link add eth0 type veth peer name wire
            ip link set eth0 up; ip link set wire up
            ip addr add 192.0.2.1/24 dev eth0; ip addr add 2001:db8::1/64 dev eth0 nodad");
        let (monitor, mut kernel) = (Monitor::open().unwrap(), Kernel::open().unwrap());
        let mirror = kernel.dump(Look::Again).await.unwrap();
        Self { kernel, monitor, mirror }
    }

    async fn happens(&mut self, act: &Act) {
        match act {
            Act::Follow { hosts, blocks, strays, underlay } => {
                let wanted = view(cluster(*hosts, *blocks, *strays, *underlay));
                let wanted = desired(&wanted, &facts()).unwrap();
                complete(&mut self.mirror, &wanted).await.unwrap();
                let steps = plan(&wanted, &self.mirror.tables);
                let failed = self.kernel.carry_out(&self.mirror.seen.links, &steps).await;
                let mut verdict = Verdict::Nothing;
                for step in steps.iter().filter(|step| !failed.iter().any(|of| of.step == **step)) {
                    verdict = verdict.max(take(&mut self.mirror.tables, step));
                }
                if verdict == Verdict::Doubt || !failed.is_empty() {
                    self.monitor.told().unwrap();
                    self.mirror = self.kernel.dump(Look::Again).await.unwrap();
                }
            }
            Act::Make(n) => {
                let (end, uid) = (ifname(*n), limpet_net_types::Uid::from_bits(u128::from(*n)));
                sh(&format!(
                    "ip -o link show group 4096 | grep -q {end} && ip link set {end} name lcx{n}
                    ip link add {end} group 4097 type veth peer name p{end}
                    ip link set {end} alias {uid} addrgenmode none up; ip link set p{end} up
                    ip neigh replace 10.32.0.{n} lladdr 02:00:00:00:00:0{n} dev {end} nud permanent
                    ip route replace 10.32.0.{n} dev {end} scope link table 7601 proto 76
                    ip -6 route replace fd32::{n} dev {end} table 7601 proto 76"
                ));
            }
            Act::Bury(n) => {
                let end = ifname(*n);
                sh(&format!("ip link set {end} down group 4096"));
            }
            Act::Delete(n) => sh(&format!("ip link del {}; ip link del lcx{n}", ifname(*n))),
            Act::Other(command) => {
                let ends = (1..4).map(ifname).collect::<Vec<_>>().join(" ");
                sh(&command.replace("lc*", &ends));
            }
        }
    }

    /// Takes in what was told, and compares.
    async fn compare(&mut self, act: &Act) -> Result<Verdict, TestCaseError> {
        let mut verdict = Verdict::Nothing;
        for event in self.monitor.told().unwrap() {
            verdict = verdict.max(match event {
                Event::Changed(change) => self.mirror.hear(&change),
                Event::Overrun => Verdict::Doubt,
            });
        }
        let found = self.kernel.dump(Look::Remembered).await.unwrap();
        if verdict == Verdict::Glance {
            verdict = self.mirror.glanced(found.seen.clone());
        }
        if verdict == Verdict::Doubt {
            self.mirror = found;
            return Ok(verdict);
        }
        let (known, found) = (&self.mirror.tables, &found.tables);
        prop_assert_eq!(&known.devices, &found.devices, "after {:?}", act);
        prop_assert_eq!(&known.veths, &found.veths, "after {:?}", act);
        prop_assert_eq!(&known.addresses, &found.addresses, "after {:?}", act);
        prop_assert_eq!(&known.fdb, &found.fdb, "after {:?}", act);
        prop_assert_eq!(&known.neighbours, &found.neighbours, "after {:?}", act);
        prop_assert_eq!(&known.nexthops, &found.nexthops, "after {:?}", act);
        prop_assert_eq!(&known.routes, &found.routes, "after {:?}", act);
        prop_assert_eq!(&known.rules, &found.rules, "after {:?}", act);
        Ok(verdict)
    }
}

/// Runs all of it on a host of its own.
fn on_a_host(acts: &[Act]) -> Result<Vec<Verdict>, TestCaseError> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!("mirror-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    assert!(Command::new("ip").args(["netns", "add", &name]).status().unwrap().success());
    let done = Netns::open(format!("/run/netns/{name}")).unwrap().run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut world = World::new().await;
            let mut verdicts = Vec::new();
            for act in acts {
                world.happens(act).await;
                verdicts.push(world.compare(act).await?);
            }
            Ok(verdicts)
        })
    });
    sh(&format!("ip netns del {name}"));
    done.unwrap()
}

#[test]
fn the_mirror_says_what_a_reading_says_whatever_is_done() {
    let config = ProptestConfig { cases: 12, max_shrink_iters: 40, ..ProptestConfig::default() };
    let mut runner = TestRunner::new(config);
    let acts = prop::collection::vec(act(), 1..14);
    runner.run(&acts, |acts| on_a_host(&acts).map(drop)).unwrap();
}

#[test]
fn what_the_agent_and_the_plugin_do_needs_no_other_reading() {
    let follow = |hosts, blocks, strays, underlay| Act::Follow { hosts, blocks, strays, underlay };
    let acts = [
        follow(3, 2, 1, 0),
        // What is told of the devices that were made just now.
        Act::Other("true"),
        Act::Make(1),
        follow(3, 1, 0, 1),
        Act::Make(2),
        follow(2, 0, 1, 2),
        Act::Bury(1),
        follow(3, 2, 1, 0),
        Act::Delete(1),
        Act::Bury(2),
        Act::Delete(2),
    ];
    let verdicts = on_a_host(&acts).unwrap();
    let settled = verdicts.get(2..).unwrap();
    assert!(settled.iter().all(|verdict| *verdict < Verdict::Glance), "{verdicts:?}");
}

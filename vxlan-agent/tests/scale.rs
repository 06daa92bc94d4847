//! Edge: the real agent in a cluster of some size: what a pass costs when one thing changes.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "tests fail by panics and say why")]

mod support;

use std::time::{Duration, Instant};

use limpet_api::config::Role;
use limpet_api::host::{Changes, SharedChange, Snapshot};
use limpet_net_types::{Mac, Prefix};
use support::fake::{Fake, block, host, small};
use support::{Agent, Host, wait_until};

const HOSTS: u16 = 2000;
const BLOCKS: u16 = 4;

fn large() -> Snapshot {
    let mut cluster = small();
    for n in 0..HOSTS {
        let [high, low] = n.to_be_bytes();
        let name = format!("node-{n}");
        let mut host = host(&name, 3, Role::Node, &format!("203.0.{high}.{low}"));
        host.vtep_mac = Mac::new([2, 0x4c, 1, 0, high, low]).unwrap();
        host.addresses =
            vec![host.underlay.unwrap(), format!("2001:db8:1::{n:x}").parse().unwrap()];
        for at in 0..BLOCKS {
            let first = u32::from(n) * u32::from(BLOCKS) + u32::from(at) + 1000;
            let address = std::net::Ipv4Addr::from((10 << 24) + (first << 6));
            let prefix = Prefix::containing(address.into(), 26).to_string();
            cluster.blocks.push(block("pods", "p4", &prefix, &name));
        }
        cluster.hosts.push(host);
    }
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn one_change_among_two_thousand_hosts_takes_a_moment() {
    let on = Host::new();
    let fake = Fake::start(&on.dir, large());
    let agent = Agent::start(&on, &fake.path, "--log info");
    wait_until("the agent is ready", || agent.log().contains("limpet_agent::service: ready"));
    let lines = |command: &str| on.sh(command).lines().count();
    let hosts = usize::from(HOSTS);
    assert_eq!(lines("bridge fdb show dev limpet1"), hosts + 2);
    assert_eq!(lines("ip nexthop show"), hosts + 3);
    assert_eq!(lines("ip route show table 7601"), hosts * usize::from(BLOCKS) + 3);
    std::thread::sleep(Duration::from_secs(1));
    let begun = Instant::now();
    let set = SharedChange::BlockSet(block("pods", "p4", "10.255.0.0/26", "node-b"));
    fake.tell(Changes { shared: vec![set], own: vec![] });
    wait_until("the block's route", || {
        on.sh("ip route show table 7601 10.255.0.0/26").contains("nhid")
    });
    // A debug build on a busy machine; built for use it is a tenth.
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    eprintln!("one change took {:?}", begun.elapsed());
}

/// How many other interfaces the host has, half of them down; `LIMPET_TEST_INTERFACES` makes it another number.
fn interfaces() -> usize {
    std::env::var("LIMPET_TEST_INTERFACES").map_or(2000, |number| number.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_with_thousands_of_interfaces_is_laid_out_and_kept() {
    let on = Host::new();
    let lines = (0..interfaces() / 2)
        .map(|n| format!("link add many{n} type veth peer name peer{n}\nlink set many{n} up\n"));
    std::fs::write(on.path("batch"), lines.collect::<Vec<_>>().concat()).unwrap();
    on.sh(&format!("ip -batch {}", on.path("batch").display()));
    let fake = Fake::start(&on.dir, small());
    let begun = Instant::now();
    let agent = Agent::start(&on, &fake.path, "--log info");
    wait_until("the agent is ready", || agent.log().contains("limpet_agent::service: ready"));
    eprintln!("ready after {:?}", begun.elapsed());
    let there = || on.sh("ip route show table 7601 10.32.0.64/26").contains("nhid");
    assert!(there());
    let begun = Instant::now();
    on.sh("ip route del 10.32.0.64/26 table 7601");
    wait_until("the route is back", there);
    eprintln!("a route was back after {:?}", begun.elapsed());
}

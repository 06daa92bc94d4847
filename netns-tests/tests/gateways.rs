//! What gateways lead to, and what nothing leads to: prefixes wider than a pool, behind further routers, and networks
//! that the tunnel must not open.
#![expect(clippy::unwrap_used, reason = "also what helps a test stops at the first surprise")]

use std::net::IpAddr;
use std::time::Duration;

use netns_tests::{Datacentre, Fabric, Host, Place, Pod, reaches, wait_until};

/// What is behind the second router: a network that the gateway has no address in.
const FURTHER: [&str; 2] = ["203.0.113.7", "2001:db8:f::7"];

fn reach_each_other(one: &Pod, other: &Pod) -> bool {
    [false, true].into_iter().all(|v6| {
        let (from, to) = (Place::pod(one, v6), Place::pod(other, v6));
        reaches(&from.netns, from.address, &to.netns, to.address)
    })
}

fn set_external(dc: &Datacentre, prefixes: &[&str]) {
    let flags: Vec<String> = prefixes.iter().map(|prefix| format!("--external {prefix}")).collect();
    dc.controller.run(&format!("host set gw-1 {}", flags.join(" ")));
}

#[test]
fn a_prefix_wider_than_a_pool_takes_nothing_from_the_pool() {
    let dc = Datacentre::full();
    let (web, db, near) =
        (dc.a.add("shop", "web-0"), dc.b.add("shop", "db-0"), dc.a.add("shop", "near-0"));
    dc.settle_on(&db, &dc.b);
    set_external(&dc, &["0.0.0.0/0", "::/0"]);
    for family in ["-4", "-6"] {
        wait_until(Duration::from_secs(10), "the wide prefix has its route", || {
            !dc.a.host().sh(&format!("ip {family} route show default table 7602")).is_empty()
        });
    }
    assert!(reach_each_other(&web, &db), "across hosts");
    assert!(reach_each_other(&web, &near), "on one host");
    for (v6, plain) in [(false, "198.51.100.77"), (true, "2001:db8:e::77")] {
        let (from, to) = (Place::pod(&web, v6), Place::host(dc.plain_host(), plain));
        let seen = || reaches(&from.netns, from.address, &to.netns, to.address);
        wait_until(Duration::from_secs(10), &format!("{plain} is reached"), seen);
    }
}

#[test]
fn a_prefix_behind_a_further_router_is_reached_and_its_machines_reach_containers() {
    let dc = Datacentre::full();
    let db = dc.b.add("shop", "db-0");
    let (router, machine) = (Host::new("router"), Host::new("machine"));
    let gateway = dc.gateway_host();
    let between = Fabric::new("between");
    between.join(gateway, "eth2", &["172.31.0.1/24", "fd99::1/64"]);
    between.join(&router, "eth0", &["172.31.0.2/24", "fd99::2/64"]);
    let further = Fabric::new("further");
    further.join(&router, "eth1", &["203.0.113.1/24", "2001:db8:f::1/64"]);
    further.join(&machine, "eth0", &["203.0.113.7/24", "2001:db8:f::7/64"]);
    router.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
    router.run("ip route add 10.32.0.0/16 via 172.31.0.1; ip route add fd32::/64 via fd99::1");
    machine.run("ip route add default via 203.0.113.1; ip route add default via 2001:db8:f::1");
    gateway.run("ip route add 203.0.113.0/24 via 172.31.0.2");
    gateway.run("ip route add 2001:db8:f::/64 via fd99::2");

    set_external(&dc, &["203.0.113.0/24", "2001:db8:f::/64"]);
    for (v6, address) in [(false, FURTHER[0]), (true, FURTHER[1])] {
        let (pod, at) = (Place::pod(&db, v6), Place::host(&machine, address));
        let there = || reaches(&pod.netns, pod.address, &at.netns, at.address);
        wait_until(Duration::from_secs(15), &format!("{address} is reached"), there);
        assert!(reaches(&at.netns, at.address, &pod.netns, pod.address), "and reaches it");
    }
}

#[test]
fn what_comes_through_the_tunnel_is_let_out_by_gateways_only() {
    let dc = Datacentre::full();
    let db = dc.b.add("shop", "db-0");
    dc.settle_on(&db, &dc.b);
    // A network of node-a's that has nothing to do with limpet, and a machine on it that would answer anybody.
    let (victim, office) = (Host::new("victim"), Fabric::new("office"));
    office.join(dc.a.host(), "eth9", &["172.30.0.1/24", "fd97::1/64"]);
    office.join(&victim, "eth0", &["172.30.0.5/24", "fd97::5/64"]);
    victim.run("ip route add default via 172.30.0.1; ip route add default via fd97::1");
    victim.run(
        "nft 'add table inet seen; add chain inet seen c { type filter hook input priority 0; }; \
         add rule inet seen c ip protocol icmp counter; \
         add rule inet seen c ip6 nexthdr icmpv6 icmpv6 type echo-request counter'",
    );
    // A container of another host has its packets led into the tunnel, to node-a, as a stranger could who
    // sends VXLAN by himself.
    let vtep = link_local_of(dc.a.host());
    dc.b.host().run(&format!(
        "ip rule add pref 50 to 172.30.0.0/24 lookup 99
         ip -6 rule add pref 50 to fd97::/64 lookup 99
         ip route add 172.30.0.0/24 via inet6 {vtep} dev limpet1 table 99
         ip -6 route add fd97::/64 via {vtep} dev limpet1 table 99"
    ));
    for target in ["172.30.0.5", "fd97::5"] {
        drop(db.container.try_sh(&format!("ping -c 3 -i 0.1 -W 0.3 {target}")));
    }
    let arrived = dc.a.host().json("ip -j -s link show limpet1")[0]["stats64"]["rx"]["packets"]
        .as_u64()
        .unwrap();
    assert!(arrived >= 6, "only {arrived} packets came through the tunnel at all");
    let counted = victim.sh("nft list table inet seen");
    assert_eq!(counted.matches("packets 0 ").count(), 2, "{counted}");
}

/// The address of a host's VTEP, to which every other host has a neighbour entry.
fn link_local_of(host: &Host) -> String {
    let links = host.json("ip -j -6 address show dev limpet1");
    links[0]["addr_info"][0]["local"].as_str().unwrap().to_owned()
}

#[test]
fn a_host_without_an_ipv6_address_of_its_own_carries_its_containers_over_ipv6() {
    let dc = Datacentre::small();
    let (web, db) = (dc.a.add("shop", "web-0"), dc.b.add("shop", "db-0"));
    dc.settle_on(&db, &dc.b);
    dc.a.host().run("ip -6 addr del 2001:db8::1/64 dev eth0");
    wait_until(Duration::from_secs(10), "the agent has noticed", || {
        !dc.a.host().sh("ip -6 route show table 7601").contains("2001:db8::1")
    });
    let near = dc.a.add("shop", "near-0");
    assert!(reach_each_other(&web, &db), "across hosts");
    assert!(reach_each_other(&db, &web), "and back");
    assert!(reach_each_other(&web, &near), "to one that came later");
    let own: IpAddr = "192.0.2.1".parse().unwrap();
    let (from, to) = (Place::host(dc.a.host(), "192.0.2.1"), Place::pod(&db, false));
    assert!(reaches(&from.netns, own, &to.netns, to.address), "its IPv4 is as before");
}

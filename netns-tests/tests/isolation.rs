//! Edge: networks of the shared address space are closed to each other, by each host for itself.

#![expect(clippy::unwrap_used, reason = "also what helps a test stops at the first surprise")]

use std::net::IpAddr;
use std::time::Duration;

use netns_tests::{Agent, Call, Container, Datacentre, Host, Pod, wait_until};

/// How long a change at the controller may take to be in every host's kernel.
const SPREAD: Duration = Duration::from_secs(15);

/// A datacentre with a second network, and a container of it on `node-b`.
struct Bed {
    dc: Datacentre,
    /// Of the first network, on `node-a`.
    web: Pod,
    /// Of the second, on `node-b`.
    lab: Pod,
}

/// A new pod on any network.
fn add_to(network: &str, agent: &Agent, name: &str) -> Pod {
    let container = Container::new(name);
    let mut config = agent.config();
    config["name"] = network.into();
    let call = Call::for_pod("ADD", &container, network, name);
    let answer = agent.call(&Call { stdin: config.to_string(), ..call });
    let result = answer.expect_success(&format!("ADD {name} to {network}"));
    Pod { container, namespace: network.to_owned(), name: name.to_owned(), result }
}

fn bed() -> Bed {
    let dc = Datacentre::full();
    dc.controller.run("network create lab");
    dc.controller.run("pool create lab-v4 --network lab --range 10.33.0.0/16");
    dc.controller.run("pool create lab-v6 --network lab --range fd33::/64");
    for agent in dc.agents() {
        wait_until(SPREAD, "the second network has a device", || agent.has_device("limpet2"));
    }
    let (web, lab) = (dc.a.add("shop", "web-0"), add_to("lab", &dc.b, "lab-0"));
    // Hosts are members of both.
    wait_until(SPREAD, "both are reached", || {
        let metal = dc.metal_host();
        metal.pings(web.v6(), 1) && metal.pings(lab.v6(), 1) && metal.pings(lab.v4(), 1)
    });
    Bed { dc, web, lab }
}

fn try_ping(pod: &Pod, target: IpAddr) -> bool {
    pod.container.try_sh(&format!("ping -c 3 -i 0.1 -W 0.3 -q {target}")).is_ok()
}

/// Counts what comes to a host by a device from some sources, before limpet's own rules.
fn count(host: &Host, device: &str, [v4, v6]: [IpAddr; 2]) {
    host.run(&format!(
        "nft 'add table inet seen; add chain inet seen c {{ type filter hook prerouting priority -400; }}; \
         add rule inet seen c iifname {device} ip saddr {v4} counter; \
         add rule inet seen c iifname {device} ip6 saddr {v6} counter'"
    ));
}

/// What was counted, IPv4 and IPv6.
fn counted(host: &Host) -> Vec<u64> {
    let text = host.sh("nft list table inet seen");
    let packets = text.split("counter packets ").skip(1);
    packets.map(|rest| rest.split(' ').next().unwrap().parse().unwrap()).collect()
}

/// Leads a host's packets to a container on `node-b` by the tunnel of another network than the container's.
fn lead_astray(host: &Host, device: &str, targets: [IpAddr; 2]) {
    let ways = host.json("ip -j nexthop show");
    let to_b = host.json(&format!("bridge -j fdb show dev {device}"));
    let mac = to_b.iter().find(|entry| entry["dst"] == "192.0.2.2").unwrap()["mac"].clone();
    let near = host.json(&format!("ip -j neigh show dev {device} nud permanent"));
    let via = near.iter().find(|entry| entry["lladdr"] == mac).unwrap()["dst"].clone();
    let by = |way: &&serde_json::Value| way["dev"] == device && way["gateway"] == via;
    let id = ways.iter().find(by).unwrap()["id"].clone();
    for (family, target) in ["-4", "-6"].into_iter().zip(targets) {
        host.run(&format!(
            "ip {family} rule add pref 1 to {target} lookup 999; ip {family} route add {target} nhid {id} table 999"
        ));
    }
}

#[test]
fn what_comes_by_another_networks_tunnel_does_not_reach_a_container() {
    let Bed { dc, web, lab } = bed();
    let (sources, targets) = ([web.v4(), web.v6()], [lab.v4(), lab.v6()]);
    lead_astray(dc.a.host(), "limpet1", targets);
    count(dc.b.host(), "limpet1", sources);
    for target in targets {
        assert!(!try_ping(&web, target), "{target} is reached by the other network's tunnel");
    }
    assert_eq!(counted(dc.b.host()), [3, 3], "they came by that tunnel");
}

#[test]
fn a_receiver_is_closed_by_itself_when_the_senders_table_is_gone() {
    let Bed { mut dc, web, lab } = bed();
    // Nor does it depend on strict reverse-path filters.
    for host in [dc.a.host(), dc.b.host()] {
        host.run("for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $f; done");
    }
    dc.a.stop();
    dc.a.host().run("nft flush ruleset");
    count(dc.b.host(), "limpet2", [web.v4(), web.v6()]);
    for target in [lab.v4(), lab.v6()] {
        assert!(!try_ping(&web, target), "{target} is reached");
    }
    assert_eq!(counted(dc.b.host()), [3, 3], "they came by the container's own tunnel");
}

#[test]
fn a_port_that_is_published_for_one_network_is_closed_to_containers_of_another() {
    let Bed { dc, web, lab } = bed();
    let (host, target) = (dc.b.host(), lab.v4());
    host.run(&format!(
        "nft 'add table ip ports; add chain ip ports c {{ type nat hook prerouting priority -100; }}; \
         add rule ip ports c tcp dport 8080 dnat to {target}:80'"
    ));
    wait_until(SPREAD, "what was translated is let in", || {
        host.sh("nft list table inet limpet").contains("ct status dnat accept")
    });
    let server = "import socket
s = socket.create_server(('', 80))
while True: s.accept()[0].sendall(b'hello')";
    let script = host.dir().join("server.py");
    std::fs::write(&script, server).unwrap();
    let mut listening = lab.container.command("python3").arg(&script).spawn().unwrap();
    wait_until(SPREAD, "the container listens", || {
        lab.container.sh("ss -Hltn sport = 80").contains(":80")
    });
    let ask = "python3 -c \"
import socket
try: print(socket.create_connection(('192.0.2.2', 8080), 1).recv(9).decode(), end='')
except TimeoutError: pass\"";
    let here = add_to("lab", &dc.a, "lab-1");
    assert!(here.container.sh(ask).contains("hello"), "containers of its own network reach it");
    assert_eq!(web.container.sh(ask), "", "one of another network reaches it");
    listening.kill().unwrap();
    listening.wait().unwrap();
}

#[test]
fn connections_are_tracked_only_while_an_opening_is_one_way() {
    let Bed { dc, web, lab } = bed();
    let count = |host: &Host| {
        host.sh("cat /proc/sys/net/netfilter/nf_conntrack_count").trim().parse::<u32>().unwrap()
    };
    let table = |host: &Host| host.sh("nft list table inet limpet");
    dc.controller.run("network allow pods lab --both");
    wait_until(SPREAD, "they are open to each other", || {
        try_ping(&web, lab.v4()) && try_ping(&lab, web.v6())
    });
    for host in [dc.a.host(), dc.b.host()] {
        // One of the two was allowed before the other.
        wait_until(SPREAD, "both are", || !table(host).contains("ct state"));
    }
    let before = (count(dc.a.host()), count(dc.b.host()));
    assert!(try_ping(&web, lab.v4()) && try_ping(&lab, web.v6()));
    let after = (count(dc.a.host()), count(dc.b.host()));
    assert!(after.0 <= before.0 && after.1 <= before.1, "{before:?}, {after:?}");
    dc.controller.run("network deny lab pods");
    for host in [dc.a.host(), dc.b.host()] {
        wait_until(SPREAD, "answers are told from questions", || {
            table(host).contains("ct state established")
        });
    }
    for (from, to, works) in [(&web, &lab, true), (&lab, &web, false)] {
        assert_eq!(try_ping(from, to.v4()), works);
        assert_eq!(try_ping(from, to.v6()), works);
    }
    dc.controller.run("network deny pods lab");
    for host in [dc.a.host(), dc.b.host()] {
        wait_until(SPREAD, "nobody asks for connections", || !table(host).contains("ct state"));
    }
}

#[test]
fn a_gateways_default_route_takes_nothing_from_another_networks_pool() {
    let Bed { dc, web, lab } = bed();
    let everything = "0.0.0.0/0,::/0";
    dc.controller.run(&format!("host set gw-1 --external {everything}"));
    dc.controller.run("network allow pods lab");
    wait_until(SPREAD, "the gateway leads everywhere", || {
        !dc.a.host().sh("ip route show default table 7602").is_empty()
    });
    wait_until(SPREAD, "one network is let into the other", || {
        try_ping(&web, lab.v4()) && try_ping(&web, lab.v6())
    });
}

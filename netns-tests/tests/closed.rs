//! Closed by default: joining opens a host for nobody, and nobody outside speaks with a pool's address.
#![expect(clippy::unwrap_used, reason = "also what helps a test stops at the first surprise")]

use std::net::IpAddr;
use std::time::Duration;

use netns_tests::{Agent, Datacentre, Flow, Host, Pod, wait_until};

/// A machine on the underlay that has not joined.
fn stranger(dc: &Datacentre) -> Host {
    let host = Host::new("stranger");
    dc.underlay.join(&host, "eth0", &["192.0.2.66/24", "2001:db8::66/64"]);
    for address in ["192.0.2.1", "2001:db8::1"] {
        host.wait_for(address);
    }
    host
}

fn pings(from: &Host, target: IpAddr) -> bool {
    from.try_sh(&format!("ping -c 2 -i 0.1 -W 0.4 -q {target}")).is_ok()
}

/// As most container hosts are set up, for other reasons: then only limpet's own rules keep a host closed.
const FORWARD: &str = "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1";

/// Runs a shell command line on a host or in a container.
type Shell<'a> = &'a dyn Fn(&str) -> String;

/// Counts packets from these sources at a hook, beside limpet's own rules.
fn count_at(shell: Shell, hook: &str, sources: [IpAddr; 2]) {
    // Before limpet's rules in prerouting, behind them everywhere else.
    let priority = if hook == "prerouting" { -400 } else { 100 };
    let [v4, v6] = sources;
    drop(shell(&format!(
        "nft 'add table inet seen-{hook}; \
         add chain inet seen-{hook} c {{ type filter hook {hook} priority {priority}; }}; \
         add rule inet seen-{hook} c ip saddr {v4} counter; \
         add rule inet seen-{hook} c ip6 saddr {v6} counter'"
    )));
}

/// What [`count_at`] counted, IPv4 and IPv6.
fn counted(shell: Shell, hook: &str) -> Vec<u64> {
    let text = shell(&format!("nft list table inet seen-{hook}"));
    let after =
        |(at, word): (usize, &str)| text[at + word.len()..].split_whitespace().next()?.parse().ok();
    text.match_indices("packets").filter_map(after).collect()
}

/// The forged packets were on the wire, so that something stopped them if they got no further.
fn assert_arrived(counted: &[u64], said: &str) {
    let all = counted.len() == 2 && counted.iter().all(|&n| n >= 3);
    assert!(all, "{counted:?} arrived at all\n{said}");
}

/// Sends a few packets with a forged source to each target, and returns what ping said.
fn forge(shell: Shell, sources: [IpAddr; 2], targets: [IpAddr; 2]) -> String {
    let [v4, v6] = sources;
    drop(shell(&format!("ip addr replace {v4}/32 dev lo; ip addr replace {v6}/128 dev lo nodad")));
    let pairs = sources.into_iter().zip(targets);
    let ping = |(source, target)| {
        shell(&format!("ping -c 3 -i 0.1 -W 0.3 -I {source} {target} 2>&1 || true"))
    };
    pairs.map(ping).collect()
}

/// A stranger on the underlay reaches the joined hosts themselves, and through them nothing.
fn assert_closed(dc: &Datacentre, stranger: &Host, pod: &Pod) {
    let metal = dc.metal_host();
    for (host, v4, v6) in [
        (dc.a.host(), "192.0.2.1", "2001:db8::1"),
        (dc.b.host(), "192.0.2.2", "2001:db8::2"),
        (metal, "192.0.2.50", "2001:db8::50"),
        // The underlay is none of the networks behind the gateway.
        (dc.gateway_host(), "192.0.2.9", "2001:db8::9"),
    ] {
        let name = host.name();
        for (prefix, via, target) in [("10.32.0.0/16", v4, pod.v4()), ("fd32::/64", v6, pod.v6())] {
            assert!(pings(stranger, via.parse().unwrap()), "the test bed is open to {name}");
            stranger.run(&format!("ip route replace {prefix} via {via}"));
            assert!(!pings(stranger, target), "{name} forwards to {target} for a stranger");
        }
    }
}

#[test]
fn no_joined_host_forwards_for_others() {
    let dc = Datacentre::full();
    let (pod, stranger) = (dc.b.add("shop", "db-0"), stranger(&dc));
    dc.settle_on(&pod, &dc.b);
    assert_closed(&dc, &stranger, &pod);
    for agent in dc.agents() {
        agent.host().run(FORWARD);
    }
    assert_closed(&dc, &stranger, &pod);
}

#[test]
fn a_gateway_forwards_for_the_networks_behind_it() {
    let dc = Datacentre::full();
    let (pod, plain) = (dc.b.add("shop", "db-0"), dc.plain_host());
    dc.settle_on(&pod, &dc.b);
    assert!(pings(plain, pod.v4()) && pings(plain, pod.v6()));
    // And to nothing else: joining has not made it a router between its other networks.
    plain.run(
        "ip route add 192.0.2.0/24 via 198.51.100.1; ip route add 2001:db8::/64 via 2001:db8:e::1",
    );
    let stranger = stranger(&dc);
    stranger.run(
        "ip route add 198.51.100.0/24 via 192.0.2.9; ip route add 2001:db8:e::/64 via 2001:db8::9",
    );
    for target in ["192.0.2.66", "2001:db8::66"] {
        assert!(!pings(plain, target.parse().unwrap()), "the gateway forwards to {target}");
    }
    for target in ["198.51.100.77", "2001:db8:e::77"] {
        assert!(!pings(&stranger, target.parse().unwrap()), "the gateway forwards to {target}");
    }
}

#[test]
fn a_source_inside_a_pool_from_outside_limpets_devices_is_dropped() {
    let dc = Datacentre::full();
    let (pod, victim) = (dc.b.add("shop", "db-0"), dc.a.add("shop", "web-0"));
    let plain = dc.plain_host();
    let gateway = dc.gateway_host();
    let metal = dc.metal_host();
    // Strict reverse-path filtering would catch IPv4 by itself; nothing may depend on it.
    for host in [dc.a.host(), dc.b.host(), gateway, metal] {
        host.run("for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $f; done");
    }
    dc.settle_on(&pod, &dc.b);
    let sources = [victim.v4(), victim.v6()];
    let (at_pod, at_gateway, at_metal): (Shell, Shell, Shell) =
        (&|line| pod.container.sh(line), &|line| gateway.sh(line), &|line| metal.sh(line));

    // A machine behind the gateway claims to be a container, to another container.
    count_at(at_gateway, "prerouting", sources);
    count_at(at_pod, "input", sources);
    let said = forge(&|line| plain.sh(line), sources, [pod.v4(), pod.v6()]);
    assert_arrived(&counted(at_gateway, "prerouting"), &said);
    assert_eq!(counted(at_pod, "input"), [0, 0], "and went no further");

    // A machine on the underlay claims to be a container, to a host.
    let outsider = stranger(&dc);
    count_at(at_metal, "prerouting", sources);
    count_at(at_metal, "input", sources);
    let targets = ["192.0.2.50".parse().unwrap(), "2001:db8::50".parse().unwrap()];
    let said = forge(&|line| outsider.sh(line), sources, targets);
    assert_arrived(&counted(at_metal, "prerouting"), &said);
    assert_eq!(counted(at_metal, "input"), [0, 0], "the host took them for a container's");
}

#[test]
fn a_container_cannot_speak_with_anothers_address() {
    let dc = Datacentre::small();
    let (web, db) = (dc.a.add("shop", "web-0"), dc.b.add("shop", "db-0"));
    let other = dc.a.add("shop", "web-1");
    dc.settle_on(&db, &dc.b);
    let sources = [other.v4(), other.v6()];
    let (at_db, at_host): (Shell, Shell) =
        (&|line| db.container.sh(line), &|line| dc.a.host().sh(line));
    count_at(at_host, "prerouting", sources);
    count_at(at_db, "input", sources);
    let said = forge(&|line| web.container.sh(line), sources, [db.v4(), db.v6()]);
    assert_arrived(&counted(at_host, "prerouting"), &said);
    assert_eq!(counted(at_db, "input"), [0, 0], "and went no further");
}

#[test]
fn flushing_every_nftables_rule_loses_no_packet() {
    let mut dc = Datacentre::small();
    let (web, db) = (dc.a.add("shop", "web-0"), dc.b.add("shop", "db-0"));
    dc.settle_on(&db, &dc.b);
    let flows =
        [db.v4(), db.v6()].map(|address| Flow::start(web.container.command("ping"), address));
    for _ in 0..5 {
        dc.a.host().run("nft flush ruleset; sleep 0.2");
    }
    for flow in flows {
        let tally = flow.end();
        assert!(tally.sent > 50 && tally.lost() == 0, "{tally:?}");
    }
    // A running agent looks at its table every 30 s; one that starts looks at once.
    dc.a.stop();
    dc.a.start();
    wait_until(Duration::from_secs(10), "the agent has put its table back", || {
        dc.a.host().try_sh("nft list table inet limpet").is_ok()
    });
}

/// Sends one router advertisement (RFC 4861, section 4.2) with a router lifetime of 30 minutes.
const ADVERTISE: &str = r#"
import socket, struct, sys
s = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex(sys.argv[1]))
s.sendto(struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0), ("ff02::1", 0))
"#;

#[test]
fn the_default_route_from_router_advertisements_survives_joining() {
    let dc = Datacentre::small();
    let (router, host) = (Host::new("router"), Host::new("node-c"));
    dc.underlay.join(&router, "eth0", &["192.0.2.254/24", "2001:db8::254/64"]);
    dc.underlay.join(&host, "eth0", &["192.0.2.3/24", "2001:db8::3/64"]);
    std::fs::write(router.dir().join("ra.py"), ADVERTISE).unwrap();
    let advertise = || router.run(&format!("python3 {}/ra.py eth0", router.dir().display()));
    let has_route = || !host.json("ip -j -6 route show default proto ra").is_empty();
    wait_until(
        Duration::from_secs(10),
        "the host has the router's default route before it joins",
        || {
            let _ = router.try_sh(&format!("python3 {}/ra.py eth0", router.dir().display()));
            has_route()
        },
    );

    let agent = Agent::new(&host, &dc.controller.url(), "--role node").started();
    let pod = agent.add("shop", "web-0");
    wait_until(Duration::from_secs(10), "the new node is reached", || {
        dc.b.host().pings(pod.v6(), 1)
    });

    assert!(has_route(), "the default route is still there");
    host.run("ip -6 route del default");
    wait_until(Duration::from_secs(10), "the host still listens to its router", || {
        advertise();
        has_route()
    });
    // And it forwards all the same: from another host to its container, and back.
    assert!(dc.a.host().pings(pod.v6(), 3) && dc.a.host().pings(pod.v4(), 3));
}

#[test]
fn connections_are_tracked_only_where_somebody_translates_destinations() {
    let dc = Datacentre::small();
    let (web, db) = (dc.a.add("shop", "web-0"), dc.b.add("shop", "db-0"));
    dc.settle_on(&db, &dc.b);
    assert!(dc.a.host().pings(db.v4(), 2) && dc.a.host().pings(web.v4(), 2));
    let count = "cat /proc/sys/net/netfilter/nf_conntrack_count";
    assert_eq!(dc.a.host().sh(count), "0", "joining has the kernel track connections");
    // As publishing a port does.
    dc.a.host().run(
        "nft 'add table ip ports; add chain ip ports c { type nat hook prerouting priority -100; }'",
    );
    wait_until(Duration::from_secs(5), "translated destinations are let in", || {
        dc.a.host().sh("nft list table inet limpet").contains("ct status dnat accept")
    });
}

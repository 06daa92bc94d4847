//! What is below the overlay changes while the agents run.

use std::collections::BTreeSet;
use std::time::Duration;

use netns_tests::{Agent, Datacentre, Flow, Host, KernelWatch, Pod, Tally, wait_until};

const SOON: Duration = Duration::from_secs(15);

/// Two nodes with a container each, that know of each other.
fn two() -> (Datacentre, Pod, Pod) {
    let dc = Datacentre::small();
    let (web, db) = (dc.a.add("shop", "web-0"), dc.b.add("shop", "db-0"));
    dc.settle_on(&db, &dc.b);
    (dc, web, db)
}

/// Whether a container reaches another one over both families.
fn talks(from: &Pod, to: &Pod) -> bool {
    to.addresses().iter().all(|at| from.container.try_sh(&format!("ping -c 1 -W 0.5 {at}")).is_ok())
}

fn await_talk(from: &Pod, to: &Pod, after: &str) {
    wait_until(SOON, &format!("they talk after {after}"), || talks(from, to));
}

fn flow(from: &Pod, to: &Pod) -> Flow {
    Flow::start(from.container.command("ping"), to.v4())
}

/// Says how long packets were lost: a figure for the manual, which no test can be held to.
#[expect(
    clippy::print_stderr,
    reason = "a figure beside the test, for who asks for it with --nocapture"
)]
fn say_gap(what: &str, tally: &Tally) {
    eprintln!("{what}: {} of {} packets lost, 10 ms apart", tally.lost(), tally.sent);
}

#[test]
fn containers_go_on_when_their_hosts_underlay_address_is_another() {
    let (dc, web, db) = two();
    let b = dc.b.host();
    let ids = |host: &Host| {
        let mut ids: Vec<_> =
            host.json("ip -j nexthop").iter().map(|hop| hop["id"].to_string()).collect();
        ids.sort();
        ids
    };
    let before = ids(dc.a.host());
    let (inside, watch) =
        (db.container.sh("ip -o addr; ip route; ip -6 route"), KernelWatch::start(dc.a.host()));
    let flow = flow(&web, &db);
    b.run("sleep 0.3; ip addr del 192.0.2.2/24 dev eth0; ip addr add 192.0.2.22/24 dev eth0");
    await_talk(&web, &db, "the change");
    await_talk(&db, &web, "the change");
    say_gap("another underlay address", &flow.end());
    assert!(!dc.b.logged().contains("others changed"), "it is nobody's doing: {}", dc.b.logged());
    let fdb = dc.a.host().sh("bridge fdb show dev limpet1");
    assert!(fdb.contains("192.0.2.22") && !fdb.contains("192.0.2.2 "), "{fdb}");
    assert_eq!(ids(dc.a.host()), before, "no nexthop is another");
    let routes = watch.changes();
    let moved = |line: &&String| line.contains("table 7601");
    assert_eq!(routes.iter().filter(moved).collect::<Vec<_>>(), Vec::<&String>::new());
    assert_eq!(db.container.sh("ip -o addr; ip route; ip -6 route"), inside);
    // Every route's source is the new address.
    let sources = b.sh("ip route show table 7601");
    assert!(sources.contains("src 192.0.2.22") && !sources.contains("src 192.0.2.2 "), "{sources}");
    assert!(b.pings(web.v4(), 3), "the host itself");
}

/// The MTU of a device, asked where `sh` runs.
fn mtu_of(sh: impl Fn(&str) -> String, device: &str) -> u64 {
    let text = sh(&format!("ip -j link show {device}"));
    let links: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    links[0]["mtu"].as_u64().unwrap_or(0)
}

#[test]
fn an_mtu_that_changes_reaches_the_containers_and_comes_back() {
    let (dc, web, db) = two();
    let b = dc.b.host();
    let end = Agent::host_end(&db);
    // One of them has less, by its own choice.
    let small = dc.b.add("shop", "small-0");
    let _ = small.container.sh("ip link set eth0 mtu 1300");
    // What a container has is known some seconds after it was made.
    wait_until(SOON, "both containers are known", || {
        let kept = b.sh(&format!("grep -l inside {}/attachments/* || true", b.dir().display()));
        kept.lines().count() == 2
    });
    for (underlay, overlay) in [(1400, 1350), (1500, 1450)] {
        b.run(&format!("ip link set eth0 mtu {underlay}"));
        wait_until(SOON, &format!("all have an MTU of {overlay}"), || {
            mtu_of(|line| b.sh(line), "limpet1") == overlay
                && mtu_of(|line| b.sh(line), &end) == overlay
                && mtu_of(|line| db.container.sh(line), "eth0") == overlay
        });
        assert_eq!(mtu_of(|line| small.container.sh(line), "eth0"), 1300);
        let full = overlay - 28;
        let line = format!("ping -c 1 -W 1 -M do -s {full} {}", web.v4());
        wait_until(SOON, "a full packet fits", || db.container.try_sh(&line).is_ok());
        let more = format!("ping -c 1 -W 1 -M do -s {} {}", full + 1, web.v4());
        assert!(db.container.try_sh(&more).is_err(), "one more byte does not");
    }
    let log = dc.b.logged();
    assert!(!log.contains("others changed"), "it is nobody's doing: {log}");
    assert!(!log.contains("cannot look after containers"), "{log}");
}

#[test]
fn what_went_with_a_link_or_with_ipv6_is_back_when_they_are() {
    let (dc, web, db) = two();
    let b = dc.b.host();
    for harm in [
        "ip link set eth0 down; sleep 0.2; ip link set eth0 up; ip -6 addr replace 2001:db8::2/64 dev eth0 nodad",
        "ip link set limpet1 down",
        "sysctl -qw net.ipv6.conf.limpet1.disable_ipv6=1",
        "sysctl -qw net.ipv6.conf.all.disable_ipv6=1; sleep 0.2; sysctl -qw net.ipv6.conf.all.disable_ipv6=0; \
         ip -6 addr replace 2001:db8::2/64 dev eth0 nodad",
    ] {
        let flow = flow(&web, &db);
        b.run(harm);
        await_talk(&web, &db, harm);
        await_talk(&db, &web, harm);
        say_gap(harm, &flow.end());
        let off = "sysctl -n net.ipv6.conf.limpet1.disable_ipv6";
        wait_until(SOON, "IPv6 is on", || b.sh(off) == "0");
    }
}

/// Sends a router advertisement whose router is the sender, each time that it is called.
fn advertise(router: &Host) {
    router.run(
        "python3 -c 'import socket as s, struct; \
         o = s.socket(s.AF_INET6, s.SOCK_RAW, s.IPPROTO_ICMPV6); \
         i = s.if_nametoindex(\"eth0\"); \
         o.setsockopt(s.IPPROTO_IPV6, s.IPV6_MULTICAST_HOPS, 255); \
         o.setsockopt(s.IPPROTO_IPV6, s.IPV6_MULTICAST_IF, i); \
         o.sendto(struct.pack(\"!BBHBBHII\", 134, 0, 0, 64, 0, 1800, 0, 0), (\"ff02::1\", 0, 0, i))'",
    );
}

#[test]
fn a_default_route_from_router_advertisements_outlives_limpet_and_is_renewed() {
    let (dc, web, _db) = two();
    let (router, host) = (Host::new("router"), Host::new("node-c"));
    dc.underlay.join(&router, "eth0", &["2001:db8::fe/64"]);
    dc.underlay.join(&host, "eth0", &["192.0.2.3/24", "2001:db8::3/64"]);
    let default = || host.sh("ip -6 route show default proto ra");
    wait_until(SOON, "the advertisement is taken", || {
        advertise(&router);
        default().contains("expires")
    });
    let mut c = Agent::new(&host, &dc.controller.url(), "--role node").started();
    let pod = c.add("shop", "cache-0");
    await_talk(&web, &pod, "it joined");
    assert!(default().contains("expires"), "limpet has not taken it: {}", default());
    c.stop();
    c.start();
    // A host that takes no advertisements any more keeps the route until it expires, so one is taken away first.
    host.run("ip -6 route del default");
    wait_until(SOON, "another advertisement is taken", || {
        advertise(&router);
        default().contains("expires")
    });
    assert!(talks(&web, &pod));
}

#[test]
fn addresses_of_the_loopback_device_are_reached_and_never_sent_from() {
    let (dc, web, _db) = two();
    let host = Host::new("node-c");
    dc.underlay.join(&host, "eth0", &["192.0.2.3/24", "2001:db8::3/64"]);
    let own = ["203.0.113.1", "203.0.113.2", "2001:db8:f::1", "2001:db8:f::2"];
    for address in own {
        host.run(&format!("ip addr add {address} dev lo"));
    }
    let c = Agent::new(&host, &dc.controller.url(), "--role node").started();
    let pod = c.add("shop", "cache-0");
    await_talk(&web, &pod, "it joined");
    for address in own {
        wait_until(SOON, &format!("a container elsewhere reaches {address}"), || {
            web.container.try_sh(&format!("ping -c 1 -W 1 {address}")).is_ok()
        });
        let _ = pod.container.sh(&format!("ping -c 1 -W 1 {address}"));
    }
    for (family, table) in [("-4", 7601), ("-4", 7602), ("-6", 7601), ("-6", 7602)] {
        let routes = host.sh(&format!("ip {family} route show table {table}"));
        assert!(own.iter().all(|address| !routes.contains(&format!("src {address}"))), "{routes}");
    }
}

#[test]
fn a_clock_that_jumps_years_ahead_and_back_changes_nothing() {
    let dc = Datacentre::small();
    let host = Host::new("node-c");
    dc.underlay.join(&host, "eth0", &["192.0.2.3/24", "2001:db8::3/64"]);
    let clock = host.dir().join("clock");
    let set = |text: &str| std::fs::write(&clock, text).unwrap_or_else(|why| panic!("{why}"));
    set("+0");
    let faked = [
        ("LD_PRELOAD", "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1".to_owned()),
        ("FAKETIME_TIMESTAMP_FILE", clock.display().to_string()),
        ("FAKETIME_NO_CACHE", "1".to_owned()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ("FAKETIME_DONT_RESET", "1".to_owned()),
    ];
    let mut c = Agent::new(&host, &dc.controller.url(), "--role node").with_environment(&faked);
    c.start();
    let (web, pod) = (dc.a.add("shop", "web-0"), c.add("shop", "cache-0"));
    await_talk(&web, &pod, "it joined");
    let (watch, flow) = (KernelWatch::start(&host), flow(&web, &pod));
    for jump in ["+3650d", "-3650d", "+1d"] {
        set(jump);
        host.run("sleep 1.5");
        assert_eq!(c.status("pods").code, 0, "at {jump}");
    }
    let tally = flow.end();
    assert!(tally.sent > 20 && tally.lost() == 0, "{tally:?}");
    assert_eq!(watch.changes(), Vec::<String>::new());
    // One that starts by another clock knows as well what is there.
    set("-3650d");
    c.stop();
    c.start();
    let other = c.add("shop", "cache-1");
    await_talk(&web, &other, "the jumps");
    assert!(talks(&web, &pod));
    // The clock was another one indeed: the log has its years.
    let log = c.logged();
    let years: BTreeSet<&str> = log.lines().filter_map(|line| line.get(..4)).collect();
    assert!(years.len() > 1, "{log}");
}

#[test]
fn five_hundred_containers_are_settled_with_and_a_restart_changes_nothing_of_them() {
    let dc = Datacentre::small();
    let mut dc = dc;
    let pods: Vec<Pod> = (0..500).map(|n| dc.b.add("shop", &format!("c-{n}"))).collect();
    let web = dc.a.add("shop", "web-0");
    let (first, last) = (&pods[0], &pods[499]);
    await_talk(&web, first, "all were made");
    await_talk(&web, last, "all were made");
    let routes = || {
        dc.b.host()
            .json("ip -j route show table 7601")
            .iter()
            .filter(|route| route["dev"].as_str().is_some_and(|dev| dev.starts_with("lc")))
            .count()
    };
    assert_eq!(routes(), 500);
    let watch = KernelWatch::start(dc.b.host());
    let flow = flow(&web, last);
    dc.b.kill();
    dc.b.start();
    dc.b.host().run("sleep 2");
    let tally = flow.end();
    assert!(tally.sent > 20 && tally.lost() == 0, "{tally:?}");
    assert_eq!(watch.changes(), Vec::<String>::new());
    // One change costs what it changes.
    let more = dc.b.add("shop", "c-500");
    await_talk(&web, &more, "it was made");
}

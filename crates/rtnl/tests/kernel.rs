//! Edge: limpet-rtnl on the real kernel, each test in namespaces of its own, seen by `ip` and `bridge`.

#![expect(
    clippy::unwrap_used,
    reason = "a test may stop at the first surprise; clippy knows only test functions for tests"
)]

use std::net::IpAddr;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use limpet_net_types::{Family, Mac};
use limpet_rtnl::{
    Address, Event, FdbEntry, FilterEvent, FilterMonitor, LinkChange, LinkKind, Member, Monitor,
    Neighbour, Netns, NewVeth, NewVxlan, Nexthop, NexthopKind, Request, Resilient, Route,
    RouteFilter, RouteTarget, Rule, RuleAction, Scope, Selector, Socket, Table, VethPeer, Vxlan,
    sysctl,
};
use serde_json::Value;

/// A network namespace that ends with the test.
struct Ns(String);

impl Ns {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let ns = Self(format!("rtnl-{}-{n}", std::process::id()));
        run(&format!("ip netns add {}", ns.0));
        ns
    }

    fn netns(&self) -> Netns {
        Netns::open(format!("/run/netns/{}", self.0)).unwrap()
    }

    fn socket(&self) -> Socket {
        Socket::open_in(&self.netns()).unwrap()
    }

    /// Runs `ip` or `bridge` with these arguments in the namespace.
    fn sh(&self, command: &str) -> String {
        let (program, rest) = command.split_once(' ').unwrap();
        run(&format!("{program} -n {} {rest}", self.0))
    }

    fn json(&self, command: &str) -> Value {
        let (program, rest) = command.split_once(' ').unwrap();
        let text = run(&format!("{program} -n {} -j -d {rest}", self.0));
        serde_json::from_str(if text.trim().is_empty() { "[]" } else { &text }).unwrap()
    }

    /// A pair of veth ends that are up, `a` here and `b` in `other`.
    async fn veth(&self, socket: &mut Socket, other: &Ns) -> (u32, u32) {
        socket.request(&Request::NewVeth(pair(other))).await.unwrap();
        let link = socket.link_named("a").await.unwrap().unwrap();
        let LinkKind::Veth(veth) = link.kind else { panic!("{link:?}") };
        let up =
            |index| Request::ChangeLink(LinkChange { up: Some(true), ..LinkChange::of(index) });
        socket.request(&up(link.index)).await.unwrap();
        other.socket().request(&up(veth.peer)).await.unwrap();
        (link.index, veth.peer)
    }

    /// A VXLAN device that is up.
    async fn vxlan(&self, socket: &mut Socket, local: &str) -> u32 {
        socket.request(&Request::NewVxlan(vxlan(local))).await.unwrap();
        let index = socket.link_named("limpet1").await.unwrap().unwrap().index;
        let quiet = LinkChange { no_link_local: true, ..LinkChange::of(index) };
        let up = LinkChange { up: Some(true), ..LinkChange::of(index) };
        for change in [quiet, up] {
            socket.request(&Request::ChangeLink(change)).await.unwrap();
        }
        index
    }
}

impl Drop for Ns {
    fn drop(&mut self) {
        // Not `run`: a second panic while the first unwinds would abort and hide it.
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

fn run(command: &str) -> String {
    let mut words = command.split(' ');
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{command}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn mac(last: u8) -> Mac {
    Mac::new([2, 0x4c, 0, 0, 0, last]).unwrap()
}

fn pair(other: &Ns) -> NewVeth {
    NewVeth {
        name: "a".into(),
        mac: mac(1),
        mtu: 1450,
        group: 4097,
        peer: VethPeer { name: "b".into(), mac: mac(2), netns: other.netns() },
    }
}

fn vxlan(local: &str) -> NewVxlan {
    NewVxlan {
        name: "limpet1".into(),
        mac: mac(9),
        mtu: 1450,
        group: 4097,
        vxlan: Vxlan {
            vni: 100.try_into().unwrap(),
            local: ip(local),
            port: 4789,
            learning: false,
            checksums: true,
        },
    }
}

#[tokio::test]
async fn a_vxlan_device_is_found_as_it_was_made() {
    for local in ["192.0.2.1", "2001:db8::1"] {
        for checksums in [true, false] {
            let ns = Ns::new();
            let mut socket = ns.socket();
            let mut new = vxlan(local);
            new.vxlan.checksums = checksums;
            socket.request(&Request::NewVxlan(new.clone())).await.unwrap();

            let link = socket.link_named("limpet1").await.unwrap().unwrap();
            assert_eq!(link.kind, LinkKind::Vxlan(new.vxlan));
            assert_eq!(
                (link.mac, link.mtu, link.group, link.up),
                (Some(mac(9)), 1450, 4097, false)
            );
            assert_eq!(socket.link_at(link.index).await.unwrap(), Some(link.clone()));
            assert!(socket.links().await.unwrap().contains(&link));
            let seen = &ns.json("ip link show limpet1")[0];
            let data = &seen["linkinfo"]["info_data"];
            assert_eq!((&data["id"], &data["port"]), (&100.into(), &4789.into()));
            assert_eq!(data["learning"], false);
            assert_eq!(seen["address"], "02:4c:00:00:00:09");

            socket.request(&Request::DelLink(link.index)).await.unwrap();
            socket.request(&Request::DelLink(link.index)).await.expect("deleting it again");
            assert_eq!(socket.link_named("limpet1").await.unwrap(), None);
            assert_eq!(socket.link_at(link.index).await.unwrap(), None);
        }
    }
}

#[tokio::test]
async fn a_veth_pair_has_its_peer_in_the_other_namespace_from_the_start() {
    let (host, container) = (Ns::new(), Ns::new());
    let mut socket = host.socket();
    let (a, b) = host.veth(&mut socket, &container).await;

    let alias = LinkChange { alias: Some("uid".into()), ..LinkChange::of(a) };
    socket.request(&Request::ChangeLink(alias)).await.unwrap();
    let link = socket.link_at(a).await.unwrap().unwrap();
    assert_eq!(link.alias.as_deref(), Some("uid"));
    assert!(link.up && link.carrier);
    let LinkKind::Veth(veth) = link.kind else { panic!("{link:?}") };
    assert!(veth.peer_netns.is_some());
    let seen = &container.json("ip link show b")[0];
    assert_eq!(seen["ifindex"], b);
    assert_eq!((&seen["address"], &seen["mtu"]), (&"02:4c:00:00:00:02".into(), &1450.into()));

    // A second of the same name is refused, in words that name the request.
    let error = socket.request(&Request::NewVeth(pair(&container))).await.unwrap_err();
    assert_eq!(error.errno(), Some(nix::errno::Errno::EEXIST));
    assert!(error.to_string().contains("ip link add a address 02:4c:00:00:00:01"), "{error}");
}

#[tokio::test]
async fn a_link_that_was_told_not_to_makes_no_link_local_address() {
    let (host, container) = (Ns::new(), Ns::new());
    let mut socket = host.socket();
    socket.request(&Request::NewVeth(pair(&container))).await.unwrap();
    let mut inside = container.socket();
    let a = socket.link_named("a").await.unwrap().unwrap().index;
    let b = inside.link_named("b").await.unwrap().unwrap().index;
    for (socket, index) in [(&mut inside, b), (&mut socket, a)] {
        let quiet = LinkChange { no_link_local: true, ..LinkChange::of(index) };
        let up = LinkChange { up: Some(true), ..LinkChange::of(index) };
        for result in socket.batch(&[Request::ChangeLink(quiet), Request::ChangeLink(up)]).await {
            result.unwrap();
        }
        assert_eq!(socket.addresses(Some(index)).await.unwrap(), []);
    }
    assert_eq!(host.sh("ip -6 addr show dev a"), "");
}

#[tokio::test]
async fn a_group_is_deleted_in_one_message_and_its_names_are_free_at_once() {
    let (host, container) = (Ns::new(), Ns::new());
    let mut socket = host.socket();
    let (a, b) = host.veth(&mut socket, &container).await;
    let rename = LinkChange { name: Some("limpet-old".into()), ..LinkChange::of(b) };
    container.socket().request(&Request::ChangeLink(rename)).await.unwrap();
    let bury = LinkChange { group: Some(4096), name: Some("old".into()), ..LinkChange::of(a) };
    socket.request(&Request::ChangeLink(bury)).await.unwrap();

    host.veth(&mut socket, &container).await;
    socket.request(&Request::DelLinkGroup(4096)).await.unwrap();
    assert_eq!(socket.link_named("old").await.unwrap(), None);
    assert!(socket.link_named("a").await.unwrap().is_some());
    socket.request(&Request::DelLinkGroup(4096)).await.expect("a group with nothing in it");
}

#[tokio::test]
async fn addresses_are_found_as_they_were_set() {
    let (host, container) = (Ns::new(), Ns::new());
    let mut socket = host.socket();
    let (a, _) = host.veth(&mut socket, &container).await;
    for (text, length) in [("10.32.0.5", 32), ("fd32::5", 128)] {
        let no_dad = text.contains(':');
        let address = Address { device: a, address: ip(text), length, no_dad };
        for _ in 0..2 {
            socket.request(&Request::SetAddress(address)).await.unwrap();
        }
        let found = socket.addresses(Some(a)).await.unwrap();
        let found = found.iter().find(|found| found.address == address).unwrap();
        assert_eq!((found.scope, found.usable, found.temporary), (Scope::Global, true, false));
        assert!(socket.addresses(None).await.unwrap().contains(found));
        for _ in 0..2 {
            socket.request(&Request::DelAddress(address)).await.unwrap();
        }
        assert!(!host.sh("ip addr show dev a").contains(text));
    }
    assert_eq!(socket.addresses(Some(9999)).await.unwrap(), [], "of a device that is gone");
}

#[tokio::test]
async fn neighbours_and_fdb_entries_are_replaced_and_found() {
    let ns = Ns::new();
    let mut socket = ns.socket();
    let device = ns.vxlan(&mut socket, "192.0.2.1").await;
    for address in ["fe80::7", "169.254.0.7"] {
        for last in [1, 2] {
            let entry = Neighbour { device, address: ip(address), mac: mac(last), protocol: 76 };
            socket.request(&Request::SetNeighbour(entry)).await.unwrap();
            let found = socket.neighbours(Some(device)).await.unwrap();
            assert!(found.iter().any(|found| found.as_permanent() == Some(entry)), "{found:?}");
        }
        let seen = ns.sh(&format!("ip neigh show {address}"));
        assert_eq!(
            seen.trim(),
            format!("{address} dev limpet1 lladdr 02:4c:00:00:00:02 PERMANENT proto 76")
        );
    }
    for vtep in ["192.0.2.7", "192.0.2.8"] {
        let entry = FdbEntry::new(device, mac(7), ip(vtep));
        socket.request(&Request::SetFdb(entry)).await.unwrap();
        assert_eq!(socket.fdb(device).await.unwrap(), [entry]);
    }
    let seen = ns.sh("bridge fdb show dev limpet1");
    assert_eq!(seen.trim(), "02:4c:00:00:00:07 dst 192.0.2.8 self permanent");
    ns.sh("bridge fdb append 00:00:00:00:00:00 dev limpet1 dst 192.0.2.9");
    for entry in socket.fdb(device).await.unwrap() {
        socket.request(&Request::DelFdb(entry)).await.unwrap();
        socket.request(&Request::DelFdb(entry)).await.expect("deleting it again");
    }
    assert_eq!(ns.sh("bridge fdb show dev limpet1"), "", "the one that floods is gone too");
    for found in socket.neighbours(Some(device)).await.unwrap() {
        if let Some(entry) = found.as_permanent() {
            socket.request(&Request::DelNeighbour(entry)).await.unwrap();
            socket.request(&Request::DelNeighbour(entry)).await.expect("deleting it again");
        }
    }
    assert_eq!(ns.sh("ip neigh show nud permanent"), "");
}

#[tokio::test]
async fn routes_are_found_as_they_were_set_and_only_those_of_the_filter() {
    let ns = Ns::new();
    let mut socket = ns.socket();
    let device = ns.vxlan(&mut socket, "192.0.2.1").await;
    ns.sh("ip link set lo up");
    ns.sh("ip addr add 192.0.2.1/32 dev lo");
    ns.sh("ip addr add 2001:db8::1/128 dev lo");
    ns.sh("ip addr add fe80::1/64 dev limpet1 nodad");
    let by = NexthopKind::Gateway { device, gateway: ip("fe80::7"), onlink: false };
    let nexthop = Nexthop { id: 1007, protocol: 76, kind: by };
    socket.request(&Request::SetNexthop(nexthop)).await.unwrap();

    let filter = RouteFilter { table: 7601, protocol: 76 };
    assert_eq!(socket.routes(filter).await.unwrap(), [], "a table that was never used");
    let mut set = Vec::new();
    for (prefix, source) in [("10.32.0.64/26", "192.0.2.1"), ("fd32::40/122", "2001:db8::1")] {
        let route = |prefix: &str, target, source, metric| Route {
            table: 7601,
            protocol: 76,
            destination: prefix.parse().unwrap(),
            target,
            source,
            metric,
        };
        let v4 = !prefix.contains(':');
        let (all, one) =
            if v4 { ("10.32.0.0/16", "10.32.0.1/32") } else { ("fd32::/64", "fd32::1/128") };
        let gateway = ip(if v4 { "10.32.0.1" } else { "fd32::1" });
        let far = if v4 { "0.0.0.0/0" } else { "::/0" };
        let onlink = RouteTarget::Device { index: device, gateway: Some(gateway), onlink: true };
        set.extend([
            route(prefix, RouteTarget::Nexthop(1007), Some(ip(source)), 0),
            route(all, RouteTarget::Unreachable, None, 4_278_198_272),
            route(one, RouteTarget::link(device), Some(ip(source)), 0),
            route(far, onlink, None, 0),
        ]);
    }
    let via6 = RouteTarget::gateway(device, ip("fe80::7"));
    set.push(Route { destination: "10.9.0.0/16".parse().unwrap(), target: via6, ..set[0] });
    for _ in 0..2 {
        let requests: Vec<_> = set.iter().copied().map(Request::SetRoute).collect();
        for result in socket.batch(&requests).await {
            result.unwrap();
        }
    }
    ns.sh("ip route add 10.99.0.0/16 dev limpet1 table 7601");

    let mut found = socket.routes(filter).await.unwrap();
    found.sort_unstable();
    set.sort_unstable();
    assert_eq!(found, set);
    assert_eq!(
        socket.routes(RouteFilter { protocol: 0, ..filter }).await.unwrap().len(),
        set.len() + 1
    );
    assert_eq!(ns.json("ip route show table 7601 proto 76").as_array().unwrap().len(), 5);
    assert_eq!(ns.json("ip -6 route show table 7601 proto 76").as_array().unwrap().len(), 4);

    for route in set {
        socket.request(&Request::DelRoute(route)).await.unwrap();
        socket.request(&Request::DelRoute(route)).await.expect("deleting it again");
    }
    assert_eq!(socket.routes(filter).await.unwrap(), []);
}

#[tokio::test]
async fn replacing_a_nexthop_keeps_its_routes() {
    let ns = Ns::new();
    let mut socket = ns.socket();
    let device = ns.vxlan(&mut socket, "192.0.2.1").await;
    ns.sh("ip addr add fe80::1/64 dev limpet1 nodad");
    let nexthop = |id, last| {
        let gateway = ip(&format!("fe80::{last}"));
        Nexthop { id, protocol: 76, kind: NexthopKind::Gateway { device, gateway, onlink: false } }
    };
    let resilient = Resilient { buckets: 64, idle_timer: Duration::from_secs(30) };
    let group = |ids: &[u32], resilient| Nexthop {
        id: 2000,
        protocol: 76,
        kind: NexthopKind::Group {
            members: ids.iter().map(|&id| Member { id, weight: 1 }).collect(),
            resilient,
        },
    };
    let all = [nexthop(1007, 7), nexthop(1008, 8), group(&[1007], Some(resilient))];
    for result in socket.batch(&all.clone().map(Request::SetNexthop)).await {
        result.unwrap();
    }
    assert_eq!(socket.nexthops().await.unwrap(), all);
    ns.sh("ip route add 198.51.100.0/24 nhid 2000 table 7602 proto 76");
    ns.sh("ip -6 route add 2001:db8:e::/64 nhid 2000 table 7602 proto 76");

    for changed in [nexthop(1007, 9), group(&[1007, 1008], Some(resilient))] {
        socket.request(&Request::SetNexthop(changed.clone())).await.unwrap();
        assert!(socket.nexthops().await.unwrap().contains(&changed));
    }
    let routes = socket.routes(RouteFilter { table: 7602, protocol: 76 }).await.unwrap();
    assert_eq!(routes.len(), 2);
    assert!(routes.iter().all(|route| route.target == RouteTarget::Nexthop(2000)));
    let seen = ns.sh("ip nexthop show id 2000");
    assert!(seen.contains("group 1007/1008 type resilient buckets 64 idle_timer 30"), "{seen}");

    for id in [2000, 2000, 1007] {
        socket.request(&Request::DelNexthop(id)).await.unwrap();
    }
    assert_eq!(ns.sh("ip route show table 7602"), "");
    // A group whose type differs cannot replace one: the kernel says so in words.
    socket.request(&Request::SetNexthop(group(&[1008], None))).await.unwrap();
    let error = socket.request(&Request::SetNexthop(group(&[1], None))).await.unwrap_err();
    assert!(error.to_string().starts_with("the kernel refuses `ip nexthop replace id 2000"));
    assert!(error.to_string().contains("nexthop"), "{error}");
}

#[tokio::test]
async fn rules_are_set_once_and_foreign_ones_are_not_taken_for_ours() {
    let ns = Ns::new();
    let mut socket = ns.socket();
    let mut set = Vec::new();
    for (family, from) in [(Family::V4, "10.32.0.0/16"), (Family::V6, "fd32::/64")] {
        let rule = |preference, selector, action| Rule {
            family,
            preference,
            selector,
            action,
            protocol: 76,
        };
        let from = Selector::From(from.parse().unwrap());
        let unmarked = Selector::Marked { mark: 0, mask: 0xff00_0000 };
        let marked = Selector::Marked { mark: 0x0100_0000, mask: 0xff00_0000 };
        set.extend([
            rule(50, unmarked, RuleAction::GoTo(96)),
            rule(51, marked, RuleAction::Lookup(12001)),
            rule(96, Selector::OfHost, RuleAction::Lookup(7600)),
            rule(100, from, RuleAction::Lookup(7602)),
            rule(101, from, RuleAction::Unreachable),
            rule(200, Selector::All, RuleAction::Lookup(7601)),
        ]);
    }
    ns.sh("ip rule add from 10.0.0.0/8 fwmark 7 lookup 7601 pref 150 protocol 76");
    for _ in 0..2 {
        for rule in &set {
            socket.request(&Request::SetRule(*rule)).await.unwrap();
        }
    }
    let ours =
        |rules: Vec<Rule>| rules.into_iter().filter(|r| r.protocol == 76).collect::<Vec<_>>();
    assert_eq!(ours(socket.rules().await.unwrap()), set);
    let seen = ns.sh("ip rule show");
    for rule in [
        "50:\tfrom all fwmark 0/0xff000000 goto 96 proto 76",
        "51:\tfrom all fwmark 0x1000000/0xff000000 lookup 12001 proto 76",
        "96:\tfrom all iif lo lookup 7600 proto 76",
        "100:\tfrom 10.32.0.0/16 lookup 7602 proto 76",
        "101:\tfrom 10.32.0.0/16 unreachable proto 76",
        "200:\tfrom all lookup 7601 proto 76",
    ] {
        assert!(seen.contains(rule), "{rule}: {seen}");
    }
    for rule in set {
        socket.request(&Request::DelRule(rule)).await.unwrap();
        socket.request(&Request::DelRule(rule)).await.expect("deleting it again");
    }
    assert_eq!(ours(socket.rules().await.unwrap()), []);
}

#[tokio::test]
async fn a_batch_tells_of_each_request_what_became_of_it() {
    let (host, container) = (Ns::new(), Ns::new());
    let mut socket = host.socket();
    let (device, _) = host.veth(&mut socket, &container).await;
    let route = |n: u32| {
        let index = if n % 1000 == 7 { 9999 } else { device };
        Request::SetRoute(Route {
            table: 7601,
            protocol: 76,
            destination: format!("10.{}.{}.{}/32", n >> 16, n >> 8 & 255, n & 255).parse().unwrap(),
            target: RouteTarget::link(index),
            source: None,
            metric: 0,
        })
    };
    let requests: Vec<_> = (0..5000).map(route).collect();
    let results = socket.batch(&requests).await;
    let failed: Vec<_> = (0..5000).filter(|&n| results[n].is_err()).collect();
    assert_eq!(failed, [7, 1007, 2007, 3007, 4007]);
    let error = results[1007].as_ref().unwrap_err();
    assert_eq!(error.errno(), Some(nix::errno::Errno::ENODEV));
    assert!(error.to_string().contains("10.0.3.239/32 dev if9999"), "{error}");
    let filter = RouteFilter { table: 7601, protocol: 76 };
    assert_eq!(socket.routes(filter).await.unwrap().len(), 4995);
}

#[tokio::test]
async fn the_monitor_of_a_filter_table_hears_of_it_and_of_no_other() {
    let host = Ns::new();
    let runtime = tokio::runtime::Handle::current();
    let mut monitor = host
        .netns()
        .run(|| {
            let _runtime = runtime.enter();
            FilterMonitor::open("limpet").unwrap()
        })
        .unwrap();
    let mut heard = async |limit| {
        let changed = tokio::time::timeout(limit, monitor.changed()).await.ok();
        changed.map(Result::unwrap)
    };
    let (long, short) = (Duration::from_secs(5), Duration::from_millis(100));
    run(&format!("ip netns exec {} nft add table inet limpet-other", host.0));
    assert_eq!(heard(short).await, None);
    let nat = "add chain inet limpet-other n { type nat hook output priority 0; }";
    for said in ["first", "once more"] {
        run(&format!("ip netns exec {} nft {nat}", host.0));
        assert_eq!(heard(long).await, Some(FilterEvent::Translation), "{said}");
    }
    for change in [
        "add table inet limpet",
        "add set inet limpet s { type ifname; }",
        "add element inet limpet s { eth0 }",
        "add chain inet limpet c",
        "add rule inet limpet c iifname @s drop",
        "flush ruleset",
    ] {
        run(&format!("ip netns exec {} nft {change}", host.0));
        assert_eq!(heard(long).await, Some(FilterEvent::Table), "{change}");
        while heard(short).await.is_some() {}
    }
}

#[tokio::test]
async fn the_monitor_hears_changes_and_says_when_it_lost_some() {
    let (host, container) = (Ns::new(), Ns::new());
    let mut socket = host.socket();
    let mut monitor = Monitor::open_in(&host.netns()).unwrap();
    let (device, _) = host.veth(&mut socket, &container).await;
    let (selector, action) = (Selector::All, RuleAction::Lookup(7601));
    let rule = Rule { family: Family::V6, preference: 9, selector, action, protocol: 76 };
    socket.request(&Request::SetRule(rule)).await.unwrap();
    let mut heard = Vec::new();
    while heard.last() != Some(&(Table::Rule, None)) {
        match tokio::time::timeout(Duration::from_secs(5), monitor.next()).await.unwrap().unwrap() {
            Event::Changed(change) => heard.push((change.table, change.device)),
            Event::Overrun => panic!("overrun by a handful of changes"),
        }
    }
    assert!(heard.contains(&(Table::Link, Some(device))));

    let route = |n: u32| {
        Request::SetRoute(Route {
            table: 7601,
            protocol: 76,
            destination: format!("10.0.{}.{}/32", n >> 8, n & 255).parse().unwrap(),
            target: RouteTarget::link(device),
            source: None,
            metric: 0,
        })
    };
    let requests: Vec<_> = (0..60_000).map(route).collect();
    let mut overrun = false;
    for _ in 0..3 {
        for result in socket.batch(&requests).await {
            result.unwrap();
        }
        host.sh("ip route flush table 7601");
    }
    while let Ok(event) = tokio::time::timeout(Duration::from_millis(200), monitor.next()).await {
        overrun |= event.unwrap() == Event::Overrun;
    }
    assert!(overrun, "360,000 changes unread cannot all have been kept");
}

#[tokio::test]
async fn what_runs_in_a_namespace_sees_its_settings_and_the_caller_stays_outside() {
    let (host, container) = (Ns::new(), Ns::new());
    let mut socket = host.socket();
    host.veth(&mut socket, &container).await;
    let setting = ["ipv4", "conf", "a", "forwarding"];
    let before = Netns::current().unwrap();
    let written = host.netns().run(|| {
        sysctl::write(&setting, "0").unwrap();
        (sysctl::ensure(&setting, "1").unwrap(), sysctl::ensure(&setting, "1").unwrap())
    });
    assert_eq!(written.unwrap(), (true, false));
    assert_eq!(host.netns().run(|| sysctl::read(&setting).unwrap()).unwrap(), "1");
    let error = sysctl::read(&setting).unwrap_err();
    assert_eq!(error.to_string(), "reading /proc/sys/net/ipv4/conf/a/forwarding");
    assert!(Netns::current().unwrap() == before && before != host.netns());
}

#[test]
fn a_namespace_that_is_gone_and_a_file_that_is_none_are_told_apart() {
    let gone = Netns::open("/run/netns/never-was").unwrap_err();
    assert_eq!(gone.to_string(), "cannot open the network namespace /run/netns/never-was");
    let file = Netns::open("/proc/self/status").unwrap_err();
    assert_eq!(file.to_string(), "/proc/self/status is not a network namespace");
    let other_kind = Netns::open("/proc/self/ns/uts").unwrap().run(|| ()).unwrap_err();
    assert_eq!(other_kind.to_string(), "cannot enter the network namespace /proc/self/ns/uts");
}

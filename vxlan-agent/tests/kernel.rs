//! Edge: the real agent and the real kernel: what it makes there, observed with `ip`, `bridge` and `nft`.
#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "tests fail by panics and say why")]

mod support;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use limpet_api::config::{Network, Role};
use limpet_api::host::{Changes, SharedChange};
use serde_json::Value;
use support::fake::{Fake, block, host, network, pool, small};
use support::{Agent, Host, command, wait_until};

fn words(values: &[Value], fields: &[&str]) -> Vec<String> {
    let word = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let mut lines: Vec<_> = values
        .iter()
        .map(|value| fields.iter().map(|field| word(&value[*field])).collect::<Vec<_>>().join(" "))
        .collect();
    lines.sort();
    lines
}

fn routes(host: &Host, family: &str, table: u32) -> Vec<String> {
    let routes = host.json(&format!("ip -j {family} route show table {table}"));
    words(&routes, &["type", "dst", "via", "dev", "prefsrc", "protocol"])
        .into_iter()
        .map(|line| line.replace("null", "-"))
        .collect()
}

/// Starts an agent and waits until the kernel is as it should be.
fn joined(host: &Host, fake: &Fake) -> Agent {
    let agent = Agent::start(host, &fake.path, "");
    wait_until("the agent is ready", || agent.log().contains("limpet_agent::service: ready"));
    agent
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_joins_gets_device_ways_routes_rules_table_and_settings() {
    let on = Host::new();
    let fake = Fake::start(&on.dir, small());
    let _agent = joined(&on, &fake);

    let link = &on.json("ip -j -d link show limpet1")[0];
    let vxlan = &link["linkinfo"]["info_data"];
    assert_eq!(link["mtu"], 1450);
    assert_eq!(link["group"], "4097");
    assert_eq!(link["address"], "02:4c:00:00:00:01");
    assert_eq!((&vxlan["id"], &vxlan["port"]), (&100.into(), &4789.into()));
    assert_eq!((&vxlan["local"], &vxlan["learning"]), (&"192.0.2.1".into(), &false.into()));
    assert!(on.sh("ip -6 addr show dev limpet1").contains("fe80::4c:ff:fe00:1/64"));

    let fdb = on.json("bridge -j fdb show dev limpet1");
    assert_eq!(
        words(&fdb, &["mac", "dst", "state"]),
        ["02:4c:00:00:00:02 192.0.2.2 permanent", "02:4c:00:00:00:09 192.0.2.9 permanent"]
    );
    let neighbours = on.json("ip -j neigh show dev limpet1 nud permanent");
    assert_eq!(
        words(&neighbours, &["dst", "lladdr"]),
        ["fe80::4c:ff:fe00:2 02:4c:00:00:00:02", "fe80::4c:ff:fe00:9 02:4c:00:00:00:09"]
    );
    assert_eq!(on.json("ip -j nexthop show protocol 76").len(), 3, "two hosts, one group");

    let overlay = on.sh("ip route show table 7601 proto 76");
    assert!(overlay.contains("unreachable 10.32.0.0/16 metric 4278198272"), "{overlay}");
    assert!(overlay.contains("10.32.0.64/26 nhid"), "{overlay}");
    assert!(overlay.contains("10.32.0.7 nhid"), "{overlay}");
    assert!(!overlay.contains("10.32.0.0/26"), "its own block: {overlay}");
    assert!(
        overlay.contains("via inet6 fe80::4c:ff:fe00:2 dev limpet1 src 192.0.2.1"),
        "{overlay}"
    );
    assert_eq!(routes(&on, "-6", 7601).len(), 2);
    let hosts = on.sh("ip route show table 7602 proto 76");
    for destination in ["192.0.2.2", "192.0.2.9", "198.51.9.0/24"] {
        assert!(hosts.contains(&format!("{destination} nhid")), "{destination}: {hosts}");
    }
    assert_eq!(routes(&on, "-6", 7602).len(), 3, "two hosts, and what passes the pool on");
    assert_eq!(on.sh("ip route show proto 76"), "", "nothing in the main table");
    for family in ["-4", "-6"] {
        let rules = on.sh(&format!("ip {family} rule show"));
        assert!(rules.contains("100:\tfrom ") && rules.contains("200:\tfrom all lookup 7601"));
    }
    let table = on.sh("nft list table inet limpet");
    assert!(table.contains("oifgroup 4097-8191 iifname != @external drop"), "{table}");
    for (setting, value) in [
        ("net.ipv4.conf.limpet1.forwarding", "1"),
        ("net.ipv6.conf.limpet1.force_forwarding", "1"),
        ("net.ipv6.conf.limpet1.accept_ra", "0"),
        ("net.ipv4.conf.eth0.forwarding", "0"),
        ("net.ipv4.ip_forward", "0"),
        ("net.ipv6.conf.all.forwarding", "0"),
    ] {
        assert_eq!(on.sh(&format!("sysctl -n {setting}")).trim(), value, "{setting}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_was_killed_finds_everything_right() {
    let on = Host::new();
    let fake = Fake::start(&on.dir, small());
    joined(&on, &fake).kill();
    let log = std::fs::File::create(on.path("monitor")).unwrap();
    let mut monitors: Vec<_> = ["stdbuf -oL ip monitor all", "stdbuf -oL nft monitor"]
        .into_iter()
        .map(|line| {
            let mut monitor = Command::new("ip");
            monitor.args(["netns", "exec", on.netns()]).args(line.split(' '));
            monitor.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).spawn().unwrap()
        })
        .collect();
    // A monitor that says nothing of the test's own changes would say nothing of the agent's either.
    let heard = || std::fs::read_to_string(on.path("monitor")).unwrap();
    let mark = |number: u8| {
        drop(on.sh(&format!(
            "ip neigh add 192.0.2.24{number} lladdr 02:00:00:00:00:01 dev eth0
             ip neigh del 192.0.2.24{number} dev eth0
             nft add table ip mark{number}; nft delete table ip mark{number}"
        )));
        let told = heard();
        told.contains(&format!("192.0.2.24{number}"))
            && told.contains(&format!("delete table ip mark{number}"))
    };
    wait_until("both monitors listen", || mark(0));
    std::fs::write(on.path("agent.log"), "").unwrap();
    let agent = joined(&on, &fake);
    // What comes first is told first: by the time this is heard, all that the agent did was.
    wait_until("both monitors have told all", || mark(1));
    for monitor in &mut monitors {
        monitor.kill().unwrap();
        monitor.wait().unwrap();
    }
    let told = heard();
    let of_test = |line: &&str| {
        line.starts_with('#') || line.contains("192.0.2.24") || line.contains("table ip mark")
    };
    assert_eq!(told.lines().filter(|line| !of_test(line)).collect::<Vec<_>>(), Vec::<&str>::new());
    assert!(!agent.log().contains("making the kernel right"));
    agent.stop();
    assert!(on.sh("ip route show table 7601").contains("10.32.0.64/26"), "a stop leaves it all");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_in_the_kernel_at_once() {
    let on = Host::new();
    let fake = Fake::start(&on.dir, small());
    let _agent = joined(&on, &fake);
    let mut times = Vec::new();
    for n in 2..7_u8 {
        let prefix = format!("10.32.{n}.0/26");
        let set = SharedChange::BlockSet(block("pods", "p4", &prefix, "node-b"));
        let begun = Instant::now();
        fake.tell(Changes { shared: vec![set], own: vec![] });
        wait_until("the block's route", || {
            on.sh(&format!("ip route show table 7601 {prefix}")).contains("nhid")
        });
        times.push(begun.elapsed());
    }
    times.sort();
    // The middle one: the machine may be busy with something else once.
    assert!(times[2] < Duration::from_millis(250), "{times:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_take_away_is_put_back_and_what_is_theirs_stays() {
    let on = Host::new();
    let fake = Fake::start(&on.dir, small());
    let agent = joined(&on, &fake);
    on.sh("ip route add 203.0.113.0/24 dev eth0 table 7601");
    on.sh("ip route add 203.0.113.0/24 dev eth0 table 7601 metric 7 proto 77");
    on.sh("ip rule add pref 150 from 203.0.113.0/24 lookup 7601");
    on.sh("ip nexthop add id 7 via 192.0.2.254 dev eth0");
    on.sh("nft add table inet other");
    let before = snapshot(&on);
    for harm in [
        "ip nexthop flush proto 76",
        "ip route del 192.0.2.2 table 7602; ip -6 route del fd32::40/122 table 7601",
        "bridge fdb del 02:4c:00:00:00:02 dev limpet1 dst 192.0.2.2 self",
        "bridge fdb replace 02:4c:00:00:00:02 dev limpet1 dst 192.0.2.66 self permanent",
        "bridge fdb append 00:00:00:00:00:00 dev limpet1 dst 192.0.2.66 self permanent",
        "ip neigh flush dev limpet1 nud permanent",
        "ip rule del pref 200",
        "ip link set limpet1 mtu 1300",
        "ip link set limpet1 down",
        "sysctl -w net.ipv6.conf.limpet1.disable_ipv6=1",
        "ip link del limpet1",
        r#"printf "link del limpet1\nlink add limpet1 type bridge\n" | ip -batch -"#,
        "nft flush ruleset; nft add table inet other",
    ] {
        // Else the agent may be quicker than the second half of it.
        agent.signal("STOP");
        on.sh(harm);
        agent.signal("CONT");
        wait_until(harm, || snapshot(&on) == before);
    }
}

/// All of the host's entries, of limpet's and of others, but for what numbers devices.
fn snapshot(on: &Host) -> String {
    let text = on.sh(
        "for f in -4 -6; do ip $f route show table 7601; ip $f route show table 7602; ip $f rule show; done
        ip nexthop show; bridge fdb show dev limpet1 || true; ip neigh show nud permanent
        ip -o -d link show limpet1 || true; nft list ruleset; ip -6 addr show dev limpet1 || true",
    );
    let mut lines: Vec<_> = text
        .lines()
        .map(|line| line.split_once(": limpet1").map_or(line, |(_, rest)| rest).trim().to_owned())
        .collect();
    lines.sort();
    lines.join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_with_an_ipv6_underlay_and_a_second_network_is_laid_out() {
    let on = Host::new();
    let mut cluster = small();
    for (host, n) in cluster.hosts.iter_mut().zip([1, 2, 9]) {
        host.underlay = host.underlay.map(|_| format!("2001:db8::{n}").parse().unwrap());
    }
    cluster.hosts.push(host("old", 5, Role::Node, "192.0.2.5"));
    cluster.networks.push(network("stores", 2, 200));
    cluster.pools.push(pool("q4", "stores", "10.40.0.10..10.40.0.99"));
    cluster.blocks.push(block("stores", "q4", "10.40.0.64/27", "node-b"));
    let fake = Fake::start(&on.dir, cluster);
    let agent = Agent::start(&on, &fake.path, "--underlay 2001:db8::1");
    wait_until("the agent is ready", || agent.log().contains("limpet_agent::service: ready"));
    for (device, id) in [("limpet1", 100), ("limpet2", 200)] {
        let link = &on.json(&format!("ip -j -d link show {device}"))[0];
        assert_eq!(link["mtu"], 1430);
        assert_eq!(link["linkinfo"]["info_data"]["local6"], "2001:db8::1");
        assert_eq!(link["linkinfo"]["info_data"]["id"], id);
        let fdb = on.json(&format!("bridge -j fdb show dev {device}"));
        assert_eq!(words(&fdb, &["dst"]), ["2001:db8::2", "2001:db8::9"]);
    }
    assert!(on.sh("ip route show table 7601 10.40.0.64/27").contains("dev limpet2"));
    assert!(on.sh("ip route show table 7602 192.0.2.2").contains("dev limpet1"));
    assert!(on.sh("ip rule show").contains("from 10.40.0.96/30 lookup 7603"));
    assert!(on.sh("nft list table inet limpet").contains("10.40.0.10-10.40.0.99"));
    assert!(agent.log().contains("host old has its underlay at 192.0.2.5"));
    agent.kill();
    std::fs::write(on.path("agent.log"), "").unwrap();
    let agent = Agent::start(&on, &fake.path, "--underlay 2001:db8::1");
    wait_until("the agent is ready", || agent.log().contains("limpet_agent::service: ready"));
    assert!(!agent.log().contains("making the kernel right"), "a second pass finds it right");
}

#[tokio::test(flavor = "multi_thread")]
async fn networks_with_spaces_of_their_own_are_found_right_whatever_the_bits_of_their_marks() {
    let on = Host::new();
    let mut cluster = small();
    for (name, index) in [("red", 2), ("pink", 3), ("blue", 4)] {
        let own = Network { own_space: name != "blue", ..network(name, index, u32::from(index)) };
        cluster.networks.push(own);
    }
    cluster.networks[3].allow = ["pods".parse().unwrap()].into();
    cluster.pools.extend([
        pool("r4", "red", "10.40.0.0/24"),
        pool("k4", "pink", "10.40.0.128..10.40.1.63"),
        pool("b6", "blue", "fd41::/64"),
    ]);
    for host in &mut cluster.hosts {
        let all = ["pods", "red", "pink", "blue"].map(|name| name.parse().unwrap());
        host.networks = Some(all.into());
    }
    let fake = Fake::start(&on.dir, cluster);
    let ready = |agent: &Agent| agent.log().contains("limpet_agent::service: ready");
    for (mask, marked) in [("0xff000000", "0x2000000/0xff000000"), ("0x000000f6", "0x4/0xf6")] {
        for found_right in [false, true] {
            std::fs::write(on.path("agent.log"), "").unwrap();
            let agent = Agent::start(&on, &fake.path, &format!("--mark-mask {mask}"));
            wait_until("the agent is ready", || ready(&agent));
            let made = agent.log().contains("making the kernel right");
            assert!(!(found_right && made), "{mask}: a second pass finds it right");
            agent.kill();
        }
        let rules = on.sh("ip rule show");
        assert!(rules.contains(&format!("from all fwmark {marked} lookup 12002")), "{rules}");
        assert!(rules.contains("from 10.40.0.0/24 unreachable"), "{rules}");
        assert_eq!(rules.matches("fwmark").count(), 6, "of one mask alone: {rules}");
    }
    assert!(on.sh("ip route show table 12003 proto 76").contains("192.0.2.2 nhid"));
    assert!(on.sh("ip addr show dev limpet4").contains("169.254.76.76/32 scope link"));
    for setting in ["ipv4.conf.all.src_valid_mark", "ipv4.tcp_fwmark_accept", "ipv6.fwmark_reflect"]
    {
        assert_eq!(on.sh(&format!("sysctl -n net.{setting}")).trim(), "1", "{setting}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_whose_addresses_change_joins_anew_and_sends_from_the_new_one() {
    let on = Host::new();
    let fake = Fake::start(&on.dir, small());
    let _agent = joined(&on, &fake);
    on.sh("ip addr add 203.0.113.9/32 dev lo");
    wait_until("it joins with the new address", || {
        let book = fake.book();
        book.sessions.last().unwrap().addresses.len() == 3
    });
    let sessions = fake.book().sessions.len();
    on.sh("ip addr del 203.0.113.9/32 dev lo");
    wait_until("it joins without it", || fake.book().sessions.len() > sessions);
    let words: Vec<_> =
        fake.book().sessions.last().unwrap().addresses.iter().map(ToString::to_string).collect();
    assert_eq!(words, ["192.0.2.1", "2001:db8::1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_without_an_agent_asks_a_controller_and_opens_no_session() {
    let on = Host::new();
    let mut cluster = small();
    cluster.hosts[0] = host("node-a", 1, Role::Node, "192.0.2.1");
    let fake = Fake::start(&on.dir, cluster);
    let before = on.sh("ip link; ip route show table all; ip rule");
    let output = command(&on, &fake.path).arg("plan").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let commands = String::from_utf8(output.stdout).unwrap();
    assert!(commands.starts_with("ip link add limpet1 "), "{commands}");
    assert!(fake.book().sessions.is_empty());
    assert_eq!(on.sh("ip link; ip route show table all; ip rule"), before);
    on.sh(&commands);
    let _agent = joined(&on, &fake);
    let output = command(&on, &fake.path).arg("plan").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    assert!(String::from_utf8_lossy(&output.stderr).contains("nothing to do"));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_containers_interfaces_are_buried_whoever_else_uses_their_group() {
    let on = Host::new();
    let fake = Fake::start(&on.dir, small());
    let dead = |name: &str| {
        on.sh(&format!("ip link add {name} group 4096 type veth peer name p{name}"));
    };
    dead("lc0123456789a");
    dead("lcx77");
    let agent = joined(&on, &fake);
    wait_until("those that an earlier agent left are deleted", || !on.sh("ip link").contains("lc"));

    on.sh("ip link add other0 group 4096 type vxlan id 9 dstport 4790");
    dead("foreign");
    dead("lcextra");
    for round in 0..2 {
        dead("lc0123456789a");
        dead("lcx77");
        wait_until("the dead are deleted", || {
            let links = on.sh("ip link");
            !links.contains("lc0123456789a") && !links.contains("lcx77")
        });
        for name in ["other0", "foreign", "lcextra"] {
            assert!(on.sh("ip link").contains(name), "{name}, round {round}");
        }
    }
    assert_eq!(agent.log().matches("not limpet's is in the group").count(), 1, "said once");
}

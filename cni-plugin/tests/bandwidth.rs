//! Edge: limits of bandwidth: measured with TCP, seen by `tc`, and gone with the container.

#![expect(
    clippy::unwrap_used,
    reason = "a test may stop at the first surprise; clippy knows only test functions for tests"
)]

mod support;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use limpet_rtnl::Netns;
use serde_json::{Value, json};

use support::{Lab, Ns, host_ifname, run};

/// What of a full packet of the overlay's MTU (1450 and an Ethernet header) is TCP's payload, with its time stamps.
const PAYLOAD: [(bool, f64); 2] =
    [(false, (1450.0 - 52.0) / 1464.0), (true, (1450.0 - 72.0) / 1464.0)];

fn shaper() -> String {
    limpet_net_types::shaper_ifname(&host_ifname())
}

fn limits(ingress: u32, egress: u32) -> Value {
    let burst = |rate| if rate == 0 { 0 } else { 256_000 };
    json!({"bandwidth": {
        "ingressRate": ingress, "ingressBurst": burst(ingress),
        "egressRate": egress, "egressBurst": burst(egress),
    }})
}

/// What `tc -j` says on the host with these arguments.
fn tc(host: &Ns, arguments: &str) -> Value {
    let text = run(&format!("tc -n {} -j {arguments}", host.0));
    serde_json::from_str(&text).unwrap()
}

/// How fast TCP is from one namespace to an address in another, in bits a second on the wire: what arrives within a
/// time that the receiver takes, once the first burst is through.
fn speed(from: &Ns, to: &Ns, address: &str) -> f64 {
    let address: IpAddr = address.parse().unwrap();
    let enter = |ns: &Ns| Netns::open(ns.path()).unwrap();
    let listener = enter(to).run(|| TcpListener::bind(SocketAddr::new(address, 0)).unwrap());
    let listener = listener.unwrap();
    let at = listener.local_addr().unwrap();
    let (mut bytes, mut taken) = (0_u32, Duration::ZERO);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let connect = || TcpStream::connect_timeout(&at, Duration::from_secs(10)).unwrap();
            let mut stream = enter(from).run(connect).unwrap();
            // It ends when the receiver has seen enough.
            while stream.write_all(&[0; 16_384]).is_ok() {}
        });
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let (mut buffer, opened) = (vec![0; 16_384], Instant::now());
        while opened.elapsed() < Duration::from_millis(300) {
            assert_ne!(stream.read(&mut buffer).unwrap(), 0);
        }
        let begun = Instant::now();
        while taken < Duration::from_millis(1500) {
            bytes += u32::try_from(stream.read(&mut buffer).unwrap()).unwrap();
            taken = begun.elapsed();
        }
    });
    let payload = PAYLOAD.iter().find(|(v6, _)| *v6 == address.is_ipv6()).unwrap().1;
    f64::from(bytes) * 8.0 / payload / taken.as_secs_f64()
}

/// A host that finds its containers, with or without limits.
fn routed(config: Value) -> Lab {
    let mut lab = Lab::new().with("runtimeConfig", config);
    for family in ["-4", "-6"] {
        lab.host.sh(&format!("ip {family} rule add lookup 7601 pref 200"));
    }
    lab.add();
    lab
}

fn assert_near(measured: f64, wanted: u32) {
    let wanted = f64::from(wanted);
    assert!((measured / wanted - 1.0).abs() < 0.1, "{measured:.0} bit/s, not {wanted:.0}");
}

#[test]
fn what_a_container_receives_is_held_back_to_its_rate() {
    for (address, rate) in [("10.32.0.5", 8_000_000), ("fd32::5", 20_000_000)] {
        let lab = routed(limits(rate, 0));
        assert_near(speed(&lab.host, &lab.container, address), rate);
        // The other direction is free.
        let host = if address.contains(':') { "2001:db8::1" } else { "192.0.2.1" };
        assert!(speed(&lab.container, &lab.host, host) > 100e6);
    }
}

#[test]
fn what_a_container_sends_is_held_back_to_its_rate() {
    for (address, rate) in [("192.0.2.1", 20_000_000), ("2001:db8::1", 8_000_000)] {
        let lab = routed(limits(0, rate));
        // Whatever it does inside.
        assert!(!lab.container.try_exec("tc qdisc del dev eth0 root"));
        assert_near(speed(&lab.container, &lab.host, address), rate);
        let container = if address.contains(':') { "fd32::5" } else { "10.32.0.5" };
        assert!(speed(&lab.host, &lab.container, container) > 100e6);
    }
}

#[test]
fn a_runtime_that_names_no_burst_gets_the_rate_from_the_start() {
    let all = u32::MAX;
    let lab = routed(json!({"bandwidth": {"ingressRate": 8_000_000, "ingressBurst": all}}));
    assert_near(speed(&lab.host, &lab.container, "10.32.0.5"), 8_000_000);
}

#[test]
fn tc_shows_the_limits_and_check_is_content_with_them() {
    let lab = routed(limits(8_000_000, 16_000_000));
    for (device, rate) in [(host_ifname(), 1_000_000), (shaper(), 2_000_000)] {
        let root = &tc(&lab.host, &format!("qdisc show dev {device} root"))[0];
        assert_eq!((&root["kind"], &root["options"]["rate"]), (&"tbf".into(), &rate.into()));
        let burst = root["options"]["burst"].as_u64().unwrap();
        assert!(burst.abs_diff(32_000) < 320, "{root}");
    }
    let detour = tc(&lab.host, &format!("filter show dev {} ingress", host_ifname())).to_string();
    assert!(detour.contains(&format!("\"to_dev\":\"{}\"", shaper())), "{detour}");
    let link = &lab.host.json(&format!("link show {}", shaper()))[0];
    assert_eq!((&link["ifalias"], &link["mtu"]), (&support::agent::UID.into(), &1450.into()));
    assert_eq!(lab.host.json(&format!("addr show dev {}", shaper()))[0]["addr_info"], json!([]));
    lab.call("CHECK").ok();
}

#[test]
fn without_limits_nothing_is_made_for_them() {
    let lab = routed(json!({"bandwidth": {"ingressRate": 0, "ingressBurst": 0}}));
    assert!(!lab.host.has(&shaper()));
    let root = &tc(&lab.host, &format!("qdisc show dev {}", host_ifname()))[0];
    assert_eq!(root["kind"], "noqueue");
}

#[test]
fn what_the_runtime_says_goes_before_what_the_configuration_says() {
    let all = json!({"egressRate": 8_000_000, "egressBurst": 256_000,
                     "ingressRate": 8_000_000, "ingressBurst": 256_000});
    let mut lab = Lab::new().with("bandwidth", all).with("runtimeConfig", limits(0, 24_000_000));
    lab.add();
    for (device, rate) in [(host_ifname(), 1_000_000), (shaper(), 3_000_000)] {
        let root = &tc(&lab.host, &format!("qdisc show dev {device} root"))[0];
        assert_eq!(root["options"]["rate"], rate, "{device}");
    }
}

#[test]
fn del_gives_the_limits_device_to_the_agent_with_the_rest() {
    let mut lab = routed(limits(8_000_000, 8_000_000));
    for _ in 0..2 {
        lab.call("DEL").ok();
        for device in [host_ifname(), shaper()] {
            let link = &lab.host.json(&format!("link show {device}"))[0];
            assert_eq!((&link["group"], &link["operstate"]), (&"4096".into(), &"DOWN".into()));
        }
        // At once again, under the same names.
        lab.set("prevResult", Value::Null);
        lab.add();
        lab.call("CHECK").ok();
    }
}

#[test]
fn del_takes_the_limits_device_itself_while_the_agent_is_away() {
    let lab = routed(limits(0, 8_000_000));
    lab.agent.stop();
    lab.call("DEL").ok();
    assert!(!lab.host.has(&host_ifname()) && !lab.host.has(&shaper()));
}

#[test]
fn del_finds_the_limits_device_of_a_container_that_is_gone() {
    let lab = routed(limits(0, 8_000_000));
    run(&format!("ip -n {} link del eth0", lab.container.0));
    assert!(!lab.host.has(&host_ifname()) && lab.host.has(&shaper()));
    lab.call("DEL").ok();
    assert_eq!(lab.host.json(&format!("link show {}", shaper()))[0]["group"], "4096");
}

#[test]
fn an_add_that_fails_leaves_no_limits_device() {
    let lab = Lab::new().with("runtimeConfig", limits(0, 8_000_000)).with("timeout", 1);
    lab.agent.reply("POST", support::agent::Reply::Close);
    assert_eq!(lab.call("ADD").code(), 11);
    assert!(!lab.host.has(&host_ifname()) && !lab.host.has(&shaper()));
    // Something of somebody else's under its name is left alone.
    let lab = Lab::new().with("runtimeConfig", limits(0, 8_000_000));
    lab.host.sh(&format!("ip link add {} type bridge", shaper()));
    let answer = lab.call("ADD");
    assert!(answer.code() == 102 && answer.said().contains("in the way"), "{answer:?}");
    assert!(!lab.host.has(&host_ifname()) && lab.host.has(&shaper()));
}

#[test]
fn impossible_limits_are_code_7_and_say_why() {
    for (limits, told) in [
        (json!({"ingressRate": 8000}), "ingressRate is given without ingressBurst"),
        (json!({"egressBurst": 8000}), "egressBurst is given without egressRate"),
        (json!({"egressRate": 8, "egressBurst": 8}), "egressRate is 8 bit/s, the least is 1000"),
        (json!({"ingressRate": -1, "ingressBurst": 8}), "-1"),
        (json!({"egressRate": 1e3, "egressBurst": 8}), "1000.0"),
        (json!({"egresRate": 8000, "egressBurst": 8}), "egresRate"),
        (json!("fast"), "fast"),
    ] {
        for (field, value) in
            [("runtimeConfig", json!({"bandwidth": limits})), ("bandwidth", limits.clone())]
        {
            let lab = Lab::new().with(field, value);
            let answer = lab.call("ADD");
            assert_eq!(answer.code(), 7, "{limits}");
            assert!(answer.said().contains("bandwidth` is"), "{}", answer.said());
            assert!(answer.said().contains(told), "{}", answer.said());
            assert_eq!(lab.agent.log(), Vec::<String>::new());
            // DEL minds nothing.
            lab.call("DEL").ok();
        }
    }
}

/// The plugin of the CNI project that holds back too, on this host.
fn others(lab: &Lab, verb: &str, config: &Value) -> std::process::Output {
    let mut command = std::process::Command::new("nsenter");
    command.arg(format!("--net={}", lab.host.path())).arg("/usr/lib/cni/bandwidth");
    command.env("CNI_COMMAND", verb).envs(lab.environment.iter().cloned());
    command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn the_bandwidth_plugin_works_behind_limpet_where_limpet_holds_nothing_back() {
    let lab = routed(json!({}));
    let mut config = json!({
        "cniVersion": "1.0.0", "name": "pods", "type": "bandwidth",
        "ingressRate": 8_000_000, "ingressBurst": 256_000,
        "egressRate": 16_000_000, "egressBurst": 256_000,
        "prevResult": lab.config["prevResult"],
    });
    let added = others(&lab, "ADD", &config);
    assert!(added.status.success(), "{added:?}");
    let root = &tc(&lab.host, &format!("qdisc show dev {} root", host_ifname()))[0];
    assert_eq!(root["kind"], "tbf");
    config["prevResult"] = serde_json::from_slice(&added.stdout).unwrap();
    let mut lab = lab;
    lab.set("prevResult", config["prevResult"].clone());
    lab.call("CHECK").ok();
    assert!(others(&lab, "DEL", &config).status.success());
    lab.call("DEL").ok();

    // Where both are told to, the second one says that somebody has.
    let lab = routed(limits(8_000_000, 8_000_000));
    config["prevResult"] = lab.config["prevResult"].clone();
    let added = others(&lab, "ADD", &config);
    assert!(!added.status.success());
    assert!(String::from_utf8_lossy(&added.stdout).contains("exists"), "{added:?}");
}

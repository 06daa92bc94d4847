//! Edge: CHECK: each thing that ADD makes is broken by itself, by hand, and CHECK says which.

#![expect(
    clippy::unwrap_used,
    reason = "a test may stop at the first surprise; clippy knows only test functions for tests"
)]

mod support;

use std::sync::Mutex;
use std::time::Duration;

use serde_json::{Value, json};

use support::agent::Reply;
use support::{Lab, VERSIONS, agent, host_ifname, run};

/// A container that CHECK is content with, limits and all, and a host whose network is as its agent makes it.
fn sound() -> Lab {
    let limits = json!({"bandwidth": {
        "ingressRate": 8_000_000, "ingressBurst": 256_000, "egressRate": 8_000_000, "egressBurst": 256_000,
    }});
    let mut lab = Lab::new().with("timeout", 1).with("runtimeConfig", limits);
    lab.host.sh("ip link add limpet1 type vxlan id 100 local 192.0.2.1 dstport 4789 nolearning");
    lab.host.sh("ip link set limpet1 up");
    on_host(&lab, "nft add table inet limpet");
    lab.agent.change(json!({"device": "limpet1", "filter": "limpet"}));
    lab.add();
    lab.call("CHECK").ok();
    lab
}

/// Runs a command on the host. `$` stands for the digits of the container's devices.
fn on_host(lab: &Lab, command: &str) {
    let name = host_ifname();
    let command = command.replace('$', name.strip_prefix("lc").unwrap());
    run(&format!("ip netns exec {} {command}", lab.host.0));
}

fn inside(lab: &Lab, command: &str) {
    run(&format!("ip netns exec {} {command}", lab.container.0));
}

/// How something is broken.
enum Break {
    Inside(&'static str),
    Outside(&'static str),
    /// What the agent says of the attachment becomes another.
    Agent(Value),
}

use Break::{Inside, Outside};

/// What is broken, and all that CHECK has to say about it.
type Row = (Break, Vec<&'static str>);

fn of_the_container() -> Vec<Row> {
    vec![
        (Inside("ip link set eth0 name eth9"), vec!["interface eth0 is missing in the container"]),
        (
            Inside("ip link set eth0 down"),
            vec![
                "interface eth0 in the container is down",
                "address fd32::5 is missing on eth0",
                "route 0.0.0.0/0 via 169.254.1.1 is missing",
                "route 169.254.1.1/32 dev eth0 is missing",
                "route ::/0 via fe80::1 is missing",
                "neighbour entry of 169.254.1.1",
                "neighbour entry of fe80::1",
            ],
        ),
        (
            Inside("ip link set eth0 address 02:00:00:00:00:99"),
            vec![
                "interface eth0 has MAC address 02:00:00:00:00:99, not 02:4c:0a:20:00:05",
                "host's neighbour entry of 10.32.0.5 with 02:00:00:00:00:99 is missing or another",
                "host's neighbour entry of fd32::5 with 02:00:00:00:00:99 is missing or another",
                // The kernel forgets neighbours with the address.
                "container's neighbour entry of 169.254.1.1",
                "container's neighbour entry of fe80::1",
            ],
        ),
        (
            Inside("ip link set eth0 mtu 9000"),
            vec![
                "interface eth0 has MTU 9000, the overlay carries 1450",
                "has MTU 1450, the container's end 9000",
            ],
        ),
        (
            // The kernel takes what there is of IPv4 with the last address.
            Inside("ip addr del 10.32.0.5/32 dev eth0"),
            vec![
                "address 10.32.0.5 is missing on eth0",
                "route 0.0.0.0/0 via 169.254.1.1 is missing",
                "route 169.254.1.1/32 dev eth0 is missing",
                "neighbour entry of 169.254.1.1",
            ],
        ),
        (Inside("ip addr del fd32::5/128 dev eth0"), vec!["address fd32::5 is missing on eth0"]),
        (
            Inside("sh -c 'ip addr add 10.32.0.5/24 dev eth0; ip addr del 10.32.0.5/32 dev eth0'"),
            vec!["address 10.32.0.5 on eth0 has prefix length 24, not 32"],
        ),
        (
            Inside("ip route del default"),
            vec!["route 0.0.0.0/0 via 169.254.1.1 is missing in the container"],
        ),
        (
            Inside("ip route replace default dev lo"),
            vec!["route 0.0.0.0/0 via 169.254.1.1 is missing in the container"],
        ),
        (
            Inside("ip -6 route del default"),
            vec!["route ::/0 via fe80::1 is missing in the container"],
        ),
        (
            Inside("ip route del 169.254.1.1"),
            vec!["route 169.254.1.1/32 dev eth0 is missing in the container"],
        ),
        (
            Inside("ip neigh del 169.254.1.1 dev eth0"),
            vec!["container's neighbour entry of 169.254.1.1 with 02:4c:ff:ff:ff:ff is missing"],
        ),
        (
            Inside("ip neigh replace fe80::1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent"),
            vec!["container's neighbour entry of fe80::1 with 02:4c:ff:ff:ff:ff is missing or an"],
        ),
        (
            Inside("ip neigh replace fe80::1 lladdr 02:4c:ff:ff:ff:ff dev eth0 nud reachable"),
            vec!["container's neighbour entry of fe80::1 with 02:4c:ff:ff:ff:ff is missing or an"],
        ),
    ]
}

fn of_the_hosts_end() -> Vec<Row> {
    vec![
        (Outside("ip link set lc$ name other"), vec!["is missing on the host"]),
        (
            Outside("ip link set lc$ down"),
            vec![
                "on the host is down",
                "host's route to 10.32.0.5 is missing",
                "host's route to fd32::5 is missing",
                "host's neighbour entry of 10.32.0.5",
                "host's neighbour entry of fd32::5",
            ],
        ),
        (
            Outside("ip link set lc$ address 02:00:00:00:00:99"),
            vec![
                "has MAC address 02:00:00:00:00:99, not 02:4c:ff:ff:ff:ff",
                "host's neighbour entry of 10.32.0.5",
                "host's neighbour entry of fd32::5",
            ],
        ),
        (Outside("ip link set lc$ mtu 1300"), vec!["has MTU 1300, the container's end 1450"]),
        (Outside("ip link set lc$ group 4098"), vec!["is in group 4098, not 4097"]),
        (
            Outside("ip link set lc$ alias 0123456789abcdef0123456789abcdef"),
            vec![
                "has alias 0123456789abcdef0123456789abcdef, not 00112233445566778899aabbccddeeff",
            ],
        ),
        (
            Outside("ip route del 10.32.0.5 table 7601"),
            vec!["host's route to 10.32.0.5 is missing in table 7601"],
        ),
        (
            Outside("ip -6 route del fd32::5 table 7601"),
            vec!["host's route to fd32::5 is missing in table 7601"],
        ),
        (
            Outside("ip route replace 10.32.0.5 dev lo table 7601 proto 76 src 192.0.2.1"),
            vec!["host's route to 10.32.0.5 is missing in table 7601"],
        ),
        (
            Outside("ip route replace 10.32.0.5 dev lc$ table 7601 proto 76 scope link"),
            vec!["route to 10.32.0.5 in table 7601 has no source, not source 192.0.2.1"],
        ),
        (
            Outside("ip neigh del 10.32.0.5 dev lc$"),
            vec!["host's neighbour entry of 10.32.0.5 with 02:4c:0a:20:00:05 is missing"],
        ),
        (
            Outside(
                "ip neigh replace fd32::5 lladdr 02:00:00:00:00:01 dev lc$ nud permanent protocol 76",
            ),
            vec!["host's neighbour entry of fd32::5 with 02:4c:0a:20:00:05 is missing or another"],
        ),
        (Outside("sysctl -qw net.ipv4.conf.lc$.rp_filter=0"), vec!["setting ipv4 rp_filter of"]),
        (Outside("sysctl -qw net.ipv4.conf.lc$.forwarding=0"), vec!["setting ipv4 forwarding of"]),
        (
            Outside("sysctl -qw net.ipv6.conf.lc$.force_forwarding=0"),
            vec!["setting ipv6 force_forwarding of"],
        ),
        (Outside("sysctl -qw net.ipv6.conf.lc$.accept_ra=1"), vec!["setting ipv6 accept_ra of"]),
        (
            Outside("sysctl -qw net.ipv6.conf.lc$.disable_ipv6=1"),
            vec![
                "setting ipv6 disable_ipv6 of",
                "host's route to fd32::5 is missing",
                "host's neighbour entry of fd32::5",
            ],
        ),
    ]
}

fn of_the_rest() -> Vec<Row> {
    let other_uid = "ffeeddccbbaa99887766554433221100";
    let addresses = json!([{"address": "10.32.0.6", "pool": "pods-v4"}]);
    vec![
        // The network.
        (Outside("ip link del limpet1"), vec!["the network's device limpet1 is missing"]),
        (Outside("ip link set limpet1 down"), vec!["the network's device limpet1 is down"]),
        (
            Outside("nft delete table inet limpet"),
            vec!["the nftables table inet limpet is missing"],
        ),
        // The limits.
        (Outside("tc qdisc del dev lc$ root"), vec!["the limit at lc"]),
        (
            Outside(
                "tc qdisc replace dev lc$ root handle 1: tbf rate 9mbit burst 32kb limit 81920",
            ),
            vec!["the limit at lc"],
        ),
        (
            Outside(
                "tc qdisc change dev lb$ root handle 1: tbf rate 8mbit burst 320kb limit 82000",
            ),
            vec!["the limit at lb"],
        ),
        (Outside("tc qdisc del dev lc$ ingress"), vec!["does not go through lb"]),
        (Outside("tc filter del dev lc$ ingress"), vec!["does not go through lb"]),
        (Outside("ip link set lb$ down"), vec!["that limits what is sent is down"]),
        (Outside("ip link del lb$"), vec!["that limits what is sent is missing"]),
        // What the controller says.
        (
            Break::Agent(json!({"attachment": {"uid": other_uid}})),
            vec![
                "has alias 00112233445566778899aabbccddeeff, not ffeeddccbbaa99887766554433221100",
            ],
        ),
        (
            Break::Agent(json!({
                "attachment": {"addresses": addresses},
                "gateways": ["169.254.1.1"], "sources": ["192.0.2.1"],
            })),
            vec![
                "address 10.32.0.6 is held and not in prevResult",
                "address 10.32.0.5 of prevResult is not held",
                "address fd32::5 of prevResult is not held",
                "address 10.32.0.6 is missing on eth0",
                "host's route to 10.32.0.6 is missing",
                "host's neighbour entry of 10.32.0.6",
            ],
        ),
    ]
}

#[test]
fn each_thing_that_add_makes_is_named_when_it_is_broken() {
    let rows = [of_the_container(), of_the_hosts_end(), of_the_rest()];
    let rows = Mutex::new(rows.into_iter().flatten());
    let next = || rows.lock().unwrap().next();
    let wrong = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while let Some((what, told)) = next() {
                    let named = is_named(&what, &told);
                    wrong.lock().unwrap().extend(named.err());
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn is_named(what: &Break, told: &[&str]) -> Result<(), String> {
    let lab = sound();
    let how = match what {
        Inside(command) => {
            shell(|command| inside(&lab, command), command);
            (*command).to_owned()
        }
        Outside(command) => {
            on_host(&lab, command);
            (*command).to_owned()
        }
        Break::Agent(change) => {
            lab.agent.change(change.clone());
            change.to_string()
        }
    };
    let answer = lab.call("CHECK");
    let object = answer.json();
    let said: Vec<_> = object["details"].as_str().unwrap_or_default().split("; ").collect();
    let all = told.iter().all(|told| said.iter().any(|said| said.contains(told)));
    let first = object["msg"].as_str().is_some_and(|words| words.ends_with(said[0]));
    if object["code"] == 103 && said.len() == told.len() && all && first {
        return Ok(());
    }
    Err(format!("{how}: {object:#}, which is not exactly {told:#?}"))
}

/// Runs several commands that are written as one of a shell.
fn shell(run: impl Fn(&str), command: &str) {
    let script = command.strip_prefix("sh -c '").and_then(|rest| rest.strip_suffix('\''));
    match script {
        Some(script) => script.split("; ").for_each(run),
        None => run(command),
    }
}

#[test]
fn what_later_plugins_changed_is_right() {
    let mut lab = sound();
    inside(&lab, "ip link set eth0 mtu 1400");
    inside(&lab, "ip route add 203.0.113.0/24 via 169.254.1.1 dev eth0");
    inside(&lab, "ip route del default");
    inside(&lab, "ip route add default via 169.254.1.1 dev eth0 metric 50 mtu 1300");
    inside(&lab, "sysctl -qw net.ipv4.conf.eth0.rp_filter=0");
    lab.call("CHECK").ok();
    // A plugin that routes everything another way says so in its result.
    inside(&lab, "ip route del default");
    inside(&lab, "ip route add default dev lo");
    let mut result = lab.config["prevResult"].clone();
    let routes = result["routes"].as_array_mut().unwrap();
    routes.retain(|route| route["dst"] != "0.0.0.0/0");
    routes.push(json!({"dst": "0.0.0.0/0"}));
    let other = json!({"name": "net1", "mac": "02:00:00:00:00:01", "sandbox": "/run/netns/x"});
    result["interfaces"].as_array_mut().unwrap().push(other);
    lab.set("prevResult", result);
    lab.call("CHECK").ok();
}

#[test]
fn a_result_of_every_version_is_compared_with() {
    for version in VERSIONS.into_iter().filter(|version| *version != "0.3.1") {
        for asked in VERSIONS.into_iter().filter(|version| *version != "0.3.1") {
            let mut lab = Lab::new().with("cniVersion", version).with("timeout", 1);
            lab.add();
            lab.set("cniVersion", asked);
            lab.call("CHECK").ok();
        }
    }
    let mut lab = Lab::new().with("cniVersion", "0.3.1");
    lab.add();
    assert_eq!(lab.call("CHECK").code(), 1);
    lab.set("cniVersion", "0.4.0");
    lab.call("CHECK").ok();
}

#[test]
fn what_is_mended_meanwhile_is_not_told() {
    let lab = sound().with("timeout", 5);
    lab.host.sh("ip route del 10.32.0.5 table 7601");
    // Answered a second time, it is there again.
    let script = format!("/run/{}.sh", lab.host.0);
    let mend = format!(
        "[ -e $0.once ] && ip -n {} route replace 10.32.0.5 dev {} table 7601 proto 76 src 192.0.2.1 scope link\n\
         touch $0.once\n",
        lab.host.0,
        host_ifname(),
    );
    std::fs::write(&script, mend).unwrap();
    lab.agent.before_answering("GET", &format!("sh {script}"));
    lab.call("CHECK").ok();
}

#[test]
fn what_may_pass_by_itself_is_code_11() {
    let lab = sound();
    let doubt = |code: &str| json!({"doubt": {"code": code, "message": "no controller answers"}});
    for code in ["controller-unreachable", "not-joined"] {
        lab.agent.change(doubt(code));
        let answer = lab.call("CHECK");
        assert_eq!(answer.code(), 11, "{answer:?}");
        assert!(answer.said().contains("no controller answers"), "{answer:?}");
    }
    // What is broken is broken all the same.
    inside(&lab, "ip route del default");
    assert_eq!(lab.call("CHECK").code(), 103);
    for reply in [
        Reply::Close,
        Reply::Silence,
        Reply::Json(503, agent::error("not-joined", "this host has not joined yet")),
        Reply::Json(503, agent::error("unavailable", "the agent has just started")),
    ] {
        lab.agent.reply("GET", reply.clone());
        assert_eq!(lab.call("CHECK").code(), 11, "{reply:?}");
    }
    lab.agent.stop();
    let begun = std::time::Instant::now();
    assert_eq!(lab.call("CHECK").code(), 11);
    assert!(begun.elapsed() < Duration::from_secs(20));
}

#[test]
fn an_attachment_that_the_controller_does_not_have_is_not_sound() {
    let lab = sound();
    let words = "the attachment was taken off the network: its addresses are another's";
    lab.agent.reply("GET", Reply::Json(404, agent::error("attachment-not-found", words)));
    let answer = lab.call("CHECK");
    assert_eq!(answer.code(), 103);
    assert!(answer.said().starts_with(words), "{answer:?}");
}

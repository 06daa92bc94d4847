//! Several networks: closed to each other until one is let into the other, with addresses in common where they have
//! spaces of their own, on the hosts that are their members.
#![expect(clippy::unwrap_used, reason = "also what helps a test stops at the first surprise")]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use netns_tests::{
    Agent, Datacentre, Host, Place, Pod, Process, reaches, seen_as, unique, wait_until,
};
use serde_json::Value;

/// How long a change at the controller may take to be in every host's kernel.
const SPREAD: Duration = Duration::from_secs(15);

/// Makes a network with a pool of each family.
fn network(dc: &Datacentre, name: &str, flags: &str, [v4, v6]: [&str; 2]) {
    dc.controller.run(format!("network create {name} {flags}").trim_end());
    dc.controller.run(&format!("pool create {name}-v4 --network {name} --range {v4}"));
    dc.controller.run(&format!("pool create {name}-v6 --network {name} --range {v6}"));
}

/// The ways that TCP does not take, of those that are given, in words; both families.
fn closed(ways: &[(&Pod, &Pod)]) -> BTreeSet<String> {
    tried(ways).into_iter().filter(|(_, works)| !works).map(|(way, _)| way).collect()
}

/// The ways that TCP takes, in words; both families.
fn open(ways: &[(&Pod, &Pod)]) -> BTreeSet<String> {
    tried(ways).into_iter().filter(|(_, works)| *works).map(|(way, _)| way).collect()
}

/// Tries all at once, because what is dropped is waited for.
fn tried(ways: &[(&Pod, &Pod)]) -> Vec<(String, bool)> {
    let families = ways.iter().flat_map(|way| [(way, false), (way, true)]);
    thread::scope(|scope| {
        let tries: Vec<_> = families
            .map(|((from, to), v6)| {
                let (from, to) = (Place::pod(from, v6), Place::pod(to, v6));
                scope.spawn(move || {
                    let seen = seen_as(&from.netns, &to.netns, to.address);
                    (format!("{} to {} at {}", from.name, to.name, to.address), seen.is_ok())
                })
            })
            .collect();
        tries.into_iter().map(|tried| tried.join().unwrap()).collect()
    })
}

/// Waits until all these ways are open.
fn await_open(ways: &[(&Pod, &Pod)]) {
    await_none(|| closed(ways), "all are reached that should be");
}

/// Waits until none of them is.
fn await_closed(ways: &[(&Pod, &Pod)]) {
    await_none(|| open(ways), "none is reached that should not be");
}

fn await_none(ways: impl Fn() -> BTreeSet<String>, what: &str) {
    let end = Instant::now() + SPREAD;
    loop {
        let left = ways();
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < end, "after {SPREAD:?} still not so: {what}, but {left:#?}");
    }
}

#[test]
fn networks_are_closed_to_each_other_until_one_is_let_into_the_other() {
    let dc = Datacentre::full();
    network(&dc, "lab", "", ["10.33.0.0/16", "fd33::/64"]);
    let (web, db) = (dc.a.add("shop", "web-0"), dc.b.add("shop", "db-0"));
    let (here, there) = (dc.a.add_on("lab", "lab", "here-0"), dc.b.add_on("lab", "lab", "there-0"));
    await_open(&[(&web, &db), (&db, &web), (&here, &there), (&there, &here)]);
    let into_pods = [(&here, &web), (&here, &db), (&there, &web)];
    let into_lab = [(&web, &here), (&db, &here), (&web, &there)];
    assert_eq!(open(&into_pods), BTreeSet::new());
    assert_eq!(open(&into_lab), BTreeSet::new());
    // Members are in all networks of the shared space, and answer to all.
    for v6 in [false, true] {
        let metal = Place::host(dc.metal_host(), if v6 { "2001:db8::50" } else { "192.0.2.50" });
        for pod in [&web, &here, &there] {
            let pod = Place::pod(pod, v6);
            assert_eq!(seen_as(&metal.netns, &pod.netns, pod.address), Ok(metal.address));
            assert_eq!(seen_as(&pod.netns, &metal.netns, metal.address), Ok(pod.address));
        }
    }

    dc.controller.run("network allow lab pods");
    await_open(&into_pods);
    assert_eq!(open(&into_lab), BTreeSet::new(), "the other way is still closed");
    dc.controller.run("network allow lab pods --both");
    await_open(&into_lab);
    assert_eq!(closed(&into_pods), BTreeSet::new());
    dc.controller.run("network deny lab pods --both");
    await_closed(&into_pods);
    await_closed(&into_lab);
    assert_eq!(closed(&[(&web, &db), (&here, &there)]), BTreeSet::new());
}

/// Answers every datagram on a host, at whichever of its addresses.
const ECHO: &str = r#"
import socket, sys
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
s.bind(("::", 7007))
print("bound", flush=True)
while True:
    data, peer = s.recvfrom(100)
    s.sendto(data, peer)
"#;

/// Sends a datagram to an address and a port, and prints what comes of it.
const ASK: &str = r#"
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
s = socket.socket(family, socket.SOCK_DGRAM)
s.settimeout(2)
s.connect((sys.argv[1], int(sys.argv[2])))
try:
    s.send(b"?")
    print(s.recv(9).decode())
except ConnectionRefusedError:
    print("refused")
"#;

fn echo(host: &Host) -> Process {
    let mut command = host.command("python3");
    command.args(["-c", ECHO]);
    let echo = Process::start(command, &host.dir().join(unique("echo")));
    wait_until(SPREAD, "the host answers datagrams", || echo.output().contains("bound"));
    echo
}

/// What a pod hears of a datagram that it sends.
fn asked(pod: &Pod, to: IpAddr, port: u16) -> String {
    let script = format!("/tmp/{}.py", unique("ask"));
    pod.container.sh(&format!(
        "cat > {script} << 'E'\n{ASK}\nE\npython3 {script} {to} {port} 2>&1; rm {script}"
    ))
}

#[test]
fn networks_with_spaces_of_their_own_have_the_same_addresses_on_the_same_hosts() {
    let dc = Datacentre::small();
    for name in ["red", "pink"] {
        network(&dc, name, "--own-space", ["10.40.0.0/24", "fd40::/120"]);
    }
    for host in ["node-a", "node-b"] {
        dc.controller.run(&format!("host set {host} --networks pods,red,pink"));
    }
    let pods = |network: &str| {
        [(&dc.a, "here-0"), (&dc.b, "there-0")]
            .map(|(agent, name)| agent.add_on(network, network, name))
    };
    let ([red, red_there], [pink, pink_there]) = (pods("red"), pods("pink"));
    assert_eq!(red.addresses(), pink.addresses(), "the test is about the same addresses");
    assert_eq!(red_there.addresses(), pink_there.addresses());
    let shared = dc.a.add("shop", "web-0");
    let own = [(&red, &red_there), (&red_there, &red), (&pink, &pink_there), (&pink_there, &pink)];
    await_open(&own);

    let _echo = echo(dc.a.host());
    for v6 in [false, true] {
        let host = Place::host(dc.a.host(), if v6 { "2001:db8::1" } else { "192.0.2.1" });
        for pod in [&red, &pink, &shared] {
            let place = Place::pod(pod, v6);
            let seen = seen_as(&place.netns, &host.netns, host.address);
            assert_eq!(seen, Ok(place.address), "{} to its host", pod.namespace);
            assert_eq!(asked(pod, host.address, 7007), "?", "{}: a datagram", pod.namespace);
            let refused = asked(pod, host.address, 7008);
            assert_eq!(refused, "refused", "{}: an error of ICMP", pod.namespace);
        }
        for (from, to) in own.iter().take(3).step_by(2) {
            let to = if v6 { to.v6() } else { to.v4() };
            let text = from.container.try_sh(&format!("ping -n -c 1 -W 2 -t 1 {to} 2>&1"));
            let text = text.unwrap_err();
            let expired =
                text.to_lowercase().contains("time to live exceeded") || text.contains("Hop limit");
            assert!(expired && text.contains(&host.address.to_string()), "{v6}: {text}");
        }
    }

    // Where its own is gone, a container does not reach the other network's of the same address.
    let config = dc.b.config_of("red");
    assert_eq!(dc.b.call_for("DEL", &red_there, ("eth0", &config)).code, 0);
    assert_eq!(open(&[(&red, &pink_there), (&shared, &pink_there)]), BTreeSet::new());
    assert_eq!(closed(&[(&pink, &pink_there)]), BTreeSet::new());
}

#[test]
fn a_pod_with_interfaces_on_two_networks_answers_by_the_one_that_was_asked() {
    let dc = Datacentre::small();
    network(&dc, "lab", "", ["10.33.0.0/16", "fd33::/64"]);
    let (pod, web) = (dc.a.add("shop", "both-0"), dc.b.add("shop", "web-0"));
    let (near, far) = (dc.a.add_on("lab", "lab", "near-0"), dc.b.add_on("lab", "lab", "far-0"));
    let mut config = dc.a.config_of("lab");
    let result = dc.a.call_for("ADD", &pod, ("net1", &config)).expect_success("ADD of net1");
    let first = pod;
    let second = |v6: bool| {
        let ips = result["ips"].as_array().unwrap();
        let addresses = ips.iter().map(|ip| ip["address"].as_str().unwrap());
        let mut of_family = addresses.filter(|address| address.contains(':') == v6);
        let address = of_family.next().unwrap().split('/').next().unwrap();
        Place { address: address.parse().unwrap(), ..Place::pod(&first, v6) }
    };
    for v6 in [false, true] {
        let (on_lab, on_pods) = (second(v6), Place::pod(&first, v6));
        for other in [Place::pod(&near, v6), Place::pod(&far, v6)] {
            wait_until(SPREAD, "a way to its second address", || {
                reaches(&other.netns, other.address, &on_lab.netns, on_lab.address)
            });
            let seen = seen_as(&on_lab.netns, &other.netns, other.address);
            assert_eq!(seen, Ok(on_lab.address), "by the interface on that network");
        }
        let other = Place::pod(&web, v6);
        assert_eq!(seen_as(&other.netns, &on_pods.netns, on_pods.address), Ok(other.address));
        assert_eq!(seen_as(&on_pods.netns, &other.netns, other.address), Ok(on_pods.address));
        // Hosts are reached by the first, and reach both.
        for (agent, at) in
            [(&dc.a, ["192.0.2.1", "2001:db8::1"]), (&dc.b, ["192.0.2.2", "2001:db8::2"])]
        {
            let host = Place::host(agent.host(), at[usize::from(v6)]);
            for to in [&on_lab, &on_pods] {
                assert_eq!(seen_as(&host.netns, &to.netns, to.address), Ok(host.address));
            }
            assert_eq!(seen_as(&on_pods.netns, &host.netns, host.address), Ok(on_pods.address));
        }
    }
    let names = dc.controller.rows("reservation list");
    let both = names.iter().filter(|reservation| reservation["name"] == "both-0");
    assert_eq!(both.count(), 2, "each network has a reservation for the name");

    config["prevResult"] = result;
    let check = dc.a.call_for("CHECK", &first, ("net1", &config));
    assert_eq!(check.code, 0, "{check:?}");
    assert_eq!(dc.a.check(&first).code, 0);
    assert_eq!(dc.a.call_for("DEL", &first, ("net1", &config)).code, 0);
    assert_eq!(first.container.sh("ip rule; ip -6 rule").matches("7600").count(), 0);
    let (from, to) = (Place::pod(&web, false), Place::pod(&first, false));
    assert!(reaches(&from.netns, from.address, &to.netns, to.address), "the first is as before");
}

/// The VXLAN devices of a host.
fn devices(host: &Host) -> BTreeSet<String> {
    let devices = host.json("ip -j link show type vxlan");
    devices.iter().map(|device| device["ifname"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_host_has_the_networks_that_it_is_a_member_of_and_no_others() {
    let dc = Datacentre::small();
    network(&dc, "lab", "", ["10.33.0.0/16", "fd33::/64"]);
    let b = dc.b.host();
    let both: BTreeSet<String> = ["limpet1", "limpet2"].map(str::to_owned).into();
    wait_until(SPREAD, "both networks have a device", || devices(b) == both);
    let lab = dc.a.add_on("lab", "lab", "here-0");
    wait_until(SPREAD, "it is reached from the other host", || b.pings(lab.v4(), 1));

    dc.controller.run("host set node-b --networks pods");
    wait_until(SPREAD, "the network's device is gone", || {
        devices(b) == ["limpet1".to_owned()].into()
    });
    for (family, prefix) in [("", "10.33."), ("-6", "fd33:")] {
        let routes = b.sh(&format!("ip {family} route show table all"));
        assert!(!routes.contains(prefix), "{routes}");
    }
    for target in [lab.v4(), lab.v6()] {
        assert!(!b.pings(target, 2), "{target} is reached by no overlay");
    }
    let spare = dc.b.add("shop", "db-0");
    let answer = dc.b.call_for("ADD", &spare, ("net1", &dc.b.config_of("lab")));
    assert_eq!(answer.stdout["code"], 101, "{answer:?}");
    assert!(answer.stdout.to_string().contains("host-not-member"), "{answer:?}");

    dc.controller.run("host set node-b --all-networks");
    wait_until(SPREAD, "it is reached again", || b.pings(lab.v4(), 1));
    let there = dc.b.add_on("lab", "lab", "there-0");
    await_open(&[(&lab, &there), (&there, &lab)]);
    let error = dc.controller.try_ctl("host set node-b --networks pods").unwrap_err();
    assert!(error.contains("host-in-use"), "{error}");
}

/// How many rules nftables has of limpet's.
fn rules(agent: &Agent) -> usize {
    let listed = &agent.host().json("nft -j list table inet limpet")[0];
    let objects = listed["nftables"].as_array().unwrap();
    objects.iter().filter(|object| object.get("rule").is_some()).count()
}

#[test]
fn with_two_hundred_networks_there_are_as_many_nftables_rules_as_with_one() {
    let dc = Datacentre::small();
    let one = rules(&dc.a);
    assert!(one > 2);
    let (controller, numbers) = (&dc.controller, 2..=200);
    for n in numbers {
        controller.run(&format!("network create n{n}"));
        controller.run(&format!("pool create n{n}-v4 --network n{n} --range 100.64.{n}.0/24"));
    }
    for agent in dc.agents() {
        wait_until(Duration::from_secs(60), "every network has a device", || {
            devices(agent.host()).len() == 200
        });
    }
    let (here, there) = (dc.a.add_on("n200", "x", "here-0"), dc.b.add_on("n200", "x", "there-0"));
    let (from, to) = (Place::pod(&here, false), Place::pod(&there, false));
    wait_until(SPREAD, "the last network's containers reach each other", || {
        seen_as(&from.netns, &to.netns, to.address) == Ok(from.address)
    });
    assert_eq!((rules(&dc.a), rules(&dc.b)), (one, one));
    let listed: Vec<Value> = controller.rows("network list");
    assert_eq!(listed.len(), 200);
}

//! STATUS in a cluster: what stands in the way of an ADD is said while it does, and not afterwards.

use std::time::Duration;

use netns_tests::{Agent, Call, Container, Datacentre, wait_until};

/// Waits until STATUS fails with a code and says these words, which it may notice by its heartbeat.
fn wait_for(agent: &Agent, network: &str, code: u64, words: &str) {
    let mut last = String::new();
    let says = || {
        let answer = agent.status(network);
        last = answer.stdout.to_string();
        answer.stdout["code"].as_u64() == Some(code) && last.contains(words)
    };
    wait_until(Duration::from_secs(30), &format!("STATUS is {code} and says {words:?}"), says);
    // Whichever it is, the message names the reason and not only its details.
    assert!(last.contains("\"msg\":\""), "{last}");
}

fn wait_for_ready(agent: &Agent, network: &str) {
    wait_until(Duration::from_secs(30), "STATUS is content again", || {
        agent.status(network).code == 0
    });
}

#[test]
fn a_controller_that_is_away_is_50_until_it_is_back() {
    let mut dc = Datacentre::small();
    assert_eq!(dc.a.status("pods").code, 0);
    dc.controller.kill();
    wait_for(&dc.a, "pods", 50, "controller-unreachable");
    let web = Container::new("web");
    let answer = dc.a.try_add(&web, "shop", "web-0");
    assert_eq!(answer.expect_error("ADD without a controller"), 11);
    dc.controller.resume();
    wait_for_ready(&dc.a, "pods");
}

#[test]
fn a_network_whose_pools_give_this_host_nothing_is_50_and_the_pool_is_named() {
    let dc = Datacentre::small();
    dc.controller.run("network create tiny --vni 300");
    wait_for(&dc.a, "tiny", 50, "no pool");
    dc.controller.run("pool create tiny-v4 --network tiny --range 10.99.0.0/30");
    wait_for_ready(&dc.a, "tiny");
    // Until it is full, by whoever.
    let mut held = Vec::new();
    loop {
        let container = Container::new("tiny");
        let mut config = dc.b.config();
        config["name"] = "tiny".into();
        let name = format!("t-{}", held.len());
        let call = Call::for_pod("ADD", &container, "shop", &name);
        let answer = dc.b.call(&Call { stdin: config.to_string(), ..call });
        if answer.code != 0 {
            assert!(answer.stdout.to_string().contains("pool-full"), "{answer:?}");
            break;
        }
        held.push(container);
    }
    assert!(!held.is_empty() && held.len() <= 4, "{}", held.len());
    // Its own ADD was refused: that host knows at once. The other hears when it asks again.
    assert_eq!(dc.b.status("tiny").expect_error("STATUS of a full network"), 50);
    wait_for(&dc.a, "tiny", 50, "tiny-v4 (");
    // Room that is only other hosts' is none.
    let other =
        "pool create tiny-x --network tiny --range 10.99.1.0/24 --select-host-label disk=ssd";
    dc.controller.run(other);
    wait_for(&dc.a, "tiny", 50, "tiny-v4 (");
    dc.controller.run("host set node-a --label disk=ssd");
    wait_for_ready(&dc.a, "tiny");
    assert_eq!(dc.b.status("tiny").code, 1, "it has no such label");
}

#[test]
fn an_underlay_that_is_lost_is_51_until_it_is_back() {
    let dc = Datacentre::small();
    let host = dc.a.host();
    host.run("ip link set eth0 down");
    wait_for(&dc.a, "pods", 51, "the underlay is lost");
    host.run("ip link set eth0 up");
    wait_for_ready(&dc.a, "pods");

    dc.underlay.unplug(host);
    wait_for(&dc.a, "pods", 51, "eth0, which has 192.0.2.1, has no carrier");
    dc.underlay.plug_again(host);
    wait_for_ready(&dc.a, "pods");
}

#[test]
fn a_device_that_cannot_be_made_is_51_and_says_why() {
    let dc = Datacentre::small();
    // Another program has the VNI on limpet's port.
    dc.a.host().run(
        "ip link add foreign type vxlan id 301 local 192.0.2.1 dstport 4789 nolearning && ip link set foreign up",
    );
    dc.controller.run("network create taken --vni 301");
    dc.controller.run("pool create taken-v4 --network taken --range 10.98.0.0/24");
    wait_for(&dc.a, "taken", 51, "limpet2");
    dc.a.host().run("ip link del foreign");
    wait_for_ready(&dc.a, "taken");
}

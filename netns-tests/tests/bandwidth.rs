//! Limits of bandwidth in a cluster: nothing of them outlives their container.

use std::time::Duration;

use netns_tests::{Agent, Call, Container, Datacentre, Pod, wait_until};
use serde_json::json;

/// A pod that may send 8 Mbit/s.
fn limited(agent: &Agent, name: &str) -> Pod {
    let container = Container::new(name);
    let mut config = agent.config();
    config["runtimeConfig"] =
        json!({"bandwidth": {"egressRate": 8_000_000, "egressBurst": 256_000}});
    let call = Call::for_pod("ADD", &container, "shop", name);
    let result = agent.call(&Call { stdin: config.to_string(), ..call }).expect_success("ADD");
    Pod { container, namespace: "shop".to_owned(), name: name.to_owned(), result }
}

/// The devices that hold containers back on an agent's host.
fn shapers(agent: &Agent) -> Vec<String> {
    let links = agent.host().json("ip -j link show type ifb");
    links.iter().filter_map(|link| Some(link["ifname"].as_str()?.to_owned())).collect()
}

fn wait_for_none(agent: &Agent, why: &str) {
    wait_until(Duration::from_secs(10), why, || shapers(agent).is_empty());
}

#[test]
fn what_holds_a_container_back_goes_when_it_goes_however_it_goes() {
    let mut dc = Datacentre::small();
    let [stopped, died, unseen] = ["web-0", "web-1", "web-2"].map(|name| limited(&dc.a, name));
    let stays = limited(&dc.b, "web-3");
    assert_eq!(shapers(&dc.a).len(), 3);
    assert!(dc.b.host().pings(stopped.v4(), 2) && dc.a.host().pings(stays.v6(), 2));

    let answer = dc.a.del(&stopped);
    assert_eq!(answer.code, 0, "{answer:?}");
    died.container.delete();
    wait_until(Duration::from_secs(10), "one is left", || shapers(&dc.a).len() == 1);
    dc.a.kill();
    unseen.container.delete();
    dc.a.start();
    wait_for_none(&dc.a, "what a killed agent missed is found by the next");

    // That of a container that lives is nobody's to bury, whatever happens beside it.
    dc.b.kill();
    dc.b.start();
    let other = limited(&dc.b, "web-4");
    assert_eq!(dc.b.del(&other).code, 0);
    wait_until(Duration::from_secs(10), "the other one's is gone", || shapers(&dc.b).len() == 1);
    let answer = dc.b.check(&stays);
    assert_eq!(answer.code, 0, "{answer:?}");
}

//! The plugin's other verbs, with everything behind it real.

use std::time::Duration;

use netns_tests::{Agent, Answer, Call, Datacentre, Pod, wait_until};
use serde_json::json;

/// GC as a runtime calls it, with the attachments that it still knows of.
fn gc(agent: &Agent, valid: &[&Pod]) -> Answer {
    let mut config = agent.config();
    config["cniVersion"] = "1.1.0".into();
    let valid =
        valid.iter().map(|pod| json!({"containerID": pod.container.id(), "ifname": "eth0"}));
    config["cni.dev/valid-attachments"] = valid.collect();
    let environment = vec![("CNI_PATH".to_owned(), "/opt/cni/bin".to_owned())];
    agent.call(&Call { verb: "GC".to_owned(), stdin: config.to_string(), environment })
}

fn attached(dc: &Datacentre, pod: &Pod) -> bool {
    dc.controller
        .rows("attachment list")
        .iter()
        .any(|row| row.to_string().contains(pod.container.id()))
}

#[test]
fn check_is_content_with_what_add_made_and_not_with_less() {
    let dc = Datacentre::small();
    let web = dc.a.add("shop", "web-0");
    let answer = dc.a.check(&web);
    assert_eq!(answer.code, 0, "{answer:?}");
    // What only a new ADD can bring back.
    let _ = web.container.sh("ip link del eth0");
    let answer = dc.a.check(&web);
    assert_eq!(answer.expect_error("CHECK"), 103, "{answer:?}");
    // What the agent brings back is waited for.
    let web = dc.a.add("shop", "web-1");
    dc.a.host().run(&format!("ip route del {} table 7601", web.v4()));
    assert_eq!(dc.a.check(&web).code, 0);
}

#[test]
fn gc_ends_what_is_gone_and_leaves_alone_what_is_there() {
    let dc = Datacentre::small();
    let [known, forgotten, gone] = ["web-0", "web-1", "web-2"].map(|name| dc.a.add("shop", name));
    let elsewhere = dc.b.add("shop", "web-3");
    // Its container died without a DEL.
    gone.container.delete();
    wait_until(Duration::from_secs(5), "the dead container's veth is gone", || {
        !dc.a.has_device(&Agent::host_end(&gone))
    });
    let answer = gc(&dc.a, &[&known]);
    assert!(
        answer.stdout.is_null() || answer.code != 0,
        "nothing is printed on success: {answer:?}"
    );
    wait_until(Duration::from_secs(10), "the dead container's attachment is ended", || {
        !attached(&dc, &gone)
    });
    assert!(attached(&dc, &known), "what the runtime knows stays");
    assert!(attached(&dc, &forgotten), "what is there stays, whatever the runtime says");
    assert!(attached(&dc, &elsewhere), "other hosts' containers are none of its business");
    assert!(dc.b.host().pings(forgotten.v4(), 2));
}

#[test]
fn status_says_what_stands_in_the_way_of_an_add() {
    let mut dc = Datacentre::small();
    assert_eq!(dc.a.status("pods").code, 0);
    assert_eq!(dc.a.status("no-such").expect_error("STATUS for a network that is not there"), 50);
    dc.a.stop();
    let answer = dc.a.status("pods");
    assert_eq!(answer.expect_error("STATUS without an agent"), 50, "{answer:?}");
    dc.a.start();
    assert_eq!(dc.a.status("pods").code, 0);
}

#[test]
fn a_fixed_address_is_given_or_refused_with_its_holder() {
    let dc = Datacentre::small();
    let web = dc.a.add("shop", "web-0");
    let container = netns_tests::Container::new("fixed");
    let asking = |address: &str| {
        let args =
            format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=fixed-0;IP={address}");
        let call = Call::for_pod("ADD", &container, "shop", "fixed-0").with("CNI_ARGS", &args);
        dc.a.call(&Call { stdin: dc.a.config().to_string(), ..call })
    };
    let held = asking(&web.v4().to_string());
    assert!(held.code != 0 && held.stdout.to_string().contains("web-0"), "{held:?}");
    let given = asking("10.32.77.7");
    assert!(given.expect_success("ADD").to_string().contains("10.32.77.7/"));
}

//! A hostname keeps its address.

use netns_tests::{Datacentre, Flow};

#[test]
fn a_pod_that_moves_to_another_host_keeps_its_addresses_and_is_reached_there() {
    let dc = Datacentre::full();
    let web = dc.a.add("shop", "web-0");
    let watcher = dc.a.add("shop", "watcher-0");
    let (before, plain) = (web.addresses(), dc.plain_host());
    let flows = [
        Flow::start(plain.command("ping"), web.v4()),
        Flow::start(watcher.container.command("ping"), web.v6()),
    ];

    assert_eq!(dc.a.del(&web).code, 0);
    drop(web);
    let web = dc.b.add("shop", "web-0");

    assert_eq!(web.addresses(), before);
    dc.settle_on(&web, &dc.b);
    for flow in flows {
        let tally = flow.end();
        assert!(tally.answered > 0 && tally.lost() < tally.sent, "{tally:?}");
    }
    for address in before {
        assert!(plain.pings(address, 3), "{address} from plain-1");
        assert!(
            watcher.container.try_sh(&format!("ping -c 1 -W 1 {address}")).is_ok(),
            "{address} from a pod"
        );
    }
}

#[test]
fn a_pod_that_was_deleted_comes_back_to_its_addresses_after_others_came() {
    let dc = Datacentre::small();
    let web = dc.a.add("shop", "web-0");
    let before = web.addresses();
    assert_eq!(dc.a.del(&web).code, 0);
    drop(web);

    let others: Vec<_> =
        ["web-1", "web-2", "batch-x", "batch-y"].map(|name| dc.a.add("shop", name)).into();
    for other in &others {
        assert!(!other.addresses().iter().any(|address| before.contains(address)), "{other:?}");
    }
    assert_eq!(dc.a.add("shop", "web-0").addresses(), before);
}

#[test]
fn the_same_name_in_two_namespaces_is_two_names() {
    let dc = Datacentre::small();
    let (one, two) = (dc.a.add("shop", "web-0"), dc.a.add("bank", "web-0"));
    assert_ne!(one.v4(), two.v4());
    assert_ne!(one.v6(), two.v6());
}

#[test]
fn a_name_whose_container_is_alive_elsewhere_is_refused_and_the_container_keeps_its_address() {
    let dc = Datacentre::small();
    let web = dc.a.add("shop", "web-0");
    let container = netns_tests::Container::new("second");
    let answer = dc.b.try_add(&container, "shop", "web-0");
    assert_eq!(answer.expect_error("the second ADD"), 11, "{answer:?}");
    let text = answer.stdout.to_string();
    assert!(
        text.contains("node-a") && text.contains(web.container.id()),
        "it names host and container: {text}"
    );
    assert!(dc.b.host().pings(web.v4(), 2));
}

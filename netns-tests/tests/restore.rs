//! The store is lost and restored from a backup that is older than the truth: what lives keeps its address and its
//! traffic, and nothing is given twice.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise, its helpers too")]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use netns_tests::{Datacentre, Flow, Pod, wait_until};

/// What the store says who has: each address, with its container.
fn held(dc: &Datacentre) -> BTreeMap<IpAddr, String> {
    let mut held = BTreeMap::new();
    for row in dc.controller.rows("attachment list") {
        let container = row["container"].as_str().unwrap().to_owned();
        for address in row["addresses"].as_array().unwrap() {
            let address: IpAddr = address["address"].as_str().unwrap().parse().unwrap();
            let before = held.insert(address, container.clone());
            assert_eq!(before, None, "{address} is held twice");
        }
    }
    held
}

fn all_have(pods: &[&Pod], held: &BTreeMap<IpAddr, String>) {
    for pod in pods {
        for address in pod.addresses() {
            let holder = held.get(&address).map(String::as_str);
            assert_eq!(holder, Some(pod.container.id()), "{address} of {}", pod.name);
        }
    }
    let addresses: usize = pods.iter().map(|pod| pod.addresses().len()).sum();
    assert_eq!(held.len(), addresses, "and nobody else has any: {held:?}");
}

#[test]
fn a_restore_of_an_older_backup_keeps_every_living_container_and_its_traffic() {
    let mut dc = Datacentre::small();
    let (web, db) = (dc.a.add("shop", "web-0"), dc.b.add("shop", "db-0"));
    let old = dc.a.add("shop", "old");
    dc.settle_on(&db, &dc.b);
    let backup = dc.controller.dir().join("limpet.backup");
    dc.controller.run(&format!("backup {}", backup.display()));
    let newer = [dc.b.add("shop", "web-1"), dc.a.add("shop", "job")];
    assert_eq!(dc.a.del(&old).code, 0);
    drop(old);
    let flows = [&db, &newer[0]].map(|to| Flow::start(web.container.command("ping"), to.v4()));

    dc.controller.kill();
    dc.controller.await_restore("another.redb");
    dc.a.host().run("sleep 2");
    dc.controller.run(&format!("restore {}", backup.display()));
    wait_until(Duration::from_secs(60), "every host has said what lives on it", || {
        let status = dc.controller.ctl("restore status -o json");
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        status["restored"]["waiting"].as_array().is_some_and(Vec::is_empty)
    });

    all_have(&[&web, &db, &newer[0], &newer[1]], &held(&dc));
    for flow in flows {
        let tally = flow.end();
        assert!(tally.sent > 20 && tally.lost() == 0, "{tally:?}");
    }
    wait_until(Duration::from_secs(30), "ADD is served again", || {
        dc.a.status("pods").code == 0 && dc.b.status("pods").code == 0
    });
    let again = dc.b.add("shop", "cache-0");
    all_have(&[&web, &db, &newer[0], &newer[1], &again], &held(&dc));
    wait_until(Duration::from_secs(30), "nothing is left to repair", || {
        dc.controller.try_ctl("check").is_ok()
    });
    assert_eq!(dc.a.del(&web).code, 0);
    assert_eq!(dc.b.add("shop", "web-0").addresses(), web.addresses(), "its name keeps it");
}

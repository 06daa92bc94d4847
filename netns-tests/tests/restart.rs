//! No process of limpet's is on the data path: restarts change nothing in a kernel and lose no packet.

use std::time::Duration;

use netns_tests::{Agent, Datacentre, Flow, Host, KernelWatch, Pod, wait_until};

/// Traffic of both families from a container on `node-a` to `target`.
fn flows(from: &Pod, target: &Pod) -> [Flow; 2] {
    [target.v4(), target.v6()].map(|address| Flow::start(from.container.command("ping"), address))
}

fn nothing_lost(flows: [Flow; 2]) {
    for flow in flows {
        let tally = flow.end();
        assert!(tally.sent > 20 && tally.lost() == 0, "{tally:?}");
    }
}

fn passes(agent: &Agent) -> bool {
    agent.status("pods").code == 0
}

/// Long enough that an agent which has started has also gone through its passes.
fn settled(host: &Host) {
    host.run("sleep 1.5");
}

#[test]
fn an_agent_that_restarts_changes_nothing_and_loses_nothing() {
    let mut dc = Datacentre::small();
    let (web, db) = (dc.a.add("shop", "web-0"), dc.b.add("shop", "db-0"));
    dc.settle_on(&db, &dc.b);
    let watch = KernelWatch::start(dc.a.host());
    let flows = flows(&web, &db);

    dc.a.stop();
    dc.a.start();
    settled(dc.a.host());
    dc.a.kill();
    dc.a.start();
    settled(dc.a.host());

    nothing_lost(flows);
    assert_eq!(watch.changes(), Vec::<String>::new());
}

#[test]
fn a_controller_that_restarts_changes_nothing_and_loses_nothing() {
    let mut dc = Datacentre::small();
    let (web, db) = (dc.a.add("shop", "web-0"), dc.b.add("shop", "db-0"));
    dc.settle_on(&db, &dc.b);
    let watches = [KernelWatch::start(dc.a.host()), KernelWatch::start(dc.b.host())];
    let flows = flows(&web, &db);

    dc.controller.stop();
    dc.controller.resume();
    wait_until(Duration::from_secs(20), "both agents are back at the controller", || {
        passes(&dc.a) && passes(&dc.b)
    });
    dc.controller.kill();
    dc.controller.resume();
    wait_until(Duration::from_secs(20), "both agents are back at the controller", || {
        passes(&dc.a) && passes(&dc.b)
    });
    settled(dc.a.host());

    nothing_lost(flows);
    for watch in watches {
        assert_eq!(watch.changes(), Vec::<String>::new());
    }
    assert_eq!(dc.a.del(&web).code, 0);
    assert_eq!(dc.b.add("shop", "web-0").addresses(), web.addresses(), "its store is as it was");
}

#[test]
fn with_every_agent_and_controller_dead_containers_go_on_talking() {
    let mut dc = Datacentre::small();
    let (web, db) = (dc.a.add("shop", "web-0"), dc.b.add("shop", "db-0"));
    dc.settle_on(&db, &dc.b);
    let flows = flows(&web, &db);
    dc.controller.kill();
    dc.a.kill();
    dc.b.kill();
    dc.a.host().run("sleep 1");
    nothing_lost(flows);
}

#[test]
fn an_agent_mends_what_somebody_else_broke() {
    let dc = Datacentre::small();
    let (web, db) = (dc.a.add("shop", "web-0"), dc.b.add("shop", "db-0"));
    dc.settle_on(&db, &dc.b);
    let works = || web.container.try_sh(&format!("ping -c 1 -W 0.3 {}", db.v4())).is_ok();
    for breaks in [
        "for d in $(ip -j route show table 7601 | jq -r .[].dst); do ip route del $d table 7601; done",
        "for d in $(ip -j -6 route show table 7601 | jq -r .[].dst); do ip -6 route del $d table 7601; done",
        "ip neigh flush dev limpet1 nud permanent",
        "ip nexthop flush proto 76",
        "ip link set limpet1 down",
        "ip link del limpet1",
        "ip rule flush pref 200; ip rule flush pref 100",
    ] {
        wait_until(Duration::from_secs(10), "the pods talk", works);
        dc.a.host().run(breaks);
        wait_until(Duration::from_secs(10), &format!("the agent has mended `{breaks}`"), works);
    }
}

/// Whoever is away for an hour comes back to what he left: nothing has a time after which it goes.
#[test]
fn nothing_that_limpet_lays_out_expires() {
    let dc = Datacentre::small();
    let (web, db) = (dc.a.add("shop", "web-0"), dc.b.add("shop", "db-0"));
    dc.settle_on(&db, &dc.b);
    let lasts = |shell: &dyn Fn(&str) -> String, device: &str| {
        let rows = |line: &str| -> Vec<serde_json::Value> {
            let text = shell(line);
            let text = if text.is_empty() { "[]" } else { &text };
            serde_json::from_str(text).unwrap_or_else(|error| panic!("{line}: {error}: {text}"))
        };
        let addresses = rows(&format!("ip -j addr show dev {device}"));
        let addresses = addresses[0]["addr_info"].as_array().expect("a list").clone();
        assert!(!addresses.is_empty() || device.starts_with("lc"), "{device}");
        for address in addresses {
            assert_eq!(address["valid_life_time"], u64::from(u32::MAX), "{address}");
        }
        for family in ["-4", "-6"] {
            let neighbours = rows(&format!("ip -j {family} neigh show dev {device} nud all"));
            // What the kernel makes for its own multicast is its own.
            let set = neighbours.iter().filter(|one| one["state"][0] != "NOARP");
            for neighbour in set {
                assert_eq!(neighbour["state"][0], "PERMANENT", "{device}: {neighbour}");
            }
            for table in ["main", "7601", "7602"] {
                let line = format!("ip {family} route show table {table} 2>/dev/null || true");
                let routes = shell(&line);
                assert!(!routes.contains("expires"), "{table}: {routes}");
            }
        }
    };
    let on_host = |line: &str| dc.a.host().sh(line);
    lasts(&on_host, "limpet1");
    lasts(&on_host, &Agent::host_end(&web));
    lasts(&|line: &str| web.container.sh(line), "eth0");
    let entries = dc.a.host().json("bridge -j fdb show dev limpet1");
    assert!(!entries.is_empty());
    for entry in entries {
        assert_eq!(entry["state"], "permanent", "{entry}");
    }
}

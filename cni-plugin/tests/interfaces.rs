//! Edge: a container with several interfaces: which has the default route, and by which answers leave.

#![expect(
    clippy::unwrap_used,
    reason = "a test may stop at the first surprise; clippy knows only test functions for tests"
)]

mod support;

use serde_json::{Value, json};

use support::{Lab, VERSIONS};

/// A container with an interface on `pods`, about to be given `net1` on `lab`.
fn lab() -> Lab {
    let mut lab = Lab::new().with("timeout", 1);
    for family in ["-4", "-6"] {
        lab.host.sh(&format!("ip {family} rule add lookup 7601 pref 200"));
    }
    lab.call("ADD").ok();
    lab.agent.change(json!({
        "attachment": {
            "addresses": [
                {"address": "10.33.0.5", "pool": "lab-v4"}, {"address": "fd33::5", "pool": "lab-v6"},
            ],
            "mac": "02:4c:0a:21:00:05",
        },
        "group": 4098,
        "pools": ["10.33.0.0/16", "fd33::/64"],
    }));
    lab.set("name", "lab");
    lab.set_env("CNI_IFNAME", "net1");
    lab
}

/// The destinations and devices of the container's routes of a table, both families.
fn routes(lab: &Lab, table: &str) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let of = |family: &str| lab.container.json(&format!("{family} route show table {table}"));
    let all: Vec<Value> =
        ["-4", "-6"].into_iter().flat_map(|f| of(f).as_array().unwrap().clone()).collect();
    all.iter().map(|route| (text(&route["dst"]), text(&route["dev"]))).collect()
}

fn pairs(of: &[(&str, &str)]) -> Vec<(String, String)> {
    of.iter().map(|(to, device)| ((*to).to_owned(), (*device).to_owned())).collect()
}

fn rules(lab: &Lab) -> String {
    lab.container.sh("ip rule") + &lab.container.sh("ip -6 rule")
}

fn pinged(lab: &Lab, address: &str) -> bool {
    lab.host.try_exec(&format!("ping -c 1 -W 1 {address}"))
}

/// The table of `net1` alone.
fn own_table(lab: &Lab) -> String {
    let index = lab.container.json("link show dev net1")[0]["ifindex"].as_u64().unwrap();
    (76_000 + index).to_string()
}

#[test]
fn a_second_interface_has_its_own_network_and_its_own_answers() {
    let mut lab = lab();
    let result = lab.add();
    let said: Vec<_> = result["routes"].as_array().unwrap().iter().map(|r| &r["dst"]).collect();
    assert_eq!(said, ["10.33.0.0/16", "fd33::/64"]);
    let main = [
        ("default", "eth0"),
        ("10.33.0.0/16", "net1"),
        ("169.254.1.1", "eth0"),
        ("fd32::5", "eth0"),
        ("fd33::5", "net1"),
        ("fd33::/64", "net1"),
        ("default", "eth0"),
    ];
    assert_eq!(routes(&lab, "main"), pairs(&main));
    let table = own_table(&lab);
    assert_eq!(routes(&lab, &table), pairs(&[("default", "net1"), ("default", "net1")]));
    for address in ["10.33.0.5", "fd33::5"] {
        assert!(rules(&lab).contains(&format!("from {address} lookup {table}")), "{}", rules(&lab));
    }
    for address in ["10.32.0.5", "fd32::5", "10.33.0.5", "fd33::5"] {
        assert!(pinged(&lab, address), "{address} answers by the interface that it is on");
    }
    // What leaves by the other interface is not taken from it: the test sees which it was.
    lab.container.sh(&format!("ip rule del from 10.33.0.5 lookup {table}"));
    assert!(!pinged(&lab, "10.33.0.5"));
}

#[test]
fn check_sees_what_answers_need_and_del_takes_it_away() {
    for version in &VERSIONS[1..] {
        let mut lab = lab().with("cniVersion", *version);
        lab.add();
        lab.call("CHECK").ok();
        let table = own_table(&lab);
        lab.container.sh(&format!("ip rule del from 10.33.0.5 lookup {table}"));
        lab.container.sh(&format!("ip -6 route flush table {table}"));
        let answer = lab.call("CHECK");
        assert_eq!(answer.code(), 103);
        for missing in [
            format!("rule from 10.33.0.5/32 lookup {table} pref 7600 protocol 76 is missing"),
            format!("route default via fe80::1 dev net1 is missing in table {table}"),
        ] {
            assert!(answer.said().contains(&missing), "{}", answer.said());
        }
        lab.call("DEL").ok();
        assert!(!rules(&lab).contains("7600"), "{}", rules(&lab));
        assert!(pinged(&lab, "10.32.0.5") && pinged(&lab, "fd32::5"));
    }
}

#[test]
fn who_asks_for_the_default_route_has_it_until_it_goes() {
    let mut lab = lab().with("defaultRoute", true);
    let result = lab.add();
    let said: Vec<_> = result["routes"].as_array().unwrap().iter().map(|r| &r["dst"]).collect();
    assert_eq!(said, ["169.254.1.1/32", "0.0.0.0/0", "::/0"]);
    lab.call("CHECK").ok();
    let ways = |family: &str| lab.container.sh(&format!("ip {family} route show default"));
    for (family, gateway) in [("-4", "169.254.1.1"), ("-6", "fe80::1")] {
        let text = ways(family);
        assert!(text.starts_with(&format!("default via {gateway} dev net1 ")), "{text}");
    }
    for address in ["10.32.0.5", "fd32::5", "10.33.0.5", "fd33::5"] {
        assert!(pinged(&lab, address), "{address} answers by the interface that it is on");
    }
    lab.call("DEL").ok();
    for address in ["10.32.0.5", "fd32::5"] {
        assert!(pinged(&lab, address), "what was there before has it again: {}", ways("-4"));
    }
}

#[test]
fn who_comes_before_a_default_route_with_a_metric_leaves_its_answers_alone() {
    let mut lab = lab().with("defaultRoute", true);
    // As other plugins have it.
    for (family, gateway) in [("-4", "169.254.1.1"), ("-6", "fe80::1")] {
        lab.container.sh(&format!("ip {family} route del default dev eth0"));
        let by = format!("via {gateway} dev eth0 metric 100");
        lab.container.sh(&format!("ip {family} route add default {by}"));
    }
    lab.add();
    for (family, gateway) in [("-4", "192.0.2.77"), ("-6", "2001:db8::77")] {
        let way = lab.container.sh(&format!("ip {family} route get {gateway}"));
        assert!(way.contains("dev net1"), "it has the default route: {way}");
    }
    for address in ["10.32.0.5", "fd32::5", "10.33.0.5", "fd33::5"] {
        assert!(pinged(&lab, address), "{address} answers by the interface that it is on");
    }
    lab.call("DEL").ok();
    for family in ["-4", "-6"] {
        let ways = lab.container.sh(&format!("ip {family} route show default"));
        assert!(ways.contains("dev eth0") && !ways.contains("net1"), "{ways}");
    }
    for address in ["10.32.0.5", "fd32::5"] {
        assert!(pinged(&lab, address), "what was there before has it again");
    }
}

#[test]
fn a_first_interface_can_be_without_the_default_route() {
    let mut lab = Lab::new().with("defaultRoute", false);
    lab.agent.change(json!({"pools": ["10.32.0.0/16"]}));
    let result = lab.add();
    assert_eq!(result["routes"], json!([{"dst": "10.32.0.0/16", "gw": "169.254.1.1"}]));
    assert_eq!(routes(&lab, "main"), pairs(&[("10.32.0.0/16", "eth0"), ("fd32::5", "eth0")]));
    let wrong = Lab::new().with("defaultRoute", "yes").call("ADD");
    assert_eq!(wrong.code(), 7);
    assert!(wrong.said().contains("field `defaultRoute` is \"yes\""), "{}", wrong.said());
}

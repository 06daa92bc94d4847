//! Edge: what runtimes read: each verb in each version, byte for byte.

#![expect(
    clippy::unwrap_used,
    reason = "a test may stop at the first surprise; clippy knows only test functions for tests"
)]

mod support;

use std::fmt::Write;

use serde_json::{Value, json};

use support::agent::Reply;
use support::{Answer, Lab, VERSIONS, agent, golden};

/// Exit status and standard output, the latter laid out for people to compare.
fn show(text: &mut String, lab: &Lab, heading: &str, answer: &Answer) {
    let output = match answer.json() {
        Value::Null => String::new(),
        value => lab.level(&serde_json::to_string_pretty(&value).unwrap()) + "\n",
    };
    writeln!(text, "== {heading}: exit {}\n{output}", answer.status).unwrap();
}

/// A verb in every version, after an ADD in that version where it needs one.
fn every_version(verb: &str, prepare: impl Fn(&mut Lab)) -> String {
    let mut text = String::new();
    for version in VERSIONS {
        let mut lab = Lab::new().with("cniVersion", version);
        prepare(&mut lab);
        show(&mut text, &lab, &format!("{verb} {version}"), &lab.call(verb));
    }
    text
}

#[test]
fn version_is_answered_to_everybody() {
    let mut text = every_version("VERSION", |_| {});
    let lab = Lab::new();
    for stdin in ["", "{}", r#"{"cniVersion":"0.2.0"}"#, r#"{"cniVersion":"9.9.9"}"#, r#"{"cniVer"#]
    {
        show(
            &mut text,
            &lab,
            &format!("VERSION {stdin}"),
            &lab.call_with("VERSION", stdin.as_bytes()),
        );
    }
    golden("version.txt", &text);
}

#[test]
fn add_answers_in_the_form_of_each_version() {
    golden("add.txt", &every_version("ADD", |_| {}));
}

#[test]
fn add_answers_for_one_family_alone() {
    let mut text = String::new();
    for family in ["4", "6"] {
        let lab = Lab::new();
        lab.agent.give(family);
        show(&mut text, &lab, &format!("ADD, IPv{family}"), &lab.call("ADD"));
    }
    golden("add-one-family.txt", &text);
}

#[test]
fn add_passes_other_plugins_results_on_in_every_version() {
    let prev = |version: &str| {
        let mut prev = json!({
            "cniVersion": version,
            "interfaces": [{"name": "net1", "mac": "02:00:00:00:00:01", "sandbox": "/run/netns/other"}],
            "ips": [{"address": "198.51.100.7/24", "gateway": "198.51.100.1", "interface": 0}],
            "routes": [{"dst": "203.0.113.0/24", "gw": "198.51.100.1"}],
            "dns": {"nameservers": ["198.51.100.53"], "search": ["example.net"]},
        });
        if version < "1.0.0" {
            prev["ips"][0]["version"] = "4".into();
        }
        if version >= "1.1.0" {
            prev["interfaces"][0]["mtu"] = 9000.into();
            prev["interfaces"][0]["pciID"] = "0000:00:1f.6".into();
            prev["routes"][0]["mtu"] = 1400.into();
            prev["routes"][0]["priority"] = 7.into();
        }
        prev
    };
    let mut text = every_version("ADD", |lab| {
        let version = lab.config["cniVersion"].as_str().unwrap().to_owned();
        lab.set("prevResult", prev(&version));
    });
    // A runtime that was upgraded hands on what an older version left, and the other way round.
    for (from, to) in [("0.3.1", "1.1.0"), ("1.1.0", "0.3.1")] {
        let lab = Lab::new().with("cniVersion", to).with("prevResult", prev(from));
        show(&mut text, &lab, &format!("ADD {to} after {from}"), &lab.call("ADD"));
    }
    let dns =
        json!({"nameservers": ["192.0.2.53"], "domain": "example.org", "options": ["ndots:5"]});
    let lab = Lab::new().with("prevResult", prev("1.0.0")).with("dns", dns);
    show(&mut text, &lab, "ADD with dns of its own", &lab.call("ADD"));
    golden("add-after-others.txt", &text);
}

#[test]
fn del_check_status_and_gc_say_nothing_when_all_is_well() {
    let added = |lab: &mut Lab| drop(lab.add());
    let mut text = every_version("DEL", added);
    text += &every_version("CHECK", added);
    text += &every_version("STATUS", |_| {});
    text += &every_version("GC", |lab| lab.set("cni.dev/valid-attachments", json!([])));
    golden("quiet.txt", &text);
}

#[test]
fn an_error_has_one_shape_in_every_version() {
    let mut text = String::new();
    for verb in ["ADD", "CHECK", "STATUS", "GC"] {
        text += &every_version(verb, |lab| {
            lab.set("cni.dev/valid-attachments", json!([]));
            lab.set("prevResult", json!({}));
            lab.agent.stop();
        });
    }
    golden("agent-away.txt", &text);
}

#[test]
fn check_lists_everything_that_is_wrong() {
    let mut lab = Lab::new().with("cniVersion", "1.1.0");
    lab.add();
    for command in [
        "ip link set eth0 address 02:00:00:00:00:99",
        "ip link set eth0 mtu 1500",
        "ip addr del 10.32.0.5/32 dev eth0",
        "ip -6 route del default",
    ] {
        lab.container.sh(command);
    }
    let end = support::host_ifname();
    for command in [
        format!("ip link set {end} alias other"),
        format!("ip -6 route del fd32::5 dev {end} table 7601"),
        format!("ip neigh del 10.32.0.5 dev {end}"),
    ] {
        lab.host.sh(&command);
    }
    let mut text = String::new();
    let answer = lab.call("CHECK");
    let object = answer.json();
    writeln!(text, "exit {} code {}", answer.status, object["code"]).unwrap();
    writeln!(text, "{}\n", lab.level(object["msg"].as_str().unwrap())).unwrap();
    for problem in object["details"].as_str().unwrap().split("; ") {
        writeln!(text, "{}", lab.level(problem)).unwrap();
    }
    golden("check-broken.txt", &text);
}

#[test]
fn status_tells_what_stands_in_the_way_and_whether_containers_suffer() {
    let mut text = String::new();
    let problem = |code: &str, message: &str, connectivity: bool| json!({"error": agent::error(code, message), "connectivity": connectivity});
    let full = problem("pool-full", "pool pods-v4 is full: all 254 addresses are held", false);
    let away = problem("controller-unreachable", "no controller answers", false);
    let down = problem("network-not-ready", "device limpet1 is missing", true);
    for problems in [vec![full.clone()], vec![away], vec![full, down]] {
        let lab = Lab::new().with("cniVersion", "1.1.0");
        let codes: Vec<_> = problems.iter().map(|p| p["error"]["code"].to_string()).collect();
        lab.agent.reply("GET", Reply::Json(200, json!({"problems": problems})));
        show(&mut text, &lab, &format!("STATUS with {}", codes.join(", ")), &lab.call("STATUS"));
    }
    golden("status.txt", &text);
}

#[test]
fn a_refusal_of_the_controller_reaches_the_user() {
    let mut text = String::new();
    for (status, code, message) in [
        (503, "pool-full", "pool pods-v4 is full: all 254 addresses are held"),
        (409, "reservation-held", "10.32.0.5 of shop/web-0 is held by container c9 on host node-b"),
        (409, "address-held", "10.32.0.5 is held by shop/db-0"),
        (404, "network-not-found", "there is no network pods"),
        (503, "controller-unreachable", "no controller answers"),
    ] {
        let lab = Lab::new();
        lab.agent.reply("PUT", Reply::Json(status, agent::error(code, message)));
        show(&mut text, &lab, &format!("ADD refused with {code}"), &lab.call("ADD"));
    }
    golden("refused.txt", &text);
}

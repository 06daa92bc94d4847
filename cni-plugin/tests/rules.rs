//! Edge: the rules of the CNI specification, and the traps that other plugins fell into, one test each.

mod support;

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use support::agent::Reply;
use support::{Answer, Lab, agent, host_ifname};

/// That nothing was made and nobody was asked for an address.
fn assert_nothing_happened(lab: &Lab) {
    assert!(!lab.host.has(&host_ifname()));
    assert_eq!(lab.agent.log(), Vec::<String>::new());
}

/// The code that ADD fails with, having done nothing.
fn refused(lab: &Lab) -> (u64, String) {
    let answer = lab.call("ADD");
    assert_nothing_happened(lab);
    (answer.code(), answer.said())
}

#[test]
fn an_unknown_field_is_refused_with_its_name_and_value() {
    for (field, value, shown) in [
        ("netwrok", json!("pods"), "unsupported field `netwrok` with value \"pods\""),
        ("mtu", json!(1400), "unsupported field `mtu` with value 1400"),
        ("args", json!({"limpet": {"ip": "10.0.0.1"}}), "`args.limpet.ip` with value \"10.0.0.1\""),
        ("runtimeConfig", json!({"portMappings": [{}]}), "`runtimeConfig.portMappings` with value"),
        ("bridge", json!("x".repeat(9999)), "xxx..."),
    ] {
        for verb in ["ADD", "CHECK", "STATUS", "GC"] {
            let lab = Lab::new()
                .with("cniVersion", "1.1.0")
                .with("prevResult", json!({}))
                .with("cni.dev/valid-attachments", json!([]))
                .with(field, value.clone());
            let answer = lab.call(verb);
            assert_eq!(answer.code(), 2, "{verb} {field}");
            assert!(answer.said().contains(shown), "{}", answer.said());
            assert!(answer.said().len() < 500);
        }
    }
}

#[test]
fn fields_of_the_specification_are_taken() {
    let lab = Lab::new()
        .with("cniVersions", json!(["0.4.0", "1.0.0"]))
        .with("disableCheck", true)
        .with("disableGC", false)
        .with("loadOnlyInlinedPlugins", true)
        .with("capabilities", json!({"ips": true, "mac": true}))
        .with("args", json!({"cni": {"labels": []}, "other": 1}))
        .with("ipam", json!({}))
        .with("ipMasq", false)
        .with("logLevel", "debug")
        .with("cni.dev/attachments", json!([]))
        .with("cni.dev/something-new", json!({"x": 1}));
    lab.call("ADD").ok();
}

#[test]
fn masquerading_and_other_address_managers_are_refused_with_the_reason() {
    let (code, said) = refused(&Lab::new().with("ipMasq", true));
    assert_eq!(code, 2);
    assert!(said.contains("`ipMasq` is true: limpet translates no address"), "{said}");
    let (code, said) = refused(&Lab::new().with("ipam", json!({"type": "host-local"})));
    assert_eq!(code, 2);
    assert!(said.contains(r#"`ipam` is {"type":"host-local"}: the controller gives"#), "{said}");
}

#[test]
fn a_version_that_is_not_spoken_is_code_1() {
    for version in ["0.1.0", "0.2.0", "0.3.0", "1.2.0", "2.0.0", "", "x"] {
        let (code, said) = refused(&Lab::new().with("cniVersion", version));
        assert_eq!(code, 1, "{version}");
        assert!(said.contains("limpet speaks 0.3.1, 0.4.0, 1.0.0, 1.1.0"), "{said}");
    }
    assert_eq!(refused(&Lab::new().with("cniVersion", Value::Null)).0, 7);
}

#[test]
fn missing_variables_are_all_named() {
    for (verb, named) in [
        ("ADD", "CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME"),
        ("CHECK", "CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME"),
        ("DEL", "CNI_CONTAINERID, CNI_IFNAME"),
    ] {
        let mut lab = Lab::new().with("prevResult", json!({}));
        lab.environment.clear();
        let answer = lab.call(verb);
        assert_eq!(answer.code(), 4);
        assert_eq!(answer.said(), format!("{verb} needs what is not set: {named} | "));
    }
}

#[test]
fn cni_path_is_not_needed() {
    Lab::new().without_env("CNI_PATH").call("ADD").ok();
}

#[test]
fn a_command_that_is_none_is_code_4() {
    for command in ["", "add", "UPDATE", "b\u{e4}r"] {
        let answer = Lab::new().call(command);
        assert_eq!(answer.code(), 4, "{command}");
        assert!(answer.said().contains("CNI_COMMAND"));
    }
}

#[test]
fn standard_input_that_is_no_configuration_is_code_6() {
    let lab = Lab::new();
    let whole = Value::from(lab.config.clone()).to_string();
    for verb in ["ADD", "DEL", "CHECK", "STATUS", "GC"] {
        for stdin in
            [&b""[..], b"{", whole.as_bytes().split_last().unwrap().1, b"[]", b"7", b"\xff\xfe"]
        {
            assert_eq!(lab.call_with(verb, stdin).code(), 6, "{verb} {stdin:?}");
        }
    }
    assert_nothing_happened(&lab);
}

#[test]
fn names_that_cannot_be_are_refused_with_the_place() {
    let long = "x".repeat(300);
    for (wrong, told) in [
        ("a/b", "'/' at position 2"),
        ("a b", "' ' at position 2"),
        ("b\u{e4}r", "at position 2"),
        (&long, "300 characters long"),
        ("../x", "at position 1"),
    ] {
        for variable in ["CNI_CONTAINERID", "CNI_IFNAME"] {
            let (code, said) = refused(&Lab::new().with_env(variable, wrong));
            assert_eq!(code, 4);
            assert!(
                said.contains(variable) && (said.contains(told) || variable == "CNI_IFNAME"),
                "{said}"
            );
        }
        let (code, said) = refused(
            &Lab::new().with_env("CNI_ARGS", &format!("IgnoreUnknown=1;K8S_POD_NAME={wrong}")),
        );
        assert!(code == 4 && said.contains("K8S_POD_NAME") && said.contains(told), "{said}");
        let (code, said) = refused(&Lab::new().with("name", wrong));
        assert!(code == 7 && said.contains("`name`") && said.contains(told), "{said}");
        let (code, said) = refused(&Lab::new().with("network", wrong));
        assert!(code == 7 && said.contains("`network`") && said.contains(told), "{said}");
    }
}

#[test]
fn a_field_of_the_wrong_kind_is_code_7() {
    for (field, value) in [
        ("socket", json!(7)),
        ("socket", json!("agent.sock")),
        ("timeout", json!("soon")),
        ("timeout", json!(0)),
        ("timeout", json!(601)),
        ("runtime", json!("a b")),
        ("logLevel", json!("loud")),
        ("args", json!([])),
        ("args", json!({"limpet": 7})),
        ("args", json!({"limpet": {"sticky": "yes"}})),
        ("runtimeConfig", json!({"ips": ["10.0.0"]})),
        ("runtimeConfig", json!({"mac": "01:00:5e:00:00:01"})),
        ("dns", json!("192.0.2.53")),
        ("prevResult", json!({"ips": 7})),
    ] {
        let (code, said) = refused(&Lab::new().with(field, value.clone()));
        assert_eq!(code, 7, "{field} {value}");
        assert!(said.contains(field), "{said}");
    }
}

#[test]
fn an_interface_that_exists_is_refused_before_an_address_is_held() {
    let lab = Lab::new();
    lab.container.sh("ip link add eth0 type bridge");
    let (code, said) = refused(&lab);
    assert_eq!((code, said.as_str()), (100, "the container has an interface eth0 already | "));
    assert!(lab.container.has("eth0"), "and stays");
}

#[test]
fn an_interface_that_appears_once_addresses_are_held_is_not_code_100() {
    let lab = Lab::new();
    let make = format!("ip -n {} link add eth0 type bridge", lab.container.0);
    lab.agent.before_answering("PUT", &make);
    let answer = lab.call("ADD");
    assert_eq!(answer.code(), 102, "100 says that no address is held");
    assert!(answer.said().contains("another program made interface eth0"), "{}", answer.said());
    assert!(lab.container.has("eth0") && !lab.host.has(&host_ifname()));
}

#[test]
fn an_earlier_incarnation_that_is_still_there_is_waited_for() {
    let lab = Lab::new();
    let refusal = agent::error("attachment-present", "interface eth0 is attached already");
    lab.agent.reply("PUT", Reply::Json(409, refusal));
    let answer = lab.call("ADD");
    assert_eq!(answer.code(), 11);
    assert!(answer.said().contains("code attachment-present"), "{}", answer.said());
}

#[test]
fn a_second_add_is_refused_and_leaves_the_first_alone() {
    let mut lab = Lab::new();
    lab.add();
    lab.set("prevResult", Value::Null);
    assert_eq!(lab.call("ADD").code(), 100);
    assert!(lab.is_routed());
}

#[test]
fn a_namespace_that_is_gone_is_code_3_and_needs_no_del() {
    for path in ["/run/netns/gone", "/etc/hostname"] {
        let (code, said) = refused(&Lab::new().with_env("CNI_NETNS", path));
        assert_eq!(code, 3);
        assert!(said.contains(&format!("CNI_NETNS={path}")), "{said}");
    }
}

#[test]
fn the_hosts_own_namespace_is_refused() {
    let mut lab = Lab::new();
    lab.set_env("CNI_NETNS", &lab.host.path());
    let (code, said) = refused(&lab);
    assert!(code == 4 && said.contains("CNI_NETNS") && said.contains("the host's own"), "{said}");
}

#[test]
fn a_namespace_of_another_kind_is_refused() {
    let (code, said) = refused(&Lab::new().with_env("CNI_NETNS", "/proc/self/ns/uts"));
    assert!(code == 4 && said.contains("cannot be used"), "{said}");
}

#[test]
fn the_interface_is_confirmed_over_the_connection_of_the_claim() {
    let lab = Lab::new();
    lab.call("ADD").ok();
    let path = "/v1/attachments/pods/c1/eth0";
    assert_eq!(lab.agent.log(), [format!("PUT {path}"), format!("POST {path}/confirm")]);
    let seen = lab.agent.seen();
    assert_eq!(seen[0].connection, seen[1].connection);
    assert_eq!(seen[1].body, json!({"uid": agent::UID}));
}

#[test]
fn an_interface_that_is_not_confirmed_is_taken_away_again() {
    for (reply, code) in [
        (Reply::Close, 11),
        (Reply::Silence, 11),
        (Reply::Json(404, agent::error("attachment-not-found", "gone")), 101),
        (Reply::Json(503, agent::error("controller-unreachable", "away")), 11),
        (Reply::Html, 104),
    ] {
        let lab = Lab::new().with("timeout", 1);
        lab.agent.reply("POST", reply.clone());
        assert_eq!(lab.call("ADD").code(), code, "{reply:?}");
        assert!(!lab.host.has(&host_ifname()) && !lab.container.has("eth0"), "{reply:?}");
        assert!(!lab.is_routed());
        assert_eq!(lab.agent.seen().len(), 2, "the addresses are left to DEL");
    }
}

#[test]
fn an_agent_that_answers_badly_each_gets_its_own_error() {
    let cases = [
        (Reply::Close, 11, "the connection to"),
        (Reply::Silence, 11, "did not answer within"),
        (Reply::Garbage("SSH-2.0-x\r\n\r\n"), 11, "broke"),
        (Reply::Html, 104, "<html>It works!</html>"),
        (Reply::Json(200, json!({"attachment": 7})), 104, "with what is not limpet's"),
        (Reply::Json(500, json!("oops")), 104, "status 500"),
    ];
    for (reply, code, told) in cases {
        let lab = Lab::new().with("timeout", 1);
        lab.agent.reply("PUT", reply.clone());
        let started = Instant::now();
        let answer = lab.call("ADD");
        assert_eq!(answer.code(), code, "{reply:?}");
        assert!(answer.said().contains(told), "{reply:?}: {}", answer.said());
        assert!(started.elapsed() < Duration::from_secs(4));
        assert!(!lab.host.has(&host_ifname()) && !lab.container.has("eth0"));
    }
}

#[test]
fn an_agent_of_another_version_that_names_the_interface_otherwise_is_refused() {
    let lab = Lab::new();
    lab.agent.change(json!({"host_ifname": "lc0"}));
    let answer = lab.call("ADD");
    assert_eq!(answer.code(), 104);
    assert!(answer.said().contains("their versions differ"));
    assert!(!lab.host.has("lc0") && !lab.container.has("eth0"));
}

#[test]
fn what_the_kernel_refuses_is_undone_and_not_confirmed() {
    let lab = Lab::new();
    // The host has no such address to send from.
    lab.agent.change(json!({"sources": ["192.0.2.99", null]}));
    let answer = lab.call("ADD");
    assert_eq!(answer.code(), 102);
    assert!(answer.said().contains("ip route replace 10.32.0.5/32 dev"), "{}", answer.said());
    assert!(!lab.host.has(&host_ifname()) && !lab.container.has("eth0"));
    assert_eq!(lab.agent.seen().len(), 1);
}

#[test]
fn an_interface_of_somebody_elses_in_the_way_is_left_alone() {
    let lab = Lab::new();
    lab.host.sh(&format!("ip link add {} type bridge", host_ifname()));
    let answer = lab.call("ADD");
    assert_eq!(answer.code(), 102);
    assert!(answer.said().contains("in the way"));
    assert!(!lab.container.has("eth0"));
    assert_eq!(lab.call("DEL").ok(), Value::Null);
    assert!(lab.host.has(&host_ifname()));
}

/// The queries with which DEL reached the agent.
fn dels(lab: &Lab) -> Vec<String> {
    let path = "DELETE /v1/attachments/pods/c1/eth0";
    lab.agent.log().iter().filter_map(|line| line.strip_prefix(path).map(str::to_owned)).collect()
}

#[test]
fn del_names_the_incarnation_that_the_interface_is_of() {
    let mut lab = Lab::new();
    lab.add();
    lab.call("DEL").ok();
    assert_eq!(dels(&lab), [format!("?uid={}", agent::UID)]);
}

#[test]
fn del_cuts_off_first_and_leaves_the_slow_part_to_the_agent() {
    let mut lab = Lab::new();
    lab.add();
    assert!(lab.is_routed());
    lab.call("DEL").ok();
    let link = &lab.host.json(&format!("link show {}", host_ifname()))[0];
    assert_eq!((&link["group"], &link["operstate"]), (&"4096".into(), &"DOWN".into()));
    assert!(!lab.is_routed());
    assert_eq!(lab.host.sh("ip neigh show nud permanent"), "");
    assert!(!lab.container.has("eth0"), "the name is free");
}

#[test]
fn the_same_name_can_be_added_again_at_once() {
    let mut lab = Lab::new();
    for _ in 0..3 {
        lab.set("prevResult", Value::Null);
        lab.add();
        assert!(lab.is_routed());
        lab.call("CHECK").ok();
        lab.call("DEL").ok();
    }
    // What the agent does in the background.
    lab.host.sh("ip link del group 4096");
    assert!(!lab.container.has("eth0"));
    lab.set("prevResult", Value::Null);
    lab.add();
}

#[test]
fn del_succeeds_however_often_and_with_whatever_is_missing() {
    let mut lab = Lab::new();
    let quiet = |lab: &Lab| {
        assert_eq!((lab.call("DEL").ok(), lab.call("DEL").ok()), (Value::Null, Value::Null));
    };
    quiet(&lab);
    lab.add();
    quiet(&lab);
    lab.set("prevResult", Value::Null);
    quiet(&lab);
    for netns in ["", "/run/netns/gone", "/etc/hostname"] {
        lab.set_env("CNI_NETNS", netns);
        quiet(&lab);
    }
    let lab = lab.without_env("CNI_NETNS").without_env("CNI_ARGS").without_env("CNI_PATH");
    quiet(&lab);
}

#[test]
fn del_finds_the_interface_when_the_namespace_is_not_named() {
    let mut lab = Lab::new();
    lab.add();
    lab.set_env("CNI_NETNS", "");
    lab.set("prevResult", Value::Null);
    lab.call("DEL").ok();
    assert!(!lab.is_routed());
    assert_eq!(dels(&lab), [format!("?uid={}", agent::UID)]);
}

#[test]
fn del_of_an_add_that_died_halfway_ends_what_there_is() {
    let mut lab = Lab::new();
    lab.add();
    // With nothing behind the last space: an empty alias.
    lab.host.sh(&format!("ip link set {} alias ", host_ifname()));
    lab.call("DEL").ok();
    assert_eq!(dels(&lab), [""]);
    assert!(!lab.is_routed());
}

#[test]
fn del_succeeds_while_the_agent_is_away_and_takes_the_interface_itself() {
    for reply in [None, Some(Reply::Close), Some(Reply::Silence), Some(Reply::Html)] {
        let mut lab = Lab::new().with("timeout", 1);
        lab.add();
        match reply.clone() {
            Some(reply) => lab.agent.reply("DELETE", reply),
            None => lab.agent.stop(),
        }
        let answer = lab.call("DEL");
        assert_eq!(answer.ok(), Value::Null, "{reply:?}");
        assert!(answer.stderr.contains("agent away"), "{reply:?}: {}", answer.stderr);
        assert!(!lab.host.has(&host_ifname()) && !lab.container.has("eth0"), "{reply:?}");
    }
}

#[test]
fn addresses_are_not_released_while_the_container_cannot_be_cut_off() {
    let mut lab = Lab::new();
    lab.add();
    let stdin = Value::from(lab.config.clone()).to_string();
    let powerless = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"];
    let answer = lab.call_as(&powerless, "DEL", stdin.as_bytes());
    assert_eq!(answer.code(), 102);
    assert!(answer.said().contains("ip link set dev if"), "{}", answer.said());
    assert!(answer.said().contains("Operation not permitted"), "{}", answer.said());
    assert!(lab.is_routed());
    assert_eq!(dels(&lab), Vec::<String>::new());
}

#[test]
fn del_leaves_an_agent_that_says_no_to_clean_up() {
    let mut lab = Lab::new();
    lab.add();
    lab.agent.reply("DELETE", Reply::Json(404, agent::error("attachment-not-found", "gone")));
    lab.call("DEL").ok();
    assert!(!lab.is_routed());
}

#[test]
fn del_works_with_a_configuration_that_add_would_refuse() {
    let prev = json!({"cniVersion": "7", "ips": "none"});
    for (field, value) in [
        ("cniVersion", json!("9.9.9")),
        ("cniVersion", Value::Null),
        ("of-tomorrow", json!(1)),
        ("ipam", json!({"type": "host-local"})),
        ("ipMasq", json!(true)),
        ("prevResult", prev),
        ("args", json!(7)),
        ("args", json!({"limpet": {"name": "a/b"}})),
        ("runtimeConfig", json!({"mac": 7, "ips": [7]})),
        ("timeout", json!("soon")),
        ("logLevel", json!(7)),
    ] {
        let mut lab = Lab::new();
        lab.add();
        let lab = lab.with(field, value.clone()).with_env("CNI_ARGS", "nonsense");
        assert_eq!(lab.call("DEL").ok(), Value::Null, "{field} {value}");
        assert!(!lab.is_routed());
        assert_eq!(dels(&lab).len(), 1);
    }
}

#[test]
fn check_without_an_attachment_is_a_failure_and_without_an_agent_none() {
    let mut lab = Lab::new();
    lab.add();
    lab.agent
        .reply("GET", Reply::Json(404, agent::error("attachment-not-found", "no such attachment")));
    assert_eq!(lab.call("CHECK").code(), 103);
    lab.agent.reply("GET", Reply::Json(503, agent::error("controller-unreachable", "away")));
    assert_eq!(lab.call("CHECK").code(), 11);
    lab.agent.stop();
    assert_eq!(lab.call("CHECK").code(), 11);
}

#[test]
fn check_succeeds_right_after_add_and_asks_for_prev_result() {
    for families in ["4", "6", "46"] {
        let mut lab = Lab::new();
        lab.agent.give(families);
        lab.add();
        assert_eq!(lab.call("CHECK").ok(), Value::Null);
        lab.set("prevResult", Value::Null);
        let answer = lab.call("CHECK");
        assert!(answer.code() == 7 && answer.said().contains("`prevResult`"));
    }
}

#[test]
fn check_allows_for_what_later_plugins_changed() {
    let mut lab = Lab::new().with("cniVersion", "1.1.0");
    let mut result = lab.add();
    lab.container.sh("ip link set eth0 mtu 1400");
    lab.container.sh("ip route replace default dev lo");
    lab.container.sh("ip addr add 198.51.100.9/24 dev lo");
    result["interfaces"][1]["mtu"] = 1400.into();
    result["routes"] = json!([{"dst": "::/0", "gw": "fe80::1"}]);
    result["interfaces"].as_array_mut().unwrap().push(json!({"name": "lo", "sandbox": "x"}));
    let other = json!({"address": "198.51.100.9/24", "interface": 2});
    result["ips"].as_array_mut().unwrap().push(other);
    lab.set("prevResult", result);
    lab.call("CHECK").ok();
}

#[test]
fn check_finds_an_mtu_that_the_overlay_does_not_carry_though_no_result_lists_it() {
    let mut lab = Lab::new();
    lab.add();
    lab.container.sh("ip link set eth0 mtu 1400");
    lab.call("CHECK").ok();
    lab.container.sh("ip link set eth0 mtu 1500");
    let answer = lab.call("CHECK");
    assert!(
        answer.code() == 103 && answer.said().contains("has MTU 1500, the overlay carries 1450")
    );
}

#[test]
fn gc_takes_both_spellings_and_speaks_for_one_network_and_runtime() {
    let entry = |container: &str| json!({"containerID": container, "ifname": "eth0"});
    let lab = Lab::new()
        .with("cniVersion", "1.1.0")
        .with("runtime", "cri")
        .with("cni.dev/valid-attachments", json!([entry("b"), entry("a"), entry("not/ours")]))
        .with("cni.dev/attachments", json!([entry("a"), entry("c")]));
    assert_eq!(lab.call("GC").ok(), Value::Null);
    let valid = ["a", "b", "c"].map(|container| json!({"container": container, "ifname": "eth0"}));
    assert_eq!(lab.agent.log(), ["POST /v1/gc"]);
    assert_eq!(
        lab.agent.seen()[0].body,
        json!({"network": "pods", "runtime": "cri", "valid": valid})
    );
}

#[test]
fn gc_never_takes_a_list_that_is_missing_for_an_empty_one() {
    let lab = Lab::new().with("cniVersion", "1.1.0");
    let answer = lab.call("GC");
    assert!(answer.code() == 7 && answer.said().contains("cni.dev/valid-attachments"));
    assert_nothing_happened(&lab);
    for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
        let lab = Lab::new().with("cniVersion", "1.1.0").with(key, json!([{"containerID": "a"}]));
        assert_eq!(lab.call("GC").code(), 7, "{key}: an entry that is not understood");
        assert_nothing_happened(&lab);
        let mut lab = lab;
        lab.config.insert(key.to_owned(), Value::Null);
        lab.call("GC").ok();
        assert_eq!(lab.agent.seen()[0].body["valid"], json!([]), "what Go sends for no entries");
    }
}

#[test]
fn gc_and_status_need_no_container() {
    for verb in ["GC", "STATUS"] {
        let mut lab =
            Lab::new().with("cniVersion", "1.1.0").with("cni.dev/valid-attachments", json!([]));
        lab.environment.clear();
        lab.call(verb).ok();
    }
}

#[test]
fn gc_is_to_be_tried_later_while_the_agent_is_away() {
    let lab = Lab::new().with("cniVersion", "1.1.0").with("cni.dev/valid-attachments", json!([]));
    lab.agent.stop();
    assert_eq!(lab.call("GC").code(), 11);
}

#[test]
fn status_without_an_agent_is_code_50() {
    for reply in [None, Some(Reply::Silence), Some(Reply::Html)] {
        let lab = Lab::new().with("cniVersion", "1.1.0").with("timeout", 1);
        match reply {
            Some(reply) => lab.agent.reply("GET", reply),
            None => lab.agent.stop(),
        }
        assert_eq!(lab.call("STATUS").code(), 50);
    }
}

#[test]
fn logs_go_to_standard_error_only() {
    let mut lab = Lab::new().with("logLevel", "debug");
    lab.add();
    let Answer { status, stdout, stderr } = lab.call("DEL");
    assert_eq!((status, stdout.as_str()), (0, ""));
    assert!(stderr.contains("detached"), "{stderr}");
}

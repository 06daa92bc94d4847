//! Edge: what ADD makes of a container, seen by `ip` and by packets.

mod support;

use serde_json::{Value, json};

use support::{Lab, agent, host_ifname};

#[test]
fn packets_pass_in_both_directions_as_soon_as_add_returns() {
    let mut lab = Lab::new();
    for family in ["-4", "-6"] {
        lab.host.sh(&format!("ip {family} rule add lookup 7601 pref 200"));
    }
    lab.add();
    for address in ["192.0.2.1", "2001:db8::1"] {
        assert!(lab.container.try_exec(&format!("ping -c 1 -W 1 {address}")), "{address}");
    }
    for address in ["10.32.0.5", "fd32::5"] {
        assert!(lab.host.try_exec(&format!("ping -c 1 -W 1 {address}")), "{address}");
    }
}

#[test]
fn the_container_has_its_addresses_alone_and_everything_by_the_host() {
    let mut lab = Lab::new();
    lab.add();
    let inside = &lab.container;
    let link = &inside.json("addr show dev eth0")[0];
    assert_eq!((&link["address"], &link["mtu"]), (&"02:4c:0a:20:00:05".into(), &1450.into()));
    let addresses: Vec<_> = link["addr_info"]
        .as_array()
        .unwrap()
        .iter()
        .map(|a| format!("{}/{}", a["local"].as_str().unwrap(), a["prefixlen"]))
        .collect();
    assert_eq!(addresses, ["10.32.0.5/32", "fd32::5/128"]);
    assert!(!inside.sh("ip -6 addr show dev eth0").contains("tentative"));
    assert_eq!(
        inside.sh("ip route show"),
        "default via 169.254.1.1 dev eth0 \n169.254.1.1 dev eth0 scope link \n"
    );
    let v6 = inside.sh("ip -6 route show dev eth0");
    assert!(v6.contains("default via fe80::1"), "{v6}");
    let neighbours = inside.sh("ip neigh show nud permanent");
    for gateway in ["169.254.1.1", "fe80::1"] {
        let entry = format!("{gateway} dev eth0 lladdr 02:4c:ff:ff:ff:ff");
        assert!(neighbours.contains(&entry), "{neighbours}");
    }
}

#[test]
fn the_host_has_a_route_and_a_neighbour_for_each_address_and_the_uid_in_the_alias() {
    let mut lab = Lab::new();
    lab.add();
    let (host, end) = (&lab.host, host_ifname());
    let link = &host.json(&format!("addr show dev {end}"))[0];
    assert_eq!(link["ifalias"], agent::UID);
    assert_eq!((&link["group"], &link["address"]), (&"4097".into(), &"02:4c:ff:ff:ff:ff".into()));
    assert_eq!(link["addr_info"], json!([]), "no address of its own");
    assert_eq!(
        host.sh("ip route show table 7601"),
        format!("10.32.0.5 dev {end} proto 76 scope link src 192.0.2.1 \n")
    );
    let v6 = host.sh("ip -6 route show table 7601");
    let start = format!("fd32::5 dev {end} proto 76 src 2001:db8::1");
    assert!(v6.starts_with(&start), "{v6}");
    let neighbours = host.sh("ip neigh show nud permanent");
    for address in ["10.32.0.5", "fd32::5"] {
        let entry = format!("{address} dev {end} lladdr 02:4c:0a:20:00:05 PERMANENT proto 76");
        assert!(neighbours.contains(&entry), "{neighbours}");
    }
    assert_eq!(host.sh("ip route show"), "", "nothing in the main table");
}

#[test]
fn forwarding_is_switched_on_for_the_interface_and_nowhere_else() {
    let mut lab = Lab::new();
    let all =
        ["ipv4/conf/all/forwarding", "ipv6/conf/all/forwarding", "ipv4/conf/default/forwarding"];
    let before = all.map(|setting| lab.host.sysctl(setting));
    lab.add();
    let end = host_ifname();
    assert_eq!(all.map(|setting| lab.host.sysctl(setting)), before);
    assert_eq!(lab.host.sysctl(&format!("ipv4/conf/{end}/forwarding")), "1");
    assert_eq!(lab.host.sysctl(&format!("ipv6/conf/{end}/force_forwarding")), "1");
}

#[test]
fn a_container_cannot_make_itself_the_hosts_router() {
    for families in ["4", "6", "46"] {
        let mut lab = Lab::new();
        lab.agent.give(families);
        lab.add();
        assert_eq!(lab.host.sysctl(&format!("ipv6/conf/{}/accept_ra", host_ifname())), "0");
    }
}

#[test]
fn ipv6_is_switched_on_where_new_interfaces_have_it_off() {
    let mut lab = Lab::new();
    for ns in [&lab.host, &lab.container] {
        let off = "tee /proc/sys/net/ipv6/conf/default/disable_ipv6";
        support::run_with(&format!("ip netns exec {} {off}", ns.0), b"1");
    }
    lab.add();
    lab.call("CHECK").ok();
    assert!(lab.container.sh("ip -6 addr show dev eth0").contains("fd32::5/128"));
}

#[test]
fn an_attachment_of_one_family_has_nothing_of_the_other() {
    for (families, absent) in [("4", "-6"), ("6", "-4")] {
        let mut lab = Lab::new();
        lab.agent.give(families);
        lab.add();
        lab.call("CHECK").ok();
        assert_eq!(lab.container.sh(&format!("ip {absent} addr show dev eth0")), "");
        assert!(!lab.host.sh(&format!("ip {absent} route show table all")).contains("table 7601"));
        lab.call("DEL").ok();
        assert!(!lab.is_routed());
    }
}

#[test]
fn a_host_without_an_address_of_the_family_names_no_source() {
    let mut lab = Lab::new();
    lab.agent.change(json!({"sources": [null, null]}));
    lab.add();
    assert!(!lab.host.sh("ip route show table 7601").contains("src"));
}

#[test]
fn what_the_user_asks_for_reaches_the_agent_whole() {
    let args = "IgnoreUnknown=1;K8S_POD_NAME=web-7f9;K8S_POD_NAMESPACE=shop;LIMPET_NAME=web-0;LIMPET_STICKY=1;LIMPET_POOL=gold;MAC=02:00:00:00:00:07;IP=fd32::9/64,10.32.0.9";
    let lab = Lab::new()
        .with("runtime", "cri")
        .with("args", json!({"limpet": {"name": "no", "namespace": "team", "sticky": false}}))
        .with(
            "runtimeConfig",
            json!({"ips": ["10.32.0.9/16", "fd32::9"], "mac": "02:00:00:00:00:07"}),
        )
        .with_env("CNI_ARGS", args);
    lab.call("ADD").ok();
    assert_eq!(
        lab.agent.wanted(),
        json!({
            "runtime": "cri",
            "netns": lab.container.path(),
            "namespace": "team",
            "name": "web-0",
            "pools": ["gold"],
            "addresses": ["10.32.0.9", "fd32::9"],
            "mac": "02:00:00:00:00:07",
            "sticky": true,
        })
    );
}

#[test]
fn without_a_name_none_is_invented() {
    let lab = Lab::new().without_env("CNI_ARGS");
    lab.call("ADD").ok();
    let wanted = lab.agent.wanted();
    assert_eq!((wanted.get("name"), &wanted["namespace"]), (None, &Value::from("_")));
}

#[test]
fn the_network_may_be_called_otherwise_than_the_configuration() {
    let lab = Lab::new().with("name", "My_Net.1").with("network", "pods");
    lab.call("ADD").ok();
    assert_eq!(lab.agent.log()[0], "PUT /v1/attachments/pods/c1/eth0");
}

#[test]
fn a_container_can_have_several_interfaces() {
    let mut lab = Lab::new();
    lab.add();
    lab.agent.give("4");
    let second = lab.with("prevResult", Value::Null).with_env("CNI_IFNAME", "net1");
    // The fake gives one address to everybody: the second interface takes the first one's route over.
    second.call("ADD").ok();
    assert!(second.container.has("eth0") && second.container.has("net1"));
    second.call("DEL").ok();
    assert!(second.container.has("eth0") && !second.container.has("net1"));
}

#[test]
fn many_containers_are_attached_at_once() {
    let labs: Vec<_> = (0..8).map(|_| Lab::new()).collect();
    let results: Vec<_> = std::thread::scope(|scope| {
        let calls: Vec<_> = labs.iter().map(|lab| scope.spawn(|| lab.call("ADD"))).collect();
        calls.into_iter().map(|call| call.join().unwrap()).collect()
    });
    for result in results {
        result.ok();
    }
}

//! Pure: listings of nft 1.0.6, recorded, and what they do to limpet's packets.

use super::super::packet::{Device, Fate, fate};
use super::*;

const CHAINS: &str = include_str!("recorded/nft-chains.json");
const FILTER: &str = include_str!("recorded/nft-filter.json");
const FIREWALLD: &str = include_str!("recorded/nft-firewalld.json");

fn packet() -> Packet {
    let device = |name: &str| Device { name: name.to_owned(), group: 4097 };
    let pools = vec!["10.32.0.0/16".parse().unwrap()];
    Packet {
        family: Family::V4,
        from: device("limpet1"),
        to: Some(device("lc0123456789a")),
        sources: pools.clone(),
        destinations: pools,
        port: None,
    }
}

fn vxlan(first: &str, last: &str) -> Packet {
    let from = Device { name: "eth0".to_owned(), group: 0 };
    let sources = vec![format!("{first}..{last}").parse().unwrap()];
    Packet { from, to: None, sources, destinations: Vec::new(), port: Some(4789), ..packet() }
}

#[test]
fn base_chains_are_found_and_those_of_iptables_known() {
    let chains = base_chains(CHAINS).unwrap();
    let names: Vec<_> =
        chains.iter().map(|chain| (chain.name.as_str(), chain.hook.as_str())).collect();
    let filter = [("input", "input"), ("forward", "forward")];
    let others = [("filter_FORWARD", "forward"), ("FORWARD", "forward")];
    assert_eq!(names, [filter, others].concat());
    let of_iptables: Vec<bool> = chains.iter().map(BaseChain::is_of_iptables).collect();
    assert_eq!(of_iptables, [false, false, false, true]);
    assert!(chains[3].is_for(Family::V4) && !chains[3].is_for(Family::V6));
    assert_eq!(base_chains("no listing"), None);
}

#[test]
fn a_policy_of_drop_is_met_by_what_no_rule_takes() {
    let filter = |packet: &Packet, chain| fate(&chains(FILTER, packet).unwrap(), chain);
    let by = "the policy of the chain forward".to_owned();
    assert_eq!(filter(&packet(), "forward"), Fate::Dropped { by, certain: true });
    assert_eq!(filter(&vxlan("192.0.2.1", "192.0.2.200"), "input"), Fate::Passes);
    let by = || "the policy of the chain input".to_owned();
    let some = filter(&vxlan("192.0.2.1", "198.51.100.1"), "input");
    assert_eq!(some, Fate::Dropped { by: by(), certain: false });
    let others = filter(&vxlan("198.51.100.1", "198.51.100.9"), "input");
    assert_eq!(others, Fate::Dropped { by: by(), certain: true });
}

#[test]
fn firewalld_rejects_what_is_in_no_zone_of_its_own() {
    let firewalld = |packet: &Packet| fate(&chains(FIREWALLD, packet).unwrap(), "filter_FORWARD");
    assert_eq!(firewalld(&packet()), Fate::Passes, "the source is in a trusted zone");
    let pools: Vec<Range> = vec!["198.18.0.0/16".parse().unwrap()];
    let other = Packet { sources: pools.clone(), destinations: pools, ..packet() };
    let Fate::Dropped { by, certain } = firewalld(&other) else { panic!("it is rejected") };
    assert!(by.contains("admin-prohibited"), "{by}");
    assert!(!certain, "one that is ICMP passes");
    let eth0 = Device { name: "eth0".to_owned(), group: 0 };
    assert_eq!(firewalld(&Packet { from: eth0, ..other }), Fate::Passes);
}

#[test]
fn what_is_no_listing_has_no_chains() {
    for text in ["", "{}", "[1]", "{\"nftables\": 1}", "{\"nftables\": [{\"rule\": {}}]}"] {
        assert_eq!(chains(text, &packet()), None, "{text}");
    }
}

#[test]
fn what_is_not_understood_is_not_called_a_drop_for_certain() {
    let with = |expression: &str| {
        let chain = r#"{"chain": {"name": "forward", "policy": "drop"}}"#;
        let rule = format!(r#"{{"rule": {{"chain": "forward", "expr": [{expression}]}}}}"#);
        let listing = format!(r#"{{"nftables": [{chain}, {rule}]}}"#);
        fate(&chains(&listing, &packet()).unwrap(), "forward")
    };
    for doubtful in [
        r#"{"xt": {"type": "match", "name": "devgroup"}}, {"accept": null}"#,
        r#"{"match": {"op": "==", "left": {"new": 1}, "right": 2}}, {"accept": null}"#,
        r#"{"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "@ours"}}, {"accept": null}"#,
        r#"{"vmap": {"key": {"meta": {"key": "iifname"}}, "data": "@zones"}}"#,
        r#"{"queue": null}"#,
        r#""of tomorrow", {"accept": null}"#,
    ] {
        assert!(matches!(with(doubtful), Fate::Dropped { certain: false, .. }), "{doubtful}");
    }
    let masked = |group: u32| {
        let left = r#"{"&": [{"meta": {"key": "oifgroup"}}, 4096]}"#;
        with(&format!(
            r#"{{"match": {{"op": "==", "left": {left}, "right": {group}}}}}, {{"accept": null}}"#
        ))
    };
    assert_eq!(masked(4096), Fate::Passes);
    assert_ne!(masked(8192), Fate::Passes);
}

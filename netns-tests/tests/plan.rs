//! `limpet-agent plan` says what an agent would do, and does nothing.
#![expect(clippy::unwrap_used, reason = "also what helps a test stops at the first surprise")]

use netns_tests::{Agent, Datacentre, Host, KernelWatch};

/// What `limpet-agent plan` prints, and whether it succeeded.
fn plan(agent: &Agent) -> (String, bool) {
    let output = agent.command().arg("plan").output().unwrap();
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    (text, output.status.success())
}

#[test]
fn a_plan_prints_the_commands_and_changes_nothing() {
    let dc = Datacentre::small();
    let db = dc.b.add("shop", "db-0");
    dc.settle_on(&db, &dc.b);

    // On a host that is as it should be there is nothing to do.
    let watch = KernelWatch::start(dc.a.host());
    let (text, succeeded) = plan(&dc.a);
    assert!(succeeded, "{text}");
    assert!(!text.contains("ip route"), "{text}");
    assert_eq!(watch.changes(), Vec::<String>::new());
}

#[test]
fn a_plan_for_a_host_with_nothing_on_it_lists_all_of_it() {
    let mut dc = Datacentre::small();
    dc.a.stop();
    let host = dc.a.host().clone();
    host.run("ip link del limpet1; ip route flush table 7601; ip route flush table 7602; ip nexthop flush; nft flush ruleset");
    let watch = KernelWatch::start(&host);
    let (text, succeeded) = plan(&dc.a);
    assert!(succeeded, "{text}");
    for part in [
        "ip link add",
        "vxlan",
        "bridge fdb",
        "ip neigh",
        "ip nexthop",
        "table 7601",
        "table 7602",
        "nft",
    ] {
        assert!(text.contains(part), "`{part}` is not in the plan:\n{text}");
    }
    assert_eq!(watch.changes(), Vec::<String>::new());
    assert!(host.try_sh("ip link show limpet1").is_err());
}

#[test]
fn the_planned_commands_make_what_the_agent_makes() {
    let mut dc = Datacentre::small();
    let state = |host: &Host| {
        let lines = host.sh(
            "ip -d link show limpet1 | grep -o 'vxlan id [0-9]* local [0-9.]*'; ip route show table 7601; ip route show table 7602; \
             ip -6 route show table 7601; ip -6 route show table 7602; ip neigh show dev limpet1; bridge fdb show dev limpet1; \
             ip nexthop show; ip rule show; ip -6 rule show",
        );
        let mut lines: Vec<String> = lines.lines().map(|line| line.trim().to_owned()).collect();
        lines.sort();
        lines
    };
    let made = state(dc.a.host());
    dc.a.stop();
    let host = dc.a.host().clone();
    host.run("ip link del limpet1; ip rule flush protocol 76; ip -6 rule flush protocol 76; ip route flush table 7601; \
              ip route flush table 7602; ip -6 route flush table 7601; ip -6 route flush table 7602; ip nexthop flush protocol 76");
    let output = dc.a.command().arg("plan").output().unwrap();
    let file = host.dir().join("plan.sh");
    std::fs::write(&file, output.stdout).unwrap();
    host.run(&format!("sh -e {}", file.display()));
    assert_eq!(state(&host), made);
}

//! Edge: what others do to a host is found, said and, where it was asked for, undone.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise, its helpers too")]

use std::time::Duration;

use netns_tests::{Agent, Datacentre, Pod, binary, wait_until};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(10);

/// What `limpet-agent check` says: its exit code, and its JSON.
fn check(agent: &Agent) -> (i32, Value) {
    let output = agent.command().args(["check", "--json"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = serde_json::from_str(&text);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().unwrap(), said.unwrap_or_else(|_| panic!("{text}{errors}")))
}

/// The conditions of a host that are no notes: code, severity, what they are about.
fn conditions(agent: &Agent) -> Vec<[String; 3]> {
    let (_, said) = check(agent);
    let found = said["health"]["conditions"].as_array().cloned().unwrap_or_default();
    let word = |found: &Value, key: &str| found[key].as_str().unwrap_or_default().to_owned();
    let all = found.iter().map(|found| ["code", "severity", "about"].map(|key| word(found, key)));
    all.filter(|[_, severity, _]| severity != "note").collect()
}

fn pings(from: &Pod, to: &Pod) -> bool {
    [to.v4(), to.v6()]
        .iter()
        .all(|address| from.container.try_sh(&format!("ping -c 1 -W 0.5 -q {address}")).is_ok())
}

/// Closes the chain FORWARD as Docker does, with the tools of one backend.
fn close(agent: &Agent, backend: &str) {
    for tool in ["iptables", "ip6tables"] {
        let tool = format!("{tool}-{backend}");
        agent.host().run(&format!(
            "{tool} -N DOCKER-USER; {tool} -A DOCKER-USER -j RETURN; {tool} -A FORWARD -j DOCKER-USER; \
             {tool} -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT; \
             {tool} -A FORWARD -i docker0 ! -o docker0 -j ACCEPT; {tool} -P FORWARD DROP"
        ));
    }
}

/// Limpet's rules in Docker's chain.
fn rules(agent: &Agent, tool: &str) -> usize {
    let listed = agent.host().sh(&format!("{tool} -S DOCKER-USER"));
    listed.lines().filter(|line| line.contains("limpet-forward-policy")).count()
}

fn a_closed_chain(backend: &str) {
    let mut dc = Datacentre::small();
    let (near, far) = (dc.a.add("shop", "near"), dc.b.add("shop", "far"));
    dc.settle_on(&near, &dc.a);
    dc.settle_on(&far, &dc.b);
    assert_eq!(check(&dc.b).0, 0, "{}", check(&dc.b).1);
    assert!(pings(&near, &far));

    close(&dc.b, backend);
    assert!(!pings(&near, &far), "it is closed");
    let about = |tool: &str| format!("{tool}-{backend} filter FORWARD");
    let broken = |tool: &str| ["forward-policy".to_owned(), "broken".to_owned(), about(tool)];
    assert_eq!(conditions(&dc.b), [broken("ip6tables"), broken("iptables")]);
    assert_eq!(check(&dc.b).0, 1);
    assert!(dc.b.logged().contains("forward-policy"), "{}", dc.b.logged());
    let mut ctl = dc.a.host().command(binary("limpetctl"));
    ctl.args(["--plain-http", "--controller", &dc.controller.url(), "doctor"]);
    let doctor = ctl.output().unwrap();
    let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(said.starts_with("BROKEN node-b forward-policy: "), "{said}");
    assert_eq!(doctor.status.code(), Some(1), "{said}");

    // Asked to, the agent sets its two rules, once.
    dc.b.stop();
    let flags = "--role node --mend forward-policy";
    let mut mending = Agent::new(dc.b.host(), &dc.controller.url(), flags).started();
    wait_until(LIMIT, "the overlay passes", || pings(&near, &far));
    assert_eq!(conditions(&mending), [[""; 3]; 0]);
    for tool in ["iptables", "ip6tables"] {
        let tool = format!("{tool}-{backend}");
        assert_eq!(rules(&mending, &tool), 2);
        // Somebody flushes the chain: the next look sets them again.
        mending.host().run(&format!("{tool} -F DOCKER-USER"));
        assert_eq!(conditions(&mending), [[""; 3]; 0]);
        assert_eq!(rules(&mending, &tool), 2);
    }
    assert!(pings(&near, &far));

    // Not asked to any more, it takes them away, and nothing else.
    mending.stop();
    mending = Agent::new(dc.b.host(), &dc.controller.url(), "--role node").started();
    wait_until(LIMIT, "limpet's rules are gone", || {
        rules(&mending, &format!("iptables-{backend}")) == 0
    });
    let jumps = mending.host().sh(&format!("iptables-{backend} -S FORWARD"));
    assert!(jumps.contains("-j DOCKER-USER"), "{jumps}");
}

#[test]
fn a_forward_policy_of_drop_is_said_and_mended_if_that_is_asked_for() {
    a_closed_chain("nft");
}

#[test]
fn one_of_the_old_iptables_is_too() {
    a_closed_chain("legacy");
}

#[test]
fn closed_chains_of_nftables_are_named_with_their_table() {
    let dc = Datacentre::small();
    let b = dc.b.host();
    b.run(
        "nft 'add table inet fw; add chain inet fw in { type filter hook input priority 0; policy drop; }; \
         add rule inet fw in tcp dport { 22, 7600 } accept; add rule inet fw in ct state established accept; \
         add rule inet fw in meta l4proto { icmp, ipv6-icmp } accept; \
         add chain inet fw onward { type filter hook forward priority 0; policy drop; }'",
    );
    let told = |code: &str, severity: &str, about: &str| [code, severity, about].map(str::to_owned);
    let fwd = told("forward-filter", "broken", "inet fw onward");
    let input = told("vxlan-port-filtered", "broken", "inet fw in");
    assert_eq!(conditions(&dc.b), [fwd.clone(), input]);
    b.run("nft add rule inet fw in ip saddr 192.0.2.0/24 udp dport 4789 accept");
    assert_eq!(conditions(&dc.b), [fwd]);
    b.run("nft add rule inet fw onward 'iifgroup & 0x1000 == 0x1000 accept'");
    b.run("nft add rule inet fw onward 'oifgroup & 0x1000 == 0x1000 accept'");
    assert_eq!(conditions(&dc.b), [[""; 3]; 0]);
    let over = dc.b.logged().matches("a condition of this host is over").count();
    assert_eq!(over, 2, "{}", dc.b.logged());
}

#[test]
fn another_vxlan_device_on_the_port_is_named() {
    let mut dc = Datacentre::small();
    let b = dc.b.host().clone();
    b.run("ip link add vx-1 type vxlan id 4097 dstport 4789 nolearning; ip link set vx-1 up");
    assert_eq!(conditions(&dc.b), [[""; 3]; 0], "the kernel tells them apart");
    b.run("ip link del vx-1; ip link add cilium_vxlan type vxlan external dstport 4789");
    assert!(b.try_sh("ip link set cilium_vxlan up").is_err(), "the port is limpet's");
    let taken = |severity: &str| ["vxlan-port-taken", severity, "cilium_vxlan"].map(str::to_owned);
    assert_eq!(conditions(&dc.b), [taken("risk")]);
    // One that is there first keeps limpet's down.
    dc.b.kill();
    b.run("ip link del limpet1; ip link set cilium_vxlan up");
    dc.b = Agent::new(&b, &dc.controller.url(), "--role node");
    let mut process = dc.b.command().spawn().unwrap();
    wait_until(LIMIT, "the port is told to be taken", || {
        let said = dc.b.command().args(["check", "--json"]).output().unwrap();
        let text = String::from_utf8_lossy(&said.stdout).into_owned();
        text.contains("\"vxlan-port-taken\"") && text.contains("\"broken\"")
    });
    process.kill().unwrap();
    process.wait().unwrap();
}

#[test]
fn who_undoes_the_same_again_and_again_is_noticed() {
    let dc = Datacentre::small();
    let b = dc.b.host();
    let setting = "net.ipv4.conf.limpet1.forwarding";
    for _ in 0..3 {
        b.run(&format!("sysctl -qw {setting}=0"));
        wait_until(Duration::from_secs(40), "it is put back", || {
            b.sh(&format!("sysctl -n {setting}")).trim() == "1"
        });
    }
    let found = conditions(&dc.b);
    let [code, _, about] = found.first().unwrap();
    assert_eq!(
        (code.as_str(), about.contains("limpet1/forwarding")),
        ("contested", true),
        "{found:?}"
    );
    let (code, said) = check(&dc.b);
    assert_eq!(code, 1);
    assert_eq!(said["health"]["drift"][0]["kind"], "setting", "{said}");
}

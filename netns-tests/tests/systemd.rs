//! The shipped units under a real systemd as process 1.

use std::net::IpAddr;
use std::time::Duration;

use netns_tests::{Agent, Fabric, Flow, Host, Pod, Site, Unit, sh, wait_until};

const ADDRESSES: [&str; 2] = ["192.0.2.3/24", "2001:db8::3/64"];

/// Pings of both families from a container on another host to one on this.
fn flows(from: &Pod, to: &Pod) -> [Flow; 2] {
    let target = to.v4();
    wait_until(Duration::from_secs(10), "the way is known", || pings(from, target));
    [to.v4(), to.v6()].map(|address| Flow::start(from.container.command("ping"), address))
}

fn pings(from: &Pod, address: IpAddr) -> bool {
    from.container.try_sh(&format!("ping -c 1 -W 1 {address}")).is_ok()
}

fn nothing_lost(flows: [Flow; 2]) {
    for flow in flows {
        let tally = flow.end();
        assert!(tally.sent > 20 && tally.lost() == 0, "{tally:?}");
    }
}

#[test]
fn whatever_ends_the_agent_it_is_back_and_no_packet_is_lost() {
    let site = Site::new();
    site.unit.drop_in("WatchdogSec=1");
    let site = site.boot();
    let (web, db) = (site.agent.add("shop", "web-0"), site.dc.b.add("shop", "db-0"));
    let flows = flows(&db, &web);
    let boot = site.host.sh("cat /run/limpet/boot-id");

    site.unit.signal("KILL");
    site.unit.wait_restarts(1);
    // A frozen agent cannot say that it turns.
    site.unit.signal("STOP");
    site.unit.wait_restarts(2);
    assert!(site.unit.journal().contains("Watchdog timeout"), "{}", site.unit.journal());
    site.unit.replace_program();
    site.unit.systemctl("restart");
    site.unit.systemctl("stop");
    let stopped = site
        .host
        .sh("ip -d link show type vxlan; ip route show table 7601; nft list table inet limpet");
    site.host.run("sleep 0.3");
    assert!(
        stopped.contains("limpet1") && stopped.contains("dev lc") && stopped.contains("chain"),
        "{stopped}"
    );
    site.unit.systemctl("start");

    nothing_lost(flows);
    let journal = site.unit.journal();
    for denied in ["ERROR", "denied", "not permitted", "Read-only"] {
        assert!(!journal.contains(denied), "the unit's restrictions are in its way: {journal}");
    }
    assert_eq!(site.host.sh("cat /run/limpet/boot-id"), boot, "it is the same boot");
    wait_until(Duration::from_secs(5), "the status says how things stand", || {
        let status = site.unit.property("StatusText");
        status.contains("joined, ") && status.contains("1 attachment, the kernel is right")
    });
    // What is made and unmade after the agent's start it sees, and holds nothing of it.
    let end = Agent::host_end(&web);
    web.container.delete();
    wait_until(Duration::from_secs(5), "the container's interface went with its namespace", || {
        site.host.try_sh(&format!("ip link show {end}")).is_err()
    });
    assert_eq!(site.agent.del(&web).code, 0);
}

/// What stands for a container runtime: it notes what is there when it starts.
const RUNTIME: &str = "[Unit]\nAfter=network.target\n[Service]\nType=oneshot\nRemainAfterExit=yes\n\
    ExecStart=/bin/sh -c 'ip -br link show type vxlan > /run/seen; nft list tables >> /run/seen; \
    ls /run/limpet >> /run/seen'\n[Install]\nWantedBy=multi-user.target\n";

fn seen_by(runtime: &Unit, host: &Host) -> String {
    runtime.wait_active();
    host.sh("cat /run/seen")
}

#[test]
fn after_a_reboot_the_runtime_starts_once_the_host_has_joined_and_names_have_their_addresses() {
    let site = Site::new();
    let runtime = Unit::own(&site.host, "containerd", RUNTIME);
    let site = site.boot();
    let (web, db) = (site.agent.add("shop", "web-0"), site.dc.b.add("shop", "db-0"));
    let (before, boot) = (web.addresses(), site.host.sh("cat /run/limpet/boot-id"));
    let all = ["limpet1", "table inet limpet", "agent.sock"];
    let seen = seen_by(&runtime, &site.host);
    assert!(all.iter().all(|part| seen.contains(part)), "{seen}");

    site.reboot();
    let seen = seen_by(&runtime, &site.host);
    assert!(all.iter().all(|part| seen.contains(part)), "{seen}");
    assert_ne!(site.host.sh("cat /run/limpet/boot-id"), boot, "another boot");
    let web = site.agent.add("shop", "web-0");
    assert_eq!(web.addresses(), before);
    wait_until(Duration::from_secs(10), "it is reached", || pings(&db, web.v4()));
    assert!(pings(&db, web.v6()));
    let after = site.host.sh("systemctl list-dependencies --after --plain containerd kubelet crio");
    assert!(after.contains("limpet-agent.service"), "{after}");
}

#[test]
fn a_host_that_reboots_without_its_controller_is_ready_by_what_it_was_told_before() {
    let site = Site::new();
    let runtime = Unit::own(&site.host, "containerd", RUNTIME);
    let mut site = site.boot();
    let known = "ip route show table 7601";
    wait_until(Duration::from_secs(10), "what it was told is on disk", || {
        site.host.try_sh("test -s /var/lib/limpet-agent/snapshot").is_ok()
            && site.host.sh(known).contains("unreachable")
    });
    site.dc.controller.kill();
    site.reboot();
    let seen = seen_by(&runtime, &site.host);
    assert!(seen.contains("limpet1") && seen.contains("table inet limpet"), "{seen}");
    assert!(site.host.sh(known).contains("unreachable"));
    let journal = site.unit.journal();
    assert!(
        !journal.contains("ready, with the kernel as it was"),
        "it did not wait in vain: {journal}"
    );
    assert!(site.unit.property("StatusText").contains("no new containers: "));
    site.dc.controller.resume();
    wait_until(Duration::from_secs(30), "it has joined", || {
        site.unit.property("StatusText").starts_with("joined, ")
    });
}

#[test]
fn a_host_that_never_heard_of_its_controller_boots_all_the_same_and_says_why() {
    let fabric = Fabric::new("underlay");
    let host = Host::with_systemd("node-s");
    fabric.join(&host, "eth0", &ADDRESSES);
    let unit = Unit::install(&host, "limpet-agent", &["LIMPET_CONTROLLER=http://192.0.2.200:7600"]);
    let runtime = Unit::own(&host, "containerd", RUNTIME);
    host.boot();
    wait_until(Duration::from_secs(10), "the status says why", || {
        unit.property("StatusText").contains("no new containers: ")
    });
    assert_eq!(unit.property("ActiveState"), "activating", "what waits for it still waits");
    let seen = seen_by(&runtime, &host);
    assert!(seen.contains("agent.sock") && !seen.contains("limpet1"), "{seen}");
    assert_eq!(unit.property("ActiveState"), "active");
    assert!(unit.property("StatusText").contains("192.0.2.200:7600"));
    assert!(unit.journal().contains("ready, with the kernel as it was"), "{}", unit.journal());
}

#[test]
fn a_controller_that_is_killed_or_frozen_is_back_with_all_that_it_had() {
    let fabric = Fabric::new("underlay");
    let host = Host::with_systemd("ctl");
    let plug = || fabric.join(&host, "eth0", &["192.0.2.200/24"]);
    plug();
    let unit = Unit::install(&host, "limpet-controller", &["LIMPET_LISTEN=192.0.2.200:7600"]);
    unit.drop_in("WatchdogSec=1");
    let ctl = netns_tests::binary("limpetctl");
    let ctl = format!("{} --plain-http --controller http://192.0.2.200:7600", ctl.display());
    let networks = || host.try_sh(&format!("{ctl} network")).unwrap_or_default();
    host.boot();
    unit.wait_active();
    host.run(&format!("{ctl} network create pods --vni 100"));
    unit.signal("KILL");
    unit.wait_restarts(1);
    assert!(networks().contains("pods"));
    unit.signal("STOP");
    unit.wait_restarts(2);
    assert!(unit.journal().contains("Watchdog timeout"), "{}", unit.journal());
    assert!(networks().contains("pods"));
    wait_until(Duration::from_secs(5), "the status says how things stand", || {
        unit.property("StatusText").starts_with("serving at 192.0.2.200:7600, revision ")
    });
    host.reboot_in_order();
    plug();
    host.boot();
    unit.wait_active();
    assert!(networks().contains("pods"));
    assert_ne!(
        host.sh("stat -c %u /var/lib/private/limpet-controller"),
        "0",
        "it is nobody special"
    );
}

#[test]
fn the_units_are_as_closed_as_the_manual_says() {
    let manual = include_str!("../../docs/operations.md");
    for (unit, most) in [("limpet-agent", 3.1), ("limpet-controller", 1.2)] {
        let file = format!("{}/../examples/systemd/{unit}.service", env!("CARGO_MANIFEST_DIR"));
        let said = sh(&format!("systemd-analyze security --no-pager --offline=true {file}"));
        let level = said.lines().find_map(|line| line.split("exposure level for ").nth(1));
        let level = level.and_then(|rest| rest.split_whitespace().nth(1));
        let level: f64 = level.and_then(|number| number.parse().ok()).expect("a number");
        assert!(level <= most, "{unit}: {level}\n{said}");
        assert!(manual.contains(&format!("`{unit}.service` {most}")), "{unit} {most}");
    }
}

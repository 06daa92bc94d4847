//! The harness itself, with `ip` alone: what the other tests take for granted.

use std::time::Duration;

use netns_tests::{Container, Fabric, Flow, Host, KernelWatch, reaches, seen_as, wait_until};

#[test]
fn hosts_on_one_fabric_see_each_others_addresses_and_no_other_host() {
    let (a, b) = (Host::new("a"), Host::new("b"));
    let _fabric = Fabric::of(
        "fab",
        &[(&a, &["192.0.2.1/24", "2001:db8::1/64"]), (&b, &["192.0.2.2/24", "2001:db8::2/64"])],
    );
    for (from, to) in [("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2")] {
        let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
        assert_eq!(seen_as(&a.netns(), &b.netns(), to), Ok(from));
        assert!(reaches(&b.netns(), to, &a.netns(), from));
        assert!(!a.pings("192.0.2.3".parse().unwrap(), 1));
    }
}

#[test]
fn a_flow_counts_what_a_cut_loses() {
    let (a, b) = (Host::new("a"), Host::new("b"));
    let _fabric = Fabric::of("fab", &[(&a, &["192.0.2.1/24"]), (&b, &["192.0.2.2/24"])]);
    let target = "192.0.2.2".parse().unwrap();
    wait_until(Duration::from_secs(5), "the fabric forwards", || a.pings(target, 1));

    let flow = Flow::start(a.command("ping"), target);
    b.run("sleep 0.3");
    assert_eq!(flow.end().lost(), 0);

    let flow = Flow::start(a.command("ping"), target);
    b.run("sleep 0.2; ip link set eth0 down; sleep 0.3; ip link set eth0 up; sleep 0.2");
    let tally = flow.end();
    assert!(tally.lost() > 5 && tally.answered > 0, "{tally:?}");
}

#[test]
fn a_watch_sees_every_change_and_none_where_there_is_none() {
    let host = Host::new("a");
    let watch = KernelWatch::start(&host);
    assert_eq!(watch.changes(), Vec::<String>::new());
    host.run("ip route add unreachable 192.0.2.0/24 table 7601; nft add table inet other");
    let changes = watch.changes().join("\n");
    assert!(changes.contains("unreachable 192.0.2.0/24"), "{changes}");
    assert!(changes.contains("add table inet other"), "{changes}");
}

#[test]
fn a_container_starts_with_loopback_alone() {
    let container = Container::new("web-0");
    let links = container.sh("ip -o link | wc -l");
    assert_eq!(links, "1");
}

#[test]
fn a_machine_keeps_its_disk_over_a_reboot_and_nothing_else() {
    let machine = Host::machine("m");
    machine
        .run("echo kept > /var/lib/limpet-agent/x; echo kept > /etc/limpet-x; echo lost > /run/x");
    machine.run("ip link add d0 type bridge; sleep 1000 > /dev/null 2>&1 &");
    machine.reboot();
    assert_eq!(machine.sh("cat /var/lib/limpet-agent/x /etc/limpet-x"), "kept\nkept");
    assert!(machine.try_sh("cat /run/x").is_err());
    assert!(machine.try_sh("ip link show d0").is_err());
    assert!(!machine.sh("ps ax").contains("sleep 1000"));
    assert!(!std::path::Path::new("/etc/limpet-x").exists(), "the disk of the machine is its own");
}

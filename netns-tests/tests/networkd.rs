//! A real systemd-networkd beside the agent: what it does to what is not its own, and what the shipped files do about that.

use std::fs;
use std::time::Duration;

use netns_tests::{Flow, KernelWatch, Pod, Site, wait_until};

/// What manages the underlay's device. Its addresses are there already: networkd 252 sets those that it is to set itself
/// over and over on Linux 6.18.
const UNDERLAY: &str = "[Match]\nName=eth0\n[Network]\nKeepConfiguration=yes\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n";

/// One that is too wide, as many hosts have one.
const ALL: &str = "[Match]\nName=*\n[Network]\nDHCP=no\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n";

/// A site whose one host runs systemd-networkd, with or without limpet's files; a container there, and one elsewhere.
fn site(shipped: bool) -> (Site, Pod, Pod) {
    let site = Site::new();
    site.unit.write("/etc/systemd/network/20-underlay.network", UNDERLAY);
    site.unit.write("/etc/systemd/network/90-all.network", ALL);
    if shipped {
        for (file, dir) in [
            ("networkd.conf.d/limpet.conf", "networkd.conf.d"),
            ("network/10-limpet.network", "network"),
            ("network/10-limpet.link", "network"),
        ] {
            let from = format!("{}/../examples/systemd/{file}", env!("CARGO_MANIFEST_DIR"));
            site.host.run(&format!("install -D -m 644 -t /etc/systemd/{dir} {from}"));
        }
    }
    site.host.run("rm /etc/systemd/system/systemd-networkd.service");
    let site = site.boot();
    let (web, db) = (site.agent.add("shop", "web-0"), site.dc.b.add("shop", "db-0"));
    wait_until(Duration::from_secs(10), "the way is known", || talks(&db, &web));
    (site, web, db)
}

fn talks(from: &Pod, to: &Pod) -> bool {
    to.addresses().iter().all(|at| from.container.try_sh(&format!("ping -c 1 -W 1 {at}")).is_ok())
}

/// The changes of what is limpet's.
fn ours(watch: &KernelWatch) -> Vec<String> {
    let marks = ["limpet1", " lc", "table 760", "lookup 760", "proto 76", "protocol 76"];
    let mut changes = watch.changes();
    changes.retain(|line| marks.iter().any(|mark| line.contains(mark)));
    changes
}

#[test]
fn with_the_shipped_files_networkd_changes_nothing_and_loses_nothing() {
    let (site, web, db) = site(true);
    let watch = KernelWatch::start(&site.host);
    let flows = [web.v4(), web.v6()].map(|at| Flow::start(db.container.command("ping"), at));
    site.host
        .run("systemctl start systemd-networkd && networkctl reconfigure eth0 lo && sleep 0.5");
    site.host.run("systemctl restart systemd-networkd && networkctl reload && sleep 0.5");
    for flow in flows {
        let tally = flow.end();
        assert!(tally.sent > 20 && tally.lost() == 0, "{tally:?}");
    }
    assert_eq!(ours(&watch), Vec::<String>::new());
    let links = site.host.sh("networkctl list --no-pager --no-legend");
    let managed =
        |name: &str| links.lines().any(|line| line.contains(name) && !line.contains("unmanaged"));
    assert!(managed("eth0") && !managed("limpet1") && !managed(" lc"), "{links}");
}

#[test]
fn without_them_it_takes_limpets_routes_and_rules_and_the_agent_puts_them_back() {
    let (site, web, db) = site(false);
    let watch = KernelWatch::start(&site.host);
    site.host.run("systemctl start systemd-networkd && networkctl reconfigure eth0 limpet1");
    wait_until(Duration::from_secs(10), "it has taken something", || {
        ours(&watch).iter().any(|line| line.contains("Deleted"))
    });
    wait_until(Duration::from_secs(10), "the agent has put it back", || {
        talks(&db, &web) && site.host.sh("ip rule show").contains("lookup 7601")
    });
}

#[test]
fn the_files_name_limpets_devices_and_no_others() {
    let read = |file: &str| {
        let path = format!("{}/../examples/systemd/{file}", env!("CARGO_MANIFEST_DIR"));
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
    };
    let names = |file: &str, key: &str| {
        let text = read(file);
        let line = text.lines().find_map(|line| line.strip_prefix(key).map(str::to_owned));
        line.unwrap_or_else(|| panic!("{file} has no {key}"))
    };
    let devices = "limpet[0-9]* lc??????????? lb???????????";
    assert_eq!(names("network/10-limpet.network", "Name="), devices);
    assert_eq!(names("network/10-limpet.link", "OriginalName="), devices);
    let manager = names("NetworkManager/limpet.conf", "unmanaged-devices=");
    assert_eq!(manager, "interface-name:limpet*;interface-name:lc*;interface-name:lb???????????");
}

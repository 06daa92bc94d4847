//! Who reaches whom: every direction, both families, and no NAT on the way.

use std::time::Duration;

use netns_tests::{Datacentre, Host, Place, Pod, Process, seen_as, unique, wait_until};

/// The directions of one family. Each place is named with the address that others see it by.
fn directions(dc: &Datacentre, pods: [&Pod; 3], v6: bool) -> Vec<(Place, Place)> {
    let family = |v4: &'static str, other: &'static str| if v6 { other } else { v4 };
    let [web0, web1, db0] = pods.map(|pod| Place::pod(pod, v6));
    let a = Place::host(dc.a.host(), family("192.0.2.1", "2001:db8::1"));
    let b = Place::host(dc.b.host(), family("192.0.2.2", "2001:db8::2"));
    let metal = Place::host(dc.metal_host(), family("192.0.2.50", "2001:db8::50"));
    let gateway = Place::host(dc.gateway_host(), family("192.0.2.9", "2001:db8::9"));
    let plain = Place::host(dc.plain_host(), family("198.51.100.77", "2001:db8:e::77"));
    let pairs = [
        (&web0, &web1),
        (&web0, &db0),
        (&db0, &web0),
        (&web0, &a),
        (&a, &web0),
        (&web0, &b),
        (&b, &web0),
        (&web0, &metal),
        (&metal, &web0),
        (&web0, &gateway),
        (&gateway, &db0),
        (&web0, &plain),
        (&plain, &db0),
    ];
    pairs.map(|(from, to)| (from.clone(), to.clone())).to_vec()
}

#[test]
fn all_26_directions_work_and_every_source_is_the_senders_own() {
    let dc = Datacentre::full();
    let (web0, web1, db0) =
        (dc.a.add("shop", "web-0"), dc.a.add("shop", "web-1"), dc.b.add("shop", "db-0"));
    dc.settle_on(&db0, &dc.b);
    let mut wrong = Vec::new();
    for v6 in [false, true] {
        for (from, to) in directions(&dc, [&web0, &web1, &db0], v6) {
            let seen = seen_as(&from.netns, &to.netns, to.address);
            if seen != Ok(from.address) {
                wrong.push(format!(
                    "{} ({}) to {} ({}): {seen:?}",
                    from.name, from.address, to.name, to.address
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of 26:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn hosts_reach_each_other_as_before_they_joined() {
    let dc = Datacentre::small();
    let devices = |host: &netns_tests::Host, target: &str| {
        let route = host.json(&format!("ip -j route get {target}"));
        route[0]["dev"].as_str().unwrap().to_owned()
    };
    for target in ["192.0.2.2", "2001:db8::2"] {
        assert_eq!(
            devices(dc.a.host(), target),
            "eth0",
            "hosts' own traffic does not enter the tunnel"
        );
    }
    let main = dc.a.host().json("ip -j route show table main");
    assert!(
        main.iter().all(|route| route["dev"] == "eth0"),
        "nothing of limpet's is in table main: {main:?}"
    );
}

#[test]
fn a_large_packet_crosses_the_tunnel_whole() {
    let dc = Datacentre::small();
    let (web, db) = (dc.a.add("shop", "web-0"), dc.b.add("shop", "db-0"));
    dc.settle_on(&db, &dc.b);
    // 1450 bytes of overlay MTU: less 28 for IPv4 and ICMP, less 48 for IPv6 and ICMPv6.
    let _ = web.container.sh(&format!("ping -c 1 -W 1 -M do -s 1422 {}", db.v4()));
    let _ = web.container.sh(&format!("ping -c 1 -W 1 -M do -s 1402 {}", db.v6()));
    let larger = web.container.try_sh(&format!("ping -c 1 -W 1 -M do -s 1423 {}", db.v4()));
    assert!(larger.is_err(), "a packet above the MTU is refused where it is made");
}

/// Starts to write down what crosses a device, one line a packet.
fn capture(host: &Host, device: &str, what: &str) -> Process {
    let mut command = host.command("tcpdump");
    command.args(["-i", device, "-nn", "-l", "--immediate-mode", "-Z", "root", what]);
    let capture = Process::start(command, &host.dir().join(unique("capture")));
    wait_until(Duration::from_secs(5), "tcpdump listens", || {
        capture.output().contains("listening on")
    });
    capture
}

/// The packets of a capture: everything but what tcpdump says of itself.
fn packets(capture: &Process) -> Vec<String> {
    let text = capture.output();
    text.lines()
        .filter(|line| line.contains(" > ") || line.contains("ARP"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn nothing_is_asked_for_on_the_overlay_and_everything_is_vxlan_on_the_underlay() {
    let dc = Datacentre::small();
    let (a, b) = (dc.a.host(), dc.b.host());
    let asked = capture(b, "limpet1", "arp or (icmp6 and ip6[40] >= 133 and ip6[40] <= 137)");
    let carried = capture(b, "eth0", "udp port 4789");
    let naked = capture(b, "eth0", "net 10.32.0.0/16 or net fd32::/64");
    let (web, db) = (dc.a.add("shop", "web-0"), dc.b.add("shop", "db-0"));
    dc.settle_on(&db, &dc.b);
    for target in [db.v4(), db.v6()] {
        let _ = web.container.sh(&format!("ping -c 3 -i 0.05 -W 1 {target}"));
        assert!(a.pings(target, 2));
    }
    // An address that nobody has is refused by the host that would have it, and asked for nowhere.
    let _ =
        web.container.try_sh("ping -c 2 -i 0.05 -W 0.2 10.32.0.99; ping -c 2 -W 0.2 10.32.99.1");
    wait_until(Duration::from_secs(5), "the tunnel's packets are seen", || {
        packets(&carried).len() > 10
    });
    assert_eq!(packets(&asked), Vec::<String>::new());
    assert_eq!(packets(&naked), Vec::<String>::new());
}

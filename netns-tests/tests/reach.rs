//! Who reaches whom: every direction, both families, and no NAT on the way.

use netns_tests::{Datacentre, Place, Pod, seen_as};

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
    // 1450 bytes of overlay MTU: less 28 for IPv4 and ICMP, less 48 for IPv6 and ICMPv6.
    let _ = web.container.sh(&format!("ping -c 1 -W 1 -M do -s 1422 {}", db.v4()));
    let _ = web.container.sh(&format!("ping -c 1 -W 1 -M do -s 1402 {}", db.v6()));
    let larger = web.container.try_sh(&format!("ping -c 1 -W 1 -M do -s 1423 {}", db.v4()));
    assert!(larger.is_err(), "a packet above the MTU is refused where it is made");
}

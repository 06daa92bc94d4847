//! Edge: beside kube-proxy: services are translated by rules as kube-proxy makes them, and what they lead to is in the
//! overlay, on a host's own address, or the client itself.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise, its helpers too")]

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::thread;
use std::time::Duration;

use netns_tests::{Datacentre, Host, POOLS, Pod, inside, wait_until};

const LIMIT: Duration = Duration::from_secs(5);

/// The port of every backend.
const PORT: u16 = 8080;

/// The port of hosts by which the first service is reached from outside.
const NODE_PORT: u16 = 30080;

/// One family's addresses, and the program for its rules.
struct Family {
    tool: &'static str,
    pool: &'static str,
    /// Of a service with a backend in the overlay, and of one whose backend is on a host's own address.
    services: [&'static str; 2],
    /// Of the hosts `node-a` and `node-b`.
    hosts: [&'static str; 2],
    of: fn(&Pod) -> IpAddr,
}

const FAMILIES: [Family; 2] = [
    Family {
        tool: "iptables-nft",
        pool: POOLS[0],
        services: ["10.96.0.10", "10.96.0.11"],
        hosts: ["192.0.2.1", "192.0.2.2"],
        of: Pod::v4,
    },
    Family {
        tool: "ip6tables-nft",
        pool: POOLS[1],
        services: ["fd96::10", "fd96::11"],
        hosts: ["2001:db8::1", "2001:db8::2"],
        of: Pod::v6,
    },
];

/// Sets the rules that kube-proxy sets for the two services.
fn kube_proxy(host: &Host, family: &Family, backends: [IpAddr; 2]) {
    let Family { tool, pool, services, .. } = family;
    let nat = |rule: &str| host.run(&format!("{tool} -t nat {rule}"));
    for chain in ["KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-MARK-MASQ"] {
        nat(&format!("-N {chain}"));
    }
    nat("-A PREROUTING -j KUBE-SERVICES");
    nat("-A OUTPUT -j KUBE-SERVICES");
    nat("-A POSTROUTING -j KUBE-POSTROUTING");
    nat("-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000");
    nat("-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN");
    nat("-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000");
    nat("-A KUBE-POSTROUTING -j MASQUERADE --random-fully");
    for (n, (service, backend)) in services.iter().zip(backends).enumerate() {
        let (svc, sep) = (format!("KUBE-SVC-{n}"), format!("KUBE-SEP-{n}"));
        nat(&format!("-N {svc}"));
        nat(&format!("-N {sep}"));
        nat(&format!("-A KUBE-SERVICES -d {service} -p tcp --dport 80 -j {svc}"));
        nat(&format!("-A {svc} ! -s {pool} -d {service} -p tcp --dport 80 -j KUBE-MARK-MASQ"));
        nat(&format!("-A {svc} -j {sep}"));
        nat(&format!("-A {sep} -s {backend} -j KUBE-MARK-MASQ"));
        let to = SocketAddr::new(backend, PORT);
        nat(&format!("-A {sep} -p tcp -j DNAT --to-destination {to}"));
    }
    nat("-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS");
    nat(&format!("-A KUBE-NODEPORTS -p tcp --dport {NODE_PORT} -j KUBE-MARK-MASQ"));
    nat(&format!("-A KUBE-NODEPORTS -p tcp --dport {NODE_PORT} -j KUBE-SVC-0"));
    let filter = |rule: &str| host.run(&format!("{tool} {rule}"));
    filter("-N KUBE-FORWARD");
    filter("-A FORWARD -j KUBE-FORWARD");
    filter("-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP");
    filter("-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT");
    filter("-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT");
}

/// Connects to `service` from the namespace `from`; a byte goes each way. Returns whom the backend, which listens at
/// `at` in the namespace `to`, saw.
fn seen(
    from: &Path,
    service: SocketAddr,
    (to, at): (&Path, IpAddr),
) -> Result<IpAddr, std::io::Error> {
    let listener = inside(to, || TcpListener::bind(SocketAddr::new(at, PORT)))?;
    thread::scope(|scope| {
        let asking = scope.spawn(|| {
            inside(from, || {
                let mut stream = TcpStream::connect_timeout(&service, LIMIT)?;
                stream.set_read_timeout(Some(LIMIT))?;
                stream.write_all(b"?")?;
                stream.read_exact(&mut [0])
            })
        });
        listener.set_nonblocking(true)?;
        let mut accepted = None;
        wait_until(LIMIT * 2, &format!("{service} leads to {at}"), || {
            accepted = listener.accept().ok();
            accepted.is_some() || asking.is_finished()
        });
        if let Some((mut stream, peer)) = accepted {
            stream.set_nonblocking(false)?;
            stream.set_read_timeout(Some(LIMIT))?;
            stream.read_exact(&mut [0])?;
            stream.write_all(b"!")?;
            asking.join().unwrap()?;
            return Ok(peer.ip());
        }
        asking.join().unwrap()?;
        Err(std::io::Error::other("nobody was seen"))
    })
}

#[test]
fn services_lead_to_pods_and_hosts_with_the_sources_that_kube_proxy_means() {
    let dc = Datacentre::small();
    let (client, backend) = (dc.a.add("shop", "client"), dc.b.add("shop", "backend"));
    dc.settle_on(&client, &dc.a);
    dc.settle_on(&backend, &dc.b);
    // The machine that asks by hosts' ports has not joined.
    let stranger = Host::new("stranger");
    dc.underlay.join(&stranger, "eth0", &["192.0.2.66/24", "2001:db8::66/64"]);
    for address in ["192.0.2.1", "2001:db8::1"] {
        stranger.wait_for(address);
    }
    let (a, b) = (dc.a.host(), dc.b.host());
    for host in [a, b] {
        // What leads to services before they are translated; and what kubelet asks of a node.
        host.run("ip route add default via 192.0.2.200; ip route add default via 2001:db8::200");
        host.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
    }
    for family in &FAMILIES {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let [on_a, on_b] = family.hosts.map(address);
        let [first, second] = family.services.map(|service| SocketAddr::new(address(service), 80));
        let (theirs, ours) = ((family.of)(&backend), (family.of)(&client));
        for host in [a, b] {
            kube_proxy(host, family, [theirs, on_b]);
        }
        let to_pod = (backend.container.netns(), theirs);
        let to_pod = (to_pod.0.as_path(), to_pod.1);
        // The agent hears of chains that translate and lets pass what they do.
        wait_until(LIMIT, "what is translated is let pass", || {
            a.sh("nft list table inet limpet").contains("dnat")
        });

        let pod = client.container.netns();
        let what = family.tool;
        assert_eq!(seen(&pod, first, to_pod).unwrap(), ours, "{what}: a remote pod");
        assert_eq!(seen(&a.netns(), first, to_pod).unwrap(), on_a, "{what}: from a host");
        let to_host = (b.netns(), on_b);
        let to_host = (to_host.0.as_path(), to_host.1);
        assert_eq!(seen(&pod, second, to_host).unwrap(), ours, "{what}: a host's own address");
        let own = backend.container.netns();
        assert_eq!(seen(&own, first, to_pod).unwrap(), on_b, "{what}: a pod's own service");
        for (host, at) in [("node-a", on_a), ("node-b", on_b)] {
            let port = SocketAddr::new(at, NODE_PORT);
            let by = seen(&stranger.netns(), port, to_pod);
            assert_eq!(by.unwrap(), at, "{what}: by the port of {host}");
        }
        // And without a service nothing is translated.
        let direct = SocketAddr::new(theirs, PORT);
        assert_eq!(seen(&pod, direct, to_pod).unwrap(), ours, "{what}: directly");
    }
}

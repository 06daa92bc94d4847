//! A real container runtime on two hosts, driven over CRI as a kubelet does.
#![expect(clippy::unwrap_used, reason = "also what helps a test stops at the first surprise")]

use std::net::IpAddr;
use std::time::Duration;

use netns_tests::cri::{Containerd, PodName, Sandbox};
use netns_tests::{Agent, Controller, Fabric, Host, image, wait_until};

/// A machine with limpet's agent, and the runtime on it.
struct Node {
    runtime: Containerd,
    agent: Agent,
    number: u8,
}

/// Two nodes and a controller on one underlay.
struct Cluster {
    a: Node,
    b: Node,
    controller: Controller,
    underlay: Fabric,
    images: Vec<std::path::PathBuf>,
}

impl Cluster {
    fn new() -> Self {
        let images = image::make().unwrap().to_vec();
        let underlay = Fabric::new("underlay");
        let ctl = Host::new("ctl");
        underlay.join(&ctl, "eth0", &["192.0.2.200/24", "2001:db8::200/64"]);
        let controller = Controller::start(&ctl, "192.0.2.200");
        controller.run("network create pods --vni 100");
        controller.run("pool create pods-v4 --network pods --range 10.32.0.0/16");
        controller.run("pool create pods-v6 --network pods --range fd32::/64");
        let node = |name: &str, number: u8| {
            let host = Host::machine(name);
            plug(&underlay, &host, number);
            let agent = Agent::new(&host, &controller.url(), "--role node").started();
            let runtime = Containerd::start(&host, &images);
            Node { runtime, agent, number }
        };
        let (a, b) = (node("node-a", 1), node("node-b", 2));
        Self { a, b, controller, underlay, images }
    }
}

impl Node {
    fn host(&self) -> &Host {
        self.agent.host()
    }

    /// Runs a pod that serves its own name.
    fn run(&self, pod: &PodName) -> Sandbox {
        let sandbox = self
            .runtime
            .run_pod(pod, &[])
            .unwrap_or_else(|why| panic!("{why}\n{}", self.runtime.logged()));
        self.runtime
            .serve(&sandbox, &pod.name)
            .unwrap_or_else(|why| panic!("{why}\n{}", self.runtime.logged()));
        sandbox
    }

    /// What a web server answers this host.
    fn fetch(&self, address: IpAddr, port: u16) -> Result<String, String> {
        let url = match address {
            IpAddr::V4(v4) => format!("http://{v4}:{port}/"),
            IpAddr::V6(v6) => format!("http://[{v6}]:{port}/"),
        };
        self.host().try_sh(&format!("timeout 2 busybox wget -q -O - {url}"))
    }

    /// The host is off, then on: everything in it died, its disk is as it was. The kubelet's old sandboxes are there
    /// as records, as after a real reboot.
    fn reboot(&mut self, cluster: (&Fabric, &[std::path::PathBuf])) {
        let host = self.host().clone();
        self.agent.died_with_its_host();
        host.reboot();
        plug(cluster.0, &host, self.number);
        self.agent.start();
        self.runtime = Containerd::start(&host, cluster.1);
    }
}

/// Connects a machine as a Kubernetes node is set up: IPv4 forwarding is on, which kubeadm asks for.
fn plug(underlay: &Fabric, host: &Host, number: u8) {
    host.run("sysctl -qw net.ipv4.ip_forward=1");
    underlay.join(
        host,
        "eth0",
        &[&format!("192.0.2.{number}/24"), &format!("2001:db8::{number}/64")],
    );
}

/// Whether `node` is answered `text` on every address, at the first try or within a moment.
fn serves(node: &Node, sandbox: &Sandbox, text: &str) {
    assert_eq!(sandbox.addresses.len(), 2, "both families: {:?}", sandbox.addresses);
    for &address in &sandbox.addresses {
        wait_until(
            Duration::from_secs(5),
            &format!("{} is served by {address}", node.host().name()),
            || node.fetch(address, 80).as_deref() == Ok(text),
        );
    }
}

#[test]
fn a_pod_is_reached_from_everywhere_and_keeps_its_addresses_on_another_host() {
    let Cluster { a, b, controller, underlay: _underlay, .. } = Cluster::new();
    let web = PodName::new("shop", "web-0", "uid-1");
    let first = a.run(&web);
    serves(&a, &first, "web-0");
    serves(&b, &first, "web-0");

    // A kubelet stops more than once; the runtime turns each into another DEL, the later ones without a namespace.
    for _ in 0..3 {
        a.runtime.stop_pod(&first.id).unwrap();
    }
    let second = b.run(&PodName { uid: "uid-2".to_owned(), ..web.clone() });
    assert_eq!(second.addresses, first.addresses);
    serves(&a, &second, "web-0");
    // The old sandbox is removed only now: its late DELs touch nothing of the new one.
    a.runtime.remove_pod(&first.id).unwrap();
    a.runtime.remove_pod(&first.id).unwrap();
    serves(&a, &second, "web-0");
    serves(&b, &second, "web-0");

    let attachments = controller.rows("attachment list");
    assert_eq!(attachments.len(), 1, "{attachments:?}");
    b.runtime.stop_pod(&second.id).unwrap();
    b.runtime.remove_pod(&second.id).unwrap();
    assert_eq!(controller.rows("attachment list").len(), 0);
}

#[test]
fn a_published_port_works_beside_limpet() {
    let Cluster { a, b, controller: _controller, underlay: _underlay, .. } = Cluster::new();
    let sandbox =
        a.runtime.run_pod(&PodName::new("shop", "web-0", "uid-1"), &[(8080, 80)]).unwrap();
    a.runtime.serve(&sandbox, "published").unwrap();
    serves(&b, &sandbox, "published");
    wait_until(Duration::from_secs(5), "the port of the host is the pod's", || {
        b.fetch("192.0.2.1".parse().unwrap(), 8080).as_deref() == Ok("published")
    });
    a.runtime.stop_pod(&sandbox.id).unwrap();
    a.runtime.remove_pod(&sandbox.id).unwrap();
}

#[test]
fn a_hosts_reboot_brings_db_0_back_with_its_addresses() {
    let Cluster { mut a, b, controller, underlay, images } = Cluster::new();
    let db = PodName::new("shop", "db-0", "uid-1");
    let (before, other) = (a.run(&db), b.run(&PodName::new("shop", "web-0", "uid-9")));
    serves(&b, &before, "db-0");

    a.reboot((&underlay, &images));
    // As a kubelet does it: the sandbox of before is stopped, a new one is made, the old one removed.
    a.runtime.stop_pod(&before.id).unwrap();
    let after = a.run(&PodName { attempt: 1, ..db });
    a.runtime.remove_pod(&before.id).unwrap();

    assert_eq!(after.addresses, before.addresses);
    serves(&b, &after, "db-0");
    serves(&a, &other, "web-0");
    wait_until(Duration::from_secs(10), "one attachment for each pod", || {
        controller.rows("attachment list").len() == 2
    });
}

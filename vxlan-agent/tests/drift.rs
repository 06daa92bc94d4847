//! Edge: the real agent, and somebody who changes what is limpet's on the host and inside a container.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "tests fail by panics and say why")]

mod support;

use limpet_api::client::{Call, Method};
use limpet_api::host::Wanted;
use limpet_api::socket::{Attach, ConfirmRequest};
use support::fake::{Fake, small};
use support::{Agent, Host, LIMIT, wait_until};

const ETH0: &str = "/v1/attachments/pods/c1/eth0";

fn joined(host: &Host, fake: &Fake) -> Agent {
    let agent = Agent::start(host, &fake.path, "");
    wait_until("the agent is ready", || agent.log().contains("limpet_agent::service: ready"));
    agent
}

/// A container's namespace, which is gone when it is dropped.
struct Container {
    name: String,
}

impl Container {
    fn new(on: &Host) -> Self {
        let name = format!("{}-c1", on.netns());
        // Not on the host: what is mounted in its own mount namespace is nowhere else.
        let made = std::process::Command::new("ip").args(["netns", "add", &name]).status();
        assert!(made.unwrap().success());
        Self { name }
    }

    fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    fn sh(&self, on: &Host, command: &str) -> String {
        on.sh(&format!("nsenter --net={} sh -ec \"{command}\"", self.path()))
    }

    /// All that limpet put there.
    fn snapshot(&self, on: &Host) -> String {
        self.sh(
            on,
            "ip -o addr show dev eth0 | sed s/valid_lft.*//; ip neigh show nud permanent
            ip route; ip -6 route show default",
        )
    }

    /// Attaches it as the plugin does.
    async fn attach(&self, on: &Host, agent: &Agent) -> Attach {
        let mut plugin = agent.connect().await;
        let wanted = Wanted { netns: self.path(), ..Wanted::default() };
        let put = Call::with_body(Method::PUT, ETH0, &wanted).unwrap();
        let attach: Attach = plugin.call(&put, LIMIT).await.unwrap();
        let Attach { host_ifname: end, group, attachment, .. } = &attach;
        let (uid, mac) = (attachment.uid, attachment.mac);
        on.sh(&format!(
            "ip link add {end} address 02:4c:ff:ff:ff:ff group {group} type veth \
             peer name eth0 address {mac} netns {}
            ip link set {end} alias {uid} addrgenmode none up
            sysctl -qw net.ipv4.conf.{end}.rp_filter=1 net.ipv4.conf.{end}.forwarding=1",
            self.name
        ));
        let mut inside = "ip link set eth0 addrgenmode none up\n".to_owned();
        for held in &attachment.addresses {
            let address = held.address;
            let (gateway, nodad) =
                if address.is_ipv4() { ("169.254.1.1", "") } else { ("fe80::1", "nodad") };
            let lines = format!(
                "ip addr add {address} dev eth0 {nodad}
                ip neigh add {gateway} lladdr 02:4c:ff:ff:ff:ff dev eth0 nud permanent\n"
            );
            inside += &lines;
        }
        inside += "ip route add 169.254.1.1 dev eth0 scope link
            ip route add default via 169.254.1.1 dev eth0
            ip -6 route add default via fe80::1 dev eth0";
        self.sh(on, &inside);
        let confirm =
            Call::with_body(Method::POST, format!("{ETH0}/confirm"), &ConfirmRequest { uid });
        plugin.call::<()>(&confirm.unwrap(), LIMIT).await.unwrap();
        let record = on.path("attachments").join(format!("{uid}.json"));
        wait_until("what is inside is known", || {
            std::fs::read_to_string(&record).unwrap().contains("\"inside\"")
        });
        attach
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = std::process::Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_taken_from_inside_a_container_comes_back_and_what_is_led_elsewhere_stays() {
    let on = Host::new();
    let fake = Fake::start(&on.dir, small());
    let agent = joined(&on, &fake);
    let container = Container::new(&on);
    container.attach(&on, &agent).await;
    let before = container.snapshot(&on);
    for harm in [
        "ip addr del 10.32.0.1/32 dev eth0",
        "ip addr flush dev eth0",
        "ip route del default",
        "ip -6 route del default",
        "ip route del 169.254.1.1",
        "ip route flush dev eth0",
        "ip neigh del fe80::1 dev eth0",
        "ip neigh replace 169.254.1.1 lladdr 02:00:00:00:00:09 dev eth0 nud permanent",
        "ip link set eth0 down",
    ] {
        let drifts = agent.log().matches("nsenter").count();
        container.sh(&on, harm);
        wait_until(harm, || {
            container.snapshot(&on) == before && agent.log().matches("nsenter").count() > drifts
        });
    }
    let log = agent.log();
    assert!(log.contains(&format!("nsenter --net={} ip addr", container.path())), "{log}");
    assert!(log.contains("ip route replace 0.0.0.0/0 via 169.254.1.1 dev eth0"), "{log}");

    container.sh(&on, "ip link add other type veth peer name other2; ip link set other up");
    container.sh(&on, "ip route replace default dev other");
    container.sh(&on, "ip route add 203.0.113.0/24 via 169.254.1.1; ip neigh del fe80::1 dev eth0");
    let elsewhere = || container.sh(&on, "ip route show default").contains("dev other");
    wait_until("the rest is put back", || {
        container.sh(&on, "ip neigh show nud permanent").contains("fe80::1") && elsewhere()
    });
    container.sh(&on, "ip route del 203.0.113.0/24");

    // The next agent knows what is to be there.
    agent.kill();
    container.sh(&on, "ip link del other; ip addr flush dev eth0; ip route flush dev eth0");
    let _agent = joined(&on, &fake);
    wait_until("all is put back", || container.snapshot(&on) == before);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_change_on_the_host_is_put_back_and_named() {
    let on = Host::new();
    let fake = Fake::start(&on.dir, small());
    let agent = joined(&on, &fake);
    let container = Container::new(&on);
    let end = container.attach(&on, &agent).await.host_ifname;
    let state = || {
        let text = on.sh(&format!(
            "ip route show table 7601; ip route show table 7602; ip rule show; ip nexthop show
            ip -6 route show table 7601; bridge fdb show dev limpet1; ip neigh show nud permanent
            ip addr show dev limpet1 | sed s/^[0-9]*://; ip link show {end}; nft list ruleset
            for s in limpet1.forwarding {end}.forwarding {end}.rp_filter; do sysctl net.ipv4.conf.$s; done
            for s in limpet1 {end}; do
                for n in accept_ra disable_ipv6 force_forwarding; do sysctl net.ipv6.conf.$s.$n; done
            done"
        ));
        // FDB entries and nexthops come in any order.
        let mut lines: Vec<String> = text.lines().map(|line| line.trim().to_owned()).collect();
        lines.sort();
        lines
    };
    wait_until("the container has its settings", || {
        on.sh(&format!("sysctl -n net.ipv6.conf.{end}.force_forwarding")).trim() == "1"
    });
    let before = state();
    for (harm, named) in [
        ("ip route del 10.32.0.64/26 table 7601".to_owned(), "ip route replace 10.32.0.64/26"),
        (format!("ip route del 10.32.0.1 dev {end} table 7601"), "ip route replace 10.32.0.1/32"),
        (format!("ip neigh del 10.32.0.1 dev {end}"), "ip neigh replace 10.32.0.1"),
        (format!("ip link set {end} down"), "ip link set lc"),
        (format!("ip link set {end} group 7"), "group 4097"),
        (format!("sysctl -w net.ipv4.conf.{end}.rp_filter=0"), "rp_filter=1"),
        (format!("sysctl -w net.ipv6.conf.{end}.accept_ra=2"), "accept_ra=0"),
        ("sysctl -w net.ipv4.conf.limpet1.forwarding=0".to_owned(), "forwarding=1"),
        ("sysctl -w net.ipv6.conf.limpet1.force_forwarding=0".to_owned(), "force_forwarding=1"),
        (format!("sysctl -w net.ipv6.conf.{end}.disable_ipv6=1"), "disable_ipv6=0"),
        ("ip rule del pref 200".to_owned(), "lookup 7601 pref 200"),
        ("ip addr del fe80::4c:ff:fe00:1/64 dev limpet1".to_owned(), "ip address replace fe80::"),
        ("nft delete table inet limpet".to_owned(), "nft "),
        (
            "bridge fdb del 02:4c:00:00:00:02 dev limpet1 dst 192.0.2.2 self".to_owned(),
            "bridge fdb",
        ),
        ("ip nexthop flush proto 76".to_owned(), "ip nexthop replace"),
        ("ip link set limpet1 mtu 1300".to_owned(), "ip link set limpet1 mtu"),
        ("ip link del limpet1".to_owned(), "ip link add limpet1"),
    ] {
        let drifts = agent.log().matches("others changed what").count();
        on.sh(&harm);
        wait_until(&harm, || {
            let log = agent.log();
            let mut told = log.lines().filter(|line| line.contains("others changed what"));
            let last = told.next_back().unwrap_or_default();
            let so_often = log.matches("others changed what").count() > drifts;
            so_often && last.contains(named) && state() == before
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_fights_the_agent_keeps_it_neither_busy_nor_silent() {
    let on = Host::new();
    let fake = Fake::start(&on.dir, small());
    let agent = joined(&on, &fake);
    let there = || on.sh("ip route show table 7601 10.32.0.64/26").contains("nhid");
    for _ in 0..12 {
        on.sh("ip route del 10.32.0.64/26 table 7601");
        wait_until("the route is back", there);
    }
    wait_until("it is said", || agent.log().contains("others change this again and again"));
    assert_eq!(agent.log().matches("others change this again and again").count(), 1);
}

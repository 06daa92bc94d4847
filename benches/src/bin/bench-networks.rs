//! Edge: what a packet pays for how many networks its hosts have: a container pair across two hosts, with one network,
//! with 200 of the shared address space, and with 200 that have one of their own.
//!
//! The datacentres are there side by side and alternate. The pair is of the network that was made last.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use limpet_benches::{Better, Report, Row, count, microseconds, row};
use netns_tests::{Agent, Call, Container, Datacentre, Pod, wait_until};

/// How many times each is measured.
const ROUNDS: usize = 21;
/// How long datagrams go there and back each time.
const ROUND_TRIPS: Duration = Duration::from_millis(200);
/// How many networks there are where there are many.
const MANY: u32 = 200;
/// How long one answer may take.
const SILENCE: Duration = Duration::from_secs(3);
/// How long hosts may take to lay all networks out.
const SPREAD: Duration = Duration::from_secs(120);

/// Hosts with so many networks, and a pair of containers in the last one.
struct Side {
    name: &'static str,
    datacentre: Datacentre,
    near: Pod,
    far: Pod,
    times: Vec<f64>,
}

fn main() -> Result<()> {
    let mut sides = [
        Side::new("one", 1, "")?,
        Side::new("shared", MANY, "")?,
        Side::new("own", MANY, " --own-space")?,
    ];
    for _ in 0..ROUNDS {
        for side in &mut sides {
            side.measure().with_context(|| side.name.to_owned())?;
        }
    }
    let mut rows = Vec::new();
    for side in &sides {
        rows.push(row(format!("{}.rr", side.name), "us", Better::Low, &side.times));
        rows.push(side.rules("rules", "ip rule show | wc -l")?);
        rows.push(
            side.rules("nft", "nft -a list table inet limpet | grep -c ' # handle' || true")?,
        );
    }
    let report = Report::new("networks", rows);
    let remarks = ["shared", "own"].map(|side| {
        let ratio = report.median(&format!("{side}.rr")) / report.median("one.rr");
        format!("rr: with {MANY} networks ({side}) a round trip takes {ratio:.3} of what it takes with one")
    });
    report.publish(&remarks)?;
    Ok(())
}

impl Side {
    fn new(name: &'static str, networks: u32, flags: &str) -> Result<Self> {
        let datacentre = Datacentre::small();
        let controller = &datacentre.controller;
        let mut names = vec!["pods".to_owned()];
        for n in 2..=networks {
            controller.run(&format!("network create n{n}{flags}"));
            controller.run(&format!("pool create n{n}-v4 --network n{n} --range 100.64.{n}.0/24"));
            names.push(format!("n{n}"));
        }
        for agent in datacentre.agents() {
            let host = agent.host();
            controller.run(&format!("host set {} --networks {}", host.name(), names.join(",")));
        }
        for agent in datacentre.agents() {
            wait_until(SPREAD, "every network has a device", || {
                agent.has_device(&format!("limpet{networks}"))
            });
        }
        let last = names.last().context("there is one network at least")?;
        let (near, far) = (add(&datacentre.a, last, "near-0"), add(&datacentre.b, last, "far-0"));
        let target = far.v4();
        wait_until(SPREAD, "they reach each other", || {
            near.container.try_sh(&format!("ping -c 1 -W 1 -q {target}")).is_ok()
        });
        Ok(Self { name, datacentre, near, far, times: Vec::new() })
    }

    /// Datagrams of one byte, there and back.
    fn measure(&mut self) -> Result<()> {
        let (to, any): (IpAddr, IpAddr) = (self.far.v4(), "0.0.0.0".parse()?);
        let far = self.far.container.inside(|| UdpSocket::bind(SocketAddr::new(to, 0)))?;
        let near = self.near.container.inside(|| UdpSocket::bind(SocketAddr::new(any, 0)))?;
        near.connect(far.local_addr()?)?;
        for socket in [&near, &far] {
            socket.set_read_timeout(Some(SILENCE))?;
        }
        let (end, mut byte) = (Instant::now() + ROUND_TRIPS, [0]);
        while Instant::now() < end {
            let start = Instant::now();
            // One thread for both ends: nobody is waited for but the kernel.
            near.send(&byte)?;
            let (_, from) = far.recv_from(&mut byte)?;
            far.send_to(&byte, from)?;
            near.recv(&mut byte)?;
            self.times.push(microseconds(start.elapsed()));
        }
        Ok(())
    }

    /// How many rules a host has, of one kind.
    fn rules(&self, kind: &str, command: &str) -> Result<Row> {
        let rules: u32 = self.datacentre.a.host().sh(command).trim().parse()?;
        Ok(row(format!("{}.{kind}", self.name), "rules", Better::Low, &[count(rules)]))
    }
}

/// A container in a network.
fn add(agent: &Agent, network: &str, name: &str) -> Pod {
    let container = Container::new(name);
    let mut config = agent.config();
    config["name"] = network.into();
    let call = Call::for_pod("ADD", &container, network, name);
    let answer = agent.call(&Call { stdin: config.to_string(), ..call });
    let result = answer.expect_success(&format!("ADD {name} to {network}"));
    Pod { container, namespace: network.to_owned(), name: name.to_owned(), result }
}

//! Edge: what the agent does on a bad day and on a quiet one: how soon what was deleted by hand is back, how soon the last of
//! many hosts' kernels has what was committed, and what an agent costs while nothing happens.
//!
//! The kernels are listened to, not asked again and again: a route is there when the kernel tells of it.

mod fleet;
mod idle;

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use limpet_benches::{Better, Report, milliseconds, row, scratch};
use limpet_net_types::Prefix;
use limpet_rtnl::{Entry, Event, Monitor, Request, Route, RouteFilter, RouteTarget, Socket};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::fleet::Fleet;

/// How many hosts have an agent.
const AGENTS: usize = 100;

/// How many hosts the quiet agent knows.
const KNOWN: usize = 1000;

/// How many routes are deleted, and how many changes are committed.
const DELETIONS: usize = 50;
const COMMITS: usize = 40;

/// The pause between two of them, so that each finds the agents at rest.
const PAUSE: Duration = Duration::from_millis(250);

/// How long any of them may take.
const LIMIT: Duration = Duration::from_secs(10);

/// Limpet's routes.
const OURS: RouteFilter = RouteFilter { table: 7602, protocol: 76 };

fn main() -> Result<()> {
    let disk = scratch("bench-agent")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (mut rows, mut remarks) = (Vec::new(), Vec::new());
    {
        let fleet = Fleet::start(&disk, AGENTS)?;
        let deleted = runtime.block_on(deletions(&fleet))?;
        rows.push(row("route.back", "ms", Better::Low, &deleted));
        let commits = runtime.block_on(commits(&fleet))?;
        rows.push(row("commit.last-kernel", "ms", Better::Low, &commits.last));
        rows.push(row("commit.each-kernel", "ms", Better::Low, &commits.each));
        remarks.push(format!(
            "route.back: from `ip route del` to its return, {AGENTS} hosts; \
             commit: from the request to the controller for a prefix behind one of them to the route in the last, \
             and in each, of the others\' kernels"
        ));
    }
    let idle = idle::measure(&disk, KNOWN)?;
    rows.push(row("idle.cpu", "ms/min", Better::Low, &[idle.cpu]));
    rows.push(row("idle.memory", "MiB", Better::Low, &[idle.memory]));
    remarks.push(format!("idle: one agent that knows {KNOWN} hosts, over {:?}", idle::PERIOD));
    Report::new("agent", rows).publish(&remarks)?;
    fs::remove_dir_all(disk)?;
    Ok(())
}

/// Milliseconds from the deletion of a route to its return.
async fn deletions(fleet: &Fleet) -> Result<Vec<f64>> {
    let netns = fleet.netns(0)?;
    let (mut socket, mut monitor) = (Socket::open_in(&netns)?, Monitor::open_in(&netns)?);
    let routes = socket.routes(OURS).await?;
    let led = routes.into_iter().filter(|of| matches!(of.target, RouteTarget::Nexthop(_)));
    let routes: Vec<Route> = led.collect();
    ensure!(!routes.is_empty(), "the first agent has no route to another host");
    let mut times = Vec::new();
    for route in routes.iter().cycle().take(DELETIONS) {
        sleep(PAUSE).await;
        monitor.told()?;
        let begun = Instant::now();
        socket.request(&Request::DelRoute(*route)).await?;
        timeout(LIMIT, route_to(&mut monitor, route.destination)).await.context("waiting")??;
        times.push(milliseconds(begun.elapsed()));
    }
    Ok(times)
}

/// Waits until the kernel tells of a route.
async fn route_to(monitor: &mut Monitor, to: Prefix) -> Result<()> {
    loop {
        let Event::Changed(change) = monitor.next().await? else { continue };
        let found = change.entry().filter(|_| !change.gone);
        if matches!(found, Some(Entry::Route(route)) if route.destination == to) {
            return Ok(());
        }
    }
}

/// Milliseconds from a request to the kernels.
struct Commits {
    /// The last of each commit.
    last: Vec<f64>,
    each: Vec<f64>,
}

async fn commits(fleet: &Fleet) -> Result<Commits> {
    let mut commits = Commits { last: Vec::new(), each: Vec::new() };
    for n in 0..COMMITS {
        sleep(PAUSE).await;
        let to: Prefix = format!("203.0.{n}.0/24").parse()?;
        let mut waiting = JoinSet::new();
        // The first is the gateway, and needs no route.
        for host in 1..AGENTS {
            let mut monitor = Monitor::open_in(&fleet.netns(host)?)?;
            waiting.spawn(async move {
                timeout(LIMIT, route_to(&mut monitor, to)).await??;
                Ok::<Instant, anyhow::Error>(Instant::now())
            });
        }
        let begun = Instant::now();
        fleet.lead(to)?;
        let mut last = begun;
        while let Some(told) = waiting.join_next().await {
            let told = told?.context("waiting for a kernel")?;
            commits.each.push(milliseconds(told - begun));
            last = last.max(told);
        }
        commits.last.push(milliseconds(last - begun));
    }
    Ok(commits)
}

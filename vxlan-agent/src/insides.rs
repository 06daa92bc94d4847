//! Edge: keeps what is limpet's inside containers: hears that something of it went, looks, and puts it back.
//!
//! No socket stays open inside a container, or its network namespace would live on as long as the agent.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use limpet_net_types::Uid;
use limpet_rtnl::{
    Change, ElsewhereEvent, ElsewhereMonitor, Entry, Event, LinkKind, MonitorError, Netns,
    NetnsError, OpenError, ReadError, RequestError, RouteFilter, Socket,
};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::agent::{Agent, sentence};
use crate::drift::{Frequency, Kind};
use crate::inside::{Found, Inside, MAIN};
use crate::layout::container_gateway;
use crate::records::Record;
use crate::veths::{Interface, VethError, Veths};

/// How long a runtime has, after an interface was confirmed, for what else it does to the container.
const SETTLE: Duration = Duration::from_secs(3);

/// How long changes are gathered.
const GATHER: Duration = Duration::from_millis(50);

/// How often every container is looked at, whether or not something was heard.
const RESYNC: Duration = Duration::from_secs(60);

/// The pause after a failure.
const RETRY: Duration = Duration::from_secs(1);

/// What it costs at most, whatever containers do: a fifth of the time.
const SHARE: u32 = 4;

/// Why containers are not kept.
#[derive(Debug, thiserror::Error)]
enum InsideError {
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    #[error(transparent)]
    Veths(#[from] VethError),
}

/// Why one container is not.
#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error(transparent)]
    Netns(#[from] NetnsError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Request(#[from] RequestError),
}

/// Keeps containers until `stop`.
pub(crate) async fn run(agent: Arc<Agent>, veths: Arc<Veths>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        if let Err(error) = keep(&agent, &veths, &stop).await {
            warn!(error = sentence(&error), "cannot look after containers, trying on");
            let _ = stop.run_until_cancelled(sleep(RETRY)).await;
        }
    }
}

/// Which containers are to be looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Whose {
    All,
    /// Those of these namespaces, and those that have settled.
    Some(BTreeSet<u32>),
}

async fn keep(agent: &Agent, veths: &Veths, stop: &CancellationToken) -> Result<(), InsideError> {
    let mut monitor = ElsewhereMonitor::open()?;
    let mut resync = interval(RESYNC);
    resync.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut due: Option<Instant> = None;
    let mut rested = Instant::now();
    let mut heard = BTreeSet::new();
    // The namespaces in which something is limpet's.
    let mut kept: BTreeSet<u32> = BTreeSet::new();
    loop {
        let at = due.unwrap_or_else(|| Instant::now() + RESYNC);
        // All may be dropped: none has taken anything until its arm runs.
        let whose = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = resync.tick() => Whose::All,
            () = sleep_until(at), if due.is_some() => Whose::Some(std::mem::take(&mut heard)),
            () = agent.attached.notified() => {
                due.get_or_insert_with(|| Instant::now() + SETTLE);
                continue;
            }
            () = agent.resized.notified() => Whose::All,
            event = monitor.next() => {
                match event? {
                    ElsewhereEvent { netns: Some(netns), event: Event::Changed(change) } => {
                        if kept.contains(&netns) && may_harm(&change) {
                            heard.insert(netns);
                        }
                    }
                    _ => heard.clone_from(&kept),
                }
                if !heard.is_empty() {
                    let soon = rested.max(Instant::now() + GATHER);
                    due = Some(due.map_or(soon, |at| at.min(soon)));
                }
                continue;
            }
        };
        let begun = Instant::now();
        kept = look(agent, veths, &whose).await?;
        rested = Instant::now() + begun.elapsed() * SHARE;
        let waiting = agent.state().attached.values().min().copied();
        due = waiting.map(|since| (since + SETTLE).max(rested));
    }
}

/// Whether a change inside a container may have taken something of limpet's away. Making an interface only adds.
fn may_harm(change: &Change) -> bool {
    match change.entry() {
        Some(Entry::Link(link)) => !change.gone && !link.up,
        Some(Entry::Address(_) | Entry::Route(_)) => change.gone || change.replaces,
        Some(Entry::Neighbour(found)) => container_gateway(found.address) == found.address,
        Some(_) => false,
        None => true,
    }
}

/// Looks at containers, and puts back what is missing. Returns the namespaces of those in which something is limpet's.
async fn look(agent: &Agent, veths: &Veths, whose: &Whose) -> Result<BTreeSet<u32>, InsideError> {
    let interfaces = veths.interfaces().await?;
    let (records, settled) = {
        let mut state = agent.state();
        let now = Instant::now();
        let ripe = |since: &Instant| now.duration_since(*since) >= SETTLE;
        let settled: BTreeSet<Uid> =
            state.attached.iter().filter(|(_, since)| ripe(since)).map(|(uid, _)| *uid).collect();
        state.attached.retain(|_, since| !ripe(since));
        let fresh: BTreeSet<Uid> = state.attached.keys().copied().collect();
        let old = state.records.iter().filter(|(uid, record)| {
            record.severed.is_none() && !fresh.contains(uid) && !state.flights.has(**uid)
        });
        let old: BTreeMap<Uid, Record> = old.map(|(uid, of)| (*uid, of.clone())).collect();
        (old, settled)
    };
    let mut kept = BTreeSet::new();
    for (uid, record) in &records {
        let Some(interface) = interfaces.get(uid).filter(|of| of.up && !of.severed) else {
            continue;
        };
        kept.extend(interface.netns);
        let wanted = match whose {
            Whose::All => true,
            Whose::Some(netns) => {
                settled.contains(uid) || interface.netns.is_some_and(|of| netns.contains(&of))
            }
        };
        if wanted && let Err(error) = look_into(agent, record, interface).await {
            // It may just be going.
            debug!(%uid, error = sentence(&error), "cannot look into a container");
        }
    }
    Ok(kept)
}

async fn look_into(agent: &Agent, record: &Record, interface: &Interface) -> Result<(), LookError> {
    let attachment = &record.attachment;
    let netns = Netns::open(&*attachment.netns)?;
    let mut socket = Socket::open_in(&netns)?;
    let Some(found) = find(&mut socket, record, interface).await? else { return Ok(()) };
    let held: BTreeSet<IpAddr> = attachment.addresses.iter().map(|held| held.address).collect();
    let Some(inside) = &record.inside else {
        agent.settle(attachment.uid, found.limpets(&held));
        return Ok(());
    };
    if let Some(resized) = found.resized(inside) {
        socket.request(&resized).await?;
        info!(container = %attachment.key.container, mtu = interface.mtu, "a container has the MTU that is left for it");
    }
    let missing = found.missing(inside);
    let results = socket.batch(&missing).await;
    let now = agent.now();
    let device = format!("if{}", found.link.index);
    for (request, result) in missing.iter().zip(results) {
        let words = request.to_string().replacen(&device, &found.link.name, 1);
        let command = words.replacen("ip ", &format!("nsenter --net={netns} ip "), 1);
        result?;
        warn!(container = %attachment.key.container, %command, "what limpet put into a container was gone: it is put back");
        let noted = agent.state().drifts.note(Kind::Container, command.clone(), now);
        if noted == Frequency::Fought {
            warn!(%command, "others change this again and again: find out who, and stop it");
        }
    }
    Ok(())
}

/// What is inside; nothing where the namespace is another one than the interface leads into.
async fn find(
    socket: &mut Socket,
    record: &Record,
    interface: &Interface,
) -> Result<Option<Found>, ReadError> {
    let Some(link) = socket.link_at(interface.peer).await? else { return Ok(None) };
    let leads_back = matches!(link.kind, LinkKind::Veth(veth) if veth.peer == interface.index);
    let attachment = &record.attachment;
    if !leads_back || link.name != attachment.key.ifname.as_str() {
        return Ok(None);
    }
    Ok(Some(Found {
        outside_mtu: interface.mtu,
        addresses: socket.addresses(Some(link.index)).await?,
        neighbours: socket.neighbours(Some(link.index)).await?,
        routes: socket.routes(RouteFilter { table: MAIN, protocol: 0 }).await?,
        link,
    }))
}

impl Agent {
    /// What is limpet's inside a container is known from now on.
    fn settle(&self, uid: Uid, inside: Inside) {
        let record = {
            let mut state = self.state();
            let Some(record) = state.records.get_mut(&uid) else { return };
            record.inside = Some(inside);
            record.clone()
        };
        self.rewrite(&record);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn who_was_confirmed_to_an_earlier_agent_a_moment_ago_has_its_time_to_settle() {
        let directory = fixture::Directory::new("settle");
        let earlier = fixture::agent_in(&directory);
        let (fresh, settled) = (fixture::record(1, 7), fixture::record(2, 8));
        earlier.keep(&fresh);
        earlier.keep(&Record { inside: Some(Inside::default()), ..settled });
        let agent = fixture::agent_in(&directory);
        agent.recall();
        let state = agent.state();
        assert_eq!(state.records.len(), 2);
        assert_eq!(state.attached.keys().collect::<Vec<_>>(), [&fresh.attachment.uid]);
    }
}

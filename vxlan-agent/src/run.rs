//! Edge: one pass after another: read the kernel, plan, carry out; whenever something may be different.

use std::sync::Arc;
use std::time::Duration;

use limpet_rtnl::{Change, Event, FilterMonitor, Monitor, Table};
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::agent::{Agent, Pass, sentence};
use crate::desired::{Desired, HostFacts, desired};
use crate::drift::{Frequency, Kind};
use crate::kernel::{Dump, Kernel, KernelError, Look, StepFailed};
use crate::layout::{PROTOCOL, Tables, device_name, is_device_name, is_veth_name};
use crate::nft;
use crate::plan::plan;
use crate::recalled::Stance;
use crate::step::Step;
use crate::veths::any_to_bury;

/// How often the kernel is checked even if nothing says that anything changed.
///
/// What is missed at most so long: a setting that somebody wrote, an event that was lost.
const RESYNC: Duration = Duration::from_secs(30);

/// How long the kernel's own changes are gathered: making one container changes it a dozen times.
const GATHER: Duration = Duration::from_millis(50);

/// The pause after a failure.
const RETRY: Duration = Duration::from_secs(1);

/// What a pass costs at most: a fifth of the time.
const SHARE: u32 = 4;

/// Keeps the kernel right until `stop`. A pass is never cut short.
///
/// `dead` is rung when there are interfaces to bury.
pub(crate) async fn run(agent: Arc<Agent>, dead: Arc<Notify>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        if let Err(error) = passes(&agent, &dead, &stop).await {
            error!(error = sentence(&error), "cannot speak with the kernel, trying on");
            agent.passes.send_modify(|pass| pass.failures = vec![sentence(&error)]);
            // It turns, though in vain: another agent would fare no better.
            agent.pulse.turned();
            let _ = stop.run_until_cancelled(sleep(RETRY)).await;
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    Monitor(#[from] limpet_rtnl::MonitorError),
}

async fn passes(agent: &Agent, dead: &Notify, stop: &CancellationToken) -> Result<(), RunError> {
    // Listening begins before the first reading: what changes in between is heard.
    let mut monitor = Monitor::open()?;
    let mut filter = FilterMonitor::open(nft::NAME)?;
    let mut kernel = Kernel::open()?;
    let mut resync = interval(RESYNC);
    resync.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut due: Option<(Instant, Look)> = None;
    let mut ours: Vec<u32> = Vec::new();
    let mut passing: Vec<String> = Vec::new();
    let mut right: Option<Desired> = None;
    let mut gather = GATHER;
    loop {
        let (at, look) = due.unwrap_or_else(|| (Instant::now() + RESYNC, Look::Remembered));
        // All may be dropped: none has taken anything until its arm runs.
        let look = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = resync.tick() => Look::Again,
            () = agent.look.notified() => Look::Remembered,
            () = sleep_until(at), if due.is_some() => look,
            () = agent.pulse.asked() => {
                agent.pulse.turned();
                continue;
            }
            () = agent.look_soon.notified() => {
                due.get_or_insert_with(|| (Instant::now() + gather, Look::Remembered));
                continue;
            }
            event = monitor.next() => {
                let event = event?;
                if concerns(event, &ours) {
                    due.get_or_insert_with(|| (Instant::now() + gather, Look::Remembered));
                }
                continue;
            }
            changed = filter.changed() => {
                changed?;
                let at = due.map_or_else(|| Instant::now() + gather, |(at, _)| at);
                due = Some((at, Look::Again));
                continue;
            }
        };
        // One that is due with another look is made up for by this one, or still due.
        due = due.filter(|(_, due)| *due == Look::Again && look == Look::Remembered);
        let begun = Instant::now();
        match pass(agent, &mut kernel, (look, &passing), &mut right).await {
            Ok(done) => {
                ours = done.ours;
                passing = done.passing;
                if done.again {
                    due = Some((Instant::now() + RETRY, Look::Again));
                }
                if done.dead {
                    dead.notify_one();
                }
            }
            Err(error) => {
                report_failures(agent, vec![sentence(&error)]);
                due = Some((Instant::now() + RETRY, Look::Again));
            }
        }
        agent.metrics.passed(begun.elapsed());
        gather = GATHER.max(begun.elapsed() * SHARE);
    }
}

/// Whether the kernel's change may have to do with limpet. `ours` are the devices that do.
fn concerns(event: Event, ours: &[u32]) -> bool {
    let Event::Changed(Change { table, device, protocol, .. }) = event else { return true };
    match table {
        Table::Link | Table::Address | Table::Rule => true,
        Table::Route | Table::Nexthop => protocol == Some(PROTOCOL),
        // The underlay's neighbours come and go all the time.
        Table::Neighbour => device.is_none_or(|device| ours.contains(&device)),
    }
}

/// What a pass saw.
#[derive(Default)]
struct Done {
    /// The indexes of the devices whose neighbours are of interest.
    ours: Vec<u32>,
    /// Whether interfaces wait for their deletion.
    dead: bool,
    /// Whether something was not done.
    again: bool,
    /// What was not done about containers, who may have gone in the same moment.
    passing: Vec<String>,
}

/// One pass. `passing` is what the last one left undone about containers: only what is left undone twice is wrong.
async fn pass(
    agent: &Agent,
    kernel: &mut Kernel,
    (look, passing): (Look, &[String]),
    right: &mut Option<Desired>,
) -> Result<Done, KernelError> {
    let dump = kernel.dump(look).await?;
    let Some(desired) = outlook(agent, kernel, &dump).await? else { return Ok(Done::default()) };
    let links = dump.seen.links.clone();
    let found = dump.tables(&desired).await?;
    let steps = plan(&desired, &found);
    if !steps.is_empty() {
        info!(steps = steps.len(), "making the kernel right");
    }
    if right.take().as_ref() == Some(&desired) {
        note_drift(agent, &steps);
    }
    let failed = kernel.carry_out(&links, &steps).await;
    agent.metrics.stepped(&steps, &failed);
    *right = failed.is_empty().then(|| desired.clone());
    let (mut failures, mut maybe) = (Vec::new(), Vec::new());
    for failed in &failed {
        let words = sentence(failed);
        if failed.step.veth().is_some() {
            maybe.push(words.clone());
        }
        if failed.step.veth().is_none() || passing.contains(&words) {
            failures.push(words);
        }
    }
    report(agent, &desired, (&steps, &failed, failures), &found);
    let of_limpet = |name: &str| is_device_name(name) || is_veth_name(name);
    let ours = links.iter().filter(|link| of_limpet(&link.name)).map(|link| link.index);
    let (dead, again) = (any_to_bury(&links), !failed.is_empty());
    Ok(Done { ours: ours.collect(), dead, again, passing: maybe })
}

/// Notes steps that mend what others did.
fn note_drift(agent: &Agent, steps: &[Step]) {
    let now = agent.now();
    let drifts: Vec<&Step> = steps.iter().filter(|step| step.veth().is_none()).collect();
    let Some(first) = drifts.first() else { return };
    warn!(count = drifts.len(), %first, "others changed what is limpet's: it is put back");
    let mut state = agent.state();
    for step in drifts {
        if state.drifts.note(Kind::of(step), step.to_string(), now) == Frequency::Fought {
            warn!(%step, "others change this again and again: find out who, and stop it");
        }
    }
}

/// What should be, with where the host is reached as it is now. None while the cluster is not known.
///
/// It takes a dump because the cluster must be looked at after the kernel: every container of the dump was claimed
/// before that, and so is known by now.
pub(crate) async fn outlook(
    agent: &Agent,
    kernel: &mut Kernel,
    dump: &Dump,
) -> Result<Option<Desired>, KernelError> {
    let reach = dump.seen.reach(&agent.choice);
    if agent.reached(reach.clone().map_err(|error| error.to_string())) {
        match &reach {
            Ok(reach) => info!(underlay = %reach.underlay, mtu = reach.mtu, "reached at"),
            Err(error) => warn!(%error, "not reached"),
        }
        // What the host said of itself when it joined is not so any more.
        agent.rejoin.notify_one();
    }
    let Ok(reach) = reach else { return Ok(None) };
    let facts = HostFacts {
        name: agent.identity.host.clone(),
        underlay_mtu: reach.mtu,
        addresses: reach.addresses,
        led_to: reach.led_to,
        forwarding: kernel.forwarding(&dump.seen).await?,
        others: kernel.others().await?,
    };
    let mut state = agent.state();
    let stance = state.stance(&agent.identity.host);
    let wanted = match stance {
        Stance::Still(_) => None,
        Stance::Told | Stance::Recalled => desired(&state.view, &facts),
    };
    state.facts = Some(facts);
    Ok(wanted.map(|wanted| Desired { careful: stance == Stance::Recalled, ..wanted }))
}

/// Notes how a pass went.
fn report(
    agent: &Agent,
    desired: &Desired,
    done: (&[Step], &[StepFailed], Vec<String>),
    found: &Tables,
) {
    let (steps, failed, failures) = done;
    let not_made = |name: &str| {
        let of_it = |failed: &StepFailed| matches!(&failed.step, Step::NewDevice { name: of, .. } if of == name);
        failed.iter().any(of_it)
    };
    let new = steps.iter().filter_map(|step| match step {
        Step::NewDevice { name, .. } => Some(name),
        _ => None,
    });
    let there = found.devices.keys().chain(new).filter(|name| !not_made(name));
    let devices = there.filter(|name| desired.devices.contains_key(*name)).cloned().collect();
    let problems: Vec<String> = desired.problems.iter().map(ToString::to_string).collect();
    let before = agent.passes.borrow().problems.clone();
    for problem in problems.iter().filter(|problem| !before.contains(problem)) {
        warn!(problem, "cannot lay everything out");
    }
    report_failures(agent, failures);
    agent.passes.send_modify(|pass| {
        *pass = Pass { count: pass.count + 1, devices, problems, failures: pass.failures.clone() };
    });
}

/// Notes what failed, and logs what is new of it.
fn report_failures(agent: &Agent, failures: Vec<String>) {
    let before = agent.passes.borrow().failures.clone();
    for failure in failures.iter().filter(|failure| !before.contains(failure)) {
        error!(failure, "the kernel is not as it should be");
    }
    if failures.is_empty() && !before.is_empty() {
        info!("the kernel is right again");
    }
    debug!(failures = failures.len(), "pass done");
    agent.passes.send_modify(|pass| pass.failures = failures);
}

/// The steps that would make the kernel right now; none are carried out.
pub(crate) async fn steps(desired: &Desired, dump: Dump) -> Result<Vec<Step>, KernelError> {
    let found = dump.tables(desired).await?;
    Ok(plan(desired, &found))
}

/// What should be, and the steps that the next pass would do. None while the cluster is not known.
pub(crate) async fn examine(agent: &Agent) -> Result<Option<(Desired, Vec<Step>)>, KernelError> {
    let mut kernel = Kernel::open()?;
    let dump = kernel.dump(Look::Again).await?;
    let Some(desired) = outlook(agent, &mut kernel, &dump).await? else { return Ok(None) };
    let steps = steps(&desired, dump).await?;
    Ok(Some((desired, steps)))
}

/// Whether the device of a network is there.
pub(crate) fn is_ready(pass: &Pass, index: limpet_net_types::NetworkIndex) -> bool {
    pass.devices.contains(&device_name(index))
}

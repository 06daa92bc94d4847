//! Edge: one pass after another: read the kernel, plan, carry out; whenever something may be different.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use limpet_rtnl::{Event, FilterEvent, FilterMonitor, Monitor};
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::agent::{Agent, Pass, sentence};
use crate::desired::{Desired, HostFacts, desired};
use crate::facts::Seen;
use crate::kernel::{Kernel, KernelError, Look, StepFailed, complete};
use crate::layout::device_name;
use crate::mirror::Mirror;
use crate::nft;
use crate::pass::{Keeper, Wake};
use crate::plan::plan;
use crate::recalled::Stance;
use crate::step::Step;

/// How often everything is compared even if nothing says that anything changed.
const RESYNC: Duration = Duration::from_secs(30);

/// How long the kernel's own changes are gathered: making one container changes it a dozen times.
const GATHER: Duration = Duration::from_millis(50);

/// The pause after a failure.
const RETRY: Duration = Duration::from_secs(1);

/// How often the settings are looked at of whose changes the kernel tells nothing.
const GLANCE: Duration = Duration::from_millis(500);

/// What passes that others cause cost at most, whatever they do: a fifth of the time.
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
    let mut keeper = Keeper::open()?;
    let mut resync = interval(RESYNC);
    let mut glance = interval(GLANCE);
    for timer in [&mut resync, &mut glance] {
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    let mut due: Option<(Instant, Wake)> = None;
    // Before this the kernel's own changes lead to nothing.
    let mut rested = Instant::now();
    loop {
        let (at, wake) = due.unwrap_or_else(|| (Instant::now() + RESYNC, Wake::Kernel));
        // All may be dropped: none has taken anything until its arm runs.
        let wake = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = resync.tick() => Wake::Compare,
            () = agent.look.notified() => Wake::View,
            () = sleep_until(at), if due.is_some() => wake,
            () = agent.pulse.asked() => {
                agent.pulse.turned();
                continue;
            }
            () = agent.look_soon.notified() => {
                due = Some((due.map_or_else(|| soon(rested), |(at, _)| at), Wake::View));
                continue;
            }
            event = monitor.next() => {
                let event = event?;
                note_overruns(agent, std::slice::from_ref(&event));
                if keeper.hear(&event) {
                    due.get_or_insert_with(|| (soon(rested), Wake::Kernel));
                }
                continue;
            }
            changed = filter.changed() => {
                if changed? == FilterEvent::Translation && keeper.knows_of_translation() {
                    continue;
                }
                agent.survey.notify_one();
                keeper.doubt();
                due.get_or_insert_with(|| (soon(rested), Wake::Kernel));
                continue;
            }
            _ = glance.tick() => {
                if keeper.glance().await? {
                    due.get_or_insert_with(|| (soon(rested), Wake::Kernel));
                }
                continue;
            }
        };
        // What was due is made up for by this one.
        due = None;
        let begun = Instant::now();
        let told = monitor.told()?;
        note_overruns(agent, &told);
        let done = keeper.pass(agent, &told, wake).await;
        agent.metrics.passed(begun.elapsed());
        rested = Instant::now() + begun.elapsed() * SHARE;
        match done {
            Ok(done) => {
                if done.again {
                    due = Some((Instant::now() + RETRY, Wake::Kernel));
                } else if done.verify {
                    // Somebody may undo it at once, again and again.
                    due = Some((soon(rested), Wake::Kernel));
                }
                if done.dead {
                    dead.notify_one();
                }
            }
            Err(error) => {
                report_failures(agent, vec![sentence(&error)]);
                due = Some((Instant::now() + RETRY, Wake::Kernel));
            }
        }
    }
}

/// When what was told leads to a pass: it is gathered, and there is a pause after the last one.
fn soon(rested: Instant) -> Instant {
    rested.max(Instant::now() + GATHER)
}

/// Counts the times that changes were lost.
fn note_overruns(agent: &Agent, events: &[Event]) {
    for _ in events.iter().filter(|event| **event == Event::Overrun) {
        agent.metrics.overran();
        agent.survey.notify_one();
    }
}

/// What should be, with where the host is reached as it is now. None while the cluster is not known.
///
/// It takes what was seen because the cluster must be looked at after the kernel: every container that was seen was
/// claimed before that, and so is known by now.
pub(crate) async fn outlook(
    agent: &Agent,
    kernel: &mut Kernel,
    seen: &Seen,
) -> Result<Option<Desired>, KernelError> {
    let reach = seen.reach(&agent.choice);
    if agent.reached(reach.clone().map_err(|error| error.to_string())) {
        match &reach {
            Ok(reach) => info!(underlay = %reach.underlay, mtu = reach.mtu, "reached at"),
            Err(error) => warn!(%error, "not reached"),
        }
        // What the host said of itself when it joined is not so any more, and connections may be of an address that is gone.
        agent.streams().reconnect();
        agent.rejoin.notify_one();
    }
    let Ok(reach) = reach else { return Ok(None) };
    let facts = HostFacts {
        name: agent.identity.host.clone(),
        underlay_mtu: reach.mtu,
        addresses: reach.addresses,
        led_to: reach.led_to,
        forwarding: kernel.forwarding(seen).await?,
        others: kernel.others().await?,
        mark_mask: agent.mark_mask,
    };
    let mut state = agent.state();
    let stance = state.stance(&agent.identity.host);
    let wanted = match stance {
        Stance::Still(_) => None,
        Stance::Told | Stance::Recalled => desired(&state.view, &facts),
    };
    state.facts = Some(facts);
    Ok(wanted.map(|mut wanted| {
        wanted.careful = stance == Stance::Recalled;
        // What ends was taken off the network perhaps, and is not to come back while the store still has it; nor is what
        // was severed by the word of an older state than the one that had it severed.
        let forced = |uid| state.view.asks.get(&uid).is_some_and(|ask| ask.force);
        let off = |uid| state.severed.contains_key(&uid) && (wanted.careful || forced(uid));
        wanted.containers.retain(|_, of| !state.is_ending(of.uid) && !off(of.uid));
        wanted
    }))
}

/// Notes how a pass went.
pub(crate) fn report(
    agent: &Agent,
    desired: &Desired,
    done: (&[Step], &[StepFailed], Vec<String>),
    found: &BTreeSet<String>,
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
    let there = found.iter().chain(new).filter(|name| !not_made(name));
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
pub(crate) async fn steps(desired: &Desired, mut mirror: Mirror) -> Result<Vec<Step>, KernelError> {
    complete(&mut mirror, desired).await?;
    Ok(plan(desired, &mirror.tables))
}

/// What should be, and the steps that the next pass would do. None while the cluster is not known.
pub(crate) async fn examine(agent: &Agent) -> Result<Option<(Desired, Vec<Step>)>, KernelError> {
    let mut kernel = Kernel::open()?;
    let mirror = kernel.dump(Look::Again).await?;
    let Some(desired) = outlook(agent, &mut kernel, &mirror.seen).await? else { return Ok(None) };
    let steps = steps(&desired, mirror).await?;
    Ok(Some((desired, steps)))
}

/// Whether the device of a network is there.
pub(crate) fn is_ready(pass: &Pass, index: limpet_net_types::NetworkIndex) -> bool {
    pass.devices.contains(&device_name(index))
}

//! Edge: one pass: what the kernel has, what it should have, and the steps between.
//!
//! The kernel is not read for each pass: a [`Mirror`] of it is kept up by what it tells, and read anew where that is not
//! enough, after any failure, and from time to time. What is planned is always planned after everything that the kernel
//! has told by then, and the cluster is looked at after that.

use std::collections::BTreeSet;

use limpet_rtnl::Event;
use tracing::{info, warn};

use crate::agent::{Agent, sentence};
use crate::drift::{Frequency, Kind};
use crate::kernel::{Kernel, KernelError, Look, StepFailed, complete, glance};
use crate::layout::{Route, Target};
use crate::mirror::{Mirror, Verdict, take};
use crate::plan::plan;
use crate::run::{outlook, report};
use crate::step::Step;
use crate::veths::any_to_bury;

/// Why there is a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wake {
    /// The kernel told of something.
    Kernel,
    /// Something else is known of the cluster.
    View,
    /// It is time to compare everything.
    Compare,
}

/// What a pass leaves to be done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Done {
    /// Whether interfaces wait for their deletion.
    pub(crate) dead: bool,
    /// Whether something was not done.
    pub(crate) again: bool,
    /// Whether something was done whose consequences are to be read.
    pub(crate) verify: bool,
}

/// Keeps the kernel right.
pub(crate) struct Keeper {
    kernel: Kernel,
    /// None before the first reading.
    mirror: Option<Mirror>,
    /// What is to be read before the next plan.
    pending: Verdict,
    /// Whether the nftables table is read with it.
    look: Look,
    /// What was left undone about containers, who may have gone in the same moment: only what is left undone twice is
    /// wrong.
    passing: Vec<String>,
}

impl Keeper {
    pub(crate) fn open() -> Result<Self, KernelError> {
        let (pending, look, passing) = (Verdict::Doubt, Look::Again, Vec::new());
        Ok(Self { kernel: Kernel::open()?, mirror: None, pending, look, passing })
    }

    /// Takes in what the kernel told, and returns whether a pass is due.
    pub(crate) fn hear(&mut self, event: &Event) -> bool {
        let verdict = match (event, &mut self.mirror) {
            (Event::Changed(change), Some(mirror)) => mirror.hear(change),
            (Event::Overrun, _) => {
                warn!("the kernel told more at once than was listened to: comparing everything");
                Verdict::Doubt
            }
            (_, None) => Verdict::Doubt,
        };
        self.pending = self.pending.max(verdict);
        verdict > Verdict::Nothing
    }

    /// Everything is to be read before the next plan.
    pub(crate) fn doubt(&mut self) {
        (self.pending, self.look) = (Verdict::Doubt, Look::Again);
    }

    /// Whether it is known that somebody translates destinations: that another does is no news then.
    pub(crate) fn knows_of_translation(&self) -> bool {
        self.kernel.knows_of_translation()
    }

    /// Looks at the settings of whose changes nothing tells, and returns whether a pass is due.
    pub(crate) async fn glance(&mut self) -> Result<bool, KernelError> {
        let Some(mirror) = &mut self.mirror else { return Ok(false) };
        let news = glance(mirror).await?;
        if news {
            self.pending = self.pending.max(Verdict::Taken);
        }
        Ok(news)
    }

    /// One pass. `told` is everything that the kernel has told by now.
    pub(crate) async fn pass(
        &mut self,
        agent: &Agent,
        told: &[Event],
        wake: Wake,
    ) -> Result<Done, KernelError> {
        for event in told {
            self.hear(event);
        }
        if wake == Wake::Compare {
            self.doubt();
        }
        let done = self.try_pass(agent, wake).await;
        if !done.as_ref().is_ok_and(|done| !done.again) {
            self.doubt();
        }
        done
    }

    async fn try_pass(&mut self, agent: &Agent, wake: Wake) -> Result<Done, KernelError> {
        let verdict = std::mem::replace(&mut self.pending, Verdict::Nothing);
        let known = self.refresh(verdict).await?;
        let Self { kernel, mirror: Some(mirror), .. } = self else { return Ok(Done::default()) };
        let Some(desired) = outlook(agent, kernel, &mirror.seen).await? else {
            return Ok(Done::default());
        };
        let news = complete(mirror, &desired).await?;
        let dead = any_to_bury(&mirror.seen.links);
        if wake == Wake::Kernel && verdict <= Verdict::Stale && !news {
            return Ok(Done { dead, ..Done::default() });
        }
        let steps = plan(&desired, &mirror.tables);
        if !steps.is_empty() {
            info!(steps = steps.len(), "making the kernel right");
            note_drift(agent, known.as_ref().unwrap_or(mirror), &steps);
        }
        mirror.spoilt.clear();
        let failed = kernel.carry_out(&mirror.seen.links, &steps).await;
        agent.metrics.stepped(&steps, &failed);
        let resizes = |step: &Step| {
            matches!(step, Step::ChangeDevice { mtu: Some(_), .. }) && step.veth().is_some()
        };
        if steps.iter().any(resizes) {
            agent.resized.notify_one();
        }
        let not_done: BTreeSet<String> = failed.iter().map(|of| of.step.to_string()).collect();
        let found: BTreeSet<String> = mirror.tables.devices.keys().cloned().collect();
        for step in &steps {
            if not_done.is_empty() || !not_done.contains(&step.to_string()) {
                self.pending = self.pending.max(take(&mut mirror.tables, step));
            }
        }
        let failures = self.failures(&failed);
        report(agent, &desired, (&steps, &failed, failures), &found);
        let verify = self.pending == Verdict::Doubt;
        // What was planned and found done is nothing to be looked at again.
        self.pending = if verify { Verdict::Doubt } else { Verdict::Nothing };
        Ok(Done { dead, again: !failed.is_empty(), verify })
    }

    /// Reads what is to be read. Returns the mirror as it was before all was.
    async fn refresh(&mut self, verdict: Verdict) -> Result<Option<Mirror>, KernelError> {
        let whole = match (&mut self.mirror, verdict) {
            (None, _) | (_, Verdict::Doubt) => true,
            (Some(mirror), Verdict::Glance) => {
                mirror.glanced(self.kernel.seen().await?) == Verdict::Doubt
            }
            _ => false,
        };
        if !whole {
            return Ok(None);
        }
        let look = std::mem::replace(&mut self.look, Look::Remembered);
        let fresh = self.kernel.dump(look).await?;
        Ok(self.mirror.replace(fresh))
    }

    /// What failed and is wrong, as sentences.
    fn failures(&mut self, failed: &[StepFailed]) -> Vec<String> {
        let before = std::mem::take(&mut self.passing);
        let mut failures = Vec::new();
        for failed in failed {
            let words = sentence(failed);
            let of_veth = failed.step.veth().is_some();
            if of_veth {
                self.passing.push(words.clone());
            }
            if !of_veth || before.contains(&words) {
                failures.push(words);
            }
        }
        failures
    }
}

/// Notes the steps that mend what others did: those to what the kernel was known to have.
fn note_drift(agent: &Agent, known: &Mirror, steps: &[Step]) {
    // What is done to a device that is being made is no news, nor is what leads by it.
    let made = |name: &String| {
        steps.iter().any(|step| matches!(step, Step::NewDevice { name: of, .. } if of == name))
    };
    let new = |step: &Step| matches!(step, Step::ChangeDevice { name, .. } if made(name));
    let had = |step: &&Step| known.had(step) && !new(step);
    let mut drifts: Vec<&Step> = steps.iter().filter(had).collect();
    let devices = drifts.iter().any(|step| Kind::of(step) == Kind::Device)
        || steps.iter().any(|step| matches!(step, Step::NewDevice { .. }));
    let hops: BTreeSet<u32> = drifts.iter().filter_map(|step| nexthop(step)).collect();
    drifts.retain(|step| match Kind::of(step) {
        Kind::Device | Kind::Rule | Kind::Nftables | Kind::Container => true,
        // With a device goes all that is on it and leads by it.
        _ if devices => false,
        // And with a nexthop what leads by it.
        _ => match step {
            Step::SetRoute(Route { target: Target::Nexthop(id), .. }) => !hops.contains(id),
            _ => true,
        },
    });
    let Some(first) = drifts.first() else { return };
    warn!(count = drifts.len(), %first, "others changed what is limpet's: it is put back");
    let now = agent.now();
    let mut state = agent.state();
    for step in drifts {
        if state.drifts.note(Kind::of(step), step.to_string(), now) == Frequency::Fought {
            warn!(%step, "others change this again and again: find out who, and stop it");
        }
    }
}

fn nexthop(step: &Step) -> Option<u32> {
    match step {
        Step::SetNexthop(id, _) => Some(*id),
        _ => None,
    }
}

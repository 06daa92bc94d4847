//! Edge: answers the controller's question where this host's kernel and the store differ.

use std::sync::Arc;
use std::time::Duration;

use limpet_api::client::{Call, ClientError, Method};
use limpet_api::host::{Finding, FindingKind, MOST_FINDINGS, Report, ReportWanted};
use limpet_api::paths;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::agent::{Agent, Patience, sentence};
use crate::evidence::Begun;
use crate::findings::{Seen, findings};
use crate::health::health;
use crate::kernel::KernelError;
use crate::orphans::{Known, orphans};
use crate::run::examine;
use crate::upkeep::{current_join, see_to_all, settled};
use crate::veths::{VethError, Veths, netns_exists};

/// How long to wait before trying again what did not succeed.
const RETRY: Duration = Duration::from_secs(1);

/// How long what is different may take to become right by itself: a container that comes or goes, a pass that is due.
const SETTLE: Duration = Duration::from_millis(500);

/// How long a pass may take that repairs.
const PASS: Duration = Duration::from_secs(10);

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
enum ReportError {
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    Veth(#[from] VethError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("the watch has not told of everything before the session yet")]
    NotYet,
}

/// Reports whenever it is asked for, until `stop`.
pub(crate) async fn run(agent: Arc<Agent>, veths: Arc<Veths>, stop: CancellationToken) {
    // Dropping a report is safe: the next agent is asked anew.
    let _ = stop.run_until_cancelled(answer_all(&agent, &veths)).await;
}

async fn answer_all(agent: &Agent, veths: &Veths) {
    loop {
        let wanted = {
            let state = agent.state();
            // One that is only recalled is waited for by nobody perhaps.
            let told = state.view.position().is_some();
            state.view.reports.values().find(|_| told).cloned()
        };
        let Some(wanted) = wanted else {
            agent.report.notified().await;
            continue;
        };
        match answer(agent, veths, &wanted).await {
            Ok(()) => {
                agent.state().view.reports.remove(&wanted.id);
            }
            Err(error) => {
                warn!(error = sentence(&error), "cannot report yet");
                sleep(RETRY).await;
            }
        }
    }
}

/// Repairs first, if that is wanted, and reports.
async fn answer(agent: &Agent, veths: &Veths, wanted: &ReportWanted) -> Result<(), ReportError> {
    if wanted.repair {
        see_to_all(agent, veths).await?;
        let mut passes = agent.passes.subscribe();
        let before = passes.borrow_and_update().count;
        agent.look.notify_one();
        // A pass that takes longer is reported as what it has not done.
        let _ = timeout(PASS, passes.wait_for(|pass| pass.count > before)).await;
    }
    let (mut revision, mut findings) = differences(agent, veths).await?;
    if !findings.is_empty() {
        sleep(SETTLE).await;
        let (at, again) = differences(agent, veths).await?;
        findings = lasting(&findings, again);
        revision = at;
    }
    let more = findings.len().saturating_sub(MOST_FINDINGS);
    findings.truncate(MOST_FINDINGS);
    let (found, repair) = (findings.len() + more, wanted.repair);
    let session = agent.session().map_err(ClientError::Refused)?;
    let more = u64::try_from(more).unwrap_or(u64::MAX);
    let health = Some(Box::new(health(agent).await));
    let report = Report { session, id: wanted.id, revision, findings, more, health };
    let path = paths::report(&agent.identity.host);
    let call = Call::with_body(Method::POST, path, &report)?;
    let answer = agent.ask::<serde::de::IgnoredAny>(&call, Patience::Short).await;
    match settled(agent, session, answer) {
        // Nobody waits for it any more.
        Err(ClientError::Refused(error)) if error.code.status() == 404 => Ok(()),
        other => {
            other?;
            info!(findings = found, repair, "reported where kernel and store differ");
            Ok(())
        }
    }
}

/// What was found before and again. What is left to do to the kernel is no longer the same in every word.
fn lasting(before: &[Finding], again: Vec<Finding>) -> Vec<Finding> {
    let in_passing = |finding: &Finding| {
        let same = |old: &Finding| {
            let differs = FindingKind::KernelDiffers;
            old == finding || (old.kind, finding.kind) == (differs, differs)
        };
        !before.iter().any(same)
    };
    again.into_iter().filter(|finding| !in_passing(finding)).collect()
}

/// Where kernel and store differ now, and the revision of what the kernel was held against.
async fn differences(agent: &Agent, veths: &Veths) -> Result<(u64, Vec<Finding>), ReportError> {
    if current_join(agent).is_none() {
        return Err(ReportError::NotYet);
    }
    // What is judged is taken down first, what it is judged by afterwards.
    let begun = {
        let state = agent.state();
        Begun::now(&state.view, &state.flights)
    };
    let interfaces = veths.interfaces().await?;
    let sight = begun.found(interfaces.keys().copied().collect());
    let Some((desired, steps)) = examine(agent).await? else { return Err(ReportError::NotYet) };
    let state = agent.state();
    let known = Known {
        host: &agent.identity.host,
        boot: agent.identity.boot,
        view: &state.view,
        flights: &state.flights,
        records: &state.records,
        endings: &state.endings,
    };
    let orphans = orphans(&interfaces, false, &known);
    let seen = Seen {
        boot: agent.identity.boot,
        view: &state.view,
        records: &state.records,
        severed: &state.severed,
        interfaces: &interfaces,
        sight: &sight,
        orphans: &orphans,
        netns_exists: &netns_exists,
        desired: &desired,
        steps: &steps,
    };
    let revision = state.view.position().map_or(0, |(_, revision)| revision);
    Ok((revision, findings(&seen)))
}

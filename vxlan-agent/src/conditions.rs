//! Edge: conditions: what others did to this host that is in limpet's way, looked for every 30 s and when something
//! has changed; said once when it begins and once when it ends.
//!
//! | module | |
//! |---|---|
//! | [`mod@survey`], [`files`], [`programs`] | read what there is (edges) |
//! | [`surroundings`], [`memory`] | what was read, and what happened lately |
//! | [`packet`], [`iptables`], [`nftables`], [`filters`] | what becomes of limpet's packets in others' rules |
//! | [`tunnels`], [`managers`], [`machine`] | the other judgements |
//! | [`mend`] | the two rules that limpet sets if it is asked to |

mod files;
mod filters;
#[cfg(test)]
mod fixture;
mod iptables;
mod machine;
mod managers;
mod memory;
mod mend;
mod nftables;
mod packet;
mod programs;
mod surroundings;
mod survey;
mod tunnels;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use limpet_api::condition::{Condition, ConditionCode, Severity};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::agent::{Agent, sentence};

use self::surroundings::Surroundings;
use self::survey::Surveyor;

pub(crate) use self::survey::{Known, SurveyError};

/// How often conditions are looked for even if nothing says that anything changed.
const ROUND: Duration = Duration::from_secs(30);

/// How long what has changed is gathered: a firewall sets its rules one after another.
const GATHER: Duration = Duration::from_secs(1);

/// How long somebody waits for a look that he asked for.
const PATIENCE: Duration = Duration::from_secs(5);

/// What was found at the last look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Survey {
    /// How many looks there were.
    pub(crate) count: u64,
    /// Whether another one has begun.
    pub(crate) under_way: bool,
    /// What was found, the worst first.
    pub(crate) conditions: Vec<Condition>,
    /// The kernel's release.
    pub(crate) kernel: String,
}

/// Looks until `stop`.
pub(crate) async fn run(agent: Arc<Agent>, stop: CancellationToken) {
    let mut surveyor = Surveyor::new(Path::new("/"));
    let mut round = interval(ROUND);
    round.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut complaint = String::new();
    loop {
        // All may be dropped: what they ring for is looked up.
        tokio::select! {
            () = stop.cancelled() => return,
            _ = round.tick() => {}
            () = agent.survey.notified() => {}
        }
        agent.surveys.send_modify(|survey| survey.under_way = true);
        // Only what is read is dropped, or a rule that the next agent sets.
        match stop.run_until_cancelled(look(&mut surveyor, Known::of(&agent))).await {
            None => return,
            Some(Ok(found)) => {
                complaint.clear();
                note(&agent, found);
            }
            Some(Err(error)) => {
                agent.surveys.send_modify(|survey| survey.under_way = false);
                let words = sentence(&error);
                if words != complaint {
                    warn!(error = words, "cannot look for what others did to this host");
                    complaint = words;
                }
            }
        }
        // Whoever changes things all the time is looked at once a second.
        if stop.run_until_cancelled(sleep(GATHER)).await.is_none() {
            return;
        }
    }
}

/// One look by somebody who is no agent: nothing is mended.
pub(crate) async fn look_once(known: Known) -> Result<Survey, SurveyError> {
    let around = Surveyor::new(Path::new("/")).look(known).await?;
    judged(around).await
}

/// Looks around, mends what is asked for and judges what is left.
async fn look(surveyor: &mut Surveyor, known: Known) -> Result<Survey, SurveyError> {
    let mut around = surveyor.look(known).await?;
    let mut changed = false;
    for listed in around.filters.iptables.clone() {
        for command in mend::commands(&around, &listed) {
            let words = format!("{} {}", listed.tool, command.join(" "));
            match programs::change(listed.tool, &command).await {
                Ok(()) => info!(command = words, "a rule of limpet's in a chain of iptables"),
                Err(error) => warn!(error = sentence(&error), command = words, "a rule is not set"),
            }
            changed = true;
        }
    }
    if changed {
        Surveyor::look_at_filters(&mut around).await;
    }
    judged(around).await
}

/// Others' rules may be tens of thousands: whoever judges them keeps nobody else from the processor's threads.
async fn judged(around: Surroundings) -> Result<Survey, SurveyError> {
    Ok(tokio::task::spawn_blocking(move || survey(&around)).await?)
}

fn survey(around: &Surroundings) -> Survey {
    let mut conditions = filters::judge(around);
    conditions.extend(tunnels::judge(around));
    conditions.extend(managers::judge(around));
    conditions.extend(machine::judge(around));
    conditions.sort_by(|a, b| (b.severity, a.code, &a.about).cmp(&(a.severity, b.code, &b.about)));
    Survey { conditions, kernel: around.kernel.clone(), ..Survey::default() }
}

/// Says what has begun and what has ended, and keeps what was found.
fn note(agent: &Agent, found: Survey) {
    let before = agent.surveys.borrow().conditions.clone();
    let key = |condition: &Condition| (condition.code, condition.about.clone());
    let known: BTreeMap<_, _> =
        before.iter().map(|condition| (key(condition), condition)).collect();
    for condition in &found.conditions {
        if known.get(&key(condition)).is_none_or(|old| old.severity != condition.severity) {
            begun(condition);
        }
    }
    let now: Vec<_> = found.conditions.iter().map(key).collect();
    for condition in before.iter().filter(|condition| !now.contains(&key(condition))) {
        let (code, what) = (condition.code.as_str(), &condition.what);
        info!(code, what, "a condition of this host is over");
    }
    let codes = found.conditions.iter().map(|condition| condition.code);
    agent.metrics.conditions(&codes.collect::<Vec<ConditionCode>>());
    agent.surveys.send_modify(|survey| *survey = Survey { count: survey.count + 1, ..found });
}

fn begun(condition: &Condition) {
    let Condition { severity, what, breaks, remedy, .. } = condition;
    let code = condition.code.as_str();
    match severity {
        Severity::Broken => error!(code, what, breaks, remedy, "this host is not as it should be"),
        Severity::Risk => warn!(code, what, breaks, remedy, "this host may not be as it should be"),
        Severity::Note => info!(code, what, breaks, "a condition of this host"),
    }
}

/// What is found by a look that begins now; if that takes too long, what was found last.
pub(crate) async fn fresh(agent: &Agent) -> Survey {
    let mut surveys = agent.surveys.subscribe();
    let before = {
        let survey = surveys.borrow_and_update();
        // One that is under way may have passed by what has changed just now.
        survey.count + u64::from(survey.under_way)
    };
    agent.survey.notify_one();
    let _ = timeout(PATIENCE, surveys.wait_for(|survey| survey.count > before)).await;
    agent.surveys.borrow().clone()
}

#[cfg(test)]
mod tests {
    use limpet_api::condition::Mending;

    use super::*;
    use crate::metrics::Metrics;

    fn condition(code: ConditionCode, severity: Severity) -> Condition {
        Condition {
            code,
            severity,
            about: None,
            what: "what".to_owned(),
            breaks: "breaks".to_owned(),
            remedy: "remedy".to_owned(),
            mending: Mending::ByHand,
        }
    }

    #[test]
    fn what_was_found_is_kept_and_shown_as_a_metric_until_it_is_over() {
        let agent = crate::fixture::agent();
        let clock = condition(ConditionCode::ClockJumped, Severity::Note);
        note(&agent, Survey { conditions: vec![clock.clone()], ..Survey::default() });
        let line = |value: u8| format!("limpet_condition{{code=\"clock-jumped\"}} {value}");
        assert!(Metrics::text(&agent).contains(&line(1)), "{}", Metrics::text(&agent));
        assert_eq!(agent.surveys.borrow().conditions, [clock]);
        note(&agent, Survey::default());
        assert!(Metrics::text(&agent).contains(&line(0)));
        assert_eq!(agent.surveys.borrow().count, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_while_a_look_is_under_way_is_told_of_the_next_one() {
        let agent = crate::fixture::agent();
        agent.surveys.send_modify(|survey| survey.under_way = true);
        let clock = condition(ConditionCode::ClockJumped, Severity::Note);
        let looks = async {
            agent.survey.notified().await;
            note(&agent, Survey::default());
            sleep(GATHER).await;
            note(&agent, Survey { conditions: vec![clock.clone()], ..Survey::default() });
        };
        let ((), told) = tokio::join!(looks, fresh(&agent));
        assert_eq!((told.count, told.conditions), (2, vec![clock.clone()]));
        // Where none is, the next one is the one.
        let looks = async {
            agent.survey.notified().await;
            note(&agent, Survey::default());
        };
        let ((), told) = tokio::join!(looks, fresh(&agent));
        assert_eq!((told.count, told.conditions), (3, vec![]));
    }

    #[test]
    fn the_worst_is_first_and_the_rest_by_code() {
        let mut around = fixture::around();
        around.kernel = "5.10".to_owned();
        around.jumped = Some(60);
        around.overruns = 1;
        let found: Vec<_> = survey(&around).conditions.iter().map(|found| found.code).collect();
        assert_eq!(
            found,
            [
                ConditionCode::KernelOld,
                ConditionCode::ClockJumped,
                ConditionCode::NotificationsLost,
            ]
        );
    }

    #[test]
    fn every_condition_is_in_the_manual_with_what_to_do() {
        let manual = include_str!("../../docs/operations.md");
        for code in ConditionCode::ALL {
            let row = format!("| `{}` |", code.as_str());
            assert!(manual.contains(&row), "docs/operations.md has no row {row}");
        }
    }
}

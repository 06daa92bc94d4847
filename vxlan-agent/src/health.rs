//! Edge: how the host is, as its agent says: to `limpet-agent check` and, by reports, to the controller.

use std::time::{Duration, SystemTime};

use limpet_api::Span;
use limpet_api::doctor::{CheckUp, DriftCount, Drifted, Health};

use crate::agent::{Agent, not_joined, sentence};
use crate::conditions::{Survey, fresh};
use crate::run::examine;

/// How many of the last drifts are told.
const DRIFTS: usize = 20;

/// How many of the problems are told, and how many characters of each and of a drift: a report passes through the controller's
/// store, and what is wrong a thousand times is wrong for one reason.
const PROBLEMS: usize = 100;
const LONGEST: usize = 1000;

/// How the host is now.
pub(crate) async fn health(agent: &Agent) -> Health {
    let survey = fresh(agent).await;
    of(agent, survey)
}

fn of(agent: &Agent, survey: Survey) -> Health {
    let now = agent.now();
    let absent = agent.session().is_err() || agent.long_silent();
    let pass = agent.passes.borrow().clone();
    let state = agent.state();
    let reach = state.reach.as_ref().and_then(|reach| reach.as_ref().ok());
    let absent = absent.then(|| not_joined(&state).message);
    let mut ports: Vec<u16> = state.view.networks.values().map(|network| network.port).collect();
    ports.sort_unstable();
    ports.dedup();
    let counts = state.drifts.counts().filter(|(_, count)| *count > 0);
    Health {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: survey.kernel,
        running: span(now.uptime),
        underlay: reach.map(|reach| reach.underlay),
        underlay_mtu: reach.map(|reach| reach.mtu),
        ports,
        conditions: survey.conditions,
        problems: most(
            absent
                .into_iter()
                .chain(state.not_asserted.clone())
                .chain(pass.failures)
                .chain(pass.problems),
        ),
        severed: u64::try_from(state.severed.len()).unwrap_or(u64::MAX),
        drift: counts
            .map(|(kind, count)| DriftCount { kind: kind.name().to_owned(), count })
            .collect(),
        drifted: state
            .drifts
            .last()
            .take(DRIFTS)
            .map(|drift| Drifted {
                kind: drift.kind.name().to_owned(),
                what: cut(drift.what.clone()),
                times: drift.times,
                ago: span(since(now.at, drift.last)),
            })
            .collect(),
    }
}

/// The first of many sentences, and how many more there are.
fn most(mut sentences: impl Iterator<Item = String>) -> Vec<String> {
    let mut told: Vec<String> = sentences.by_ref().take(PROBLEMS).map(cut).collect();
    let more = sentences.count();
    if more > 0 {
        told.push(format!("{more} more: `limpet-agent status` on the host lists them"));
    }
    told
}

/// A text no longer than is told.
fn cut(text: String) -> String {
    if text.len() <= LONGEST {
        return text;
    }
    text.chars().take(LONGEST).chain(" ...".chars()).collect()
}

fn since(now: SystemTime, then: SystemTime) -> Duration {
    // A clock that was set back: just now is as good as anything.
    now.duration_since(then).unwrap_or_default()
}

fn span(time: Duration) -> Span {
    Span::from_seconds(time.as_secs())
}

/// What `limpet-agent check` is answered.
pub(crate) async fn check_up(agent: &Agent) -> CheckUp {
    let health = health(agent).await;
    let (differences, unknown) = match examine(agent).await {
        Ok(Some((_, steps))) => (steps.iter().map(ToString::to_string).collect(), None),
        Ok(None) => (Vec::new(), Some(not_joined(&agent.state()).message)),
        Err(error) => (Vec::new(), Some(sentence(&error))),
    };
    CheckUp { health, differences, unknown }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drift::Kind;
    use crate::fixture;

    #[test]
    fn a_host_says_what_is_wrong_and_what_others_changed_the_newest_first() {
        let agent = fixture::agent();
        for what in ["a", "b", "a"] {
            let _ = agent.state().drifts.note(Kind::Route, what.to_owned(), agent.now());
        }
        agent.passes.send_modify(|pass| pass.failures = vec!["it failed".to_owned()]);
        let survey = Survey { kernel: "6.18.4".to_owned(), ..Survey::default() };
        let health = of(&agent, survey);
        assert_eq!(health.problems, ["this host has not joined yet", "it failed"]);
        let counts: Vec<_> = health.drift.iter().map(|d| (d.kind.as_str(), d.count)).collect();
        assert_eq!(counts, [("route", 3)]);
        let last: Vec<_> = health.drifted.iter().map(|d| (d.what.as_str(), d.times)).collect();
        assert_eq!(last, [("a", 2), ("b", 1)]);
        assert_eq!((health.kernel.as_str(), health.underlay), ("6.18.4", None));
    }

    #[test]
    fn what_is_wrong_ten_thousand_times_still_fits_into_a_report() {
        let agent = fixture::agent();
        let failures: Vec<String> =
            (0..10_000).map(|n| format!("route {n}: {}", "ä".repeat(2000))).collect();
        let _ = agent.state().drifts.note(Kind::Nftables, failures.concat(), agent.now());
        agent.passes.send_modify(|pass| pass.failures = failures);
        let health = of(&agent, Survey::default());
        assert_eq!(health.problems.len(), PROBLEMS + 1);
        let last = health.problems.last().unwrap();
        assert_eq!(last, "9901 more: `limpet-agent status` on the host lists them");
        assert!(serde_json::to_vec(&health).unwrap().len() < 1 << 18);
    }
}

//! Edge: what the service manager is told: that the host is ready, that the agent still turns, and how things stand.
//!
//! Without one nobody is told, and that is no failure.

use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::agent::{Agent, not_joined};

/// How long the start is held up for the kernel to be right. A host that never learns what should be has to come up all
/// the same, with whatever runs on it: its containers are refused with the reason, and tried again by their runtime.
const READY_LIMIT: Duration = Duration::from_secs(15);

/// How often it is looked whether other words are due.
const WORDS: Duration = Duration::from_secs(1);

/// What `systemctl status` shows in one line, in bytes.
const LONGEST: usize = 400;

/// How things stand, as far as one line has room for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Standing {
    /// Why the host is not joined, if it is not.
    absent: Option<String>,
    /// The revision that is known.
    revision: Option<u64>,
    attachments: usize,
    /// What failed or cannot be laid out.
    problems: Vec<String>,
    /// Whether the kernel was made right since the agent started.
    passed: bool,
}

/// Tells the service manager until `stop`.
pub(crate) async fn run(agent: Arc<Agent>, stop: CancellationToken) {
    let telling = async { tokio::join!(tell_when_ready(&agent), beat(&agent), say(&agent)) };
    let _ = stop.run_until_cancelled(telling).await;
}

/// Tells it that the agent stops.
pub(crate) fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// Ready is who serves the plugin and has made the kernel right once, by the controller's word or by what is on disk.
async fn tell_when_ready(agent: &Agent) {
    let mut passes = agent.passes.subscribe();
    if timeout(READY_LIMIT, passes.wait_for(|pass| pass.count > 0)).await.is_ok() {
        info!("ready");
    } else {
        warn!(
            waited = ?READY_LIMIT, why = standing(agent).to_string(),
            "ready, with the kernel as it was: what waits for this host is not held up longer"
        );
    }
    notify(&[NotifyState::Ready]);
}

/// Says that the agent is alive as often as it is asked to, and only when the loop that matters has come round.
async fn beat(agent: &Agent) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    let mut every = interval((limit / 3).max(Duration::from_millis(1)));
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        agent.pulse.felt().await;
        notify(&[NotifyState::Watchdog]);
    }
}

/// Keeps the line that `systemctl status` shows true.
async fn say(agent: &Agent) {
    let mut every = interval(WORDS);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut passes, mut said) = (agent.passes.subscribe(), String::new());
    loop {
        // Both may be dropped: what they tell of is looked up.
        tokio::select! {
            _ = every.tick() => {}
            _ = passes.changed() => {}
        }
        let words = standing(agent).to_string();
        if words != said {
            notify(&[NotifyState::Status(&words)]);
            said = words;
        }
    }
}

fn standing(agent: &Agent) -> Standing {
    let joined = agent.session().is_ok();
    let pass = agent.passes.borrow().clone();
    let state = agent.state();
    let absent = (!joined || state.contact.silent.is_some()).then(|| not_joined(&state).message);
    Standing {
        absent,
        revision: state.view.position().map(|(_, revision)| revision),
        attachments: state.view.attachments().count(),
        problems: pass.failures.into_iter().chain(pass.problems).collect(),
        passed: pass.count > 0,
    }
}

/// One line, whatever others' words in it are: a second line would be another message to the service manager.
impl std::fmt::Display for Standing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut words = match (&self.absent, self.revision) {
            (Some(why), _) => format!("no new containers: {why}"),
            (None, Some(revision)) => format!("joined, knows revision {revision}"),
            (None, None) => "joined, knows nothing yet".to_owned(),
        };
        let attachments = match self.attachments {
            1 => ", 1 attachment".to_owned(),
            number => format!(", {number} attachments"),
        };
        words += &attachments;
        words += match (self.passed, self.problems.as_slice()) {
            (false, []) => ", the kernel is as it was",
            (true, []) => ", the kernel is right",
            (_, [_]) => ", 1 problem: ",
            _ => ", several problems: ",
        };
        words += &self.problems.join("; ");
        let mut line: String = words.chars().filter(|c| !c.is_control()).collect();
        if line.len() > LONGEST {
            let end = (0..=LONGEST).rev().find(|&at| line.is_char_boundary(at)).unwrap_or(0);
            line.truncate(end);
            line += "...";
        }
        f.write_str(&line)
    }
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!(%error, "cannot notify the service manager");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_things_stand_is_one_line_that_names_what_is_wrong() {
        let well =
            Standing { revision: Some(41), attachments: 1, passed: true, ..Standing::default() };
        assert_eq!(
            well.to_string(),
            "joined, knows revision 41, 1 attachment, the kernel is right"
        );
        let absent = Some("cannot reach http://192.0.2.200:7600".to_owned());
        let alone = Standing { absent, passed: false, ..well.clone() };
        assert_eq!(
            alone.to_string(),
            "no new containers: cannot reach http://192.0.2.200:7600, 1 attachment, the kernel is as it was"
        );
        let problems = vec!["one\nREADY=1".to_owned(), "\u{1b}two".to_owned()];
        let wrong = Standing { problems, ..well.clone() }.to_string();
        assert!(wrong.ends_with("several problems: oneREADY=1; two"), "{wrong}");
        let long = Standing { problems: vec!["\u{e4}".repeat(900)], ..well }.to_string();
        assert!(long.len() <= LONGEST + 3 && long.ends_with("..."), "{long}");
    }
}

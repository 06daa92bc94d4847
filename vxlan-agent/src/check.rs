//! Edge: `limpet-agent check`: what is wrong on this host, with the agent running or without.

use std::io::{self, Write as _};
use std::time::Duration;

use anyhow::Context as _;
use limpet_api::client::{Call, ClientError, Connection, Endpoint, Method};
use limpet_api::condition::{Condition, Severity};
use limpet_api::doctor::{CheckUp, Health};
use limpet_api::paths;

use crate::conditions::{Known, look_once};
use crate::config::Config;
use crate::dry_run::{self, view_of};
use crate::facts::Choice;
use crate::view::View;

/// How long the agent has for its answer: it looks around for that.
const LIMIT: Duration = Duration::from_secs(20);

/// The exit code if something is wrong.
const WRONG: u8 = 1;

/// The exit code if that cannot be told.
pub(crate) const UNKNOWN: u8 = 2;

/// Prints what is wrong and returns the exit code.
pub(crate) async fn run(config: Config, json: bool) -> anyhow::Result<u8> {
    let check_up = match from_agent(&config).await? {
        Some(check_up) => check_up,
        None => by_itself(config).await?,
    };
    let text = if json {
        serde_json::to_string_pretty(&check_up).context("writing JSON")? + "\n"
    } else {
        render(&check_up)
    };
    match io::stdout().write_all(text.as_bytes()) {
        // That nobody reads on is no failure.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("writing to stdout")
        }
        _ => Ok(code(&check_up)),
    }
}

/// What the running agent says; none if there is no agent.
async fn from_agent(config: &Config) -> anyhow::Result<Option<CheckUp>> {
    let endpoint = Endpoint::Unix(config.socket.clone());
    let mut connection = match Connection::open(&endpoint, LIMIT).await {
        Ok(connection) => connection,
        Err(ClientError::Connect { .. }) => return Ok(None),
        Err(error) => return Err(error).context("asking the agent"),
    };
    let call = Call::new(Method::GET, paths::route::SOCKET_CHECK);
    connection.call(&call, LIMIT).await.context("asking the agent").map(Some)
}

/// What can be seen without an agent: the host's conditions, and, where a controller knows the host, its kernel.
async fn by_itself(config: Config) -> anyhow::Result<CheckUp> {
    let hostname =
        std::fs::read_to_string("/proc/sys/kernel/hostname").context("reading the hostname")?;
    let name = config.host_name(&hostname)?;
    // Without a controller nothing is known of networks, and what can be judged without them is.
    let view = view_of(&config, &name).await.unwrap_or_else(|_| View::default());
    let choice = Choice { underlay: config.underlay, skipped: config.skip_device.clone() };
    let survey = look_once(Known::of_view(&view, choice, &config.mend)).await?;
    let nobody = format!("no agent listens at {}", config.socket.display());
    let (differences, unknown) = match dry_run::from_controller(config).await {
        Ok(commands) => (commands, None),
        Err(error) => (Vec::new(), Some(format!("{error:#}"))),
    };
    let health = Health {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: survey.kernel,
        conditions: survey.conditions,
        problems: vec![nobody],
        ..Health::default()
    };
    Ok(CheckUp { health, differences, unknown })
}

fn code(check_up: &CheckUp) -> u8 {
    let CheckUp { health, differences, unknown } = check_up;
    let wrong = |condition: &Condition| condition.severity > Severity::Note;
    if health.conditions.iter().any(wrong)
        || !health.problems.is_empty()
        || !differences.is_empty()
        || health.severed > 0
    {
        WRONG
    } else if unknown.is_some() {
        UNKNOWN
    } else {
        0
    }
}

/// First the facts, then what is wrong, the worst first.
fn render(check_up: &CheckUp) -> String {
    let CheckUp { health, differences, unknown } = check_up;
    let mut lines = vec![format!("agent        {}", health.version)];
    lines.push(format!("kernel       {}", health.kernel));
    if let (Some(underlay), Some(mtu)) = (health.underlay, health.underlay_mtu) {
        let ports: Vec<String> = health.ports.iter().map(ToString::to_string).collect();
        let ports = if ports.is_empty() { "none yet".to_owned() } else { ports.join(", ") };
        lines.push(format!("underlay     {underlay}, MTU {mtu}, UDP ports {ports}"));
    }
    for condition in &health.conditions {
        let Condition { code, severity, what, breaks, remedy, mending, .. } = condition;
        lines.push(format!("\n{} {}: {what}", severity.as_str().to_uppercase(), code.as_str()));
        lines.push(format!("  breaks: {breaks}"));
        lines.push(format!("  do:     {remedy} ({})", mending.as_str()));
    }
    let parts = [
        ("problems", health.problems.clone()),
        ("differences of the kernel, as the commands that are due", differences.clone()),
        ("the kernel was not looked at", unknown.iter().cloned().collect()),
        ("severed containers: see limpet-agent status", severed(health)),
        ("changed by others and put back since the agent started", drift(health)),
    ];
    for (head, rows) in parts.iter().filter(|(_, rows)| !rows.is_empty()) {
        lines.push(format!("\n{head}"));
        lines.extend(rows.iter().map(|row| format!("  {row}")));
    }
    lines.push(match code(check_up) {
        0 => "\nnothing is wrong".to_owned(),
        WRONG => "\nsomething is wrong".to_owned(),
        _ => "\nnothing wrong was seen, and not everything could be looked at".to_owned(),
    });
    // Parts of it come from others: no control character of theirs reaches the terminal.
    let harmless = |c: &char| *c == '\n' || !c.is_control();
    (lines.join("\n") + "\n").chars().filter(harmless).collect()
}

fn severed(health: &Health) -> Vec<String> {
    (health.severed > 0).then(|| health.severed.to_string()).into_iter().collect()
}

fn drift(health: &Health) -> Vec<String> {
    let counts = health.drift.iter().map(|drift| format!("{} {}", drift.count, drift.kind));
    let last = health
        .drifted
        .iter()
        .map(|drift| format!("{} ago, {} times: {}", drift.ago, drift.times, drift.what));
    counts.chain(last).collect()
}

#[cfg(test)]
mod tests {
    use limpet_api::condition::{ConditionCode, Mending};
    use limpet_api::doctor::{DriftCount, Drifted};

    use super::*;

    fn well() -> CheckUp {
        let health = Health {
            version: "0.1.0".to_owned(),
            kernel: "6.18.4".to_owned(),
            underlay: Some("192.0.2.1".parse().unwrap()),
            underlay_mtu: Some(1500),
            ports: vec![4789],
            ..Health::default()
        };
        CheckUp { health, differences: Vec::new(), unknown: None }
    }

    fn condition(severity: Severity) -> Condition {
        Condition {
            code: ConditionCode::ForwardPolicy,
            severity,
            about: None,
            what: "the policy drops".to_owned(),
            breaks: "everything".to_owned(),
            remedy: "mend it\u{1b}".to_owned(),
            mending: Mending::IfAsked,
        }
    }

    #[test]
    fn the_code_says_fine_or_wrong_or_not_known() {
        assert_eq!(code(&well()), 0);
        let mut noted = well();
        noted.health.conditions.push(condition(Severity::Note));
        assert_eq!(code(&noted), 0);
        let unknown = CheckUp { unknown: Some("no controller".to_owned()), ..well() };
        assert_eq!(code(&unknown), UNKNOWN);
        let mut risky = unknown.clone();
        risky.health.conditions.push(condition(Severity::Risk));
        assert_eq!(code(&risky), WRONG);
        assert_eq!(code(&CheckUp { differences: vec!["ip x".to_owned()], ..well() }), WRONG);
    }

    #[test]
    fn a_check_shows_facts_first_and_then_what_is_wrong() {
        let mut found = well();
        found.health.conditions.push(condition(Severity::Broken));
        found.differences.push("ip route replace 10.32.0.0/26".to_owned());
        found.health.drift.push(DriftCount { kind: "route".to_owned(), count: 3 });
        let (kind, what) = ("route".to_owned(), "ip route replace 10.32.0.64/26".to_owned());
        let ago = "5m".parse().unwrap();
        found.health.drifted.push(Drifted { kind, what, times: 3, ago });
        assert_eq!(
            render(&found),
            "agent        0.1.0\n\
             kernel       6.18.4\n\
             underlay     192.0.2.1, MTU 1500, UDP ports 4789\n\
             \n\
             BROKEN forward-policy: the policy drops\n  \
               breaks: everything\n  \
               do:     mend it (if-asked)\n\
             \n\
             differences of the kernel, as the commands that are due\n  \
               ip route replace 10.32.0.0/26\n\
             \n\
             changed by others and put back since the agent started\n  \
               3 route\n  \
               5m ago, 3 times: ip route replace 10.32.0.64/26\n\
             \n\
             something is wrong\n"
        );
        assert!(render(&well()).ends_with("\nnothing is wrong\n"));
    }
}

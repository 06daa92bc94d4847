//! Edge: `limpetctl doctor`: how all hosts and the fleet are, and what to do: `run` asks, what is below it is pure.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use anyhow::{Context, bail};
use limpet_api::condition::{Condition, Severity};
use limpet_api::config::{HostStatus, PoolState, PoolUse};
use limpet_api::doctor::{DoctorLine, DoctorRequest, Health};
use limpet_api::host::Finding;
use limpet_api::paths;
use limpet_api::restore::RestoreStatus;
use limpet_net_types::HostName;
use serde::Serialize;

use crate::answer::{self, Answer, Answers};
use crate::cli::{Done, Output};
use crate::controller::Controller;
use crate::table;

/// The exit code if something is wrong.
const WRONG: u8 = 1;

/// The exit code if nothing wrong was seen and not every host answered.
const UNANSWERED: u8 = 2;

/// A pool of which less than one in so many addresses is free is nearly full.
const NEARLY_FULL: u64 = 10;

/// What `doctor` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Ask these hosts only; all that have joined if left out
    #[arg(value_name = "HOST")]
    hosts: Vec<HostName>,
}

/// How a host is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct OfHost {
    pub(crate) host: HostName,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) health: Option<Box<Health>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) findings: Vec<Finding>,
    pub(crate) more: u64,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Trouble {
    severity: Severity,
    /// A host's name, or `fleet`.
    at: String,
    /// The condition's code or the finding's kind.
    code: String,
    what: String,
    remedy: String,
}

/// All that was found.
#[derive(Debug, Default, Serialize)]
struct Found {
    /// The worst first.
    troubles: Vec<Trouble>,
    hosts: Vec<OfHost>,
    unanswered: Vec<HostName>,
}

/// Carries out the command.
pub(crate) fn run(args: &Args, controller: &Controller, output: Output) -> anyhow::Result<Done> {
    let (hosts, unanswered) = ask(&args.hosts, controller)?;
    let mut troubles: Vec<Trouble> = hosts.iter().flat_map(of_host).collect();
    if args.hosts.is_empty() {
        let statuses: Answers<HostStatus> =
            controller.read(paths::HOSTS).context("asking for hosts")?;
        let pools: Answers<PoolUse> = controller.read(paths::POOLS).context("asking for pools")?;
        let restore: Answer<RestoreStatus> =
            controller.read(paths::RESTORE).context("asking about restores")?;
        let statuses: Vec<&HostStatus> = statuses.items.iter().map(|host| &host.record).collect();
        troubles.extend(of_fleet(&statuses));
        troubles.extend(pools.items.iter().filter_map(|pool| of_pool(&pool.record)));
        troubles.extend(of_restore(&restore.record));
    }
    let key = |trouble: &Trouble| (trouble.at.clone(), trouble.code.clone());
    troubles.sort_by(|a, b| (b.severity, key(a)).cmp(&(a.severity, key(b))));
    let found = Found { troubles, hosts, unanswered };
    let code = found.code();
    Ok(Done::Verdict(render(&found, output)?, code))
}

/// Asks hosts, all that have joined if none are named, and returns how they are and who did not answer.
pub(crate) fn ask(
    hosts: &[HostName],
    controller: &Controller,
) -> anyhow::Result<(Vec<OfHost>, Vec<HostName>)> {
    let (mut answered, mut unanswered, mut is_done) = (Vec::new(), Vec::new(), false);
    let request = DoctorRequest { hosts: hosts.to_vec() };
    controller
        .lines_with(paths::DOCTOR, &request, &mut |line| {
            match line {
                // That nobody reads it changes nothing.
                DoctorLine::Doing(what) => drop(writeln!(io::stderr(), "limpetctl: {what}")),
                DoctorLine::Host { host, health, findings, more } => {
                    answered.push(OfHost { host, health, findings, more });
                }
                DoctorLine::Unanswered(host) => unanswered.push(host),
                DoctorLine::Done => is_done = true,
                DoctorLine::Failed(error) => return Err(error.into()),
            }
            Ok(())
        })
        .context("asking hosts how they are")?;
    if !is_done {
        bail!("the controller ended before all hosts had answered");
    }
    Ok((answered, unanswered))
}

impl Found {
    fn code(&self) -> u8 {
        if self.troubles.iter().any(|trouble| trouble.severity > Severity::Note) {
            WRONG
        } else if self.unanswered.is_empty() {
            0
        } else {
            UNANSWERED
        }
    }
}

fn of_host(of: &OfHost) -> Vec<Trouble> {
    let trouble = |severity, code: &str, what: String, remedy: String| Trouble {
        severity,
        at: of.host.to_string(),
        code: code.to_owned(),
        what,
        remedy,
    };
    let mut troubles = Vec::new();
    if let Some(health) = &of.health {
        troubles.extend(health.conditions.iter().map(|condition| {
            let Condition { severity, code, what, breaks, remedy, .. } = condition;
            trouble(*severity, code.as_str(), format!("{what}: {breaks}"), remedy.clone())
        }));
        troubles.extend(health.problems.iter().map(|problem| {
            let remedy = "`limpet-agent status` on the host, and its log".to_owned();
            trouble(Severity::Broken, "problem", problem.clone(), remedy)
        }));
    }
    troubles.extend(of.findings.iter().map(|finding| {
        let (kind, what) = (finding.kind.as_str(), finding.what.clone());
        trouble(Severity::Broken, kind, what, finding.repair.clone())
    }));
    if of.more > 0 {
        let remedy = "`limpetctl check --repair`".to_owned();
        troubles.push(trouble(Severity::Broken, "more", format!("{} more", of.more), remedy));
    }
    troubles
}

fn fleet(severity: Severity, code: &str, what: String, remedy: &str) -> Trouble {
    Trouble {
        severity,
        at: "fleet".to_owned(),
        code: code.to_owned(),
        what,
        remedy: remedy.to_owned(),
    }
}

fn of_fleet(hosts: &[&HostStatus]) -> Vec<Trouble> {
    let mut troubles = Vec::new();
    for status in hosts {
        if let Some(silent) = status.silent {
            let what = format!("host {} has not been heard of for {silent}", status.host.name);
            let remedy = "see whether it runs and reaches the controllers; `limpetctl host delete` if it is gone";
            troubles.push(fleet(Severity::Risk, "host-silent", what, remedy));
        }
    }
    let mut versions: Vec<&str> =
        hosts.iter().filter_map(|status| status.version.as_deref()).collect();
    versions.sort_unstable();
    versions.dedup();
    if versions.len() > 1 {
        let what = format!("agents have the versions {}", versions.join(", "));
        troubles.push(fleet(Severity::Note, "agent-versions", what, "finish the upgrade"));
    }
    troubles
}

fn of_pool(pool: &PoolUse) -> Option<Trouble> {
    // What gives nothing any more need have nothing left.
    if pool.pool.state == PoolState::Draining {
        return None;
    }
    let (name, usage) = (&pool.pool.name, &pool.usage);
    let left = usage.free.saturating_add(usage.cooling);
    let severity = if left == 0 {
        Severity::Broken
    } else if left < usage.size / NEARLY_FULL {
        Severity::Risk
    } else {
        return None;
    };
    let what = format!(
        "pool {name} has {left} of {} addresses left: {} are held, {} reserved",
        table::count(usage.size),
        usage.held,
        usage.reserved
    );
    let remedy = "`limpetctl pool set --range` makes it larger, `limpetctl reservation release --pool` gives up \
                  what nobody holds";
    Some(fleet(severity, "pool-nearly-full", what, remedy))
}

fn of_restore(status: &RestoreStatus) -> Option<Trouble> {
    if status.restoring.is_some() {
        let what = "a restore is under way or broke off: nothing else is done".to_owned();
        let remedy = "let it end, repeat it, or `limpetctl restore discard`";
        return Some(fleet(Severity::Broken, "restoring", what, remedy));
    }
    let waiting = &status.restored.as_ref()?.waiting;
    (!waiting.is_empty()).then(|| {
        let hosts = table::list(waiting);
        let what = format!(
            "the store was restored: nothing new is given before these have spoken: {hosts}"
        );
        fleet(
            Severity::Broken,
            "restored",
            what,
            "start their agents, or `limpetctl restore waive`",
        )
    })
}

fn render(found: &Found, output: Output) -> anyhow::Result<String> {
    if let Output::Json = output {
        return answer::json(found);
    }
    let mut text = String::new();
    for Trouble { severity, at, code, what, remedy } in &found.troubles {
        let line = format!("{} {at} {code}: {what}", severity.as_str().to_uppercase());
        writeln!(text, "{}\n  do: {}\n", table::harmless(&line), table::harmless(remedy))?;
    }
    let drifts = found.hosts.iter().filter_map(|of| {
        let count: u64 = of.health.as_ref()?.drift.iter().map(|drift| drift.count).sum();
        (count > 0).then(|| format!("{} ({count})", of.host))
    });
    let drifts: Vec<String> = drifts.collect();
    if !drifts.is_empty() {
        writeln!(
            text,
            "changed by others and put back, `limpetctl host drift`: {}",
            drifts.join(", ")
        )?;
    }
    let dumb = found.hosts.iter().filter(|of| of.health.is_none()).map(|of| of.host.to_string());
    let dumb: Vec<String> = dumb.collect();
    if !dumb.is_empty() {
        writeln!(text, "their agents are too old to say how they are: {}", dumb.join(", "))?;
    }
    if !found.unanswered.is_empty() {
        writeln!(text, "no answer: {}", table::list(&found.unanswered))?;
    }
    let verdict = match found.code() {
        WRONG => "something is wrong",
        UNANSWERED => "nothing wrong was seen, and not every host answered",
        _ => "nothing is wrong",
    };
    writeln!(text, "{} answered: {verdict}", table::plural(found.hosts.len(), "host"))?;
    Ok(text)
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;
    use crate::golden;

    pub(crate) fn of_hosts() -> Vec<OfHost> {
        let health = json!({
            "version": "0.1.0", "kernel": "6.18.4", "running": "3d",
            "conditions": [
                {"code": "forward-policy", "severity": "broken", "about": "iptables-nft filter FORWARD",
                 "what": "the policy drops\u{1b}[31m", "breaks": "containers reach nobody",
                 "remedy": "start the agent with --mend forward-policy", "mending": "if-asked"},
                {"code": "of-tomorrow", "severity": "note", "what": "news", "breaks": "nothing",
                 "remedy": "nothing to do", "mending": "by-hand"},
            ],
            "drift": [{"kind": "route", "count": 3}, {"kind": "setting", "count": 1}],
            "drifted": [
                {"kind": "route", "what": "ip route replace 10.32.0.64/26 nhid 1", "times": 3, "ago": "5m"},
                {"kind": "setting", "what": "sysctl -w net.ipv4.conf.limpet1.forwarding=1", "times": 1, "ago": "2d"},
            ],
        });
        let finding = json!({
            "kind": "route-missing", "what": "container c1 has no route for 10.32.0.7",
            "repair": "the agent's next pass sets it",
        });
        let health = serde_json::from_value(health).unwrap();
        let findings = vec![serde_json::from_value(finding).unwrap()];
        let name = |name: &str| name.parse().unwrap();
        vec![
            OfHost { host: name("node-a"), health: Some(health), findings, more: 2 },
            OfHost { host: name("node-b"), health: None, findings: Vec::new(), more: 0 },
        ]
    }

    #[test]
    fn the_worst_is_first_and_each_says_what_to_do() {
        let hosts = of_hosts();
        let mut troubles: Vec<Trouble> = hosts.iter().flat_map(of_host).collect();
        let usage =
            json!({"size": 100, "held": 90, "reserved": 4, "cooling": 1, "free": 5, "blocks": 2});
        let pool = json!({
            "name": "pods-v4", "network": "pods", "range": "10.32.0.0/16", "block_size": 64, "sticky": "auto",
            "retention": "7d", "cooldown": "1m", "priority": 0, "state": "active", "usage": usage,
        });
        let mut pool: PoolUse = serde_json::from_value(pool).unwrap();
        troubles.extend(of_pool(&pool));
        pool.pool.state = PoolState::Draining;
        assert_eq!(of_pool(&pool), None);
        troubles.sort_by_key(|trouble| std::cmp::Reverse(trouble.severity));
        let unanswered = vec!["node-c".parse().unwrap()];
        let found = Found { troubles, hosts, unanswered };
        assert_eq!(found.code(), WRONG);
        golden::check("doctor", &render(&found, Output::Table).unwrap());
        golden::check("doctor.json", &render(&found, Output::Json).unwrap());
    }

    #[test]
    fn the_exit_code_tells_what_is_well_from_what_is_not_known() {
        let mut found = Found::default();
        assert_eq!(found.code(), 0);
        golden::check("doctor-well", &render(&found, Output::Table).unwrap());
        let note = fleet(Severity::Note, "agent-versions", "two".to_owned(), "finish");
        found.troubles.push(note);
        assert_eq!(found.code(), 0);
        found.unanswered.push("node-c".parse().unwrap());
        assert_eq!(found.code(), UNANSWERED);
        found.troubles.push(fleet(Severity::Risk, "host-silent", String::new(), ""));
        assert_eq!(found.code(), WRONG);
    }

    #[test]
    fn the_fleet_is_judged_by_silence_versions_and_restores() {
        let host = |name: &str, version: &str, silent: Option<&str>| -> HostStatus {
            serde_json::from_value(json!({
                "name": name, "roles": ["node"], "vtep_mac": "02:00:00:00:00:03", "alive": silent.is_none(),
                "attachments": 0, "version": version, "silent": silent,
            }))
            .unwrap()
        };
        let (a, b) = (host("node-a", "0.1.0", None), host("node-b", "0.2.0", Some("3d")));
        let codes: Vec<String> =
            of_fleet(&[&a, &b]).into_iter().map(|trouble| trouble.code).collect();
        assert_eq!(codes, ["host-silent", "agent-versions"]);
        assert_eq!(of_fleet(&[&a]), []);
        let status = |restored| -> RestoreStatus {
            let store = "00000000000000000000000000000001";
            serde_json::from_value(json!({"store": store, "now": 7, "restored": restored})).unwrap()
        };
        assert_eq!(of_restore(&status(json!(null))), None);
        let waiting = |hosts: &[&str]| status(json!({"at": 5, "hosts": 2, "waiting": hosts}));
        assert_eq!(of_restore(&waiting(&[])), None);
        assert!(of_restore(&waiting(&["node-a"])).unwrap().what.contains("node-a"));
    }
}

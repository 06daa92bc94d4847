//! Edge: `limpetctl check`: the store against itself, and hosts' kernels against the store.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use anyhow::{Context, bail};
use limpet_api::check::{CheckLine, CheckRequest, Inconsistency};
use limpet_api::host::Finding;
use limpet_api::paths;
use limpet_net_types::HostName;
use serde::Serialize;

use crate::answer;
use crate::cli::{Done, Output};
use crate::controller::Controller;
use crate::table;

/// The exit code if something is wrong.
const FOUND: u8 = 1;

/// The exit code if not everything could be looked at, and nothing wrong was seen.
const UNCHECKED: u8 = 2;

/// What `check` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Repair what can be repaired safely, here and on the hosts, then say what is left
    #[arg(long)]
    repair: bool,
}

/// What was found.
#[derive(Debug, Default, Serialize)]
struct Checked {
    /// How many hosts were checked.
    hosts: u64,
    /// How many repairs of the store were done.
    repaired: u64,
    /// In what the store does not agree with itself.
    store: Vec<Inconsistency>,
    /// In what hosts' kernels do not agree with the store.
    kernels: Vec<OfHost>,
    /// Hosts with more findings than are listed, and how many.
    more: Vec<(HostName, u64)>,
    /// Hosts that did not answer.
    unchecked: Vec<HostName>,
}

#[derive(Debug, Serialize)]
struct OfHost {
    host: HostName,
    #[serde(flatten)]
    finding: Finding,
}

/// Carries out the command.
pub(crate) fn run(args: &Args, controller: &Controller, output: Output) -> anyhow::Result<Done> {
    let (mut checked, mut is_done) = (Checked::default(), false);
    let request = CheckRequest { repair: args.repair };
    controller
        .lines_with(paths::CHECK, &request, &mut |line| {
            match line {
                // That nobody reads it changes nothing.
                CheckLine::Doing(what) => drop(writeln!(io::stderr(), "limpetctl: {what}")),
                CheckLine::Repaired(count) => checked.repaired = count,
                CheckLine::Store(found) => checked.store.push(found),
                CheckLine::Host { host, finding } => checked.kernels.push(OfHost { host, finding }),
                CheckLine::More { host, count } => checked.more.push((host, count)),
                CheckLine::Unchecked(host) => checked.unchecked.push(host),
                CheckLine::Done { hosts } => (checked.hosts, is_done) = (hosts, true),
                CheckLine::Failed(error) => return Err(error.into()),
            }
            Ok(())
        })
        .context("checking")?;
    if !is_done {
        bail!("the controller ended before the check was over");
    }
    let code = checked.code();
    Ok(Done::Verdict(render(&checked, output)?, code))
}

impl Checked {
    fn code(&self) -> u8 {
        if !self.store.is_empty() || !self.kernels.is_empty() {
            FOUND
        } else if self.unchecked.is_empty() {
            0
        } else {
            UNCHECKED
        }
    }
}

fn render(checked: &Checked, output: Output) -> anyhow::Result<String> {
    if let Output::Json = output {
        return answer::json(checked);
    }
    let of_store = checked.store.iter().map(|found| {
        let repair = if found.repairable {
            format!("{} (--repair)", found.repair)
        } else {
            found.repair.clone()
        };
        ["store".to_owned(), found.kind.as_str().to_owned(), found.what.clone(), repair]
    });
    let of_hosts = checked.kernels.iter().map(|OfHost { host, finding }| {
        let (kind, what) = (finding.kind.as_str().to_owned(), finding.what.clone());
        [host.to_string(), kind, what, finding.repair.clone()]
    });
    let rows: Vec<_> = of_store.chain(of_hosts).collect();
    let mut text = String::new();
    let count = rows.len();
    if count > 0 {
        text = table::table(["WHERE", "KIND", "WHAT", "REPAIR"], rows);
    }
    for (host, more) in &checked.more {
        writeln!(text, "{host}: {more} more")?;
    }
    if checked.repaired > 0 {
        writeln!(text, "{} repairs of the store were done", checked.repaired)?;
    }
    if !checked.unchecked.is_empty() {
        let names: Vec<&str> = checked.unchecked.iter().map(HostName::as_str).collect();
        writeln!(text, "not checked, no answer: {}", names.join(", "))?;
    }
    let verdict = if count == 0 { "nothing found".to_owned() } else { format!("{count} found") };
    Ok(text + &format!("the store and {} hosts were checked: {verdict}\n", checked.hosts))
}

#[cfg(test)]
mod tests {
    use limpet_api::check::StoreFinding;
    use limpet_api::host::FindingKind;

    use super::*;
    use crate::golden;

    #[test]
    fn what_was_found_is_a_table_and_an_exit_code() {
        let mut checked = Checked { hosts: 2, ..Checked::default() };
        assert_eq!(checked.code(), 0);
        golden::check("check-clean", &render(&checked, Output::Table).unwrap());
        checked.unchecked.push("node-c".parse().unwrap());
        assert_eq!(checked.code(), UNCHECKED);
        checked.store.push(Inconsistency {
            kind: StoreFinding::AddressUnmarked,
            subject: "addresses/blue/0a200007".to_owned(),
            what: "container c1 on host node-a has 10.32.0.7, which does not say so".to_owned(),
            repair: "note the attachment at the address".to_owned(),
            repairable: true,
        });
        let finding = Finding {
            kind: FindingKind::RouteMissing,
            attachment: None,
            uid: None,
            ifname: None,
            what: "container c1 has no route for 10.32.0.7".to_owned(),
            repair: "the agent's next pass sets it".to_owned(),
        };
        checked.kernels.push(OfHost { host: "node-a".parse().unwrap(), finding });
        checked.more.push(("node-a".parse().unwrap(), 4));
        checked.repaired = 3;
        assert_eq!(checked.code(), FOUND);
        golden::check("check", &render(&checked, Output::Table).unwrap());
    }
}

//! Pure: `limpetctl host drift`: what others changed of limpet's on hosts, as text.

use std::fmt::Write as _;

use limpet_net_types::HostName;
use serde::Serialize;

use crate::answer;
use crate::cli::Output;
use crate::doctor::OfHost;
use crate::table;

/// What is printed for programs.
#[derive(Serialize)]
struct Drifts<'a> {
    hosts: Vec<OfOne<'a>>,
    unanswered: &'a [HostName],
}

#[derive(Serialize)]
struct OfOne<'a> {
    host: &'a HostName,
    drift: &'a [limpet_api::doctor::DriftCount],
    drifted: &'a [limpet_api::doctor::Drifted],
}

/// The counters of each host, then the last changes, the newest of each host first.
pub(crate) fn render(
    hosts: &[OfHost],
    unanswered: &[HostName],
    output: Output,
) -> anyhow::Result<String> {
    let told = hosts.iter().filter_map(|of| {
        let health = of.health.as_ref()?;
        Some(OfOne { host: &of.host, drift: &health.drift, drifted: &health.drifted })
    });
    let drifts = Drifts { hosts: told.collect(), unanswered };
    if let Output::Json = output {
        return answer::json(&drifts);
    }
    let counts = drifts.hosts.iter().flat_map(|of| {
        let rows = of.drift.iter();
        rows.map(|drift| [of.host.to_string(), drift.kind.clone(), drift.count.to_string()])
    });
    let counts: Vec<_> = counts.collect();
    let last = drifts.hosts.iter().flat_map(|of| {
        of.drifted.iter().map(|drift| {
            let (ago, times) = (format!("{} ago", drift.ago), drift.times.to_string());
            [of.host.to_string(), drift.kind.clone(), ago, times, drift.what.clone()]
        })
    });
    let last: Vec<_> = last.collect();
    let mut text = if counts.is_empty() {
        "nothing of limpet's was changed by others since the agents started\n".to_owned()
    } else {
        let counts = table::table(["HOST", "KIND", "COUNT"], counts);
        counts + "\n" + &table::table(["HOST", "KIND", "LAST", "TIMES", "PUT BACK BY"], last)
    };
    if !unanswered.is_empty() {
        writeln!(text, "no answer: {}", table::list(unanswered))?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::tests::of_hosts;
    use crate::golden;

    #[test]
    fn drift_is_shown_as_counters_and_by_name() {
        let unanswered = ["node-c".parse().unwrap()];
        golden::check("host-drift", &render(&of_hosts(), &unanswered, Output::Table).unwrap());
        golden::check("host-drift.json", &render(&of_hosts(), &unanswered, Output::Json).unwrap());
        golden::check("host-drift-none", &render(&[], &[], Output::Table).unwrap());
    }
}

//! Edge: `limpetctl quota`: `run` asks, what is below it is pure.

use anyhow::Context;
use clap::Subcommand;
use limpet_api::paths;
use limpet_api::quota::{QuotaSpec, QuotaUse};
use limpet_net_types::Namespace;
use serde_json::{Value, json};

use crate::answer::{self, Answer, Answers};
use crate::cli::{Done, Output};
use crate::controller::Controller;
use crate::table;

/// What `quota` takes; without a verb all quotas are listed.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Option<Verb>,
}

/// What to do.
#[derive(Debug, Subcommand)]
enum Verb {
    /// List all quotas
    List,
    /// Show the quota of a namespace
    Show {
        /// The namespace; _ is that of workloads that have none
        namespace: Namespace,
    },
    /// Say how many addresses a namespace may have; what it has already it keeps
    Set {
        /// The namespace; _ is that of workloads that have none
        namespace: Namespace,
        /// How many addresses it may have, held and reserved, in all networks together
        #[arg(long, value_name = "COUNT")]
        addresses: u64,
    },
    /// Let a namespace have any number of addresses again
    #[command(visible_alias = "delete")]
    Remove {
        /// The namespace; _ is that of workloads that have none
        namespace: Namespace,
    },
}

/// Carries out one command.
pub(crate) fn run(args: &Args, controller: &Controller, output: Output) -> anyhow::Result<Done> {
    let text = match args.verb.as_ref().unwrap_or(&Verb::List) {
        Verb::List => {
            let all = controller.list(paths::QUOTAS, &json!({}));
            render_all(&all.context("asking for quotas")?, output)?
        }
        Verb::Show { namespace } => {
            let quota = controller.read(&paths::quota(namespace));
            let asking = || format!("asking for the quota of namespace {namespace}");
            render(&quota.with_context(asking)?, output)?
        }
        Verb::Set { namespace, addresses } => {
            let spec = QuotaSpec { addresses: *addresses };
            let quota = controller.put(&paths::quota(namespace), &spec);
            let setting = || format!("setting the quota of namespace {namespace}");
            render(&quota.with_context(setting)?, output)?
        }
        Verb::Remove { namespace } => {
            let gone: Option<Value> = controller
                .delete(&paths::quota(namespace))
                .with_context(|| format!("removing the quota of namespace {namespace}"))?;
            let done = format!("namespace {namespace} has no quota any more");
            answer::gone(gone.as_ref(), &done, output)?
        }
    };
    Ok(Done::Answer(text))
}

/// How many addresses are left to take.
fn left(quota: &QuotaUse) -> u64 {
    quota.quota.addresses.saturating_sub(quota.held.saturating_add(quota.reserved))
}

fn render_all(quotas: &Answers<QuotaUse>, output: Output) -> anyhow::Result<String> {
    if output == Output::Json {
        return answer::json(quotas);
    }
    let rows = quotas.items.iter().map(|Answer { record, .. }| {
        [
            record.quota.namespace.to_string(),
            record.quota.addresses.to_string(),
            record.held.to_string(),
            record.reserved.to_string(),
            left(record).to_string(),
        ]
    });
    Ok(table::table(["NAMESPACE", "QUOTA", "HELD", "RESERVED", "LEFT"], rows))
}

fn render(quota: &Answer<QuotaUse>, output: Output) -> anyhow::Result<String> {
    if output == Output::Json {
        return answer::json(quota);
    }
    let quota = &quota.record;
    Ok(table::facts([
        ("Namespace", Some(quota.quota.namespace.to_string())),
        ("Quota", Some(quota.quota.addresses.to_string())),
        ("Held", Some(quota.held.to_string())),
        ("Reserved", Some(quota.reserved.to_string())),
        ("Left", Some(left(quota).to_string())),
    ]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden;

    #[test]
    fn quotas_are_shown_to_people_and_to_programs() {
        let answers: Answers<QuotaUse> = serde_json::from_value(json!({"revision": 40, "items": [
            {"namespace": "_", "addresses": 0, "held": 4, "reserved": 1},
            {"namespace": "prod", "addresses": 100, "held": 17, "reserved": 3},
        ]}))
        .unwrap();
        golden::check("quota-list", &render_all(&answers, Output::Table).unwrap());
        golden::check("quota-list.json", &render_all(&answers, Output::Json).unwrap());
        let shown: Vec<String> =
            answers.items.iter().map(|item| render(item, Output::Table).unwrap()).collect();
        golden::check("quota-show", &shown.join("\n"));
    }
}

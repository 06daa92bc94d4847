//! Edge: `limpetctl pool`: `run` asks, what is below it is pure.

use anyhow::Context;
use clap::Subcommand;
use limpet_api::config::{Pool, PoolChange, PoolSpec, PoolState, PoolUse, Select, Sticky, Usage};
use limpet_api::{After, Retention, Span, paths};
use limpet_net_types::{LabelKey, NameGlob, Namespace, NetworkName, PoolName, Range};
use serde_json::Value;

use crate::answer::{self, Answer, Answers};
use crate::cli::{self, Done, Output};
use crate::controller::Controller;
use crate::{by_pool, network, table};

const STICKY: &[&str] = &["always", "auto", "never"];
const STATES: &[&str] = &["active", "draining"];

/// What `pool` takes; without a verb all pools are listed.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    filter: Filter,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Clone, Debug, Default, clap::Args)]
struct Filter {
    /// List one network's pools only
    #[arg(long)]
    network: Option<NetworkName>,
}

/// What to do.
#[derive(Debug, Subcommand)]
enum Verb {
    /// List all pools and their use
    List(Filter),
    /// Show one pool; of one that is draining also who still has addresses of it
    Show {
        /// The pool
        name: PoolName,
    },
    /// Create a pool; repeating it changes nothing
    Create(Create),
    /// Change a pool
    Set(Set),
    /// Let a pool give no new addresses; who has one keeps it, and reservations come back to theirs
    Drain {
        /// The pool
        name: PoolName,
    },
    /// Let a draining pool give addresses again
    Undrain {
        /// The pool
        name: PoolName,
    },
    /// Delete a pool of which nothing is held or reserved any more
    Delete {
        /// The pool
        name: PoolName,
        /// Do it; without, what would be lost is shown
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, clap::Args)]
struct Create {
    /// Its name: at most 63 of a-z, 0-9 and '-'
    name: PoolName,
    /// The network that it belongs to; the only one if left out
    #[arg(long)]
    network: Option<NetworkName>,
    /// Its addresses, of one family: 10.32.0.0/16 or 10.32.0.10..10.32.0.99
    #[arg(long)]
    range: Range,
    /// Addresses that are never given out, written as --range; repeated or comma separated
    #[arg(long, value_delimiter = ',', value_name = "RANGE")]
    exclude: Vec<Range>,
    /// How many addresses a block has, which is what a host gets at a time: a power of two from 1 to 65536; 64 if
    /// left out
    #[arg(long, value_name = "COUNT")]
    block_size: Option<u32>,
    /// Which names keep their addresses: all, those that end in a number as web-0 does or ask for it, or none
    #[arg(long, value_parser = cli::word::<Sticky>(STICKY), default_value = "auto")]
    sticky: Sticky,
    /// How long an automatic reservation outlives its last attachment, such as 12h or 7d, or forever; 7d if left
    /// out
    #[arg(long, value_name = "TIME")]
    retention: Option<Retention>,
    /// How long a released address is avoided, such as 90s; 60s if left out
    #[arg(long, value_name = "TIME")]
    cooldown: Option<Span>,
    /// How long a host must be silent before another may take over what is reserved, or never; 60s if left out
    #[arg(long, value_name = "TIME")]
    takeover_after: Option<After>,
    #[command(flatten)]
    select: SelectArgs,
    /// Of several pools that a workload may use, the one of the highest priority is used
    #[arg(long, default_value_t, allow_negative_numbers = true)]
    priority: i32,
}

#[derive(Debug, clap::Args)]
struct Changes {
    /// Its addresses, as at creation: more, or fewer where nobody has one of those that it would lose
    #[arg(long, value_name = "RANGE")]
    range: Option<Range>,
    /// Addresses that are never given out from now on, in place of those before; who has one keeps it
    #[arg(long, value_delimiter = ',', value_name = "RANGE")]
    exclude: Vec<Range>,
    /// Exclude nothing any more
    #[arg(long, conflicts_with = "exclude")]
    no_exclude: bool,
    /// Which names keep their addresses from now on: all, those that end in a number as web-0 does or ask for it, or none
    #[arg(long, value_parser = cli::word::<Sticky>(STICKY))]
    sticky: Option<Sticky>,
    /// How long automatic reservations made from now on outlive their last attachment: a time or forever
    #[arg(long, value_name = "TIME")]
    retention: Option<Retention>,
    /// How long a released address is avoided
    #[arg(long, value_name = "TIME")]
    cooldown: Option<Span>,
    /// How long a host must be silent before another may take over what is reserved, or never
    #[arg(long, value_name = "TIME")]
    takeover_after: Option<After>,
    /// Its priority among pools that a workload may use
    #[arg(long, allow_negative_numbers = true)]
    priority: Option<i32>,
    /// Whether it gives new addresses (active) or only serves who has one (draining)
    #[arg(long, value_parser = cli::word::<PoolState>(STATES))]
    state: Option<PoolState>,
    /// Let everybody use it, as a network's default
    #[arg(long, conflicts_with_all = ["select_namespace", "select_name", "select_host_label"])]
    no_select: bool,
    #[command(flatten)]
    select: SelectArgs,
}

#[derive(Debug, clap::Args)]
struct Set {
    /// The pool
    name: PoolName,
    #[command(flatten)]
    changes: Changes,
}

/// Who may use a pool without naming it. In `set` the three together replace the rule before.
#[derive(Debug, Default, clap::Args)]
struct SelectArgs {
    /// Who may use it without naming it: workloads of these namespaces; repeated or comma separated
    #[arg(long = "select-namespace", id = "select_namespace")]
    #[arg(value_delimiter = ',', value_name = "NAMESPACE")]
    namespaces: Vec<Namespace>,
    /// Who may use it without naming it: workloads whose name matches one of these patterns, such as db-*
    #[arg(long = "select-name", id = "select_name", value_delimiter = ',', value_name = "PATTERN")]
    names: Vec<NameGlob>,
    /// Who may use it without naming it: workloads on hosts that have all of these labels
    #[arg(long = "select-host-label", id = "select_host_label")]
    #[arg(value_delimiter = ',', value_parser = cli::label, value_name = "KEY=VALUE")]
    host_labels: Vec<(LabelKey, String)>,
}

/// Carries out one command.
pub(crate) fn run(args: &Args, controller: &Controller, output: Output) -> anyhow::Result<Done> {
    let list = Verb::List(args.filter.clone());
    if args.verb.is_some() {
        cli::no_filter_before_a_verb("--network", args.filter.network.is_some())?;
    }
    let text = match args.verb.as_ref().unwrap_or(&list) {
        Verb::List(filter) => render_all(&listed(filter, controller)?, output)?,
        Verb::Show { name } => shown(&one(name, controller)?, controller, output)?,
        Verb::Create(create) => {
            let name = &create.name;
            let spec = create.spec(network::named_or_only(create.network.as_ref(), controller)?);
            let pool = controller.put(&paths::pool(name), &spec);
            render(&pool.with_context(|| format!("creating pool {name}"))?, output)?
        }
        Verb::Set(Set { name, changes }) => {
            let change = changes.change();
            cli::something_to_change(change != PoolChange::default())?;
            let pool = controller.patch(&paths::pool(name), &change);
            render(&pool.with_context(|| format!("changing pool {name}"))?, output)?
        }
        Verb::Drain { name } => {
            shown(&turned(name, PoolState::Draining, controller)?, controller, output)?
        }
        Verb::Undrain { name } => {
            shown(&turned(name, PoolState::Active, controller)?, controller, output)?
        }
        Verb::Delete { name, yes: true } => {
            let deleted = controller.delete(&paths::pool(name));
            let answer: Option<Value> = deleted.with_context(|| format!("deleting pool {name}"))?;
            answer::gone(answer.as_ref(), &format!("pool {name} is deleted"), output)?
        }
        Verb::Delete { name, yes: false } => {
            return Ok(Done::Plan(plan(&one(name, controller)?.record)));
        }
    };
    Ok(Done::Answer(text))
}

fn one(name: &PoolName, controller: &Controller) -> anyhow::Result<Answer<PoolUse>> {
    controller.read(&paths::pool(name)).with_context(|| format!("asking for pool {name}"))
}

fn turned(
    name: &PoolName,
    state: PoolState,
    controller: &Controller,
) -> anyhow::Result<Answer<PoolUse>> {
    let change = PoolChange { state: Some(state), ..PoolChange::default() };
    let verb = if state == PoolState::Draining { "draining" } else { "undraining" };
    controller.patch(&paths::pool(name), &change).with_context(|| format!("{verb} pool {name}"))
}

/// A pool, and if it is draining who is to be moved before it can go.
fn shown(
    pool: &Answer<PoolUse>,
    controller: &Controller,
    output: Output,
) -> anyhow::Result<String> {
    let PoolUse { pool: Pool { name, state, .. }, usage } = &pool.record;
    if *state != PoolState::Draining {
        return render(pool, output);
    }
    let holdings = by_pool::of(name, controller, output)?;
    if output == Output::Table {
        let count = usage.held.saturating_add(usage.reserved);
        return Ok(render(pool, output)? + &by_pool::left(name, &holdings, count));
    }
    let mut json = serde_json::to_value(pool)?;
    if let Some(fields) = json.as_object_mut() {
        fields.insert("addresses".to_owned(), serde_json::to_value(&holdings.items)?);
    }
    answer::json(&json)
}

fn listed(filter: &Filter, controller: &Controller) -> anyhow::Result<Answers<PoolUse>> {
    let mut pools: Answers<PoolUse> = controller.read(paths::POOLS).context("asking for pools")?;
    if let Some(network) = &filter.network {
        pools.items.retain(|pool| pool.record.pool.network == *network);
    }
    Ok(pools)
}

fn plan(PoolUse { pool, usage }: &PoolUse) -> String {
    let Pool { name, network, range, .. } = pool;
    let Usage { held, reserved, blocks, .. } = *usage;
    let used = if held == 0 && reserved == 0 {
        "nothing of it is held or reserved".to_owned()
    } else {
        format!(
            "{held} of its addresses are held and {reserved} more reserved; it is refused while any is"
        )
    };
    format!(
        "this would delete pool {name} of network {network}: {range}\n{used}\n\
         hosts have {blocks} of its blocks\n"
    )
}

impl SelectArgs {
    fn select(&self) -> Select {
        Select {
            namespaces: self.namespaces.iter().cloned().collect(),
            names: self.names.iter().cloned().collect(),
            host_labels: self.host_labels.iter().cloned().collect(),
        }
    }
}

impl Create {
    fn spec(&self, network: NetworkName) -> PoolSpec {
        PoolSpec {
            network,
            range: self.range,
            exclude: self.exclude.clone(),
            block_size: self.block_size,
            sticky: self.sticky,
            retention: self.retention,
            cooldown: self.cooldown,
            takeover_after: self.takeover_after,
            select: self.select.select(),
            priority: self.priority,
        }
    }
}

impl Changes {
    fn change(&self) -> PoolChange {
        let exclude = self.no_exclude || !self.exclude.is_empty();
        let select = self.select.select();
        PoolChange {
            range: self.range,
            exclude: exclude.then(|| self.exclude.clone()),
            sticky: self.sticky,
            retention: self.retention,
            cooldown: self.cooldown,
            takeover_after: self.takeover_after,
            select: (self.no_select || !select.is_empty()).then_some(select),
            priority: self.priority,
            state: self.state,
        }
    }
}

fn render_all(pools: &Answers<PoolUse>, output: Output) -> anyhow::Result<String> {
    if output == Output::Json {
        return answer::json(pools);
    }
    let rows = pools.items.iter().map(|Answer { record: PoolUse { pool, usage }, .. }| {
        [
            pool.name.to_string(),
            pool.network.to_string(),
            pool.range.to_string(),
            table::word(&pool.sticky),
            table::word(&pool.state),
            table::count(usage.size),
            usage.held.to_string(),
            usage.reserved.to_string(),
            usage.cooling.to_string(),
            table::count(usage.free),
        ]
    });
    Ok(table::table(
        [
            "NAME", "NETWORK", "RANGE", "STICKY", "STATE", "SIZE", "HELD", "RESERVED", "COOLING",
            "FREE",
        ],
        rows,
    ))
}

fn render(pool: &Answer<PoolUse>, output: Output) -> anyhow::Result<String> {
    if output == Output::Json {
        return answer::json(pool);
    }
    let PoolUse { pool, usage } = &pool.record;
    Ok(table::facts(facts(pool).into_iter().chain([
        ("Addresses", Some(table::count(usage.size))),
        ("  held", Some(usage.held.to_string())),
        ("  reserved, not held", Some(usage.reserved.to_string())),
        ("  cooling", Some(usage.cooling.to_string())),
        ("  free", Some(table::count(usage.free))),
        ("Blocks of hosts", Some(usage.blocks.to_string())),
    ])))
}

fn facts(pool: &Pool) -> Vec<(&'static str, Option<String>)> {
    vec![
        ("Name", Some(pool.name.to_string())),
        ("Network", Some(pool.network.to_string())),
        ("Range", Some(pool.range.to_string())),
        ("Excluded", table::some(&pool.exclude)),
        ("State", Some(table::word(&pool.state))),
        ("Sticky", Some(table::word(&pool.sticky))),
        ("Retention", Some(pool.retention.to_string())),
        ("Cooldown", Some(pool.cooldown.to_string())),
        ("Takeover after", Some(pool.takeover_after.to_string())),
        ("Block size", Some(pool.block_size.to_string())),
        ("Priority", Some(pool.priority.to_string())),
        ("For", pool.select.is_empty().then(|| "everybody".to_owned())),
        ("For namespaces", table::some(&pool.select.namespaces)),
        ("For names", table::some(&pool.select.names)),
        ("For hosts labelled", table::pairs(&pool.select.host_labels)),
    ]
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;
    use crate::golden;

    pub(crate) fn answers() -> Answers<PoolUse> {
        serde_json::from_value(json!({"revision": 12, "items": [
            {
                "name": "corp-v4", "network": "corp", "range": "10.32.0.0/16", "block_size": 64,
                "sticky": "auto", "retention": "7d", "cooldown": "1m", "priority": 0, "state": "active",
                "usage": {"size": 65534, "held": 3, "reserved": 2, "cooling": 1, "free": 65528, "blocks": 2},
            },
            {
                "name": "corp-v6", "network": "corp", "range": "fd32::/64", "block_size": 64,
                "sticky": "always", "retention": "forever", "cooldown": "0s", "priority": -5,
                "state": "draining", "exclude": ["fd32::1..fd32::ff", "fd32::1000/124"],
                "select": {"namespaces": ["prod"], "names": ["db-*", "web-?"], "host_labels": {"rack": "r1"}},
                "usage": {
                    "size": u64::MAX, "held": 0, "reserved": 0, "cooling": 0, "free": u64::MAX, "blocks": 0
                },
            },
        ]}))
        .unwrap()
    }

    #[test]
    fn pools_are_shown_to_people_and_to_programs() {
        let answers = answers();
        golden::check("pool-list", &render_all(&answers, Output::Table).unwrap());
        golden::check("pool-list.json", &render_all(&answers, Output::Json).unwrap());
        let shown = |n: usize| render(&answers.items[n], Output::Table).unwrap();
        golden::check("pool-show", &(shown(0) + "\n" + &shown(1)));
    }

    #[test]
    fn the_plan_of_a_deletion_says_what_is_still_in_use() {
        let plans: String = answers().items.iter().map(|pool| plan(&pool.record)).collect();
        golden::check("pool-delete-plan", &plans);
    }
}

//! Edge: `limpetctl network`: `run` asks, what is below it is pure.

use std::collections::BTreeSet;
use std::fmt::Write;

use anyhow::Context;
use clap::Subcommand;
use limpet_api::Change;
use limpet_api::book::Attachment;
use limpet_api::config::{HostStatus, Network, NetworkChange, NetworkSpec, PoolUse};
use limpet_api::paths;
use limpet_net_types::{HostName, Mtu, NetworkName, Vni};
use serde_json::{Value, json};

use crate::answer::{self, Answer, Answers};
use crate::cli::{self, Done, Output};
use crate::controller::Controller;
use crate::table;

/// How many hosts the plan of a deletion names.
const SHOWN: usize = 5;

/// What `network` takes; without a verb all networks are listed.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Option<Verb>,
}

/// What to do.
#[derive(Debug, Subcommand)]
enum Verb {
    /// List all networks
    List,
    /// Show one network
    Show {
        /// The network
        name: NetworkName,
    },
    /// Create a network; repeating it changes nothing
    #[command(visible_alias = "add")]
    Create(Create),
    /// Change a network
    Set(Set),
    /// Let the containers of one network open connections into another; answers pass, nothing else does
    Allow(Opening),
    /// Close what was allowed: connections that are open end, too
    Deny(Opening),
    /// Delete a network that has no pools any more and that nobody names
    Delete {
        /// The network
        name: NetworkName,
        /// Do it; without, what would be lost is shown
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, clap::Args)]
struct Create {
    /// Its name: at most 63 of a-z, 0-9 and '-'
    name: NetworkName,
    /// Its number on the wire, 1 to 16777215; the smallest free one if left out
    #[arg(long, value_parser = cli::number::<Vni>)]
    vni: Option<Vni>,
    /// Its MTU in bytes, 1280 to 65535; if left out, each host's underlay MTU less VXLAN's overhead
    #[arg(long, value_parser = cli::number::<Mtu>, value_name = "BYTES")]
    mtu: Option<Mtu>,
    /// The UDP port of its VXLAN on all hosts; 4789 if left out
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// Give it an address space of its own: its pools may have the addresses of other networks' pools. Its
    /// hosts are those that name it: limpetctl host set NAME --networks
    #[arg(long)]
    own_space: bool,
}

#[derive(Debug, clap::Args)]
struct Opening {
    /// The network that connections come from
    from: NetworkName,
    /// The network that they go to
    into: NetworkName,
    /// The other way round as well
    #[arg(long)]
    both: bool,
}

#[derive(Debug, clap::Args)]
struct Set {
    /// The network
    name: NetworkName,
    /// Its MTU in bytes, 1280 to 65535, or auto: each host's underlay MTU less VXLAN's overhead
    #[arg(long, value_parser = mtu, value_name = "BYTES|auto", required = true)]
    mtu: Option<Change<Mtu>>,
}

/// Without a network's name there is not exactly one to take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoNetwork {
    /// There is none at all.
    #[error("there is no network yet")]
    None,
    /// There are several.
    #[error("there are several networks: {0}")]
    Several(String),
}

/// Carries out one command.
pub(crate) fn run(args: &Args, controller: &Controller, output: Output) -> anyhow::Result<Done> {
    let text = match args.verb.as_ref().unwrap_or(&Verb::List) {
        Verb::List => render_all(&all(controller)?, output)?,
        Verb::Show { name } => {
            let network = controller.read(&paths::network(name));
            let network: Answer<Network> =
                network.with_context(|| format!("asking for network {name}"))?;
            match output {
                Output::Json => answer::json(&network)?,
                Output::Table => render(&network.record, &all(controller)?),
            }
        }
        Verb::Create(create) => {
            let (name, spec) = (&create.name, create.spec());
            let network = controller.put(&paths::network(name), &spec);
            changed(&network.with_context(|| format!("creating network {name}"))?, output)?
        }
        Verb::Set(set) => {
            let (name, change) = (&set.name, set.change());
            let network = controller.patch(&paths::network(name), &change);
            changed(&network.with_context(|| format!("changing network {name}"))?, output)?
        }
        Verb::Allow(opening) => {
            let allow = |from| NetworkChange { also_allow: from, ..NetworkChange::default() };
            render_all(&opening.changed(controller, allow)?, output)?
        }
        Verb::Deny(opening) => {
            let deny = |from| NetworkChange { deny: from, ..NetworkChange::default() };
            render_all(&opening.changed(controller, deny)?, output)?
        }
        Verb::Delete { name, yes: true } => {
            let deleted = controller.delete(&paths::network(name));
            let answer: Option<Value> =
                deleted.with_context(|| format!("deleting network {name}"))?;
            answer::gone(answer.as_ref(), &format!("network {name} is deleted"), output)?
        }
        Verb::Delete { name, yes: false } => return planned(name, controller).map(Done::Plan),
    };
    Ok(Done::Answer(text))
}

/// Returns the network that was named, or else the only one that there is.
///
/// # Errors
///
/// [`NoNetwork`] if none was named and there is not exactly one.
pub(crate) fn named_or_only(
    name: Option<&NetworkName>,
    controller: &Controller,
) -> anyhow::Result<NetworkName> {
    if let Some(name) = name {
        return Ok(name.clone());
    }
    let names = all(controller)?.items.into_iter().map(|network| network.record.name);
    Ok(the_only(names.collect())?)
}

fn all(controller: &Controller) -> anyhow::Result<Answers<Network>> {
    controller.read(paths::NETWORKS).context("asking for networks")
}

fn planned(name: &NetworkName, controller: &Controller) -> anyhow::Result<String> {
    let context = || format!("asking what depends on network {name}");
    let network: Answer<Network> = controller.read(&paths::network(name)).with_context(context)?;
    let pools: Answers<PoolUse> = controller.read(paths::POOLS).with_context(context)?;
    let attachments: Answers<Attachment> =
        controller.list(paths::ATTACHMENTS, &json!({ "network": name })).with_context(context)?;
    let pools: Vec<PoolUse> = pools
        .items
        .into_iter()
        .map(|pool| pool.record)
        .filter(|pool| pool.pool.network == *name)
        .collect();
    let hosts: Answers<HostStatus> = controller.read(paths::HOSTS).with_context(context)?;
    let hosts = hosts.items.into_iter().map(|host| host.record.host);
    let members: Vec<HostName> = hosts
        .filter(|host| host.networks.as_ref().is_some_and(|names| names.contains(name)))
        .map(|host| host.name)
        .collect();
    let named = named(&network.record, &all(controller)?, &members);
    Ok(plan(&network.record, &pools, attachments.items.len()) + &named)
}

/// What names a network and so keeps it.
fn named(network: &Network, all: &Answers<Network>, members: &[HostName]) -> String {
    let mut text = String::new();
    if let Some(into) = table::some(allowed_into(network, all)) {
        let _ = writeln!(text, "it is let into {into}; it is refused while it is");
    }
    if !members.is_empty() {
        let count = table::plural(members.len(), "host");
        let first = table::list(members.iter().take(SHOWN));
        let more = if members.len() > SHOWN { " and others" } else { "" };
        let _ = writeln!(
            text,
            "{count} ({first}{more}) are said to be its members; it is refused while one is"
        );
    }
    text
}

/// The networks that a network is allowed into.
fn allowed_into<'a>(
    network: &'a Network,
    all: &'a Answers<Network>,
) -> impl Iterator<Item = &'a NetworkName> {
    let all = all.items.iter().map(|other| &other.record);
    all.filter(|other| other.allow.contains(&network.name)).map(|other| &other.name)
}

fn plan(network: &Network, pools: &[PoolUse], attachments: usize) -> String {
    let Network { name, vni, index, .. } = network;
    let content = if pools.is_empty() {
        "it has no pools".to_owned()
    } else {
        let names = table::list(pools.iter().map(|pool| &pool.pool.name));
        let count = table::plural(pools.len(), "pool");
        let held = table::plural(attachments, "attachment");
        format!("it has {count} ({names}) and {held}; it is refused while it has a pool")
    };
    format!(
        "this would delete network {name} (VNI {vni}) and, on every host, its device limpet{index}\n\
         {content}\n"
    )
}

fn the_only(mut names: Vec<NetworkName>) -> Result<NetworkName, NoNetwork> {
    if names.len() > 1 {
        return Err(NoNetwork::Several(table::list(names.iter()).replace(',', ", ")));
    }
    names.pop().ok_or(NoNetwork::None)
}

impl Create {
    fn spec(&self) -> NetworkSpec {
        NetworkSpec { vni: self.vni, mtu: self.mtu, port: self.port, own_space: self.own_space }
    }
}

impl Opening {
    /// Changes the network that connections go to, with `--both` the other one as well.
    fn changed(
        &self,
        controller: &Controller,
        change: impl Fn(BTreeSet<NetworkName>) -> NetworkChange,
    ) -> anyhow::Result<Answers<Network>> {
        let Self { from, into, both } = self;
        let mut items = Vec::new();
        for (from, into) in [(from, into), (into, from)].into_iter().take(1 + usize::from(*both)) {
            let network: Answer<Network> = controller
                .patch(&paths::network(into), &change([from.clone()].into()))
                .with_context(|| format!("changing who is let into network {into}"))?;
            items.push(network);
        }
        let revision = items.last().map_or(0, Answer::revision);
        Ok(Answers { items, revision, next: None })
    }
}

impl Set {
    fn change(&self) -> NetworkChange {
        NetworkChange { mtu: self.mtu.unwrap_or_default(), ..NetworkChange::default() }
    }
}

/// Reads an MTU, or `auto`.
fn mtu(text: &str) -> Result<Change<Mtu>, String> {
    if text == "auto" { Ok(Change::Clear) } else { cli::number(text).map(Change::Set) }
}

fn shown_mtu(network: &Network) -> String {
    network.mtu.map_or_else(|| "auto".to_owned(), |mtu| mtu.to_string())
}

fn render_all(networks: &Answers<Network>, output: Output) -> anyhow::Result<String> {
    if output == Output::Json {
        return answer::json(networks);
    }
    let rows = networks.items.iter().map(|Answer { record: network, .. }| {
        [
            network.name.to_string(),
            network.vni.to_string(),
            network.index.to_string(),
            shown_mtu(network),
            network.port.to_string(),
            space(network).to_owned(),
            table::list(&network.allow),
        ]
    });
    Ok(table::table(["NAME", "VNI", "INDEX", "MTU", "PORT", "SPACE", "LETS IN"], rows))
}

fn space(network: &Network) -> &'static str {
    if network.own_space { "own" } else { "shared" }
}

/// A network that was made or changed.
fn changed(network: &Answer<Network>, output: Output) -> anyhow::Result<String> {
    match output {
        Output::Json => answer::json(network),
        Output::Table => Ok(table::facts(facts(&network.record))),
    }
}

fn render(network: &Network, all: &Answers<Network>) -> String {
    let into = table::some(allowed_into(network, all));
    table::facts(facts(network).into_iter().chain([("Is let into", into)]))
}

fn facts(network: &Network) -> [(&'static str, Option<String>); 7] {
    [
        ("Name", Some(network.name.to_string())),
        ("VNI", Some(network.vni.to_string())),
        ("MTU", Some(shown_mtu(network))),
        ("UDP port", Some(network.port.to_string())),
        ("Device on hosts", Some(format!("limpet{}", network.index))),
        ("Address space", Some(space(network).to_owned())),
        ("Lets in", table::some(&network.allow)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden;

    fn answers() -> Answers<Network> {
        serde_json::from_value(json!({"revision": 9, "items": [
            {"name": "corp", "vni": 1, "index": 1, "port": 4789, "allow": ["lab"]},
            {"name": "guests", "vni": 2, "index": 2, "port": 4789, "own_space": true},
            {"name": "lab", "vni": 16_777_215, "index": 4095, "mtu": 1400, "port": 8472, "allow": ["corp"]},
        ]}))
        .unwrap()
    }

    #[test]
    fn networks_are_shown_to_people_and_to_programs() {
        let answers = answers();
        golden::check("network-list", &render_all(&answers, Output::Table).unwrap());
        golden::check("network-list.json", &render_all(&answers, Output::Json).unwrap());
        let shown: Vec<String> =
            answers.items.iter().map(|network| render(&network.record, &answers)).collect();
        golden::check("network-show", &shown.join("\n"));
    }

    #[test]
    fn the_plan_of_a_deletion_names_what_stands_in_its_way() {
        let network = &answers().items[0].record;
        let pools: Vec<PoolUse> =
            crate::pool::tests::answers().items.into_iter().map(|pool| pool.record).collect();
        let members: Vec<HostName> =
            (1..=7).map(|n| format!("node-{n}").parse().unwrap()).collect();
        let text = plan(network, &[], 0)
            + &named(network, &answers(), &[])
            + &plan(network, &pools, 7)
            + &named(network, &answers(), &members);
        golden::check("network-delete-plan", &text);
    }

    #[test]
    fn the_only_network_need_not_be_named() {
        let names = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect();
        assert_eq!(the_only(names(&["corp"])).unwrap().as_str(), "corp");
        assert_eq!(the_only(vec![]).unwrap_err(), NoNetwork::None);
        assert_eq!(
            the_only(names(&["corp", "lab"])).unwrap_err().to_string(),
            "there are several networks: corp, lab"
        );
    }
}

//! Edge: reads other programs' rules by the tools that know them, and sets limpet's two.

use std::collections::BTreeMap;
use std::io;
use std::process::{Output, Stdio};
use std::time::Duration;

use limpet_net_types::Family;
use tokio::process::Command;
use tokio::time::timeout;

use super::nftables::base_chains;
use super::surroundings::{Filters, Iptables};
use crate::nft;

/// How long a tool has: kube-proxy's rules may be tens of thousands.
const LIMIT: Duration = Duration::from_secs(10);

/// Who lists and who changes rules, and where the kernel says whether there are any.
const IPTABLES: [(Family, &str, &str, &str); 4] = [
    (Family::V4, "iptables-nft-save", "iptables-nft", ""),
    (Family::V6, "ip6tables-nft-save", "ip6tables-nft", ""),
    (Family::V4, "iptables-legacy-save", "iptables-legacy", "/proc/net/ip_tables_names"),
    (Family::V6, "ip6tables-legacy-save", "ip6tables-legacy", "/proc/net/ip6_tables_names"),
];

/// Why a tool has not said what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ToolError {
    /// It cannot be run.
    #[error("cannot run {tool}")]
    Run { tool: &'static str, source: io::Error },
    /// It took too long.
    #[error("{tool} did not end within {LIMIT:?}")]
    TimedOut { tool: &'static str },
    /// It says no.
    #[error("{tool} says: {words}")]
    Refused { tool: &'static str, words: String },
}

/// All rules of others that limpet's packets may meet.
pub(crate) async fn filters() -> Filters {
    let mut filters = Filters::default();
    match run("nft", &["-j", "list", "chains"]).await.map(|listing| base_chains(&listing)) {
        Ok(Some(chains)) => {
            let mut listings: BTreeMap<(String, String), String> = BTreeMap::new();
            let met = chains.into_iter().filter(|chain| {
                let of_limpet = chain.family == "inet" && chain.table == nft::NAME;
                !of_limpet && ["forward", "input"].contains(&chain.hook.as_str())
            });
            for chain in met {
                let table = (chain.family.clone(), chain.table.clone());
                if !listings.contains_key(&table) {
                    match run("nft", &["-j", "list", "table", &table.0, &table.1]).await {
                        Ok(listing) => drop(listings.insert(table.clone(), listing)),
                        Err(error) => filters.unread.push(words(&error)),
                    }
                }
                if let Some(listing) = listings.get(&table) {
                    filters.nftables.push((chain, listing.clone()));
                }
            }
        }
        Ok(None) => filters.unread.push("nft lists chains in a form that is new".to_owned()),
        Err(error) => filters.unread.push(words(&error)),
    }
    for (family, save, tool, names) in IPTABLES {
        if !is_used(&filters, family, names).await {
            continue;
        }
        match run(save, &[]).await {
            Ok(listing) => filters.iptables.push(Iptables { tool, family, listing }),
            Err(error) => filters.unread.push(words(&error)),
        }
    }
    filters
}

/// Whether there are rules of an iptables: asking one that has none would make its tables.
async fn is_used(filters: &Filters, family: Family, names: &str) -> bool {
    if names.is_empty() {
        let mut chains = filters.nftables.iter().map(|(chain, _)| chain);
        return chains.any(|chain| chain.is_of_iptables() && chain.is_for(family));
    }
    let names = tokio::fs::read_to_string(names).await.unwrap_or_default();
    names.lines().any(|table| table == "filter")
}

/// Changes a rule.
pub(crate) async fn change(tool: &'static str, command: &[String]) -> Result<(), ToolError> {
    // Others may hold its lock for a moment.
    let words = ["-w", "5"].into_iter().chain(command.iter().map(String::as_str));
    run(tool, &words.collect::<Vec<_>>()).await.map(drop)
}

async fn run(tool: &'static str, arguments: &[&str]) -> Result<String, ToolError> {
    let output = Command::new(tool)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(LIMIT, output).await.map_err(|_| ToolError::TimedOut { tool })?;
    let Output { status, stdout, stderr } =
        output.map_err(|source| ToolError::Run { tool, source })?;
    if status.success() {
        return Ok(String::from_utf8_lossy(&stdout).into_owned());
    }
    Err(ToolError::Refused { tool, words: nft::squeezed(&String::from_utf8_lossy(&stderr)) })
}

fn words(error: &ToolError) -> String {
    crate::agent::sentence(error)
}

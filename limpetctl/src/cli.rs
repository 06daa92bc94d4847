//! Pure: the command line: what may be said, and the values that it is parsed into.
//!
//! Names, addresses and numbers are checked here, before anything is asked; what each noun's verbs take is in the
//! noun's file.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use limpet_api::Span;
use limpet_api::client::Endpoint;
use limpet_net_types::LabelKey;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    attachment, backup, check, completion, doctor, history, host, network, pool, quota,
    reservation, restore,
};

/// Shows and changes what a limpet controller keeps: networks, pools, hosts, reservations, attachments.
#[derive(Debug, Parser)]
#[command(name = "limpetctl", version, disable_help_subcommand = true, max_term_width = 100)]
#[command(
    after_help = "Exit codes: 0 done, 1 failed, 2 misuse, or a destructive verb without --yes."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) noun: Noun,
}

/// What every command takes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of every command")]
pub(crate) struct Global {
    /// Where a controller listens: http://host:port, or unix: and the path of a socket. Repeated or comma
    /// separated: the first is asked, and where one does not answer or cannot serve, the next
    #[arg(
        long,
        global = true,
        env = "LIMPET_CONTROLLER",
        value_delimiter = ',',
        value_name = "URL"
    )]
    #[arg(default_value = "http://127.0.0.1:7600")]
    pub(crate) controller: Vec<Endpoint>,

    /// Send requests unencrypted over the network. Needed for every controller that is not on this machine,
    /// since this version has no TLS
    #[arg(long, global = true, env = "LIMPET_PLAIN_HTTP")]
    #[arg(value_parser = clap::builder::BoolishValueParser::new())]
    pub(crate) plain_http: bool,

    /// How long one controller may take for its answer, such as 5s or 1m
    #[arg(long, global = true, env = "LIMPET_TIMEOUT", value_parser = wait, value_name = "TIME")]
    #[arg(default_value = "10s")]
    pub(crate) timeout: Duration,

    /// A table for people, or the controller's records as JSON
    #[arg(short, long, global = true, value_enum, value_name = "FORM", default_value_t)]
    pub(crate) output: Output,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    #[default]
    Table,
    /// For programs: what the controller answered.
    Json,
}

/// What the command is about.
#[derive(Debug, Subcommand)]
pub(crate) enum Noun {
    /// Overlay networks: a VNI and its pools
    #[command(visible_alias = "networks")]
    Network(network::Args),
    /// Pools: ranges of addresses of a network, who may use them, and how full they are
    #[command(visible_alias = "pools")]
    Pool(pool::Args),
    /// Hosts that have joined or may join: roles, labels, whether their agent is alive
    #[command(visible_alias = "hosts")]
    Host(host::Args),
    /// Reservations: the addresses that a name keeps, whether a container has them just now or not
    #[command(visible_alias = "reservations")]
    Reservation(reservation::Args),
    /// Attachments: containers' interfaces that hold addresses now
    #[command(visible_alias = "attachments")]
    Attachment(attachment::Args),
    /// Quotas: how many addresses a namespace may have
    #[command(visible_alias = "quotas")]
    Quota(quota::Args),
    /// Who had which address when, on which host, and how it ended
    History(history::Args),
    /// Write everything that the controller keeps into a file
    Backup(backup::Args),
    /// Restore a backup into an empty store; show or waive the hosts that it then waits for
    Restore(restore::Args),
    /// Check the store against itself, and hosts' kernels against the store
    Check(check::Args),
    /// Ask all hosts how they are: what others did to them, what does not work, and what to do about it
    Doctor(doctor::Args),
    /// Print the completion script of a shell
    Completion(completion::Args),
}

/// What a command has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Done {
    /// The text for stdout.
    Answer(String),
    /// The text for stdout, and the exit code that says what was found.
    Verdict(String, u8),
    /// What a destructive verb would do, for stderr; nothing has been done.
    Plan(String),
}

/// The arguments make no sense together; nothing was asked or nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Misuse(pub(crate) String);

/// Says that `option`, given before a verb, is not that verb's.
///
/// Options between noun and verb filter the list that a noun alone prints. Beside a verb they would be lost in
/// silence, so they are refused.
pub(crate) fn no_filter_before_a_verb(option: &str, given: bool) -> Result<(), Misuse> {
    if given {
        Err(Misuse(format!("{option} stands before the verb: it belongs behind it")))
    } else {
        Ok(())
    }
}

/// Says that `set` was given nothing to set.
pub(crate) fn something_to_change(given: bool) -> Result<(), Misuse> {
    if given {
        Ok(())
    } else {
        Err(Misuse("nothing to change: name at least one option".to_owned()))
    }
}

/// Reads a number that has a rule, such as a VNI.
pub(crate) fn number<N>(text: &str) -> Result<N, String>
where
    N: TryFrom<u32>,
    N::Error: fmt::Display,
{
    let number: u32 = text.parse().map_err(|_| "it is not a whole number below 2^32")?;
    N::try_from(number).map_err(|error| error.to_string())
}

/// Reads one of the API's words, such as `draining`, and offers all of them in help and completion.
pub(crate) fn word<W>(words: &'static [&'static str]) -> impl TypedValueParser<Value = W>
where
    W: DeserializeOwned + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(words).try_map(|text| serde_json::from_value(Value::String(text)))
}

/// Reads a label, `key=value`.
pub(crate) fn label(text: &str) -> Result<(LabelKey, String), String> {
    let (key, value) = text.split_once('=').ok_or("a label is written key=value")?;
    let key = LabelKey::from_str(key).map_err(|error| error.to_string())?;
    Ok((key, value.to_owned()))
}

/// Reads a time to wait, which is at least a second.
fn wait(text: &str) -> Result<Duration, String> {
    match text.parse::<Span>() {
        Ok(span) if span.seconds() > 0 => Ok(span.duration()),
        Ok(_) => Err("it must be at least 1s".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
#[path = "cli_tests.rs"]
mod tests;

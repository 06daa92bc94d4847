//! Edge: `limpetctl`, the operator's program: parses, asks one controller, prints, says how it went by its exit code.
//!
//! 0: done. 1: failed, with the reason on stderr. 2: misuse: the arguments make no sense, or a destructive verb was
//! asked for without `--yes`. Each noun has a file of its own, in which `run` asks and `render` is pure.

mod answer;
mod attachment;
mod backup;
mod by_pool;
mod check;
mod cli;
mod completion;
mod controller;
mod detail;
mod doctor;
mod drift;
mod find;
#[cfg(test)]
mod golden;
mod hint;
mod history;
mod host;
mod network;
mod pool;
mod progress;
mod quota;
mod reservation;
mod restore;
mod table;

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;

use crate::cli::{Cli, Done, Misuse, Noun};
use crate::controller::Controller;

/// The exit code of a misuse, as clap's own.
const MISUSE: u8 = 2;

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(Done::Answer(text)) => match print(&text) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => complain(&error),
        },
        Ok(Done::Verdict(text, code)) => match print(&text) {
            Ok(()) => ExitCode::from(code),
            Err(error) => complain(&error),
        },
        Ok(Done::Plan(plan)) => {
            say(&format!("{plan}limpetctl: nothing was done: repeat with --yes to do it"));
            ExitCode::from(MISUSE)
        }
        Err(error) => complain(&error),
    }
}

fn run(cli: &Cli) -> anyhow::Result<Done> {
    let controller = || Controller::new(&cli.global);
    let output = cli.global.output;
    match &cli.noun {
        Noun::Network(args) => network::run(args, &controller()?, output),
        Noun::Pool(args) => pool::run(args, &controller()?, output),
        Noun::Host(args) => host::run(args, &controller()?, output),
        Noun::Reservation(args) => reservation::run(args, &controller()?, output),
        Noun::Attachment(args) => attachment::run(args, &controller()?, output),
        Noun::Quota(args) => quota::run(args, &controller()?, output),
        Noun::History(args) => history::run(args, &controller()?, output),
        Noun::Backup(args) => backup::run(args, &controller()?, output),
        Noun::Restore(args) => restore::run(args, &controller()?, output),
        Noun::Check(args) => check::run(args, &controller()?, output),
        Noun::Doctor(args) => doctor::run(args, &controller()?, output),
        Noun::Completion(args) => completion::run(args),
    }
}

/// Says what went wrong and, where it is known, what to do, and returns the exit code that goes with it.
fn complain(error: &anyhow::Error) -> ExitCode {
    // Parts of the message come from the network: no control character of theirs reaches the terminal.
    say(&table::harmless(&format!("limpetctl: {error:#}")));
    for line in detail::of(error) {
        say(&table::harmless(&line));
    }
    if let Some(hint) = hint::of(error) {
        say(&format!("hint: {hint}"));
    }
    if error.chain().any(<dyn std::error::Error>::is::<Misuse>) {
        ExitCode::from(MISUSE)
    } else {
        ExitCode::FAILURE
    }
}

/// Writes a line to stderr; that nobody reads it changes nothing.
fn say(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Writes to stdout. That nobody reads on is no failure: `limpetctl attachment | head`.
fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("writing to stdout")
        }
        _ => Ok(()),
    }
}

//! Pure: `limpetctl completion`: the scripts by which shells complete its words.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::cli::{Cli, Done};

/// What `completion` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The shell
    shell: Shell,
}

/// Prints the script; no controller is needed.
pub(crate) fn run(args: &Args) -> anyhow::Result<Done> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "limpetctl", &mut script);
    Ok(Done::Answer(String::from_utf8(script)?))
}

//! Edge: `limpet-agent`: one per host; keeps the host's kernel equal to what the controller says, and passes the CNI
//! plugin's requests on. It is never on the way of a packet: the kernel carries them alone.
//!
//! | module | |
//! |---|---|
//! | [`config`], [`identity`] | arguments; who this host is |
//! | [`facts`], [`view`] | what the host is; what is known of the cluster |
//! | [`desired`], [`resolve`], [`plan`], [`step`], [`nft`], [`layout`] | what the kernel should have, and the steps to it |
//! | [`kernel`], [`translate`], [`filter`], [`veths`] | the kernel |
//! | [`run`], [`pass`], [`mirror`], [`drift`] | one pass after another: what the kernel has, and what others did to it |
//! | [`inside`], [`insides`] | what is limpet's inside containers |
//! | [`watch`], [`upkeep`] | the other loops; [`agent`] is where they meet |
//! | [`socket`], [`attachments`], [`flights`], [`evidence`] | the plugin's requests |
//! | [`records`], [`orphans`], [`reassert`] | what lives here and is missing from the store |
//! | [`snapshot`], [`saved`], [`recalled`] | what is known, on disk, and gone by while no controller answers |
//! | [`findings`], [`report`] | where kernel and store differ, for the controller |
//! | [`conditions`], [`health`], [`check`] | what others did to the host, and `limpet-agent check` |
//! | [`metrics`] | what is counted, for Prometheus |
//! | [`service`], [`pulse`] | what the service manager is told |
//! | [`dry_run`], [`status`] | `limpet-agent plan` and `limpet-agent status` |

mod agent;
mod attachments;
mod check;
mod collect;
mod conditions;
mod config;
mod desired;
mod drift;
mod dry_run;
mod evidence;
mod facts;
mod filter;
mod findings;
#[cfg(test)]
mod fixture;
mod flights;
mod health;
mod identity;
mod inside;
mod insides;
mod kernel;
mod layout;
mod mark;
mod metrics;
mod mirror;
#[cfg(test)]
mod mirror_tests;
#[cfg(test)]
mod model;
mod nft;
mod orphans;
mod pass;
mod plan;
mod pulse;
mod readiness;
mod reassert;
mod recalled;
mod records;
mod report;
mod resolve;
mod rules;
mod run;
mod saved;
mod segments;
mod service;
mod snapshot;
mod socket;
mod status;
mod step;
mod translate;
mod upkeep;
mod veths;
mod view;
mod watch;

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::Parser as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::info;
use tracing_subscriber::EnvFilter;

use crate::agent::{Agent, Identity};
use crate::config::{Cli, Config, Verb};
use crate::socket::Serving;
use crate::veths::Veths;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let failure = if let Some(Verb::Check { .. }) = cli.verb { check::UNKNOWN } else { 1 };
    match run_program(cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "limpet-agent: {error:#}");
            ExitCode::from(failure)
        }
    }
}

/// Returns the exit code of what was done.
fn run_program(cli: Cli) -> anyhow::Result<u8> {
    let filter = EnvFilter::try_new(&cli.config.log)
        .with_context(|| format!("reading the log filter {:?}", cli.config.log))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    cli.config.check()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("starting the runtime")?;
    match cli.verb {
        None => runtime.block_on(serve(cli.config))?,
        Some(Verb::Plan) => runtime.block_on(dry_run::run(cli.config))?,
        Some(Verb::Status) => runtime.block_on(status::run(cli.config))?,
        Some(Verb::Check { json }) => return runtime.block_on(check::run(cli.config, json)),
    }
    Ok(0)
}

/// Who this host is, made on its first start.
fn own_identity(config: &Config) -> anyhow::Result<Identity> {
    let hostname =
        std::fs::read_to_string("/proc/sys/kernel/hostname").context("reading the hostname")?;
    let install = config.state_dir.join("install-id");
    Ok(Identity {
        host: config.host_name(&hostname)?,
        install: identity::token_in(&install).context("finding out which installation this is")?,
        boot: identity::token_in(&config.boot_id_file).context("finding out which boot this is")?,
    })
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let identity = own_identity(&config)?;
    let listener = socket::listen(&config.socket).await?;
    info!(host = %identity.host, socket = %config.socket.display(), "starting");
    let agent = Arc::new(Agent::new(config, identity));
    agent.recall();
    let veths = Arc::new(Veths::default());
    let dead = Arc::new(Notify::new());
    let stop = CancellationToken::new();
    let serving =
        Serving { agent: Arc::clone(&agent), veths: Arc::clone(&veths), dead: Arc::clone(&dead) };

    let mut tasks = JoinSet::new();
    tasks.spawn(watch::run(Arc::clone(&agent), stop.clone()));
    tasks.spawn(run::run(Arc::clone(&agent), Arc::clone(&dead), stop.clone()));
    tasks.spawn(upkeep::run(Arc::clone(&agent), Arc::clone(&veths), stop.clone()));
    tasks.spawn(insides::run(Arc::clone(&agent), Arc::clone(&veths), stop.clone()));
    tasks.spawn(conditions::run(Arc::clone(&agent), stop.clone()));
    tasks.spawn(report::run(Arc::clone(&agent), Arc::clone(&veths), stop.clone()));
    tasks.spawn(snapshot::run(Arc::clone(&agent), stop.clone()));
    tasks.spawn(upkeep::bury(veths, dead, stop.clone()));
    tasks.spawn(socket::serve(listener, serving, stop.clone()));
    if let Some(address) = agent.config.metrics_listen {
        tasks.spawn(metrics::serve(Arc::clone(&agent), address, stop.clone()));
    }
    tasks.spawn(service::run(agent, stop.clone()));

    let ended = tokio::select! {
        signal = stopped() => signal.context("waiting for signals"),
        // Every task goes on until it is told to stop.
        ended = task_ended(&mut tasks) => ended,
    };
    service::stopping();
    info!("stopping; the kernel stays as it is");
    stop.cancel();
    while tasks.join_next().await.is_some() {}
    ended
}

/// Waits for a task that ends of itself, which is a defect: only the whole program is of use.
async fn task_ended(tasks: &mut JoinSet<()>) -> anyhow::Result<()> {
    loop {
        match tasks.join_next().await {
            Some(Err(error)) => return Err(error).context("a task of the agent died"),
            Some(Ok(())) => {}
            None => anyhow::bail!("all tasks of the agent ended"),
        }
    }
}

async fn stopped() -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

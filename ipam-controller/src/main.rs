//! Edge: the program `limpet-controller`: reads flags, opens the store, serves, stops.
//!
//! | file | is | does |
//! |---|---|---|
//! | [`state`], [`keys`], [`records`], [`tenures`] | pure | what the store holds, in memory |
//! | [`alloc`], [`givable`], [`runs`] | pure | who gets which address |
//! | [`rules`] | pure | networks, pools, hosts and sessions against each other |
//! | [`audit`] | pure | where the store does not agree with itself |
//! | [`backup`] | pure | backups of the store, and restores |
//! | [`draft`] | pure | decisions as transactions |
//! | [`listing`] | pure | long lists, page by page
//! | [`watch`], [`leases`] | pure | what hosts are told, and which were heard of |
//! | [`listener`] | edge | looks who is heard, and writes down who is silent |
//! | [`reclaim`] | pure | what is to be cleared away |
//! | [`reclaimer`] | edge | clears it away |
//! | [`book`] | edge | the one task that decides |
//! | [`store`], [`opening`] | edge | where it is kept |
//! | [`http`] | edge | the API |
//! | [`service`] | edge | what the service manager is told |

mod alloc;
mod audit;
mod backup;
mod book;
mod config;
mod draft;
mod givable;
mod http;
mod keys;
mod leases;
mod listener;
mod listing;
mod opening;
#[cfg(test)]
mod proof;
mod random;
mod reclaim;
mod reclaimer;
mod records;
mod rules;
mod runs;
mod service;
mod state;
mod store;
mod tenures;
mod watch;

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::net::{self, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

use crate::backup::restoring;
use crate::book::Book;
use crate::config::{Config, Flags};
use crate::http::App;
use crate::leases::Leases;
use crate::state::State;
use crate::store::Store;

/// How long what goes on without a caller may take once the controller stops.
const GRACE: Duration = Duration::from_secs(5);

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let flags = Flags::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            EnvFilter::try_from_env("LIMPET_LOG").unwrap_or_else(|_| EnvFilter::new("info")),
        )
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr)
        .init();
    match Config::try_from(flags).map_err(anyhow::Error::from).and_then(|config| start(&config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell if standard error is closed.
            let _ = writeln!(io::stderr(), "limpet-controller: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(config: &Config) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let listening = || format!("listening on {}", config.listen);
    let listener = net::TcpListener::bind(config.listen).with_context(listening)?;
    listener.set_nonblocking(true).with_context(listening)?;
    let Some(store) = runtime.block_on(open(config, &listener))? else {
        info!("stopped before the store was there");
        return Ok(());
    };
    let ran = runtime.block_on(run(config, listener, Arc::clone(&store)));
    runtime.block_on(store.close());
    info!("stopped");
    ran
}

/// Opens the store; none if the controller is to stop before it is there.
async fn open(
    config: &Config,
    listener: &net::TcpListener,
) -> anyhow::Result<Option<Arc<dyn Store>>> {
    // Both may be dropped: a store that was made by then is found the next time.
    tokio::select! {
        stopped = stop_signal() => stopped.map(|()| None),
        opened = opening::open(&config.store, listener) => opened.map(Some),
    }
}

async fn run(
    config: &Config,
    listener: net::TcpListener,
    store: Arc<dyn Store>,
) -> anyhow::Result<()> {
    let place = &config.store;
    let (book, keeper) =
        book::open(Arc::clone(&store)).await.with_context(|| format!("reading store {place}"))?;
    let listener = TcpListener::from_std(listener).context("listening")?;
    let address = listener.local_addr().context("asking for the bound address")?;

    let (stop_serving, stop_deciding) = (CancellationToken::new(), CancellationToken::new());
    let mut keeping = tokio::spawn(keeper.run(stop_deciding.clone()));
    if config.await_restore {
        let attempt = random::token().context("asking the system for random bits")?;
        let decide = move |state: &State| restoring::await_backup(state, attempt);
        let (waits, _) =
            book.decide_always(decide).await.context("looking whether the store is empty")?;
        if waits {
            warn!("nothing is done until a backup is restored: limpetctl restore");
        }
    }
    let tasks = TaskTracker::new();
    let app = app(book, store, &stop_serving, &tasks)?;
    tasks.spawn(listener::run(app.book.clone(), Arc::clone(&app.leases), stop_serving.clone()));
    tasks.spawn(reclaimer::run(
        app.book.clone(),
        Arc::clone(&app.leases),
        config.limits,
        stop_serving.clone(),
    ));
    tasks.spawn(service::run(app.book.clone(), address, stop_serving.clone()));
    let router = http::router(app);
    let mut serving = tokio::spawn(http::serve(listener, router, stop_serving.clone()));

    warn!("serving HTTP without TLS: whoever reaches {address} can change everything");
    info!(%address, store = %place, "ready");
    tell_ready(config.ready_file.as_deref(), address)?;
    // All may be dropped: a task goes on, and a signal is not lost.
    let served = tokio::select! {
        stopped = stop_signal() => stopped,
        ended = &mut serving => ended.context("serving"),
        // Without it every request would wait in vain; whoever started this starts it again.
        ended = &mut keeping => ended.context("deciding").and_then(|()| bail!("deciding ended")),
    };
    service::stopping();
    info!("stopping");
    stop_serving.cancel();
    if !serving.is_finished() {
        serving.await.context("finishing the requests under way")?;
    }
    tasks.close();
    if time::timeout(GRACE, tasks.wait()).await.is_err() {
        warn!("claims that wait are given up");
    }
    stop_deciding.cancel();
    if !keeping.is_finished() {
        keeping.await.context("finishing the transactions under way")?;
    }
    served
}

fn app(
    book: Book,
    store: Arc<dyn Store>,
    stop: &CancellationToken,
    tasks: &TaskTracker,
) -> anyhow::Result<App> {
    let replica = random::token().context("asking the system for random bits")?;
    let leases = Arc::new(Mutex::new(Leases::new(replica, http::now())));
    let takeovers = Arc::default();
    Ok(App { book, store, leases, takeovers, stop: stop.clone(), tasks: tasks.clone() })
}

/// Tells systemd, and whoever reads the file, that requests are served.
fn tell_ready(file: Option<&Path>, address: SocketAddr) -> anyhow::Result<()> {
    if let Some(file) = file {
        // A reader must not see half of it: it is written beside and moved.
        let beside = file.with_extension("new");
        fs::write(&beside, format!("{address}\n"))
            .and_then(|()| fs::rename(&beside, file))
            .with_context(|| format!("writing {}", file.display()))?;
    }
    service::ready();
    Ok(())
}

async fn stop_signal() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("waiting for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("waiting for SIGINT")?;
    // Both may be dropped: the process ends with the other.
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

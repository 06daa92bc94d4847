//! Edge: `limpet-agent plan`: prints the commands that would make the kernel right, and changes nothing.
//!
//! The running agent knows best what should be. Without one, a controller tells what it would tell one: the watch's
//! first line, for which no session is opened, so that a host does not count as alive by it.

use std::io::{self, Write as _};
use std::time::Duration;

use anyhow::{Context as _, bail};
use limpet_api::client::{Call, Client, ClientError, Connection, Endpoint, Method};
use limpet_api::host::{WatchLine, WatchQuery};
use limpet_api::paths;
use limpet_api::socket::Plan;
use limpet_net_types::HostName;

use crate::config::Config;
use crate::desired::{HostFacts, desired};
use crate::facts::Choice;
use crate::kernel::{Kernel, Look};
use crate::run::steps;
use crate::view::View;

/// How long the agent or a controller has for its answer.
const LIMIT: Duration = Duration::from_secs(10);

pub(crate) async fn run(config: Config) -> anyhow::Result<()> {
    let commands = match from_agent(&config).await? {
        Some(commands) => commands,
        None => from_controller(config).await?,
    };
    if commands.is_empty() {
        let _ = writeln!(io::stderr(), "the kernel is right: nothing to do");
    }
    let text: String = commands.iter().flat_map(|command| [command, "\n"]).collect();
    match io::stdout().write_all(text.as_bytes()) {
        // That nobody reads on is no failure.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("writing to stdout")
        }
        _ => Ok(()),
    }
}

/// What the running agent would do; none if there is no agent.
async fn from_agent(config: &Config) -> anyhow::Result<Option<Vec<String>>> {
    let endpoint = Endpoint::Unix(config.socket.clone());
    let mut connection = match Connection::open(&endpoint, LIMIT).await {
        Ok(connection) => connection,
        Err(ClientError::Connect { .. }) => return Ok(None),
        Err(error) => return Err(error).context("asking the agent"),
    };
    let call = Call::new(Method::GET, paths::route::SOCKET_PLAN);
    let plan: Plan = connection.call(&call, LIMIT).await.context("asking the agent")?;
    Ok(Some(plan.commands))
}

pub(crate) async fn from_controller(config: Config) -> anyhow::Result<Vec<String>> {
    let hostname =
        std::fs::read_to_string("/proc/sys/kernel/hostname").context("reading the hostname")?;
    let name = config.host_name(&hostname)?;
    let mut kernel = Kernel::open()?;
    let mirror = kernel.dump(Look::Again).await?;
    let view = view_of(&config, &name).await.with_context(|| {
        format!("no agent listens at {}; asking a controller", config.socket.display())
    })?;
    let choice = Choice { underlay: config.underlay, skipped: config.skip_device };
    let reach = mirror.seen.reach(&choice)?;
    let facts = HostFacts {
        name: name.clone(),
        underlay_mtu: reach.mtu,
        addresses: reach.addresses,
        led_to: reach.led_to,
        forwarding: kernel.forwarding(&mirror.seen).await?,
        others: kernel.others().await?,
        mark_mask: config.mark_mask,
    };
    let Some(desired) = desired(&view, &facts) else { bail!("host {name} has not joined yet") };
    Ok(steps(&desired, mirror).await?.iter().map(ToString::to_string).collect())
}

pub(crate) async fn view_of(config: &Config, host: &HostName) -> anyhow::Result<View> {
    let client = Client::new(config.controller.clone(), LIMIT);
    let call = Call::new(Method::GET, paths::watch(host)).with_query(&WatchQuery::default())?;
    let mut lines = client.lines(&call).await?;
    let line = lines.next::<WatchLine>(LIMIT).await?.context("the watch ended at once")?;
    let mut view = View::default();
    view.apply(line)?;
    Ok(view)
}

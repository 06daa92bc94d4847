//! Edge: a controller and many hosts with agents, each in a network namespace of its own.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use limpet_api::client::{Call, Client, Method};
use limpet_api::config::{HostChange, Role};
use limpet_api::paths;
use limpet_net_types::{HostName, Prefix};
use limpet_rtnl::Netns;
use netns_tests::{Fabric, Host, Process, binary, wait_until};

/// How long all of them may take until they are laid out.
const READY: Duration = Duration::from_secs(120);

/// Where the controller is.
const CONTROLLER: &str = "10.99.255.1";

/// A controller, with a network and a pool.
pub(crate) struct Control {
    pub(crate) host: Host,
    pub(crate) fabric: Fabric,
    _process: Process,
}

impl Control {
    pub(crate) fn start(disk: &Path, name: &str) -> Result<Self> {
        let (host, fabric) = (Host::new("control"), Fabric::new("under"));
        fabric.join(&host, "eth0", &[&format!("{CONTROLLER}/16")]);
        let mut command = host.command(binary("limpet-controller"));
        let store = disk.join(format!("{name}.redb"));
        command
            .args(["--listen", &format!("{CONTROLLER}:7600"), "--plain-http", "--store"])
            .arg(store);
        let process = Process::start(command, &disk.join(format!("{name}.log")));
        let ctl = |words: &str| {
            let mut command = host.command(binary("limpetctl"));
            command.args(["--plain-http", "--controller", &url()]).args(words.split(' '));
            command.output().is_ok_and(|output| output.status.success())
        };
        wait_until(Duration::from_secs(10), "the controller is ready", || ctl("network list"));
        for words in [
            "network create pods --vni 100",
            "pool create pods-v4 --network pods --range 10.32.0.0/16",
            "pool create pods-v6 --network pods --range fd32::/64",
        ] {
            if !ctl(words) {
                bail!("limpetctl {words}: failed");
            }
        }
        Ok(Self { host, fabric, _process: process })
    }

    /// Runs `act` where the controller is, with a client for it.
    ///
    /// # Errors
    ///
    /// What `act` says.
    pub(crate) fn with_client<T: Send>(
        &self,
        act: impl AsyncFnOnce(Client) -> Result<T> + Send,
    ) -> Result<T> {
        self.host.inside(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let endpoint = url().parse().context("reading the controller's URL")?;
            runtime.block_on(act(Client::new(vec![endpoint], Duration::from_secs(10))))
        })
    }

    /// The command that starts an agent of `host`.
    pub(crate) fn agent(host: &Host) -> std::process::Command {
        let mut command = host.command(binary("limpet-agent"));
        let at = |name: &str| host.dir().join(name).display().to_string();
        command.args(["--host", host.name(), "--controller", &url(), "--plain-http"]);
        command.args(["--socket", &at("agent.sock"), "--state-dir", &at("agent")]);
        command.args(["--boot-id-file", &at("boot-id"), "--log", "warn"]);
        command
    }
}

fn url() -> String {
    format!("http://{CONTROLLER}:7600")
}

/// All hosts.
pub(crate) struct Fleet {
    control: Control,
    hosts: Vec<Host>,
    _agents: Vec<Process>,
}

impl Fleet {
    /// Starts so many agents, and waits until each has a way to every other.
    pub(crate) fn start(disk: &Path, count: usize) -> Result<Self> {
        let control = Control::start(disk, "fleet")?;
        let hosts: Vec<Host> = (0..count).map(|n| Host::new(&format!("h{n}"))).collect();
        let mut agents = Vec::new();
        for (n, host) in hosts.iter().enumerate() {
            control.fabric.join(host, "eth0", &[&format!("10.99.1.{n}/16")]);
            agents.push(Process::start(Control::agent(host), &host.dir().join("agent.log")));
        }
        for host in &hosts {
            wait_until(READY, "every host has a way to every other", || {
                host.sh("ip nexthop show protocol 76").lines().count() == count - 1
            });
        }
        Ok(Self { control, hosts, _agents: agents })
    }

    pub(crate) fn netns(&self, host: usize) -> Result<Netns> {
        let host = self.hosts.get(host).context("there is no such host")?;
        Ok(Netns::open(host.netns())?)
    }

    /// Makes the first host the gateway to a prefix; returns when that is committed.
    pub(crate) fn lead(&self, to: Prefix) -> Result<()> {
        let name: HostName = self.hosts.first().context("there is no host")?.name().parse()?;
        let change = HostChange {
            roles: Some([Role::Node, Role::Gateway].into()),
            external: Some([to].into()),
            ..HostChange::default()
        };
        tokio::task::block_in_place(|| {
            self.control.with_client(async move |client| {
                let call = Call::with_body(Method::PATCH, paths::host(&name), &change)?;
                client.call::<serde_json::Value>(&call).await?;
                Ok(())
            })
        })
    }
}

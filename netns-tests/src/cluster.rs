//! Edge: several controllers over several members of etcd, each pair on a host of its own, which can be
//! killed, frozen and cut off.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::fabric::Fabric;
use crate::host::Host;
use crate::program::{Process, binary};
use crate::run::{finish, wait_until};

/// The ports that clients are served at.
const ETCD: u16 = 2379;
const CONTROLLER: u16 = 7600;

/// How long a member or a controller may take until it answers.
const READY: Duration = Duration::from_secs(60);

/// Controllers, members of etcd, and a host for whoever asks them.
#[derive(Debug)]
pub struct Cluster {
    /// Where clients are.
    pub clients: Host,
    hosts: Vec<Host>,
    members: Vec<Option<Process>>,
    controllers: Vec<Option<Process>>,
    _fabric: Fabric,
}

/// One of the two programs on a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// The member of etcd.
    Etcd,
    /// The controller.
    Controller,
}

impl Cluster {
    /// Starts so many of each, and waits until all answer.
    #[must_use]
    pub fn start(count: usize) -> Self {
        let fabric = Fabric::new("under");
        let clients = Host::new("clients");
        fabric.join(&clients, "eth0", &["192.0.2.100/24"]);
        let hosts: Vec<Host> = (0..count).map(|n| Host::new(&format!("c{n}"))).collect();
        for (n, host) in hosts.iter().enumerate() {
            fabric.join(host, "eth0", &[&format!("{}/24", address(n))]);
        }
        let (members, controllers) = (Vec::new(), Vec::new());
        let mut cluster = Self { clients, hosts, members, controllers, _fabric: fabric };
        cluster.members = (0..count).map(|n| Some(cluster.member(n))).collect();
        for n in 0..count {
            cluster.await_answer(n, ETCD);
        }
        cluster.controllers = (0..count).map(|n| Some(cluster.controller(n))).collect();
        for n in 0..count {
            cluster.await_answer(n, CONTROLLER);
        }
        cluster
    }

    /// Where the controllers are.
    #[must_use]
    pub fn urls(&self) -> Vec<String> {
        (0..self.hosts.len()).map(|n| format!("http://{}:{CONTROLLER}", address(n))).collect()
    }

    /// Runs `limpetctl` with these words, which are split at spaces; panics if it fails.
    pub fn ctl(&self, words: &str) {
        let mut command = self.clients.command(binary("limpetctl"));
        command.args(["--plain-http", "--controller", &self.urls().join(",")]);
        command.args(words.split(' '));
        drop(finish(&mut command, &format!("limpetctl {words}")).unwrap());
    }

    fn member(&self, n: usize) -> Process {
        let all: Vec<String> =
            (0..self.hosts.len()).map(|n| format!("m{n}=http://{}:2380", address(n))).collect();
        let (client, peer) =
            (format!("http://{}:{ETCD}", address(n)), format!("http://{}:2380", address(n)));
        let mut command = self.hosts[n].command("etcd");
        command.args(["--name", &format!("m{n}"), "--initial-cluster", &all.join(",")]);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--heartbeat-interval", "100", "--election-timeout", "1000"]);
        command.arg("--data-dir").arg(self.hosts[n].dir().join("etcd"));
        Process::start(command, &self.hosts[n].dir().join("etcd.log"))
    }

    fn controller(&self, n: usize) -> Process {
        let members: Vec<String> =
            (0..self.hosts.len()).map(|n| format!("http://{}:{ETCD}", address(n))).collect();
        let mut command = self.hosts[n].command(binary("limpet-controller"));
        command.args(["--plain-http", "--listen", &format!("{}:{CONTROLLER}", address(n))]);
        command.args(["--etcd", &members.join(",")]);
        Process::start(command, &self.hosts[n].dir().join("controller.log"))
    }

    fn await_answer(&self, n: usize, port: u16) {
        let (address, what) = (address(n), format!("{}:{port} answers", address(n)));
        wait_until(READY, &what, || {
            let look = format!("curl -sf -m 1 http://{address}:{port}/{}", health(port));
            self.clients.try_sh(&look).is_ok()
        });
    }

    fn process(&mut self, program: Program, n: usize) -> &mut Option<Process> {
        match program {
            Program::Etcd => &mut self.members[n],
            Program::Controller => &mut self.controllers[n],
        }
    }

    /// Kills a program at once, as a crash does.
    pub fn kill(&mut self, program: Program, n: usize) {
        if let Some(process) = self.process(program, n).take() {
            process.kill();
        }
    }

    /// Starts a program again that was killed.
    pub fn restart(&mut self, program: Program, n: usize) {
        let process = match program {
            Program::Etcd => self.member(n),
            Program::Controller => self.controller(n),
        };
        *self.process(program, n) = Some(process);
    }

    /// Lets a program stand still.
    pub fn freeze(&mut self, program: Program, n: usize) {
        if let Some(process) = self.process(program, n) {
            process.signal(Signal::SIGSTOP);
        }
    }

    /// Lets it go on.
    pub fn thaw(&mut self, program: Program, n: usize) {
        if let Some(process) = self.process(program, n) {
            process.signal(Signal::SIGCONT);
        }
    }

    /// Cuts a host off from all others.
    pub fn cut(&self, n: usize) {
        self.hosts[n].run("ip link set eth0 down");
    }

    /// Connects it again.
    pub fn connect(&self, n: usize) {
        self.hosts[n].run("ip link set eth0 up");
    }

    /// Waits until everything answers again.
    pub fn await_all(&self) {
        for n in 0..self.hosts.len() {
            self.await_answer(n, ETCD);
            self.await_answer(n, CONTROLLER);
        }
    }
}

fn address(n: usize) -> String {
    format!("192.0.2.{}", n + 1)
}

/// Where a program says whether it can serve.
fn health(port: u16) -> &'static str {
    if port == CONTROLLER { "readyz" } else { "health" }
}

//! Edge: a host: a network namespace, with files of its own, that commands run in.

use std::ffi::OsStr;
use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use serde_json::Value;

use crate::machine::{Init, Machine};
use crate::run::{finish, sh, state_dir, unique, wait_until};

/// A host of a test. Clones are the same host, which is gone with the last of them.
#[derive(Clone, Debug)]
pub struct Host(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    netns: String,
    dir: PathBuf,
    machine: Option<Machine>,
}

impl Host {
    /// Makes a host: a network namespace, with its loopback device up.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let netns = unique(name);
        drop(sh(&format!("ip netns add {netns} && ip -n {netns} link set lo up")));
        let dir = state_dir(&netns);
        Self(Arc::new(Inner { name: name.to_owned(), netns, dir, machine: None }))
    }

    /// Makes a host that a container runtime can run on: also its processes, mounts, names and
    /// control groups are its own, and so are `/run`, `/etc/cni`, `/opt/cni` and what a runtime and
    /// limpet keep below `/var/lib`.
    ///
    /// Needs the machine's real root, as a container runtime does.
    #[must_use]
    pub fn machine(name: &str) -> Self {
        Self::with_init(name, Init::Reaper)
    }

    /// Makes a machine whose process 1 becomes the distribution's systemd at [`Host::boot`]. Its whole disk is its own,
    /// and nothing that is installed on the real one is enabled.
    ///
    /// Needs the machine's real root.
    #[must_use]
    pub fn with_systemd(name: &str) -> Self {
        Self::with_init(name, Init::Systemd)
    }

    fn with_init(name: &str, init: Init) -> Self {
        let netns = unique(name);
        let dir = state_dir(&netns);
        let machine = Machine::new(&netns, &dir, init);
        Self(Arc::new(Inner { name: name.to_owned(), netns, dir, machine: Some(machine) }))
    }

    fn own_machine(&self) -> &Machine {
        self.0.machine.as_ref().expect("only a machine can be booted")
    }

    /// Kills everything on this machine and starts it again: its disk stays, all else is new.
    pub fn reboot(&self) {
        self.own_machine().down();
        self.own_machine().up();
    }

    /// Boots a machine with systemd; returns when `systemctl` works.
    pub fn boot(&self) {
        self.own_machine().boot();
    }

    /// Has systemd shut this machine down in its order, and switches it on again; it is still to be booted.
    pub fn reboot_in_order(&self) {
        // systemctl may be told that the connection broke: it did.
        let _ = self.try_sh("systemctl reboot --no-block");
        self.own_machine().shut_down();
        self.own_machine().up();
    }

    /// The name that limpet knows it by.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// A directory for its files; of a machine, what stays over a reboot.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// Whether a container runtime can run on it, with the standard paths its own.
    #[must_use]
    pub fn is_machine(&self) -> bool {
        self.0.machine.is_some()
    }

    /// Where its files are seen from outside; `path` is absolute, as seen on the host.
    #[must_use]
    pub fn path_from_outside(&self, path: &str) -> PathBuf {
        match &self.0.machine {
            Some(machine) => PathBuf::from(format!("/proc/{}/root{path}", machine.pid())),
            None => path.into(),
        }
    }

    /// Its network namespace, as a file that names it.
    #[must_use]
    pub fn netns(&self) -> PathBuf {
        match &self.0.machine {
            Some(machine) => PathBuf::from(format!("/proc/{}/ns/net", machine.pid())),
            None => Path::new("/run/netns").join(&self.0.netns),
        }
    }

    /// What `ip link set ... netns` takes for its network namespace.
    pub(crate) fn netns_handle(&self) -> String {
        self.0
            .machine
            .as_ref()
            .map_or_else(|| self.0.netns.clone(), |machine| machine.pid().to_string())
    }

    /// A name for the fabric's end of its cable.
    pub(crate) fn unique_name(&self) -> &str {
        &self.0.netns
    }

    /// A command that will run on this host.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        if let Some(machine) = &self.0.machine {
            return machine.command(program.as_ref());
        }
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0.netns]).arg(program);
        command
    }

    /// Runs a shell command line on this host and returns its output; panics if it fails.
    #[must_use = "or use `run` when only its success matters"]
    pub fn sh(&self, line: &str) -> String {
        self.try_sh(line).unwrap_or_else(|why| panic!("on {}: {why}", self.name()))
    }

    /// Runs a shell command line on this host; panics if it fails.
    pub fn run(&self, line: &str) {
        drop(self.sh(line));
    }

    /// Runs a shell command line on this host.
    ///
    /// # Errors
    ///
    /// What it printed, and its exit status, if that is not success.
    pub fn try_sh(&self, line: &str) -> Result<String, String> {
        finish(self.command("sh").args(["-ec", line]), line)
    }

    /// Runs a shell command line that prints JSON, such as `ip -j route`. Nothing printed is an empty list.
    #[must_use]
    pub fn json(&self, line: &str) -> Vec<Value> {
        let text = self.sh(line);
        let text = if text.is_empty() { "[]" } else { &text };
        match serde_json::from_str(text).unwrap_or_else(|error| panic!("`{line}`: {error}: {text}"))
        {
            Value::Array(rows) => rows,
            other => vec![other],
        }
    }

    /// Calls `act` on a thread of its own inside this host's network namespace.
    pub fn inside<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        inside(&self.netns(), act)
    }

    /// Waits until `address` answers. The kernel may take a second to use a device that has just
    /// been plugged in.
    pub fn wait_for(&self, address: &str) {
        let target = address.parse().unwrap();
        wait_until(Duration::from_secs(5), &format!("{} pings {address}", self.name()), || {
            self.pings(target, 1)
        });
    }

    /// Whether this host can ping `address`; asks at most `tries` times, half a second each.
    #[must_use]
    pub fn pings(&self, address: IpAddr, tries: u32) -> bool {
        self.try_sh(&format!("ping -c {tries} -i 0.1 -W 0.5 -q {address}")).is_ok()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.machine.is_none() {
            let _ = Command::new("ip").args(["netns", "del", &self.netns]).status();
        }
    }
}

/// Calls `act` on a thread of its own inside the network namespace that the file `netns` names.
pub fn inside<T: Send>(netns: &Path, act: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let enter = || {
            let file =
                File::open(netns).unwrap_or_else(|error| panic!("{}: {error}", netns.display()));
            setns(file, CloneFlags::CLONE_NEWNET).unwrap();
            act()
        };
        match scope.spawn(enter).join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

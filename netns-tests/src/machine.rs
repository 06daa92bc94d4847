//! Edge: what makes a host a machine: its own processes, mounts, names and control groups.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use crate::run::wait_until;

/// How long systemd has to stop everything and end.
const SHUTDOWN: Duration = Duration::from_secs(30);

/// What a machine's process 1 is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Init {
    /// A script that reaps and starts nothing.
    Reaper,
    /// The distribution's systemd, once the machine is booted.
    Systemd,
}

impl Init {
    fn program(self) -> &'static str {
        match self {
            Self::Reaper => concat!(env!("CARGO_MANIFEST_DIR"), "/machine-init"),
            Self::Systemd => concat!(env!("CARGO_MANIFEST_DIR"), "/machine-systemd"),
        }
    }
}

/// A set of namespaces that one process 1 keeps alive, and the directory of its disk.
#[derive(Debug)]
pub(crate) struct Machine {
    name: String,
    init: Init,
    dir: PathBuf,
    /// This machine's group in every hierarchy.
    groups: Vec<PathBuf>,
    /// `unshare`, and the process 1 that it forked, as seen from here.
    running: Mutex<Option<(Child, u32)>>,
}

impl Machine {
    pub(crate) fn new(name: &str, dir: &Path, init: Init) -> Self {
        let sandbox = std::env::var("LIMPET_SANDBOX").expect("a machine is made in the sandbox");
        let group = format!("limpet-test-{sandbox}-{name}");
        let mut lines = Vec::new();
        let mut groups = Vec::new();
        for (option, place) in hierarchies() {
            let path = Path::new("/sys/fs/cgroup").join(&place).join(&group);
            fs::create_dir_all(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            allow_processes(&path);
            lines.push(format!("{option} {}", if place.is_empty() { "." } else { &place }));
            groups.push(path);
        }
        fs::write(dir.join("groups"), lines.join("\n") + "\n").unwrap();
        let (name, dir) = (name.to_owned(), dir.to_owned());
        let machine = Self { name, init, dir, groups, running: Mutex::new(None) };
        machine.up();
        machine
    }

    /// Starts it; its disk is as it was left. One with systemd has its mounts by then and is still to be booted.
    pub(crate) fn up(&self) {
        let ready = self.dir.join("ready");
        let _ = fs::remove_file(&ready);
        let _ = fs::remove_file(self.booted());
        let log = fs::File::create(self.dir.join("init.log")).unwrap();
        // The groups are joined first: then they are the root of the machine's own view of them.
        let mut unshare = joined(&self.groups, "");
        unshare.args([
            "unshare",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount",
            "--propagation",
            "private",
        ]);
        unshare
            .args(["--net", "--uts", "--ipc", "--cgroup", "--", self.init.program(), &self.name])
            .arg(&self.dir);
        unshare.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let child = unshare.spawn().unwrap();
        let id = child.id();
        wait_until(Duration::from_secs(10), "the machine has started", || {
            let log = || fs::read_to_string(self.dir.join("init.log")).unwrap_or_default();
            assert!(
                Path::new(&format!("/proc/{id}/ns/net")).exists(),
                "the machine's process 1 ended: {}",
                log()
            );
            ready.exists()
        });
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
        let pid =
            children.trim().parse().unwrap_or_else(|_| panic!("one process 1, not `{children}`"));
        *self.running.lock().unwrap() = Some((child, pid));
    }

    fn booted(&self) -> PathBuf {
        self.dir.join("booted")
    }

    /// Hands its process 1 over to systemd, and waits until that listens to `systemctl`.
    pub(crate) fn boot(&self) {
        fs::write(self.booted(), "").unwrap();
        let socket = format!("/proc/{}/root/run/systemd/private", self.pid());
        wait_until(Duration::from_secs(20), "systemd listens", || Path::new(&socket).exists());
    }

    /// Waits until its systemd, which was told to, has stopped everything and ended.
    pub(crate) fn shut_down(&self) {
        let (mut child, _) = self.running.lock().unwrap().take().expect("the machine is up");
        wait_until(SHUTDOWN, "the machine has shut down", || child.try_wait().unwrap().is_some());
    }

    /// Kills everything on it at once, as a power cut does.
    pub(crate) fn down(&self) {
        if let Some((mut child, pid)) = self.running.lock().unwrap().take() {
            let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
            let _ = child.wait();
        }
    }

    /// Its process 1, as seen from outside.
    pub(crate) fn pid(&self) -> u32 {
        self.running.lock().unwrap().as_ref().expect("the machine is up").1
    }

    /// A command that will run on it.
    pub(crate) fn command(&self, program: &OsStr) -> Command {
        // Where version 2 is the only hierarchy, no process may be in a group that hands out controllers: process 1
        // and what is started from here are one level down.
        let below = match self.init {
            Init::Systemd if self.groups.len() == 1 && self.booted().exists() => "/init.scope",
            Init::Reaper if self.groups.len() == 1 => "/init",
            _ => "",
        };
        let mut command = joined(&self.groups, below);
        command.args(["nsenter", "--target", &self.pid().to_string()]);
        command
            .args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--wd=/", "--"])
            .arg(program);
        command
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.down();
        // What is left of a group after its processes are dead; the sandbox sweeps up what will not go yet.
        for group in &self.groups {
            let _ = Command::new("find")
                .arg(group)
                .args(["-depth", "-type", "d", "-exec", "rmdir", "{}", ";"])
                .stderr(Stdio::null())
                .status();
        }
    }
}

/// A command line that first joins `groups` and then becomes the program that is to be added.
fn joined(groups: &[PathBuf], below: &str) -> Command {
    let join = |group: &PathBuf| format!("echo $$ > {}{below}/cgroup.procs; ", group.display());
    let script: String = groups.iter().map(join).collect();
    let mut command = Command::new("sh");
    command.args(["-ec", &format!("{script}exec \"$@\""), "sh"]);
    command
}

/// The mount option and the directory below `/sys/fs/cgroup` of every hierarchy that is mounted there.
fn hierarchies() -> Vec<(String, String)> {
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        return vec![("-".to_owned(), String::new())];
    }
    let mut found = Vec::new();
    for line in fs::read_to_string("/proc/self/cgroup").unwrap().lines() {
        let controllers = line.split(':').nth(1).unwrap_or_default();
        let (option, place) = match controllers {
            "" => ("-", "unified"),
            named => (named, named.strip_prefix("name=").unwrap_or(named)),
        };
        if Path::new("/sys/fs/cgroup").join(place).join("cgroup.procs").exists() {
            found.push((option.to_owned(), place.to_owned()));
        }
    }
    found
}

/// A new group of version 1's cpuset is empty, and takes no process before it has CPUs and memory.
fn allow_processes(group: &Path) {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let (own, parent) = (group.join(file), group.parent().unwrap().join(file));
        if own.exists() && group.join("cgroup.clone_children").exists() {
            fs::write(own, fs::read_to_string(parent).unwrap()).unwrap();
            fs::write(group.join("cgroup.clone_children"), "1").unwrap();
        }
    }
}

//! Edge: a host of its own for each test, the real agent on it, and a small controller that does as it is told.
#![allow(dead_code, reason = "each test file uses a part")]

pub(crate) mod fake;

use std::hash::{BuildHasher as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use limpet_api::client::{Call, ClientError, Connection, Endpoint, Method};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// How long anything may take here.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);

/// A network namespace with an underlay, and a directory; both are gone when it is dropped.
pub(crate) struct Host {
    name: String,
    pub(crate) dir: PathBuf,
}

impl Host {
    /// A host whose `eth0` has 192.0.2.1/24 and `2001:db8::1/64`, and default routes.
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        // Test programs have process numbers of their own, so that another's may be the same; directories they share.
        let unique = std::hash::RandomState::new().build_hasher().finish();
        let name = format!("agent-{unique:x}-{count}");
        let dir = std::env::temp_dir().join(&name);
        std::fs::create_dir_all(&dir).unwrap();
        let host = Self { name, dir };
        host.boot();
        host
    }

    /// Ends all that does not outlive a boot, and starts again: the kernel has nothing of limpet's, the disk all.
    pub(crate) fn reboot(&self) {
        sh(&format!("ip netns del {}", self.name));
        for name in ["boot-id", "ahead-of-snapshot", "agent.sock"] {
            let _ = std::fs::remove_file(self.path(name));
        }
        let _ = std::fs::remove_dir_all(self.path("attachments"));
        self.boot();
    }

    fn boot(&self) {
        let host = self;
        sh(&format!("ip netns add {}", host.name));
        host.sh("ip link set lo up");
        host.sh("ip link add eth0 type veth peer name wire");
        host.sh("ip link set wire up && ip link set eth0 up");
        host.sh("ip addr add 192.0.2.1/24 dev eth0 && ip addr add 2001:db8::1/64 dev eth0 nodad");
        host.sh("ip route add default via 192.0.2.254");
    }

    /// Runs a shell command on the host, which must succeed, and returns what it printed.
    pub(crate) fn sh(&self, command: &str) -> String {
        sh(&format!("ip netns exec {} sh -ec '{}'", self.name, command.replace('\'', "'\\''")))
    }

    /// What an `ip -j` or `bridge -j` command prints.
    pub(crate) fn json(&self, command: &str) -> Vec<Value> {
        let text = self.sh(command);
        if text.trim().is_empty() { vec![] } else { serde_json::from_str(&text).unwrap() }
    }

    /// The host's end of a container's veth pair, as the plugin makes it.
    pub(crate) fn veth(&self, ifname: &str, uid: &str, group: u32) {
        self.sh(&format!(
            "ip link add {ifname} address 02:4c:ff:ff:ff:ff group {group} type veth peer name p{ifname}
            ip link set {ifname} alias {uid} addrgenmode none up; ip link set p{ifname} up"
        ));
    }

    pub(crate) fn netns(&self) -> &str {
        &self.name
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// The real agent, killed when it is dropped.
pub(crate) struct Agent {
    process: Child,
    pub(crate) socket: PathBuf,
    log: PathBuf,
}

impl Agent {
    /// Starts it as `node-a` with a controller on a unix socket, and some more flags.
    pub(crate) fn start(host: &Host, controller: &Path, flags: &str) -> Self {
        let log = host.path("agent.log");
        let output = std::fs::File::options().create(true).append(true).open(&log).unwrap();
        let socket = host.path("agent.sock");
        let process = command(host, controller)
            .args(flags.split_whitespace())
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        let agent = Self { process, socket, log };
        wait_until("the agent listens", || {
            std::os::unix::net::UnixStream::connect(&agent.socket).is_ok()
        });
        agent
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Starts it to see it fail, and returns what it said.
    pub(crate) fn fails(host: &Host, controller: &Path) -> String {
        let output = command(host, controller).output().unwrap();
        assert!(!output.status.success(), "it runs");
        String::from_utf8(output.stderr).unwrap()
    }

    pub(crate) fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    pub(crate) fn signal(&self, name: &str) {
        sh(&format!("kill -{name} {}", self.process.id()));
    }

    /// Stops it as a service manager does.
    pub(crate) fn stop(mut self) {
        self.signal("TERM");
        wait_until("the agent ends", || self.process.try_wait().unwrap().is_some());
        assert!(self.process.wait().unwrap().success());
    }

    pub(crate) async fn connect(&self) -> Connection {
        Connection::open(&Endpoint::Unix(self.socket.clone()), LIMIT).await.unwrap()
    }

    pub(crate) async fn call<A: DeserializeOwned>(&self, call: &Call) -> Result<A, ClientError> {
        self.connect().await.call(call, Duration::from_secs(20)).await
    }

    pub(crate) async fn get<A: DeserializeOwned>(&self, path: &str) -> Result<A, ClientError> {
        self.call(&Call::new(Method::GET, path)).await
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("---- the agent's log\n{}", self.log());
        }
    }
}

/// The agent's command line.
pub(crate) fn command(host: &Host, controller: &Path) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &host.name, env!("CARGO_BIN_EXE_limpet-agent")]);
    command.args(["--host", "node-a"]).env("LIMPET_LOG", "debug");
    command.arg("--controller").arg(format!("unix:{}", controller.display()));
    command.arg("--socket").arg(host.path("agent.sock"));
    command.arg("--state-dir").arg(host.path("state"));
    command.arg("--boot-id-file").arg(host.path("boot-id"));
    command
}

pub(crate) fn sh(command: &str) -> String {
    let output = Command::new("sh").args(["-ec", command]).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < LIMIT, "after {LIMIT:?} still not so: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

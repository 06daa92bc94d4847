//! Edge: a host and its containers as network namespaces, a fake of the host's agent, and the real plugin called
//! as a container runtime calls it.

#![expect(
    clippy::unwrap_used,
    reason = "a test may stop at the first surprise; clippy knows only test functions for tests"
)]
// Each test binary uses a part of it.
#![allow(dead_code, reason = "each test binary uses its own part")]

pub(crate) mod agent;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Map, Value, json};

pub(crate) use agent::FakeAgent;

/// The versions that limpet speaks.
pub(crate) const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The container that the tests attach.
pub(crate) const CONTAINER: &str = "c1";

/// The host's end of `eth0` of the container `c1` on the network `pods`.
pub(crate) fn host_ifname() -> String {
    let parse = "pods".parse().unwrap();
    limpet_net_types::host_ifname(&parse, &CONTAINER.parse().unwrap(), &"eth0".parse().unwrap())
}

/// A network namespace that ends with the test.
pub(crate) struct Ns(pub(crate) String);

impl Ns {
    pub(crate) fn new(what: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let ns = Self(format!("cni-{what}-{}-{n}", std::process::id()));
        run(&format!("ip netns add {}", ns.0));
        ns
    }

    pub(crate) fn path(&self) -> String {
        format!("/run/netns/{}", self.0)
    }

    /// Runs `ip` or another program of iproute2 with these arguments in the namespace.
    pub(crate) fn sh(&self, command: &str) -> String {
        let (program, rest) = command.split_once(' ').unwrap();
        run(&format!("{program} -n {} {rest}", self.0))
    }

    /// Runs any program in the namespace, and returns whether it succeeded.
    pub(crate) fn try_exec(&self, command: &str) -> bool {
        let words = command.split(' ');
        let mut exec = Command::new("ip");
        exec.args(["netns", "exec", &self.0]).args(words).stdout(Stdio::null());
        exec.status().unwrap().success()
    }

    /// What `ip -j` says with these arguments, an array.
    pub(crate) fn json(&self, arguments: &str) -> Value {
        let text = self.sh(&format!("ip -j -d {arguments}"));
        serde_json::from_str(if text.trim().is_empty() { "[]" } else { &text }).unwrap()
    }

    pub(crate) fn sysctl(&self, setting: &str) -> String {
        run(&format!("ip netns exec {} cat /proc/sys/net/{setting}", self.0)).trim().to_owned()
    }

    /// Whether there is an interface of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        let list = self.json("link show");
        list.as_array().unwrap().iter().any(|link| link["ifname"] == name)
    }
}

impl Drop for Ns {
    fn drop(&mut self) {
        // Not `run`: a second panic while the first unwinds would abort and hide it.
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

pub(crate) fn run(command: &str) -> String {
    let mut words = command.split(' ');
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{command}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A host with an agent and one container.
pub(crate) struct Lab {
    pub(crate) host: Ns,
    pub(crate) container: Ns,
    pub(crate) agent: FakeAgent,
    pub(crate) config: Map<String, Value>,
    pub(crate) environment: Vec<(String, String)>,
}

/// What the plugin did.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Answer {
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Answer {
    /// Standard output as JSON; nothing is `null`.
    pub(crate) fn json(&self) -> Value {
        if self.stdout.is_empty() {
            Value::Null
        } else {
            serde_json::from_str(&self.stdout).unwrap()
        }
    }

    /// The code of the error, which there must be.
    pub(crate) fn code(&self) -> u64 {
        assert_eq!(self.status, 1, "{self:?}");
        self.json()["code"].as_u64().unwrap()
    }

    /// The error's message and details, which there must be.
    pub(crate) fn said(&self) -> String {
        let object = self.json();
        let details = object["details"].as_str().unwrap_or_default();
        format!("{} | {details}", object["msg"].as_str().unwrap())
    }

    /// The result of a success.
    pub(crate) fn ok(&self) -> Value {
        assert_eq!((self.status, self.json().get("code")), (0, None), "{self:?}");
        self.json()
    }
}

impl Lab {
    pub(crate) fn new() -> Self {
        let (host, container) = (Ns::new("host"), Ns::new("pod"));
        for ns in [&host, &container] {
            ns.sh("ip link set lo up");
        }
        host.sh("ip addr add 192.0.2.1/32 dev lo");
        host.sh("ip addr add 2001:db8::1/128 dev lo nodad");
        let agent = FakeAgent::start();
        let config = json!({
            "cniVersion": "1.0.0",
            "name": "pods",
            "type": "limpet",
            "socket": agent.socket(),
            "timeout": 5,
        });
        let environment = [
            ("CNI_CONTAINERID", CONTAINER),
            ("CNI_NETNS", &container.path()),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/opt/cni/bin"),
            ("CNI_ARGS", "K8S_POD_NAMESPACE=shop;IgnoreUnknown=1;K8S_POD_NAME=web-0"),
        ];
        let environment =
            environment.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let Value::Object(config) = config else { unreachable!("it is an object") };
        Self { host, container, agent, config, environment }
    }

    /// The same with another field in the configuration; `null` takes it away.
    pub(crate) fn with(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.set(field, value);
        self
    }

    pub(crate) fn set(&mut self, field: &str, value: impl Into<Value>) {
        match value.into() {
            Value::Null => drop(self.config.remove(field)),
            value => drop(self.config.insert(field.to_owned(), value)),
        }
    }

    /// The same with another variable.
    pub(crate) fn with_env(mut self, name: &str, value: &str) -> Self {
        self.set_env(name, value);
        self
    }

    pub(crate) fn set_env(&mut self, name: &str, value: &str) {
        self.environment.retain(|(other, _)| other != name);
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// The same without a variable.
    pub(crate) fn without_env(mut self, name: &str) -> Self {
        self.environment.retain(|(other, _)| other != name);
        self
    }

    /// Calls the plugin on the host.
    pub(crate) fn call(&self, verb: &str) -> Answer {
        self.call_with(verb, Value::from(self.config.clone()).to_string().as_bytes())
    }

    /// Calls the plugin on the host with anything on standard input.
    pub(crate) fn call_with(&self, verb: &str, stdin: &[u8]) -> Answer {
        self.call_as(&[], verb, stdin)
    }

    /// Calls the plugin on the host through another program, which comes with its arguments.
    pub(crate) fn call_as(&self, through: &[&str], verb: &str, stdin: &[u8]) -> Answer {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.host.path())).args(through);
        command.arg(env!("CARGO_BIN_EXE_limpet"));
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("CNI_COMMAND", verb).envs(self.environment.iter().cloned());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // The plugin may refuse the call before it has read all.
        let _ = child.stdin.take().unwrap().write_all(stdin);
        let output = child.wait_with_output().unwrap();
        Answer {
            status: output.status.code().unwrap(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// ADD, which must succeed; from then on the configuration has its result.
    pub(crate) fn add(&mut self) -> Value {
        let result = self.call("ADD").ok();
        self.set("prevResult", result.clone());
        result
    }

    /// Whether a route of the host leads to the container.
    pub(crate) fn is_routed(&self) -> bool {
        // Of a table that was never used alone, `ip` says that there is none.
        let all = |family| self.host.sh(&format!("ip {family} route show table all type unicast"));
        all("-4").contains("table 7601") || all("-6").contains("table 7601")
    }

    /// What of a text is different in each run, made the same.
    pub(crate) fn level(&self, text: &str) -> String {
        text.replace(&self.container.path(), "<netns>")
            .replace(&host_ifname(), "<host-end>")
            .replace(&self.agent.socket().display().to_string(), "<socket>")
    }
}

/// Compares with a golden file, which `UPDATE=1` rewrites.
pub(crate) fn golden(name: &str, text: &str) {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, text).unwrap();
    }
    let wanted = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, wanted, "{} differs; UPDATE=1 rewrites it", path.display());
}

/// Runs a program with something on standard input.
pub(crate) fn run_with(command: &str, stdin: &[u8]) {
    let mut words = command.split(' ');
    let mut child = Command::new(words.next().unwrap());
    let mut child = child.args(words).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(stdin).unwrap();
    assert!(child.wait().unwrap().success(), "{command}");
}

//! Edge: containers as limpet sees them: a network namespace and the identity that a runtime gives.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::host::{Host, inside};
use crate::run::{finish, sh, unique};

/// A network namespace with nothing in it but its loopback device.
#[derive(Debug)]
pub struct Container {
    id: String,
    /// The machine whose own namespaces it is among; none where they are the test's.
    machine: Option<Host>,
}

impl Container {
    /// Makes a container without an interface; `name` only helps to recognise it.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let id = unique(name);
        drop(sh(&format!("ip netns add {id} && ip -n {id} link set lo up")));
        Self { id, machine: None }
    }

    /// The same on a host: a machine has its namespaces to itself.
    #[must_use]
    pub fn on(host: &Host, name: &str) -> Self {
        if !host.is_machine() {
            return Self::new(name);
        }
        let id = unique(name);
        host.run(&format!("ip netns add {id} && ip -n {id} link set lo up"));
        Self { id, machine: Some(host.clone()) }
    }

    /// Its container ID, which is also its namespace's name.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its network namespace, as `CNI_NETNS` names it.
    #[must_use]
    pub fn netns(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.id)
    }

    /// Runs a shell command line in it and returns its output; panics if it fails.
    #[must_use]
    pub fn sh(&self, line: &str) -> String {
        self.try_sh(line).unwrap_or_else(|why| panic!("in {}: {why}", self.id))
    }

    /// Runs a shell command line in it.
    ///
    /// # Errors
    ///
    /// What it printed, and its exit status, if that is not success.
    pub fn try_sh(&self, line: &str) -> Result<String, String> {
        finish(self.command("sh").args(["-ec", line]), line)
    }

    /// A command that will run in it.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command =
            self.machine.as_ref().map_or_else(|| Command::new("ip"), |host| host.command("ip"));
        command.args(["netns", "exec", &self.id, program]);
        command
    }

    /// Takes its namespace away, as a runtime does once the container is dead.
    pub fn delete(&self) {
        let line = format!("ip netns del {}", self.id);
        drop(self.machine.as_ref().map_or_else(|| sh(&line), |host| host.sh(&line)));
    }

    /// Calls `act` on a thread of its own inside it.
    pub fn inside<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let netns = self.netns();
        let seen = |host: &Host| host.path_from_outside(&netns.display().to_string());
        inside(&self.machine.as_ref().map_or(netns.clone(), seen), act)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if self.machine.is_some() {
            // It goes with its machine.
            return;
        }
        let _ = Command::new("ip")
            .args(["netns", "del", &self.id])
            .stderr(std::process::Stdio::null())
            .status();
    }
}

/// A container that ADD gave an interface and addresses.
#[derive(Debug)]
pub struct Pod {
    /// Its namespace.
    pub container: Container,
    /// The namespace of its name, in the sense of Kubernetes.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What ADD printed.
    pub result: Value,
}

impl Pod {
    /// Its addresses, as ADD's result has them, without prefix lengths.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        let ips = self.result["ips"].as_array().expect("a result lists addresses");
        let address = |ip: &Value| {
            ip["address"].as_str().unwrap().split('/').next().unwrap().parse().unwrap()
        };
        ips.iter().map(address).collect()
    }

    /// Its IPv4 address.
    #[must_use]
    pub fn v4(&self) -> IpAddr {
        self.addresses().into_iter().find(IpAddr::is_ipv4).expect("a pod with an IPv4 address")
    }

    /// Its IPv6 address.
    #[must_use]
    pub fn v6(&self) -> IpAddr {
        self.addresses().into_iter().find(IpAddr::is_ipv6).expect("a pod with an IPv6 address")
    }
}

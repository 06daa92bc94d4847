//! Edge: calling the real plugin exactly as a container runtime does: environment and standard input.

use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::agent::Agent;
use crate::container::{Container, Pod};
use crate::program::binary;

/// One call of the plugin.
#[derive(Clone, Debug)]
pub struct Call {
    /// `ADD`, `DEL`, ...
    pub verb: String,
    /// What standard input has.
    pub stdin: String,
    /// The environment, `CNI_COMMAND` apart.
    pub environment: Vec<(String, String)>,
}

/// What the plugin answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its exit status.
    pub code: i32,
    /// What it printed on standard output, which is nothing or JSON.
    pub stdout: Value,
    /// What it logged.
    pub stderr: String,
}

impl Answer {
    /// The result, if it succeeded; panics with what it said otherwise.
    #[must_use]
    pub fn expect_success(self, what: &str) -> Value {
        assert!(self.code == 0, "{what}: exit {}: {}\n{}", self.code, self.stdout, self.stderr);
        self.stdout
    }

    /// The code of the error, if it failed; panics otherwise.
    #[must_use]
    pub fn expect_error(&self, what: &str) -> u64 {
        assert!(self.code != 0, "{what} succeeded: {}", self.stdout);
        self.stdout["code"].as_u64().unwrap_or_else(|| panic!("{what}: no error object: {self:?}"))
    }
}

impl Call {
    /// A call as containerd makes it for a pod.
    #[must_use]
    pub fn for_pod(verb: &str, container: &Container, namespace: &str, name: &str) -> Self {
        let id = container.id();
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_INFRA_CONTAINER_ID={id}"
        );
        let environment = [
            ("CNI_CONTAINERID", id),
            ("CNI_NETNS", &container.netns().display().to_string()),
            ("CNI_IFNAME", "eth0"),
            ("CNI_ARGS", &args),
            ("CNI_PATH", "/opt/cni/bin"),
        ];
        let environment =
            environment.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec();
        Self { verb: verb.to_owned(), stdin: String::new(), environment }
    }

    /// The same call with another value in its environment; an empty one stays, as runtimes have it.
    #[must_use]
    pub fn with(mut self, key: &str, value: &str) -> Self {
        self.environment.retain(|(other, _)| other != key);
        self.environment.push((key.to_owned(), value.to_owned()));
        self
    }
}

impl Agent {
    /// The configuration that a runtime would pass on standard input for the network `pods`.
    #[must_use]
    pub fn config(&self) -> Value {
        json!({"cniVersion": "1.0.0", "name": "pods", "type": "limpet", "socket": self.socket()})
    }

    /// The same for any network.
    #[must_use]
    pub fn config_of(&self, network: &str) -> Value {
        let mut config = self.config();
        config["name"] = network.into();
        config
    }

    /// Calls the plugin on this agent's host.
    #[must_use]
    pub fn call(&self, call: &Call) -> Answer {
        let mut command = self.host().command(binary("limpet"));
        command.env("CNI_COMMAND", &call.verb).envs(call.environment.iter().cloned());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // The plugin may answer without having read all of it.
        let _ = child.stdin.take().unwrap().write_all(call.stdin.as_bytes());
        let output = child.wait_with_output().unwrap();
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        let stdout = if stdout.trim().is_empty() {
            Value::Null
        } else {
            serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}"))
        };
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        Answer { code: output.status.code().unwrap_or(-1), stdout, stderr }
    }

    /// ADD for a container, under a pod's name; the answer may be an error.
    #[must_use]
    pub fn try_add(&self, container: &Container, namespace: &str, name: &str) -> Answer {
        let call = Call::for_pod("ADD", container, namespace, name);
        self.call(&Call { stdin: self.config().to_string(), ..call })
    }

    /// A new pod: a container of its own, and ADD, which must succeed.
    #[must_use]
    pub fn add(&self, namespace: &str, name: &str) -> Pod {
        let container = Container::on(self.host(), &name[..name.len().min(9)]);
        let answer = self.try_add(&container, namespace, name);
        let result =
            answer.expect_success(&format!("ADD {namespace}/{name} on {}", self.host().name()));
        Pod { container, namespace: namespace.to_owned(), name: name.to_owned(), result }
    }

    /// A new pod on any network.
    #[must_use]
    pub fn add_on(&self, network: &str, namespace: &str, name: &str) -> Pod {
        let container = Container::on(self.host(), &name[..name.len().min(9)]);
        let call = Call::for_pod("ADD", &container, namespace, name);
        let answer = self.call(&Call { stdin: self.config_of(network).to_string(), ..call });
        let on = self.host().name();
        let result = answer.expect_success(&format!("ADD {namespace}/{name} to {network} on {on}"));
        Pod { container, namespace: namespace.to_owned(), name: name.to_owned(), result }
    }

    /// A call about another interface of a pod, with this configuration.
    #[must_use]
    pub fn call_for(&self, verb: &str, pod: &Pod, (ifname, config): (&str, &Value)) -> Answer {
        let call = Call::for_pod(verb, &pod.container, &pod.namespace, &pod.name);
        self.call(&Call { stdin: config.to_string(), ..call.with("CNI_IFNAME", ifname) })
    }

    /// DEL for a pod as a runtime sends it first: namespace and previous result are there.
    #[must_use]
    pub fn del(&self, pod: &Pod) -> Answer {
        let mut config = self.config();
        config["prevResult"] = pod.result.clone();
        let call = Call::for_pod("DEL", &pod.container, &pod.namespace, &pod.name);
        self.call(&Call { stdin: config.to_string(), ..call })
    }

    /// DEL for a pod as a runtime repeats it: with neither namespace nor previous result.
    #[must_use]
    pub fn del_again(&self, pod: &Pod) -> Answer {
        let call =
            Call::for_pod("DEL", &pod.container, &pod.namespace, &pod.name).with("CNI_NETNS", "");
        self.call(&Call { stdin: self.config().to_string(), ..call })
    }

    /// CHECK for a pod.
    #[must_use]
    pub fn check(&self, pod: &Pod) -> Answer {
        let mut config = self.config();
        config["prevResult"] = pod.result.clone();
        let call = Call::for_pod("CHECK", &pod.container, &pod.namespace, &pod.name);
        self.call(&Call { stdin: config.to_string(), ..call })
    }

    /// STATUS for a network.
    #[must_use]
    pub fn status(&self, network: &str) -> Answer {
        let mut config = self.config();
        config["name"] = network.into();
        config["cniVersion"] = "1.1.0".into();
        let environment = vec![("CNI_PATH".to_owned(), "/opt/cni/bin".to_owned())];
        self.call(&Call { verb: "STATUS".to_owned(), stdin: config.to_string(), environment })
    }

    /// The name of the host's end of a pod's veth pair, as ADD's result has it.
    #[must_use]
    pub fn host_end(pod: &Pod) -> String {
        let interfaces = pod.result["interfaces"].as_array().expect("a result lists interfaces");
        let outside = |i: &&Value| i["sandbox"].as_str().unwrap_or_default().is_empty();
        let name = interfaces.iter().find(outside).and_then(|i| i["name"].as_str());
        name.expect("one interface is the host's").to_owned()
    }

    /// Whether a device of this name is there on the host.
    #[must_use]
    pub fn has_device(&self, name: &str) -> bool {
        self.host().inside(|| Path::new("/proc/sys/net/ipv4/conf").join(name).exists())
    }
}

//! GC in a cluster: a runtime's list speaks for its own containers on this host and network, and only of what is gone.
#![expect(clippy::unwrap_used, reason = "also what helps a test stops at the first surprise")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use netns_tests::{Agent, Answer, Call, Container, Datacentre, wait_until};
use serde_json::{Value, json};

/// A runtime on a host, with its own word for itself and a network.
#[derive(Clone, Copy)]
struct Runtime<'a> {
    agent: &'a Agent,
    name: &'static str,
    network: &'static str,
}

impl Runtime<'_> {
    fn config(&self) -> Value {
        let mut config = self.agent.config();
        config["cniVersion"] = "1.1.0".into();
        config["runtime"] = self.name.into();
        config["name"] = self.network.into();
        config
    }

    /// A container of this runtime.
    fn add(&self, pod: &str) -> Container {
        self.add_and_hear(pod).0
    }

    /// The same, and the name of its interface on the host.
    fn add_and_hear(&self, pod: &str) -> (Container, String) {
        let container = Container::new(pod);
        let call = Call::for_pod("ADD", &container, "shop", pod);
        let answer = self.agent.call(&Call { stdin: self.config().to_string(), ..call });
        let result = answer.expect_success("ADD");
        let outside = result["interfaces"].as_array().unwrap().iter();
        let outside = outside.filter_map(|it| it["name"].as_str()).find(|it| it.starts_with("lc"));
        (container, outside.unwrap().to_owned())
    }

    /// A container of this runtime that died without a DEL.
    fn lose(&self, pod: &str) -> Container {
        let (container, outside) = self.add_and_hear(pod);
        container.delete();
        // The kernel takes a namespace's devices away when it finds the time.
        wait_until(Duration::from_secs(10), "its interface is gone", || {
            self.agent.host().try_sh(&format!("ip link show {outside}")).is_err()
        });
        container
    }

    /// GC with these fields in the configuration; it must succeed and say nothing.
    fn gc(&self, fields: &Value) {
        let answer = self.try_gc(fields);
        assert_eq!((answer.code, &answer.stdout), (0, &Value::Null), "{answer:?}");
    }

    fn try_gc(&self, fields: &Value) -> Answer {
        let mut config = self.config();
        for (key, value) in fields.as_object().unwrap() {
            config[key] = value.clone();
        }
        let environment = vec![("CNI_PATH".to_owned(), "/opt/cni/bin".to_owned())];
        let call = Call { verb: "GC".to_owned(), stdin: config.to_string(), environment };
        self.agent.call(&call)
    }
}

/// The list as it is written.
fn valid(containers: &[&Container]) -> Value {
    json!({"cni.dev/valid-attachments": entries(containers)})
}

fn entries(containers: &[&Container]) -> Value {
    let entry = |of: &&Container| json!({"containerID": of.id(), "ifname": "eth0"});
    containers.iter().map(entry).collect()
}

fn attached(dc: &Datacentre, container: &Container) -> bool {
    let rows = dc.controller.rows("attachment list");
    rows.iter().any(|row| row.to_string().contains(container.id()))
}

fn wait_for_the_end(dc: &Datacentre, container: &Container) {
    wait_until(Duration::from_secs(10), "its attachment is ended", || !attached(dc, container));
}

#[test]
fn two_runtimes_on_one_host_collect_nothing_of_each_other() {
    let dc = Datacentre::small();
    dc.controller.run("network create other --vni 200");
    dc.controller.run("pool create other-v4 --network other --range 10.77.0.0/24");
    let on = |agent, name, network| Runtime { agent, name, network };
    let containerd = on(&dc.a, "containerd", "pods");
    let podman = on(&dc.a, "podman", "pods");
    let elsewhere = on(&dc.b, "containerd", "pods");
    let second = on(&dc.a, "containerd", "other");
    wait_until(Duration::from_secs(10), "the second network is there", || {
        dc.a.status("other").code == 0
    });
    // More live than are gone: never more than half are ended by one look.
    let live = [containerd.add("c-live"), podman.add("p-live"), second.add("s-live")];
    let more = [containerd.add("c-more"), podman.add("p-more"), second.add("s-more")];
    let there = elsewhere.add("b-live");
    let [c, p, s] = [containerd.lose("c-gone"), podman.lose("p-gone"), second.lose("s-gone")];

    // With nothing in its list, twice: what lives stays, and so does what is another's.
    for _ in 0..2 {
        podman.gc(&valid(&[]));
        wait_for_the_end(&dc, &p);
        assert!(attached(&dc, &c) && attached(&dc, &s) && attached(&dc, &there));
    }
    // What is listed is valid, even where nothing is left of it.
    containerd.gc(&valid(&[&c]));
    assert!(attached(&dc, &c));
    containerd.gc(&valid(&[&live[0]]));
    wait_for_the_end(&dc, &c);
    assert!(attached(&dc, &s), "another network's list says nothing of it");
    second.gc(&valid(&[]));
    wait_for_the_end(&dc, &s);
    for container in live.iter().chain(&more).chain([&there]) {
        assert!(attached(&dc, container), "{} lives", container.id());
    }
}

#[test]
fn a_list_has_any_of_its_forms_and_without_one_nothing_is_collected() {
    let dc = Datacentre::small();
    let runtime = Runtime { agent: &dc.a, name: "containerd", network: "pods" };
    let live = [runtime.add("live-a"), runtime.add("live-b")];
    let gone = runtime.lose("gone");
    let answer = runtime.try_gc(&json!({}));
    assert_eq!(answer.expect_error("GC without a list"), 7);
    let answer = runtime.try_gc(&json!({"cni.dev/valid-attachments": [{"containerID": 7}]}));
    assert_eq!(answer.expect_error("GC with half an entry"), 7);
    // The runtimes' library has written it under another name, too: what either has is valid.
    runtime.gc(&json!({"cni.dev/valid-attachments": [], "cni.dev/attachments": entries(&[&gone])}));
    runtime.gc(&json!({"cni.dev/attachments": entries(&[&gone])}));
    // Names that limpet would not have taken are nobody's.
    let mut odd = valid(&[&gone, &gone]);
    let list = odd["cni.dev/valid-attachments"].as_array_mut().unwrap();
    list.push(json!({"containerID": "../x", "ifname": "a/b"}));
    runtime.gc(&odd);
    assert!(attached(&dc, &gone));
    // Nothing in the list, as programs written in Go have it.
    runtime.gc(&json!({"cni.dev/valid-attachments": null}));
    wait_for_the_end(&dc, &gone);
    assert!(live.iter().all(|container| attached(&dc, container)));
}

/// An ADD that has its addresses and has not made its interface yet.
fn claim(agent: &Agent, container: &str) -> UnixStream {
    let body = json!({
        "runtime": "containerd", "netns": "/run/netns/not-there", "namespace": "shop", "name": "late-0",
    });
    let body = body.to_string();
    let mut stream = UnixStream::connect(agent.socket()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    write!(
        stream,
        "PUT /v1/attachments/pods/{container}/eth0 HTTP/1.1\r\nhost: limpet\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = [0; 4096];
    let length = stream.read(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    stream
}

#[test]
fn an_add_that_is_under_way_is_not_collected_by_a_list_from_before() {
    let dc = Datacentre::small();
    let runtime = Runtime { agent: &dc.a, name: "containerd", network: "pods" };
    let live = [runtime.add("live-a"), runtime.add("live-b")];
    let listed = || {
        let rows = dc.controller.rows("attachment list");
        rows.iter().any(|row| row.to_string().contains("late-0"))
    };
    let adding = claim(&dc.a, "late");
    for _ in 0..3 {
        runtime.gc(&valid(&[&live[0], &live[1]]));
        assert!(listed(), "its plugin may be about to make the interface");
    }
    drop(adding);
    // The agent hears that its plugin is gone; what it claimed is as gone as its namespace.
    wait_until(Duration::from_secs(10), "it is collected", || {
        runtime.gc(&valid(&[&live[0], &live[1]]));
        !listed()
    });
    assert!(live.iter().all(|container| attached(&dc, container)));
}

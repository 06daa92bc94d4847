//! An agent ends what it sees for itself to be gone, by uid, and never what lives: whatever was away, copied, hidden from
//! it, or given to another meanwhile.

use std::process::Command;
use std::time::Duration;

use netns_tests::{Agent, Container, Datacentre, Host, Pod, Process, reaches, wait_until};

/// How many attachments the store has of a pod.
fn attachments(dc: &Datacentre, pod: &Pod) -> usize {
    let rows = dc.controller.rows("attachment list");
    rows.iter().filter(|row| row["container"] == pod.container.id()).count()
}

fn ended(dc: &Datacentre, pod: &Pod) {
    wait_until(Duration::from_secs(60), "the attachment is ended", || attachments(dc, pod) == 0);
}

/// Why the tenure of a pod's address ended that is over, as the history has it.
fn ended_because(dc: &Datacentre, pod: &Pod) -> String {
    dc.controller.ctl(&format!("history {} -o json", pod.v4()))
}

fn lives(dc: &Datacentre, pod: &Pod, on: &Agent) {
    assert_eq!(attachments(dc, pod), 1, "{} is attached", pod.name);
    for address in pod.addresses() {
        assert!(on.host().pings(address, 5), "{} answers at {address}", pod.name);
    }
}

/// What `limpet-agent status` prints.
fn status(agent: &Agent) -> String {
    let output = agent.command().arg("status").output();
    output.map_or_else(|error| error.to_string(), |it| String::from_utf8_lossy(&it.stdout).into())
}

#[test]
fn containers_that_went_while_nobody_looked_are_ended_and_no_other() {
    let mut dc = Datacentre::small();
    let pods: Vec<Pod> = (0..4).map(|n| dc.a.add("shop", &format!("web-{n}"))).collect();
    let [first, second, third, fourth] = pods.as_slice() else { unreachable!("there are four") };
    // Their runtime is gone as well, and nobody sends a DEL.
    dc.a.kill();
    dc.controller.kill();
    first.container.delete();
    dc.controller.resume();
    dc.a.start();
    ended(&dc, first);
    dc.controller.kill();
    second.container.delete();
    dc.controller.resume();
    ended(&dc, second);
    for gone in [first, second] {
        let history = ended_because(&dc, gone);
        assert!(history.contains("\"gone\"") && history.contains(gone.container.id()), "{history}");
    }
    lives(&dc, third, &dc.b);
    lives(&dc, fourth, &dc.b);
}

#[test]
fn a_container_whose_address_went_to_another_while_its_host_was_cut_off_is_severed_and_that_is_said()
 {
    let dc = Datacentre::small();
    for pool in ["pods-v4", "pods-v6"] {
        dc.controller.run(&format!("pool set {pool} --takeover-after 1s"));
    }
    let (old, other) = (dc.a.add("shop", "web-0"), dc.a.add("shop", "cache-0"));
    dc.a.host().run(
        "nft 'table inet cut {
            chain out { type filter hook output priority -300; oifname \"eth0\" drop; }
            chain in { type filter hook input priority -300; iifname \"eth0\" drop; }
        }'",
    );
    let container = Container::new("web-0");
    let mut answer = None;
    wait_until(Duration::from_secs(90), "its name comes up on the other host", || {
        let tried = dc.b.try_add(&container, "shop", "web-0");
        (tried.code == 0).then(|| answer = Some(tried.stdout)).is_some()
    });
    let result = answer.expect("it came up");
    let new = Pod { container, namespace: "shop".to_owned(), name: "web-0".to_owned(), result };
    assert_eq!(new.addresses(), old.addresses(), "its name keeps its addresses");

    dc.a.host().run("nft delete table inet cut");
    wait_until(Duration::from_secs(60), "the old container is severed", || {
        dc.a.logged().contains("severed: a container is without network")
    });
    let printed = status(&dc.a);
    let of_old = printed.lines().find(|line| line.contains(old.container.id()));
    assert!(of_old.is_some_and(|line| line.contains("node-b")), "who has it is said: {printed}");
    let device = Agent::host_end(&old);
    let link = dc.a.host().sh(&format!("ip -d link show {device}"));
    assert!(link.contains("state DOWN") && link.contains("group 8192"), "{link}");
    wait_until(Duration::from_secs(30), "the address leads to the new container", || {
        let there = |pod: &Pod| (pod.container.netns(), pod.v4());
        let ((from, source), (to, address)) = (there(&other), there(&new));
        reaches(&from, source, &to, address)
    });
    lives(&dc, &other, &dc.b);
    assert_eq!(attachments(&dc, &old), 0);
    assert_eq!(dc.a.del(&old).code, 0, "its DEL succeeds");
    lives(&dc, &new, &dc.a);
}

#[test]
fn a_copy_of_a_host_is_refused_and_ends_nothing() {
    let dc = Datacentre::small();
    let (web, db) = (dc.a.add("shop", "web-0"), dc.a.add("shop", "db-0"));
    // The disk of node-a in another machine, which starts under the same name.
    let copy = Host::new("node-a");
    dc.underlay.join(&copy, "eth0", &["192.0.2.77/24", "2001:db8::77/64"]);
    let (from, to) = (dc.a.host().dir().display(), copy.dir().display());
    copy.run(&format!("cp -a {from}/agent {to}/agent"));
    assert!(copy.dir().join("agent/install-id").exists(), "it is copied");
    let agent = Agent::new(&copy, &dc.controller.url(), "--role node");
    let _process = Process::start(agent.command(), &copy.dir().join("agent.log"));
    wait_until(Duration::from_secs(15), "it is told why it is not let in", || {
        agent.socket().exists() && agent.status("pods").stdout.to_string().contains("not let")
    });
    let refused = agent.status("pods");
    assert_eq!(refused.expect_error("STATUS"), 50, "{refused:?}");
    let container = Container::new("c");
    let answer = agent.try_add(&container, "shop", "new-0");
    assert_eq!(answer.expect_error("ADD"), 11, "{answer:?}");
    // Longer than the copy needs for a look at all that it has not.
    copy.run("sleep 3");
    assert!(copy.json("ip -j link show type vxlan").is_empty(), "it lays nothing out");
    lives(&dc, &web, &dc.b);
    lives(&dc, &db, &dc.b);
    assert!(dc.a.status("pods").code == 0, "the original is let in as ever");
}

#[test]
fn an_agent_that_cannot_see_the_namespaces_ends_nothing_that_lives() {
    let mut dc = Datacentre::small();
    let pods: Vec<Pod> = (0..3).map(|n| dc.a.add("shop", &format!("web-{n}"))).collect();
    dc.a.stop();
    let started = dc.a.command();
    let mut blind = Command::new("unshare");
    blind.args(["--mount", "--propagation", "private", "sh", "-ec"]);
    // `ip netns exec` needs them; what it becomes does not see them.
    let host = dc.a.host().netns();
    blind.arg(format!(
        "exec 3< {}; mount -t tmpfs tmpfs /run/netns; exec nsenter --net=/proc/self/fd/3 \"$@\"",
        host.display()
    ));
    blind.arg("sh").args(started.get_args().skip(3));
    let log = dc.a.host().dir().join("blind.log");
    let mut process = Process::start(blind, &log);
    wait_until(Duration::from_secs(20), "it has joined", || {
        process.assert_running();
        dc.a.status("pods").code == 0
    });
    // A report is a look at everything, and a repair sees to what is found.
    let checked = dc.controller.try_ctl("check --repair");
    assert!(checked.is_ok(), "{checked:?}");
    for pod in &pods {
        lives(&dc, pod, &dc.b);
    }
    // With neither an interface nor a namespace to be seen it is gone, for all that anybody can tell.
    pods[0].container.delete();
    let _ = dc.controller.try_ctl("check --repair");
    ended(&dc, &pods[0]);
    lives(&dc, &pods[1], &dc.b);
    drop(process);
    dc.a.start();
    lives(&dc, &pods[2], &dc.b);
}

#[test]
fn a_repair_goes_past_a_host_that_does_not_answer_and_names_it() {
    let dc = Datacentre::small();
    let (web, db) = (dc.a.add("shop", "web-0"), dc.b.add("shop", "db-0"));
    dc.settle_on(&db, &dc.b);
    dc.a.freeze();
    // What is wrong on a host that answers is repaired all the same.
    dc.b.host().run(&format!("ip route del {} table 7601", db.v4()));
    let said = dc.controller.try_ctl("check --repair").expect_err("it was not all checked");
    assert!(said.contains("not checked, no answer: node-a"), "{said}");
    assert!(said.contains("exit status: 2"), "{said}");
    assert!(dc.b.host().pings(db.v4(), 5), "the other one is repaired");
    assert_eq!(attachments(&dc, &web), 1, "nothing of the silent one is judged");
    dc.a.thaw();
    wait_until(Duration::from_secs(40), "nothing is left to repair", || {
        dc.controller.try_ctl("check --repair").is_ok()
    });
    lives(&dc, &web, &dc.b);
}

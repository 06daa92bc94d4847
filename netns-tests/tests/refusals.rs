//! What cannot be: each gets its own clear error, changes nothing and loses nothing.
#![expect(clippy::unwrap_used, reason = "also what helps a test stops at the first surprise")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use netns_tests::{Agent, Call, Container, Datacentre, Host, KernelWatch, wait_until};

fn attachments(dc: &Datacentre) -> usize {
    dc.controller.rows("attachment list").len()
}

#[test]
fn a_namespace_that_is_gone_is_refused_before_an_address_is_held() {
    let dc = Datacentre::small();
    let container = Container::new("gone");
    let call =
        Call::for_pod("ADD", &container, "shop", "web-0").with("CNI_NETNS", "/run/netns/no-such");
    let answer = dc.a.call(&Call { stdin: dc.a.config().to_string(), ..call });
    assert_eq!(answer.expect_error("ADD"), 3, "{answer:?}");
    assert!(answer.stdout.to_string().contains("/run/netns/no-such"), "{answer:?}");
    assert_eq!(attachments(&dc), 0);
}

#[test]
fn an_interface_that_exists_is_refused_and_stays_as_it_is() {
    let dc = Datacentre::small();
    let container = Container::new("taken");
    let _ = container.sh("ip link add eth0 type bridge");
    let before = container.sh("ip -o link show eth0");
    let answer = dc.a.try_add(&container, "shop", "web-0");
    assert!(
        answer.code != 0 && answer.stdout["msg"].as_str().unwrap().contains("eth0"),
        "{answer:?}"
    );
    assert_eq!(container.sh("ip -o link show eth0"), before);
    assert_eq!(attachments(&dc), 0);
}

#[test]
fn standard_input_that_is_cut_short_or_no_json_is_refused() {
    let dc = Datacentre::small();
    let container = Container::new("c");
    let whole = dc.a.config().to_string();
    for stdin in ["", "{", "not json", &whole[..whole.len() / 2], "[1, 2]"] {
        let call = Call::for_pod("ADD", &container, "shop", "web-0");
        let answer = dc.a.call(&Call { stdin: stdin.to_owned(), ..call });
        assert_eq!(answer.expect_error(stdin), 6, "{answer:?}");
    }
    assert_eq!(attachments(&dc), 0);
}

#[test]
fn names_that_no_path_could_carry_are_refused_by_name() {
    let dc = Datacentre::small();
    let long = "x".repeat(300);
    for name in ["a/b", "a b", "../etc", "w\u{e9}b-0", long.as_str()] {
        let container = Container::new("c");
        let answer = dc.a.try_add(&container, "shop", name);
        assert!(answer.code != 0, "{name}");
        let _ = answer.expect_error(name);
    }
    assert_eq!(attachments(&dc), 0);
}

/// A server that speaks what `behave` makes it speak, on `host`.
fn server(host: &Host, at: &str, behave: impl Fn(TcpStream) + Send + 'static) {
    let listener = host.inside(|| TcpListener::bind(at).unwrap());
    std::thread::spawn(move || listener.incoming().flatten().for_each(behave));
}

/// A new host in the datacentre with an agent that is given another controller.
fn agent_of(dc: &Datacentre, number: u8, controller: &str) -> (Host, Agent) {
    let host = Host::new("node-x");
    let addresses = [format!("192.0.2.{number}/24"), format!("2001:db8::{number}/64")];
    dc.underlay.join(&host, "eth0", &[&addresses[0], &addresses[1]]);
    let agent = Agent::new(&host, controller, "--role node");
    (host, agent)
}

/// Starts the agent, lets it serve, and asks it for an address: a clear error within the plugin's own limit, and a
/// kernel that nobody touched.
fn refuses_and_changes_nothing(host: &Host, agent: &Agent) {
    let watch = KernelWatch::start(host);
    let _process = netns_tests::Process::start(agent.command(), &host.dir().join("agent.log"));
    wait_until(Duration::from_secs(10), "the agent listens", || agent.socket().exists());
    let began = Instant::now();
    let container = Container::new("c");
    let answer = agent.try_add(&container, "shop", "web-0");
    assert_eq!(answer.expect_error("ADD"), 11, "{answer:?}");
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    assert_eq!(watch.changes(), Vec::<String>::new());
    assert!(container.try_sh("ip link show eth0").is_err());
    let status = agent.status("pods");
    assert_eq!(status.expect_error("STATUS"), 50, "{status:?}");
}

#[test]
fn a_controller_that_is_not_there_is_an_error_to_try_again() {
    let dc = Datacentre::small();
    let (host, agent) = agent_of(&dc, 11, "http://192.0.2.99:7600");
    refuses_and_changes_nothing(&host, &agent);
}

#[test]
fn a_controller_that_answers_garbage_is_an_error_to_try_again() {
    let dc = Datacentre::small();
    let (host, agent) = agent_of(&dc, 12, "http://127.0.0.1:7600");
    server(&host, "127.0.0.1:7600", |mut stream| {
        let _ = stream.read(&mut [0; 4096]);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n<garbage>");
    });
    refuses_and_changes_nothing(&host, &agent);
}

#[test]
fn a_controller_that_never_answers_is_an_error_to_try_again() {
    let dc = Datacentre::small();
    let (host, agent) = agent_of(&dc, 13, "http://127.0.0.1:7600");
    // Connections are taken and nothing is ever said on them.
    server(&host, "127.0.0.1:7600", std::mem::forget);
    refuses_and_changes_nothing(&host, &agent);
}

#[test]
fn a_second_agent_that_claims_a_hosts_name_is_refused_and_the_first_goes_on() {
    let dc = Datacentre::small();
    let web = dc.a.add("shop", "web-0");
    // Another machine with the same name, such as a clone whose name nobody changed.
    let host = Host::new("node-a");
    dc.underlay.join(&host, "eth0", &["192.0.2.77/24", "2001:db8::77/64"]);
    let second = Agent::new(&host, &dc.controller.url(), "--role node");
    let process = netns_tests::Process::start(second.command(), &host.dir().join("agent.log"));
    wait_until(Duration::from_secs(15), "the second agent is told why it is refused", || {
        let said = process.output();
        said.contains("host-name-taken") || said.contains("node-a") && said.contains("192.0.2.1")
    });
    assert!(host.try_sh("ip link show limpet1").is_err(), "the second changes nothing");
    dc.a.host().run("sleep 1");
    assert_eq!(dc.a.status("pods").code, 0, "the first goes on");
    assert!(dc.b.host().pings(web.v4(), 3));
    assert_eq!(dc.a.add("shop", "web-1").addresses().len(), 2);
}

#[test]
fn plain_http_without_leave_is_refused_with_the_reason() {
    let dc = Datacentre::small();
    let host = dc.a.host();
    let agent = format!(
        "{} --host x --controller {} --state-dir {dir}/x --socket {dir}/x.sock",
        netns_tests::binary("limpet-agent").display(),
        dc.controller.url(),
        dir = host.dir().display()
    );
    let controller = format!(
        "{} --store {}/x.redb",
        netns_tests::binary("limpet-controller").display(),
        host.dir().display()
    );
    for command in [agent, controller] {
        let why = host.try_sh(&format!("timeout 10 {command}")).expect_err(&command);
        assert!(why.contains("--plain-http"), "{why}");
        assert!(!why.contains("124"), "it ends at once: {why}");
    }
}

#[test]
fn pools_and_networks_that_cannot_be_are_refused_one_by_one() {
    let dc = Datacentre::small();
    let before = (dc.controller.ctl("pool list"), dc.controller.ctl("network list"));
    for (words, code) in [
        ("pool create x --network pods --range 10.32.128.0/17", "pool-overlaps"),
        ("pool create x --network pods --range 192.0.2.0/24", "pool-contains-host"),
        ("pool create x --network pods --range 10.99.0.0/32 --exclude 10.99.0.0/32", "pool-empty"),
        ("pool create x --network none --range 10.99.0.0/24", "network-not-found"),
        ("network create other --vni 100", "vni-taken"),
        ("pool delete pods-v9 --yes", "pool-not-found"),
    ] {
        let why = dc.controller.try_ctl(words).expect_err(words);
        assert!(why.contains(code), "{words}: {why}");
    }
    for words in [
        "network create other --vni 16777216",
        "network create a/b --vni 7",
        "pool create p/q --network pods --range 10.99.0.0/24",
    ] {
        let _ = dc.controller.try_ctl(words).expect_err(words);
    }
    assert_eq!((dc.controller.ctl("pool list"), dc.controller.ctl("network list")), before);
}

//! Edge: the real agent on a host that reboots, or that finds strange things in its directory, while no controller answers.
#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "tests fail by panics and say why")]

mod support;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use limpet_api::ErrorCode;
use limpet_api::book::EndReason;
use limpet_api::client::{Call, ClientError, Method};
use limpet_api::host::{Changes, SharedChange, Wanted};
use limpet_api::socket::{AgentStatus, Attach, Readiness};
use limpet_net_types::Token;
use support::fake::{Fake, Instead, block, made_before, small};
use support::{Agent, Host, command, wait_until};

/// A route of the snapshot that every test starts from.
const BLOCK: &str = "10.32.0.64/26";

/// The agent, once it has laid out what it was told and has it on disk.
fn settled(on: &Host, fake: &Fake) -> Agent {
    let agent = Agent::start(on, &fake.path, "");
    wait_until("what it was told is laid out", || has_route(on));
    wait_until("and written down", || snapshot(on).exists());
    agent
}

fn snapshot(on: &Host) -> PathBuf {
    on.path("state").join("snapshot")
}

fn has_route(on: &Host) -> bool {
    on.sh("ip route show table 7601 2>/dev/null || true").contains(BLOCK)
}

/// All that limpet has in the kernel, as other programs see it.
fn kernel(on: &Host) -> String {
    let looks = [
        "ip -br link show type vxlan | sed 's/@.*//'",
        "bridge fdb show dev limpet1 | sort",
        "ip neigh show dev limpet1 nud permanent | sort",
        "ip nexthop show | sort",
        "ip route show table 7601; ip -6 route show table 7601",
        "ip route show table 7602; ip -6 route show table 7602",
        "ip rule; ip -6 rule",
        "nft list table inet limpet",
        "sysctl -n net.ipv4.conf.limpet1.forwarding net.ipv6.conf.limpet1.force_forwarding",
    ];
    // Numbers of nexthops are the agent's choice, and differ where it made other things before.
    looks
        .map(|look| on.sh(&format!("{{ {look}; }} 2>&1 | sed 's/nhid [0-9]* //; s/^id [0-9]* //'")))
        .join("\n")
}

async fn status(agent: &Agent) -> AgentStatus {
    agent.get("/v1/status").await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_reboots_while_no_controller_answers_has_the_network_that_it_had() {
    let on = Host::new();
    fs::write(on.path("boot-id"), format!("{}\n", Token::from_bits(77))).unwrap();
    let mut cluster = small();
    cluster.attachments.push(made_before(1, 41, Token::from_bits(77), "/proc/self/ns/net"));
    let mut fake = Fake::start(&on.dir, cluster);
    let agent = settled(&on, &fake);
    let before = kernel(&on);
    agent.kill();
    fake.leave().await;
    on.reboot();

    let agent = Agent::start(&on, &fake.path, "");
    wait_until("the kernel is as it was", || kernel(&on) == before);
    wait_until("the unit counts as started", || agent.log().contains(": ready"));
    let stand = status(&agent).await;
    assert!(!stand.joined && stand.snapshot.unwrap().followed);
    let ask = format!("curl -s --unix-socket {} http://limpet/metrics", agent.socket.display());
    assert!(on.sh(&ask).contains("limpet_recalled 1"));
    assert_eq!(stand.attachments, 0, "containers of an earlier boot are gone");
    let says = |words: &str| stand.problems.iter().any(|problem| problem.contains(words));
    let revision = stand.revision.unwrap();
    assert!(
        says(&format!("goes by the snapshot of revision {revision} of")),
        "{:?}",
        stand.problems
    );
    let printed = command(&on, &fake.path).arg("status").output().unwrap();
    let printed = String::from_utf8(printed.stdout).unwrap();
    assert!(printed.contains(", by its snapshot from "), "{printed}");

    // Nothing is given, said or ended by it.
    let put = Call::with_body(Method::PUT, "/v1/attachments/pods/c2/eth0", &Wanted::default());
    let Err(ClientError::Refused(error)) = agent.call::<Attach>(&put.unwrap()).await else {
        panic!("ADD is refused")
    };
    assert_eq!(error.code, ErrorCode::ControllerUnreachable);
    let Err(ClientError::Refused(_)) = agent.get::<Attach>("/v1/attachments/pods/c1/eth0").await
    else {
        panic!("CHECK is not answered by it")
    };
    let readiness: Readiness = agent.get("/v1/readiness/pods").await.unwrap();
    assert!(readiness.problems[0].error.message.contains("goes by the snapshot"), "{readiness:?}");

    // Somebody deletes what it laid out.
    on.sh(&format!("ip route del {BLOCK} table 7601; nft delete table inet limpet"));
    wait_until("the kernel is as it was", || kernel(&on) == before);

    fake.come_back();
    wait_until("what an earlier boot made is ended", || {
        fake.book().ended == [Token::from_bits(41)]
    });
    assert_eq!(fake.book().reasons, [EndReason::Superseded]);
    let stand = status(&agent).await;
    assert!(stand.joined && stand.snapshot.is_none() && stand.problems.is_empty(), "{stand:?}");
    assert_eq!(kernel(&on), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_agent_had_laid_out_and_not_written_is_not_taken_back() {
    let on = Host::new();
    let mut fake = Fake::start(&on.dir, small());
    let agent = settled(&on, &fake);
    // The block changes its owner a moment after the snapshot was written.
    let moved = SharedChange::BlockSet(block("pods", "p4", BLOCK, "gw"));
    let before = on.sh(&format!("ip route show {BLOCK} table 7601"));
    fake.tell(Changes { shared: vec![moved], own: vec![] });
    let now = || on.sh(&format!("ip route show {BLOCK} table 7601"));
    wait_until("it leads to the gateway", || now() != before);
    let after = now();
    agent.kill();
    fake.leave().await;

    let agent = Agent::start(&on, &fake.path, "");
    wait_until("it has tried to join", || agent.log().contains("cannot join"));
    // A pass that looks at all of the kernel.
    let plan = command(&on, &fake.path).arg("plan").output().unwrap();
    assert!(!plan.status.success(), "nothing is planned: {plan:?}");
    let stand = status(&agent).await;
    assert!(!stand.snapshot.unwrap().followed, "{:?}", stand.problems);
    let why = "the kernel has what an agent was told after that";
    assert!(stand.problems.iter().any(|problem| problem.contains(why)), "{:?}", stand.problems);
    assert_eq!(now(), after);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_stopped_leaves_all_that_it_was_told() {
    let on = Host::new();
    let mut fake = Fake::start(&on.dir, small());
    let agent = settled(&on, &fake);
    let gone = SharedChange::BlockSet(block("pods", "p4", "10.32.5.0/26", "gw"));
    fake.tell(Changes { shared: vec![gone], own: vec![] });
    let has = || on.sh("ip route show table 7601").contains("10.32.5.0/26");
    wait_until("it is laid out", has);
    agent.stop();
    fake.leave().await;
    on.reboot();
    let _agent = Agent::start(&on, &fake.path, "");
    wait_until("it is laid out again", || {
        on.sh("ip route show table 7601 2>/dev/null || true").contains("10.32.5.0/26")
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_no_snapshot_is_said_to_be_so_and_is_not_lost() {
    let on = Host::new();
    let mut fake = Fake::start(&on.dir, small());
    settled(&on, &fake).kill();
    fake.leave().await;
    let whole = fs::read(snapshot(&on)).unwrap();
    let mut altered = whole.clone();
    let last = altered.len() - 20;
    altered[last] ^= 1;
    let files: [(&[u8], &str); 4] = [
        (&whole[..whole.len() / 2], "it is cut off"),
        (&altered, "it was altered"),
        (b"# notes of mine\n", "it is no snapshot of limpet's"),
        (b"{\"limpet_snapshot\":7,\"x\":1}\nwhatever\n", "it is of version 7"),
    ];
    let mut started = 0;
    for (file, complaint) in files {
        on.reboot();
        fs::write(snapshot(&on), file).unwrap();
        let agent = Agent::start(&on, &fake.path, "");
        wait_until("it says so", || agent.log().contains(complaint));
        let tried = agent.log().matches("cannot join").count();
        wait_until("it has tried to join", || agent.log().matches("cannot join").count() > started);
        started = tried.max(started + 1);
        assert!(!has_route(&on), "{complaint}");
        let stand = status(&agent).await;
        assert_eq!((stand.snapshot, stand.revision), (None, None));
        assert_eq!(fs::read(snapshot(&on)).unwrap(), file, "{complaint}: it is left alone");
        agent.stop();
        assert_eq!(fs::read(snapshot(&on)).unwrap(), file, "{complaint}: by one that stops, too");
    }

    // The newer version's, once a controller has answered.
    fake.come_back();
    on.reboot();
    let agent = Agent::start(&on, &fake.path, "");
    wait_until("it has one of its own", || {
        fs::read(snapshot(&on)).unwrap().starts_with(b"{\"limpet_snapshot\":1,")
    });
    let aside = on.path("state").join("snapshot.set-aside");
    assert_eq!(fs::read(aside).unwrap(), files[3].0);
    assert!(agent.log().contains("is set aside"));
    let mode = on.sh(&format!("stat -c %a {}", snapshot(&on).display()));
    assert_eq!(mode.trim(), "600");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_costs_the_snapshot_and_nothing_else() {
    let on = Host::new();
    let mut fake = Fake::start(&on.dir, small());
    let state = on.path("state");
    fs::create_dir(&state).unwrap();
    support::sh(&format!("mount -t tmpfs -o size=32k tmpfs {}", state.display()));
    let agent = settled(&on, &fake);
    let before = fs::read(snapshot(&on)).unwrap();
    let full = state.join("full");
    support::sh(&format!("cat /dev/zero > {} 2>/dev/null || true", full.display()));
    let set = |prefix| SharedChange::BlockSet(block("pods", "p4", prefix, "gw"));
    fake.tell(Changes { shared: vec![set("10.32.5.0/26")], own: vec![] });
    wait_until("it is laid out all the same", || {
        on.sh("ip route show table 7601").contains("10.32.5.0/26")
    });
    wait_until("it says so", || agent.log().contains("cannot write the snapshot"));
    let stand = status(&agent).await;
    assert!(stand.problems[0].contains("No space left on device"), "{:?}", stand.problems);
    assert_eq!(fs::read(snapshot(&on)).unwrap(), before, "what was there is whole");
    assert_eq!(agent.log().matches("cannot write the snapshot").count(), 1, "once");
    let ask = format!("curl -s --unix-socket {} http://limpet/metrics", agent.socket.display());
    assert!(on.sh(&ask).contains("limpet_not_saved 1"), "and counted");

    fs::remove_file(full).unwrap();
    wait_until("it is written again", || fs::read(snapshot(&on)).unwrap() != before);
    wait_until("and said", || agent.log().contains("the snapshot is written again"));
    fake.leave().await;
    drop(agent);
    support::sh(&format!("umount {}", state.display()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_a_host_that_is_not_let_in_lays_nothing_out() {
    let on = Host::new();
    let fake = Fake::start(&on.dir, small());
    settled(&on, &fake).kill();
    fake.book().instead.insert("session", Instead::Refuse(ErrorCode::HostSuperseded));
    on.reboot();
    let agent = Agent::start(&on, &fake.path, "");
    let tried = fake.book().sessions.len();
    wait_until("it has tried again", || fake.book().sessions.len() > tried + 2);
    assert!(!has_route(&on) && !on.sh("ip link").contains("limpet1"));
    let stand = status(&agent).await;
    assert!(!stand.snapshot.unwrap().followed, "{:?}", stand.problems);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_came_up_elsewhere_in_the_underlay_does_not_go_by_its_snapshot() {
    let on = Host::new();
    let mut fake = Fake::start(&on.dir, small());
    settled(&on, &fake).kill();
    fake.leave().await;
    on.reboot();
    on.sh("ip addr flush dev eth0 && ip addr add 192.0.2.66/24 dev eth0");
    let agent = Agent::start(&on, &fake.path, "");
    let mut problems = Vec::new();
    for _ in 0..100 {
        problems = status(&agent).await.problems;
        if problems.iter().any(|problem| problem.contains("192.0.2.66")) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let why = "this host had its underlay at 192.0.2.1 and has it at 192.0.2.66";
    assert!(problems.iter().any(|problem| problem.contains(why)), "{problems:?}");
    assert!(!on.sh("ip link").contains("limpet1"));
}

#[test]
fn a_place_that_is_taken_is_left_alone() {
    let on = Host::new();
    let (path, nobody) = (on.path("agent.sock"), on.path("controller.sock"));
    let said = |what: &str| {
        let said = Agent::fails(&on, &nobody);
        assert!(said.contains(what) && said.contains("agent.sock"), "{said}");
    };
    fs::create_dir(&path).unwrap();
    said("is a directory, and is left alone");
    fs::remove_dir(&path).unwrap();
    fs::write(&path, "notes").unwrap();
    said("is no socket, and is left alone");
    assert_eq!(fs::read_to_string(&path).unwrap(), "notes");
    fs::remove_file(&path).unwrap();
    let other = std::os::unix::net::UnixListener::bind(&path).unwrap();
    said("somebody listens at");
    std::os::unix::net::UnixStream::connect(&path).expect("it still listens");
    drop(other);
    // Where it prepares its socket, too.
    let draft = on.path("agent.new");
    fs::write(&draft, "notes").unwrap();
    let said = Agent::fails(&on, &nobody);
    assert!(said.contains("agent.new is no socket"), "{said}");
    fs::remove_file(draft).unwrap();

    // What a dead program left is replaced.
    let agent = Agent::start(&on, &nobody, "");
    agent.kill();
    let agent = Agent::start(&on, &nobody, "");
    agent.stop();
}

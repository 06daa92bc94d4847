//! Edge: the real agent between a plugin and a controller: what it passes on, and what it judges by itself.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "tests fail by panics and say why")]

mod support;

use std::time::{Duration, Instant};

use limpet_api::ErrorCode;
use limpet_api::book::{AttachmentRef, EndReason};
use limpet_api::client::{Call, ClientError, Method};
use limpet_api::host::{Ask, Changes, OwnChange, Wanted};
use limpet_api::socket::{
    Attach, ConfirmRequest, Detached, GcAnswer, GcRequest, Readiness, ValidAttachment,
};
use limpet_net_types::{RuntimeName, Token, host_ifname};
use support::fake::{Fake, Instead, made_before, small};
use support::{Agent, Host, LIMIT, wait_until};

const ETH0: &str = "/v1/attachments/pods/c1/eth0";

fn joined(host: &Host, fake: &Fake) -> Agent {
    let agent = Agent::start(host, &fake.path, "");
    wait_until("the agent is ready", || agent.log().contains("limpet_agent::service: ready"));
    agent
}

fn put(path: &str) -> Call {
    let wanted = Wanted { netns: "/run/netns/c1".to_owned(), ..Wanted::default() };
    Call::with_body(Method::PUT, path, &wanted).unwrap()
}

fn delete(path: &str) -> Call {
    Call::new(Method::DELETE, path)
}

fn code(error: &ClientError) -> ErrorCode {
    match error {
        ClientError::Refused(error) => error.code,
        other => panic!("{other:?}"),
    }
}

fn ifname(n: u8) -> String {
    let key = made_before(n, 0, Token::from_bits(0), "").key;
    host_ifname(&key.network, &key.container, &key.ifname)
}

fn boot(host: &Host) -> Token {
    std::fs::read_to_string(host.path("boot-id")).unwrap().trim().parse().unwrap()
}

/// The boot that the agent will find.
fn set_boot(host: &Host) -> Token {
    std::fs::write(host.path("boot-id"), format!("{}\n", Token::from_bits(77))).unwrap();
    boot(host)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_add_is_passed_on_with_session_and_uid_and_answered_with_all_that_is_needed() {
    let on = Host::new();
    let fake = Fake::start(&on.dir, small());
    let agent = joined(&on, &fake);
    let mut plugin = agent.connect().await;
    let attach: Attach = plugin.call(&put(ETH0), LIMIT).await.unwrap();
    let (key, claim) = fake.book().claims[0].clone();
    assert_eq!((key.host.as_str(), key.container.as_str()), ("node-a", "c1"));
    assert_eq!(claim.session.bits(), 1);
    assert_eq!(attach.attachment.uid, claim.uid);
    assert_eq!(attach.host_ifname, ifname(1));
    assert_eq!((attach.group, attach.table, u32::from(attach.mtu)), (4097, 7601, 1450));
    let words = |addresses: Vec<String>| addresses.join(" ");
    assert_eq!(
        words(attach.gateways.iter().map(ToString::to_string).collect()),
        "169.254.1.1 fe80::1"
    );
    let sources = attach.sources.iter().map(|source| source.unwrap().to_string()).collect();
    assert_eq!(words(sources), "192.0.2.1 2001:db8::1");

    on.veth(&ifname(1), &claim.uid.to_string(), 4097);
    let confirm = Call::with_body(
        Method::POST,
        format!("{ETH0}/confirm"),
        &ConfirmRequest { uid: claim.uid },
    );
    plugin.call::<()>(&confirm.unwrap(), LIMIT).await.unwrap();
    wait_until("the container has its route", || {
        on.sh("ip route show table 7601").contains(&format!("10.32.0.1 dev {}", ifname(1)))
    });
    assert_eq!(agent.get::<Attach>(ETH0).await.unwrap(), attach);

    on.sh(&format!("ip link set {} down group 4096", ifname(1)));
    let detached: Detached =
        agent.call(&delete(&format!("{ETH0}?uid={}", claim.uid))).await.unwrap();
    assert_eq!(detached, Detached::Ended);
    assert_eq!(fake.book().ended, [claim.uid]);
    assert_eq!(fake.book().reasons, [EndReason::Detached]);
    assert_eq!(code(&agent.get::<Attach>(ETH0).await.unwrap_err()), ErrorCode::AttachmentNotFound);
    wait_until("the dead are buried", || !on.sh("ip link").contains(&ifname(1)));
    assert_eq!(agent.call::<Detached>(&delete(ETH0)).await.unwrap(), Detached::Ended);
    assert_eq!(fake.book().ended.len(), 1, "what is unknown is not asked for");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_being_made_is_there_while_its_connection_is_open_and_no_longer() {
    let on = Host::new();
    let fake = Fake::start(&on.dir, small());
    let agent = joined(&on, &fake);
    let mut plugin = agent.connect().await;
    let attach: Attach = plugin.call(&put(ETH0), LIMIT).await.unwrap();
    let attachment =
        AttachmentRef { key: attach.attachment.key.clone(), uid: attach.attachment.uid };
    let ask = || {
        let ask = Ask {
            attachment: attachment.clone(),
            present: false,
            force: false,
            asked: limpet_api::FleetTime(0),
        };
        fake.tell(Changes { shared: vec![], own: vec![OwnChange::AskSet(ask)] });
    };
    ask();
    wait_until("the agent says that it is there", || fake.book().present.len() == 1);
    drop(plugin);
    wait_until("the agent ends it when asked again", || {
        ask();
        fake.book().ended.contains(&attachment.uid)
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_whose_plugin_has_gone_is_ended_when_it_is_granted() {
    let on = Host::new();
    let fake = Fake::start(&on.dir, small());
    let agent = joined(&on, &fake);
    // One attempt is not answered; the next one is, and by then nobody listens.
    fake.book().instead.insert("claim", Instead::Refuse(ErrorCode::Unavailable));
    let mut plugin = agent.connect().await;
    let adding = tokio::spawn(async move { plugin.call::<Attach>(&put(ETH0), LIMIT).await });
    wait_until("the claim is under way", || fake.book().claims.len() > 1);
    adding.abort();
    // The agent tries on for a while before it is let have it.
    let tried = fake.book().claims.len();
    wait_until("it has tried twice more", || fake.book().claims.len() > tried + 1);
    fake.book().instead.clear();
    wait_until("it is ended", || fake.book().ended.len() == 1);
    let uids: std::collections::BTreeSet<_> =
        fake.book().claims.iter().map(|(_, claim)| claim.uid).collect();
    assert_eq!(uids.len(), 1, "every attempt is of one incarnation");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_claim_of_unknown_outcome_comes_a_new_session_and_its_end() {
    let on = Host::new();
    let fake = Fake::start(&on.dir, small());
    let agent = joined(&on, &fake);
    fake.book().instead.insert("claim", Instead::Hang);
    let begun = Instant::now();
    let error = agent.call::<Attach>(&put(ETH0)).await.unwrap_err();
    assert_eq!(code(&error), ErrorCode::ControllerUnreachable);
    assert!(begun.elapsed() < Duration::from_secs(12), "{:?}", begun.elapsed());
    let uid = fake.book().claims[0].1.uid;
    wait_until("another session", || fake.book().sessions.len() == 2);
    wait_until("the end of what may have been made", || fake.book().ended.contains(&uid));
    fake.book().instead.clear();
    agent.call::<Attach>(&put(ETH0)).await.unwrap();
    let last = fake.book().claims.last().unwrap().1.clone();
    assert_eq!(last.session.bits(), 2);
    assert_ne!(last.uid, uid);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_controller_del_is_for_later_and_add_is_refused() {
    let on = Host::new();
    let mut fake = Fake::start(&on.dir, small());
    let agent = joined(&on, &fake);
    let attach: Attach = agent.call(&put(ETH0)).await.unwrap();
    let kernel = || {
        on.sh("for t in 7601 7602; do ip route show table $t; ip -6 route show table $t; done; \
            ip rule; ip nexthop; ip -d link show limpet1")
    };
    let before = kernel();
    fake.leave().await;
    let detached: Detached = agent.call(&delete(ETH0)).await.unwrap();
    assert_eq!(detached, Detached::Later);
    let error = agent.call::<Attach>(&put("/v1/attachments/pods/c2/eth0")).await.unwrap_err();
    assert_eq!(code(&error), ErrorCode::ControllerUnreachable);
    let readiness: Readiness = agent.get("/v1/readiness/pods").await.unwrap();
    assert_eq!(readiness.problems.len(), 1);
    assert!(!readiness.problems[0].connectivity, "{readiness:?}");
    assert_eq!(kernel(), before, "the kernel stays");
    fake.come_back();
    wait_until("it is ended", || fake.book().ended.contains(&attach.attachment.uid));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_boot_made_is_ended_when_the_host_joins() {
    let on = Host::new();
    let mut cluster = small();
    let before = |n, uid| made_before(n, uid, Token::from_bits(5), "/run/netns/c");
    cluster.attachments = vec![before(1, 41), before(2, 42), before(3, 43)];
    on.veth(&ifname(3), &Token::from_bits(43).to_string(), 4097);
    let fake = Fake::start(&on.dir, cluster);
    let _agent = joined(&on, &fake);
    wait_until("both are ended", || fake.book().ended.len() == 2);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(fake.book().ended, [Token::from_bits(41), Token::from_bits(42)]);
    assert_eq!(fake.book().reasons, [EndReason::Superseded; 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_is_refused_keeps_none_of_the_others_from_theirs() {
    let on = Host::new();
    let mut cluster = small();
    let before = |n, uid| made_before(n, uid, Token::from_bits(5), "/run/netns/c");
    cluster.attachments = vec![before(1, 41), before(2, 42), before(3, 43)];
    let fake = Fake::start(&on.dir, cluster);
    fake.book().endless = vec![Token::from_bits(41)];
    let agent = joined(&on, &fake);
    wait_until("the others are ended", || fake.book().ended.len() == 2);
    assert!(agent.log().contains("cannot end an attachment uid=00000000000000000000000000000029"));
}

#[tokio::test(flavor = "multi_thread")]
async fn collection_spares_what_is_there_what_is_others_and_what_is_being_made() {
    let on = Host::new();
    let this = set_boot(&on);
    let mut cluster = small();
    let live = "/proc/self/ns/net";
    cluster.attachments = vec![
        made_before(1, 41, this, "/run/netns/gone"),
        made_before(2, 42, this, live),
        made_before(3, 43, this, "/run/netns/gone"),
        made_before(4, 44, this, live),
        made_before(5, 45, this, "/run/netns/gone"),
        made_before(6, 46, this, live),
    ];
    cluster.attachments[4].runtime = "other".parse().unwrap();
    on.veth(&ifname(3), &Token::from_bits(43).to_string(), 4097);
    // Of itself the agent ends what is gone; here only the collection may.
    let fake = Fake::start(&on.dir, small());
    let agent = joined(&on, &fake);
    let own = cluster.attachments.into_iter().map(OwnChange::AttachmentSet).collect();
    fake.tell(Changes { shared: vec![], own });
    // They came in one line, so one that is known stands for all.
    let known = async {
        while agent.get::<Attach>("/v1/attachments/pods/c1/eth0").await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, known).await.expect("the agent hears of its attachments");
    let of = |n: u8| ValidAttachment {
        container: format!("c{n}").parse().unwrap(),
        ifname: "eth0".parse().unwrap(),
    };
    let request = GcRequest {
        network: "pods".parse().unwrap(),
        runtime: RuntimeName::default(),
        valid: vec![of(6)],
    };
    let call = Call::with_body(Method::POST, "/v1/gc", &request).unwrap();
    let answer: GcAnswer = agent.call(&call).await.unwrap();
    assert_eq!(answer, GcAnswer { ended: vec![of(1)], present: vec![of(2), of(3), of(4)] });
    assert_eq!(fake.book().ended, [Token::from_bits(41)]);
    assert_eq!(fake.book().reasons, [EndReason::Gone]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_refused_says_why_and_tries_on() {
    let on = Host::new();
    let fake = Fake::start(&on.dir, small());
    fake.book().instead.insert("session", Instead::Refuse(ErrorCode::HostNameTaken));
    let agent = Agent::start(&on, &fake.path, "");
    wait_until("it has tried again", || fake.book().sessions.len() > 2);
    let error = agent.call::<Attach>(&put(ETH0)).await.unwrap_err();
    assert_eq!(code(&error), ErrorCode::NotJoined);
    assert!(error.to_string().contains("the fake says host-name-taken"), "{error}");
    let readiness: Readiness = agent.get("/v1/readiness/pods").await.unwrap();
    assert_eq!(readiness.problems[0].error.code, ErrorCode::NotJoined);
    assert_eq!(agent.log().matches("cannot join").count(), 1, "once per reason");
    assert!(!agent.log().contains("limpet_agent::service: ready"));
    fake.book().instead.clear();
    wait_until("it joins at last", || agent.log().contains("limpet_agent::service: ready"));
    agent.call::<Attach>(&put(ETH0)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_lost_is_opened_anew_and_the_claim_succeeds() {
    let on = Host::new();
    let fake = Fake::start(&on.dir, small());
    let agent = joined(&on, &fake);
    fake.book().instead.insert("claim", Instead::Refuse(ErrorCode::SessionLost));
    let socket = agent.connect().await;
    let adding = tokio::spawn(async move {
        let mut socket = socket;
        socket.call::<Attach>(&put(ETH0), LIMIT).await
    });
    wait_until("another session", || fake.book().sessions.len() >= 2);
    fake.book().instead.clear();
    adding.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_requests_have_one_shape_of_answer() {
    let on = Host::new();
    let fake = Fake::start(&on.dir, small());
    let agent = joined(&on, &fake);
    let with = |method, path: &str, body: &str| {
        Call::with_body(method, path, &serde_json::from_str::<serde_json::Value>(body).unwrap())
            .unwrap()
    };
    for (call, expected) in [
        (Call::new(Method::GET, "/nothing"), ErrorCode::NotFound),
        (with(Method::POST, ETH0, "{}"), ErrorCode::MethodNotAllowed),
        (Call::new(Method::PUT, ETH0), ErrorCode::BadRequest),
        (with(Method::PUT, ETH0, r#"{"netns": 7}"#), ErrorCode::BadRequest),
        (with(Method::PUT, ETH0, r#"{"netns": "/x", "colour": 1}"#), ErrorCode::BadRequest),
        (put("/v1/attachments/a%20b/c1/eth0"), ErrorCode::BadRequest),
        (put("/v1/attachments/pods/c1/a%2Fb"), ErrorCode::BadRequest),
        (put(&format!("/v1/attachments/pods/{}/eth0", "x".repeat(300))), ErrorCode::BadRequest),
        (delete(&format!("{ETH0}?uid=short")), ErrorCode::BadRequest),
        (put("/v1/attachments/no-such/c1/eth0"), ErrorCode::NetworkNotFound),
    ] {
        let error = agent.call::<serde_json::Value>(&call).await.unwrap_err();
        assert_eq!(code(&error), expected, "{call:?}: {error}");
    }
    assert!(fake.book().claims.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_agent_on_the_socket_is_refused_and_a_stale_socket_is_replaced() {
    let on = Host::new();
    let fake = Fake::start(&on.dir, small());
    let agent = joined(&on, &fake);
    let second = support::command(&on, &fake.path).output().unwrap();
    assert!(!second.status.success());
    let complaint = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(complaint.contains("somebody listens at"), "{complaint}");
    agent.kill();
    assert!(on.path("agent.sock").exists());
    std::fs::write(on.path("agent.log"), "").unwrap();
    let agent = joined(&on, &fake);
    let mode = on.sh(&format!("stat -c %a {}", agent.socket.display()));
    assert_eq!(mode.trim(), "600");
}

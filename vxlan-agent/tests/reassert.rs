//! Edge: the real agent whose store forgets attachments, or has given their addresses to others.
#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "tests fail by panics and say why")]

mod support;

use std::time::Duration;

use limpet_api::book::{Attachment, AttachmentRef, EndReason};
use limpet_api::client::{Call, Method};
use limpet_api::host::{Ask, Changes, OwnChange, ReassertOutcome, SharedChange, Wanted};
use limpet_api::socket::{AgentStatus, Attach, ConfirmRequest, Detached};
use limpet_api::{ErrorCode, FleetTime, client::ClientError};
use limpet_net_types::{Token, Uid};
use support::fake::{Fake, Instead, block, made_before, small};
use support::{Agent, Host, LIMIT, command, wait_until};

const LIVE: &str = "/proc/self/ns/net";

fn joined(host: &Host, fake: &Fake) -> Agent {
    let agent = Agent::start(host, &fake.path, "");
    ready(&agent, 1);
    agent
}

/// Waits until the agent, started so often, is ready.
fn ready(agent: &Agent, times: usize) {
    wait_until("the agent is ready", || {
        agent.log().matches("limpet_agent::service: ready").count() == times
    });
}

fn path(n: u8) -> String {
    format!("/v1/attachments/pods/c{n}/eth0")
}

/// What the plugin does: container `c<n>` is attached, and its namespace stays.
async fn add(on: &Host, agent: &Agent, n: u8) -> Attach {
    let wanted = Wanted { netns: LIVE.to_owned(), ..Wanted::default() };
    let mut plugin = agent.connect().await;
    let put = Call::with_body(Method::PUT, path(n), &wanted).unwrap();
    let attach: Attach = plugin.call(&put, LIMIT).await.unwrap();
    let uid = attach.attachment.uid;
    on.veth(&attach.host_ifname, &uid.to_string(), attach.group);
    let confirm = format!("{}/confirm", path(n));
    let confirm = Call::with_body(Method::POST, confirm, &ConfirmRequest { uid }).unwrap();
    plugin.call::<()>(&confirm, LIMIT).await.unwrap();
    wait_until("the container has its route", || has_route(on, &attach));
    attach
}

fn has_route(on: &Host, attach: &Attach) -> bool {
    on.sh("ip route show table 7601").contains(&format!("dev {}", attach.host_ifname))
}

fn link(on: &Host, attach: &Attach) -> String {
    on.sh(&format!("ip -d link show {}", attach.host_ifname))
}

fn uids(attachments: &[limpet_api::book::Attachment]) -> Vec<Uid> {
    let mut uids: Vec<Uid> = attachments.iter().map(|attachment| attachment.uid).collect();
    uids.sort();
    uids
}

fn severed(fake: &Fake, attach: &Attach) {
    let holder = AttachmentRef {
        key: made_before(9, 0, Token::from_bits(0), "").key,
        uid: Token::from_bits(9),
    };
    let why = "10.32.0.1 is another\'s".to_owned();
    let outcome = ReassertOutcome::Severed { holder: Some(holder), why };
    fake.book().outcomes.insert(attach.attachment.uid, outcome);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_lost_a_claim_is_told_of_the_container_and_nothing_else_changes() {
    let on = Host::new();
    let fake = Fake::start(&on.dir, small());
    let agent = joined(&on, &fake);
    let (one, _other) = (add(&on, &agent, 1).await, add(&on, &agent, 2).await);
    fake.lose(one.attachment.uid);
    wait_until("it is re-asserted", || fake.book().reasserted.len() == 1);
    let request = fake.book().reasserted[0].clone();
    assert_eq!(request.attachments.len(), 1);
    assert_eq!(request.attachments[0], one.attachment, "as it was answered");
    assert!(!request.complete);
    wait_until("it has its route", || has_route(&on, &one));
    assert_eq!(agent.get::<Attach>(&path(1)).await.unwrap(), one);
    assert!(link(&on, &one).contains("group 4097"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_whose_address_was_taken_over_is_severed_and_its_del_succeeds() {
    let on = Host::new();
    let fake = Fake::start(&on.dir, small());
    let agent = joined(&on, &fake);
    let (one, other) = (add(&on, &agent, 1).await, add(&on, &agent, 2).await);
    severed(&fake, &one);
    fake.lose(one.attachment.uid);
    wait_until("it is down and out of its group", || {
        let link = link(&on, &one);
        link.contains("state DOWN") && link.contains("group 8192")
    });
    assert!(!has_route(&on, &one) && has_route(&on, &other));
    wait_until("it is said", || agent.log().contains("severed: a container is without network"));
    let status: AgentStatus = agent.get("/v1/status").await.unwrap();
    assert_eq!((status.severed.len(), status.severed_ever, status.attachments), (1, 1, 1));
    let told = &status.severed[0];
    assert_eq!(told.why, "10.32.0.1 is another\'s: c9 on host node-a");
    assert_eq!(told.attachment, Some(one.attachment.key.clone()));
    let printed = command(&on, &fake.path).arg("status").output().unwrap();
    let printed = String::from_utf8(printed.stdout).unwrap();
    assert!(printed.contains("severed      1 now, 1 since the agent started"), "{printed}");
    let Err(ClientError::Refused(error)) = agent.get::<Attach>(&path(1)).await else {
        panic!("CHECK fails")
    };
    assert_eq!(error.code, ErrorCode::AttachmentNotFound);

    // The next agent knows it, and asks nobody again.
    agent.kill();
    let asked = fake.book().reasserted.len();
    let agent = Agent::start(&on, &fake.path, "");
    ready(&agent, 2);
    let status: AgentStatus = agent.get("/v1/status").await.unwrap();
    assert_eq!(status.severed[0].why, "10.32.0.1 is another\'s: c9 on host node-a");
    let detached: Detached = agent.call(&Call::new(Method::DELETE, path(1))).await.unwrap();
    assert_eq!(detached, Detached::Ended);
    assert_eq!(fake.book().reasserted.len(), asked);
    on.sh(&format!("ip link set {} down group 4096", one.host_ifname));
    wait_until("nothing of it is left", || {
        !on.path("attachments").join(format!("{}.json", one.attachment.uid)).exists()
    });
    let status: AgentStatus = agent.get("/v1/status").await.unwrap();
    assert_eq!(status.severed, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restore_all_that_lives_is_re_asserted_by_whichever_agent_runs() {
    let on = Host::new();
    let mut fake = Fake::start(&on.dir, small());
    let agent = joined(&on, &fake);
    let (one, two) = (add(&on, &agent, 1).await, add(&on, &agent, 2).await);
    // One whose container is gone, and whose DEL never came, does not live.
    let three = add(&on, &agent, 3).await;
    on.sh(&format!("ip link del {}", three.host_ifname));
    fake.restore().await;
    wait_until("all are re-asserted", || {
        fake.book().reasserted.last().is_some_and(|request| request.complete)
    });
    let mut living = [one.attachment.uid, two.attachment.uid];
    living.sort();
    assert_eq!(uids(&fake.book().reasserted.last().unwrap().attachments), living);
    assert_eq!(uids(&fake.book().snapshot.attachments), living);
    let four = add(&on, &agent, 4).await;

    // An agent that was started in between knows it all from its records.
    agent.kill();
    let told = fake.book().reasserted.len();
    fake.restore().await;
    fake.book().snapshot.reassert = true;
    let agent = Agent::start(&on, &fake.path, "");
    ready(&agent, 2);
    wait_until("all are re-asserted again", || fake.book().reasserted.len() > told);
    let mut living = vec![one.attachment.uid, two.attachment.uid, four.attachment.uid];
    living.sort();
    let last = fake.book().reasserted.last().unwrap().clone();
    assert_eq!((uids(&last.attachments), last.complete), (living, true));
    assert!([&one, &two, &four].iter().all(|attach| has_route(&on, attach)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_on_which_nothing_lives_says_so_when_it_is_asked() {
    let on = Host::new();
    let mut cluster = small();
    cluster.reassert = true;
    let fake = Fake::start(&on.dir, cluster);
    let _agent = joined(&on, &fake);
    wait_until("it says so", || fake.book().reasserted.len() == 1);
    let request = fake.book().reasserted[0].clone();
    assert_eq!((request.attachments, request.complete), (vec![], true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_not_let_in_asserts_and_severs_nothing() {
    let on = Host::new();
    let mut cluster = small();
    cluster.reassert = true;
    let fake = Fake::start(&on.dir, cluster);
    fake.book()
        .instead
        .insert("session", support::fake::Instead::Refuse(ErrorCode::HostSuperseded));
    on.veth("lc0123456789a", &Token::from_bits(7).to_string(), 4097);
    let _agent = Agent::start(&on, &fake.path, "");
    wait_until("it has tried again", || fake.book().sessions.len() > 2);
    assert!(fake.book().reasserted.is_empty());
    assert!(on.sh("ip link show lc0123456789a").contains("group 4097"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interface_that_nobody_knows_is_severed_and_an_end_of_the_hosts_own_is_not_asked_about()
{
    let on = Host::new();
    let fake = Fake::start(&on.dir, small());
    on.veth("lc0123456789a", &Token::from_bits(7).to_string(), 4097);
    on.sh("ip link add lcabcdefabcde type veth peer name other && ip link set lcabcdefabcde up");
    let agent = joined(&on, &fake);
    wait_until("it is severed", || on.sh("ip link show lc0123456789a").contains("group 8192"));
    assert!(on.sh("ip link show lcabcdefabcde").contains("UP"), "it says of no incarnation");
    let status: AgentStatus = agent.get("/v1/status").await.unwrap();
    assert_eq!(status.severed[0].attachment, None);

    let one = add(&on, &agent, 1).await;
    on.sh(&format!("ip link set {} down group 4096", one.host_ifname));
    let path = format!("{}?uid={}", path(1), one.attachment.uid);
    let detached: Detached = agent.call(&Call::new(Method::DELETE, path)).await.unwrap();
    assert_eq!(detached, Detached::Ended);
    // Longer than the watch's word is given to settle.
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(fake.book().reasserted.is_empty());
    let records = std::fs::read_dir(on.path("attachments")).unwrap().count();
    assert_eq!(records, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_operator_ends_by_force_is_severed_first_although_its_container_is_there() {
    let on = Host::new();
    let fake = Fake::start(&on.dir, small());
    let agent = joined(&on, &fake);
    let (one, other) = (add(&on, &agent, 1).await, add(&on, &agent, 2).await);
    let Attachment { key, uid, .. } = one.attachment.clone();
    let attachment = AttachmentRef { key, uid };
    let ask = Ask { attachment, present: true, force: true, asked: FleetTime(7) };
    fake.tell(Changes { shared: vec![], own: vec![OwnChange::AskSet(ask)] });
    wait_until("it is ended", || fake.book().ended == [uid]);
    assert_eq!(fake.book().reasons, [EndReason::Forced]);
    let severed = link(&on, &one);
    assert!(severed.contains("state DOWN") && severed.contains("group 8192"), "{severed}");
    assert!(!has_route(&on, &one) && has_route(&on, &other));
    let delete = Call::new(Method::DELETE, path(1));
    assert_eq!(agent.call::<Detached>(&delete).await.unwrap(), Detached::Ended);
    assert_eq!(fake.book().ended, [uid], "once");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_ended_by_force_stays_severed_while_the_store_cannot_be_told() {
    let on = Host::new();
    let fake = Fake::start(&on.dir, small());
    let agent = joined(&on, &fake);
    let one = add(&on, &agent, 1).await;
    let Attachment { key, uid, .. } = one.attachment.clone();
    let attachment = AttachmentRef { key, uid };
    fake.book().instead.insert("end", Instead::Refuse(ErrorCode::Unavailable));
    let ask = Ask { attachment, present: true, force: true, asked: FleetTime(7) };
    fake.tell(Changes { shared: vec![], own: vec![OwnChange::AskSet(ask)] });
    wait_until("it is severed", || agent.log().contains("is ended by force"));
    // A pass after that, which the other routes show.
    let set = SharedChange::BlockSet(block("pods", "p4", "10.32.5.0/26", "gw"));
    fake.tell(Changes { shared: vec![set], own: vec![] });
    wait_until("there was a pass", || on.sh("ip route show table 7601").contains("10.32.5.0/26"));
    let severed = || {
        let severed = link(&on, &one);
        assert!(severed.contains("state DOWN") && severed.contains("group 8192"), "{severed}");
        assert!(!has_route(&on, &one));
    };
    severed();
    fake.book().instead.clear();
    wait_until("it is ended", || fake.book().ended == [uid]);
    severed();
    drop(agent);
}

//! Edge: the real agent with several controllers, of which one after another fails.
#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "tests fail by panics and say why")]

mod support;

use std::path::Path;

use limpet_api::client::{Call, Method};
use limpet_api::host::{Changes, SharedChange, Wanted};
use limpet_api::socket::Attach;
use support::fake::{Fake, block, small};
use support::{Agent, Host, wait_until};

const ETH0: &str = "/v1/attachments/pods/c1/eth0";

/// An agent that knows of `first` and these others, and is ready.
fn joined(host: &Host, first: &Path, others: &[&Path]) -> Agent {
    let others: Vec<String> =
        others.iter().map(|path| format!("unix:{}", path.display())).collect();
    let agent = Agent::start(host, first, &format!("--controller {}", others.join(",")));
    wait_until("the agent is ready", || agent.log().contains("limpet_agent::service: ready"));
    agent
}

fn put(path: &str) -> Call {
    let wanted = Wanted { netns: "/run/netns/c1".to_owned(), ..Wanted::default() };
    Call::with_body(Method::PUT, path, &wanted).unwrap()
}

fn new_block(prefix: &str) -> Changes {
    let shared = vec![SharedChange::BlockSet(block("pods", "p4", prefix, "node-b"))];
    Changes { shared, ..Changes::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_joins_by_whichever_controller_answers() {
    let on = Host::new();
    // One that is not there, and one that takes connections and never says a word.
    let mute = on.path("mute.sock");
    let _mute = std::os::unix::net::UnixListener::bind(&mute).unwrap();
    let fake = Fake::start(&on.dir, small());
    let agent = joined(&on, &on.path("none.sock"), &[&mute, &fake.path]);
    let attach: Attach = agent.call(&put(ETH0)).await.unwrap();
    assert_eq!(fake.book().snapshot.attachments[0].uid, attach.attachment.uid);
    assert!(!agent.log().contains("cannot join"), "nobody need hear of it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_while_its_controller_stops_gives_one_attachment_and_the_watch_goes_on() {
    let on = Host::new();
    let first = Fake::start(&on.dir, small());
    let second = first.replica("second.sock");
    let agent = joined(&on, &first.path, &[&second.path]);
    assert_eq!(first.book().watches, 1);

    // It does what it was asked and cannot say so.
    first.stop();
    let attach: Attach = agent.call(&put(ETH0)).await.unwrap();
    let claims = first.book().claims.clone();
    assert!(claims.len() > 1, "another was asked");
    assert!(claims.iter().all(|(_, claim)| claim.uid == attach.attachment.uid));
    assert_eq!(first.book().snapshot.attachments.len(), 1);
    wait_until("the watch goes on elsewhere", || first.book().watches == 2);
    second.tell(new_block("10.32.1.0/26"));
    wait_until("what is told there arrives", || {
        on.sh("ip route show table 7601").contains("10.32.1.0/26")
    });
    // What the first was asked may be done yet, after the attachment has ended: not in a session that is over.
    wait_until("another session is open", || first.book().sessions.len() == 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_is_behind_is_not_believed_and_another_is_asked() {
    let on = Host::new();
    let mut first = Fake::start(&on.dir, small());
    let third = first.replica("third.sock");
    // It has not heard of anything yet, not of the host itself either.
    let late = on.path("late");
    std::fs::create_dir_all(&late).unwrap();
    let late = Fake::start(&late, small());
    late.book().revision = 3;
    late.book().snapshot.blocks.clear();
    let agent = joined(&on, &first.path, &[&late.path, &third.path]);
    let routes = || on.sh("ip route show table 7601");
    let before = routes();
    assert!(before.contains("10.32.0.64/26"), "{before}");

    first.leave().await;
    wait_until("the one that is behind was tried", || late.book().watches > 0);
    wait_until("one that is not is watched", || first.book().watches == 2);
    assert_eq!(routes(), before);
    third.tell(new_block("10.32.1.0/26"));
    wait_until("what is told there arrives", || routes().contains("10.32.1.0/26"));
    assert!(agent.log().contains("known is"), "it is said why");
    assert!(routes().contains("10.32.0.64/26"));
}

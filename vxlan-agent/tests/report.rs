//! Edge: the real agent, asked where its kernel and the store differ.
#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "tests fail by panics and say why")]

mod support;

use limpet_api::client::{Call, Method};
use limpet_api::host::{Changes, FindingKind, OwnChange, Report, ReportWanted, Wanted};
use limpet_api::socket::Attach;
use limpet_net_types::{Token, host_ifname};
use support::fake::{Fake, made_before, small};
use support::{Agent, Host, wait_until};

const LIVE: &str = "/proc/self/ns/net";

/// Asks the question `id` and waits for its report.
fn ask(fake: &Fake, id: u128, repair: bool) -> Report {
    let id = Token::from_bits(id);
    let own = vec![OwnChange::ReportWanted(ReportWanted { id, repair })];
    fake.tell(Changes { own, ..Changes::default() });
    wait_until("it is reported", || fake.book().reports.iter().any(|report| report.id == id));
    let reports = fake.book().reports.clone();
    reports.into_iter().find(|report| report.id == id).unwrap()
}

fn kinds(report: &Report) -> Vec<FindingKind> {
    report.findings.iter().map(|finding| finding.kind).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_says_where_it_differs_and_repairs_when_it_is_told_to() {
    let on = Host::new();
    std::fs::write(on.path("boot-id"), format!("{}\n", Token::from_bits(77))).unwrap();
    let fake = Fake::start(&on.dir, small());
    let agent = Agent::start(&on, &fake.path, "");
    wait_until("the agent is ready", || agent.log().contains("limpet_agent::service: ready"));
    let right = ask(&fake, 1, false);
    assert_eq!((kinds(&right), right.more), (vec![], 0));
    assert!(right.revision >= 11, "{}", right.revision);

    // One whose DEL never came, one whose interface somebody deleted, one that nobody knows.
    let made = |n, uid, netns| {
        let attachment = made_before(n, uid, Token::from_bits(77), netns);
        OwnChange::AttachmentSet(attachment)
    };
    let own = vec![made(1, 41, "/run/netns/gone"), made(2, 42, LIVE), made(3, 43, LIVE)];
    let key = made_before(3, 43, Token::from_bits(77), LIVE).key;
    let third = host_ifname(&key.network, &key.container, &key.ifname);
    on.veth(&third, &Token::from_bits(43).to_string(), 4097);
    fake.tell(Changes { own, ..Changes::default() });
    wait_until("the third has its route", || on.sh("ip route show table 7601").contains(&third));
    let report = ask(&fake, 2, false);
    let gone = FindingKind::AttachmentWithoutInterface;
    assert_eq!(kinds(&report), [gone, gone], "{report:?}");
    let uids: Vec<u128> =
        report.findings.iter().map(|finding| finding.uid.unwrap().bits()).collect();
    assert_eq!(uids, [41, 42]);
    assert!(fake.book().ended.is_empty(), "it only looks");

    let report = ask(&fake, 3, true);
    assert_eq!(kinds(&report), [gone], "{report:?}");
    assert_eq!(report.findings[0].uid, Some(Token::from_bits(42)));
    // It may be told twice: the report and the round see to it, each by itself.
    let ended = &fake.book().ended;
    assert!(!ended.is_empty() && ended.iter().all(|uid| *uid == Token::from_bits(41)), "{ended:?}");
    assert!(report.revision > right.revision);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_and_goes_is_no_difference() {
    let on = Host::new();
    let fake = Fake::start(&on.dir, small());
    let agent = Agent::start(&on, &fake.path, "");
    wait_until("the agent is ready", || agent.log().contains("limpet_agent::service: ready"));
    // An ADD whose plugin is still at work.
    let wanted = Wanted { netns: LIVE.to_owned(), ..Wanted::default() };
    let mut plugin = agent.connect().await;
    let put = Call::with_body(Method::PUT, "/v1/attachments/pods/c1/eth0", &wanted).unwrap();
    let attach: Attach = plugin.call(&put, support::LIMIT).await.unwrap();
    let report = ask(&fake, 1, false);
    assert_eq!(kinds(&report), []);
    // Its interface is there and its route not yet.
    on.veth(&attach.host_ifname, &attach.attachment.uid.to_string(), attach.group);
    let report = ask(&fake, 2, true);
    assert_eq!(kinds(&report), []);
    drop(plugin);
}

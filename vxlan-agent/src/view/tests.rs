//! Pure: what a view makes of the watch's lines and of answers.

use super::*;
use crate::fixture::{self, claimed};

fn line(revision: Revision, event: WatchEvent) -> WatchLine {
    WatchLine { store: Token::from_bits(1), revision, event }
}

fn snapshot(attachments: Vec<Attachment>) -> WatchEvent {
    WatchEvent::Snapshot(Box::new(Snapshot { attachments, ..Snapshot::default() }))
}

fn own(change: OwnChange) -> WatchEvent {
    WatchEvent::Changes(Changes { own: vec![change], ..Changes::default() })
}

fn uids(view: &View) -> Vec<u128> {
    view.attachments().map(|(_, attachment)| attachment.uid.bits()).collect()
}

#[test]
fn a_claim_answered_before_the_watch_tells_of_it_is_known_and_stays() {
    let mut view = View::default();
    view.apply(line(5, snapshot(vec![]))).unwrap();
    assert!(view.claimed(&claimed(fixture::attachment(1, 7), 9)));
    // A controller that is behind the one that answered sends its snapshot.
    view.apply(line(6, snapshot(vec![]))).unwrap();
    assert_eq!(uids(&view), [7]);
    view.apply(line(9, own(OwnChange::AttachmentSet(fixture::attachment(1, 7))))).unwrap();
    assert_eq!(uids(&view), [7]);
    view.apply(line(10, snapshot(vec![]))).unwrap();
    assert_eq!(uids(&view), [0_u128; 0]);
}

#[test]
fn an_ended_incarnation_does_not_come_back_with_an_older_line() {
    let mut view = View::default();
    view.apply(line(5, snapshot(vec![]))).unwrap();
    assert!(view.claimed(&claimed(fixture::attachment(1, 7), 6)));
    view.ended(Token::from_bits(7), 8);
    view.apply(line(6, own(OwnChange::AttachmentSet(fixture::attachment(1, 7))))).unwrap();
    assert_eq!(uids(&view), [0_u128; 0]);
    view.apply(line(8, WatchEvent::Heartbeat {})).unwrap();
    assert!(view.ended.is_empty(), "what the watch is past need not be remembered");
}

#[test]
fn the_end_of_an_old_incarnation_leaves_the_new_one() {
    let mut view = View::default();
    view.apply(line(5, snapshot(vec![fixture::attachment(1, 7)]))).unwrap();
    assert!(view.claimed(&claimed(fixture::attachment(1, 8), 7)));
    let key = Key::of(&fixture::attachment(1, 7));
    let gone = OwnChange::AttachmentGone {
        network: key.network,
        container: key.container,
        ifname: key.ifname,
        uid: Token::from_bits(7),
    };
    view.apply(line(6, own(gone))).unwrap();
    assert_eq!(uids(&view), [8]);
}

#[test]
fn a_claim_that_the_watch_has_told_the_end_of_stands_no_more() {
    let mut view = View::default();
    view.apply(line(5, snapshot(vec![]))).unwrap();
    view.apply(line(6, own(OwnChange::AttachmentSet(fixture::attachment(1, 7))))).unwrap();
    assert!(view.claimed(&claimed(fixture::attachment(1, 7), 6)));
    view.apply(line(7, own(OwnChange::AttachmentSet(fixture::attachment(1, 8))))).unwrap();
    assert!(!view.claimed(&claimed(fixture::attachment(1, 7), 6)), "another has its place");
    view.apply(line(9, snapshot(vec![]))).unwrap();
    assert!(!view.claimed(&claimed(fixture::attachment(1, 8), 7)));
    assert!(!view.claimed(&claimed(fixture::attachment(2, 9), 9)));
    assert_eq!(uids(&view), [0_u128; 0]);
    view.ended(Token::from_bits(10), 11);
    assert!(!view.claimed(&claimed(fixture::attachment(1, 10), 10)), "its end was answered");
    assert_eq!(uids(&view), [0_u128; 0]);
}

#[test]
fn what_the_controller_does_not_know_is_known_no_more_and_does_not_come_back() {
    let mut view = View::default();
    view.apply(line(5, snapshot(vec![fixture::attachment(1, 7)]))).unwrap();
    assert!(view.claimed(&claimed(fixture::attachment(2, 8), 7)));
    view.unknown(Token::from_bits(7));
    view.unknown(Token::from_bits(8));
    view.unknown(Token::from_bits(9));
    assert_eq!(uids(&view), [0_u128; 0]);
    view.apply(line(7, own(OwnChange::AttachmentSet(fixture::attachment(2, 8))))).unwrap();
    assert_eq!(uids(&view), [0_u128; 0]);
    assert!(view.ended.is_empty());
}

#[test]
fn an_address_that_was_claimed_here_is_no_stray_elsewhere_however_late_the_watch_is() {
    let stray = |host: &str| Stray {
        network: "n1".parse().unwrap(),
        address: "10.32.0.1".parse().unwrap(),
        host: host.parse().unwrap(),
    };
    let set = |host| {
        let shared = vec![SharedChange::StraySet(stray(host))];
        WatchEvent::Changes(Changes { shared, ..Changes::default() })
    };
    let hosts = |view: &View| view.strays.values().map(ToString::to_string).collect::<Vec<_>>();
    let mut view = View::default();
    view.apply(line(5, set("node-b"))).unwrap_err();
    view.apply(line(5, snapshot(vec![]))).unwrap();
    view.apply(line(6, set("node-b"))).unwrap();
    assert_eq!(hosts(&view), ["node-b"]);
    assert!(view.claimed(&claimed(fixture::attachment(1, 7), 9)));
    assert_eq!(hosts(&view), [""; 0]);
    view.apply(line(7, set("node-c"))).unwrap();
    let strays = vec![stray("node-c")];
    let late = Box::new(Snapshot { strays, ..Snapshot::default() });
    view.apply(line(8, WatchEvent::Snapshot(late))).unwrap();
    assert_eq!(hosts(&view), [""; 0]);
    view.apply(line(9, set("node-a"))).unwrap();
    assert_eq!(hosts(&view), ["node-a"]);
    view.apply(line(10, set("node-b"))).unwrap();
    assert_eq!(hosts(&view), ["node-b"], "it has moved on");
}

#[test]
fn a_watch_never_goes_back() {
    let mut view = View::default();
    view.apply(line(5, snapshot(vec![]))).unwrap();
    assert!(matches!(view.apply(line(4, snapshot(vec![]))), Err(ViewError::Behind { .. })));
    let repeated = own(OwnChange::AttachmentSet(fixture::attachment(1, 7)));
    assert_eq!(view.apply(line(5, repeated)), Ok(News::None));
    let other =
        WatchLine { store: Token::from_bits(2), revision: 9, event: WatchEvent::Heartbeat {} };
    assert!(matches!(view.apply(other), Err(ViewError::OtherStore { .. })));
    let restored = WatchLine { store: Token::from_bits(2), revision: 1, event: snapshot(vec![]) };
    assert_eq!(view.apply(restored), Ok(News::OfAll));
}

#[test]
fn what_the_watch_alone_takes_away_is_to_be_looked_for() {
    let (one, two) = (fixture::attachment(1, 7), fixture::attachment(2, 8));
    let lost = |view: &View| view.lost().iter().map(|uid| uid.bits()).collect::<Vec<_>>();
    let gone = |attachment: &Attachment| {
        let Key { network, container, ifname } = Key::of(attachment);
        own(OwnChange::AttachmentGone { network, container, ifname, uid: attachment.uid })
    };
    let mut view = View::default();
    view.apply(line(5, snapshot(vec![one.clone(), two.clone()]))).unwrap();
    view.apply(line(6, gone(&one))).unwrap();
    assert_eq!(lost(&view), [7]);
    // Its end was this host's own: the answer comes after the watch's word, or before it.
    view.ended(one.uid, 6);
    assert_eq!(lost(&view), [0_u128; 0]);
    view.ended(two.uid, 7);
    view.apply(line(7, gone(&two))).unwrap();
    assert_eq!(lost(&view), [0_u128; 0]);

    view.apply(line(8, snapshot(vec![one.clone(), two.clone()]))).unwrap();
    view.apply(line(9, snapshot(vec![two.clone()]))).unwrap();
    assert_eq!(lost(&view), [7], "taken over while nobody watched");
    view.unknown(one.uid);
    assert_eq!(lost(&view), [0_u128; 0], "its end was this host's own, and too late");
    view.apply(line(10, gone(&two))).unwrap();
    assert_eq!(lost(&view), [8]);
    view.looked_for(&[two.uid].into());
    assert_eq!(lost(&view), [0_u128; 0]);
}

#[test]
fn another_store_is_told_of_everything_and_the_first_one_only_if_it_asks() {
    let asks =
        || WatchEvent::Snapshot(Box::new(Snapshot { reassert: true, ..Snapshot::default() }));
    let mut view = View::default();
    view.apply(line(5, snapshot(vec![]))).unwrap();
    assert!(!view.reassert);
    view.apply(line(6, asks())).unwrap();
    assert!(view.reassert);
    view.apply(line(7, snapshot(vec![]))).unwrap();
    assert!(view.reassert, "it has not been told yet");
    view.reassert = false;
    let restored = WatchLine { store: Token::from_bits(2), revision: 1, event: snapshot(vec![]) };
    view.apply(restored).unwrap();
    assert!(view.reassert);
}

#[test]
fn what_is_recalled_goes_on_as_if_its_agent_had_lived() {
    let ask = |uid: u128| Ask {
        attachment: limpet_api::book::AttachmentRef {
            key: fixture::attachment(1, uid).key,
            uid: Token::from_bits(uid),
        },
        present: false,
        force: false,
        asked: limpet_api::FleetTime(0),
    };
    let stray = Stray {
        network: fixture::attachment(1, 7).key.network,
        address: "10.32.0.9".parse().unwrap(),
        host: "node-b".parse().unwrap(),
    };
    let first = Snapshot {
        networks: vec![fixture::network(1)],
        hosts: vec![fixture::session().host],
        strays: vec![stray.clone()],
        attachments: vec![fixture::attachment(1, 7), fixture::attachment(2, 8)],
        asks: vec![ask(7)],
        reassert: true,
        ..Snapshot::default()
    };
    let mut lived = View::default();
    lived.apply(line(5, WatchEvent::Snapshot(Box::new(first)))).unwrap();
    // A claim that was answered, and an end, which the watch has not told of yet.
    assert!(lived.claimed(&claimed(fixture::attachment(3, 9), 7)));
    lived.ended(Token::from_bits(8), 8);

    let (store, revision, snapshot) = lived.saved().unwrap();
    let mut again = View::recalled(store, revision, snapshot);
    assert_eq!((again.position(), again.unconfirmed()), (None, Some((store, 5))));
    assert_eq!(again.saved(), None, "what nobody has confirmed is not written as if somebody had");
    assert!(!again.confirm(store, 8), "there may be more");
    let gone = Key::of(&fixture::attachment(2, 8));
    let gone = OwnChange::AttachmentGone {
        network: gone.network,
        container: gone.container,
        ifname: gone.ifname,
        uid: Token::from_bits(8),
    };
    let stray_gone = SharedChange::StrayGone { network: stray.network, address: stray.address };
    let lines = [
        line(6, WatchEvent::Changes(Changes { shared: vec![stray_gone], ..Changes::default() })),
        line(7, own(OwnChange::AttachmentSet(fixture::attachment(3, 9)))),
        line(8, own(gone)),
        line(9, WatchEvent::Heartbeat {}),
    ];
    for line in lines {
        lived.apply(line.clone()).unwrap();
        again.apply(line).unwrap();
    }
    assert!(again.confirm(store, 8) && !again.confirm(store, 8), "once");
    assert_eq!(again, lived);
}

#[test]
fn another_store_than_the_recalled_one_is_told_of_everything_that_lives() {
    let mut view = View::default();
    view.apply(line(5, snapshot(vec![fixture::attachment(1, 7)]))).unwrap();
    let (store, revision, saved) = view.saved().unwrap();
    let mut view = View::recalled(store, revision, saved);
    let other = WatchLine { store: Token::from_bits(2), revision: 1, event: snapshot(vec![]) };
    view.apply(other).unwrap();
    assert!(view.reassert && view.position().is_some());
    assert_eq!(view.lost().len(), 1, "it is looked for, and not taken for ended");
}

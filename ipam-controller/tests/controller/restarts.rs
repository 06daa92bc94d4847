//! Edge: stops, kills and starts: what was told stays true.

use std::collections::BTreeMap;
use std::time::Duration;

use limpet_api::Listing;
use limpet_api::book::{Attachment, Reservation};
use limpet_api::host::WatchEvent;
use limpet_api::paths;
use limpet_net_types::Token;
use serde_json::Value;

use crate::process::{Controller, place};

#[tokio::test]
async fn a_stop_finishes_what_is_under_way_and_ends_the_watches() {
    let (_dir, store) = place();
    let controller = Controller::start(&store);
    controller.fill().await;
    controller.join("a", 1).await;
    let mut watch = controller.watch("a", None).await;
    watch.next().await.unwrap();
    controller.terminate();
    while watch.next().await.is_some() {}
    assert!(controller.stop().success());
}

#[tokio::test]
async fn a_restart_keeps_everything_and_the_revision_goes_on() {
    let (_dir, store) = place();
    let controller = Controller::start(&store);
    controller.fill().await;
    let session = controller.join("a", 1).await;
    let claimed = controller.claim(&session, 1, Some("web-0")).await.unwrap();
    let everything = async |controller: &Controller| {
        let mut all = Vec::new();
        for path in [paths::NETWORKS, paths::POOLS, paths::RESERVATIONS, paths::ATTACHMENTS] {
            all.push(controller.get::<Listing<Value>>(path).await.unwrap().items);
        }
        all
    };
    let before = everything(&controller).await;
    assert!(controller.stop().success());

    let controller = Controller::start(&store);
    assert_eq!(everything(&controller).await, before);
    let again = controller.claim(&session, 1, Some("web-0")).await.unwrap();
    assert_eq!(again.attachment, claimed.attachment, "the session is still good");
    let next = controller.claim(&session, 2, None).await.unwrap();
    assert!(next.revision > claimed.revision);
}

#[tokio::test]
async fn a_watch_resumes_after_a_restart_without_a_snapshot() {
    let (_dir, store) = place();
    let controller = Controller::start(&store);
    controller.fill().await;
    controller.join("b", 2).await;
    let mut watch = controller.watch("b", None).await;
    let known = watch.next().await.unwrap();
    assert!(matches!(known.event, WatchEvent::Snapshot(_)));
    let a = controller.join("a", 1).await;
    let claimed = controller.claim(&a, 1, None).await.unwrap();
    drop(watch);
    assert!(controller.stop().success());

    let controller = Controller::start(&store);
    let mut watch = controller.watch("b", Some(&known)).await;
    let line = watch.next().await.unwrap();
    assert_eq!(line.store, known.store);
    assert!(line.revision >= claimed.revision);
    let WatchEvent::Changes(changes) = line.event else { panic!("{line:?}") };
    let said = format!("{:?}", changes.shared);
    assert!(said.contains("HostSet") && said.contains("BlockSet"), "{said}");
    assert!(changes.own.is_empty(), "not its own");
}

#[tokio::test]
async fn a_watch_from_before_the_log_begins_with_a_snapshot() {
    let (_dir, store) = place();
    let controller = Controller::start_with(&store, &["--log-revisions", "5"]);
    controller.fill().await;
    let session = controller.join("a", 1).await;
    let known = controller.watch("a", None).await.next().await.unwrap();
    for uid in 1..=20 {
        controller.claim(&session, uid, None).await.unwrap();
    }
    assert!(controller.stop().success());
    let controller = Controller::start_with(&store, &["--log-revisions", "5"]);
    let line = controller.watch("a", Some(&known)).await.next().await.unwrap();
    let WatchEvent::Snapshot(snapshot) = line.event else { panic!("{line:?}") };
    assert_eq!(snapshot.attachments.len(), 20);
}

#[tokio::test]
async fn a_quiet_watch_has_a_heartbeat_with_the_revision() {
    let (_dir, store) = place();
    let controller = Controller::start(&store);
    controller.join("a", 1).await;
    let b = controller.join("b", 2).await;
    controller.fill().await;
    let mut watch = controller.watch("b", None).await;
    let known = watch.next().await.unwrap();
    let line = watch.next().await.unwrap();
    assert_eq!(line.event, WatchEvent::Heartbeat {});
    assert!(line.revision >= known.revision && known.revision >= b.revision);
}

#[tokio::test]
async fn a_kill_between_claims_loses_none_that_was_answered() {
    let (_dir, store) = place();
    let mut answered: BTreeMap<Token, Attachment> = BTreeMap::new();
    let mut session = None;
    for round in 0..4_u128 {
        let controller = Controller::start(&store);
        if session.is_none() {
            controller.fill().await;
            session = Some(controller.join("a", 1).await);
        }
        let session = session.as_ref().unwrap();
        let found: Listing<Attachment> = controller.get(paths::ATTACHMENTS).await.unwrap();
        let mut found: BTreeMap<Token, Attachment> =
            found.items.into_iter().map(|found| (found.uid, found)).collect();
        found.retain(|uid, _| answered.contains_key(uid));
        assert_eq!(found, answered, "every answer is still true");
        for n in 1..=25 {
            let name = format!("web-{}", round * 100 + n);
            let claimed = controller.claim(session, round * 100 + n, Some(&name)).await.unwrap();
            answered.insert(claimed.attachment.uid, claimed.attachment);
        }
        // The last of them were answered a moment ago.
        controller.kill();
    }
    let controller = Controller::start(&store);
    let kept: Listing<Reservation> = controller.get(paths::RESERVATIONS).await.unwrap();
    assert_eq!(kept.items.len(), answered.len());
    let mut held: Vec<_> =
        answered.values().flat_map(|found| &found.addresses).map(|held| held.address).collect();
    held.sort();
    held.dedup();
    assert_eq!(held.len(), 2 * answered.len(), "no address twice");
}

#[tokio::test]
async fn a_store_set_back_behind_a_hosts_revision_is_not_told_as_news() {
    let (_dir, store) = place();
    let controller = Controller::start(&store);
    controller.fill().await;
    let session = controller.join("a", 1).await;
    assert!(controller.stop().success());
    let copy = store.with_extension("copy");
    std::fs::copy(&store, &copy).unwrap();

    let controller = Controller::start(&store);
    controller.claim(&session, 1, None).await.unwrap();
    let known = controller.watch("a", None).await.next().await.unwrap();
    assert!(controller.stop().success());
    std::fs::rename(&copy, &store).unwrap();

    let controller = Controller::start(&store);
    // It is another store from then on, of which the host knows nothing.
    let begun = controller.watch("a", Some(&known)).await.next().await.unwrap();
    assert_ne!(begun.store, known.store);
    assert!(matches!(begun.event, WatchEvent::Snapshot(_)));
    assert!(controller.log().contains("the store was set back"));
}

#[tokio::test]
async fn readiness_is_told_and_so_is_the_end() {
    let (_dir, store) = place();
    let controller = Controller::start(&store);
    controller.get::<()>(paths::HEALTH).await.unwrap();
    controller.get::<()>(paths::READY).await.unwrap();
    assert!(controller.log().contains("serving HTTP without TLS"));
    let address = controller.address;
    assert!(controller.stop().success());
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}

//! Edge: several controllers on one etcd: whoever is asked, it is one address book.

use std::collections::BTreeSet;
use std::time::Duration;

use limpet_api::book::Attachment;
use limpet_api::client::{Call, Client, Endpoint, Method};
use limpet_api::host::{Claimed, WatchEvent};
use limpet_api::{ErrorCode, Listing, paths};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{self, Instant};

use crate::process::{Controller, LIMIT, Starting};
use crate::server::Cluster;

/// Etcd, and controllers on it.
struct Fleet {
    cluster: Cluster,
    dir: TempDir,
}

impl Fleet {
    fn new(members: usize) -> Self {
        Self { cluster: Cluster::start(members), dir: tempfile::tempdir().unwrap() }
    }

    fn controller(&self, name: &str) -> Controller {
        Controller::start_on(&self.cluster, &self.dir.path().join(name))
    }
}

/// Every address of some claims, each as often as it was given.
fn addresses(claims: &[Claimed]) -> Vec<String> {
    let held = claims.iter().flat_map(|claimed| &claimed.attachment.addresses);
    held.map(|held| held.address.to_string()).collect()
}

async fn attachments(controller: &Controller) -> Vec<Attachment> {
    let all: Listing<Attachment> = controller.get(paths::ATTACHMENTS).await.unwrap();
    all.items
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_through_three_controllers_at_once_get_distinct_addresses() {
    let fleet = Fleet::new(1);
    let controllers = ["x", "y", "z"].map(|name| fleet.controller(name));
    controllers[0].fill().await;
    let mut sessions = Vec::new();
    for (controller, (host, last)) in controllers.iter().zip([("a", 1), ("b", 2), ("c", 3)]) {
        sessions.push(controller.join(host, last).await);
    }
    // Somebody else keeps something in the same etcd.
    let mut client = fleet.cluster.client().await;
    let others = tokio::spawn(async move {
        for n in 0.. {
            client.put("/others", n.to_string(), None).await.unwrap();
            time::sleep(Duration::from_millis(5)).await;
        }
    });
    let mut claims = Vec::new();
    for round in 0..20 {
        // Each host claims through each controller.
        let at_once = sessions.iter().enumerate().map(|(n, session)| {
            let controller = &controllers[(n + round) % 3];
            let uid = u128::try_from(3 * round + n + 1).unwrap();
            let name = (n < 2).then(|| format!("{n}-{round}"));
            async move { controller.claim(session, uid, name.as_deref()).await.unwrap() }
        });
        claims.extend(futures_util::future::join_all(at_once).await);
    }
    others.abort();
    let given = addresses(&claims);
    let distinct: BTreeSet<&String> = given.iter().collect();
    assert_eq!((given.len(), distinct.len()), (120, 120), "two families, nobody twice");
    for controller in &controllers {
        assert_eq!(attachments(controller).await.len(), 60, "each knows of all");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_name_asked_for_through_two_controllers_at_once_is_one_containers() {
    let fleet = Fleet::new(1);
    let (x, y) = (fleet.controller("x"), fleet.controller("y"));
    x.fill().await;
    let (a, b) = (x.join("a", 1).await, y.join("b", 2).await);
    for round in 0..2_u128 {
        let name = format!("web-{round}");
        let (first, second) = tokio::join!(
            x.claim(&a, 10 * round + 1, Some(&name)),
            y.claim(&b, 10 * round + 2, Some(&name)),
        );
        let (won, lost) = if first.is_ok() { (first, second) } else { (second, first) };
        won.unwrap();
        assert_eq!(lost.unwrap_err().code, ErrorCode::ReservationHeld);
    }
}

#[tokio::test]
async fn what_is_configured_at_one_controller_is_used_by_the_others_at_once() {
    let fleet = Fleet::new(1);
    let (x, y) = (fleet.controller("x"), fleet.controller("y"));
    let session = y.join("a", 1).await;
    let refused = y.claim(&session, 1, None).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::NetworkNotFound);
    x.fill().await;
    y.claim(&session, 1, None).await.unwrap();
    for round in 0..10 {
        // Each is right by itself.
        let pool = |name: &str| {
            let spec = json!({ "network": "blue", "range": format!("10.9{round}.0.0/24") });
            (format!("/v1/pools/{name}{round}"), spec)
        };
        let ((left, spec), (right, same)) = (pool("left"), pool("right"));
        let (first, second) = tokio::join!(x.put(&left, spec), y.put(&right, same));
        assert!(first.is_ok() != second.is_ok(), "{first:?} {second:?}");
    }
    let pools: Listing<Value> = x.get(paths::POOLS).await.unwrap();
    assert_eq!(pools.items.len(), 12);
    assert_eq!(y.get::<Listing<Value>>(paths::POOLS).await.unwrap(), pools);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_is_killed_takes_nothing_with_it() {
    let fleet = Fleet::new(1);
    let (x, y) = (fleet.controller("x"), fleet.controller("y"));
    x.fill().await;
    let session = x.join("a", 1).await;
    let mut claims = Vec::new();
    for uid in 1..=10 {
        claims.push(x.claim(&session, uid, Some(&format!("web-{uid}"))).await.unwrap());
    }
    // Of one that is under way nobody knows what becomes of it.
    let doubtful = tokio::select! {
        _ = x.claim(&session, 11, Some("web-11")) => true,
        () = time::sleep(Duration::from_millis(1)) => true,
    };
    assert!(doubtful);
    x.kill();
    for (uid, before) in (1..).zip(&claims) {
        let name = format!("web-{uid}");
        let again = y.claim(&session, uid, Some(&name)).await.unwrap();
        assert_eq!(again.attachment, before.attachment);
    }
    claims.push(y.claim(&session, 11, Some("web-11")).await.unwrap());
    claims.push(y.claim(&session, 12, None).await.unwrap());
    let given = addresses(&claims);
    assert_eq!(given.iter().collect::<BTreeSet<_>>().len(), 24);
    assert_eq!(attachments(&y).await.len(), 12);
}

#[tokio::test]
async fn a_controller_that_was_frozen_answers_of_what_is_there_when_it_wakes() {
    let fleet = Fleet::new(1);
    let (x, y) = (fleet.controller("x"), fleet.controller("y"));
    x.fill().await;
    let session = x.join("a", 1).await;
    y.claim(&session, 1, Some("web-1")).await.unwrap();
    y.freeze();
    x.end(&session, 1).await.unwrap();
    let moved = x.claim(&session, 2, Some("web-1")).await.unwrap();
    x.put("/v1/networks/red", json!({})).await.unwrap();
    y.thaw();
    // The first thing that it is asked is answered from what it does not know yet.
    let networks: Listing<Value> = y.get(paths::NETWORKS).await.unwrap();
    assert_eq!(networks.items.len(), 2);
    let again = y.claim(&session, 2, Some("web-1")).await.unwrap();
    assert_eq!(again.attachment, moved.attachment);
    let late = y.claim(&session, 1, Some("web-1")).await;
    assert!(late.is_err(), "{late:?}");
}

#[tokio::test]
async fn a_watch_goes_on_at_another_controller_without_a_snapshot() {
    let fleet = Fleet::new(1);
    let (x, y) = (fleet.controller("x"), fleet.controller("y"));
    x.fill().await;
    let (a, _b) = (x.join("a", 1).await, x.join("b", 2).await);
    let mut watch = x.watch("b", None).await;
    let known = watch.next().await.unwrap();
    assert!(matches!(known.event, WatchEvent::Snapshot(_)));
    let claimed = y.claim(&a, 1, None).await.unwrap();
    // What another controller wrote is told by this one.
    let line = watch.next().await.unwrap();
    assert!(line.revision >= claimed.revision);
    x.kill();
    // This one reads it from etcd: it was not there when it happened.
    let late = fleet.controller("late");
    let mut watch = late.watch("b", Some(&known)).await;
    let line = watch.next().await.unwrap();
    assert!(matches!(line.event, WatchEvent::Changes(_)), "{line:?}");
    assert_eq!(line.store, known.store);
    assert!(line.revision >= claimed.revision);

    // What etcd has compacted, and no controller remembers, is read anew.
    let at = i64::try_from(line.revision).unwrap();
    fleet.cluster.client().await.compact(at, None).await.unwrap();
    let z = fleet.controller("z");
    let mut watch = z.watch("b", Some(&known)).await;
    let line = watch.next().await.unwrap();
    assert!(matches!(line.event, WatchEvent::Snapshot(_)), "{line:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_go_on_when_the_leader_of_etcd_is_killed() {
    let mut fleet = Fleet::new(3);
    let (x, y) = (fleet.controller("x"), fleet.controller("y"));
    x.fill().await;
    let session = x.join("a", 1).await;
    let mut claims = vec![x.claim(&session, 1, None).await.unwrap()];
    let leader = fleet.cluster.leader().await;
    fleet.cluster.kill(leader);
    for uid in 2..=10 {
        let controller = if uid % 2 == 0 { &x } else { &y };
        let deadline = Instant::now() + LIMIT;
        loop {
            match controller.claim(&session, uid, None).await {
                Ok(claimed) => break claims.push(claimed),
                // An agent asks again, by the same uid.
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
        }
    }
    assert_eq!(addresses(&claims).iter().collect::<BTreeSet<_>>().len(), 20);
    assert_eq!(attachments(&y).await.len(), 10);
}

#[tokio::test]
async fn a_controller_waits_for_an_etcd_that_is_away() {
    let mut fleet = Fleet::new(1);
    fleet.cluster.kill(0);
    let address = "127.81.0.1:7600";
    let urls = fleet.cluster.urls().join(",");
    let flags = ["--listen", address, "--etcd", &urls];
    let starting = Starting::new(&fleet.dir.path().join("x"), &flags);
    let client = Client::new(vec![Endpoint::Http { authority: address.to_owned() }], LIMIT);
    let deadline = Instant::now() + LIMIT;
    while !starting.log().contains("waiting for the store") {
        assert!(Instant::now() < deadline, "{}", starting.log());
        time::sleep(Duration::from_millis(20)).await;
    }
    client.call::<()>(&Call::new(Method::GET, paths::HEALTH)).await.unwrap();
    let refused = client.call::<()>(&Call::new(Method::GET, paths::READY)).await.unwrap_err();
    assert!(format!("{refused:?}").contains("waits for its store"), "{refused:?}");
    fleet.cluster.restart(0);
    let controller = starting.ready();
    controller.get::<()>(paths::READY).await.unwrap();
    assert!(controller.stop().success());
}

#[test]
fn what_is_wrong_with_etcds_flags_is_told_and_ends_the_controller() {
    let dir = tempfile::tempdir().unwrap();
    let absent = dir.path().join("absent.pem");
    let flags =
        ["--etcd", "https://127.0.0.1:1", "--etcd-ca", absent.to_str().unwrap(), "--plain-http"];
    let (status, said) = crate::process::run(&[&flags[..], &["--listen", "127.0.0.1:0"]].concat());
    assert_eq!(status.code(), Some(1));
    assert!(said.contains("absent.pem, which --etcd-ca names"), "{said}");
    assert!(said.contains("No such file"), "{said}");
}

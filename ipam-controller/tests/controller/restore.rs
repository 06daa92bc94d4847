//! Edge: backups, and restores into other stores: whole ones, broken ones and broken-off ones.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use limpet_api::backup::{FORMAT, Header, Writer};
use limpet_api::client::{Call, ClientError, Connection, Endpoint, Lines, Method};
use limpet_api::host::{ReassertOutcome, ReassertRequest, Reasserted, Session, WatchEvent};
use limpet_api::restore::{RestoreLine, RestoreStatus};
use limpet_api::{ApiError, ErrorCode, FleetTime, Listing, paths};
use limpet_net_types::{Token, Uid};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::process::{Controller, LIMIT, place};
use crate::server::Cluster;

/// The backup of a controller, as a file beside its store.
async fn back_up(controller: &Controller, store: &Path) -> PathBuf {
    let mut lines = controller.lines(&Call::new(Method::GET, paths::BACKUP)).await.unwrap();
    let mut text = String::new();
    while let Some(line) = lines.next::<Box<RawValue>>(LIMIT).await.unwrap() {
        text += line.get();
        text.push('\n');
    }
    let path = store.with_extension("backup");
    fs::write(&path, text).unwrap();
    path
}

async fn upload(controller: &Controller, file: &Path) -> Result<Lines, ApiError> {
    let endpoint = Endpoint::Http { authority: controller.address.to_string() };
    let connection = Connection::open(&endpoint, LIMIT).await.unwrap();
    let sent = connection.upload(paths::RESTORE, File::open(file).unwrap(), |_| {}, LIMIT).await;
    sent.map_err(|error| match error {
        ClientError::Refused(error) => error,
        error => panic!("no answer of the API: {error:?}"),
    })
}

async fn restore(controller: &Controller, file: &Path) -> Result<RestoreStatus, ApiError> {
    finished(upload(controller, file).await?).await
}

async fn finished(mut lines: Lines) -> Result<RestoreStatus, ApiError> {
    loop {
        match lines.next(LIMIT).await.unwrap() {
            Some(RestoreLine::Written { .. }) => {}
            Some(RestoreLine::Done(status)) => return Ok(*status),
            Some(RestoreLine::Failed(error)) => return Err(error),
            None => panic!("it ended before it was done"),
        }
    }
}

async fn reassert(
    controller: &Controller,
    session: &Session,
    attachments: Vec<limpet_api::book::Attachment>,
) -> Result<Reasserted, ApiError> {
    reassert_part(controller, session, attachments, (true, vec![])).await
}

async fn reassert_part(
    controller: &Controller,
    session: &Session,
    attachments: Vec<limpet_api::book::Attachment>,
    (complete, living): (bool, Vec<Uid>),
) -> Result<Reasserted, ApiError> {
    let request = ReassertRequest { session: session.session, attachments, complete, living };
    controller.ask(Method::POST, &paths::reassert(&session.host.name), &request).await
}

fn code<T>(answer: Result<T, ApiError>) -> ErrorCode {
    answer.map(drop).expect_err("it is refused").code
}

#[tokio::test]
async fn a_fleet_goes_on_in_another_store_once_its_hosts_have_said_what_lives() {
    let (_dir, store) = place();
    let old = Controller::start(&store);
    old.fill().await;
    let (a, b) = (old.join("a", 1).await, old.try_join("b", 2, 2, 2).await.unwrap());
    let kept = old.claim(&a, 1, Some("web-0")).await.unwrap().attachment;
    let gone = old.claim(&a, 2, Some("web-1")).await.unwrap().attachment;
    let backup = back_up(&old, &store).await;
    let newer = old.claim(&b, 3, Some("db-0")).await.unwrap().attachment;
    old.end(&a, 2).await.unwrap();
    old.kill();

    let (_dir, other) = place();
    let new = Controller::start_with(&other, &["--await-restore"]);
    let early = new.try_join("b", 2, 2, 2).await;
    assert_eq!(code(early), ErrorCode::StoreRestoring, "nobody joins an empty store");
    let status = restore(&new, &backup).await.unwrap();
    let restored = status.restored.unwrap();
    assert_eq!((restored.hosts, restored.waiting.len()), (2, 2));
    assert_ne!(status.store, a.store, "it is another store");
    assert_eq!(code(new.claim(&a, 1, Some("web-0")).await), ErrorCode::SessionLost);

    let (a, b) = (new.join("a", 1).await, new.try_join("b", 2, 2, 2).await.unwrap());
    let mut watch = new.watch("a", None).await;
    let WatchEvent::Snapshot(snapshot) = watch.next().await.unwrap().event else { panic!() };
    assert!(snapshot.reassert);
    assert_eq!(snapshot.attachments.len(), 2);
    let refused = new.claim(&b, 9, None).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::StoreRestored, "{refused}");
    assert!(refused.message.contains("2 of 2 hosts"), "{refused}");

    let mine = reassert(&new, &b, vec![newer.clone()]).await.unwrap();
    assert_eq!(mine.results[0].outcome, ReassertOutcome::Restored);
    assert_eq!(
        code(new.claim(&b, 9, None).await),
        ErrorCode::StoreRestored,
        "host a is waited for"
    );
    let theirs = reassert(&new, &a, vec![kept.clone()]).await.unwrap();
    assert_eq!(theirs.results[0].outcome, ReassertOutcome::Kept);
    let all: Listing<limpet_api::book::Attachment> = new.get(paths::ATTACHMENTS).await.unwrap();
    let mut living: Vec<_> = all.items.into_iter().map(|it| it.uid).collect();
    living.sort_unstable();
    assert_eq!(living, [kept.uid, newer.uid], "what its host does not have has ended");
    let next = new.claim(&b, 9, Some("web-1")).await.unwrap().attachment;
    assert_eq!(next.addresses, gone.addresses, "its reservation was in the backup");
}

#[tokio::test]
async fn a_fleet_moves_from_a_file_to_etcd_with_two_controllers_and_back() {
    let (_dir, store) = place();
    let old = Controller::start(&store);
    old.fill().await;
    let a = old.join("a", 1).await;
    let mut living = Vec::new();
    for uid in 1..=150 {
        living.push(old.claim(&a, uid, Some(&format!("web-{uid}"))).await.unwrap().attachment);
    }
    let backup = back_up(&old, &store).await;
    old.kill();

    let cluster = Cluster::start(1);
    let (_dir, place_of) = place();
    let first = Controller::start_on(&cluster, &place_of);
    let second = Controller::start_on(&cluster, &place_of.with_file_name("second"));
    restore(&first, &backup).await.unwrap();
    let session = second.join("a", 1).await;
    assert_eq!(code(first.claim(&session, 900, None).await), ErrorCode::StoreRestored);
    let told = reassert(&second, &session, living.clone()).await.unwrap();
    assert!(told.results.iter().all(|it| it.outcome == ReassertOutcome::Kept));
    first.claim(&session, 900, None).await.unwrap();

    let backup = back_up(&second, &place_of).await;
    let (_dir, last) = place();
    let back = Controller::start(&last);
    let status = restore(&back, &backup).await.unwrap();
    assert_eq!(status.restored.unwrap().waiting.len(), 1);
    let path = format!("{}?limit=1000", paths::ATTACHMENTS);
    let all: Listing<limpet_api::book::Attachment> = back.get(&path).await.unwrap();
    assert_eq!(all.items.len(), living.len() + 1);
}

#[tokio::test]
async fn what_a_host_says_in_several_parts_is_kept_and_others_wait_for_none_but_the_first() {
    let (_dir, store) = place();
    let old = Controller::start(&store);
    old.fill().await;
    let a = old.join("a", 1).await;
    let mut made = Vec::new();
    for n in 1..=4 {
        made.push(old.claim(&a, n, None).await.unwrap().attachment);
    }
    let backup = back_up(&old, &store).await;
    old.kill();
    let (_dir, other) = place();
    let new = Controller::start_with(&other, &["--await-restore"]);
    restore(&new, &backup).await.unwrap();
    let a = new.join("a", 1).await;
    let living = || made.iter().take(3).map(|it| it.uid).collect::<Vec<_>>();
    let part = |n: usize| vec![made[n].clone()];
    // The third is being made: nothing is asserted of it yet.
    for (n, complete) in [(0, false), (1, true)] {
        let part = reassert_part(&new, &a, part(n), (complete, living())).await.unwrap();
        assert_eq!(part.results[0].outcome, ReassertOutcome::Kept);
        let status: RestoreStatus = new.get(paths::RESTORE).await.unwrap();
        let restored = status.restored.unwrap();
        assert_eq!(restored.waiting.is_empty(), complete);
        assert_eq!(restored.spoken.is_empty(), complete, "it has spoken with the first part");
    }
    let all: Listing<limpet_api::book::Attachment> = new.get(paths::ATTACHMENTS).await.unwrap();
    let mut kept: Vec<_> = all.items.into_iter().map(|it| it.key.container).collect();
    kept.sort_unstable();
    let mut named: Vec<_> = made.iter().take(3).map(|it| it.key.container.clone()).collect();
    named.sort_unstable();
    assert_eq!(kept, named);
}

#[tokio::test]
async fn a_store_in_use_or_a_file_that_is_not_whole_changes_nothing() {
    let (_dir, store) = place();
    let controller = Controller::start(&store);
    controller.fill().await;
    controller.join("a", 1).await;
    let backup = back_up(&controller, &store).await;
    let error = restore(&controller, &backup).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::StoreInUse);
    assert!(error.message.contains("1 networks, 2 pools, 1 hosts"), "{error}");

    let (_dir, other) = place();
    let empty = Controller::start(&other);
    let whole = fs::read_to_string(&backup).unwrap();
    let lines = whole.lines().count();
    let cut: String = whole.split_inclusive('\n').take(lines - 1).collect();
    let altered = whole.replace("10.32.0.0/16", "10.33.0.0/16");
    let newer = whole.replace("\"limpet_backup\":1", "\"limpet_backup\":2");
    for (text, why) in [
        (cut.as_str(), "cut off"),
        (&altered, "altered"),
        (&newer, "format 2"),
        ("{}\n", "no backup"),
    ] {
        let path = other.with_extension("broken");
        fs::write(&path, text).unwrap();
        let error = restore(&empty, &path).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::BackupInvalid, "{error}");
        assert!(error.message.contains(why), "{error}");
    }
    let status: RestoreStatus = empty.get(paths::RESTORE).await.unwrap();
    assert_eq!((status.holds, status.restoring, status.restored), (None, None, None));
    restore(&empty, &backup).await.unwrap();
}

/// A backup of very many addresses, none of which anybody has.
fn large(path: &Path, keys: u32) {
    let mut out = Vec::new();
    let header = Header {
        limpet_backup: FORMAT,
        store: Token::from_bits(5),
        revision: 1,
        fleet_time: FleetTime(1),
        created: "2026-11-20T14:05:00Z".parse().unwrap(),
        version: "test".to_owned(),
    };
    let mut writer = Writer::begin(&header, &mut out);
    for number in 0..keys {
        let key = format!("addresses/blue/0a{number:06x}");
        writer.record(&key, br#"{"released":1}"#, &mut out);
    }
    writer.end(&mut out);
    fs::write(path, out).unwrap();
}

#[tokio::test]
async fn a_restore_that_a_crash_broke_off_is_gone_on_with_or_discarded() {
    let (_dir, store) = place();
    let backup = store.with_extension("backup");
    large(&backup, 20_000);
    let broken_off = async || {
        let controller = Controller::start(&store);
        let mut lines = upload(&controller, &backup).await.unwrap();
        let first = lines.next(LIMIT).await.unwrap();
        assert!(matches!(first, Some(RestoreLine::Written { .. })), "{first:?}");
        controller.kill();
        Controller::start(&store)
    };
    let controller = broken_off().await;
    let status: RestoreStatus = controller.get(paths::RESTORE).await.unwrap();
    assert_eq!(status.restoring.unwrap().keys, 20_000);
    let refused = controller.get::<Listing<Value>>(paths::NETWORKS).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::StoreRestoring, "{refused}");
    let other = store.with_extension("other");
    large(&other, 10);
    assert_eq!(code(restore(&controller, &other).await), ErrorCode::StoreRestoring);

    let discard = Call::new(Method::DELETE, paths::RESTORE);
    let status = finished(controller.lines(&discard).await.unwrap()).await.unwrap();
    assert_eq!((status.restoring, status.restored), (None, None));
    controller.fill().await;
    controller.delete::<Value>("/v1/pools/p4").await.unwrap();
    controller.delete::<Value>("/v1/pools/p6").await.unwrap();
    controller.delete::<Value>("/v1/networks/blue").await.unwrap();
    controller.kill();

    let controller = broken_off().await;
    let status = restore(&controller, &backup).await.unwrap();
    assert_eq!((status.restoring, status.restored.unwrap().hosts), (None, 0));
    let kept = fs::read_to_string(back_up(&controller, &store).await).unwrap();
    assert_eq!(kept.lines().filter(|line| line.contains("addresses/blue/")).count(), 20_000);
    controller.fill().await;
}

//! Pure: what every store must do, as tests that run over each of them.
//!
//! A new store adds one line at the end of this file and one of [`fixtures`], and passes.

mod fixtures;
mod model;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;

use self::fixtures::Fixture;
use super::faulty::{Fault, Faulty};
use super::{
    CommitError, Event, Outcome, Quiet, Revision, Seen, Snapshot, Store, Txn, WatchError, Write,
};

/// How many revisions the change log of a store under test keeps.
const LOG: u64 = 20;

fn put(key: &str, value: &str) -> (String, Write) {
    (key.to_owned(), Write::Put(Bytes::copy_from_slice(value.as_bytes())))
}

fn ephemeral(key: &str, value: &str) -> (String, Write) {
    (key.to_owned(), Write::Ephemeral(Bytes::copy_from_slice(value.as_bytes())))
}

fn delete(key: &str) -> (String, Write) {
    (key.to_owned(), Write::Delete)
}

fn txn<const C: usize, const W: usize>(
    compares: [(&str, Seen); C],
    writes: [(String, Write); W],
) -> Txn {
    Txn {
        compares: compares.into_iter().map(|(key, seen)| (key.to_owned(), seen)).collect(),
        writes: writes.into(),
        ..Txn::default()
    }
}

fn writes<const W: usize>(writes: [(String, Write); W]) -> Txn {
    txn([], writes)
}

async fn commit(store: &dyn Store, txn: Txn) -> Outcome {
    store.commit(vec![txn]).await.unwrap().remove(0)
}

async fn committed(store: &dyn Store, txn: Txn) -> Revision {
    match commit(store, txn).await {
        Outcome::Committed(revision) => revision,
        Outcome::Conflict(key) => panic!("conflict on {key}"),
    }
}

async fn contents(store: &dyn Store, prefix: &str) -> BTreeMap<String, String> {
    let snapshot = Snapshot::of(store, prefix).await.unwrap();
    let text = |bytes: Bytes| String::from_utf8(bytes.to_vec()).unwrap();
    snapshot.entries.into_iter().map(|(key, entry)| (key, text(entry.value))).collect()
}

fn map<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

async fn a_new_store_has_an_identity_and_nothing_else((store, _again): Fixture) {
    let snapshot = Snapshot::of(&*store, "").await.unwrap();
    assert_eq!(snapshot.entries.keys().collect::<Vec<_>>(), [crate::keys::STORE_ID]);
    assert_eq!(snapshot.revision, snapshot.entries[crate::keys::STORE_ID].revision);
}

async fn a_read_gives_what_was_put_under_the_prefix_and_no_more((store, _again): Fixture) {
    committed(&*store, writes([put("a/1", "x"), put("a/2", ""), put("a", "y"), put("b/1", "z")]))
        .await;
    assert_eq!(contents(&*store, "a/").await, map([("a/1", "x"), ("a/2", "")]));
    assert_eq!(contents(&*store, "c").await, map([]));
}

async fn a_value_carries_the_revision_that_put_it((store, _again): Fixture) {
    let first = committed(&*store, writes([put("k/a", "1"), put("k/b", "1")])).await;
    let second = committed(&*store, writes([put("k/b", "2")])).await;
    let snapshot = Snapshot::of(&*store, "k/").await.unwrap();
    assert_eq!(snapshot.entries["k/a"].revision, first);
    assert_eq!(snapshot.entries["k/b"].revision, second);
    assert_eq!(snapshot.revision, second);
    assert!(second > first);
}

async fn a_stale_compare_conflicts_and_changes_nothing((store, _again): Fixture) {
    let first = committed(&*store, writes([put("a", "1")])).await;
    let second = committed(&*store, writes([put("a", "2")])).await;
    let cases = [Seen::Absent, Seen::At(first), Seen::At(second.next())];
    for seen in cases {
        let outcome = commit(&*store, txn([("a", seen)], [put("a", "3"), put("b", "3")])).await;
        assert_eq!(outcome, Outcome::Conflict("a".to_owned()), "{seen:?}");
    }
    let outcome = commit(&*store, txn([("n", Seen::At(first))], [put("b", "3")])).await;
    assert_eq!(outcome, Outcome::Conflict("n".to_owned()));
    assert_eq!(contents(&*store, "a").await, map([("a", "2")]));
    assert_eq!(contents(&*store, "b").await, map([]));
    committed(&*store, txn([("a", Seen::At(second)), ("n", Seen::Absent)], [delete("a")])).await;
    committed(&*store, txn([("a", Seen::Absent)], [put("a", "again")])).await;
}

async fn members_of_a_batch_stand_beside_each_other((store, _again): Fixture) {
    let at = committed(&*store, writes([put("a", "1"), put("b", "1")])).await;
    let batch = vec![
        txn([("a", Seen::At(at))], [put("a", "2")]),
        txn([("b", Seen::Absent)], [put("c", "never")]),
        txn([("d", Seen::Absent)], [put("d", "2")]),
    ];
    let outcomes = store.commit(batch).await.unwrap();
    let [Outcome::Committed(first), Outcome::Conflict(key), Outcome::Committed(second)] =
        &outcomes[..]
    else {
        panic!("{outcomes:?}");
    };
    assert_eq!(key, "b");
    assert!(at < *first && first <= second, "revisions do not fall");
    assert_eq!(contents(&*store, "a").await, map([("a", "2")]));
    assert_eq!(contents(&*store, "c").await, map([]));
    assert_eq!(contents(&*store, "d").await, map([("d", "2")]));
}

async fn a_batch_whose_members_meet_is_refused_whole((store, _again): Fixture) {
    let at = committed(&*store, writes([put("a/1", "1")])).await;
    let ranged = Txn { quiet: vec![Quiet::under("a/", at)], ..writes([put("b", "2")]) };
    let meetings = [
        [writes([put("x", "1")]), writes([delete("x")])],
        [writes([put("x", "1")]), txn([("x", Seen::Absent)], [])],
        [txn([("x", Seen::Absent)], []), writes([put("x", "1")])],
        [ranged.clone(), writes([put("a/2", "1")])],
        [writes([put("a/2", "1")]), ranged],
    ];
    for batch in meetings {
        let refused = store.commit(batch.to_vec()).await;
        assert!(matches!(refused, Err(CommitError::NotDone(_))), "{batch:?}");
    }
    assert_eq!(contents(&*store, "x").await, map([]));
    assert_eq!(contents(&*store, "a/").await, map([("a/1", "1")]));
    let shared = || txn([("a/1", Seen::At(at))], []);
    assert_eq!(store.commit(vec![shared(), shared()]).await.unwrap().len(), 2, "to rely is free");
}

async fn a_range_is_quiet_until_something_in_it_is_put((store, _again): Fixture) {
    let at = committed(&*store, writes([put("a/1", "1"), put("b", "1")])).await;
    let ranged = |since| Txn { quiet: vec![Quiet::under("a/", since)], ..writes([put("c", "1")]) };
    committed(&*store, ranged(at)).await;
    committed(&*store, writes([put("a", "outside"), put("b", "outside")])).await;
    committed(&*store, ranged(at)).await;
    let later = committed(&*store, writes([put("a/2", "inside")])).await;
    assert_eq!(commit(&*store, ranged(at)).await, Outcome::Conflict("a/2".to_owned()));
    committed(&*store, ranged(later)).await;
    committed(&*store, writes([delete("a/1"), delete("a/2")])).await;
    committed(&*store, ranged(at)).await;
}

async fn a_read_is_of_one_revision_whatever_is_written_meanwhile((store, _again): Fixture) {
    let old: Vec<String> = (0..8).map(|n| format!("k/{n}")).collect();
    committed(
        &*store,
        Txn { writes: old.iter().map(|key| put(key, "old")).collect(), ..Txn::default() },
    )
    .await;
    let mut pages = store.read("k/").await.unwrap();
    let mut read = pages.next().await.unwrap().unwrap();
    committed(&*store, writes([delete("k/7"), put("k/6", "new"), put("k/9", "new")])).await;
    while let Some(page) = pages.next().await.unwrap() {
        read.extend(page);
    }
    assert_eq!(read.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>(), old);
    assert!(read.iter().all(|(_, entry)| &*entry.value == b"old"));
    assert!(read.iter().all(|(_, entry)| entry.revision <= pages.revision()));
}

async fn ephemeral_keys_go_with_whoever_put_them((store, again): Fixture) {
    let start = committed(&*store, writes([put("a", "1"), put("e/3", "stays")])).await;
    let at = committed(&*store, writes([ephemeral("e/1", "x"), ephemeral("e/2", "y")])).await;
    let told = store.watch(start).await.unwrap().next().await.unwrap();
    assert_eq!(told.changes, [put("e/1", "x"), put("e/2", "y")].into());
    assert_eq!(contents(&*store, "e/").await.len(), 3);
    store.close().await;

    let store = again.open().await;
    assert_eq!(contents(&*store, "").await.remove("a"), Some("1".to_owned()));
    assert_eq!(contents(&*store, "e/").await, map([("e/3", "stays")]));
    let told = store.watch(at).await.unwrap().next().await.unwrap();
    assert_eq!(told.changes, [delete("e/1"), delete("e/2")].into(), "in one revision");
}

async fn what_is_put_for_good_is_ephemeral_no_longer((store, again): Fixture) {
    let both = [ephemeral("a", "1"), ephemeral("b", "1"), put("c", "1")];
    committed(&*store, writes(both)).await;
    committed(&*store, writes([put("a", "2"), delete("b"), ephemeral("c", "2")])).await;
    committed(&*store, writes([put("b", "3")])).await;
    store.close().await;
    let store = again.open().await;
    assert_eq!(contents(&*store, "a").await, map([("a", "2")]));
    assert_eq!(contents(&*store, "b").await, map([("b", "3")]));
    assert_eq!(contents(&*store, "c").await, map([]));
}

async fn what_changes_nothing_takes_no_revision((store, _again): Fixture) {
    let at = committed(&*store, writes([put("a", "1")])).await;
    let checked = txn([("a", Seen::At(at))], []);
    assert_eq!(commit(&*store, checked).await, Outcome::Committed(at));
    assert_eq!(commit(&*store, writes([delete("nothing")])).await, Outcome::Committed(at));
    assert_eq!(store.commit(vec![]).await.unwrap(), []);
    assert_eq!(Snapshot::of(&*store, "").await.unwrap().revision, at);
}

async fn a_watch_tells_every_revision_whole_and_in_order((store, _again): Fixture) {
    let start = Snapshot::of(&*store, "").await.unwrap().revision;
    store.commit(vec![writes([put("a", "1"), put("b", "1")])]).await.unwrap();
    let batch = vec![
        txn([("c", Seen::At(start))], [put("c", "never")]),
        writes([delete("a"), put("b", "2"), delete("nothing")]),
    ];
    store.commit(batch).await.unwrap();
    let mut watch = store.watch(start).await.unwrap();
    assert_eq!(
        watch.next().await.unwrap(),
        Event { revision: start.next(), changes: [put("a", "1"), put("b", "1")].into() }
    );
    assert_eq!(
        watch.next().await.unwrap(),
        Event { revision: start.next().next(), changes: [delete("a"), put("b", "2")].into() }
    );
}

async fn a_watch_at_the_end_waits_for_the_next_change((store, _again): Fixture) {
    let start = Snapshot::of(&*store, "").await.unwrap().revision;
    let mut watch = store.watch(start).await.unwrap();
    assert!(timeout(Duration::from_millis(20), watch.next()).await.is_err(), "nothing yet");
    let waiting = tokio::spawn(async move { watch.next().await });
    let revision = committed(&*store, writes([put("a", "1")])).await;
    let event = timeout(Duration::from_secs(10), waiting).await.unwrap().unwrap().unwrap();
    assert_eq!(event, Event { revision, changes: [put("a", "1")].into() });
}

async fn a_watch_reads_on_over_many_revisions((store, _again): Fixture) {
    let start = Snapshot::of(&*store, "").await.unwrap().revision;
    let mut watch = store.watch(start).await.unwrap();
    for round in 0..3_u64 {
        for n in 0..LOG / 2 {
            committed(&*store, writes([put("a", &format!("{round}-{n}"))])).await;
        }
        for n in 0..LOG / 2 {
            let event = watch.next().await.unwrap();
            assert_eq!(event.changes, [put("a", &format!("{round}-{n}"))].into());
        }
    }
}

async fn a_watch_from_before_the_log_says_where_the_log_starts((store, again): Fixture) {
    let start = Snapshot::of(&*store, "").await.unwrap().revision;
    let mut slow = store.watch(start).await.unwrap();
    for n in 0..LOG + 5 {
        committed(&*store, writes([put("a", &n.to_string())])).await;
    }
    let newest = Snapshot::of(&*store, "").await.unwrap().revision;
    again.compact(newest).await;

    let Err(WatchError::Compacted { wanted, oldest }) = store.watch(start).await.map(drop) else {
        panic!("the log kept more than it may");
    };
    assert_eq!((wanted, oldest), (start, Revision(newest.0 - LOG)));
    match slow.next().await {
        Err(WatchError::Compacted { .. }) => {}
        // It was sent before.
        Ok(event) => assert_eq!(event.revision, start.next()),
        other => panic!("{other:?}"),
    }
    assert_eq!(store.watch(oldest).await.unwrap().next().await.unwrap().revision, oldest.next());
}

async fn a_watch_from_the_future_says_so((store, _again): Fixture) {
    let newest = Snapshot::of(&*store, "").await.unwrap().revision;
    let ahead = store.watch(newest.next()).await.map(drop);
    assert!(matches!(ahead, Err(WatchError::Ahead { newest: said, .. }) if said == newest));
}

async fn a_closed_store_refuses_and_does_nothing((store, _again): Fixture) {
    store.close().await;
    store.close().await;
    assert!(store.read("").await.is_err());
    let refused = store.commit(vec![writes([put("a", "1")])]).await;
    assert!(matches!(refused, Err(CommitError::NotDone(_))));
    assert!(matches!(store.watch(Revision(1)).await.map(drop), Err(WatchError::Cut(_))));
}

async fn a_commit_that_was_not_done_left_nothing((store, _again): Fixture) {
    let faulty = Faulty::around(store.clone());
    let before = Snapshot::of(&*store, "").await.unwrap();
    for fault in [Fault::NotDone, Fault::LostUntold] {
        faulty.plan(fault);
        assert!(faulty.commit(vec![writes([put("a", "1")])]).await.is_err());
        assert_eq!(Snapshot::of(&*store, "").await.unwrap(), before);
    }
}

async fn a_commit_of_unknown_outcome_can_be_read_afterwards((store, _again): Fixture) {
    let faulty = Faulty::around(store.clone());
    faulty.plan(Fault::DoneUntold);
    let unknown = faulty.commit(vec![txn([("a", Seen::Absent)], [put("a", "1")])]).await;
    assert!(matches!(unknown, Err(CommitError::Unknown(_))));
    assert_eq!(contents(&faulty, "a").await, map([("a", "1")]));
    let again = commit(&faulty, txn([("a", Seen::Absent)], [put("a", "2")])).await;
    assert_eq!(again, Outcome::Conflict("a".to_owned()), "a compare makes repeating safe");
}

async fn a_commit_that_is_done_late_is_fenced_by_its_compares((store, _again): Fixture) {
    let faulty = Faulty::around(store.clone());
    let start = Snapshot::of(&*store, "").await.unwrap().revision;
    let once = |value| txn([("a", Seen::Absent)], [put("a", value)]);
    faulty.plan(Fault::Late(Duration::from_millis(20)));
    let unknown = faulty.commit(vec![once("late")]).await;
    assert!(matches!(unknown, Err(CommitError::Unknown(_))));
    let mut watch = store.watch(start).await.unwrap();
    let event = timeout(Duration::from_secs(10), watch.next()).await.unwrap().unwrap();
    assert_eq!(event.changes, [put("a", "late")].into());
    assert_eq!(commit(&faulty, once("again")).await, Outcome::Conflict("a".to_owned()));
}

async fn a_slow_commit_is_seen_by_nobody_before_it_is_done((store, _again): Fixture) {
    let faulty = Faulty::around(store.clone());
    faulty.plan(Fault::Slow(Duration::from_millis(50)));
    let slow = faulty.clone();
    let task = tokio::spawn(async move { slow.commit(vec![writes([put("a", "1")])]).await });
    tokio::task::yield_now().await;
    assert_eq!(contents(&faulty, "a").await, map([]));
    task.await.unwrap().unwrap();
    assert_eq!(contents(&faulty, "a").await, map([("a", "1")]));
}

async fn a_watch_that_was_cut_goes_on_from_its_last_revision((store, _again): Fixture) {
    let faulty = Faulty::around(store.clone());
    let start = Snapshot::of(&*store, "").await.unwrap().revision;
    for value in ["1", "2"] {
        committed(&faulty, writes([put("a", value)])).await;
    }
    let mut watch = faulty.watch(start).await.unwrap();
    let last = watch.next().await.unwrap().revision;
    faulty.cut_watch();
    assert!(matches!(watch.next().await, Err(WatchError::Cut(_))));
    let mut watch = faulty.watch(last).await.unwrap();
    assert_eq!(watch.next().await.unwrap().changes, [put("a", "2")].into());
}

async fn a_read_that_was_cut_is_an_error_and_no_short_list((store, _again): Fixture) {
    let faulty = Faulty::around(store.clone());
    committed(&faulty, writes([put("a", "1"), put("b", "1"), put("c", "1")])).await;
    faulty.cut_read();
    assert!(Snapshot::of(&faulty, "").await.is_err());
    assert_eq!(contents(&faulty, "a").await, map([("a", "1")]));
}

/// Runs the suite over the stores that `$fixture` makes.
macro_rules! contract {
    ($store:ident, $fixture:expr, [$($test:ident),* $(,)?]) => {
        mod $store {
            $(
                #[tokio::test]
                async fn $test() {
                    let make: super::fixtures::Maker = $fixture();
                    super::$test(make().await).await;
                }
            )*

            #[test]
            fn does_with_any_batches_what_the_model_does() {
                super::model::run_against_the_model($fixture);
            }
        }
    };
}

/// The one list of the suite's tests, for every store.
macro_rules! contracts {
    ($($store:ident: $fixture:expr),* $(,)?) => {
        $(contract!($store, $fixture, [
            a_new_store_has_an_identity_and_nothing_else,
            a_read_gives_what_was_put_under_the_prefix_and_no_more,
            a_value_carries_the_revision_that_put_it,
            a_stale_compare_conflicts_and_changes_nothing,
            members_of_a_batch_stand_beside_each_other,
            a_batch_whose_members_meet_is_refused_whole,
            a_range_is_quiet_until_something_in_it_is_put,
            a_read_is_of_one_revision_whatever_is_written_meanwhile,
            ephemeral_keys_go_with_whoever_put_them,
            what_is_put_for_good_is_ephemeral_no_longer,
            what_changes_nothing_takes_no_revision,
            a_watch_tells_every_revision_whole_and_in_order,
            a_watch_at_the_end_waits_for_the_next_change,
            a_watch_reads_on_over_many_revisions,
            a_watch_from_before_the_log_says_where_the_log_starts,
            a_watch_from_the_future_says_so,
            a_closed_store_refuses_and_does_nothing,
            a_commit_that_was_not_done_left_nothing,
            a_commit_of_unknown_outcome_can_be_read_afterwards,
            a_commit_that_is_done_late_is_fenced_by_its_compares,
            a_slow_commit_is_seen_by_nobody_before_it_is_done,
            a_watch_that_was_cut_goes_on_from_its_last_revision,
            a_read_that_was_cut_is_an_error_and_no_short_list,
        ]);)*
    };
}

contracts! {
    memory: super::fixtures::in_memory,
    embedded: super::fixtures::in_a_file,
    etcd: super::fixtures::in_etcd,
}

//! Edge: what only the store in etcd can meet: members that die, freeze and fill up, others'
//! keys, leases, and who may do what.

mod access;
mod failing;

use std::time::Duration;

use tokio::time::{self, Instant};

use super::server::Cluster;
use super::{Etcd, Options};
use crate::store::{Outcome, Revision, Seen, Snapshot, Store, Txn, Write};

/// How long anything may take before a test fails.
const LIMIT: Duration = Duration::from_secs(30);

impl Cluster {
    /// How a store here is reached, under a prefix.
    pub(crate) fn options(&self, prefix: &str) -> Options {
        Options {
            endpoints: self.urls().iter().map(|url| url.parse().unwrap()).collect(),
            prefix: prefix.parse().unwrap(),
            ca: None,
            identity: None,
            user: None,
            lease: Duration::from_secs(2),
        }
    }

    /// Opens a store.
    pub(crate) async fn store(&self, prefix: &str) -> Etcd {
        let store = Etcd::prepare(&self.options(prefix)).unwrap();
        store.open().await.unwrap();
        store
    }
}

fn put(key: &str, value: &str) -> Txn {
    let write = Write::Put(value.to_owned().into());
    Txn { writes: [(key.to_owned(), write)].into(), ..Txn::default() }
}

/// Puts a key that must not be there.
fn create(key: &str, value: &str) -> Txn {
    Txn { compares: [(key.to_owned(), Seen::Absent)].into(), ..put(key, value) }
}

async fn committed(store: &Etcd, txn: Txn) -> Revision {
    match store.commit(vec![txn]).await.unwrap().remove(0) {
        Outcome::Committed(revision) => revision,
        conflict @ Outcome::Conflict(_) => panic!("{conflict:?}"),
    }
}

async fn keys(store: &Etcd, prefix: &str) -> Vec<String> {
    Snapshot::of(store, prefix).await.unwrap().entries.into_keys().collect()
}

/// Waits until something is so.
async fn until(mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !is_so().await {
        assert!(Instant::now() < deadline, "it does not come to be so");
        time::sleep(Duration::from_millis(20)).await;
    }
}

fn ephemeral(key: &str) -> Txn {
    let writes = [(key.to_owned(), Write::Ephemeral("x".into()))].into();
    Txn { writes, ..Txn::default() }
}

#[tokio::test]
async fn what_is_ephemeral_stays_while_its_controller_does_and_goes_with_it() {
    let cluster = Cluster::start(1);
    let (one, two) = (cluster.store("/limpet").await, cluster.store("/limpet").await);
    let start = committed(&one, ephemeral("meta/one")).await;
    committed(&two, ephemeral("meta/two")).await;
    let mut watch = one.watch(start).await.unwrap();
    assert_eq!(watch.next().await.unwrap().changes.into_keys().collect::<Vec<_>>(), ["meta/two"]);

    // Longer than the lease.
    time::sleep(Duration::from_secs(4)).await;
    assert_eq!(keys(&one, "meta/").await, ["meta/one", "meta/store-id", "meta/two"]);

    // As if it were killed: nobody revokes the lease.
    drop(two);
    let gone = time::timeout(LIMIT, watch.next()).await.unwrap().unwrap();
    assert_eq!(gone.changes, [("meta/two".to_owned(), Write::Delete)].into());
    one.close().await;
    let three = cluster.store("/limpet").await;
    assert_eq!(
        keys(&three, "meta/").await,
        ["meta/store-id"],
        "closing does not wait for the lease"
    );
}

#[tokio::test]
async fn a_lease_that_ended_is_followed_by_another() {
    let cluster = Cluster::start(1);
    let store = cluster.store("/limpet").await;
    committed(&store, ephemeral("meta/one")).await;
    let mut client = cluster.client().await;
    for lease in client.leases().await.unwrap().leases() {
        client.lease_revoke(lease.id()).await.unwrap();
    }
    until(async || keys(&store, "meta/").await == ["meta/store-id"]).await;
    committed(&store, ephemeral("meta/one")).await;
    assert_eq!(keys(&store, "meta/").await, ["meta/one", "meta/store-id"]);
    assert_eq!(client.leases().await.unwrap().leases().len(), 1);
}

#[tokio::test]
async fn others_keys_are_no_news_and_are_left_alone() {
    let cluster = Cluster::start(1);
    let mut client = cluster.client().await;
    let others = ["/limpet/w", "/limpet/v1", "/limpet/v10", "/limpet2/v1/a", "a"];
    for key in others {
        client.put(key, "theirs", None).await.unwrap();
    }
    let store = cluster.store("/limpet").await;
    let other = cluster.store("/limpet2").await;
    let start = committed(&store, put("a", "1")).await;
    let mut watch = store.watch(start).await.unwrap();
    for key in others {
        client.put(key, "theirs again", None).await.unwrap();
    }
    committed(&other, put("a", "2")).await;
    let end = committed(&store, put("b", "1")).await;
    assert!(end.0 > start.next().0, "they move the revision");
    let event = watch.next().await.unwrap();
    assert_eq!((event.revision, event.changes.len()), (end, 1));
    assert_eq!(keys(&store, "").await, ["a", "b", "meta/store-id"]);
    let left = client.get("/limpet/v1", None).await.unwrap();
    assert_eq!(left.kvs()[0].value(), b"theirs again");
}

#[tokio::test]
async fn a_read_in_many_pages_is_of_one_revision() {
    let cluster = Cluster::start(1);
    let store = cluster.store("/limpet").await;
    let mut many = Txn::default();
    for n in 0..1000 {
        many.writes.insert(format!("k/{n:04}"), Write::Put(n.to_string().into()));
    }
    committed(&store, many).await;
    let mut pages = store.pages("k/").await.unwrap().with_limit(64);
    let first = super::super::Pages::next(&mut pages).await.unwrap().unwrap();
    committed(&store, put("k/0999", "changed")).await;
    committed(&store, put("k/1000", "new")).await;
    let mut read = first;
    while let Some(page) = super::super::Pages::next(&mut pages).await.unwrap() {
        assert!(page.len() <= 64);
        read.extend(page);
    }
    assert_eq!(read.len(), 1000);
    assert_eq!(read[999].1.value, "999");
    assert!(read.is_sorted_by_key(|(key, _)| key.clone()));
}

#[tokio::test]
async fn values_too_large_for_one_answer_are_read_in_smaller_pages() {
    let cluster = Cluster::start(1);
    let store = cluster.store("/limpet").await;
    for n in 0..40 {
        let value = Write::Put(vec![b'x'; 1 << 20].into());
        let txn = Txn { writes: [(format!("k/{n:02}"), value)].into(), ..Txn::default() };
        committed(&store, txn).await;
    }
    let read = Snapshot::of(&store, "k/").await.unwrap();
    assert_eq!(read.entries.len(), 40);
    // A watch is sent all of it as well, and in parts.
    let first = read.entries.values().map(|entry| entry.revision).min().unwrap();
    let mut watch = store.watch(Revision(first.0 - 1)).await.unwrap();
    for entry in read.entries.values() {
        assert_eq!(watch.next().await.unwrap().revision, entry.revision);
    }
}

#[tokio::test]
async fn a_revision_too_large_for_one_message_is_told_whole() {
    let cluster = Cluster::start(1);
    let store = cluster.store("/limpet").await;
    let start = committed(&store, put("a", "1")).await;
    // A request may have 1.5 MiB, and a message to a watcher 2 MiB: that is five values, and no
    // number of whole revisions.
    let mut client = cluster.client().await;
    let value = vec![b'x'; 400 << 10];
    for n in 0..20 {
        let puts: Vec<_> = (0..3)
            .map(|m| etcd_client::TxnOp::put(format!("/limpet/v1/{n}/{m}"), value.clone(), None))
            .collect();
        client.txn(etcd_client::Txn::new().and_then(puts)).await.unwrap();
    }
    let mut watch = store.watch(start).await.unwrap();
    for n in 1..=20 {
        let event = watch.next().await.unwrap();
        assert_eq!((event.revision, event.changes.len()), (Revision(start.0 + n), 3));
    }
}

#[tokio::test]
async fn a_read_that_compaction_overtakes_is_an_error_and_no_short_list() {
    let cluster = Cluster::start(1);
    let store = cluster.store("/limpet").await;
    for n in 0..10 {
        committed(&store, put(&format!("k/{n}"), "1")).await;
    }
    let mut pages = store.pages("").await.unwrap().with_limit(3);
    super::super::Pages::next(&mut pages).await.unwrap();
    let newest = committed(&store, put("k/9", "2")).await;
    let at = i64::try_from(newest.0).unwrap();
    cluster.client().await.compact(at, None).await.unwrap();
    let error = super::super::Pages::next(&mut pages).await.unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("compacted"), "{cause}");
    assert_eq!(keys(&store, "k/").await.len(), 10, "reading again helps");
}

#[tokio::test]
async fn a_batch_larger_than_etcd_takes_at_once_is_sent_in_parts() {
    let cluster = Cluster::start(1);
    let store = cluster.store("/limpet").await;
    committed(&store, put("x/7", "1")).await;
    let batch: Vec<Txn> = (0..300).map(|n| create(&format!("x/{n}"), "2")).collect();
    let outcomes = store.commit(batch).await.unwrap();
    let mut last = Revision(0);
    for (n, outcome) in outcomes.iter().enumerate() {
        match outcome {
            Outcome::Committed(revision) => {
                assert!(*revision >= last, "revisions do not fall");
                last = *revision;
            }
            Outcome::Conflict(key) => assert_eq!((n, key.as_str()), (7, "x/7")),
        }
    }
    assert_eq!(keys(&store, "x/").await.len(), 300);
    let mut large = Txn::default();
    for n in 0..3000 {
        large.writes.insert(format!("y/{n}"), Write::Put("1".into()));
    }
    committed(&store, large).await;
    assert_eq!(keys(&store, "y/").await.len(), 3000);
}

#[tokio::test]
async fn a_store_that_was_replaced_is_not_written_to_until_it_is_read() {
    let cluster = Cluster::start(1);
    let store = cluster.store("/limpet").await;
    committed(&store, put("a", "1")).await;
    let mut client = cluster.client().await;
    client.put("/limpet/v1/meta/store-id", "\"another\"", None).await.unwrap();
    let conflict = Outcome::Conflict(crate::keys::STORE_ID.to_owned());
    let refused = store.commit(vec![put("b", "1"), Txn::default()]).await.unwrap();
    assert_eq!(refused, [conflict.clone(), conflict]);
    keys(&store, "a").await;
    assert!(matches!(store.commit(vec![put("b", "1")]).await.unwrap()[..], [Outcome::Conflict(_)]));
    assert_eq!(keys(&store, "").await, ["a", "meta/store-id"]);
    committed(&store, put("b", "1")).await;
    // Whoever gives it another identity himself knows it.
    committed(&store, put(crate::keys::STORE_ID, "\"mine\"")).await;
    committed(&store, put("c", "1")).await;
}

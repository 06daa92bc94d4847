//! Edge: members that die, stand still or fill up, and answers that are lost.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

use super::*;
use crate::store::{CommitError, WatchError};

/// Commits one after another until told to stop; returns what was acknowledged.
async fn write_on(store: Arc<Etcd>, stop: Arc<AtomicBool>, done: Arc<AtomicUsize>) -> Vec<String> {
    let mut acknowledged = Vec::new();
    let mut n = 0;
    while !stop.load(Ordering::Relaxed) {
        let key = format!("w/{n:05}");
        n += 1;
        match store.commit(vec![create(&key, "1")]).await {
            Ok(outcomes) => {
                assert!(matches!(outcomes[..], [Outcome::Committed(_)]), "{outcomes:?}");
                acknowledged.push(key);
                done.fetch_add(1, Ordering::Relaxed);
            }
            Err(CommitError::NotDone(_)) => {
                let found = Snapshot::of(&*store, &key).await;
                assert!(found.is_err() || found.unwrap().entries.is_empty(), "it was done");
            }
            Err(CommitError::Unknown(_)) => {}
        }
    }
    acknowledged
}

/// Follows a watch over its cuts; returns every key it told of, up to one.
async fn follow_to(store: Arc<Etcd>, start: Revision, last: &str) -> Vec<String> {
    let mut told = Vec::new();
    let mut at = start;
    loop {
        let Ok(mut watch) = store.watch(at).await else { continue };
        loop {
            match watch.next().await {
                Ok(event) => {
                    assert!(event.revision > at);
                    at = event.revision;
                    told.extend(event.changes.into_keys());
                    if told.last().is_some_and(|key| key == last) {
                        return told;
                    }
                }
                Err(WatchError::Cut(_)) => break,
                Err(error) => panic!("{error:?}"),
            }
        }
    }
}

/// A leader goes while there is a lot to do: nothing acknowledged is lost, everything is told of,
/// and it goes on.
async fn survives(
    go: impl AsyncFnOnce(&mut Cluster, usize),
    back: impl FnOnce(&mut Cluster, usize),
) {
    let mut cluster = Cluster::start(3);
    let store = Arc::new(cluster.store("/limpet").await);
    let start = committed(&store, put("a", "1")).await;
    let following = tokio::spawn(follow_to(Arc::clone(&store), start, "z"));
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let writing = tokio::spawn(write_on(Arc::clone(&store), Arc::clone(&stop), Arc::clone(&done)));
    until(async || done.load(Ordering::Relaxed) > 20).await;

    let leader = cluster.leader().await;
    go(&mut cluster, leader).await;
    let before = done.load(Ordering::Relaxed);
    until(async || done.load(Ordering::Relaxed) > before + 20).await;
    back(&mut cluster, leader);
    let before = done.load(Ordering::Relaxed);
    until(async || done.load(Ordering::Relaxed) > before + 20).await;

    stop.store(true, Ordering::Relaxed);
    let acknowledged = writing.await.unwrap();
    let there: BTreeSet<String> = keys(&store, "w/").await.into_iter().collect();
    for key in &acknowledged {
        assert!(there.contains(key), "{key} was acknowledged and is lost");
    }
    // What was sent and is still under way comes before this or never.
    committed(&store, put("z", "1")).await;
    let told = following.await.unwrap();
    let told_once: BTreeSet<String> = told.iter().cloned().collect();
    assert_eq!(told.len(), told_once.len(), "nothing is told twice");
    let there: BTreeSet<String> = keys(&store, "w/").await.into_iter().collect();
    let missed: Vec<_> = there.difference(&told_once).collect();
    assert!(missed.is_empty(), "nobody was told of {missed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_killed_takes_nothing_with_it() {
    survives(async |cluster, leader| cluster.kill(leader), Cluster::restart).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_stands_still_is_left() {
    survives(
        async |cluster, leader| cluster.freeze(leader),
        |cluster, leader| cluster.thaw(leader),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_nothing_is_done_and_afterwards_it_goes_on() {
    let mut cluster = Cluster::start(3);
    let store = cluster.store("/limpet").await;
    committed(&store, put("a", "1")).await;
    let leader = cluster.leader().await;
    let others: Vec<usize> = (0..3).filter(|n| *n != leader).collect();
    for n in &others {
        cluster.kill(*n);
    }
    until(async || store.commit(vec![put("b", "1")]).await.is_err()).await;
    let refused = store.commit(vec![put("c", "1")]).await;
    assert!(refused.is_err());
    for n in others {
        cluster.restart(n);
    }
    until(async || store.commit(vec![put("d", "1")]).await.is_ok()).await;
    assert!(keys(&store, "").await.contains(&"d".to_owned()));
}

#[tokio::test]
async fn a_member_that_stands_still_does_not_leave_a_watch_waiting() {
    let cluster = Cluster::start(1);
    let store = cluster.store("/limpet").await;
    let start = committed(&store, put("a", "1")).await;
    let mut watch = store.watch(start).await.unwrap();
    cluster.freeze(0);
    let cut = time::timeout(LIMIT, watch.next()).await.unwrap();
    assert!(matches!(cut, Err(WatchError::Cut(_))), "{cut:?}");
    cluster.thaw(0);
    let mut watch = store.watch(start).await.unwrap();
    let end = committed(&store, put("b", "1")).await;
    assert_eq!(watch.next().await.unwrap().revision, end);
}

#[tokio::test]
async fn a_quiet_watch_is_not_cut() {
    let cluster = Cluster::start(1);
    let store = cluster.store("/limpet").await;
    let start = committed(&store, put("a", "1")).await;
    let mut watch = store.watch(start).await.unwrap();
    // Longer than a connection may be silent, and than etcd bears being pinged too often.
    assert!(time::timeout(Duration::from_secs(6), watch.next()).await.is_err());
    let end = committed(&store, put("b", "1")).await;
    assert_eq!(watch.next().await.unwrap().revision, end);
}

#[tokio::test]
async fn a_full_etcd_says_so_and_does_nothing() {
    let flags = ["--quota-backend-bytes".to_owned(), (2 << 20).to_string()];
    let cluster = Cluster::start_with(1, "http", |_| flags.to_vec());
    let store = cluster.store("/limpet").await;
    let large = || {
        let value = Write::Put(vec![b'x'; 512 << 10].into());
        Txn { writes: [("large".to_owned(), value)].into(), ..Txn::default() }
    };
    let mut refused = None;
    until(async || {
        refused = store.commit(vec![large()]).await.err();
        refused.is_some()
    })
    .await;
    let Some(CommitError::NotDone(cause)) = refused else { panic!("{refused:?}") };
    assert!(cause.to_string().contains("is full"), "{cause}");
    assert!(cause.to_string().contains("alarm disarm"), "{cause}");
    let refused = store.commit(vec![put("small", "1")]).await;
    assert!(matches!(refused, Err(CommitError::NotDone(_))), "{refused:?}");
    let writes = [("large".to_owned(), Write::Delete)].into();
    committed(&store, Txn { writes, ..Txn::default() }).await;
    assert!(!keys(&store, "").await.contains(&"small".to_owned()));
}

/// A way to etcd that passes everything on, until it is told to swallow the answers.
struct Proxy {
    address: SocketAddr,
    swallows: Arc<AtomicBool>,
    swallowed: Arc<AtomicUsize>,
    _task: AbortOnDropHandle<()>,
}

impl Proxy {
    async fn to(url: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (swallows, swallowed) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let state = (Arc::clone(&swallows), Arc::clone(&swallowed));
        let upstream = url.trim_start_matches("http://").to_owned();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(&upstream).await else { continue };
                tokio::spawn(pass(client, server, state.clone()));
            }
        });
        Self { address, swallows, swallowed, _task: AbortOnDropHandle::new(task) }
    }
}

/// Passes on in both directions; the first answer that is swallowed ends the connection.
async fn pass(
    client: TcpStream,
    server: TcpStream,
    (swallows, swallowed): (Arc<AtomicBool>, Arc<AtomicUsize>),
) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let asks = tokio::spawn(async move {
        let _ = tokio::io::copy(&mut from_client, &mut to_server).await;
    });
    let mut buffer = vec![0; 1 << 16];
    while let Ok(length @ 1..) = from_server.read(&mut buffer).await {
        // Answers of etcd are longer than what only keeps the connection.
        if swallows.load(Ordering::Relaxed) && length > 60 {
            swallows.store(false, Ordering::Relaxed);
            swallowed.fetch_add(1, Ordering::Relaxed);
            break;
        }
        if to_client.write_all(&buffer[..length]).await.is_err() {
            break;
        }
    }
    asks.abort();
}

#[tokio::test]
async fn an_answer_that_is_lost_is_an_unknown_outcome_and_the_commit_is_not_repeated() {
    let cluster = Cluster::start(1);
    let proxy = Proxy::to(cluster.urls().remove(0)).await;
    let mut options = cluster.options("/limpet");
    options.endpoints = vec![format!("http://{}", proxy.address).parse().unwrap()];
    let store = Etcd::prepare(&options).unwrap();
    store.open().await.unwrap();
    let before = committed(&store, put("a", "1")).await;

    proxy.swallows.store(true, Ordering::Relaxed);
    let unknown = store.commit(vec![create("b", "1")]).await;
    assert!(matches!(unknown, Err(CommitError::Unknown(_))), "{unknown:?}");
    assert_eq!(proxy.swallowed.load(Ordering::Relaxed), 1);
    let found = Snapshot::of(&store, "").await.unwrap();
    assert_eq!(found.entries["b"].revision, before.next(), "it was done, and once");
    assert_eq!(found.revision, before.next());
    assert_eq!(
        store.commit(vec![create("b", "2")]).await.unwrap(),
        [Outcome::Conflict("b".to_owned())]
    );
}

#[tokio::test]
async fn a_member_that_is_not_there_has_done_nothing() {
    let mut cluster = Cluster::start(1);
    let store = cluster.store("/limpet").await;
    committed(&store, put("a", "1")).await;
    cluster.kill(0);
    // The first may have been under way when the connection was found to be gone.
    let _ = store.commit(vec![put("b", "1")]).await;
    let refused = store.commit(vec![put("b", "1")]).await;
    let Err(CommitError::NotDone(cause)) = refused else { panic!("{refused:?}") };
    assert!(cause.to_string().contains("cannot connect to etcd at"), "{cause}");
    cluster.restart(0);
    committed(&store, put("c", "1")).await;
}

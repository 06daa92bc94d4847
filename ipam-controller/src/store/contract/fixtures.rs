//! Edge: fresh stores of every kind.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, LocalBoxFuture, ready};

use super::super::etcd::server::Cluster;
use super::super::memory::Memory;
use super::super::{Revision, Store};
use super::LOG;

/// How to have a store again; where it lies stays as long as that.
pub(super) struct Again {
    open: Box<dyn Fn() -> BoxFuture<'static, Arc<dyn Store>>>,
    etcd: Option<Arc<Cluster>>,
}

/// A fresh store, and how to have it again.
pub(super) type Fixture = (Arc<dyn Store>, Again);

/// Makes fresh stores, one beside the other.
pub(super) type Maker = Box<dyn Fn() -> LocalBoxFuture<'static, Fixture>>;

impl Again {
    /// Opens the same store as another controller would, or the same one after a restart.
    pub(super) fn open(&self) -> BoxFuture<'static, Arc<dyn Store>> {
        (self.open)()
    }

    /// Lets the change log keep no more than it should, where the store leaves that to others.
    pub(super) async fn compact(&self, newest: Revision) {
        if let Some(cluster) = &self.etcd {
            let at = i64::try_from(newest.0 - LOG).unwrap();
            cluster.client().await.compact(at, None).await.unwrap();
        }
    }
}

pub(super) fn in_memory() -> Maker {
    Box::new(|| {
        let memory = Memory::new(LOG);
        let other = memory.clone();
        let open = move || {
            let store: Arc<dyn Store> = Arc::new(other.another());
            ready(store).boxed()
        };
        let store: Arc<dyn Store> = Arc::new(memory);
        ready((store, Again { open: Box::new(open), etcd: None })).boxed_local()
    })
}

pub(super) fn in_a_file() -> Maker {
    Box::new(|| {
        let dir = tempfile::tempdir().unwrap();
        let open = move || {
            let options = super::super::Options {
                path: dir.path().join("store.redb"),
                cache_bytes: 1 << 20,
                log_revisions: LOG,
            };
            let store: Arc<dyn Store> = Arc::new(super::super::Embedded::open(&options).unwrap());
            store
        };
        let store = open();
        let open = move || ready(open()).boxed();
        ready((store, Again { open: Box::new(open), etcd: None })).boxed_local()
    })
}

/// Each has a prefix of its own.
pub(super) fn in_etcd() -> Maker {
    let cluster = Arc::new(Cluster::start(1));
    let count = AtomicUsize::new(0);
    Box::new(move || {
        let prefix = format!("/store-{}", count.fetch_add(1, Ordering::Relaxed));
        let etcd = Some(Arc::clone(&cluster));
        let cluster = Arc::clone(&cluster);
        let open: Box<dyn Fn() -> BoxFuture<'static, Arc<dyn Store>>> = Box::new(move || {
            let (cluster, prefix) = (Arc::clone(&cluster), prefix.clone());
            async move {
                let store: Arc<dyn Store> = Arc::new(cluster.store(&prefix).await);
                store
            }
            .boxed()
        });
        let again = Again { open, etcd };
        async move { (again.open().await, again) }.boxed_local()
    })
}

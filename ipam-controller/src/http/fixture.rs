//! Pure: what the handlers share, over a store in memory that fails when it is told to, for tests.

use std::sync::{Arc, Mutex};

use limpet_api::host::SessionRequest;
use limpet_net_types::Token;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{App, now};
use crate::book;
use crate::leases::Leases;
use crate::store::Store;
use crate::store::faulty::Faulty;
use crate::store::memory::Memory;

/// An app with an empty store, and what lets the store fail.
pub(super) async fn app() -> (App, Faulty) {
    let faults = Faulty::around(Arc::new(Memory::new(1000)));
    let store: Arc<dyn Store> = Arc::new(faults.clone());
    let (book, keeper) = book::open(Arc::clone(&store)).await.unwrap();
    let stop = CancellationToken::new();
    tokio::spawn(keeper.run(stop.clone()));
    let leases = Arc::new(Mutex::new(Leases::new(Token::from_bits(77), now())));
    let (takeovers, tasks) = (Arc::default(), TaskTracker::new());
    (App { book, store, leases, takeovers, stop, tasks }, faults)
}

/// What the agent of a host at 192.0.2.`last` joins with.
pub(super) fn joining(last: u8) -> SessionRequest {
    let token = Token::from_bits(last.into());
    let underlay = [192, 0, 2, last].into();
    SessionRequest {
        install: token,
        boot: token,
        underlay,
        addresses: vec![underlay],
        on_link: [].into(),
        roles: [].into(),
        external: [].into(),
        version: "1".to_owned(),
    }
}

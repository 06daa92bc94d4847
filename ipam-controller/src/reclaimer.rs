//! Edge: carries out what [`crate::reclaim`] finds due, once in each period of fleet time that this
//! controller begins.

use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::join_all;
use limpet_api::After;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::book::Book;
use crate::http::now;
use crate::leases::Leases;
use crate::reclaim::{self, Limits};

/// Clears away until `stop`, or until the book is closed.
pub(crate) async fn run(
    book: Book,
    leases: Arc<Mutex<Leases>>,
    limits: Limits,
    stop: CancellationToken,
) {
    let mut periods = book.periods();
    // What is not cleared away now is by whoever begins the next period.
    let clearing = async {
        while periods.changed().await.is_ok() {
            let mut limits = limits;
            if !leases.lock().unwrap_or_else(PoisonError::into_inner).may_judge(now()) {
                // Who has not listened does not know who is silent.
                limits.silent_hosts_end_after = After::Never;
            }
            clear(&book, limits).await;
        }
    };
    let _ = stop.run_until_cancelled(clearing).await;
}

async fn clear(book: &Book, limits: Limits) {
    let Ok(due) = book.read(move |state| reclaim::due(state, &limits)).await else { return };
    if due.is_empty() {
        return;
    }
    let count = due.len();
    let done = join_all(due.into_iter().map(|chore| book.decide(move |state| chore(state)))).await;
    let failed: Vec<_> = done.into_iter().filter_map(Result::err).collect();
    if let Some(error) = failed.first() {
        warn!(%error, left = failed.len(), "not everything was cleared away");
    } else {
        debug!(count, "cleared away");
    }
}

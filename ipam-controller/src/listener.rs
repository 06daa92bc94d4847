//! Edge: looks every second who answers for which host, and writes what comes of it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use limpet_net_types::{HostName, Token};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::book::Book;
use crate::draft::{Decision, Draft};
use crate::http::now;
use crate::leases::{Crowd, Leases, Look};
use crate::rules::sessions::Liveness;
use crate::rules::silence;
use crate::state::State;

/// How often is looked.
const LOOK: Duration = Duration::from_secs(1);

/// Looks until `stop`.
pub(crate) async fn run(book: Book, leases: Arc<Mutex<Leases>>, stop: CancellationToken) {
    // What is not written now is written by the next look, or by another controller's.
    let listening = async {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut crowd = None;
        loop {
            looks.tick().await;
            let Some(look) = look(&book, &leases).await else { continue };
            warn_of(&mut crowd, look.crowd);
            write(&book, &leases, look).await;
        }
    };
    let _ = stop.run_until_cancelled(listening).await;
}

/// Looks at what is in the store now: a decision that writes nothing is told only if it was made on
/// that.
async fn look(book: &Book, leases: &Arc<Mutex<Leases>>) -> Option<Look> {
    let leases = Arc::clone(leases);
    let decide = move |state: &State| {
        let look = leases.lock().unwrap_or_else(PoisonError::into_inner).look(state, now());
        Decision { draft: Draft::default(), answer: Ok(look) }
    };
    match book.decide(decide).await {
        Ok((look, _)) => Some(look),
        Err(error) => {
            debug!(%error, "cannot look which hosts are silent");
            None
        }
    }
}

async fn write(book: &Book, leases: &Arc<Mutex<Leases>>, look: Look) {
    let Look { unheard, silent, .. } = look;
    join_all(unheard.into_iter().map(|host| unhear(book, leases, host))).await;
    join_all(silent.into_iter().map(|(host, session)| mark(book, leases, host, session))).await;
}

async fn unhear(book: &Book, leases: &Arc<Mutex<Leases>>, host: HostName) {
    let (name, leases) = (host.clone(), Arc::clone(leases));
    let decide = move |state: &State| {
        let leases = leases.lock().unwrap_or_else(PoisonError::into_inner);
        if leases.hears(&name, now()) {
            return Decision { draft: Draft::default(), answer: Ok(()) };
        }
        silence::unhear(state, &name, leases.replica())
    };
    if let Err(error) = book.decide(decide).await {
        debug!(%error, %host, "a host that is not heard is still answered for");
    }
}

async fn mark(book: &Book, leases: &Arc<Mutex<Leases>>, host: HostName, session: Token) {
    let (name, leases) = (host.clone(), Arc::clone(leases));
    let decide = move |state: &State| {
        let leases = leases.lock().unwrap_or_else(PoisonError::into_inner);
        if leases.liveness(state, &name, now()) == Liveness::Alive {
            return Decision { draft: Draft::default(), answer: Ok(false) };
        }
        silence::mark(state, &name, session)
    };
    match book.decide(decide).await {
        Ok((true, _)) => warn!(%host, "host is silent: no controller hears its agent"),
        Ok((false, _)) => {}
        Err(error) => debug!(%error, %host, "a host's silence is not written down yet"),
    }
}

/// Says once of each crowd that nobody of it is taken for silent.
fn warn_of(before: &mut Option<Crowd>, crowd: Option<Crowd>) {
    if let Some(Crowd { going, joined }) = crowd.filter(|_| crowd != *before) {
        warn!(
            going,
            joined,
            "more than a fifth of the hosts seem silent at once: none is taken for silent until \
             some are heard again, or an operator removes them"
        );
    }
    *before = crowd;
}

//! Edge: several servers of which any can answer: one of them is asked until it fails, and then the next one.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::de::{DeserializeOwned, IgnoredAny};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::{Call, ClientError, Connection, Endpoint, Lines, Method};
use crate::paths;

/// How many idle connections a client keeps.
const MOST_IDLE: usize = 8;

/// How long a connection may take to open where there is another server to ask: one lost packet more than it should.
const OPENING: Duration = Duration::from_millis(1500);

/// How long a request may be without an answer before it is looked whether its server answers anything; and how long
/// it has for that. A request may take long with reason; a process that is stopped takes connections and says nothing.
const PROBE: Duration = Duration::from_secs(1);

/// Servers of which any can answer, and connections kept open to them.
///
/// Requests go to the one that answered last. Where there are several, a request that its server does not answer, or
/// that it says it cannot serve just now, is made again at the next one, at most once at each.
pub struct Client {
    fleet: Arc<Fleet>,
    limit: Duration,
}

struct Fleet {
    endpoints: Vec<Endpoint>,
    /// Which one is asked.
    chosen: watch::Sender<usize>,
    idle: Mutex<Vec<(usize, Connection)>>,
}

/// What has come of a request that more than one server may have been asked.
#[derive(Debug)]
pub struct Attempted<A> {
    /// The last answer; of errors the one of which most may follow.
    pub answer: Result<A, ClientError>,
    /// Whether a server that did not answer was asked before, which may have done it, or do it yet.
    pub unsure: bool,
}

impl Client {
    /// A client of `endpoints`, the first of which is asked first. One server has `limit` for an answer; all together
    /// have twice that.
    #[must_use]
    pub fn new(endpoints: Vec<Endpoint>, limit: Duration) -> Self {
        let fleet = Fleet { endpoints, chosen: watch::Sender::new(0), idle: Mutex::default() };
        Self { fleet: Arc::new(fleet), limit }
    }

    /// The same servers and connections with another limit: where one finds that a server fails, both leave it.
    #[must_use]
    pub fn with_limit(&self, limit: Duration) -> Self {
        Self { fleet: Arc::clone(&self.fleet), limit }
    }

    /// Keeps no connection that is open and idle: for a machine whose own address has changed. Nobody answers on those of
    /// the old one, and nobody says so.
    pub fn reconnect(&self) {
        self.fleet.idle().clear();
    }

    /// Where it asks.
    #[must_use]
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.fleet.endpoints
    }

    /// The one that is asked now, if there is one.
    #[must_use]
    pub fn endpoint(&self) -> Option<&Endpoint> {
        self.fleet.endpoints.get(*self.fleet.chosen.borrow())
    }

    /// Asks, for what may be asked twice without harm.
    ///
    /// # Errors
    ///
    /// As [`Connection::call`]. With several servers the outcome of a request may be unknown even where the last of
    /// them refuses it: [`Client::attempt`] tells.
    pub async fn call<A: DeserializeOwned>(&self, request: &Call) -> Result<A, ClientError> {
        self.attempt(request).await.answer
    }

    /// Asks, and tells whether a server that did not answer may have done it too.
    pub async fn attempt<A: DeserializeOwned>(&self, request: &Call) -> Attempted<A> {
        let mut round = self.round();
        while let Some((place, limit)) = round.next(&self.fleet) {
            match self.fleet.ask(&place, request, limit).await {
                Err(error) if round.goes_on_after(&error) => round.failed(&place, error),
                answer => return Attempted { answer, unsure: round.unsure },
            }
        }
        let unsure = round.unsure;
        Attempted { answer: Err(round.error()), unsure }
    }

    /// Asks for a stream of lines on a connection of its own. It ends in [`ClientError::Left`] when its server is left
    /// because it does not answer other requests.
    ///
    /// # Errors
    ///
    /// As [`Connection::lines`].
    pub async fn lines(&self, request: &Call) -> Result<Lines, ClientError> {
        let mut round = self.round();
        while let Some((place, limit)) = round.next(&self.fleet) {
            let asking = async {
                let connection = self.fleet.open(&place, limit).await?;
                connection.lines(request, limit).await
            };
            match asking.await {
                Ok(mut lines) => {
                    lines.place = Some(place);
                    return Ok(lines);
                }
                Err(error) if round.goes_on_after(&error) => round.failed(&place, error),
                Err(error) => return Err(error),
            }
        }
        Err(round.error())
    }

    fn round(&self) -> Round {
        let count = self.fleet.endpoints.len();
        let whole = if count > 1 { self.limit * 2 } else { self.limit };
        Round {
            first: *self.fleet.chosen.borrow(),
            asked: 0,
            count,
            limit: self.limit,
            deadline: Instant::now() + whole,
            unsure: false,
            worst: None,
        }
    }
}

/// One request's way through the servers.
struct Round {
    first: usize,
    asked: usize,
    count: usize,
    limit: Duration,
    deadline: Instant,
    unsure: bool,
    worst: Option<ClientError>,
}

impl Round {
    /// The next server to ask, and how long it has.
    fn next(&mut self, fleet: &Arc<Fleet>) -> Option<(Place, Duration)> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if self.asked >= self.count || (self.asked > 0 && left.is_zero()) {
            return None;
        }
        let at = (self.first + self.asked) % self.count;
        self.asked += 1;
        let chosen = fleet.chosen.subscribe();
        // The last one may use what the others have left.
        let limit = if self.count > 1 { self.limit.min(left) } else { self.limit };
        Some((Place { fleet: Arc::clone(fleet), at, chosen }, limit))
    }

    fn goes_on_after(&self, error: &ClientError) -> bool {
        self.count > 1 && error.is_of_server()
    }

    fn failed(&mut self, place: &Place, error: ClientError) {
        place.leave();
        self.unsure |= error.outcome_unknown();
        let weight = |error: &ClientError| match error {
            error if error.outcome_unknown() => 2,
            ClientError::Refused(_) => 1,
            _ => 0,
        };
        if self.worst.as_ref().is_none_or(|worst| weight(worst) <= weight(&error)) {
            self.worst = Some(error);
        }
    }

    fn error(self) -> ClientError {
        self.worst.unwrap_or_else(|| ClientError::Connect {
            endpoint: Endpoint::Http { authority: "(none)".to_owned() },
            source: io::Error::new(io::ErrorKind::InvalidInput, "no server was named"),
        })
    }
}

/// One of several servers.
pub(super) struct Place {
    fleet: Arc<Fleet>,
    at: usize,
    chosen: watch::Receiver<usize>,
}

impl Place {
    /// Asks the next one from now on, unless another request has seen to that already.
    pub(super) fn leave(&self) {
        let count = self.fleet.endpoints.len();
        self.fleet.chosen.send_if_modified(|chosen| {
            let this = *chosen == self.at && count > 1;
            if this {
                *chosen = (self.at + 1) % count;
            }
            this
        });
        self.fleet.idle().retain(|(at, _)| *at != self.at);
    }

    /// Waits until another server is asked than this one.
    pub(super) async fn left(&mut self) {
        let at = self.at;
        // It ends with an error only with the client, whose streams may go on.
        if self.chosen.wait_for(|chosen| *chosen != at).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Fleet {
    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<(usize, Connection)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn endpoint(&self, at: usize) -> &Endpoint {
        &self.endpoints[at]
    }

    /// Asks one server, which is also left when it answers nothing at all.
    async fn ask<A: DeserializeOwned>(
        &self,
        place: &Place,
        request: &Call,
        limit: Duration,
    ) -> Result<A, ClientError> {
        let asking = async {
            let mut connection = self.connection(place, limit).await?;
            let answer = connection.call(request, limit).await;
            if matches!(answer, Ok(_) | Err(ClientError::Refused(_))) && !connection.is_closed() {
                let mut idle = self.idle();
                if idle.len() < MOST_IDLE {
                    idle.push((place.at, connection));
                }
            }
            answer
        };
        if self.endpoints.len() < 2 {
            return asking.await;
        }
        let endpoint = self.endpoint(place.at);
        // Whichever is dropped has nothing that another request needs.
        tokio::select! {
            answer = asking => answer,
            () = mute(endpoint) => {
                Err(ClientError::TimedOut { endpoint: endpoint.clone(), limit: PROBE * 2 })
            }
        }
    }

    async fn connection(&self, place: &Place, limit: Duration) -> Result<Connection, ClientError> {
        let kept = || {
            let mut idle = self.idle();
            let at = idle.iter().rposition(|(at, _)| *at == place.at)?;
            Some(idle.swap_remove(at).1)
        };
        while let Some(connection) = kept() {
            if !connection.is_closed() {
                return Ok(connection);
            }
        }
        self.open(place, limit).await
    }

    async fn open(&self, place: &Place, limit: Duration) -> Result<Connection, ClientError> {
        let limit = if self.endpoints.len() > 1 { limit.min(OPENING) } else { limit };
        Connection::open(self.endpoint(place.at), limit).await
    }
}

/// Waits until a server answers nothing, not even whether it runs.
async fn mute(endpoint: &Endpoint) {
    let health = Call::new(Method::GET, paths::HEALTH);
    loop {
        sleep(PROBE).await;
        let asking = async {
            let mut connection = Connection::open(endpoint, PROBE).await?;
            connection.call::<IgnoredAny>(&health, PROBE).await
        };
        let answer = tokio::time::timeout(PROBE, asking).await;
        // Any answer is one, whatever it says.
        if !matches!(answer, Ok(Ok(_) | Err(ClientError::Refused(_) | ClientError::Garbage { .. })))
        {
            return;
        }
    }
}

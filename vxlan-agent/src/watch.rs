//! Edge: joins the host to the cluster, says that it is alive, and takes in what the controller tells.
//!
//! Nothing here stops the kernel from being what it was: while no controller answers, all goes on with what is known.

use std::sync::Arc;
use std::time::Duration;

use limpet_api::client::{Call, ClientError, Method};
use limpet_api::host::{HEARTBEAT_SECONDS, Heartbeat, Session, WatchEvent, WatchLine, WatchQuery};
use limpet_api::{ErrorCode, paths};
use limpet_net_types::Token;
use tokio::time::{Instant, interval_at, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::agent::{Agent, Patience, sentence};
use crate::view::{News, ViewError};

/// How long a watch may say nothing: three of the controller's heartbeats.
const SILENCE: Duration = Duration::from_secs(3 * HEARTBEAT_SECONDS);

/// How long to wait for the host's addresses before looking again.
const NO_REACH: Duration = Duration::from_secs(5);

/// Pauses that grow: a controller that comes back is found within a second, and not stormed.
struct Pause(Duration);

impl Pause {
    const SHORTEST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(2);

    fn new() -> Self {
        Self(Self::SHORTEST)
    }

    async fn take(&mut self) {
        sleep(self.0).await;
        self.0 = (self.0 * 2).min(Self::LONGEST);
    }
}

/// Why a session is to be opened anew.
#[derive(Debug)]
enum Ended {
    /// The controller says that it is over.
    Refused(ClientError),
    /// The agent itself wants another one.
    Asked,
}

/// Joins and stays joined until `stop`.
pub(crate) async fn run(agent: Arc<Agent>, stop: CancellationToken) {
    // Dropping a request is safe: a session that was opened and not heard of is replaced by the next one.
    let _ = stop.run_until_cancelled(stay(&agent)).await;
}

async fn stay(agent: &Agent) {
    let mut pause = Pause::new();
    let mut complaint = String::new();
    loop {
        match join(agent).await {
            Ok(Some(session)) => {
                let (host, revision) = (&session.host.name, session.revision);
                info!(%host, revision, "joined");
                complaint.clear();
                let ended = keep(agent, &session).await;
                if let Ended::Refused(error) = ended {
                    warn!(error = sentence(&error), "the session is over, joining again");
                    pause.take().await;
                } else {
                    pause = Pause::new();
                }
            }
            Ok(None) => {
                // The next pass finds out where the host is reached, and rings.
                let _ = timeout(NO_REACH, agent.rejoin.notified()).await;
            }
            Err(error) => {
                let words = sentence(&error);
                if words != complaint {
                    error!(error = words, "cannot join, trying on");
                    complaint = words;
                }
                pause.take().await;
            }
        }
    }
}

/// Opens a session; none while it is not known where the host is reached.
async fn join(agent: &Agent) -> Result<Option<Session>, ClientError> {
    // A bell that was rung before now is heard by this very request.
    let _ = timeout(Duration::ZERO, agent.rejoin.notified()).await;
    let Some(request) = agent.session_request() else { return Ok(None) };
    let path = paths::session(&agent.identity.host);
    let call = Call::with_body(Method::POST, path, &request)?;
    match agent.ask::<Session>(&call, Patience::Long).await {
        Ok(session) => {
            agent.joined(session.clone());
            Ok(Some(session))
        }
        Err(error) => {
            if let ClientError::Refused(reason) = &error {
                // One that cannot serve has not said no.
                if !reason.code.is_transient() {
                    agent.refused(reason.clone());
                }
            }
            Err(error)
        }
    }
}

/// Keeps a session alive and watches until it is over.
async fn keep(agent: &Agent, session: &Session) -> Ended {
    // The others may be dropped at any point: a heartbeat or a line that is lost is sent or asked for again.
    tokio::select! {
        error = heartbeats(agent, session.session) => Ended::Refused(error),
        () = watch(agent) => unreachable!("a watch goes on until it is dropped"),
        () = agent.rejoin.notified() => Ended::Asked,
    }
}

/// Says that the host is alive until the controller refuses to hear it.
async fn heartbeats(agent: &Agent, session: Token) -> ClientError {
    let every = Duration::from_secs(HEARTBEAT_SECONDS);
    let mut beat = interval_at(Instant::now() + every, every);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let path = paths::heartbeat(&agent.identity.host);
    loop {
        beat.tick().await;
        let call = match Call::with_body(Method::POST, path.clone(), &Heartbeat { session }) {
            Ok(call) => call,
            Err(error) => return error,
        };
        match agent.ask::<serde::de::IgnoredAny>(&call, Patience::Short).await {
            Ok(_) => {}
            Err(ClientError::Refused(error))
                if error.code == ErrorCode::SessionLost || !error.code.is_transient() =>
            {
                return ClientError::Refused(error);
            }
            Err(error) => debug!(error = sentence(&error), "no answer to a heartbeat"),
        }
    }
}

/// Watches, reconnecting for ever.
async fn watch(agent: &Agent) {
    let mut pause = Pause::new();
    let mut complaint = String::new();
    let mut anew = false;
    loop {
        match stream(agent, anew, &mut complaint).await {
            Ok(()) => {
                // An orderly end: the controller restarts.
                anew = false;
                pause = Pause::new();
            }
            Err(WatchError::View(error)) => {
                anew = matches!(error, ViewError::OtherStore { .. });
                warn!(%error, "the watch does not follow on what is known");
            }
            Err(WatchError::Client(error)) => {
                let words = sentence(&error);
                if words != complaint {
                    warn!(error = words, "the watch broke, trying on");
                    complaint = words;
                }
            }
        }
        pause.take().await;
    }
}

#[derive(Debug, thiserror::Error)]
enum WatchError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    View(#[from] ViewError),
}

/// One connection of the watch, to its end. `anew` asks for a snapshot.
async fn stream(agent: &Agent, anew: bool, complaint: &mut String) -> Result<(), WatchError> {
    let position = agent.state().view.resumption().filter(|_| !anew);
    let (store, since) = position.unzip();
    let call = Call::new(Method::GET, paths::watch(&agent.identity.host))
        .with_query(&WatchQuery { store, since })?;
    let mut lines = agent.streams().lines(&call).await?;
    while let Some(line) = lines.next::<WatchLine>(SILENCE).await? {
        agent.heard();
        if !complaint.is_empty() {
            info!("the watch is back");
            complaint.clear();
        }
        let store = line.store;
        let applied = take_in(agent, line);
        // One that is behind is asked again when it has caught up, and until then another.
        let news = applied.inspect_err(|_| lines.leave())?;
        if position.is_some_and(|(known, _)| known != store) {
            // Another store has another idea of who may speak for this host.
            let of_other = |session: &&Session| session.store != store;
            let session =
                agent.state().contact.session.as_ref().filter(of_other).map(|s| s.session);
            session.inspect(|session| agent.spoil(*session));
        }
        // What was withheld before is due now, whatever this line tells.
        let news = if agent.confirm() { News::OfAll } else { news };
        if !agent.state().view.reports.is_empty() {
            agent.report.notify_one();
        }
        if news != News::None {
            agent.save.notify_one();
        }
        match news {
            News::None => continue,
            // An ADD is under way perhaps, and need not share the processor with a pass.
            News::OfOwn => agent.look_soon.notify_one(),
            News::OfAll => agent.look.notify_one(),
        }
        agent.tend.notify_one();
    }
    Ok(())
}

/// Takes in a line, of which is known beforehand that the disk does not have it.
fn take_in(agent: &Agent, line: WatchLine) -> Result<News, ViewError> {
    if let Some(error) = behind(agent, &line) {
        return Err(error);
    }
    // Under the lock under which what is known is taken down for the disk: what comes after that is said to be missing.
    let mut state = agent.state();
    // What is told once more is no more than the disk has.
    if concerns_all(&line.event) && state.view.is_news(line.store, line.revision) {
        agent.snapshots.outdated(line.store, line.revision);
    }
    state.view.apply(line)
}

/// Whether the kernel of every host follows what a line tells.
fn concerns_all(event: &WatchEvent) -> bool {
    match event {
        WatchEvent::Snapshot(_) => true,
        WatchEvent::Changes(changes) => !changes.shared.is_empty(),
        WatchEvent::Heartbeat {} => false,
    }
}

/// Whether a snapshot is older than the session: a controller that does not follow the store. By it a new agent would take
/// away the routes of what was attached since.
fn behind(agent: &Agent, line: &WatchLine) -> Option<ViewError> {
    let WatchEvent::Snapshot(_) = line.event else { return None };
    let state = agent.state();
    let session = state.contact.session.as_ref().filter(|session| session.store == line.store)?;
    let (line, known) = (line.revision, session.revision);
    (line < known).then_some(ViewError::Behind { line, known })
}

#[cfg(test)]
mod tests {
    use limpet_api::host::{Changes, SharedChange};

    use super::*;
    use crate::fixture;

    #[tokio::test]
    async fn a_snapshot_from_before_the_session_is_not_gone_by() {
        let agent = fixture::agent();
        let session = fixture::session();
        let (store, known) = (session.store, session.revision + 5);
        let line = |store, revision| {
            let event = WatchEvent::Snapshot(Box::default());
            WatchLine { store, revision, event }
        };
        assert_eq!(behind(&agent, &line(store, 0)), None, "nothing is known yet");
        agent.joined(Session { revision: known, ..session });
        let older = known - 1;
        let error = ViewError::Behind { line: older, known };
        assert_eq!(behind(&agent, &line(store, older)), Some(error));
        assert_eq!(behind(&agent, &line(store, known)), None);
        assert_eq!(behind(&agent, &line(Token::from_bits(77), 0)), None, "another store");
    }

    #[test]
    fn a_controller_that_is_behind_does_not_hide_that_the_disk_is() {
        let directory = fixture::Directory::new("ahead");
        let agent = fixture::agent_in(&directory);
        let store = Token::from_bits(1);
        let line = |revision, event| WatchLine { store, revision, event };
        let snapshot = || WatchEvent::Snapshot(Box::default());
        take_in(&agent, line(5, snapshot())).unwrap();
        agent.snapshots.taken();
        // Refused, and told once more: neither is more than what was taken down.
        assert!(take_in(&agent, line(2, snapshot())).is_err());
        let gone = || {
            let shared = vec![SharedChange::NetworkGone("n1".parse().unwrap())];
            WatchEvent::Changes(Changes { shared, own: vec![] })
        };
        take_in(&agent, line(5, gone())).unwrap();
        take_in(&agent, line(6, gone())).unwrap();
        let said = std::fs::read_to_string(directory.path("ahead-of-snapshot")).unwrap();
        assert_eq!(said, format!("{store} 6\n"));
    }
}

//! Edge: what the agent does about attachments without being asked by a plugin: it answers the controller's
//! questions, ends what is gone, and has the dead buried.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use limpet_api::book::{Attachment, AttachmentKey, EndReason};
use limpet_api::client::{Call, ClientError, Method};
use limpet_api::host::{Ask, EndRequest, Ended, PresentRequest};
use limpet_api::{ErrorCode, paths};
use limpet_net_types::Uid;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::agent::{Agent, Patience, api_error, not_joined, sentence};
use crate::evidence::{Begun, Evidence, Sight, gone};
use crate::reassert::{look_and_say, sever};
use crate::veths::{VethError, Veths, netns_exists};
use crate::view::Key;

/// How often everything is looked through.
const ROUND: Duration = Duration::from_secs(30);

/// How long to wait before trying again what did not succeed.
const RETRY: Duration = Duration::from_secs(1);

/// How long an attachment that the watch says has ended is given for its end to be this host's own, whose answer may be
/// on its way still.
const SETTLE: Duration = Duration::from_millis(500);

/// How long the dead wait for company: one deletion costs the kernel as much as a hundred at once.
const WAKE: Duration = Duration::from_millis(500);

/// Sees to attachments until `stop`.
pub(crate) async fn run(agent: Arc<Agent>, veths: Arc<Veths>, stop: CancellationToken) {
    let mut round = interval(ROUND);
    round.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut again: Option<Instant> = None;
    let mut missing: Option<Instant> = None;
    let mut judged = 0;
    loop {
        let at = again.into_iter().chain(missing).min().unwrap_or_else(|| Instant::now() + ROUND);
        // All may be dropped: what they ring for is looked up, not carried by the bell.
        let whole = tokio::select! {
            () = stop.cancelled() => return,
            _ = round.tick() => true,
            () = agent.tend.notified() => false,
            () = sleep_until(at), if again.is_some() || missing.is_some() => false,
        };
        // A judgement at each join, as soon as the watch has told of everything before it.
        let joins = current_join(&agent);
        let judging = joins.filter(|joins| whole || *joins != judged);
        let due = missing.is_some_and(|missing| missing <= Instant::now());
        let looking = judging.is_some() || due || agent.state().view.reassert;
        let done = tend(&agent, &veths, (judging.is_some(), looking && joins.is_some())).await;
        let lost = !agent.state().view.lost().is_empty();
        missing = lost.then(|| missing.filter(|_| !due).unwrap_or_else(|| Instant::now() + SETTLE));
        if let (true, Some(joins)) = (done.is_ok(), judging) {
            judged = joins;
        }
        again = match done {
            Ok(true) => None,
            Ok(false) => Some(Instant::now() + RETRY),
            Err(error) => {
                warn!(error = sentence(&error), "cannot look at the containers' interfaces");
                Some(Instant::now() + RETRY)
            }
        };
    }
}

/// Deletes the dead half a second after they are heard of, until `stop`.
pub(crate) async fn bury(
    veths: Arc<Veths>,
    dead: Arc<tokio::sync::Notify>,
    stop: CancellationToken,
) {
    let burying = async {
        loop {
            dead.notified().await;
            sleep(WAKE).await;
            if let Err(error) = veths.bury().await {
                warn!(error = sentence(&error), "cannot delete interfaces that are gone");
            }
        }
    };
    // What is not deleted now is deleted by the next agent.
    let _ = stop.run_until_cancelled(burying).await;
}

/// The number of the session, once the watch has told of all that was before it.
pub(crate) fn current_join(agent: &Agent) -> Option<u64> {
    let state = agent.state();
    let session = state.contact.session.as_ref()?;
    let (store, revision) = state.view.position()?;
    (store == session.store && revision >= session.revision).then(|| *agent.joins.borrow())
}

/// Looks at the interfaces that there are, for the incarnations that are known before anything is looked at.
pub(crate) async fn sight(
    agent: &Agent,
    living: impl Future<Output = Result<BTreeSet<Uid>, VethError>>,
) -> Result<Sight, VethError> {
    let begun = {
        let state = agent.state();
        Begun::now(&state.view, &state.flights)
    };
    Ok(begun.found(living.await?))
}

/// One look: `judging` for attachments without an interface, `looking` for interfaces without an attachment. Returns
/// whether nothing is left to try again.
async fn tend(
    agent: &Agent,
    veths: &Veths,
    (judging, looking): (bool, bool),
) -> Result<bool, VethError> {
    let _one_at_a_time = agent.tending.lock().await;
    let looked = !looking || look_and_say(agent, veths).await;
    let (forced, asks): (Vec<Ask>, Vec<Ask>) =
        open_asks(agent).into_iter().partition(|ask| ask.force);
    for ask in forced {
        force(agent, veths, &ask).await?;
    }
    if !asks.is_empty() || judging {
        let sight = sight(agent, veths.living()).await?;
        if judging {
            let gone = judge(agent, &sight);
            if !gone.is_empty() {
                list(agent, gone, &veths.living().await?);
            }
        }
        if !answer_all(agent, &sight, &asks).await {
            return Ok(false);
        }
    }
    Ok(end_all(agent).await && looked)
}

/// The questions that wait for an answer. One that is only recalled may have been taken back.
fn open_asks(agent: &Agent) -> Vec<Ask> {
    let state = agent.state();
    let told = state.view.position().is_some();
    let open = state.view.asks.values().filter(|ask| told && (ask.force || !ask.present));
    open.cloned().collect()
}

/// Ends an attachment at an operator's word: its container is off the network first, whether it is there or not. What
/// cannot be told the controller yet is told later.
async fn force(agent: &Agent, veths: &Veths, ask: &Ask) -> Result<(), VethError> {
    let uid = ask.attachment.uid;
    {
        let mut state = agent.state();
        // First, so that a plugin that makes its interface only now is told so when it confirms.
        state.flights.end(uid);
        state.severing.insert(uid);
    }
    let severed = sever(agent, veths, &[uid].into(), "an operator ended its attachment").await;
    let mut state = agent.state();
    state.severing.remove(&uid);
    // It is not ended while its container is on the network, for the question may be taken back.
    severed?;
    state.view.asks.remove(&uid);
    state.reasons.insert(uid, EndReason::Forced);
    state.endings.insert(uid, key_of(ask));
    drop(state);
    info!(%uid, container = %ask.attachment.key.container, "an attachment is ended by force");
    agent.look.notify_one();
    Ok(())
}

/// Answers what the controller asks. Returns whether it took all answers.
async fn answer_all(agent: &Agent, sight: &Sight, asks: &[Ask]) -> bool {
    let mut done = true;
    for ask in asks {
        let uid = ask.attachment.uid;
        if let Err(error) = answer(agent, ask, sight.is_there(uid)).await {
            warn!(%uid, error = sentence(&error), "cannot answer about an attachment");
            done = false;
            if is_for_all(&error) {
                break;
            }
        }
    }
    done
}

/// Looks through everything now and sees to what is found, as far as that goes at once.
pub(crate) async fn see_to_all(agent: &Agent, veths: &Veths) -> Result<(), VethError> {
    if current_join(agent).is_some() {
        tend(agent, veths, (true, true)).await?;
    }
    Ok(())
}

/// Ends what is listed for its end. Returns whether there is nothing to be tried again soon.
async fn end_all(agent: &Agent) -> bool {
    let endings = agent.state().endings.clone();
    for (uid, key) in endings {
        match end(agent, &key, uid).await {
            Ok(()) => {}
            Err(error) if is_for_all(&error) => {
                debug!(%uid, error = sentence(&error), "cannot end an attachment yet");
                return false;
            }
            // The next round tries it again; those after it need not wait for that.
            Err(error) => warn!(%uid, error = sentence(&error), "cannot end an attachment"),
        }
    }
    true
}

/// Whether what was asked for next would meet the same: a controller that does not answer, is not able to, or has given
/// the session to another.
fn is_for_all(error: &ClientError) -> bool {
    match error {
        ClientError::Connect { .. }
        | ClientError::TimedOut { .. }
        | ClientError::Broken { .. }
        | ClientError::Garbage { .. }
        | ClientError::Left { .. } => true,
        ClientError::Request(_) => false,
        ClientError::Refused(error) => error.code.is_transient(),
    }
}

/// Returns the attachments that are gone, and why.
fn judge(agent: &Agent, sight: &Sight) -> Vec<(Key, Uid, EndReason)> {
    let mut state = agent.state();
    let boot = agent.identity.boot;
    let is_there = |uid| sight.is_there(uid);
    let evidence = Evidence { boot, is_there: &is_there, netns_exists: &netns_exists };
    let gone = gone(state.view.attachments(), &evidence);
    // A DEL came when nothing was known of them yet.
    let told = state
        .view
        .attachments()
        .filter(|(key, attachment)| state.forgotten.contains(*key) && !is_there(attachment.uid));
    let detached =
        |(key, attachment): (&Key, &Attachment)| (key.clone(), attachment.uid, EndReason::Detached);
    let told: Vec<_> = told.map(detached).collect();
    state.forgotten.clear();
    if gone.doubtful > 0 {
        warn!(
            waiting = gone.doubtful,
            "more than half of this host's attachments seem gone: ending half of them now"
        );
    }
    let by_sight = gone.now.into_iter().map(|(key, uid)| {
        let made = state.view.attachment(&key).map(|attachment| attachment.boot);
        let earlier = made.is_some_and(|made| made != boot);
        let reason = if earlier { EndReason::Superseded } else { EndReason::Gone };
        (key, uid, reason)
    });
    by_sight.chain(told).collect()
}

/// Lists for their end those that are gone at a second look, too.
fn list(agent: &Agent, gone: Vec<(Key, Uid, EndReason)>, living: &BTreeSet<Uid>) {
    let mut state = agent.state();
    for (key, uid, reason) in gone {
        if living.contains(&uid) || state.flights.has(uid) {
            continue;
        }
        let Key { network, container, .. } = &key;
        info!(%uid, %container, %network, reason = reason.as_str(), "attachment is gone");
        if reason != EndReason::Detached {
            state.reasons.insert(uid, reason);
        }
        state.endings.insert(uid, key);
    }
}

/// Answers a question of the controller's.
async fn answer(agent: &Agent, ask: &Ask, there: bool) -> Result<(), ClientError> {
    let uid = ask.attachment.uid;
    if there {
        present(agent, uid).await?;
    } else {
        agent.state().reasons.insert(uid, EndReason::Gone);
        end(agent, &key_of(ask), uid).await?;
    }
    info!(%uid, there, "asked about an attachment");
    if let Some(ask) = agent.state().view.asks.get_mut(&uid) {
        ask.present = there;
    }
    Ok(())
}

fn key_of(ask: &Ask) -> Key {
    let AttachmentKey { network, container, ifname, .. } = ask.attachment.key.clone();
    Key { network, container, ifname }
}

async fn present(agent: &Agent, uid: Uid) -> Result<(), ClientError> {
    let session = agent.session().map_err(ClientError::Refused)?;
    let path = paths::ask(&agent.identity.host, uid);
    let call = Call::with_body(Method::POST, path, &PresentRequest { session })?;
    let answer = agent.ask::<serde::de::IgnoredAny>(&call, Patience::Short).await;
    match settled(agent, session, answer) {
        // The question is settled already.
        Err(ClientError::Refused(error)) if error.code == ErrorCode::AttachmentNotFound => Ok(()),
        other => other.map(|_| ()),
    }
}

/// Ends an attachment at the controller; one that is unknown there has ended.
pub(crate) async fn end(agent: &Agent, key: &Key, uid: Uid) -> Result<(), ClientError> {
    let session = agent.session().map_err(ClientError::Refused)?;
    let host = agent.identity.host.clone();
    let Key { network, container, ifname } = key.clone();
    let path = paths::claim(&AttachmentKey { host, network, container, ifname });
    let reason = agent.state().reasons.get(&uid).copied().unwrap_or_default();
    let call = Call::new(Method::DELETE, path).with_query(&EndRequest { session, uid, reason })?;
    let answer = agent.ask::<Ended>(&call, Patience::Short).await;
    let revision = match settled(agent, session, answer) {
        Ok(ended) => Some(ended.revision),
        Err(ClientError::Refused(error)) if error.code == ErrorCode::AttachmentNotFound => None,
        Err(error) => return Err(error),
    };
    let mut state = agent.state();
    state.endings.remove(&uid);
    state.reasons.remove(&uid);
    match revision {
        Some(revision) => state.view.ended(uid, revision),
        None => state.view.unknown(uid),
    }
    // Of what was severed it is told who it was for as long as its interface is there.
    let severed = state.severed.contains_key(&uid);
    drop(state);
    if !severed {
        agent.forget(uid);
    }
    Ok(())
}

/// Gives up a session that the controller says is over.
pub(crate) fn settled<A>(
    agent: &Agent,
    session: limpet_net_types::Token,
    answer: Result<A, ClientError>,
) -> Result<A, ClientError> {
    if let Err(ClientError::Refused(error)) = &answer
        && error.code == ErrorCode::SessionLost
    {
        agent.spoil(session);
    }
    answer
}

/// Ends an attachment now if that can be done in time, or else lists it for its end.
///
/// A controller that has long been silent is not waited for: DEL answers at once.
pub(crate) async fn end_or_list(agent: &Agent, key: &Key, uid: Uid) -> bool {
    let ended = if agent.long_silent() {
        Err(not_joined(&agent.state()))
    } else {
        end(agent, key, uid).await.map_err(api_error)
    };
    match ended {
        Ok(()) => true,
        Err(reason) => {
            info!(%uid, %reason, "an attachment is ended later");
            agent.state().endings.insert(uid, key.clone());
            agent.tend.notify_one();
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use limpet_net_types::Token;

    use super::*;
    use crate::fixture;

    /// An agent that knows of attachments 1 to 3 and is asked about 4.
    fn agent() -> Agent {
        let agent = fixture::agent();
        let attachments = (1..=3).map(|n| fixture::attachment(n, n.into())).collect();
        let fourth = fixture::attachment(4, 4);
        let attachment = limpet_api::book::AttachmentRef { key: fourth.key, uid: fourth.uid };
        let asks =
            vec![Ask { attachment, present: false, force: false, asked: limpet_api::FleetTime(0) }];
        agent.state().view = fixture::view(limpet_api::host::Snapshot {
            attachments,
            asks,
            ..limpet_api::host::Snapshot::default()
        });
        agent
    }

    #[tokio::test]
    async fn what_is_confirmed_or_claimed_while_the_interfaces_are_looked_at_is_there() {
        let agent = agent();
        let uid = Token::from_bits;
        let begin = |n: u8| {
            let key = Key::of(&fixture::attachment(n, n.into()));
            agent.state().flights.begin(uid(n.into()), 1, key);
        };
        begin(2);
        begin(4);
        // What has an interface when they are listed, and what happens before the list is judged by.
        let living = async {
            let listed = [uid(1)].into();
            for n in [2, 4] {
                agent.state().flights.end(uid(n));
            }
            begin(5);
            assert!(agent.state().view.claimed(&fixture::claimed(fixture::attachment(5, 5), 2)));
            agent.state().flights.end(uid(5));
            Ok(listed)
        };
        let sight = sight(&agent, living).await.unwrap();
        let there: Vec<u128> = (1..=5).filter(|n| sight.is_there(uid(*n))).collect();
        assert_eq!(there, [1, 2, 4, 5]);
        let gone = judge(&agent, &sight);
        list(&agent, gone.clone(), &[uid(3)].into());
        assert!(agent.state().endings.is_empty(), "at a second look it is there");
        list(&agent, gone, &BTreeSet::new());
        assert_eq!(agent.state().endings.keys().map(|uid| uid.bits()).collect::<Vec<_>>(), [3]);
    }
}

//! Edge: what the plugin asks for, passed on: attach, confirm, check, detach.

use std::time::Duration;

use limpet_api::book::{Attachment, AttachmentKey};
use limpet_api::client::{Attempted, Call, ClientError, Method};
use limpet_api::config::Network;
use limpet_api::host::{ClaimRequest, Claimed, Wanted};
use limpet_api::socket::{Attach, Detached};
use limpet_api::{ApiError, ErrorCode, paths};
use limpet_net_types::{Family, Mac, NetworkName, Range, Token, Uid, host_ifname};
use tokio::time::{Instant, sleep, timeout_at};
use tracing::warn;

use crate::agent::{Agent, Pass, Patience, State, api_error, not_joined, sentence};
use crate::desired::mtu_of;
use crate::flights::ConnectionId;
use crate::identity::random;
use crate::layout::{container_gateway, device_name, group_of};
use crate::nft;
use crate::records::Record;
use crate::run::is_ready;
use crate::segments::{pools_of, table_of};
use crate::upkeep::{end, end_or_list, sight};
use crate::veths::Veths;
use crate::view::Key;

/// How long an ADD may take here, before the plugin's and the runtime's own patience ends.
pub(crate) const ATTACH: Duration = Duration::from_secs(10);

/// How long a controller that does not listen is tried: a restart takes less.
const CONNECT: Duration = Duration::from_secs(3);

/// How long a network that was made a moment ago may take to arrive on this host.
const ARRIVAL: Duration = Duration::from_secs(2);

/// The pause before a claim is repeated.
const PAUSE: Duration = Duration::from_millis(100);

/// Claims addresses for an interface that the plugin on `connection` is about to make.
///
/// # Errors
///
/// The controller's refusal, or why it was not asked. If it is not known what became of the claim, a new session
/// is opened, in which it can no more succeed.
pub(crate) async fn attach(
    agent: &Agent,
    veths: &Veths,
    (connection, key): (ConnectionId, Key),
    wanted: Wanted,
) -> Result<Attach, ApiError> {
    if agent.long_silent() {
        return Err(not_joined(&agent.state()));
    }
    let (deadline, connect_by) = (Instant::now() + ATTACH, Instant::now() + CONNECT);
    agent.session_by(connect_by).await?;
    ready(agent, &key.network).await?;
    end_earlier(agent, veths, &key, connection).await;
    let uid = random().map_err(|error| ApiError::new(ErrorCode::Internal, sentence(&error)))?;
    agent.state().flights.begin(uid, connection, key.clone());
    let claim = Claim { agent, key: &key, uid, wanted, deadline, connect_by };
    let answer = claim.make().await.and_then(|claimed| {
        let (attach, record) = agent.state().take_claim(claimed)?;
        // Before the plugin makes the interface, so that none is there that nothing is recorded of.
        agent.keep(&record);
        Ok(attach)
    });
    if let Err(error) = &answer {
        if matches!(error.code, ErrorCode::PoolFull | ErrorCode::NoPool) {
            agent.pools.forget().await;
        }
        let mut state = agent.state();
        state.flights.end(uid);
        if state.endings.contains_key(&uid) {
            agent.tend.notify_one();
        }
    }
    answer
}

impl State {
    /// Whether an incarnation is to end, whatever the store says of it now.
    pub(crate) fn is_ending(&self, uid: Uid) -> bool {
        self.endings.contains_key(&uid) || self.severing.contains(&uid)
    }

    /// Whether an incarnation was severed and the store is known to be rid of it.
    fn has_lost(&self, uid: Uid) -> bool {
        let settled = !self.view.has(uid) && !self.endings.contains_key(&uid);
        settled && self.severed.contains_key(&uid)
    }

    /// Takes in a claim that was granted. If its plugin has gone meanwhile no interface will come of it.
    fn take_claim(&mut self, claimed: Claimed) -> Result<(Attach, Record), ApiError> {
        let (uid, key) = (claimed.attachment.uid, Key::of(&claimed.attachment));
        let store = self.contact.session.as_ref().map(|session| session.store);
        let Some(store) = store.or(self.view.position().map(|(store, _)| store)) else {
            return Err(not_joined(self));
        };
        let attach = if !self.view.claimed(&claimed) {
            let words = format!("{} was ended while it was claimed: try again", words_for(&key));
            Err(ApiError::new(ErrorCode::Unavailable, words))
        } else if self.flights.has(uid) {
            attach_of(self, &claimed.attachment)
        } else {
            Err(not_found(&key, "was given up while it was claimed"))
        };
        let Claimed { attachment, network, revision } = claimed;
        match attach {
            Ok(attach) => Ok((
                attach,
                Record { attachment, network, store, revision, severed: None, inside: None },
            )),
            Err(error) => {
                self.endings.insert(uid, key);
                Err(error)
            }
        }
    }
}

/// Waits for a network's device, for as long as a network that was made just now takes to arrive.
async fn ready(agent: &Agent, name: &NetworkName) -> Result<(), ApiError> {
    let deadline = Instant::now() + ARRIVAL;
    let mut passes = agent.passes.subscribe();
    loop {
        passes.mark_unchanged();
        let problem = network_problem(&agent.state(), &agent.passes.borrow(), name);
        let Some(error) = problem else { return Ok(()) };
        match timeout_at(deadline, passes.changed()).await {
            Ok(Ok(())) => {}
            _ => return Err(error),
        }
    }
}

/// Why an ADD on a network cannot be served by this host's kernel.
pub(crate) fn network_problem(state: &State, pass: &Pass, name: &NetworkName) -> Option<ApiError> {
    let session = state.contact.session.as_ref();
    let known = state.view.position().map(|(store, _)| store);
    if known.is_some_and(|known| session.is_some_and(|session| session.store != known)) {
        let words =
            "the store is another one than before, and what is in it has not arrived here yet";
        return Some(ApiError::new(ErrorCode::Unavailable, words));
    }
    if state.view.unconfirmed().is_some() {
        return Some(not_joined(state));
    }
    let Some(network) = state.view.networks.get(name) else {
        return Some(if known.is_some() {
            ApiError::new(ErrorCode::NetworkNotFound, format!("there is no network {name}"))
        } else {
            not_joined(state)
        });
    };
    if is_ready(pass, network.index) {
        return None;
    }
    let host = state.facts.as_ref().and_then(|facts| state.view.hosts.get(&facts.name));
    if let Some(host) = host.filter(|host| !host.is_member_of(network)) {
        let host = &host.name;
        let words = format!(
            "host {host} is not a member of network {name}: limpetctl host set {host} --networks"
        );
        return Some(ApiError::new(ErrorCode::HostNotMember, words));
    }
    let about = format!("network {name} ");
    let reason = pass.problems.iter().find(|problem| problem.contains(&about));
    let words = reason.or(pass.failures.first()).cloned();
    let words = words.unwrap_or_else(|| format!("the device of network {name} is not there yet"));
    Some(ApiError::new(ErrorCode::NetworkNotReady, words))
}

/// Ends what an ADD of the same key left behind that failed, or whose DEL never came.
///
/// Only what has no interface, and none in the making by another connection: else the controller asks, and the
/// answer is that it is there.
async fn end_earlier(agent: &Agent, veths: &Veths, key: &Key, connection: ConnectionId) {
    let earlier = {
        let mut state = agent.state();
        state.forgotten.remove(key);
        // What this connection began and asks for again is given up by that.
        state.flights.give_up(key, Some(connection));
        let known = state.view.attachment(key).map(|attachment| attachment.uid);
        known.filter(|uid| !state.flights.has(*uid))
    };
    let Some(uid) = earlier else { return };
    match sight(agent, veths.living()).await {
        Ok(sight) if sight.is_there(uid) => {}
        Ok(_) => {
            // If it cannot be ended the claim says why it cannot be made.
            if let Err(error) = end(agent, key, uid).await {
                warn!(%uid, error = sentence(&error), "cannot end an earlier incarnation");
            }
        }
        Err(error) => warn!(error = sentence(&error), "cannot look for an earlier incarnation"),
    }
}

/// One claim, with its patience.
struct Claim<'a> {
    agent: &'a Agent,
    key: &'a Key,
    uid: Uid,
    wanted: Wanted,
    deadline: Instant,
    /// Until when a controller is looked for.
    connect_by: Instant,
}

impl Claim<'_> {
    /// Makes the claim, again and again under the same uid, until it is answered or time is up.
    async fn make(&self) -> Result<Claimed, ApiError> {
        let mut unknown = None;
        loop {
            let session = match self.agent.session_by(self.deadline).await {
                Ok(session) => session,
                Err(error) => return Err(self.give_up(unknown, error)),
            };
            let error = match timeout_at(self.deadline, self.once(session)).await {
                Ok(Ok(Attempted { answer: Ok(claimed), unsure })) => {
                    // A controller that did not answer may carry it out yet, and after the end of the attachment
                    // make it once more: not in a session that is over.
                    for session in unknown.into_iter().chain(unsure.then_some(session)) {
                        self.agent.spoil(session);
                    }
                    return Ok(claimed);
                }
                Ok(Ok(Attempted { answer: Err(error), unsure })) => {
                    if unsure {
                        unknown = Some(session);
                    }
                    error
                }
                Ok(Err(error)) => error,
                Err(_) => {
                    let words = format!("no controller answered a claim within {ATTACH:?}");
                    let error = ApiError::new(ErrorCode::ControllerUnreachable, words);
                    return Err(self.give_up(Some(session), error));
                }
            };
            let lost =
                matches!(&error, ClientError::Refused(e) if e.code == ErrorCode::SessionLost);
            if lost {
                // Nothing of that session can succeed any more.
                unknown = None;
                self.agent.spoil(session);
                continue;
            }
            if error.outcome_unknown() {
                unknown = Some(session);
            }
            let until = match &error {
                ClientError::Connect { .. } => self.connect_by,
                _ => self.deadline,
            };
            if !may_repeat(&error) || Instant::now() + PAUSE >= until {
                return Err(self.give_up(unknown, api_error(error)));
            }
            sleep(PAUSE).await;
        }
    }

    /// One round through the controllers. A claim that one of them did not answer is made again at another under the
    /// same uid, so that it is the same claim.
    async fn once(&self, session: Token) -> Result<Attempted<Claimed>, ClientError> {
        let host = self.agent.identity.host.clone();
        let Key { network, container, ifname } = self.key.clone();
        let path = paths::claim(&AttachmentKey { host, network, container, ifname });
        let request = ClaimRequest { session, uid: self.uid, wanted: self.wanted.clone() };
        let call = Call::with_body(Method::PUT, path, &request)?;
        Ok(self.agent.attempt(&call, Patience::Long).await)
    }

    /// The claim has failed; if one of its attempts may still succeed, its session must not be used any more, and
    /// what it may have made is to be ended.
    fn give_up(&self, unknown: Option<Token>, error: ApiError) -> ApiError {
        if let Some(session) = unknown {
            self.agent.spoil(session);
            self.agent.state().endings.insert(self.uid, self.key.clone());
        }
        error
    }
}

/// Whether repeating a claim at once makes sense.
fn may_repeat(error: &ClientError) -> bool {
    match error {
        ClientError::Connect { .. }
        | ClientError::TimedOut { .. }
        | ClientError::Broken { .. }
        | ClientError::Garbage { .. }
        | ClientError::Left { .. } => true,
        ClientError::Request(_) => false,
        ClientError::Refused(error) => matches!(
            error.code,
            ErrorCode::Unavailable | ErrorCode::OutcomeUnknown | ErrorCode::TimedOut
        ),
    }
}

/// All that the plugin needs to make the interface of an attachment.
fn attach_of(state: &State, attachment: &Attachment) -> Result<Attach, ApiError> {
    let network = state.view.networks.get(&attachment.key.network);
    let host = state.facts.as_ref().and_then(|facts| {
        let underlay = state.view.hosts.get(&facts.name)?.underlay?;
        Some((facts, underlay))
    });
    let (Some(network), Some((facts, underlay))) = (network, host) else {
        let words = format!("network {} is not laid out here", attachment.key.network);
        return Err(ApiError::new(ErrorCode::NetworkNotReady, words));
    };
    let mtu = mtu_of(network, facts, underlay);
    let addresses = || attachment.addresses.iter().map(|held| held.address);
    Ok(Attach {
        mtu,
        host_ifname: ifname_of(network, attachment),
        group: group_of(network.index),
        gateway_mac: Mac::GATEWAY,
        gateways: addresses().map(container_gateway).collect(),
        sources: addresses().map(|address| facts.primary(Family::of(address))).collect(),
        table: table_of(network),
        pools: pools_of(&state.view, &network.name).into_iter().flat_map(Range::prefixes).collect(),
        device: Some(device_name(network.index)),
        filter: Some(nft::NAME.to_owned()),
        doubt: None,
        attachment: attachment.clone(),
    })
}

fn ifname_of(network: &Network, attachment: &Attachment) -> String {
    host_ifname(&network.name, &attachment.key.container, &attachment.key.ifname)
}

/// The interface is up.
pub(crate) fn confirm(agent: &Agent, key: &Key, uid: Uid) -> Result<(), ApiError> {
    let mut state = agent.state();
    state.flights.end(uid);
    let is_known = state.view.attachment(key).is_some_and(|attachment| attachment.uid == uid);
    // What is listed for its end ends, whether the store still has it or not.
    if is_known && !state.is_ending(uid) {
        state.attached.insert(uid, Instant::now());
        agent.attached.notify_one();
        return Ok(());
    }
    Err(not_found(key, "was ended meanwhile"))
}

/// What an attachment was given, and whether anything speaks against it that the kernel does not show.
///
/// # Errors
///
/// It is not known, or its container was taken off the network; or, for now, what is known of it is not settled.
pub(crate) fn check(agent: &Agent, key: &Key) -> Result<Attach, ApiError> {
    let (doubt, settled) = (agent.session().err(), agent.passes.borrow().count > 0);
    let state = agent.state();
    let silent = state.contact.silent.as_ref();
    let silent = silent.map(|_| not_joined(&state));
    match state.view.attachment(key).filter(|_| state.view.unconfirmed().is_none()) {
        Some(_) if !settled => {
            let words = "the agent has started and not been through the kernel yet";
            Err(ApiError::new(ErrorCode::Unavailable, words))
        }
        Some(attachment) => {
            Ok(Attach { doubt: doubt.or(silent), ..attach_of(&state, attachment)? })
        }
        None if state.view.position().is_none() => Err(not_joined(&state)),
        None => Err(state.missing(key)),
    }
}

impl State {
    /// Why an attachment is not in the store, as far as that is known here.
    fn missing(&self, key: &Key) -> ApiError {
        let recorded = self.records.values().map(|record| &record.attachment);
        let recorded = recorded.filter(|attachment| Key::of(attachment) == *key);
        let uids: Vec<Uid> = recorded.map(|attachment| attachment.uid).collect();
        if let Some(why) = uids.iter().find_map(|uid| self.severed.get(uid)) {
            return not_found(key, &format!("was taken off the network: {why}"));
        }
        if uids.is_empty() {
            return not_found(key, "is not known");
        }
        let words =
            format!("{} is not in the store, and the controller is asked why", words_for(key));
        ApiError::new(ErrorCode::Unavailable, words)
    }
}

fn words_for(Key { network, container, ifname }: &Key) -> String {
    format!("the attachment of {ifname} of container {container} to network {network}")
}

fn not_found(key: &Key, what: &str) -> ApiError {
    ApiError::new(ErrorCode::AttachmentNotFound, format!("{} {what}", words_for(key)))
}

/// Ends an attachment, now or later.
pub(crate) async fn detach(agent: &Agent, key: &Key, uid: Option<Uid>) -> Detached {
    let known = {
        let mut state = agent.state();
        let of_key = state.view.attachment(key).map(|attachment| attachment.uid);
        // An ADD that gave up may have left one that is not known yet.
        let pending = state.endings.iter().find(|(_, of)| *of == key).map(|(uid, _)| *uid);
        // What was severed is not known to the store; its record ends with it.
        let mut records = state.records.values().map(|record| &record.attachment);
        let recorded = records.find(|attachment| Key::of(attachment) == *key);
        let known = uid.or(of_key).or(pending).or(recorded.map(|attachment| attachment.uid));
        if known.is_none() && state.view.position().is_none() {
            state.forgotten.insert(key.clone());
        }
        match uid {
            Some(uid) => state.flights.end(uid),
            // A claim that is still under way is ended when it is answered.
            None => state.flights.give_up(key, None),
        }
        known
    };
    if let Some(uid) = known.filter(|uid| agent.state().has_lost(*uid)) {
        agent.forget(uid);
        return Detached::Ended;
    }
    match known {
        Some(uid) => {
            if end_or_list(agent, key, uid).await {
                Detached::Ended
            } else {
                Detached::Later
            }
        }
        None if agent.state().forgotten.contains(key) => Detached::Later,
        None => Detached::Ended,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[tokio::test(start_paused = true)]
    async fn a_controller_that_has_long_been_silent_is_waited_for_by_nobody() {
        let directory = fixture::Directory::new("silent");
        // It takes connections and never says a word.
        let path = directory.path("controller.sock");
        let _controller = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let agent = fixture::agent_of(&format!("unix:{}", path.display()));
        let attachment = fixture::attachment(1, 7);
        let (key, uid) = (Key::of(&attachment), attachment.uid);
        agent.joined(fixture::session());
        let begun = Instant::now();
        assert_eq!(detach(&agent, &key, Some(uid)).await, Detached::Later);
        assert!(begun.elapsed() >= Duration::from_secs(1), "it may answer yet");

        sleep(Duration::from_secs(16)).await;
        let begun = Instant::now();
        assert_eq!(detach(&agent, &key, Some(uid)).await, Detached::Later);
        let add = attach(&agent, &Veths::default(), (1, key), Wanted::default()).await;
        assert_eq!(add.unwrap_err().code, ErrorCode::ControllerUnreachable);
        assert_eq!(begun.elapsed(), Duration::ZERO);
        assert!(agent.state().endings.contains_key(&uid));
    }

    #[tokio::test]
    async fn an_interface_is_not_confirmed_whose_attachment_is_being_ended() {
        let agent = fixture::agent();
        let attachment = fixture::attachment(1, 7);
        let (key, uid) = (Key::of(&attachment), attachment.uid);
        agent.state().view = fixture::view(limpet_api::host::Snapshot {
            attachments: vec![attachment],
            ..limpet_api::host::Snapshot::default()
        });
        agent.state().flights.begin(uid, 1, key.clone());
        assert!(confirm(&agent, &key, uid).is_ok());
        // An operator ended it by force, and the controller has not confirmed that yet.
        agent.state().endings.insert(uid, key.clone());
        let error = confirm(&agent, &key, uid).unwrap_err();
        assert_eq!(error.code, ErrorCode::AttachmentNotFound);
    }

    #[tokio::test]
    async fn a_claim_that_has_ended_by_its_answer_is_refused_for_now_and_not_known() {
        let agent = fixture::agent();
        let attachment = fixture::attachment(1, 7);
        let (key, uid) = (Key::of(&attachment), attachment.uid);
        let mut state = agent.state();
        // The watch is at revision 1: it has told of the claim, and of its end.
        state.view = fixture::view(limpet_api::host::Snapshot::default());
        state.flights.begin(uid, 1, key.clone());
        let error = state.take_claim(fixture::claimed(attachment, 1)).unwrap_err();
        assert!(error.code.is_transient(), "{error}");
        assert_eq!(state.view.attachment(&key), None);
        assert!(state.endings.contains_key(&uid), "in case that it has not");
    }
}

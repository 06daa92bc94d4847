//! Edge: where the agent's tasks meet: what is known, under one lock, and the bells that they ring for each other.
//!
//! | task | does | is woken by |
//! |---|---|---|
//! | [`crate::watch`] | joins, stays alive, takes in what the controller tells | [`Agent::rejoin`] |
//! | [`crate::run`] | keeps the kernel right | [`Agent::look`], the kernel, a timer |
//! | [`crate::insides`] | keeps what is limpet's inside containers | [`Agent::attached`], the kernel, a timer |
//! | [`crate::upkeep`] | answers asks, ends what is gone, buries the dead | [`Agent::tend`], a timer |
//! | [`crate::report`] | says where kernel and store differ | [`Agent::report`] |
//! | [`crate::conditions`] | looks for what others did to the host | [`Agent::survey`], a timer |
//! | [`crate::socket`] | serves the plugin | the plugin |
//! | [`crate::snapshot`] | writes what is known to the disk | [`Agent::save`] |
//!
//! The lock is held for moments and never while anything is waited for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use limpet_api::book::EndReason;
use limpet_api::client::{Attempted, Call, Client, ClientError};
use limpet_api::host::{LEASE_SECONDS, Session, SessionRequest};
use limpet_api::{ApiError, ErrorCode};
use limpet_net_types::{HostName, Token, Uid};
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::conditions::Survey;
use crate::config::Config;
use crate::desired::HostFacts;
use crate::drift::{Drifts, Moment};
use crate::facts::{Choice, Reach};
use crate::flights::Flights;
use crate::mark::MarkMask;
use crate::metrics::Metrics;
use crate::pulse::Pulse;
use crate::readiness::KeptPools;
use crate::recalled::Recalled;
use crate::records::{Record, Records};
use crate::saved::ago;
use crate::snapshot::{Snapshots, wall};
use crate::view::{Key, View};

/// How long the controller has for what should take milliseconds.
const QUICK: Duration = Duration::from_secs(2);

/// How long it has for a claim, which may have to ask another host first for five seconds.
const PATIENT: Duration = Duration::from_secs(8);

/// What never changes while the agent runs.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) host: HostName,
    pub(crate) install: Token,
    pub(crate) boot: Token,
}

/// The agent.
pub(crate) struct Agent {
    pub(crate) identity: Identity,
    pub(crate) config: Config,
    pub(crate) choice: Choice,
    /// The bits of the mark that are limpet's.
    pub(crate) mark_mask: MarkMask,
    pub(crate) metrics: Metrics,
    files: Records,
    pub(crate) snapshots: Snapshots,
    quick: Client,
    patient: Client,
    state: Mutex<State>,
    /// Something is known that the kernel may have to follow.
    pub(crate) look: Notify,
    /// The same, and it is not urgent.
    pub(crate) look_soon: Notify,
    /// The session is to be opened anew.
    pub(crate) rejoin: Notify,
    /// There are asks, endings or the dead to see to.
    pub(crate) tend: Notify,
    /// What is known has changed, and is to be kept.
    pub(crate) save: Notify,
    /// Held while they are seen to, so that nobody sees to one of them twice at once.
    pub(crate) tending: tokio::sync::Mutex<()>,
    /// An interface was confirmed.
    pub(crate) attached: Notify,
    /// Host ends of containers have another MTU.
    pub(crate) resized: Notify,
    /// The controller waits for a report.
    pub(crate) report: Notify,
    /// What others did to the host may be different.
    pub(crate) survey: Notify,
    /// What was found of it last.
    pub(crate) surveys: watch::Sender<Survey>,
    /// How the last pass went.
    pub(crate) passes: watch::Sender<Pass>,
    /// Whether the loop that keeps the kernel right still turns.
    pub(crate) pulse: Pulse,
    /// How often the host has joined; 0 before the first time.
    pub(crate) joins: watch::Sender<u64>,
    /// The pools, to say whether there is room.
    pub(crate) pools: KeptPools,
    started: Instant,
}

/// What is known and changes.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) view: View,
    pub(crate) contact: Contact,
    /// Where the host is reached, or why that is not known.
    pub(crate) reach: Option<Result<Reach, String>>,
    pub(crate) facts: Option<HostFacts>,
    pub(crate) flights: Flights,
    /// Attachments that are gone and whose end the controller has not confirmed.
    pub(crate) endings: BTreeMap<Uid, Key>,
    /// Those that are severed just now, to be ended then: nobody may confirm them.
    pub(crate) severing: BTreeSet<Uid>,
    /// Why attachments end, where it is not that their runtime said so.
    pub(crate) reasons: BTreeMap<Uid, EndReason>,
    /// Keys that a DEL came for while nothing was known of them.
    pub(crate) forgotten: BTreeSet<Key>,
    /// What was answered about attachments that may live here.
    pub(crate) records: BTreeMap<Uid, Record>,
    /// The incarnations whose containers are off the network, and why.
    pub(crate) severed: BTreeMap<Uid, String>,
    /// Why what lives here could not be re-asserted last time.
    pub(crate) not_asserted: Option<String>,
    /// How many were severed since the agent started.
    pub(crate) severed_ever: u64,
    /// What others changed and was put back.
    pub(crate) drifts: Drifts,
    /// The incarnations whose interfaces were confirmed a moment ago, and when.
    pub(crate) attached: BTreeMap<Uid, Instant>,
    /// Where what is known is from, while no controller has told of everything.
    pub(crate) recalled: Option<Recalled>,
    /// Why what is known could not be written to the disk last time.
    pub(crate) not_saved: Option<String>,
}

/// How things stand with the controller.
#[derive(Clone, Debug, Default)]
pub(crate) struct Contact {
    /// What requests in the host's name carry.
    pub(crate) session: Option<Session>,
    /// The outcome of a request in this session is not known: nothing newer may be asked for before another one.
    spoilt: bool,
    /// Why the host was not let in.
    pub(crate) refused: Option<ApiError>,
    /// Since when no controller has answered, and what was tried last.
    pub(crate) silent: Option<(Instant, String)>,
}

/// How a pass went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pass {
    /// How many there were, this one included, in which the cluster was known.
    pub(crate) count: u64,
    /// The networks' devices that are there.
    pub(crate) devices: BTreeSet<String>,
    /// What was not done, or not read, as sentences.
    pub(crate) failures: Vec<String>,
    /// What cannot be laid out, as sentences.
    pub(crate) problems: Vec<String>,
}

/// Which of the two patiences a request has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// Two seconds.
    Short,
    /// Eight seconds.
    Long,
}

impl Agent {
    pub(crate) fn new(config: Config, identity: Identity) -> Self {
        let quick = Client::new(config.controller.clone(), QUICK);
        Self {
            identity,
            metrics: Metrics::new(),
            files: Records::beside(&config.boot_id_file),
            snapshots: Snapshots::new(&config.state_dir, &config.boot_id_file),
            choice: Choice { underlay: config.underlay, skipped: config.skip_device.clone() },
            mark_mask: config.mark_mask,
            patient: quick.with_limit(PATIENT),
            quick,
            config,
            state: Mutex::default(),
            look: Notify::new(),
            look_soon: Notify::new(),
            rejoin: Notify::new(),
            tend: Notify::new(),
            save: Notify::new(),
            tending: tokio::sync::Mutex::default(),
            attached: Notify::new(),
            resized: Notify::new(),
            report: Notify::new(),
            survey: Notify::new(),
            surveys: watch::Sender::new(Survey::default()),
            passes: watch::Sender::new(Pass::default()),
            pulse: Pulse::default(),
            joins: watch::Sender::new(0),
            pools: KeptPools::default(),
            started: Instant::now(),
        }
    }

    /// The time, by both clocks.
    pub(crate) fn now(&self) -> Moment {
        Moment { at: SystemTime::now(), uptime: self.started.elapsed() }
    }

    /// What is known; to be let go before anything is waited for.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        // Every change under the lock is whole: a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what earlier agents knew of the cluster, and have recorded in this boot.
    pub(crate) fn recall(&self) {
        self.recall_cluster();
        let records = match self.files.load() {
            Ok(records) => records,
            Err(error) => {
                warn!(%error, "cannot read what was recorded of attachments");
                return;
            }
        };
        let mut state = self.state();
        for record in records {
            let uid = record.attachment.uid;
            if let Some(why) = &record.severed {
                state.severed.insert(uid, why.clone());
            }
            if record.inside.is_none() {
                // Its runtime may not be done with it: the agent before this one was told of it, and no more.
                state.attached.insert(uid, Instant::now());
            }
            if state.view.unconfirmed().is_some_and(|(store, _)| store == record.store) {
                // It may be newer than what else is known.
                let _ = state.view.answered(&record.attachment, record.revision);
            }
            state.records.insert(uid, record);
        }
    }

    /// Takes in what an earlier agent wrote to the disk.
    fn recall_cluster(&self) {
        let path = self.snapshots.path().display();
        let (saved, ahead) = match self.snapshots.load(&self.identity) {
            Ok(Some(loaded)) => loaded,
            Ok(None) => return,
            Err(error) => {
                let error = sentence(&error);
                warn!(%path, error, "cannot go by the snapshot: nothing is known before a controller answers");
                return;
            }
        };
        let (store, revision, written) = (saved.store, saved.revision, saved.written);
        let (age, read) = (Duration::from_secs(wall().saturating_sub(written)), Instant::now());
        info!(%path, revision, written = ago(age), ahead, "read the snapshot");
        let mut state = self.state();
        state.view = View::recalled(store, revision, saved.snapshot);
        state.recalled = Some(Recalled { age, read, ahead });
    }

    /// Records what was answered about an attachment. Without the file it is known until the agent ends.
    pub(crate) fn keep(&self, record: &Record) {
        let uid = record.attachment.uid;
        self.state().records.insert(uid, record.clone());
        if let Err(error) = self.files.keep(record) {
            warn!(%uid, %error, "cannot record an attachment");
        }
    }

    /// Records anew what is known of an attachment, unless that has ended meanwhile.
    pub(crate) fn rewrite(&self, record: &Record) {
        let uid = record.attachment.uid;
        if let Err(error) = self.files.keep(record) {
            warn!(%uid, %error, "cannot record an attachment");
        }
        if !self.state().records.contains_key(&uid)
            && let Err(error) = self.files.forget(uid)
        {
            warn!(%uid, %error, "cannot remove the record of an attachment");
        }
    }

    /// An attachment has ended: nothing of it is to be asserted any more.
    pub(crate) fn forget(&self, uid: Uid) {
        let known = self.state().records.remove(&uid).is_some();
        if let (true, Err(error)) = (known, self.files.forget(uid)) {
            warn!(%uid, %error, "cannot remove the record of an attachment");
        }
    }

    /// Asks a controller, and another one where it fails, and notes whether one answered.
    pub(crate) async fn ask<A: DeserializeOwned>(
        &self,
        call: &Call,
        patience: Patience,
    ) -> Result<A, ClientError> {
        self.attempt(call, patience).await.answer
    }

    /// The same, and tells whether a controller that did not answer may have done it too.
    pub(crate) async fn attempt<A: DeserializeOwned>(
        &self,
        call: &Call,
        patience: Patience,
    ) -> Attempted<A> {
        let client = match patience {
            Patience::Short => &self.quick,
            Patience::Long => &self.patient,
        };
        let attempted = client.attempt(call).await;
        self.metrics.asked(&attempted.answer);
        match &attempted.answer {
            Ok(_) | Err(ClientError::Refused(_)) => self.heard(),
            Err(error) => self.unheard(error),
        }
        attempted
    }

    /// The client for streams.
    pub(crate) fn streams(&self) -> &Client {
        &self.quick
    }

    /// A controller has answered.
    pub(crate) fn heard(&self) {
        self.state().contact.silent = None;
    }

    /// No controller has answered.
    pub(crate) fn unheard(&self, error: &ClientError) {
        let words = sentence(error);
        let mut state = self.state();
        let silent = &mut state.contact.silent;
        let begins = silent.is_none();
        let since = silent.as_ref().map_or_else(Instant::now, |(since, _)| *since);
        *silent = Some((since, words));
        if begins && state.recalled.is_some() {
            // Nobody tells what should be: the kernel is to follow what an earlier agent was told.
            self.look.notify_one();
        }
    }

    /// Takes in that the watch has told something, and returns whether what was recalled is confirmed by it.
    pub(crate) fn confirm(&self) -> bool {
        let mut guard = self.state();
        let state = &mut *guard;
        let Some(session) = &state.contact.session else { return false };
        let by_changes = state.view.confirm(session.store, session.revision);
        // A snapshot of the controller's has replaced it.
        let by_snapshot = state.recalled.is_some() && state.view.position().is_some();
        if by_snapshot || by_changes {
            state.recalled = None;
            info!("a controller has told of everything since the snapshot");
        }
        by_snapshot || by_changes
    }

    /// What the host says of itself when it joins; none before it knows where it is reached.
    pub(crate) fn session_request(&self) -> Option<SessionRequest> {
        let state = self.state();
        let reach = state.reach.as_ref()?.as_ref().ok()?;
        Some(SessionRequest {
            install: self.identity.install,
            boot: self.identity.boot,
            underlay: reach.underlay,
            addresses: reach.addresses.clone(),
            on_link: reach.on_link.clone(),
            roles: self.config.role.iter().copied().collect(),
            external: self.config.external.iter().copied().collect(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        })
    }

    /// Takes in where the host is reached, and returns whether that is news.
    pub(crate) fn reached(&self, reach: Result<Reach, String>) -> bool {
        let mut state = self.state();
        let told = |reach: &Reach| (reach.underlay, reach.addresses.clone(), reach.on_link.clone());
        let before = state.reach.as_ref().map(|reach| reach.as_ref().map(told));
        let news = before != Some(reach.as_ref().map(told));
        state.reach = Some(reach);
        news
    }

    /// The host has joined.
    pub(crate) fn joined(&self, session: Session) {
        let contact = Contact { session: Some(session), ..Contact::default() };
        self.state().contact = contact;
        self.joins.send_modify(|joins| *joins += 1);
        self.tend.notify_one();
        self.look.notify_one();
    }

    /// The host was not let in.
    pub(crate) fn refused(&self, error: ApiError) {
        let mut state = self.state();
        state.contact.session = None;
        state.contact.refused = Some(error);
    }

    /// The session that a request may be made in.
    ///
    /// # Errors
    ///
    /// Why there is none, in the words for the plugin.
    pub(crate) fn session(&self) -> Result<Token, ApiError> {
        let state = self.state();
        let contact = &state.contact;
        match &contact.session {
            Some(session) if !contact.spoilt => Ok(session.session),
            _ => Err(not_joined(&state)),
        }
    }

    /// The session, waiting until `deadline` for one that may be used.
    ///
    /// # Errors
    ///
    /// As [`Agent::session`].
    pub(crate) async fn session_by(&self, deadline: Instant) -> Result<Token, ApiError> {
        let mut joins = self.joins.subscribe();
        loop {
            joins.mark_unchanged();
            match self.session() {
                Ok(session) => return Ok(session),
                Err(error) => match tokio::time::timeout_at(deadline, joins.changed()).await {
                    Ok(Ok(())) => {}
                    _ => return Err(error),
                },
            }
        }
    }

    /// The session is over, or must not be used any more: asks for another one.
    ///
    /// Called with the session that the request carried, so that one that is new already is not given up.
    pub(crate) fn spoil(&self, session: Token) {
        let mut state = self.state();
        if state.contact.session.as_ref().is_some_and(|now| now.session == session) {
            state.contact.spoilt = true;
            drop(state);
            self.rejoin.notify_one();
        }
    }

    /// Whether no controller has answered for longer than a lease.
    pub(crate) fn long_silent(&self) -> bool {
        let lease = Duration::from_secs(LEASE_SECONDS);
        let state = self.state();
        state.contact.silent.as_ref().is_some_and(|(since, _)| since.elapsed() > lease)
    }
}

/// Why nothing can be asked in the host's name.
pub(crate) fn not_joined(state: &State) -> ApiError {
    if let Some(error) = &state.contact.refused {
        let message = format!("the controller does not let this host join: {}", error.message);
        return ApiError::new(ErrorCode::NotJoined, message)
            .with_details(serde_json::json!({ "reason": error.code }));
    }
    if let Some((_, words)) = &state.contact.silent {
        return ApiError::new(ErrorCode::ControllerUnreachable, words.clone());
    }
    let words = match &state.reach {
        Some(Err(words)) => words.as_str(),
        _ => "this host has not joined yet",
    };
    ApiError::new(ErrorCode::NotJoined, words)
}

/// What went wrong, in the plugin's words.
pub(crate) fn api_error(error: ClientError) -> ApiError {
    match error {
        ClientError::Refused(error) => error,
        other => ApiError::new(ErrorCode::ControllerUnreachable, sentence(&other)),
    }
}

/// An error and its causes in one sentence.
pub(crate) fn sentence(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        // A transparent cause says the same once more.
        if !text.ends_with(&words) {
            text = format!("{text}: {words}");
        }
        source = cause.source();
    }
    text
}

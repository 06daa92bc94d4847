//! Pure: a host's agent in the simulated world. It keeps the rules of `limpet-agent`, whose own
//! code is another program: uids and flights, evidence, endings, sessions that are given up when
//! the outcome of a request is unknown, a view that never goes back.

use std::collections::{BTreeMap, BTreeSet};

use limpet_api::book::{Attachment, AttachmentKey, EndReason};
use limpet_api::host::{Ask, ClaimRequest, EndRequest, Wanted};
use limpet_api::{ApiError, ErrorCode};
use limpet_net_types::{HostName, Token, Uid};

use super::machine::Veth;
use super::request::{Answer, Request};
use crate::state::State;
use crate::store::Revision;

/// A call that is under way.
#[derive(Clone, Debug)]
pub(super) enum Call {
    Open,
    Beat,
    Claim(Uid),
    End(Uid),
    Present(Uid),
    Reassert(Uid),
}

/// A claim that its plugin waits for.
#[derive(Clone, Debug)]
pub(super) struct Claiming {
    pub(super) key: AttachmentKey,
    pub(super) container: usize,
    wanted: Wanted,
    /// The session of the attempt under way, or of one whose outcome is unknown.
    session: Option<Token>,
    unknown: Option<Token>,
    under_way: bool,
}

/// What a look at the interfaces found.
#[derive(Clone, Debug)]
pub(super) struct Sight {
    known: BTreeSet<Uid>,
    flights: BTreeSet<Uid>,
    asks: Vec<Ask>,
    living: Option<BTreeSet<Uid>>,
}

impl Sight {
    fn is_there(&self, uid: Uid) -> bool {
        let living = self.living.as_ref().is_none_or(|living| living.contains(&uid));
        !self.known.contains(&uid) || self.flights.contains(&uid) || living
    }
}

/// What was answered about an attachment, on a disk that is gone after a boot.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) attachment: Attachment,
    pub(super) revision: Revision,
}

/// What a judgement is made by besides what the agent remembers.
pub(super) struct Known<'a> {
    pub(super) veths: &'a BTreeMap<Uid, Veth>,
    pub(super) records: &'a BTreeMap<Uid, Record>,
    pub(super) netns_exists: &'a dyn Fn(&str) -> bool,
}

/// What came of a claim, for its plugin.
#[derive(Clone, Debug)]
pub(super) enum Granted {
    Yes { container: usize, attachment: Box<Attachment>, revision: Revision },
    No { container: usize },
}

/// The agent's memory: all of it goes when it ends.
#[derive(Debug)]
pub(super) struct Agent {
    pub(super) life: u64,
    host: HostName,
    boot: Token,
    pub(super) session: Option<Token>,
    joined: Revision,
    pub(super) seen: Revision,
    known: BTreeMap<AttachmentKey, (Attachment, Revision)>,
    ended: BTreeMap<Uid, Revision>,
    asks: BTreeMap<Uid, Ask>,
    flights: BTreeMap<Uid, AttachmentKey>,
    endings: BTreeMap<Uid, AttachmentKey>,
    pub(super) claims: BTreeMap<Uid, Claiming>,
    calls: BTreeMap<u64, Call>,
    next_call: u64,
    pub(super) sight: Option<Sight>,
    pub(super) out: Vec<(u64, Request)>,
}

impl Agent {
    pub(super) fn new(life: u64, host: HostName, boot: Token) -> Self {
        Self {
            life,
            host,
            boot,
            session: None,
            joined: Revision(0),
            seen: Revision(0),
            known: BTreeMap::new(),
            ended: BTreeMap::new(),
            asks: BTreeMap::new(),
            flights: BTreeMap::new(),
            endings: BTreeMap::new(),
            claims: BTreeMap::new(),
            calls: BTreeMap::new(),
            next_call: 0,
            sight: None,
            out: Vec::new(),
        }
    }

    /// Whether nothing is left to do, or to wait for.
    pub(super) fn is_idle(&self) -> bool {
        self.session.is_some()
            && self.endings.is_empty()
            && self.claims.is_empty()
            && self.calls.is_empty()
            && self.out.is_empty()
            && self.asks.values().all(|ask| ask.present)
    }

    /// What it is waiting for, in words.
    pub(super) fn waiting(&self) -> String {
        let Self { session, endings, claims, calls, asks, .. } = self;
        let claims: Vec<_> = claims.keys().collect();
        format!(
            "session {session:?}, endings {:?}, claims {claims:?}, calls {calls:?}, asks {:?}",
            endings.keys().collect::<Vec<_>>(),
            asks.keys().collect::<Vec<_>>()
        )
    }

    fn call(&mut self, call: Call, request: Request) {
        self.next_call += 1;
        self.calls.insert(self.next_call, call);
        self.out.push((self.next_call, request));
    }

    fn is_calling(&self, is: impl Fn(&Call) -> bool) -> bool {
        self.calls.values().any(is)
    }

    /// Opens a session, if there is none.
    pub(super) fn open(&mut self, request: Request) -> bool {
        let opens = self.session.is_none() && !self.is_calling(|call| matches!(call, Call::Open));
        if opens {
            self.call(Call::Open, request);
        }
        opens
    }

    /// Says that it is alive.
    pub(super) fn beat(&mut self) -> bool {
        let Some(session) = self.session else { return false };
        if self.is_calling(|call| matches!(call, Call::Beat)) {
            return false;
        }
        self.call(Call::Beat, Request::Beat { host: self.host.clone(), session });
        true
    }

    /// A plugin wants an interface.
    pub(super) fn attach(
        &mut self,
        key: &AttachmentKey,
        (uid, container): (Uid, usize),
        wanted: Wanted,
        living: &BTreeSet<Uid>,
    ) {
        self.flights.retain(|_, of| of != key);
        let earlier = self.known.get(key).map(|(attachment, _)| attachment.uid);
        if let Some(earlier) = earlier.filter(|uid| !living.contains(uid)) {
            self.endings.insert(earlier, key.clone());
            self.end(earlier);
        }
        self.flights.insert(uid, key.clone());
        let (session, unknown, under_way) = (None, None, false);
        let key = key.clone();
        self.claims.insert(uid, Claiming { key, container, wanted, session, unknown, under_way });
        self.resend(uid);
    }

    /// Sends a claim, or sends it again, in the present session.
    pub(super) fn resend(&mut self, uid: Uid) -> bool {
        let Some(session) = self.session else { return false };
        let Some(claiming) = self.claims.get_mut(&uid).filter(|claim| !claim.under_way) else {
            return false;
        };
        claiming.under_way = true;
        claiming.session = Some(session);
        let (key, wanted) = (claiming.key.clone(), claiming.wanted.clone());
        let request = ClaimRequest { session, uid, wanted };
        self.call(Call::Claim(uid), Request::Claim { key, request });
        true
    }

    /// The plugin's patience is over: what the claim may have made is to be ended, and its session
    /// must not be used any more.
    pub(super) fn give_up(&mut self, uid: Uid) -> bool {
        let Some(claiming) = self.claims.remove(&uid) else { return false };
        let unknown = claiming.session.filter(|_| claiming.under_way).or(claiming.unknown);
        self.failed(uid, claiming.key, unknown);
        true
    }

    fn failed(&mut self, uid: Uid, key: AttachmentKey, unknown: Option<Token>) {
        self.flights.remove(&uid);
        if let Some(session) = unknown {
            self.spoil(session);
            self.endings.insert(uid, key);
        }
    }

    /// A session must not be used any more.
    fn spoil(&mut self, session: Token) {
        if self.session == Some(session) {
            self.session = None;
        }
    }

    /// Ends an attachment, unless that is under way.
    pub(super) fn end(&mut self, uid: Uid) -> bool {
        let Some(session) = self.session else { return false };
        let Some(key) = self.endings.get(&uid).cloned() else { return false };
        if self.is_calling(|call| matches!(call, Call::End(of) if *of == uid)) {
            return false;
        }
        let request = EndRequest { session, uid, reason: EndReason::Detached };
        self.call(Call::End(uid), Request::End { key, request });
        true
    }

    /// Ends what is to be ended.
    pub(super) fn end_all(&mut self) -> bool {
        let uids: Vec<Uid> = self.endings.keys().copied().collect();
        uids.into_iter().filter(|uid| self.end(*uid)).count() > 0
    }

    /// A call gets no answer.
    pub(super) fn lose(&mut self, call: u64) {
        match self.calls.remove(&call) {
            Some(Call::Claim(uid)) => {
                if let Some(claiming) = self.claims.get_mut(&uid) {
                    claiming.unknown = claiming.session;
                    claiming.under_way = false;
                }
            }
            // Carried out late it would make again what has ended meanwhile.
            Some(Call::Reassert(_)) => self.session = None,
            _ => {}
        }
    }

    /// A call is answered.
    pub(super) fn answered(
        &mut self,
        call: u64,
        result: Result<(Answer, Revision), ApiError>,
    ) -> Option<Granted> {
        match (self.calls.remove(&call)?, result) {
            (Call::Open, Ok((Answer::Joined(token), revision))) => {
                (self.session, self.joined) = (Some(token), revision);
                None
            }
            (Call::Claim(uid), result) => self.claimed(uid, result),
            (Call::End(uid), Ok((_, revision))) => {
                self.endings.remove(&uid);
                self.known.retain(|_, (attachment, _)| attachment.uid != uid);
                if revision > self.seen {
                    self.ended.insert(uid, revision);
                }
                None
            }
            (Call::Present(uid), Ok(_)) => {
                if let Some(ask) = self.asks.get_mut(&uid) {
                    ask.present = true;
                }
                None
            }
            (_, Err(error)) if error.code == ErrorCode::SessionLost => {
                self.session = None;
                None
            }
            _ => None,
        }
    }

    fn claimed(
        &mut self,
        uid: Uid,
        result: Result<(Answer, Revision), ApiError>,
    ) -> Option<Granted> {
        let claiming = self.claims.get_mut(&uid)?;
        claiming.under_way = false;
        let (container, key) = (claiming.container, claiming.key.clone());
        match result {
            Ok((Answer::Claimed(attachment), revision)) => {
                // An attempt that was not answered may be carried out after the end.
                let unknown = claiming.unknown;
                self.claims.remove(&uid);
                if let Some(session) = unknown {
                    self.spoil(session);
                }
                if revision > self.seen {
                    self.know(*attachment.clone(), revision);
                }
                let stands = self.known.get(&key).is_some_and(|(known, _)| known.uid == uid);
                if stands && self.flights.contains_key(&uid) {
                    return Some(Granted::Yes { container, attachment, revision });
                }
                self.endings.insert(uid, key);
                self.flights.remove(&uid);
                Some(Granted::No { container })
            }
            Ok(_) => None,
            Err(error) => match error.code {
                ErrorCode::SessionLost => {
                    let session = claiming.session;
                    claiming.unknown = None;
                    if let Some(session) = session {
                        self.spoil(session);
                    }
                    None
                }
                ErrorCode::OutcomeUnknown => {
                    claiming.unknown = claiming.session;
                    None
                }
                ErrorCode::Unavailable | ErrorCode::TimedOut => None,
                _ => {
                    let unknown = claiming.unknown;
                    self.claims.remove(&uid);
                    self.failed(uid, key, unknown);
                    Some(Granted::No { container })
                }
            },
        }
    }

    /// The plugin's connection is broken, or its interface is there.
    pub(super) fn landed(&mut self, uid: Uid) {
        self.flights.remove(&uid);
    }

    /// Whether an interface that was just made may stay.
    pub(super) fn confirm(&mut self, key: &AttachmentKey, uid: Uid) -> bool {
        self.flights.remove(&uid);
        self.known.get(key).is_some_and(|(attachment, _)| attachment.uid == uid)
    }

    /// A plugin has cut an interface off, or found none.
    pub(super) fn detach(&mut self, key: &AttachmentKey, uid: Option<Uid>) {
        let of_key = self.known.get(key).map(|(attachment, _)| attachment.uid);
        let pending = self.endings.iter().find(|(_, of)| *of == key).map(|(uid, _)| *uid);
        match uid {
            Some(uid) => drop(self.flights.remove(&uid)),
            None => self.flights.retain(|_, of| of != key),
        }
        if let Some(uid) = uid.or(of_key).or(pending) {
            self.endings.insert(uid, key.clone());
            self.end(uid);
        }
    }

    fn know(&mut self, attachment: Attachment, revision: Revision) {
        let key = attachment.key.clone();
        let newer = self.known.get(&key).is_some_and(|(_, known)| *known > revision);
        if !newer && !self.ended.contains_key(&attachment.uid) {
            self.known.insert(key, (attachment, revision));
        }
    }

    /// Hears of the cluster from a controller, unless that one is behind.
    pub(super) fn hear(&mut self, state: &State) -> bool {
        let revision = state.revision();
        if revision <= self.seen {
            return false;
        }
        self.seen = revision;
        self.ended.retain(|_, at| *at > revision);
        self.known.retain(|_, (_, known)| *known > revision);
        let host = self.host.clone();
        for entry in state.attachments_of(&host) {
            self.know(entry.record.clone(), revision);
        }
        self.asks = state
            .asks_of(&self.host)
            .map(|entry| (entry.record.attachment.uid, entry.record.clone()))
            .collect();
        true
    }

    /// Begins a look: what is known and in flight is taken down before anything is looked at.
    pub(super) fn look(&mut self) {
        let known = self.known.values().map(|(attachment, _)| attachment.uid);
        let known = known.chain(self.asks.keys().copied()).collect();
        let asks = self.asks.values().filter(|ask| !ask.present).cloned().collect();
        let flights = self.flights.keys().copied().collect();
        self.sight = Some(Sight { known, flights, asks, living: None });
    }

    /// The interfaces are listed; a short list is an error, and nothing is judged by it.
    pub(super) fn found(&mut self, living: Option<BTreeSet<Uid>>) -> bool {
        let Some(sight) = self.sight.as_mut().filter(|sight| sight.living.is_none()) else {
            return false;
        };
        match living {
            Some(living) => sight.living = Some(living),
            None => self.sight = None,
        }
        true
    }

    /// Answers what is asked, lists what is gone for its end, re-asserts what the store has not.
    /// Returns what is to be severed.
    pub(super) fn judge(&mut self, known: &Known<'_>) -> Option<Vec<Uid>> {
        let sight = self.sight.take_if(|sight| sight.living.is_some())?;
        let mut sever = Vec::new();
        if self.session.is_some() && self.seen >= self.joined {
            for (key, uid) in self.gone(&sight, known.netns_exists) {
                self.endings.insert(uid, key);
            }
            sever = self.orphans(&sight, known);
        }
        for ask in &sight.asks {
            let uid = ask.attachment.uid;
            if ask.force {
                self.flights.remove(&uid);
                sever.push(uid);
            }
            if sight.is_there(uid) && !ask.force {
                let presents = |call: &Call| matches!(call, Call::Present(of) if *of == uid);
                if let (Some(session), false) = (self.session, self.is_calling(presents)) {
                    let host = self.host.clone();
                    self.call(Call::Present(uid), Request::Present { host, uid, session });
                }
            } else {
                self.endings.insert(uid, ask.attachment.key.clone());
                self.end(uid);
            }
        }
        Some(sever)
    }

    /// Interfaces without an attachment: what is recorded is re-asserted, the rest is severed.
    fn orphans(&mut self, sight: &Sight, known: &Known<'_>) -> Vec<Uid> {
        let living = sight.living.iter().flatten().filter(|uid| known.veths.contains_key(uid));
        let (mut sever, mut asserts) = (Vec::new(), Vec::new());
        for uid in living {
            let veth = &known.veths[uid];
            let in_the_making = self.flights.values().any(|key| *key == veth.key);
            let unjudged = in_the_making || self.endings.contains_key(uid) || self.has(*uid);
            if unjudged || veth.is_severed {
                continue;
            }
            match known.records.get(uid) {
                None => sever.push(*uid),
                Some(Record { attachment, revision }) => {
                    let newer = *revision > self.seen;
                    let lives = (known.netns_exists)(&attachment.netns);
                    if attachment.boot == self.boot && !newer && lives {
                        asserts.push(attachment.clone());
                    }
                }
            }
        }
        for attachment in asserts {
            let uid = attachment.uid;
            let asserts = |call: &Call| matches!(call, Call::Reassert(of) if *of == uid);
            if let (Some(session), false) = (self.session, self.is_calling(asserts)) {
                self.call(Call::Reassert(uid), Request::Reassert { attachment, session });
            }
        }
        sever
    }

    /// Whether the agent knows of an incarnation that it is attached.
    pub(super) fn has(&self, uid: Uid) -> bool {
        self.known.values().any(|(attachment, _)| attachment.uid == uid)
    }

    /// Whether it will end an incarnation, or hear of it.
    pub(super) fn expects(&self, uid: Uid) -> bool {
        let asserts = |call: &Call| matches!(call, Call::Reassert(of) if *of == uid);
        self.claims.contains_key(&uid)
            || self.endings.contains_key(&uid)
            || self.is_calling(asserts)
    }

    /// Lists an attachment for its end.
    pub(super) fn list(&mut self, key: AttachmentKey, uid: Uid) {
        self.endings.insert(uid, key);
    }

    /// Takes in that the store has an attachment. Returns whether it has it still.
    pub(super) fn stands(&mut self, attachment: &Attachment, revision: Revision) -> bool {
        if revision > self.seen {
            self.know(attachment.clone(), revision);
        }
        self.has(attachment.uid)
    }

    /// What is gone by evidence: never more than half of this boot's at once.
    fn gone(
        &self,
        sight: &Sight,
        netns_exists: &dyn Fn(&str) -> bool,
    ) -> Vec<(AttachmentKey, Uid)> {
        let (mut gone, mut of_this_boot, mut total) = (Vec::new(), Vec::new(), 0_usize);
        for (key, (attachment, _)) in &self.known {
            let earlier = attachment.boot != self.boot;
            total += usize::from(!earlier);
            if sight.is_there(attachment.uid) {
                continue;
            }
            if earlier {
                gone.push((key.clone(), attachment.uid));
            } else if !netns_exists(&attachment.netns) {
                of_this_boot.push((key.clone(), attachment.uid));
            }
        }
        of_this_boot.truncate(total.div_ceil(2));
        gone.append(&mut of_this_boot);
        gone
    }
}

//! Pure: what must hold of the store, revision by revision, and how each fact was when.
//!
//! It knows nothing of how decisions are made. It reads what the store tells, and it is short
//! enough to be believed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use limpet_api::FleetTime;
use limpet_api::book::{Attachment, AttachmentKey, Reservation};
use limpet_api::config::{Pool, PoolState};
use limpet_net_types::{HostName, PoolName, Token, Uid};
use serde::de::DeserializeOwned;

use crate::keys::{ReservationKey, Subject};
use crate::records::{Alive, Silent, Slot};
use crate::store::{Event, Revision, Write};

/// A fact, and since which revision it was so.
#[derive(Clone, Debug)]
pub(super) struct Since<T>(Vec<(Revision, T)>);

impl<T> Default for Since<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Since<T> {
    fn set(&mut self, revision: Revision, fact: T) {
        self.0.push((revision, fact));
    }

    /// Whether nothing was known of it at a revision.
    pub(super) fn began_after(&self, revision: Revision) -> bool {
        self.0.first().is_none_or(|(since, _)| *since > revision)
    }

    /// What it was at any time from one revision to another.
    pub(super) fn within(&self, from: Revision, to: Revision) -> impl Iterator<Item = &T> {
        let first = self.0.partition_point(|(since, _)| *since <= from).saturating_sub(1);
        self.0[first..].iter().take_while(move |(since, _)| *since <= to).map(|(_, fact)| fact)
    }
}

/// An incarnation, from its claim to its end.
#[derive(Clone, Debug)]
pub(super) struct Life {
    pub(super) attachment: Attachment,
    pub(super) from: Revision,
    pub(super) to: Option<Revision>,
}

/// An incarnation that ended, and what the store knew when it did.
#[derive(Clone, Debug)]
pub(super) struct End {
    pub(super) attachment: Attachment,
    /// Since when its host was silent.
    pub(super) silent: Option<FleetTime>,
    /// Whether a controller answered for its host.
    pub(super) is_heard: bool,
}

impl Life {
    /// Whether it was there at a revision.
    pub(super) fn covers(&self, revision: Revision) -> bool {
        self.from <= revision && self.to.is_none_or(|to| revision < to)
    }
}

/// All that the store has told.
#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) revision: Revision,
    pub(super) now: FleetTime,
    pub(super) slots: BTreeMap<IpAddr, Slot>,
    pub(super) attachments: BTreeMap<AttachmentKey, Attachment>,
    pub(super) reservations: BTreeMap<ReservationKey, Reservation>,
    pub(super) pools: BTreeMap<PoolName, Pool>,
    pub(super) asks: BTreeSet<(HostName, Uid)>,
    pub(super) heard: BTreeSet<HostName>,
    pub(super) silent: BTreeMap<HostName, FleetTime>,
    pub(super) lives: BTreeMap<Uid, Vec<Life>>,
    pub(super) sessions: BTreeMap<HostName, Since<Option<Token>>>,
    pub(super) holders: BTreeMap<IpAddr, Since<Slot>>,
    pub(super) attached: BTreeMap<AttachmentKey, Since<Option<Uid>>>,
    pub(super) kept: BTreeMap<ReservationKey, Since<Option<Vec<IpAddr>>>>,
    pub(super) usage: Since<BTreeMap<PoolName, (usize, PoolState)>>,
}

/// What a revision did that needs a reason.
#[derive(Debug, Default)]
pub(super) struct News {
    pub(super) begun: Vec<Attachment>,
    /// Those of them that had been there before.
    pub(super) again: Vec<Attachment>,
    pub(super) ended: Vec<End>,
    pub(super) released: Vec<Reservation>,
    /// Hosts that were found silent.
    pub(super) silent: Vec<HostName>,
}

fn read<T: DeserializeOwned>(write: &Write) -> Result<Option<T>, String> {
    match write {
        Write::Put(value) | Write::Ephemeral(value) => {
            serde_json::from_slice(value).map(Some).map_err(|error| error.to_string())
        }
        Write::Delete => Ok(None),
    }
}

impl Model {
    /// Takes in a revision, and checks all of the store that it touched.
    pub(super) fn take(&mut self, event: &Event) -> Result<News, String> {
        let revision = event.revision;
        if revision <= self.revision {
            return Err(format!("revision {revision} comes after {}", self.revision));
        }
        self.revision = revision;
        let (mut news, mut touched) = (News::default(), BTreeSet::new());
        for (key, write) in &event.changes {
            match Subject::parse(key).map_err(|error| error.to_string())? {
                Subject::Clock => self.set_clock(read(write)?)?,
                Subject::Pool(name) => drop(set(&mut self.pools, name, read(write)?)),
                Subject::Ask(host, uid) => match write {
                    Write::Delete => drop(self.asks.remove(&(host, uid))),
                    _ => drop(self.asks.insert((host, uid))),
                },
                Subject::Heard(host) => match write {
                    Write::Delete => drop(self.heard.remove(&host)),
                    _ => drop(self.heard.insert(host)),
                },
                Subject::Silent(host) => {
                    let silent: Option<Silent> = read(write)?;
                    if silent.is_some() {
                        news.silent.push(host.clone());
                    }
                    set(&mut self.silent, host, silent.map(|silent| silent.since));
                }
                Subject::Session(host) => {
                    let alive: Option<Alive> = read(write)?;
                    let token = alive.map(|alive| alive.session);
                    self.sessions.entry(host).or_default().set(revision, token);
                }
                Subject::Address(_, address) => {
                    let slot: Slot = read(write)?.unwrap_or_default();
                    self.holders.entry(address).or_default().set(revision, slot.clone());
                    self.slots.insert(address, slot);
                    touched.insert(address);
                }
                Subject::Reservation(key) => {
                    let new: Option<Reservation> = read(write)?;
                    touched.extend(self.reserve(&key, new, &mut news)?);
                }
                Subject::Attachment(key) => {
                    let new: Option<Attachment> = read(write)?;
                    touched.extend(self.attach(key, new, &mut news)?);
                }
                _ => {}
            }
        }
        for address in touched {
            self.check(address)?;
        }
        let usage = self.pools.values().map(|pool| (pool.name.clone(), self.used(pool))).collect();
        self.usage.set(revision, usage);
        Ok(news)
    }

    fn set_clock(&mut self, now: Option<FleetTime>) -> Result<(), String> {
        let now = now.unwrap_or(FleetTime(0));
        if now < self.now {
            return Err(format!("fleet time went back from {:?} to {now:?}", self.now));
        }
        self.now = now;
        Ok(())
    }

    /// What an incarnation was given it keeps until its end.
    fn attach(
        &mut self,
        key: AttachmentKey,
        new: Option<Attachment>,
        news: &mut News,
    ) -> Result<Vec<IpAddr>, String> {
        let revision = self.revision;
        let uid = new.as_ref().map(|new| new.uid);
        self.attached.entry(key.clone()).or_default().set(revision, uid);
        let old = set(&mut self.attachments, key, new.clone());
        let mut touched: Vec<IpAddr> = old.iter().flat_map(addresses_of).collect();
        touched.extend(new.iter().flat_map(addresses_of));
        if let Some(old) = old.filter(|old| Some(old.uid) != uid) {
            if let Some(life) = self.lives.get_mut(&old.uid).and_then(|lives| lives.last_mut()) {
                life.to = Some(revision);
            }
            let silent = self.silent.get(&old.key.host).copied();
            let is_heard = self.heard.contains(&old.key.host);
            news.ended.push(End { attachment: old, silent, is_heard });
        }
        if let Some(new) = new {
            let last = self.lives.get(&new.uid).and_then(|lives| lives.last());
            if let Some(Life { attachment, to: None, .. }) = last {
                if attachment.addresses != new.addresses {
                    return Err(format!("{} has other addresses than it was given", new.uid));
                }
            } else {
                // A claim that its agent repeats may come after the end: the agent ends it again.
                let life = Life { attachment: new.clone(), from: revision, to: None };
                if last.is_some() {
                    news.again.push(new.clone());
                }
                self.lives.entry(new.uid).or_default().push(life);
                news.begun.push(new);
            }
        }
        Ok(touched)
    }

    /// Invariant 2: a name's addresses never change while it keeps them.
    fn reserve(
        &mut self,
        key: &ReservationKey,
        new: Option<Reservation>,
        news: &mut News,
    ) -> Result<Vec<IpAddr>, String> {
        let kept = new.as_ref().map(|new| addresses_of_reservation(new).collect());
        self.kept.entry(key.clone()).or_default().set(self.revision, kept);
        let old = set(&mut self.reservations, key.clone(), new.clone());
        let touched = old.iter().chain(&new).flat_map(addresses_of_reservation).collect();
        match (old, new) {
            (Some(old), Some(new)) if old.addresses != new.addresses => {
                Err(format!("{}'s addresses were changed", key.name))
            }
            (Some(old), None) => {
                news.released.push(old);
                Ok(touched)
            }
            _ => Ok(touched),
        }
    }

    /// Whoever has an address has it alone, and everybody agrees who that is.
    fn check(&self, address: IpAddr) -> Result<(), String> {
        let slot = self.slots.get(&address).cloned().unwrap_or_default();
        let holders: Vec<Uid> = self
            .attachments
            .values()
            .filter(|attachment| addresses_of(attachment).any(|held| held == address))
            .map(|attachment| attachment.uid)
            .collect();
        let noted: Vec<Uid> = slot.attachment.iter().map(|holder| holder.uid).collect();
        if holders != noted {
            return Err(format!("{address} is held by {holders:?}, and its record says {noted:?}"));
        }
        let keepers: Vec<_> = self
            .reservations
            .values()
            .filter(|kept| addresses_of_reservation(kept).any(|held| held == address))
            .map(|kept| (&kept.namespace, &kept.name))
            .collect();
        let noted: Vec<_> =
            slot.reservation.iter().map(|owner| (&owner.namespace, &owner.name)).collect();
        if keepers != noted {
            return Err(format!(
                "{address} is reserved for {keepers:?}, and its record says {noted:?}"
            ));
        }
        let in_pool = self.pools.values().any(|pool| pool.range.contains(address));
        if slot.is_taken() && !in_pool {
            return Err(format!("{address} is in no pool"));
        }
        Ok(())
    }

    fn used(&self, pool: &Pool) -> (usize, PoolState) {
        let first = self.slots.range(pool.range.first()..=pool.range.last());
        (first.filter(|(_, slot)| slot.is_taken()).count(), pool.state)
    }

    /// What an incarnation was at a revision.
    pub(super) fn alive(&self, uid: Uid, revision: Revision) -> Option<&Life> {
        self.lives.get(&uid)?.iter().find(|life| life.covers(revision))
    }

    /// The session of a host now.
    pub(super) fn session(&self, host: &HostName) -> Option<Token> {
        let since = self.sessions.get(host)?;
        since.within(self.revision, self.revision).copied().last().flatten()
    }
}

fn set<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) -> Option<V> {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    }
}

/// The addresses of an attachment.
pub(super) fn addresses_of(attachment: &Attachment) -> impl Iterator<Item = IpAddr> + '_ {
    attachment.addresses.iter().map(|held| held.address)
}

/// The addresses of a reservation.
pub(super) fn addresses_of_reservation(
    reservation: &Reservation,
) -> impl Iterator<Item = IpAddr> + '_ {
    reservation.addresses.iter().map(|held| held.address)
}

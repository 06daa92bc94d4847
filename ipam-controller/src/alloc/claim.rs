//! Pure: what a claim is given.
//!
//! A claim is decided in this order: the same incarnation again has the same answer; a name
//! with a reservation gets its addresses, once whoever holds them has given them up; an address
//! asked for is given or refused; otherwise the pools choose. All families of the network, or
//! none.

use limpet_api::book::{
    Addresses, Attachment, AttachmentKey, AttachmentRef, Held, Origin, Reservation,
};
use limpet_api::config::{Host, Network, PoolState, Role};
use limpet_api::host::{Block, ClaimRequest, Wanted};
use limpet_api::{ApiError, ErrorCode};
use limpet_net_types::{Family, HostName, Mac, Token, Uid, WorkloadName};
use serde_json::json;

use super::ends::ask;
use super::pools::{Workload, families, is_sticky, named, serving};
use super::restored::settled;
use super::wanted::{
    asked_for, draining, mac_choice, mac_held, mac_of, not_in_pool, not_kept, one_per_family,
};
use super::{Outcome, Patience, full, pick, quota, takeover};
use crate::draft::{Decision, Draft, refuse};
use crate::keys::Subject;
use crate::records::{Alive, Owner, Slot};
use crate::rules::spaces::not_member;
use crate::state::{Entry, PoolEntry, State, is_of, reservation_key};

/// What a claim is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Granted {
    /// The attachment.
    pub(crate) attachment: Attachment,
    /// Its network.
    pub(crate) network: Network,
    /// The attachments of silent hosts that it ended.
    pub(crate) taken_over: Vec<AttachmentRef>,
}

/// Decides a claim.
pub(crate) fn claim(
    state: &State,
    key: &AttachmentKey,
    request: &ClaimRequest,
    patience: Patience,
) -> Decision<Outcome<Granted>> {
    Decision::make(|draft| {
        let alive = session(state, draft, &key.host, request.session)?;
        let host = node(state, draft, &key.host)?;
        let network = state.network(&key.network);
        draft.rely(&Subject::Network(key.network.clone()), network);
        let Some(network) = network else {
            let text = format!("there is no network {}", key.network);
            return refuse(ErrorCode::NetworkNotFound, text);
        };
        if !host.record.is_member_of(&network.record) {
            return Err(not_member(state, &host.record, &network.record));
        }
        let claimant = Claimant {
            state,
            key,
            uid: request.uid,
            boot: alive.boot,
            wanted: &request.wanted,
            host: &host.record,
            name: name_of(key, &request.wanted),
        };
        let outcome = claimant.decide(draft, patience)?;
        Ok(match outcome {
            Outcome::Done((attachment, taken_over)) => {
                let network = network.record.clone();
                Outcome::Done(Granted { attachment, network, taken_over })
            }
            Outcome::Asked(about) => Outcome::Asked(about),
        })
    })
}

/// Checks that a request carries its host's session, which the transaction then compares.
pub(crate) fn session<'a>(
    state: &'a State,
    draft: &mut Draft,
    host: &HostName,
    session: Token,
) -> Result<&'a Alive, ApiError> {
    let alive = state.session(host);
    draft.rely(&Subject::Session(host.clone()), alive);
    match alive {
        Some(alive) if alive.record.session == session => Ok(&alive.record),
        Some(_) => refuse(
            ErrorCode::SessionLost,
            format!("the session is over: a newer one was opened for host {host}"),
        ),
        None => refuse(ErrorCode::SessionLost, format!("host {host} has no session: join first")),
    }
}

fn node<'a>(
    state: &'a State,
    draft: &mut Draft,
    name: &HostName,
) -> Result<&'a Entry<Host>, ApiError> {
    let host = state.host(name);
    draft.rely(&Subject::Host(name.clone()), host);
    match host {
        Some(host) if host.record.is(Role::Node) => Ok(host),
        Some(_) => refuse(
            ErrorCode::RoleMissing,
            format!("host {name} has not the role node, without which it runs no containers"),
        ),
        None => refuse(ErrorCode::HostNotFound, format!("there is no host {name}")),
    }
}

/// The workload's name; the container's ID, which no other has, where none was given.
fn name_of(key: &AttachmentKey, wanted: &Wanted) -> WorkloadName {
    let by_id = || {
        key.container
            .as_str()
            .parse()
            .unwrap_or_else(|_| unreachable!("a container's ID is a workload's name"))
    };
    wanted.name.clone().unwrap_or_else(by_id)
}

/// Who claims, and what.
struct Claimant<'a> {
    state: &'a State,
    key: &'a AttachmentKey,
    uid: Uid,
    boot: Token,
    wanted: &'a Wanted,
    host: &'a Host,
    name: WorkloadName,
}

/// The addresses that a claim gets, before they are written down.
struct Chosen {
    addresses: Addresses,
    blocks: Vec<Block>,
    sticky: bool,
    mac: Option<Mac>,
}

impl Claimant<'_> {
    fn decide(
        &self,
        draft: &mut Draft,
        patience: Patience,
    ) -> Result<Outcome<(Attachment, Vec<AttachmentRef>)>, ApiError> {
        let mine = self.state.attachment(self.key);
        draft.rely(&Subject::Attachment(self.key.clone()), mine);
        if let Some(mine) = mine {
            if mine.record.uid == self.uid {
                return Ok(Outcome::Done((mine.record.clone(), Vec::new())));
            }
            settled(self.state, draft)?;
            let about = AttachmentRef { key: self.key.clone(), uid: mine.record.uid };
            return ask(self.state, draft, about, patience, still_there);
        }
        settled(self.state, draft)?;
        one_per_family(&self.wanted.addresses)?;
        let mut taken_over = Vec::new();
        let chosen = match self.reservation(draft) {
            Some(Entry { record: reservation, .. }) => {
                let holders = self.holders(reservation);
                // Its other interface keeps what is reserved; this one gets an address besides.
                if holders.iter().any(|holder| self.is_of_this_container(holder)) {
                    self.choose(draft, false)?
                } else {
                    for holder in holders {
                        if !self.may_take_over(draft, reservation, holder, patience)? {
                            let about = holder.clone();
                            return ask(self.state, draft, about, patience, |it| self.held(it));
                        }
                        taken_over.push(holder.clone());
                    }
                    self.as_reserved(draft, reservation)?
                }
            }
            None => self.choose(draft, true)?,
        };
        mac_choice(self.state, draft, &self.key.network, self.wanted.mac.is_some());
        if let Some(mac) = chosen.mac {
            self.check_mac(mac, &taken_over)?;
        }
        let by = &self.key.host;
        for holder in &taken_over {
            takeover::write(self.state, draft, holder, by);
        }
        Ok(Outcome::Done((self.write(draft, chosen), taken_over)))
    }

    /// Whether the host of whoever holds what is reserved is silent, and has been for long enough.
    /// Its own host is not: it is the one that claims.
    fn may_take_over(
        &self,
        draft: &mut Draft,
        reservation: &Reservation,
        holder: &AttachmentRef,
        patience: Patience,
    ) -> Result<bool, ApiError> {
        if patience != Patience::Left || holder.key.host == self.key.host {
            return Ok(false);
        }
        takeover::may(self.state, draft, reservation, holder)
    }

    /// The name's reservation, which the transaction compares also where there is none.
    fn reservation(&self, draft: &mut Draft) -> Option<&Entry<Reservation>> {
        let name = self.wanted.name.as_ref()?;
        let key = reservation_key(&self.key.network, &self.wanted.namespace, name);
        let reservation = self.state.reservation(&key);
        draft.rely(&Subject::Reservation(key), reservation);
        reservation
    }

    /// Who holds what is reserved: nobody, or hardly ever more than one.
    fn holders(&self, reservation: &Reservation) -> Vec<&AttachmentRef> {
        let mut holders: Vec<&AttachmentRef> = Vec::new();
        for held in &reservation.addresses {
            let slot = self.state.slot(&self.key.network, held.address);
            let holder = slot.and_then(|slot| slot.record.attachment.as_ref());
            holders.extend(holder.filter(|new| holders.iter().all(|other| other.uid != new.uid)));
        }
        holders
    }

    fn is_of_this_container(&self, holder: &AttachmentRef) -> bool {
        holder.key.host == self.key.host && holder.key.container == self.key.container
    }

    /// What is reserved, also from a pool that is draining: it was given before.
    fn as_reserved(
        &self,
        draft: &mut Draft,
        reservation: &Reservation,
    ) -> Result<Chosen, ApiError> {
        let reserved = &reservation.addresses;
        for held in reserved {
            let pool = self.state.pool(&held.pool);
            draft.rely_on(&Subject::Pool(held.pool.clone()), pool.map(|pool| pool.revision));
        }
        for asked in &self.wanted.addresses {
            if !reserved.iter().any(|held| held.address == *asked) {
                let (namespace, name) = (&reservation.namespace, &reservation.name);
                let theirs: Vec<String> =
                    reserved.iter().map(|held| held.address.to_string()).collect();
                let theirs = theirs.join(" and ");
                let text = format!(
                    "{asked} was asked for, but {theirs} is reserved for {namespace}/{name}"
                );
                return refuse(ErrorCode::ReservationMismatch, text);
            }
        }
        Ok(Chosen {
            addresses: reserved.clone(),
            blocks: Vec::new(),
            sticky: true,
            mac: Some(self.wanted.mac.unwrap_or(reservation.mac)),
        })
    }

    /// Chooses an address of each family; whether a reservation is made for it, the pools say.
    fn choose(&self, draft: &mut Draft, may_reserve: bool) -> Result<Chosen, ApiError> {
        let (state, network) = (self.state, &self.key.network);
        let asked_pools = named(state, network, &self.wanted.pools)?;
        let mut chosen = Chosen {
            addresses: Addresses::new(),
            blocks: vec![],
            sticky: may_reserve,
            mac: self.wanted.mac,
        };
        let families = families(state, network);
        if families.is_empty() {
            let text = format!("network {network} has no pool");
            return refuse(ErrorCode::NoPool, text);
        }
        if let Some(address) =
            self.wanted.addresses.iter().find(|address| !families.contains(&Family::of(**address)))
        {
            return refuse(ErrorCode::AddressNotInPool, not_in_pool(*address, network));
        }
        quota::take(state, draft, &self.wanted.namespace, families.len())?;
        for family in families {
            let asked = self.wanted.addresses.iter().find(|address| is_of(family, **address));
            let (pool, pick) = match (asked, asked_pools.get(&family)) {
                (Some(&address), pool) => {
                    let pool = asked_for(state, network, address, pool.copied())?;
                    (pool, pick::Pick { address, block: None })
                }
                (None, Some(pool)) => (*pool, self.pick_from(pool)?),
                (None, None) => self.pick_served(family)?,
            };
            draft.rely_on(&Subject::Pool(pool.record.name.clone()), Some(pool.revision));
            chosen.sticky &=
                is_sticky(pool.record.sticky, self.wanted.name.as_ref(), self.wanted.sticky);
            chosen.blocks.extend(pick.block);
            let pool = pool.record.name.clone();
            chosen.addresses.push(Held { address: pick.address, pool });
        }
        Ok(chosen)
    }

    fn pick_from(&self, pool: &PoolEntry) -> Result<pick::Pick, ApiError> {
        if pool.record.state == PoolState::Draining {
            return refuse(ErrorCode::NoPool, draining(pool));
        }
        let picked = pick::next(self.state, self.state.now(), pool, &self.key.host);
        picked.ok_or_else(|| full::full(self.state, self.state.now(), &[pool]))
    }

    fn pick_served(&self, family: Family) -> Result<(&PoolEntry, pick::Pick), ApiError> {
        let workload = Workload {
            namespace: &self.wanted.namespace,
            name: self.wanted.name.as_ref(),
            host: Some(self.host),
        };
        let (state, now) = (self.state, self.state.now());
        let pools = serving(state, &self.key.network, family, workload)?;
        let picked = pools
            .iter()
            .find_map(|pool| Some((*pool, pick::next(state, now, pool, &self.key.host)?)));
        picked.ok_or_else(|| full::full(state, now, &pools))
    }

    /// A MAC address that was asked for, or is reserved, must be no other interface's.
    fn check_mac(&self, mac: Mac, ending: &[AttachmentRef]) -> Result<(), ApiError> {
        let network = &self.key.network;
        let key = reservation_key(network, &self.wanted.namespace, &self.name);
        not_kept(self.state, &key, mac)?;
        self.state
            .mac_holder(network, mac)
            .filter(|holder| ending.iter().all(|ending| ending.uid != holder.record.uid))
            .map_or(Ok(()), |holder| Err(mac_held(mac, &holder.record)))
    }

    fn write(&self, draft: &mut Draft, chosen: Chosen) -> Attachment {
        let AttachmentKey { network, host, .. } = self.key;
        let mac = chosen.mac.unwrap_or_else(|| {
            let is_free = |mac| self.check_mac(mac, &[]).is_ok();
            mac_of(network, &chosen.addresses, &self.uid.to_string(), is_free)
        });
        let attachment = Attachment {
            key: self.key.clone(),
            uid: self.uid,
            boot: self.boot,
            namespace: self.wanted.namespace.clone(),
            name: self.name.clone(),
            sticky: chosen.sticky,
            addresses: chosen.addresses,
            mac,
            runtime: self.wanted.runtime.clone(),
            netns: self.wanted.netns.as_str().into(),
            created: self.state.now(),
            created_wall: Some(self.state.wall()),
        };
        let owner = chosen.sticky.then(|| Owner {
            namespace: attachment.namespace.clone(),
            name: attachment.name.clone(),
        });
        let slot = Slot {
            reservation: owner,
            attachment: Some(AttachmentRef { key: self.key.clone(), uid: self.uid }),
            released: None,
        };
        for held in &attachment.addresses {
            let subject = Subject::Address(network.clone(), held.address);
            draft.rely(&subject, self.state.slot(network, held.address));
            draft.put_slot(subject, slot.clone());
        }
        for block in chosen.blocks {
            let subject = Subject::Block(block.pool.clone(), block.prefix);
            draft.rely_on(&subject, None);
            draft.put(&subject, &block);
        }
        if attachment.sticky {
            let reservation = reserved_for(self.state, &attachment, host);
            draft.put_reservation(&reservation);
        }
        draft.put_attachment(&attachment);
        attachment
    }

    fn held(&self, holder: &AttachmentRef) -> ApiError {
        let AttachmentKey { host, container, ifname, .. } = &holder.key;
        let (namespace, name) = (&self.wanted.namespace, &self.name);
        let text = format!(
            "the addresses of {namespace}/{name} are in use by container {container} ({ifname}) \
             on host {host}, which has not given them up"
        );
        ApiError::new(ErrorCode::ReservationHeld, text)
            .with_details(json!({ "host": host, "container": container, "ifname": ifname }))
    }
}

fn still_there(mine: &AttachmentRef) -> ApiError {
    let AttachmentKey { host, container, ifname, .. } = &mine.key;
    let text = format!(
        "interface {ifname} of container {container} on host {host} is attached already, \
         and its host has not ended it"
    );
    ApiError::new(ErrorCode::AttachmentPresent, text)
        .with_details(json!({ "host": host, "container": container, "ifname": ifname }))
}

/// The reservation of an attachment's name as it is once the attachment is made.
fn reserved_for(state: &State, attachment: &Attachment, host: &HostName) -> Reservation {
    let network = &attachment.key.network;
    let key = reservation_key(network, &attachment.namespace, &attachment.name);
    if let Some(entry) = state.reservation(&key) {
        return Reservation {
            mac: attachment.mac,
            last_host: Some(host.clone()),
            detached_at: None,
            ..entry.record.clone()
        };
    }
    let retention = attachment
        .addresses
        .first()
        .and_then(|held| state.pool(&held.pool))
        .map_or(limpet_api::config::DEFAULT_RETENTION, |pool| pool.record.retention);
    Reservation {
        network: network.clone(),
        namespace: attachment.namespace.clone(),
        name: attachment.name.clone(),
        addresses: attachment.addresses.clone(),
        mac: attachment.mac,
        retention,
        origin: Origin::Automatic,
        attachment: None,
        last_host: Some(host.clone()),
        detached_at: None,
        created: Some(state.now()),
    }
}

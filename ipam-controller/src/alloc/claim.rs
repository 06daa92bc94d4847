//! Pure: what a claim is given, and what ending an attachment does.
//!
//! A claim is decided in this order: the same incarnation again has the same answer; a name
//! with a reservation gets its addresses, once whoever holds them has given them up; an address
//! asked for is given or refused; otherwise the pools choose. All families of the network, or
//! none.

use std::net::IpAddr;

use limpet_api::book::{Attachment, AttachmentKey, AttachmentRef, Held, Origin, Reservation};
use limpet_api::config::{Host, Network, PoolState, Role};
use limpet_api::host::{Ask, Block, ClaimRequest, EndRequest, Wanted};
use limpet_api::{ApiError, ErrorCode};
use limpet_net_types::{Family, HostName, Mac, Namespace, NetworkName, Token, Uid, WorkloadName};
use serde_json::json;

use super::pools::{Workload, families, is_sticky, named, serving};
use super::{Outcome, Patience, pick};
use crate::draft::{Decision, Draft, refuse};
use crate::keys::Subject;
use crate::records::{Alive, Owner, Slot};
use crate::state::{Entry, PoolEntry, State, is_of, reservation_key};

/// Decides a claim.
pub(crate) fn claim(
    state: &State,
    key: &AttachmentKey,
    request: &ClaimRequest,
    patience: Patience,
) -> Decision<Outcome<(Attachment, Network)>> {
    Decision::make(|draft| {
        let alive = session(state, draft, &key.host, request.session)?;
        let host = node(state, draft, &key.host)?;
        let network = state.network(&key.network);
        draft.rely(&Subject::Network(key.network.clone()), network);
        let Some(network) = network else {
            let text = format!("there is no network {}", key.network);
            return refuse(ErrorCode::NetworkNotFound, text);
        };
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
            Outcome::Done(attachment) => Outcome::Done((attachment, network.record.clone())),
            Outcome::Asked(about) => Outcome::Asked(about),
        })
    })
}

/// Decides the end of an attachment by its own host. Another incarnation than the one named is
/// left alone, and that is a success.
pub(crate) fn end(state: &State, key: &AttachmentKey, request: &EndRequest) -> Decision<()> {
    Decision::make(|draft| {
        session(state, draft, &key.host, request.session)?;
        let attachment = state.attachment(key);
        draft.rely(&Subject::Attachment(key.clone()), attachment);
        if let Some(attachment) = attachment.filter(|entry| entry.record.uid == request.uid) {
            end_attachment(state, draft, &attachment.record);
        }
        Ok(())
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
    addresses: Vec<Held>,
    blocks: Vec<Block>,
    sticky: bool,
    mac: Option<Mac>,
}

impl Claimant<'_> {
    fn decide(
        &self,
        draft: &mut Draft,
        patience: Patience,
    ) -> Result<Outcome<Attachment>, ApiError> {
        let mine = self.state.attachment(self.key);
        draft.rely(&Subject::Attachment(self.key.clone()), mine);
        if let Some(mine) = mine {
            if mine.record.uid == self.uid {
                return Ok(Outcome::Done(mine.record.clone()));
            }
            let about = AttachmentRef { key: self.key.clone(), uid: mine.record.uid };
            return ask(self.state, draft, about, patience, still_there);
        }
        one_per_family(&self.wanted.addresses)?;
        let chosen = match self.reservation(draft) {
            Some(reservation) => match self.holder(&reservation.record) {
                None => self.as_reserved(&reservation.record)?,
                // Its other interface keeps what is reserved; this one gets an address besides.
                Some(holder) if self.is_of_this_container(holder) => self.choose(draft, false)?,
                Some(holder) => {
                    let about = holder.clone();
                    return ask(self.state, draft, about, patience, |about| self.held(about));
                }
            },
            None => self.choose(draft, true)?,
        };
        self.check_mac(chosen.mac)?;
        Ok(Outcome::Done(self.write(draft, chosen)))
    }

    /// The name's reservation, which the transaction compares also where there is none.
    fn reservation(&self, draft: &mut Draft) -> Option<&Entry<Reservation>> {
        let name = self.wanted.name.as_ref()?;
        let key = reservation_key(&self.key.network, &self.wanted.namespace, name);
        let reservation = self.state.reservation(&key);
        draft.rely(&Subject::Reservation(key), reservation);
        reservation
    }

    fn holder(&self, reservation: &Reservation) -> Option<&AttachmentRef> {
        reservation.addresses.iter().find_map(|held| {
            self.state.slot(&self.key.network, held.address)?.record.attachment.as_ref()
        })
    }

    fn is_of_this_container(&self, holder: &AttachmentRef) -> bool {
        holder.key.host == self.key.host && holder.key.container == self.key.container
    }

    fn as_reserved(&self, reservation: &Reservation) -> Result<Chosen, ApiError> {
        let reserved = &reservation.addresses;
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
        let mut chosen =
            Chosen { addresses: vec![], blocks: vec![], sticky: may_reserve, mac: self.wanted.mac };
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
        pick::next(self.state, self.state.now(), pool, &self.key.host)
    }

    fn pick_served(&self, family: Family) -> Result<(&PoolEntry, pick::Pick), ApiError> {
        let workload = Workload {
            namespace: &self.wanted.namespace,
            name: self.wanted.name.as_ref(),
            host: Some(self.host),
        };
        let mut last = None;
        for pool in serving(self.state, &self.key.network, family, workload)? {
            match self.pick_from(pool) {
                Ok(pick) => return Ok((pool, pick)),
                Err(full) => last = Some(full),
            }
        }
        Err(last.unwrap_or_else(|| unreachable!("at least one pool serves, or it was refused")))
    }

    fn check_mac(&self, mac: Option<Mac>) -> Result<(), ApiError> {
        let Some(mac) = mac else { return Ok(()) };
        if self.state.mac_holder(&self.key.network, mac).is_none() {
            return Ok(());
        }
        let network = &self.key.network;
        let text = format!("MAC address {mac} is in use by another interface of network {network}");
        refuse(ErrorCode::MacHeld, text)
    }

    fn write(&self, draft: &mut Draft, chosen: Chosen) -> Attachment {
        let AttachmentKey { network, host, .. } = self.key;
        let mac = chosen.mac.unwrap_or_else(|| mac_of(network, &chosen.addresses));
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
            netns: self.wanted.netns.clone(),
            created: self.state.now(),
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
            draft.put(&subject, &slot);
        }
        for block in chosen.blocks {
            let subject = Subject::Block(block.pool.clone(), block.prefix);
            draft.rely_on(&subject, None);
            draft.put(&subject, &block);
        }
        if attachment.sticky {
            let reservation = reserved_for(self.state, &attachment, host);
            let key = reservation_key(network, &attachment.namespace, &attachment.name);
            draft.put(&Subject::Reservation(key), &reservation);
        }
        draft.put(&Subject::Attachment(self.key.clone()), &attachment);
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

/// Asks the host of `about` whether it is there; refuses with `held` when that took too long.
pub(super) fn ask<T>(
    state: &State,
    draft: &mut Draft,
    about: AttachmentRef,
    patience: Patience,
    held: impl FnOnce(&AttachmentRef) -> ApiError,
) -> Result<Outcome<T>, ApiError> {
    let subject = Subject::Ask(about.key.host.clone(), about.uid);
    let asked = state.ask(&about.key.host, about.uid);
    let attachment = Subject::Attachment(about.key.clone());
    draft.rely(&attachment, state.attachment(&about.key));
    if patience == Patience::Over {
        return Err(held(&about));
    }
    if asked.is_none() {
        draft.rely_on(&subject, None);
        draft.put(&subject, &Ask { attachment: about.clone(), present: false });
    }
    Ok(Outcome::Asked(about))
}

/// Takes a question back that nobody waits for any more. Asked anew it is looked into anew.
pub(crate) fn withdraw(state: &State, host: &HostName, uid: Uid) -> Decision<()> {
    Decision::make(|draft| {
        let subject = Subject::Ask(host.clone(), uid);
        let asked = state.ask(host, uid);
        draft.rely(&subject, asked);
        if asked.is_some() {
            draft.delete(&subject);
        }
        Ok(())
    })
}

/// Writes the end of an attachment: its addresses go back to the reservation, or cool.
pub(super) fn end_attachment(state: &State, draft: &mut Draft, attachment: &Attachment) {
    let Attachment { key, uid, namespace, name, .. } = attachment;
    let subject = Subject::Attachment(key.clone());
    draft.rely(&subject, state.attachment(key));
    draft.delete(&subject);
    let mut reserved = false;
    for held in &attachment.addresses {
        let subject = Subject::Address(key.network.clone(), held.address);
        let entry = state.slot(&key.network, held.address);
        draft.rely(&subject, entry);
        let Some(slot) = entry.map(|entry| &entry.record) else { continue };
        if slot.attachment.as_ref().is_none_or(|holder| holder.uid != *uid) {
            continue;
        }
        let reservation = slot.reservation.clone();
        reserved |= reservation.is_some();
        let released = reservation.is_none().then(|| state.now());
        draft.put(&subject, &Slot { reservation, attachment: None, released });
    }
    let reservation_key = reservation_key(&key.network, namespace, name);
    if let Some(entry) = state.reservation(&reservation_key).filter(|_| reserved) {
        let detached_at = Some(state.now());
        let reservation = Reservation { detached_at, ..entry.record.clone() };
        let subject = Subject::Reservation(reservation_key);
        draft.rely(&subject, Some(entry));
        draft.put(&subject, &reservation);
    }
    let asked = Subject::Ask(key.host.clone(), *uid);
    if state.ask(&key.host, *uid).is_some() {
        draft.delete(&asked);
    }
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
    }
}

/// The MAC address of an interface for which none was asked: of its IPv4 address, which makes
/// it unique in its network, or a hash of the IPv6 one.
pub(super) fn mac_of(network: &NetworkName, addresses: &[Held]) -> Mac {
    let first = addresses.first().map(|held| held.address);
    if let Some(IpAddr::V4(address)) = first {
        let [a, b, c, d] = address.octets();
        if let Ok(mac) = Mac::new([0x02, 0x4c, a, b, c, d]) {
            return mac;
        }
    }
    let address = first.map(|address| address.to_string()).unwrap_or_default();
    Mac::derived(&[network.as_str(), &address])
}

/// Refuses two addresses of one family.
pub(super) fn one_per_family(addresses: &[IpAddr]) -> Result<(), ApiError> {
    for family in Family::BOTH {
        let mut of_family = addresses.iter().filter(|address| is_of(family, **address));
        if let (Some(first), Some(second)) = (of_family.next(), of_family.next()) {
            let text = format!("{first} and {second} are both of {family}: ask for one");
            return refuse(ErrorCode::Invalid, text);
        }
    }
    Ok(())
}

/// Checks that an address asked for can be had by somebody new, and returns its pool.
pub(super) fn asked_for<'a>(
    state: &'a State,
    network: &NetworkName,
    address: IpAddr,
    pool: Option<&PoolEntry>,
) -> Result<&'a PoolEntry, ApiError> {
    let Some(found) = state.pool_at(network, address) else {
        return refuse(ErrorCode::AddressNotInPool, not_in_pool(address, network));
    };
    if let Some(pool) = pool.filter(|pool| pool.record.name != found.record.name) {
        let (asked, has) = (&pool.record.name, &found.record.name);
        let text = format!("{address} is in pool {has}, and pool {asked} was asked for");
        return refuse(ErrorCode::AddressNotInPool, text);
    }
    if !found.givable.allows(crate::state::bits(address)) {
        let text = format!("{address} is excluded from pool {}", found.record.name);
        return refuse(ErrorCode::AddressNotInPool, text);
    }
    if let Some(slot) = state.slot(network, address).filter(|slot| slot.record.is_taken()) {
        return Err(taken(address, &slot.record));
    }
    if found.record.state == PoolState::Draining {
        return refuse(ErrorCode::NoPool, draining(found));
    }
    Ok(found)
}

fn taken(address: IpAddr, slot: &Slot) -> ApiError {
    let mut details = json!({ "address": address });
    let text = if let Some(AttachmentRef { key, .. }) = &slot.attachment {
        details["host"] = json!(key.host);
        details["container"] = json!(key.container);
        format!("{address} is held by container {} on host {}", key.container, key.host)
    } else if let Some(Owner { namespace, name }) = &slot.reservation {
        details["namespace"] = json!(namespace);
        details["name"] = json!(name);
        format!("{address} is reserved for {}", owner_text(namespace, name))
    } else {
        unreachable!("an address that is taken is held or reserved")
    };
    ApiError::new(ErrorCode::AddressHeld, text).with_details(details)
}

fn owner_text(namespace: &Namespace, name: &WorkloadName) -> String {
    format!("{namespace}/{name}")
}

fn not_in_pool(address: IpAddr, network: &NetworkName) -> String {
    format!("{address} is in no pool of network {network}")
}

fn draining(pool: &PoolEntry) -> String {
    format!("pool {} is draining: it gives no new addresses", pool.record.name)
}

//! Pure: what becomes of an attachment that its host says is alive.
//!
//! A store that was restored, or that lost a claim, knows less than the hosts do. What lives and has
//! nobody's addresses gets them back; what has another's is severed by its host. Of two records for
//! one address the later tenure counts: two of one address never lasted at the same time, so the one
//! from the backup had ended when the other began.

use std::net::IpAddr;

use limpet_api::book::{
    Addresses, Attachment, AttachmentKey, AttachmentRef, EndReason, EndedBy, Held, Origin,
    Reservation,
};
use limpet_api::config::DEFAULT_RETENTION;
use limpet_api::host::ReassertOutcome;
use limpet_api::{ApiError, ErrorCode};
use limpet_net_types::{HostName, Token, Uid};
use serde_json::json;

use super::claim::session;
use super::ends::{Ending, end_attachment};
use super::wanted::{mac_choice, mac_of};
use crate::draft::{Decision, Draft};
use crate::keys::{ReservationKey, Subject};
use crate::records::{Owner, Slot};
use crate::state::{State, reservation_key};

/// What one attachment comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// This.
    Known(ReassertOutcome),
    /// That depends on a host that has not said yet what lives on it.
    Waits(HostName),
}

/// Decides what becomes of an attachment that its host says is alive. Repeated, it changes nothing.
pub(crate) fn reassert(state: &State, asserted: &Attachment, token: Token) -> Decision<Fate> {
    Decision::make(|draft| {
        let alive = session(state, draft, &asserted.key.host, token)?;
        draft.rely(&Subject::Restored, state.restored());
        let subject = Subject::Attachment(asserted.key.clone());
        let mine = state.attachment(&asserted.key);
        draft.rely(&subject, mine);
        if mine.is_some_and(|mine| mine.record.uid == asserted.uid) {
            return Ok(Fate::Known(ReassertOutcome::Kept));
        }
        if asserted.boot != alive.boot {
            return Ok(severed(None, "it is of an earlier boot of its host".to_owned()));
        }
        let mut claimant = Claimant { state, asserted, stale: Vec::new() };
        match claimant.judge(draft) {
            Ok(addresses) => {
                claimant.write(draft, addresses);
                Ok(Fate::Known(ReassertOutcome::Restored))
            }
            Err(fate) => Ok(fate),
        }
    })
}

/// Decides the end of an attachment that its host does not have, having said all that it has.
///
/// Only while the host is waited for after a restore: nothing new can have been attached since.
pub(crate) fn missing(state: &State, key: &AttachmentKey, uid: Uid, token: Token) -> Decision<()> {
    Decision::make(|draft| {
        session(state, draft, &key.host, token)?;
        let waiting = state.restored();
        draft.rely(&Subject::Restored, waiting);
        let entry = state.attachment(key);
        draft.rely(&Subject::Attachment(key.clone()), entry);
        let is_waited_for =
            waiting.is_some_and(|restored| restored.record.waiting.contains(&key.host));
        if let Some(entry) = entry.filter(|entry| entry.record.uid == uid && is_waited_for) {
            let by = EndedBy::Host(key.host.clone());
            let ending = Ending { reason: EndReason::Gone, by };
            end_attachment(state, draft, &entry.record, &ending);
        }
        Ok(())
    })
}

/// The refusal of a host that is to ask again, because another one is waited for.
pub(crate) fn waits_for(host: &HostName) -> ApiError {
    let text = format!(
        "host {host} has not said since the restore what lives on it, and has a record of an \
         address that this host asserts"
    );
    ApiError::new(ErrorCode::StoreRestored, text).with_details(json!({ "waiting": [host] }))
}

fn severed(holder: Option<AttachmentRef>, why: String) -> Fate {
    Fate::Known(ReassertOutcome::Severed { holder, why })
}

struct Claimant<'a> {
    state: &'a State,
    asserted: &'a Attachment,
    /// Attachments of the backup that had ended when this one was made.
    stale: Vec<&'a Attachment>,
}

impl<'a> Claimant<'a> {
    /// Returns its addresses, with the pools that have them now, if nobody else has them.
    fn judge(&mut self, draft: &mut Draft) -> Result<Addresses, Fate> {
        let (state, asserted) = (self.state, self.asserted);
        let network = &asserted.key.network;
        let entry = state.network(network);
        draft.rely(&Subject::Network(network.clone()), entry);
        if entry.is_none() {
            return Err(severed(None, format!("there is no network {network} any more")));
        }
        self.yields(state.attachment(&asserted.key).map(|entry| &entry.record))?;
        let addresses = asserted.addresses.iter().map(|held| self.address(draft, held.address));
        let mut pools = Addresses::new();
        for held in addresses.collect::<Vec<_>>() {
            let (held, holder) = held?;
            self.yields(holder)?;
            pools.push(held);
        }
        self.mac(draft)?;
        self.reservation(draft)?;
        Ok(pools)
    }

    /// The pool of an address, and who holds it.
    fn address(
        &self,
        draft: &mut Draft,
        address: IpAddr,
    ) -> Result<(Held, Option<&'a Attachment>), Fate> {
        let network = &self.asserted.key.network;
        let entry = self.state.slot(network, address);
        draft.rely(&Subject::Address(network.clone(), address), entry);
        let Some(pool) = self.state.pool_at(network, address) else {
            return Err(severed(None, format!("{address} is in no pool of network {network}")));
        };
        draft.rely_on(&Subject::Pool(pool.record.name.clone()), Some(pool.revision));
        let slot = entry.map(|entry| &entry.record);
        let others = |owner: &&Owner| **owner != self.owner();
        if let Some(owner) = slot.and_then(|slot| slot.reservation.as_ref()).filter(others) {
            let Owner { namespace, name } = owner;
            return Err(severed(None, format!("{address} is reserved for {namespace}/{name}")));
        }
        let holder = slot.and_then(|slot| slot.attachment.as_ref());
        let held = Held { address, pool: pool.record.name.clone() };
        Ok((held, holder.and_then(|holder| self.living(holder))))
    }

    fn owner(&self) -> Owner {
        let Attachment { namespace, name, .. } = self.asserted;
        Owner { namespace: namespace.clone(), name: name.clone() }
    }

    fn living(&self, holder: &AttachmentRef) -> Option<&'a Attachment> {
        let entry = self.state.attachment(&holder.key)?;
        (entry.record.uid == holder.uid).then_some(&entry.record)
    }

    /// Finds out whether another attachment gives way, and notes it if so.
    fn yields(&mut self, holder: Option<&'a Attachment>) -> Result<(), Fate> {
        let Some(holder) = holder.filter(|holder| holder.uid != self.asserted.uid) else {
            return Ok(());
        };
        let AttachmentKey { host, container, .. } = &holder.key;
        let reference = AttachmentRef { key: holder.key.clone(), uid: holder.uid };
        let why = format!("container {container} on host {host} has what it had");
        let Some(restored) = self.state.restored().map(|entry| &entry.record) else {
            return Err(severed(Some(reference), why));
        };
        if holder.created >= restored.at {
            // It was claimed or re-asserted since.
            return Err(severed(Some(reference), why));
        }
        if restored.waiting.contains(host) && !restored.spoken.contains(host) {
            return Err(Fate::Waits(host.clone()));
        }
        if holder.created >= self.asserted.created {
            return Err(severed(Some(reference), why));
        }
        if self.stale.iter().all(|stale| stale.key != holder.key) {
            self.stale.push(holder);
        }
        Ok(())
    }

    fn mac(&mut self, draft: &mut Draft) -> Result<(), Fate> {
        let (state, asserted) = (self.state, self.asserted);
        let network = &asserted.key.network;
        let usual = mac_of(network, &asserted.addresses, "", |_| true);
        mac_choice(state, draft, network, asserted.mac != usual);
        let key = reservation_key(network, &asserted.namespace, &asserted.name);
        if let Some(keeper) =
            state.mac_keeper(network, asserted.mac).filter(|keeper| *keeper != key)
        {
            let ReservationKey { namespace, name, .. } = keeper;
            let mac = asserted.mac;
            let why = format!("MAC address {mac} is reserved for {namespace}/{name}");
            return Err(severed(None, why));
        }
        self.yields(state.mac_holder(network, asserted.mac).map(|entry| &entry.record))
    }

    /// If the name has a reservation of other addresses which somebody holds, the name is attached
    /// elsewhere.
    fn reservation(&mut self, draft: &mut Draft) -> Result<(), Fate> {
        let (state, asserted) = (self.state, self.asserted);
        let key = reservation_key(&asserted.key.network, &asserted.namespace, &asserted.name);
        let entry = state.reservation(&key);
        draft.rely(&Subject::Reservation(key.clone()), entry);
        let Some(reservation) = entry.filter(|_| asserted.sticky) else { return Ok(()) };
        for held in &reservation.record.addresses {
            let slot = state.slot(&key.network, held.address);
            draft.rely(&Subject::Address(key.network.clone(), held.address), slot);
            let holder = slot.and_then(|slot| slot.record.attachment.as_ref());
            self.yields(holder.and_then(|holder| self.living(holder)))?;
        }
        Ok(())
    }

    fn write(&self, draft: &mut Draft, addresses: Addresses) {
        let (state, network) = (self.state, &self.asserted.key.network);
        let by = EndedBy::Host(self.asserted.key.host.clone());
        for stale in &self.stale {
            let ending = Ending { reason: EndReason::Gone, by: by.clone() };
            end_attachment(state, draft, stale, &ending);
        }
        // What lives is not refused, and counts.
        super::quota::ticket(state, draft, &self.asserted.namespace);
        let owner = self.owner();
        let is_kept = |held: &Held| {
            let slot = state.slot(network, held.address);
            slot.is_some_and(|slot| slot.record.reservation.as_ref() == Some(&owner))
        };
        let sticky = self.asserted.sticky || addresses.iter().all(is_kept);
        let attachment = Attachment { sticky, addresses, ..self.asserted.clone() };
        let uid = attachment.uid;
        let holder = AttachmentRef { key: attachment.key.clone(), uid };
        if sticky {
            self.write_reservation(draft, &attachment);
        }
        for held in &attachment.addresses {
            let reservation = (sticky || is_kept(held)).then(|| owner.clone());
            let slot = Slot { reservation, attachment: Some(holder.clone()), released: None };
            draft.put_slot(Subject::Address(network.clone(), held.address), slot);
        }
        draft.put_attachment(&attachment);
    }

    /// Brings the name's reservation in line, or makes it again.
    fn write_reservation(&self, draft: &mut Draft, attachment: &Attachment) {
        let (state, network) = (self.state, &attachment.key.network);
        let key = reservation_key(network, &attachment.namespace, &attachment.name);
        let pool = attachment.addresses.first().and_then(|held| state.pool(&held.pool));
        let before = state.reservation(&key).map(|entry| entry.record.clone());
        let has = |address| attachment.addresses.iter().any(|held| held.address == address);
        let given_up = before.iter().flat_map(|reservation| &reservation.addresses);
        for held in given_up.filter(|held| !has(held.address)) {
            let slot = Slot { released: Some(state.now()), ..Slot::default() };
            draft.put_slot(Subject::Address(network.clone(), held.address), slot);
        }
        let before = before.unwrap_or_else(|| Reservation {
            network: network.clone(),
            namespace: attachment.namespace.clone(),
            name: attachment.name.clone(),
            addresses: Addresses::new(),
            mac: attachment.mac,
            retention: pool.map_or(DEFAULT_RETENTION, |pool| pool.record.retention),
            origin: Origin::Automatic,
            attachment: None,
            last_host: None,
            detached_at: None,
            created: Some(state.now()),
        });
        let reservation = Reservation {
            addresses: attachment.addresses.clone(),
            mac: attachment.mac,
            last_host: Some(attachment.key.host.clone()),
            detached_at: None,
            ..before
        };
        draft.put_reservation(&reservation);
    }
}

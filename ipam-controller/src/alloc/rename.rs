//! Pure: a reservation that is for another name from now on.

use limpet_api::book::{AttachmentKey, Rename, Reservation};
use limpet_api::{ApiError, ErrorCode};
use serde_json::json;

use super::reserve::{found, holder, in_use};
use super::restored::settled;
use crate::draft::{Decision, refuse};
use crate::keys::{ReservationKey, Subject};
use crate::records::{Owner, Slot};
use crate::state::{Entry, State, reservation_key};
use crate::store::Revision;

/// Decides that a reservation is for the name `to` from now on: addresses, MAC address and retention
/// are as before.
///
/// `running` are the attachments in question as those of the new name. One that is made meanwhile
/// does no harm: the name gets its reserved addresses when it comes next, as any that was reserved
/// for while it ran.
pub(crate) fn rename(
    state: &State,
    from: &ReservationKey,
    to: &Rename,
    running: &[AttachmentKey],
) -> Decision<Entry<Reservation>> {
    Decision::make(|draft| {
        let entry = found(state, draft, from)?;
        let Rename { namespace, name } = to;
        let key = reservation_key(&from.network, namespace, name);
        if key == *from {
            return Ok(entry.clone());
        }
        if let Some(holder) = holder(state, &entry.record) {
            return Err(in_use(from, holder));
        }
        let other = state.reservation(&key);
        draft.rely(&Subject::Reservation(key.clone()), other);
        if let Some(Entry { record: other, .. }) = other {
            let theirs: Vec<String> =
                other.addresses.iter().map(|held| held.address.to_string()).collect();
            let theirs = theirs.join(" and ");
            let text = format!("{namespace}/{name} has a reservation already: {theirs}");
            return refuse(ErrorCode::ReservationExists, text);
        }
        has_no_container(state, to, running)?;
        settled(state, draft)?;
        if *namespace != from.namespace {
            super::quota::take(state, draft, namespace, entry.record.addresses.len())?;
        }
        let owner = Owner { namespace: namespace.clone(), name: name.clone() };
        for held in &entry.record.addresses {
            let subject = Subject::Address(from.network.clone(), held.address);
            draft.rely(&subject, state.slot(&from.network, held.address));
            draft.put_slot(subject, Slot { reservation: Some(owner.clone()), ..Slot::default() });
        }
        let (namespace, name) = (namespace.clone(), name.clone());
        let record = Reservation { namespace, name, ..entry.record.clone() };
        draft.delete(&Subject::Reservation(from.clone()));
        draft.put_reservation(&record);
        Ok(Entry { record, revision: Revision::OWN })
    })
}

/// Refuses a name whose container has addresses of its own: it would be in two places.
fn has_no_container(state: &State, to: &Rename, running: &[AttachmentKey]) -> Result<(), ApiError> {
    let attached = running
        .iter()
        .filter_map(|key| state.attachment(key))
        .find(|entry| (&entry.record.namespace, &entry.record.name) == (&to.namespace, &to.name));
    let Some(Entry { record: attached, .. }) = attached else { return Ok(()) };
    let AttachmentKey { host, container, .. } = &attached.key;
    let theirs: Vec<String> =
        attached.addresses.iter().map(|held| held.address.to_string()).collect();
    let text = format!(
        "{}/{} has {} already, in container {container} on host {host}",
        to.namespace,
        to.name,
        theirs.join(" and ")
    );
    Err(ApiError::new(ErrorCode::NameInUse, text)
        .with_details(json!({ "host": host, "container": container })))
}

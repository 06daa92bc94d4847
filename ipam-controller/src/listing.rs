//! Pure: long lists, page by page: which records match, and where the next page begins.
//!
//! A page looks at so many records only that nobody else waits for it. Where few match it may be
//! short, or empty, and the next one goes on from there.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::Bound;

use limpet_api::book::{Attachment, AttachmentKey, Held, Reservation};
use limpet_api::{ApiError, ErrorCode, Listing, MOST_LISTED, USUALLY_LISTED};
use limpet_net_types::{HostName, Namespace, NetworkName, PoolName, WorkloadName};
use serde::Deserialize;

use crate::alloc::reserve::holder;
use crate::draft::refuse;
use crate::keys::{ReservationKey, Subject};
use crate::state::{Entry, Named, Place, State, reservation_key};

/// How many records a page looks at at most: a few thousandths of a second's work.
const MOST_LOOKED_AT: usize = 20_000;

/// How much of a container's ID or an incarnation's uid stands for the whole at least.
const LEAST_BEGINNING: usize = 8;

/// Which records are to be listed: those that match all that is given. And which page of them.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Filter {
    network: Option<NetworkName>,
    namespace: Option<Namespace>,
    name: Option<WorkloadName>,
    host: Option<HostName>,
    pool: Option<PoolName>,
    address: Option<IpAddr>,
    /// A workload's name, a container's ID or a uid; of these two also the beginning.
    like: Option<String>,
    limit: Option<usize>,
    after: Option<String>,
}

/// A page in the making.
struct Page<T> {
    items: Vec<T>,
    limit: usize,
    /// How many records more it may look at.
    patience: usize,
    next: Option<String>,
}

impl<T> Page<T> {
    fn new(filter: &Filter, patience: usize) -> Result<Self, ApiError> {
        let limit = filter.limit.unwrap_or(USUALLY_LISTED);
        if !(1..=MOST_LISTED).contains(&limit) {
            let text = format!("limit is {limit}, from 1 to {MOST_LISTED} can be asked for");
            return refuse(ErrorCode::BadRequest, text);
        }
        Ok(Self { items: Vec::new(), limit, patience, next: None })
    }

    /// Looks at records in their order, as far as the page goes.
    fn look<'a, R: 'a>(
        &mut self,
        records: impl Iterator<Item = &'a Entry<R>>,
        cursor: impl Fn(&R) -> String,
        shown: impl Fn(&'a Entry<R>) -> Option<T>,
    ) {
        let mut last = None;
        for entry in records {
            if self.items.len() == self.limit || self.patience == 0 {
                self.next = last.map(cursor);
                return;
            }
            self.patience -= 1;
            self.items.extend(shown(entry));
            last = Some(&entry.record);
        }
    }

    fn listing(self, state: &State) -> Listing<T> {
        Listing { items: self.items, revision: state.revision().0, next: self.next }
    }
}

/// Lists attachments, by host, network, container and interface.
///
/// # Errors
///
/// `bad-request` for a limit out of range or a cursor of another list.
pub(crate) fn attachments(state: &State, filter: &Filter) -> Result<Listing<Attachment>, ApiError> {
    attachments_page(state, filter, MOST_LOOKED_AT)
}

fn attachments_page(
    state: &State,
    filter: &Filter,
    patience: usize,
) -> Result<Listing<Attachment>, ApiError> {
    let after = filter.cursor(|text| match Subject::parse(&format!("attachments/{text}")) {
        Ok(Subject::Attachment(key)) => Some(key),
        _ => None,
    })?;
    let is_after = |key: &AttachmentKey| after.as_ref().is_none_or(|after| key > after);
    let mut page = Page::new(filter, patience)?;
    let shown = |entry: &Entry<Attachment>| {
        filter.wants_attachment(&entry.record).then(|| entry.record.clone())
    };
    if let Some(address) = filter.address {
        let holders = filter.networks(state).filter_map(|network| {
            let slot = state.slot(network, address)?;
            Some(&slot.record.attachment.as_ref()?.key)
        });
        let holders: BTreeSet<_> = holders.filter(|key| is_after(key)).collect();
        page.look(holders.into_iter().filter_map(|key| state.attachment(key)), place_of, shown);
    } else if let Some(host) = &filter.host {
        let is_of_host = |entry: &&Entry<Attachment>| entry.record.key.host == *host;
        if let Some(after) = after.as_ref().filter(|after| after.host == *host) {
            let rest = state.attachments_from(Bound::Excluded(after));
            page.look(rest.take_while(is_of_host), place_of, shown);
        } else {
            let of_host = state.attachments_of(host).filter(|entry| is_after(&entry.record.key));
            page.look(of_host, place_of, shown);
        }
    } else {
        let start = after.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        page.look(state.attachments_from(start), place_of, shown);
    }
    Ok(page.listing(state))
}

/// Lists reservations with their holders, by network, namespace and name.
///
/// # Errors
///
/// As [`attachments`].
pub(crate) fn reservations(
    state: &State,
    filter: &Filter,
) -> Result<Listing<Reservation>, ApiError> {
    reservations_page(state, filter, MOST_LOOKED_AT)
}

fn reservations_page(
    state: &State,
    filter: &Filter,
    patience: usize,
) -> Result<Listing<Reservation>, ApiError> {
    let after = filter.cursor(|text| match Subject::parse(&format!("reservations/{text}")) {
        Ok(Subject::Reservation(key)) => Some(key),
        _ => None,
    })?;
    let is_after = |key: &ReservationKey| after.as_ref().is_none_or(|after| key > after);
    let mut page = Page::new(filter, patience)?;
    let shown = |entry: &Entry<Reservation>| {
        let found = with_holder(state, &entry.record);
        filter.wants_reservation(&found).then_some(found)
    };
    let few: Option<BTreeSet<ReservationKey>> = if let Some(address) = filter.address {
        let keepers = filter.networks(state).filter_map(|network| {
            let owner = state.slot(network, address)?.record.reservation.as_ref()?;
            Some(reservation_key(network, &owner.namespace, &owner.name))
        });
        Some(keepers.filter(is_after).collect())
    } else if let Some(host) = &filter.host {
        let names = state.attachments_of(host).map(|entry| {
            let Attachment { key, namespace, name, .. } = &entry.record;
            reservation_key(&key.network, namespace, name)
        });
        Some(names.filter(is_after).collect())
    } else {
        None
    };
    match few {
        Some(keys) => {
            page.look(keys.iter().filter_map(|key| state.reservation(key)), name_of, shown);
        }
        None => {
            page.look(in_places(state, filter, after.as_ref()), name_of, shown);
        }
    }
    Ok(page.listing(state))
}

/// Adds who holds the addresses now, which is not stored with the reservation.
pub(crate) fn with_holder(state: &State, reservation: &Reservation) -> Reservation {
    let attachment = holder(state, reservation).cloned().map(Box::new);
    Reservation { attachment, ..reservation.clone() }
}

/// The cursor that goes on after an attachment.
fn place_of(attachment: &Attachment) -> String {
    let AttachmentKey { host, network, container, ifname } = &attachment.key;
    format!("{host}/{network}/{container}/{ifname}")
}

/// The cursor that goes on after a reservation.
fn name_of(reservation: &Reservation) -> String {
    let Reservation { network, namespace, name, .. } = reservation;
    format!("{network}/{namespace}/{name}")
}

impl Filter {
    /// The records of a name.
    pub(crate) fn of_name(network: NetworkName, namespace: Namespace, name: WorkloadName) -> Self {
        let (network, namespace, name) = (Some(network), Some(namespace), Some(name));
        Self { network, namespace, name, ..Self::default() }
    }

    /// The same, from where a page ended on.
    pub(crate) fn from(self, after: String) -> Self {
        Self { after: Some(after), ..self }
    }

    /// The record that the page is to go on after.
    fn cursor<K>(&self, parse: impl Fn(&str) -> Option<K>) -> Result<Option<K>, ApiError> {
        let Some(text) = &self.after else { return Ok(None) };
        if let Some(key) = parse(text) {
            return Ok(Some(key));
        }
        let text = "after is not what this list gave as next: take the list from its start";
        refuse(ErrorCode::BadRequest, text)
    }

    fn networks<'a>(&'a self, state: &'a State) -> impl Iterator<Item = &'a NetworkName> {
        let all = state.networks().map(|entry| &entry.record.name);
        all.filter(|name| is(self.network.as_ref(), name))
    }

    fn wants(&self, network: &NetworkName, namespace: &Namespace, name: &WorkloadName) -> bool {
        is(self.network.as_ref(), network)
            && is(self.namespace.as_ref(), namespace)
            && is(self.name.as_ref(), name)
    }

    fn wants_addresses(&self, addresses: &[Held]) -> bool {
        self.address.is_none_or(|wanted| addresses.iter().any(|held| held.address == wanted))
            && self.pool.as_ref().is_none_or(|pool| addresses.iter().any(|held| held.pool == *pool))
    }

    fn wants_attachment(&self, attachment: &Attachment) -> bool {
        let Attachment { key, uid, namespace, name, addresses, .. } = attachment;
        let container = key.container.as_str();
        let is_like = |text: &String| {
            let is_long = text.len() >= LEAST_BEGINNING;
            let begins = |whole: &str| whole == text || is_long && whole.starts_with(text);
            name.as_str() == text || begins(container) || begins(&uid.to_string())
        };
        self.wants(&key.network, namespace, name)
            && is(self.host.as_ref(), &key.host)
            && self.wants_addresses(addresses)
            && self.like.as_ref().is_none_or(is_like)
    }

    fn wants_reservation(&self, found: &Reservation) -> bool {
        let Reservation { network, namespace, name, addresses, attachment, .. } = found;
        let host = attachment.as_ref().map(|held| &held.key.host);
        self.wants(network, namespace, name)
            && (self.host.is_none() || host == self.host.as_ref())
            && self.wants_addresses(addresses)
            && self.like.as_ref().is_none_or(|text| name.as_str() == text)
    }

    /// Where to go on after a reservation whose network, namespace or name is not wanted.
    fn beyond(&self, found: &Reservation) -> Option<Place> {
        let network = found.network.as_str();
        let namespace = found.namespace.as_str();
        let seek = |wanted: Option<&str>, found: &str| {
            let wanted = wanted.filter(|wanted| *wanted != found)?;
            Some(if found < wanted { wanted.to_owned() } else { Place::END.to_owned() })
        };
        if let Some(to) = seek(self.network.as_ref().map(NetworkName::as_str), network) {
            return Some(Place([to, String::new(), String::new()]));
        }
        if let Some(to) = seek(self.namespace.as_ref().map(Namespace::as_str), namespace) {
            return Some(Place([network.to_owned(), to, String::new()]));
        }
        let to = seek(self.name.as_ref().map(WorkloadName::as_str), found.name.as_str())?;
        Some(Place([network.to_owned(), namespace.to_owned(), to]))
    }
}

/// The reservations from a place on; of the networks, namespaces and names that are not wanted only
/// one of each, because it goes over the others in one step.
fn in_places<'a>(
    state: &'a State,
    filter: &'a Filter,
    after: Option<&ReservationKey>,
) -> impl Iterator<Item = &'a Entry<Reservation>> {
    let mut rest = state.reservations_from(after.map_or(Bound::Unbounded, |after| {
        let after: &(dyn Named + 'static) = after;
        Bound::Excluded(after)
    }));
    std::iter::from_fn(move || {
        let found = rest.next()?;
        if let Some(place) = filter.beyond(&found.record) {
            rest = state.reservations_from(Bound::Included(&place));
        }
        Some(found)
    })
}

fn is<T: PartialEq>(wanted: Option<&T>, found: &T) -> bool {
    wanted.is_none_or(|wanted| wanted == found)
}

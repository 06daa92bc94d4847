//! Pure: which interfaces live here without an attachment, and what is to become of them.
//!
//! The store may have forgotten an attachment (it was restored), or given its addresses to another while this host was
//! silent. Which of the two it is the controller says, to whom what was recorded is re-asserted. An interface that
//! nothing is recorded of has nothing to assert.

use std::collections::{BTreeMap, BTreeSet};

use limpet_api::book::Attachment;
use limpet_net_types::{HostName, Token, Uid, host_ifname};

use crate::flights::Flights;
use crate::records::Record;
use crate::veths::Interfaces;
use crate::view::{Key, View};

/// What an interface is held against.
pub(crate) struct Known<'a> {
    pub(crate) host: &'a HostName,
    /// This boot.
    pub(crate) boot: Token,
    /// What the store has. It must have told of everything before the session was opened.
    pub(crate) view: &'a View,
    pub(crate) flights: &'a Flights,
    pub(crate) records: &'a BTreeMap<Uid, Record>,
    /// What is listed for its end.
    pub(crate) endings: &'a BTreeMap<Uid, Key>,
}

/// What is to be done about interfaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Orphans {
    /// Attachments to re-assert.
    pub(crate) assert: Vec<Attachment>,
    /// Incarnations to sever: nothing is known of them.
    pub(crate) sever: BTreeSet<Uid>,
}

impl Orphans {
    /// Those that are still there, or in the making, at a second look. A DEL puts the interface away before the attachment
    /// ends: what is there after the end was noticed did not end by a DEL.
    pub(crate) fn still(mut self, interfaces: &Interfaces, flights: &Flights) -> Self {
        let there = |uid| interfaces.contains_key(&uid) || flights.has(uid);
        self.assert.retain(|attachment| there(attachment.uid));
        self.sever.retain(|uid| interfaces.contains_key(uid));
        self
    }
}

/// Looks for interfaces without an attachment. `all`: everything that lives is asserted, what the store has too, what is
/// just being made, and what was severed by another store's word: of what is not named then the store is rid.
///
/// An interface is all that it takes to live: the kernel removes a veth pair with the namespace of either end. Whether the
/// namespace is seen at its path says less.
pub(crate) fn orphans(interfaces: &Interfaces, all: bool, known: &Known<'_>) -> Orphans {
    let Some((store, revision)) = known.view.position() else { return Orphans::default() };
    let in_the_making: BTreeSet<String> = known
        .flights
        .keys()
        .map(|key| host_ifname(&key.network, &key.container, &key.ifname))
        .collect();
    let attached: BTreeMap<Uid, &Attachment> =
        known.view.attachments().map(|(_, attachment)| (attachment.uid, attachment)).collect();
    let mut orphans = Orphans::default();
    if all {
        let begun = known.flights.uids().filter_map(|uid| {
            attached.get(&uid).copied().or(known.records.get(&uid).map(|of| &of.attachment))
        });
        orphans.assert.extend(begun.cloned());
    }
    for (uid, interface) in interfaces {
        let judged = !known.flights.has(*uid)
            && !in_the_making.contains(&interface.name)
            && !known.endings.contains_key(uid);
        let of_store = attached.get(uid).copied();
        if !judged || (of_store.is_some() && !all) {
            continue;
        }
        let recorded = known.records.get(uid).map(|record| &record.attachment);
        match of_store.or(recorded) {
            Some(attachment) => {
                let of_boot = of_store.is_some() || attachment.boot == known.boot;
                let here = attachment.key.host == *known.host && of_boot;
                // What is missing from a state that is older than the attachment is not missing.
                let newer = known
                    .records
                    .get(uid)
                    .is_some_and(|record| record.store == store && record.revision > revision);
                if here && (all || !newer && !interface.severed) {
                    orphans.assert.push(attachment.clone());
                }
            }
            None if interface.severed => {}
            None => {
                orphans.sever.insert(*uid);
            }
        }
    }
    orphans
}

#[cfg(test)]
#[path = "orphans_tests.rs"]
mod tests;

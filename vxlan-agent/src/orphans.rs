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
    /// Whether a namespace is mounted at the path.
    pub(crate) netns_exists: &'a dyn Fn(&str) -> bool,
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
    /// Those that are still there at a second look. A DEL puts the interface away before the attachment ends: what is
    /// there after the end was noticed did not end by a DEL.
    pub(crate) fn still(mut self, interfaces: &Interfaces) -> Self {
        self.assert.retain(|attachment| interfaces.contains_key(&attachment.uid));
        self.sever.retain(|uid| interfaces.contains_key(uid));
        self
    }
}

/// Looks for interfaces without an attachment. `all`: everything that lives is asserted, what the store has too, and what
/// was severed by another store's word.
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
                let here = attachment.key.host == *known.host && attachment.boot == known.boot;
                // What is asked of the controller is answered by a transaction; still nothing is asked because of a
                // state that is older than the attachment.
                let newer = known
                    .records
                    .get(uid)
                    .is_some_and(|record| record.store == store && record.revision > revision);
                let alive = (known.netns_exists)(&attachment.netns);
                if here && !newer && alive && (all || !interface.severed) {
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

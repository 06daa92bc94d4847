//! Pure: how the state is made from all that is in the store, key by key.

use std::collections::{BTreeMap, HashMap};

use limpet_api::WallTime;
use limpet_api::book::{Attachment, Reservation};
use limpet_net_types::Token;

use super::rows::Row;
use super::{BadRecord, Effects, Rows, State, Used, entry};
use crate::keys::Subject;
use crate::store::{Revision, Versioned};
use crate::tenures::Tenures;

/// A state in the making.
///
/// Pools and blocks count their addresses, of which there may be a million: they are put in at the
/// end, and each counts once. So are the records that there are most of, which come in their order.
#[derive(Debug)]
pub(crate) struct Loader {
    state: State,
    has_identity: bool,
    pools: Vec<(Subject, Versioned)>,
    blocks: Vec<(Subject, Versioned)>,
    attachments: Vec<Row<Attachment>>,
    reservations: Vec<Row<Reservation>>,
}

impl Loader {
    /// Begins with nothing of what the store has at `revision`.
    pub(crate) fn new(revision: Revision) -> Self {
        let state = State {
            revision,
            store: Token::from_bits(0),
            clock: None,
            config: None,
            restoring: None,
            restored: None,
            mac_choices: BTreeMap::new(),
            networks: BTreeMap::new(),
            pools: BTreeMap::new(),
            blocks: BTreeMap::new(),
            slots: BTreeMap::new(),
            reservations: Rows::default(),
            attachments: Rows::default(),
            hosts: BTreeMap::new(),
            sessions: BTreeMap::new(),
            heard: BTreeMap::new(),
            silent: BTreeMap::new(),
            questions: BTreeMap::new(),
            asks: BTreeMap::new(),
            tenures: Tenures::default(),
            quotas: BTreeMap::new(),
            wall: WallTime::default(),
            ranges: BTreeMap::new(),
            owned: BTreeMap::new(),
            pointers: BTreeMap::new(),
            strays: BTreeMap::new(),
            used: Used::default(),
            macs: HashMap::new(),
            kept_macs: HashMap::new(),
            vteps: HashMap::new(),
            places: HashMap::new(),
        };
        let (pools, blocks) = (Vec::new(), Vec::new());
        let (attachments, reservations) = (Vec::new(), Vec::new());
        Self { state, has_identity: false, pools, blocks, attachments, reservations }
    }

    /// Takes in a key, in any order.
    ///
    /// # Errors
    ///
    /// [`BadRecord`] names the key that this program cannot read.
    pub(crate) fn take(&mut self, key: &str, stored: Versioned) -> Result<(), BadRecord> {
        let Versioned { value, revision } = &stored;
        // The records that there are most of say themselves what their keys say.
        if key.starts_with("attachments/") {
            let attachment = entry(|| key.to_owned(), value, *revision)?;
            self.state.index_attachment(&attachment.record);
            self.attachments.push(Row::of(attachment));
            return Ok(());
        }
        if key.starts_with("reservations/") {
            let reservation = entry(|| key.to_owned(), value, *revision)?;
            self.state.index_reservation(&reservation.record);
            self.reservations.push(Row::of(reservation));
            return Ok(());
        }
        let subject = Subject::parse(key)?;
        match &subject {
            Subject::Pool(_) => self.pools.push((subject, stored)),
            Subject::Block(..) => self.blocks.push((subject, stored)),
            Subject::Address(network, address) => {
                let slot = entry(|| key.to_owned(), value, *revision)?;
                self.state.slots.entry(network.clone()).or_default().insert(*address, slot);
            }
            _ => {
                self.has_identity |= subject == Subject::StoreId;
                self.state.put(&subject, value, *revision, &mut Effects::default())?;
            }
        }
        Ok(())
    }

    /// Returns the state, once all keys are taken in.
    ///
    /// # Errors
    ///
    /// [`BadRecord`]: as [`Self::take`], or the store has no identity.
    pub(crate) fn finish(self) -> Result<State, BadRecord> {
        let Self { mut state, has_identity, pools, blocks, attachments, reservations } = self;
        if !has_identity {
            return Err(BadRecord::NoIdentity);
        }
        state.attachments = Rows::of(attachments);
        state.reservations = Rows::of(reservations);
        for (subject, Versioned { value, revision }) in pools.into_iter().chain(blocks) {
            state.put(&subject, &value, revision, &mut Effects::default())?;
        }
        state.find_strays();
        // What was read first is not what was given last.
        state.pointers.clear();
        Ok(state)
    }
}

//! Pure: the addresses of a network and who has each, packed: neighbours are in one piece of
//! memory.
//!
//! Pools are used densely, and there may be a million of these: the nodes of one large tree would
//! be half empty, because each block is filled upwards.

use std::collections::BTreeMap;
use std::net::IpAddr;

use limpet_net_types::{Family, address_at, address_bits};

use super::Entry;
use crate::records::Slot;

/// How many bits of an address say where in its piece it is.
const LOW_BITS: u32 = 5;

/// A piece: the low bits of each address with its slot, in order.
type Piece = Vec<(u8, Entry<Slot>)>;

/// Who has which address, in the order of the addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Slots(BTreeMap<IpAddr, Piece>);

impl Slots {
    /// Whether nobody ever had an address.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Who has an address.
    pub(super) fn get(&self, address: IpAddr) -> Option<&Entry<Slot>> {
        let (base, low) = split(address);
        let piece = self.0.get(&base)?;
        let at = piece.binary_search_by_key(&low, |(low, _)| *low).ok()?;
        piece.get(at).map(|(_, slot)| slot)
    }

    /// Sets who has an address, and returns who had it.
    pub(super) fn insert(&mut self, address: IpAddr, slot: Entry<Slot>) -> Option<Entry<Slot>> {
        let (base, low) = split(address);
        let piece = self.0.entry(base).or_default();
        match piece.binary_search_by_key(&low, |(low, _)| *low) {
            Ok(at) => piece.get_mut(at).map(|(_, old)| std::mem::replace(old, slot)),
            Err(at) => {
                // Doubling would leave a quarter of the memory of all addresses unused.
                if piece.len() == piece.capacity() {
                    piece.reserve_exact(1 + piece.len() / 4);
                }
                piece.insert(at, (low, slot));
                None
            }
        }
    }

    /// Forgets an address, and returns who had it.
    pub(super) fn remove(&mut self, address: IpAddr) -> Option<Entry<Slot>> {
        let (base, low) = split(address);
        let piece = self.0.get_mut(&base)?;
        let at = piece.binary_search_by_key(&low, |(low, _)| *low).ok()?;
        let (_, slot) = piece.remove(at);
        if piece.is_empty() {
            self.0.remove(&base);
        }
        Some(slot)
    }

    /// The addresses between these two, both included, which are of one family and in order.
    pub(super) fn between(
        &self,
        first: IpAddr,
        last: IpAddr,
    ) -> impl Iterator<Item = (IpAddr, &Entry<Slot>)> {
        self.0
            .range(split(first).0..=last)
            .flat_map(|(base, piece)| piece.iter().map(|(low, slot)| (join(*base, *low), slot)))
            .filter(move |(address, _)| (first..=last).contains(address))
    }

    /// All addresses.
    pub(super) fn iter(&self) -> impl Iterator<Item = (IpAddr, &Entry<Slot>)> {
        self.0
            .iter()
            .flat_map(|(base, piece)| piece.iter().map(|(low, slot)| (join(*base, *low), slot)))
    }
}

/// Returns the first address of the piece that an address is in, and where in it the address is.
fn split(address: IpAddr) -> (IpAddr, u8) {
    let bits = address_bits(address);
    let low = bits & ((1 << LOW_BITS) - 1);
    (address_at(Family::of(address), bits - low), u8::try_from(low).unwrap_or(u8::MAX))
}

fn join(base: IpAddr, low: u8) -> IpAddr {
    address_at(Family::of(base), address_bits(base) | u128::from(low))
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::store::Revision;

    /// Few addresses, around the ends of pieces and of each family.
    fn address() -> impl Strategy<Value = IpAddr> {
        let v4 = prop_oneof![0..3_u32, 30..34_u32, (u32::MAX - 2)..=u32::MAX];
        let v6 = prop_oneof![0..3_u128, 30..34_u128, (u128::MAX - 2)..=u128::MAX];
        prop_oneof![
            v4.prop_map(|bits| IpAddr::V4(bits.into())),
            v6.prop_map(|bits| IpAddr::V6(bits.into())),
        ]
    }

    proptest! {
        #[test]
        fn slots_are_a_map_of_addresses(
            steps in vec((any::<bool>(), address()), 0..60),
            ends in (address(), address()),
        ) {
            let (mut slots, mut map) = (Slots::default(), BTreeMap::new());
            for (number, (puts, address)) in steps.into_iter().enumerate() {
                let revision = Revision(u64::try_from(number).unwrap());
                let slot = Entry { record: Slot::default(), revision };
                if puts {
                    prop_assert_eq!(
                        slots.insert(address, slot.clone()),
                        map.insert(address, slot)
                    );
                } else {
                    prop_assert_eq!(slots.remove(address), map.remove(&address));
                }
                prop_assert_eq!(slots.get(address), map.get(&address));
                prop_assert_eq!(slots.is_empty(), map.is_empty());
            }
            let all: Vec<_> = map.iter().map(|(address, slot)| (*address, slot)).collect();
            prop_assert_eq!(slots.iter().collect::<Vec<_>>(), all);
            let (first, last) = (ends.0.min(ends.1), ends.0.max(ends.1));
            if Family::of(first) == Family::of(last) {
                let range: Vec<_> =
                    map.range(first..=last).map(|(address, slot)| (*address, slot)).collect();
                prop_assert_eq!(slots.between(first, last).collect::<Vec<_>>(), range);
            }
        }
    }
}

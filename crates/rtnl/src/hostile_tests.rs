//! Pure: bytes that no kernel sends, and those of one that were cut off or altered on their way: never a panic, and nothing
//! that was not there.

use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader};
use proptest::prelude::*;

use crate::message::Rt;
use crate::news::{Event, changes, messages};
use crate::socket::words_of;
use crate::wire::{Attributes, put};
use crate::{Link, Nexthop};

/// Every kind of message that is read, and some that are not.
const KINDS: [u16; 18] = [2, 3, 16, 17, 20, 21, 24, 25, 28, 29, 32, 33, 52, 80, 81, 104, 105, 999];

/// A message, with a length that may be a lie.
fn message(kind: u16, payload: &[u8], lie: u32) -> Vec<u8> {
    let length = u32::try_from(16 + payload.len()).unwrap().wrapping_add(lie);
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&0x100_u16.to_ne_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(payload);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// A payload with the header of its kind and attributes as they may come, each of a length that need not fit its type.
fn payload() -> impl Strategy<Value = Vec<u8>> {
    let header =
        (prop::sample::select(vec![0_u8, 2, 7, 10, 28]), prop::collection::vec(any::<u8>(), 0..16));
    let attribute = (0..64_u16, prop::collection::vec(any::<u8>(), 0..24));
    let attributes = prop::collection::vec(attribute, 0..8);
    (header, attributes, 0..40_usize).prop_map(|((family, rest), attributes, cut)| {
        let mut bytes = vec![family];
        bytes.extend(rest);
        for (kind, value) in attributes {
            put(&mut bytes, kind, &value);
        }
        // Cut off somewhere near its end, or not.
        bytes.truncate(bytes.len().saturating_sub(cut.saturating_sub(20)));
        bytes
    })
}

fn kind() -> impl Strategy<Value = u16> {
    prop::sample::select(KINDS.to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_told_is_understood_or_left(
        parts in prop::collection::vec((kind(), payload(), prop_oneof![9 => Just(0), 1 => any::<u32>()]), 0..4),
        noise in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let mut datagram: Vec<u8> =
            parts.iter().flat_map(|(kind, payload, lie)| message(*kind, payload, *lie)).collect();
        datagram.extend(noise);
        prop_assert!(messages(&datagram).count() <= datagram.len() / 16);
        for event in changes(&datagram) {
            if let Event::Changed(change) = event {
                let _ = change.entry();
            }
        }
    }

    #[test]
    fn whatever_is_answered_is_decoded_or_refused(kind in kind(), payload in payload()) {
        let mut header = NetlinkHeader::default();
        header.message_type = kind;
        let _ = Rt::deserialize(&header, &payload);
        let _ = Link::decode(&payload);
        let _ = Nexthop::decode(&payload);
        let _ = words_of(&payload);
    }

    #[test]
    fn attributes_end_and_are_within_their_message(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut whole = 0;
        for attribute in Attributes(&bytes).flatten() {
            whole += 4 + attribute.1.len();
        }
        prop_assert!(whole <= bytes.len());
    }

    /// A datagram that was cut off tells what is in it whole, in the same order, and at most one thing besides, which has
    /// lost its end.
    #[test]
    fn a_datagram_that_was_cut_off_tells_no_more_than_it_has(
        parts in prop::collection::vec((kind(), payload()), 1..4),
        cut in 0..200_usize,
    ) {
        let datagram: Vec<u8> =
            parts.iter().flat_map(|(kind, payload)| message(*kind, payload, 0)).collect();
        let whole: Vec<Event> = changes(&datagram).collect();
        let end = cut.min(datagram.len());
        let told: Vec<Event> = changes(&datagram[..end]).collect();
        prop_assert!(told.len() <= whole.len());
        let same = told.iter().zip(&whole).take_while(|(told, whole)| told == whole).count();
        prop_assert!(same + 1 >= told.len());
    }
}

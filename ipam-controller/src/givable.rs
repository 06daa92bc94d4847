//! Pure: which addresses of a pool can be given out at all, whoever has them now.

use limpet_api::config::Pool;
use limpet_net_types::{Family, Range};

/// The addresses of a range less those that are excluded or never given out, as numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Givable {
    first: u128,
    last: u128,
    /// What is taken out: within the range, in order, no two touching.
    holes: Vec<(u128, u128)>,
}

impl Givable {
    /// Returns what `pool` can give.
    pub(crate) fn of(pool: &Pool) -> Self {
        Self::new(pool.range, &pool.exclude)
    }

    /// Returns what a pool of `range` with these exclusions can give.
    ///
    /// Of a prefix the network's own address is never given: a host would take it for the
    /// network (IPv4) or for its routers' anycast address (RFC 4291, section 2.6.1); nor is the
    /// last one of an IPv4 prefix, its broadcast address. Prefixes of one and two addresses
    /// have neither (RFC 3021, RFC 6164).
    pub(crate) fn new(range: Range, exclude: &[Range]) -> Self {
        let (first, last) = range.bits();
        let mut holes: Vec<(u128, u128)> =
            exclude.iter().filter(|e| e.overlaps(range)).map(|e| e.bits()).collect();
        if range.as_prefix().is_some() && range.size() > 2 {
            holes.push((first, first));
            if range.family() == Family::V4 {
                holes.push((last, last));
            }
        }
        holes.sort_unstable();
        let mut merged: Vec<(u128, u128)> = Vec::new();
        for (from, to) in holes {
            let (from, to) = (from.max(first), to.min(last));
            match merged.last_mut() {
                Some(hole) if from <= hole.1.saturating_add(1) => hole.1 = hole.1.max(to),
                _ => merged.push((from, to)),
            }
        }
        Self { first, last, holes: merged }
    }

    /// Whether the address can be given.
    pub(crate) fn allows(&self, bits: u128) -> bool {
        (self.first..=self.last).contains(&bits) && self.hole_at(bits).is_none()
    }

    /// How many addresses between these two, both included, can be given.
    pub(crate) fn count(&self, from: u128, to: u128) -> u128 {
        let (from, to) = (from.max(self.first), to.min(self.last));
        if from > to {
            return 0;
        }
        let holes = self.holes.iter().filter(|hole| hole.0 <= to && hole.1 >= from);
        // All addresses of IPv6 are one more than the largest number.
        let lost = holes
            .map(|hole| (hole.1.min(to) - hole.0.max(from)).saturating_add(1))
            .fold(0, u128::saturating_add);
        (to - from).saturating_add(1).saturating_sub(lost)
    }

    /// How many addresses can be given.
    pub(crate) fn size(&self) -> u128 {
        self.count(self.first, self.last)
    }

    /// Returns the givable addresses between these two, both included, from the first on.
    pub(crate) fn upwards(&self, from: u128, to: u128) -> impl Iterator<Item = u128> + '_ {
        let end = to.min(self.last);
        let mut next = Some(from.max(self.first));
        std::iter::from_fn(move || {
            let mut bits = next.filter(|&bits| bits <= end)?;
            if let Some(hole) = self.hole_at(bits) {
                bits = hole.1.checked_add(1).filter(|&bits| bits <= end)?;
            }
            next = bits.checked_add(1);
            Some(bits)
        })
    }

    /// Returns the givable addresses between these two, both included, from the last on.
    pub(crate) fn downwards(&self, from: u128, to: u128) -> impl Iterator<Item = u128> + '_ {
        let end = from.max(self.first);
        let mut next = Some(to.min(self.last));
        std::iter::from_fn(move || {
            let mut bits = next.filter(|&bits| bits >= end)?;
            if let Some(hole) = self.hole_at(bits) {
                bits = hole.0.checked_sub(1).filter(|&bits| bits >= end)?;
            }
            next = bits.checked_sub(1);
            Some(bits)
        })
    }

    /// Returns what is taken out around an address.
    pub(crate) fn hole_at(&self, bits: u128) -> Option<(u128, u128)> {
        let before = self.holes.partition_point(|hole| hole.0 <= bits);
        let hole = *self.holes.get(before.checked_sub(1)?)?;
        (bits <= hole.1).then_some(hole)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn addresses(range: &str, exclude: &[&str]) -> Vec<u128> {
        let range: Range = range.parse().unwrap();
        let exclude: Vec<Range> = exclude.iter().map(|e| e.parse().unwrap()).collect();
        Givable::new(range, &exclude).upwards(0, u128::MAX).map(|bits| bits & 0xff).collect()
    }

    #[test]
    fn what_a_prefix_never_gives() {
        assert_eq!(addresses("10.0.0.8/29", &[]), [9, 10, 11, 12, 13, 14]);
        assert_eq!(addresses("10.0.0.8/30", &[]), [9, 10]);
        assert_eq!(addresses("10.0.0.8/31", &[]), [8, 9]);
        assert_eq!(addresses("10.0.0.8/32", &[]), [8]);
        assert_eq!(addresses("10.0.0.8..10.0.0.12", &[]), [8, 9, 10, 11, 12]);
        assert_eq!(addresses("fd00::8/126", &[]), [9, 10, 11]);
        assert_eq!(addresses("fd00::8/127", &[]), [8, 9]);
        assert_eq!(addresses("fd00::8/128", &[]), [8]);
    }

    #[test]
    fn the_ends_of_all_addresses_are_no_trap() {
        let all = Givable::new("::/0".parse().unwrap(), &[]);
        assert_eq!(all.downwards(0, u128::MAX).next(), Some(u128::MAX));
        assert_eq!(all.upwards(u128::MAX - 1, u128::MAX).count(), 2);
        assert_eq!(all.downwards(0, 2).collect::<Vec<_>>(), [2, 1]);
        assert_eq!(all.count(0, 9), 9);
        let none = Givable::new("::/0".parse().unwrap(), &["::/0".parse().unwrap()]);
        assert_eq!(none.size(), 0);
        assert_eq!(none.upwards(0, u128::MAX).next(), None);
    }

    fn range() -> impl Strategy<Value = Range> {
        (0..16_u8, 0..16_u8)
            .prop_map(|(a, b)| format!("10.0.0.{}..10.0.0.{}", a.min(b), a.max(b)).parse().unwrap())
    }

    proptest! {
        #[test]
        fn every_question_has_the_same_answer(
            range in range(),
            exclude in vec(range(), 0..4),
            from in 0..20_u128,
            to in 0..20_u128,
        ) {
            let base = 0x0a00_0000;
            let (from, to) = (base + from.min(to), base + from.max(to));
            let givable = Givable::new(range, &exclude);
            let expected: Vec<u128> =
                (from..=to).filter(|&bits| givable.allows(bits)).collect();
            prop_assert_eq!(givable.upwards(from, to).collect::<Vec<_>>(), expected.clone());
            let mut down: Vec<u128> = givable.downwards(from, to).collect();
            down.reverse();
            prop_assert_eq!(down, expected.clone());
            prop_assert_eq!(givable.count(from, to), u128::try_from(expected.len()).unwrap());
            for bits in expected {
                let address = limpet_net_types::address_at(Family::V4, bits);
                prop_assert!(range.contains(address));
                prop_assert!(!exclude.iter().any(|e| e.contains(address)));
            }
        }
    }
}

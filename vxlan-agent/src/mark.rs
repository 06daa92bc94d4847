//! Pure: the bits of a packet's mark that are limpet's, and which network with an address space of its own they say.
//!
//! Marks are everybody's: each program has bits of its own and leaves the others as they are.

use std::fmt;
use std::str::FromStr;

use limpet_net_types::NetworkIndex;

/// The bits of the mark that are limpet's unless the operator says otherwise.
///
/// Kubernetes has `0xc000`, the CNI plugin portmap `0x2000`, Tailscale `0xff0000`, Cilium the lower half but these.
/// Calico takes the upper half and Cilium, for identities, too: one of the two must be told otherwise.
pub(crate) const DEFAULT_MASK: &str = "0xff000000";

/// The most bits that limpet takes: as many as the number of a network has.
const MOST_BITS: u32 = 12;

/// The bits of the mark that are limpet's: 1 to 12 of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MarkMask(u32);

/// Why a text is no mask.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MaskError {
    /// Not a number of 32 bits.
    #[error("{0:?} is not a number of 32 bits such as {DEFAULT_MASK}")]
    NotANumber(String),
    /// Too many or too few.
    #[error("{mask:#x} has {} bits: limpet takes 1 to {MOST_BITS}", .mask.count_ones())]
    Size { mask: u32 },
}

impl MarkMask {
    /// The mask.
    pub(crate) fn value(self) -> u32 {
        self.0
    }

    /// Each of its bits as a mask, the lowest first.
    pub(crate) fn bits(self) -> impl DoubleEndedIterator<Item = u32> + Clone {
        (0..u32::BITS).map(|bit| 1_u32 << bit).filter(move |bit| self.0 & bit != 0)
    }

    /// The mark that says a network, unless its number has more bits than the mask.
    pub(crate) fn mark_of(self, index: NetworkIndex) -> Option<u32> {
        let number = u32::from(u16::from(index));
        let ones = self.bits().enumerate().filter(|(at, _)| number >> at & 1 == 1);
        (number >> self.0.count_ones() == 0).then(|| ones.map(|(_, bit)| bit).sum())
    }

    /// The mask of its highest bits, so many at most.
    pub(crate) fn highest(self, count: usize) -> u32 {
        self.bits().rev().take(count).sum()
    }
}

impl FromStr for MarkMask {
    type Err = MaskError;

    fn from_str(text: &str) -> Result<Self, MaskError> {
        let number = match text.strip_prefix("0x") {
            Some(hex) => u32::from_str_radix(hex, 16),
            None => text.parse(),
        };
        let mask = number.map_err(|_| MaskError::NotANumber(text.chars().take(40).collect()))?;
        match mask.count_ones() {
            1..=MOST_BITS => Ok(Self(mask)),
            _ => Err(MaskError::Size { mask }),
        }
    }
}

impl fmt::Display for MarkMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn index(number: u16) -> NetworkIndex {
        number.try_into().unwrap()
    }

    #[test]
    fn a_mask_is_a_number_of_few_bits() {
        for (text, complaint) in [
            ("0", "0x0 has 0 bits"),
            ("0xffffffff", "0xffffffff has 32 bits"),
            ("0x1ffffffff", "is not a number of 32 bits"),
            ("f0", "is not a number of 32 bits"),
        ] {
            let error = text.parse::<MarkMask>().unwrap_err().to_string();
            assert!(error.contains(complaint), "{error}");
        }
        assert_eq!("16".parse::<MarkMask>().unwrap().to_string(), "0x00000010");
        assert_eq!(DEFAULT_MASK.parse::<MarkMask>().unwrap().to_string(), DEFAULT_MASK);
    }

    #[test]
    fn a_networks_number_is_dealt_to_the_bits_of_the_mask() {
        let mask: MarkMask = "0xa0000006".parse().unwrap();
        assert_eq!(mask.mark_of(index(1)), Some(0x2));
        assert_eq!(mask.mark_of(index(5)), Some(0x2000_0002));
        assert_eq!(mask.mark_of(index(15)), Some(0xa000_0006));
        assert_eq!(mask.mark_of(index(16)), None);
        assert_eq!(mask.highest(2), 0xa000_0000);
    }

    proptest! {
        #[test]
        fn marks_are_within_the_mask_never_zero_and_each_networks_own(mask in any::<u32>()) {
            let Ok(mask) = mask.to_string().parse::<MarkMask>() else { return Ok(()) };
            let marks: Vec<u32> =
                (1..=4095).map_while(|number| mask.mark_of(index(number))).collect();
            prop_assert_eq!(marks.len(), (1 << mask.value().count_ones()) - 1);
            prop_assert!(marks.iter().all(|mark| *mark != 0 && mark & !mask.value() == 0));
            prop_assert_eq!(marks.iter().collect::<BTreeSet<_>>().len(), marks.len());
        }
    }
}

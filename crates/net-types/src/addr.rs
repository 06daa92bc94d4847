//! Pure: prefixes and ranges of addresses, one code path for both families.
//!
//! Arithmetic is on `u128`, with the family beside it: an IPv4 address is its 32 bits.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

/// Why a text is not a prefix or a range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Not an address, a slash and a length.
    #[error("{0:?} is not a prefix such as 10.32.0.0/16 or fd32::/64")]
    NotPrefix(String),
    /// Bits behind the prefix length are set: the writer meant something else.
    #[error("{given} has host bits set: write {meant}, or another prefix length")]
    HostBits {
        /// What was written.
        given: String,
        /// The prefix that contains it.
        meant: String,
    },
    /// Not a prefix and not two addresses.
    #[error(
        "{0:?} is neither a prefix such as 10.32.0.0/16 nor a range such as 10.32.0.10..10.32.0.99"
    )]
    NotRange(String),
    /// The ends of a range are of two families.
    #[error("range {0} begins and ends in different address families")]
    MixedFamilies(String),
    /// The end of a range comes before its beginning.
    #[error("range {0} ends before it begins")]
    Backwards(String),
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Family {
    /// IPv4.
    #[serde(rename = "ipv4")]
    V4,
    /// IPv6.
    #[serde(rename = "ipv6")]
    V6,
}

impl Family {
    /// Both, in the order in which they are shown.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The length of an address, in bits.
    #[must_use]
    pub fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// The bits of an address as a number.
#[must_use]
pub fn address_bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

/// The address with these bits; of an IPv4 address only the low 32 count.
#[must_use]
pub fn address_at(family: Family, bits: u128) -> IpAddr {
    match family {
        Family::V4 => {
            let low = u32::try_from(bits & u128::from(u32::MAX)).unwrap_or(u32::MAX);
            IpAddr::V4(Ipv4Addr::from(low))
        }
        Family::V6 => IpAddr::V6(Ipv6Addr::from(bits)),
    }
}

/// The prefix that holds this one address: /32 or /128.
#[must_use]
pub fn host_prefix(address: IpAddr) -> Prefix {
    Prefix(IpNetwork::from(address))
}

/// A prefix with no host bits set, written `10.32.0.0/16` or `fd32::/64`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix(IpNetwork);

impl Prefix {
    /// The prefix of `length` bits that contains `address`; a length beyond the family's is the family's.
    #[must_use]
    pub fn containing(address: IpAddr, length: u8) -> Self {
        let family = Family::of(address);
        let length = length.min(family.bits());
        let mask = host_mask(family, length);
        let first = address_at(family, address_bits(address) & !mask);
        // The length is at most the family's, so this never falls back.
        Self(IpNetwork::new(first, length).unwrap_or_else(|_| IpNetwork::from(first)))
    }

    /// Whether it is of IPv4 or of IPv6.
    #[must_use]
    pub fn family(self) -> Family {
        Family::of(self.0.ip())
    }

    /// Its first address.
    #[must_use]
    pub fn address(self) -> IpAddr {
        self.0.ip()
    }

    /// Its length, in bits.
    #[must_use]
    pub fn length(self) -> u8 {
        self.0.prefix()
    }

    /// All its addresses, from the first to the last.
    #[must_use]
    pub fn range(self) -> Range {
        let (family, first) = (self.family(), address_bits(self.address()));
        Range { family, first, last: first | host_mask(family, self.length()) }
    }

    /// Whether `address` is in it.
    #[must_use]
    pub fn contains(self, address: IpAddr) -> bool {
        self.0.contains(address)
    }
}

/// The bits behind a prefix of `length`, which is at most the family's.
fn host_mask(family: Family, length: u8) -> u128 {
    let all = u128::MAX >> (128 - u32::from(family.bits()));
    all.checked_shr(length.into()).unwrap_or(0)
}

impl From<Prefix> for IpNetwork {
    fn from(prefix: Prefix) -> Self {
        prefix.0
    }
}

impl FromStr for Prefix {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let wrong = || AddressError::NotPrefix(text.chars().take(80).collect());
        // ipnetwork takes a bare address for a /32; a prefix without its length is a slip of the pen.
        let network = match text.split_once('/') {
            Some((_, length))
                if !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit()) =>
            {
                text.parse::<IpNetwork>().map_err(|_| wrong())?
            }
            _ => return Err(wrong()),
        };
        let prefix = Self::containing(network.ip(), network.prefix());
        if prefix.address() == network.ip() {
            Ok(prefix)
        } else {
            Err(AddressError::HostBits { given: text.to_owned(), meant: prefix.to_string() })
        }
    }
}

impl TryFrom<String> for Prefix {
    type Error = AddressError;

    fn try_from(text: String) -> Result<Self, AddressError> {
        text.parse()
    }
}

impl From<Prefix> for String {
    fn from(prefix: Prefix) -> Self {
        prefix.to_string()
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.to_string())
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The addresses from a first to a last, both included; written as a prefix or as `first..last`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Range {
    family: Family,
    first: u128,
    last: u128,
}

impl Range {
    /// The addresses from `first` to `last`, both included; none if they are of two families or the wrong way round.
    #[must_use]
    pub fn between(first: IpAddr, last: IpAddr) -> Option<Self> {
        let family = Family::of(first);
        let is_one_family = family == Family::of(last);
        let (first, last) = (address_bits(first), address_bits(last));
        (is_one_family && first <= last).then_some(Self { family, first, last })
    }

    /// Whether it is of IPv4 or of IPv6.
    #[must_use]
    pub fn family(self) -> Family {
        self.family
    }

    /// Its first address.
    #[must_use]
    pub fn first(self) -> IpAddr {
        address_at(self.family, self.first)
    }

    /// Its last address.
    #[must_use]
    pub fn last(self) -> IpAddr {
        address_at(self.family, self.last)
    }

    /// Its first and last address as numbers.
    #[must_use]
    pub fn bits(self) -> (u128, u128) {
        (self.first, self.last)
    }

    /// How many addresses it has; `u128::MAX` also stands for one more, of `::/0`.
    #[must_use]
    pub fn size(self) -> u128 {
        (self.last - self.first).saturating_add(1)
    }

    /// Whether `address` is in it; never for one of the other family.
    #[must_use]
    pub fn contains(self, address: IpAddr) -> bool {
        Family::of(address) == self.family
            && (self.first..=self.last).contains(&address_bits(address))
    }

    /// Whether all of `other` is in it.
    #[must_use]
    pub fn covers(self, other: Self) -> bool {
        self.family == other.family && self.first <= other.first && other.last <= self.last
    }

    /// Whether any address is in both.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.family == other.family && self.first <= other.last && other.first <= self.last
    }

    /// The prefix that has exactly these addresses, if one has.
    #[must_use]
    pub fn as_prefix(self) -> Option<Prefix> {
        let prefixes = self.prefixes();
        if let [prefix] = prefixes[..] { Some(prefix) } else { None }
    }

    /// The fewest prefixes that together have exactly these addresses, in order; at most 254.
    #[must_use]
    pub fn prefixes(self) -> Vec<Prefix> {
        let bits = u32::from(self.family.bits());
        let mut prefixes = Vec::new();
        let mut next = self.first;
        loop {
            let aligned = next.trailing_zeros().min(bits);
            let fitting = match (self.last - next).checked_add(1) {
                Some(left) => left.ilog2(),
                None => 128,
            };
            let host_bits = aligned.min(fitting);
            let length = u8::try_from(bits - host_bits).unwrap_or(0);
            let prefix = Prefix::containing(address_at(self.family, next), length);
            prefixes.push(prefix);
            let last = prefix.range().last;
            if last >= self.last {
                return prefixes;
            }
            next = last + 1;
        }
    }
}

impl From<Prefix> for Range {
    fn from(prefix: Prefix) -> Self {
        prefix.range()
    }
}

impl FromStr for Range {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if text.contains('/') {
            return text.parse::<Prefix>().map(Prefix::range);
        }
        let ends = text.split_once("..").unwrap_or((text, text));
        let (Ok(first), Ok(last)) = (ends.0.parse::<IpAddr>(), ends.1.parse::<IpAddr>()) else {
            return Err(AddressError::NotRange(text.chars().take(80).collect()));
        };
        let (family, from, to) = (Family::of(first), address_bits(first), address_bits(last));
        if family != Family::of(last) {
            return Err(AddressError::MixedFamilies(text.to_owned()));
        }
        if to < from {
            return Err(AddressError::Backwards(text.to_owned()));
        }
        Ok(Self { family, first: from, last: to })
    }
}

impl TryFrom<String> for Range {
    type Error = AddressError;

    fn try_from(text: String) -> Result<Self, AddressError> {
        text.parse()
    }
}

impl From<Range> for String {
    fn from(range: Range) -> Self {
        range.to_string()
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.as_prefix() {
            Some(prefix) => prefix.fmt(f),
            None => f.pad(&format!("{}..{}", self.first(), self.last())),
        }
    }
}

impl fmt::Debug for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_prefix_needs_its_length_and_no_host_bits() {
        assert_eq!("10.32.0.0/16".parse::<Prefix>().unwrap().to_string(), "10.32.0.0/16");
        assert!(matches!("10.32.0.0".parse::<Prefix>(), Err(AddressError::NotPrefix(_))));
        assert!(matches!("10.32.0.0/33".parse::<Prefix>(), Err(AddressError::NotPrefix(_))));
        assert!(matches!("10.32.0.0/+8".parse::<Prefix>(), Err(AddressError::NotPrefix(_))));
        assert_eq!(
            "10.32.0.7/16".parse::<Prefix>().unwrap_err().to_string(),
            "10.32.0.7/16 has host bits set: write 10.32.0.0/16, or another prefix length"
        );
        assert_eq!("::/0".parse::<Prefix>().unwrap().range().bits(), (0, u128::MAX));
        assert_eq!("0.0.0.0/0".parse::<Prefix>().unwrap().range().size(), 1 << 32);
    }

    #[test]
    fn a_range_is_written_as_a_prefix_where_it_is_one() {
        let text = |range: &str| range.parse::<Range>().unwrap().to_string();
        assert_eq!(text("10.0.0.0..10.0.0.255"), "10.0.0.0/24");
        assert_eq!(text("10.0.0.1..10.0.0.255"), "10.0.0.1..10.0.0.255");
        assert_eq!(text("fd32::7"), "fd32::7/128");
        assert_eq!(text("::/0"), "::/0");
        assert!(matches!("10.0.0.2..10.0.0.1".parse::<Range>(), Err(AddressError::Backwards(_))));
        assert!(matches!("10.0.0.2..::1".parse::<Range>(), Err(AddressError::MixedFamilies(_))));
        assert!(matches!("x..y".parse::<Range>(), Err(AddressError::NotRange(_))));
    }

    fn range() -> impl Strategy<Value = Range> {
        let ends = prop_oneof![0..20_u128, (u128::from(u32::MAX) - 20)..=u128::from(u32::MAX)];
        (ends.clone(), ends).prop_map(|(a, b)| Range {
            family: Family::V4,
            first: a.min(b),
            last: a.max(b),
        })
    }

    proptest! {
        #[test]
        fn prefixes_cover_a_range_once_and_nothing_else(range in range()) {
            let mut next = Some(range.first);
            for prefix in range.prefixes() {
                let (first, last) = prefix.range().bits();
                prop_assert_eq!(Some(first), next);
                next = last.checked_add(1);
            }
            prop_assert_eq!(next, range.last.checked_add(1));
        }

        #[test]
        fn a_range_is_read_as_it_is_printed(range in range()) {
            prop_assert_eq!(range.to_string().parse::<Range>().unwrap(), range);
        }

        #[test]
        fn a_prefix_contains_what_its_range_contains(bits in any::<u128>(), other in any::<u128>(), length in 0..=128_u8) {
            let prefix = Prefix::containing(address_at(Family::V6, bits), length);
            prop_assert!(prefix.contains(address_at(Family::V6, bits)));
            let other = address_at(Family::V6, other);
            prop_assert_eq!(prefix.contains(other), prefix.range().contains(other));
        }
    }
}

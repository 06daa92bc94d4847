//! Pure: shaping: a token bucket at a device's root, and a detour by an IFB device for what a device receives.
//!
//! The kernel shapes what leaves a device. What arrives is sent through a device of kind `ifb` first, which it leaves
//! again as if it had just arrived, and is shaped there.

use std::fmt;

use netlink_packet_route::link::LinkMessage;
use rtnetlink::LinkIfb;

use crate::wire::{Attributes, Malformed, put, text_of, u32_of};

const HEADER: usize = 20;
/// Of a device's root, and of what it receives.
const ROOT: u32 = 0xffff_ffff;
const INGRESS: u32 = 0xffff_fff1;
/// The handles `1:` and `ffff:`.
const ROOT_HANDLE: u32 = 0x0001_0000;
const INGRESS_HANDLE: u32 = 0xffff_0000;
const ETH_P_ALL: u16 = 3;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
const TCA_U32_SEL: u16 = 5;
const TCA_U32_ACT: u16 = 7;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_MIRRED_PARMS: u16 = 2;
const TC_LINKLAYER_ETHERNET: u8 = 1;
const TC_U32_TERMINAL: u8 = 1;
const TC_ACT_STOLEN: u32 = 4;
const TCA_EGRESS_REDIR: u32 = 1;
/// Nanoseconds in the unit in which the kernel tells a bucket's size, as the power of two.
const TICK: u32 = 6;

/// An IFB device to make. It comes up when it is told to ([`LinkChange::up`](crate::LinkChange)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewIfb {
    /// Its name.
    pub name: String,
    /// The size of the largest packet, in bytes.
    pub mtu: u32,
}

/// A token bucket at the root of a device: what leaves it is held back to a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tbf {
    /// The device's index.
    pub device: u32,
    /// The rate, in bytes a second with their Ethernet headers, at least 1.
    pub rate: u64,
    /// How much may leave at once after a pause, in bytes. A packet that is larger never leaves.
    pub burst: u32,
    /// How much waits at most, in bytes; what comes on top is dropped.
    pub limit: u32,
}

/// A token bucket as the kernel has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundTbf {
    /// The device's index.
    pub device: u32,
    /// The rate, in bytes a second.
    pub rate: u64,
    /// How long it takes to fill the bucket, in units of 64 ns, as far as 32 bits can say.
    pub filling: u32,
    /// How much waits at most, in bytes.
    pub limit: u32,
}

/// All that one device receives is sent through another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Detour {
    /// The index of the device that receives.
    pub from: u32,
    /// The index of the device that it is sent through.
    pub through: u32,
}

impl NewIfb {
    pub(crate) fn message(&self) -> LinkMessage {
        LinkIfb::new(&self.name).mtu(self.mtu).build()
    }
}

impl Tbf {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut message = header(self.device, ROOT_HANDLE, ROOT, 0);
        put(&mut message, TCA_KIND, b"tbf\0");
        let mut parameters = Vec::new();
        // The rate proper, and a peak rate that there is none of.
        parameters.extend([0, TC_LINKLAYER_ETHERNET, 0, 0, 0, 0, 0, 0]);
        parameters.extend(u32::try_from(self.rate).unwrap_or(u32::MAX).to_ne_bytes());
        parameters.extend([0; 12]);
        parameters.extend(self.limit.to_ne_bytes());
        // The size in ticks and the largest packet are said in bytes below.
        parameters.extend([0; 8]);
        let mut options = Vec::new();
        put(&mut options, TCA_TBF_PARMS, &parameters);
        if u32::try_from(self.rate).is_err() {
            put(&mut options, TCA_TBF_RATE64, &self.rate.to_ne_bytes());
        }
        put(&mut options, TCA_TBF_BURST, &self.burst.to_ne_bytes());
        put(&mut message, TCA_OPTIONS, &options);
        message
    }

    /// Whether `found` is this one. The kernel tells a bucket's size as the time that it takes to fill, which it rounds.
    #[must_use]
    pub fn is(&self, found: &FoundTbf) -> bool {
        let nanoseconds = u128::from(self.burst) * 1_000_000_000 / u128::from(self.rate.max(1));
        let filling = nanoseconds >> TICK;
        let off = match u32::try_from(filling) {
            Ok(filling) => u64::from(filling.abs_diff(found.filling)),
            // It has no words for it.
            Err(_) => 0,
        };
        let rounded = u128::from(off) <= filling / 100 + 16;
        (self.device, self.rate, self.limit) == (found.device, found.rate, found.limit) && rounded
    }
}

impl FoundTbf {
    /// Reads the token bucket at a device's root from the payload of a message, if it is about one.
    pub(crate) fn decode(payload: &[u8]) -> Result<Option<Self>, Malformed> {
        let (device, parent, options) = parts(payload, "tbf")?;
        let Some(options) = options.filter(|_| parent == ROOT) else { return Ok(None) };
        let (mut parameters, mut rate64) = (None, None);
        for attribute in Attributes(options) {
            match attribute? {
                (TCA_TBF_PARMS, value) => parameters = Some(value),
                (TCA_TBF_RATE64, value) => rate64 = value.try_into().ok().map(u64::from_ne_bytes),
                _ => {}
            }
        }
        let short = Malformed("token bucket has no parameters");
        let word = |at: usize| {
            let parameters = parameters.ok_or_else(|| short.clone())?;
            u32_of(parameters.get(at..at + 4).ok_or_else(|| short.clone())?)
        };
        let rate = rate64.unwrap_or(word(8)?.into());
        Ok(Some(Self { device, rate, limit: word(24)?, filling: word(28)? }))
    }
}

impl Detour {
    /// What every detour hangs on.
    pub(crate) fn encode_qdisc(self) -> Vec<u8> {
        let mut message = header(self.from, INGRESS_HANDLE, INGRESS, 0);
        put(&mut message, TCA_KIND, b"ingress\0");
        message
    }

    pub(crate) fn encode_filter(self) -> Vec<u8> {
        // The filter's preference, and packets of every protocol: one word.
        let every = 1 << 16 | u32::from(ETH_P_ALL.to_be());
        let mut message = header(self.from, 0, INGRESS_HANDLE, every);
        put(&mut message, TCA_KIND, b"u32\0");
        // One key that everything matches.
        let mut selector = vec![TC_U32_TERMINAL, 0, 1, 0];
        selector.extend([0; 28]);
        let mut parameters = Vec::new();
        for word in [0, 0, TC_ACT_STOLEN, 0, 0, TCA_EGRESS_REDIR, self.through] {
            parameters.extend(word.to_ne_bytes());
        }
        let (mut mirred, mut action, mut actions) = (Vec::new(), Vec::new(), Vec::new());
        put(&mut mirred, TCA_MIRRED_PARMS, &parameters);
        put(&mut action, TCA_ACT_KIND, b"mirred\0");
        put(&mut action, TCA_ACT_OPTIONS, &mirred);
        put(&mut actions, 1, &action);
        let mut options = Vec::new();
        put(&mut options, TCA_U32_SEL, &selector);
        put(&mut options, TCA_U32_ACT, &actions);
        put(&mut message, TCA_OPTIONS, &options);
        message
    }

    /// Reads a detour from the payload of a message, if it is about one.
    pub(crate) fn decode(payload: &[u8]) -> Result<Option<Self>, Malformed> {
        let (from, _, options) = parts(payload, "u32")?;
        let Some(options) = options else { return Ok(None) };
        let inside = |attributes: &[u8], wanted: u16| -> Result<Option<Vec<u8>>, Malformed> {
            let mut found = None;
            for attribute in Attributes(attributes) {
                let (kind, value) = attribute?;
                found = if kind == wanted { Some(value.to_vec()) } else { found };
            }
            Ok(found)
        };
        let mut value = options.to_vec();
        for wanted in [TCA_U32_ACT, 1, TCA_ACT_OPTIONS, TCA_MIRRED_PARMS] {
            let Some(found) = inside(&value, wanted)? else { return Ok(None) };
            value = found;
        }
        let through = value.get(24..28).ok_or(Malformed("detour leads nowhere"))?;
        Ok(Some(Self { from, through: u32_of(through)? }))
    }
}

/// What asks for all devices' queueing disciplines.
pub(crate) fn encode_qdisc_dump() -> Vec<u8> {
    header(0, 0, 0, 0)
}

/// What asks for the filters of what a device receives.
pub(crate) fn encode_filter_dump(device: u32) -> Vec<u8> {
    header(device, 0, INGRESS_HANDLE, 0)
}

fn header(device: u32, handle: u32, parent: u32, rest: u32) -> Vec<u8> {
    [0, device, handle, parent, rest].into_iter().flat_map(u32::to_ne_bytes).collect()
}

type Parts<'a> = (u32, u32, Option<&'a [u8]>);

/// The device and the parent that a message is about, and its options if they are of this kind.
fn parts<'a>(payload: &'a [u8], wanted: &str) -> Result<Parts<'a>, Malformed> {
    let (header, rest) = payload
        .split_first_chunk::<HEADER>()
        .ok_or(Malformed("traffic control entry is shorter than its header"))?;
    let (mut kind, mut options) = (String::new(), None);
    for attribute in Attributes(rest) {
        match attribute? {
            (TCA_KIND, value) => kind = text_of(value),
            (TCA_OPTIONS, value) => options = Some(value),
            _ => {}
        }
    }
    let options = options.filter(|_| kind == wanted);
    Ok((u32_of(&header[4..8])?, u32_of(&header[12..16])?, options))
}

/// As the arguments of `ip link add`.
impl fmt::Display for NewIfb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} mtu {} type ifb", self.name, self.mtu)
    }
}

/// As the arguments of `tc qdisc replace`.
impl fmt::Display for Tbf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { device, rate, burst, limit } = self;
        write!(f, "dev if{device} root handle 1: tbf rate {rate}bps burst {burst} limit {limit}")
    }
}

/// As the arguments of `tc filter add`.
impl fmt::Display for Detour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, through } = self;
        write!(f, "dev if{from} parent ffff: pref 1 protocol all u32 match u32 0 0")?;
        write!(f, " action mirred egress redirect dev if{through}")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_detour_is_read_as_it_is_written() {
        let detour = Detour { from: 7, through: 9 };
        assert_eq!(Detour::decode(&detour.encode_filter()).unwrap(), Some(detour));
        assert_eq!(Detour::decode(&detour.encode_qdisc()).unwrap(), None);
        assert_eq!(FoundTbf::decode(&detour.encode_qdisc()).unwrap(), None);
    }

    #[test]
    fn a_rate_beyond_32_bits_is_read_as_it_is_written() {
        for rate in [1, 1_000_000, u64::from(u32::MAX), 1 << 40] {
            let tbf = Tbf { device: 7, rate, burst: 1 << 20, limit: 1 << 16 };
            let found = FoundTbf::decode(&tbf.encode()).unwrap().unwrap();
            assert_eq!((found.device, found.rate, found.limit), (7, rate, 1 << 16));
        }
    }

    #[test]
    fn another_bucket_is_told_from_a_rounded_one() {
        let tbf = Tbf { device: 7, rate: 1_000_000, burst: 32_000, limit: 1 };
        // 32 ms.
        let found = FoundTbf { device: 7, rate: 1_000_000, filling: 500_000, limit: 1 };
        assert!(tbf.is(&found) && tbf.is(&FoundTbf { filling: 500_100, ..found }));
        for other in [
            FoundTbf { filling: 520_000, ..found },
            FoundTbf { rate: 1_000_001, ..found },
            FoundTbf { limit: 2, ..found },
            FoundTbf { device: 8, ..found },
        ] {
            assert!(!tbf.is(&other), "{other:?}");
        }
    }

    proptest! {
        #[test]
        fn any_payload_is_an_entry_or_an_error(payload in prop::collection::vec(any::<u8>(), 0..80)) {
            drop((FoundTbf::decode(&payload), Detour::decode(&payload)));
        }

        #[test]
        fn a_cut_message_is_an_entry_or_an_error(cut in 0..200_usize) {
            let detour = Detour { from: 7, through: 9 }.encode_filter();
            let tbf = Tbf { device: 7, rate: 1 << 40, burst: 1, limit: 1 }.encode();
            drop(Detour::decode(&detour[..cut.min(detour.len())]));
            drop(FoundTbf::decode(&tbf[..cut.min(tbf.len())]));
        }
    }
}

//! Pure: how fast a container may receive and send: asked for in bits, as the bandwidth plugin of the CNI project has
//! it, and given to the kernel in bytes.

use limpet_rtnl::Tbf;
use serde::Deserialize;
use serde::de::Error as _;

/// The least rate, in bits a second: below it a single packet takes longer than any connection waits.
const LEAST_RATE: u64 = 1000;

/// The least bucket, in bytes: one that a packet does not fit into lets none pass, ever.
const LEAST_BUCKET: u64 = 16 << 10;

/// The most bits that a bucket may have: the kernel counts bytes in 32 bits.
const MOST_BURST: u64 = 8 * 0xffff_ffff;

/// The bursts with which runtimes say that they were told of none: containerd, CRI-O (old and new) and the kubelet's own
/// plugins. Taken at their word they would let 256 MiB to 4 GiB pass before anything is held back.
const NO_BURST: [u64; 4] = [0x7fff_ffff, 0xffff_ffff, MOST_BURST - 1, MOST_BURST];

/// How long the bucket lasts that is taken where none was asked for, in milliseconds.
const DEFAULT_BUCKET: u64 = 20;

/// How long a packet waits at most, in milliseconds.
const LONGEST_WAIT: u64 = 50;

/// The largest piece that the kernel hands down in one, in bytes.
const LARGEST_PIECE: u32 = 64 << 10;

/// What a container may use; without a limit nothing is held back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bandwidth {
    /// What it may receive.
    pub(crate) ingress: Option<Limit>,
    /// What it may send.
    pub(crate) egress: Option<Limit>,
}

/// The limit of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limit {
    /// Bits a second.
    rate: u64,
    /// Bits that may pass at once after a pause.
    burst: u64,
}

impl Bandwidth {
    /// These limits, and where there is none those of `other`.
    pub(crate) fn or(self, other: Self) -> Self {
        Self { ingress: self.ingress.or(other.ingress), egress: self.egress.or(other.egress) }
    }
}

impl Limit {
    /// The token bucket of this limit at a device.
    pub(crate) fn tbf(self, device: u32, mtu: u32) -> Tbf {
        let (rate, asked) = (self.rate / 8, self.burst / 8);
        let least = LEAST_BUCKET.max(u64::from(mtu) + 14);
        let default = || rate.saturating_mul(DEFAULT_BUCKET) / 1000;
        let bucket = if NO_BURST.contains(&self.burst) { default() } else { asked };
        let burst = u32::try_from(bucket.max(least)).unwrap_or(u32::MAX);
        // A piece that fits into the bucket is not cut, and must find room in the queue.
        let waiting = u32::try_from(rate.saturating_mul(LONGEST_WAIT) / 1000).unwrap_or(u32::MAX);
        Tbf { device, rate, burst, limit: waiting.saturating_add(burst.min(LARGEST_PIECE)) }
    }
}

/// The fields as they are written.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Fields {
    ingress_rate: Option<u64>,
    ingress_burst: Option<u64>,
    egress_rate: Option<u64>,
    egress_burst: Option<u64>,
}

impl<'de> Deserialize<'de> for Bandwidth {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let fields = Fields::deserialize(from)?;
        let limit =
            |direction, rate, burst| limit(direction, rate, burst).map_err(D::Error::custom);
        Ok(Self {
            ingress: limit("ingress", fields.ingress_rate, fields.ingress_burst)?,
            egress: limit("egress", fields.egress_rate, fields.egress_burst)?,
        })
    }
}

fn limit(direction: &str, rate: Option<u64>, burst: Option<u64>) -> Result<Option<Limit>, String> {
    match (rate.unwrap_or(0), burst.unwrap_or(0)) {
        (0, 0) => Ok(None),
        (0, _) => Err(format!("{direction}Burst is given without {direction}Rate: give both")),
        (_, 0) => Err(format!("{direction}Rate is given without {direction}Burst: give both")),
        (rate, _) if rate < LEAST_RATE => {
            Err(format!("{direction}Rate is {rate} bit/s, the least is {LEAST_RATE}"))
        }
        (_, burst) if burst > MOST_BURST => {
            Err(format!("{direction}Burst is {burst} bits, the most is {MOST_BURST} (4 GiB)"))
        }
        (rate, burst) => Ok(Some(Limit { rate, burst })),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn read(value: Value) -> Result<Bandwidth, String> {
        serde_json::from_value(value).map_err(|error| error.to_string())
    }

    #[test]
    fn zero_and_nothing_are_no_limit() {
        for none in [
            json!({}),
            json!({"ingressRate": 0, "ingressBurst": 0}),
            json!({"egressRate": null, "egressBurst": 0}),
        ] {
            assert_eq!(read(none), Ok(Bandwidth::default()));
        }
    }

    #[test]
    fn what_cannot_be_says_why() {
        for (wrong, told) in [
            (json!({"ingressRate": 8000}), "ingressRate is given without ingressBurst"),
            (json!({"egressBurst": 8000}), "egressBurst is given without egressRate"),
            (json!({"egressRate": 999, "egressBurst": 1}), "999 bit/s, the least is 1000"),
            (
                json!({"ingressRate": 8000, "ingressBurst": 34_359_738_361_u64}),
                "34359738361 bits, the most is 34359738360",
            ),
            (json!({"ingressRate": -8000, "ingressBurst": 1}), "-8000"),
            (json!({"ingressRate": "8M", "ingressBurst": 1}), "8M"),
            (json!({"ingresRate": 8000}), "ingresRate"),
        ] {
            let error = read(wrong.clone()).unwrap_err();
            assert!(error.contains(told), "{wrong}: {error}");
        }
    }

    #[test]
    fn a_runtimes_word_for_no_burst_is_not_taken_for_one() {
        let rate = 80_000_000;
        for burst in NO_BURST {
            let tbf = Limit { rate, burst }.tbf(1, 1450);
            assert_eq!((tbf.rate, tbf.burst), (10_000_000, 200_000), "{burst}");
        }
        let tbf = Limit { rate, burst: 16_000_000_000 }.tbf(1, 1450);
        assert_eq!((tbf.burst, tbf.limit), (2_000_000_000, 500_000 + (64 << 10)));
    }

    proptest! {
        #[test]
        fn every_packet_fits_into_bucket_and_queue(
            rate in LEAST_RATE..u64::MAX, burst in 1..=MOST_BURST, mtu in 1280..65_536_u32,
        ) {
            let tbf = Limit { rate, burst }.tbf(1, mtu);
            prop_assert!(tbf.burst >= mtu + 14 && tbf.limit >= (mtu + 14).min(LARGEST_PIECE));
            prop_assert_eq!(tbf.rate, rate / 8);
        }
    }
}

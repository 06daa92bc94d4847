//! Edge: traffic on every kind of path while something happens, and what it cost.

use crate::container::Pod;
use crate::datacentre::Datacentre;
use crate::fabric::Fabric;
use crate::host::Host;
use crate::stream::{Count, Ends, Stream, Transfer};

/// Streams and connections between containers, and between containers and a physical host; and one stream that limpet
/// has nothing to do with, which tells what the machine itself loses.
#[derive(Debug)]
pub struct Load {
    streams: Vec<(&'static str, Stream)>,
    transfers: Vec<(&'static str, Transfer)>,
    control: Stream,
    dropped: u64,
    _plain: (Fabric, [Host; 2]),
}

/// What became of a [`Load`].
#[derive(Clone, Debug)]
pub struct Toll {
    /// Of each path.
    pub streams: Vec<(&'static str, Count)>,
    /// Of the stream that limpet has nothing to do with.
    pub control: Count,
    /// Packets that the machine's own queues had no room for.
    pub dropped: u64,
    /// What each connection has carried, in bytes, or what broke it.
    pub transfers: Vec<(&'static str, Result<u64, String>)>,
}

impl Load {
    /// Starts to send: so many a second from the first pod to the second, and `others` on each other path.
    #[must_use]
    pub fn start(dc: &Datacentre, (web, db): (&Pod, &Pod), rate: u64, others: u64) -> Self {
        let pod = |pod: &Pod, v6| (pod.container.netns(), if v6 { pod.v6() } else { pod.v4() });
        let metal = |v6| {
            let address = if v6 { "2001:db8::50" } else { "192.0.2.50" };
            (dc.metal_host().netns(), address.parse().unwrap())
        };
        let paths = [
            ("container to container", pod(web, false), pod(db, false)),
            ("container to container, back", pod(db, true), pod(web, true)),
            ("container to physical host", pod(web, false), metal(false)),
            ("physical host to container", metal(true), pod(db, true)),
        ];
        let paths = paths.map(|(name, from, to)| (name, Ends { from, to }));
        let hosts = [Host::new("plain-c"), Host::new("plain-d")];
        let addresses = [["10.99.0.1/24"], ["10.99.0.2/24"]];
        let fabric = Fabric::of("plain", &[(&hosts[0], &addresses[0]), (&hosts[1], &addresses[1])]);
        hosts[0].wait_for("10.99.0.2");
        let end = |n: usize, address: &str| (hosts[n].netns(), address.parse().unwrap());
        let plain = Ends { from: end(0, "10.99.0.1"), to: end(1, "10.99.0.2") };
        let connections = [&paths[0], &paths[3]];
        Self {
            dropped: dropped(),
            transfers: connections.map(|(name, ends)| (*name, Transfer::start(ends))).into(),
            streams: paths
                .iter()
                .zip([rate, others, others, others])
                .map(|((name, ends), rate)| (*name, Stream::start(ends, rate)))
                .collect(),
            control: Stream::start(&plain, others),
            _plain: (fabric, hosts),
        }
    }

    /// Ends it, and counts.
    #[must_use]
    pub fn end(self) -> Toll {
        let Self { streams, transfers, control, dropped: before, _plain } = self;
        let streams = streams.into_iter().map(|(name, stream)| (name, stream.end())).collect();
        let transfers = transfers.into_iter().map(|(name, one)| (name, one.end())).collect();
        let control = control.end();
        Toll { streams, control, transfers, dropped: dropped() - before }
    }
}

impl Toll {
    /// How many packets were sent on limpet's paths.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.streams.iter().map(|(_, count)| count.sent).sum()
    }

    /// How many of them did not arrive.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.streams.iter().map(|(_, count)| count.lost).sum()
    }

    /// Whether the machine itself lost anything, so that the count says nothing of limpet.
    #[must_use]
    pub fn is_blurred(&self) -> bool {
        let overrun: u64 = self.streams.iter().map(|(_, count)| count.overrun).sum();
        self.control.lost + self.control.overrun + self.dropped + overrun > 0
    }

    /// Panics if a packet was lost, came twice or out of its turn, or a connection broke.
    pub fn assert_nothing_lost(&self) {
        assert!(!self.is_blurred(), "the machine itself loses packets: {self:#?}");
        for (path, count) in &self.streams {
            let Count { sent, lost, duplicated, reordered, .. } = *count;
            assert!(sent > 100, "{path}: hardly anything was sent: {self:#?}");
            assert_eq!((lost, duplicated, reordered), (0, 0, 0), "{path}: {self:#?}");
        }
        for (path, carried) in &self.transfers {
            assert!(carried.is_ok(), "{path}: the connection broke: {self:#?}");
        }
    }
}

/// How many packets the machine's own queues had no room for since it started.
fn dropped() -> u64 {
    let text = std::fs::read_to_string("/proc/net/softnet_stat").unwrap();
    let second = |line: &str| {
        let column = line.split_whitespace().nth(1).unwrap();
        u64::from_str_radix(column, 16).unwrap()
    };
    text.lines().map(second).sum()
}

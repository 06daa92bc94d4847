//! Edge: hearing that something changed in the kernel, no more exactly than is needed to look again.

use std::collections::VecDeque;
use std::io;

use netlink_proto::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};

use crate::netns::{Netns, NetnsError};
use crate::wire::{Attributes, text_of};

/// Enough for a burst of 100,000 changes; with the default of 208 KiB 3 of 100 were lost.
const BUFFER: usize = 4 << 20;
const NLMSG_HEADER: usize = 16;

const NFNLGRP_NFTABLES: u32 = 7;
const NFNL_SUBSYS_NFTABLES: u8 = 10;
const NFT_MSG_NEWCHAIN: u8 = 3;
const NFT_MSG_NEWGEN: u8 = 15;
/// The header of a netfilter message: family, version, resource.
const NFGENMSG: usize = 4;
const NFTA_TABLE: u16 = 1;
const NFTA_CHAIN_TYPE: u16 = 7;

/// The multicast groups: links, neighbours, IPv4 and IPv6 addresses, routes and rules, and nexthops.
const GROUPS: [u32; 9] = [1, 3, 5, 7, 8, 9, 11, 19, 32];

/// What was heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Something changed.
    Changed(Change),
    /// Changes were lost: compare everything.
    Overrun,
}

/// A change of one entry of one table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which table.
    pub table: Table,
    /// Whether the entry is gone, rather than made or changed.
    pub gone: bool,
    /// The index of the device it is about, for links, neighbours (FDB entries among them) and addresses.
    pub device: Option<u32>,
    /// Who made the entry, for routes and nexthops.
    pub protocol: Option<u8>,
}

/// One of the kernel's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// Devices.
    Link,
    /// Addresses.
    Address,
    /// Neighbour and FDB entries.
    Neighbour,
    /// Routes.
    Route,
    /// Rules.
    Rule,
    /// Nexthops.
    Nexthop,
}

/// Why the kernel cannot be listened to.
#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    /// The socket cannot be opened, or broke.
    #[error("cannot listen to the kernel's changes")]
    Socket(#[from] io::Error),
    /// The namespace cannot be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
}

/// Listens to one network namespace.
pub struct Monitor {
    socket: TokioSocket,
    heard: VecDeque<Event>,
}

/// Listens to the changes of one nftables table, and to new chains that translate addresses, in whichever table.
pub struct FilterMonitor {
    socket: TokioSocket,
    table: String,
}

impl FilterMonitor {
    /// Listens in the calling thread's network namespace to the tables called `table`, of any family.
    ///
    /// # Errors
    ///
    /// [`MonitorError::Socket`]; also where the kernel has no nftables.
    pub fn open(table: &str) -> Result<Self, MonitorError> {
        let mut socket = TokioSocket::new(protocols::NETLINK_NETFILTER)?;
        let inner = socket.socket_mut();
        let _ = setsockopt(inner, RcvBufForce, &BUFFER);
        inner.bind(&SocketAddr::new(0, 0))?;
        inner.add_membership(NFNLGRP_NFTABLES)?;
        Ok(Self { socket, table: table.to_owned() })
    }

    /// Waits until something of the table was made, changed or deleted, a chain of type `nat` was made, or changes were
    /// lost.
    ///
    /// May be dropped: nothing is lost.
    ///
    /// # Errors
    ///
    /// [`MonitorError::Socket`] if the socket broke: open another, and compare everything.
    pub async fn changed(&mut self) -> Result<(), MonitorError> {
        loop {
            match self.socket.recv_from_full().await {
                Ok((datagram, _)) if self.concerns(&datagram) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(nix_code(Errno::ENOBUFS)) => {
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn concerns(&self, datagram: &[u8]) -> bool {
        messages(datagram).any(|(kind, payload)| {
            table_of(kind, payload).as_ref() == Some(&self.table) || is_nat_chain(kind, payload)
        })
    }
}

/// The table that a message of nftables is about: in each kind of them it is the first attribute.
fn table_of(kind: u16, payload: &[u8]) -> Option<String> {
    let [message, subsystem] = kind.to_le_bytes();
    if subsystem != NFNL_SUBSYS_NFTABLES || message == NFT_MSG_NEWGEN {
        return None;
    }
    let attributes = Attributes(payload.get(NFGENMSG..)?);
    let mut split = attributes.filter_map(Result::ok);
    split.find(|(kind, _)| *kind == NFTA_TABLE).map(|(_, name)| text_of(name))
}

fn is_nat_chain(kind: u16, payload: &[u8]) -> bool {
    let attributes = || Attributes(payload.get(NFGENMSG..).unwrap_or_default());
    kind.to_le_bytes() == [NFT_MSG_NEWCHAIN, NFNL_SUBSYS_NFTABLES]
        && attributes()
            .filter_map(Result::ok)
            .any(|(kind, value)| kind == NFTA_CHAIN_TYPE && text_of(value) == "nat")
}

impl Monitor {
    /// Listens to the calling thread's network namespace; needs a tokio runtime with IO enabled.
    ///
    /// Everything that changes after this returns is heard: open it first, then read the tables.
    ///
    /// # Errors
    ///
    /// [`MonitorError::Socket`].
    pub fn open() -> Result<Self, MonitorError> {
        let mut socket = TokioSocket::new(protocols::NETLINK_ROUTE)?;
        let inner = socket.socket_mut();
        // Needs CAP_NET_ADMIN; without it the monitor only overruns earlier.
        let _ = setsockopt(inner, RcvBufForce, &BUFFER);
        inner.bind(&SocketAddr::new(0, 0))?;
        for group in GROUPS {
            inner.add_membership(group)?;
        }
        Ok(Self { socket, heard: VecDeque::new() })
    }

    /// Listens to another network namespace.
    ///
    /// # Errors
    ///
    /// As [`Monitor::open`], and if the namespace cannot be entered.
    pub fn open_in(netns: &Netns) -> Result<Self, MonitorError> {
        let runtime = tokio::runtime::Handle::current();
        netns.run(|| {
            let _runtime = runtime.enter();
            Self::open()
        })?
    }

    /// Waits for the next event, for as long as there is none.
    ///
    /// May be dropped: nothing is lost.
    ///
    /// # Errors
    ///
    /// [`MonitorError::Socket`] if the socket broke: open another, and compare everything.
    pub async fn next(&mut self) -> Result<Event, MonitorError> {
        loop {
            if let Some(event) = self.heard.pop_front() {
                return Ok(event);
            }
            match self.socket.recv_from_full().await {
                Ok((datagram, _)) => self.heard.extend(changes(&datagram)),
                Err(error) if error.raw_os_error() == Some(nix_code(Errno::ENOBUFS)) => {
                    return Ok(Event::Overrun);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn nix_code(errno: Errno) -> i32 {
    io::Error::from(errno).raw_os_error().unwrap_or_default()
}

/// The changes in a datagram.
fn changes(datagram: &[u8]) -> Vec<Event> {
    messages(datagram)
        .filter_map(|(kind, payload)| change(kind, payload).map(Event::Changed))
        .collect()
}

/// The messages in a datagram: the kind and the payload of each.
fn messages(mut datagram: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (header, rest) = datagram.split_first_chunk::<NLMSG_HEADER>()?;
        let [l0, l1, l2, l3, t0, t1, ..] = *header;
        let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
        let payload = rest.get(..length.saturating_sub(NLMSG_HEADER)).unwrap_or(rest);
        let next = length.max(NLMSG_HEADER).checked_next_multiple_of(4).unwrap_or(usize::MAX);
        datagram = datagram.get(next..).unwrap_or(&[]);
        Some((u16::from_ne_bytes([t0, t1]), payload))
    })
}

/// What a message says changed; nothing if it is about something else.
fn change(kind: u16, payload: &[u8]) -> Option<Change> {
    let word = |at: usize| {
        let bytes = payload.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_ne_bytes(bytes))
    };
    let byte = |at: usize| payload.get(at).copied();
    let (table, gone) = match kind {
        16 | 17 => (Table::Link, kind == 17),
        20 | 21 => (Table::Address, kind == 21),
        24 | 25 => (Table::Route, kind == 25),
        28 | 29 => (Table::Neighbour, kind == 29),
        32 | 33 => (Table::Rule, kind == 33),
        104 | 105 => (Table::Nexthop, kind == 105),
        _ => return None,
    };
    let (device, protocol) = match table {
        // `ifinfomsg`, `ifaddrmsg` and `ndmsg` all have the index there.
        Table::Link | Table::Address | Table::Neighbour => (word(4), None),
        Table::Route => (None, byte(5)),
        Table::Nexthop => (None, byte(2)),
        Table::Rule => (None, None),
    };
    Some(Change { table, gone, device, protocol })
}

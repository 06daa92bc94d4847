//! Pure: what the kernel tells of a change, taken apart as far as the listener wants.

use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader};
use netlink_packet_route::RouteNetlinkMessage as Message;

use crate::message::Rt;
use crate::wire::{Attributes, u32_of};
use crate::{FdbEntry, FoundAddress, FoundNeighbour, Link, Nexthop, Route, Rule};

const NLMSG_HEADER: usize = 16;
const NLM_F_REPLACE: u16 = 0x100;
const AF_UNSPEC: u8 = 0;
const AF_BRIDGE: u8 = 7;
const NETCONFA_IFINDEX: u16 = 1;
/// What the kernel gives for the index of a setting's device where it is that of all devices, or of those to come.
const ALL: u32 = u32::MAX;
const DEFAULT: u32 = u32::MAX - 1;

/// What was heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Something changed.
    Changed(Change),
    /// Changes were lost: compare everything.
    Overrun,
}

/// A change of one entry of one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which table.
    pub table: Table,
    /// Whether the entry is gone, rather than made or changed.
    pub gone: bool,
    /// Whether it took the place of another one; told of routes and nexthops.
    pub replaces: bool,
    /// The index of the device it is about, for links, neighbours, FDB entries, addresses, and settings unless they are
    /// for all devices.
    pub device: Option<u32>,
    /// Who made the entry, for routes and nexthops.
    pub protocol: Option<u8>,
    kind: u16,
    payload: Vec<u8>,
}

/// One of the kernel's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// Devices.
    Link,
    /// Addresses.
    Address,
    /// Neighbour entries.
    Neighbour,
    /// Forwarding entries.
    Fdb,
    /// Routes.
    Route,
    /// Rules.
    Rule,
    /// Nexthops.
    Nexthop,
    /// Settings: forwarding and the reverse-path filter among them, but by far not all.
    Setting,
}

/// An entry, as it is now or was before it went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A device.
    Link(Link),
    /// An address.
    Address(FoundAddress),
    /// A neighbour entry.
    Neighbour(FoundNeighbour),
    /// A forwarding entry.
    Fdb(FdbEntry),
    /// A route.
    Route(Route),
    /// A rule; none of a kind that limpet never sets.
    Rule(Option<Rule>),
    /// A nexthop.
    Nexthop(Nexthop),
    /// Settings; which ones is not told.
    Settings,
}

impl Change {
    /// What changed; none where the message is not understood: read the table.
    #[must_use]
    pub fn entry(&self) -> Option<Entry> {
        let Self { kind, payload, .. } = self;
        match self.table {
            Table::Setting => return Some(Entry::Settings),
            Table::Link => return Link::decode(payload).ok().map(Entry::Link),
            Table::Nexthop => return Nexthop::decode(payload).ok().map(Entry::Nexthop),
            _ => {}
        }
        let mut header = NetlinkHeader::default();
        header.message_type = *kind;
        let Ok(Rt::Route(message)) = Rt::deserialize(&header, payload) else { return None };
        match message {
            Message::NewAddress(message) | Message::DelAddress(message) => {
                FoundAddress::decode(&message).ok().map(Entry::Address)
            }
            Message::NewNeighbour(message) | Message::DelNeighbour(message)
                if self.table == Table::Fdb =>
            {
                FdbEntry::decode(&message).ok().map(Entry::Fdb)
            }
            Message::NewNeighbour(message) | Message::DelNeighbour(message) => {
                FoundNeighbour::decode(&message).ok().map(Entry::Neighbour)
            }
            Message::NewRoute(message) | Message::DelRoute(message) => {
                Route::decode(&message).ok().map(Entry::Route)
            }
            Message::NewRule(message) | Message::DelRule(message) => {
                Rule::decode(&message).ok().map(Entry::Rule)
            }
            _ => None,
        }
    }
}

/// The changes in a datagram. Whatever else is in it is passed over.
pub(crate) fn changes(datagram: &[u8]) -> impl Iterator<Item = Event> {
    messages(datagram)
        .filter_map(|(kind, flags, payload)| change(kind, flags, payload).map(Event::Changed))
}

/// The messages in a datagram: the kind, the flags and the payload of each.
pub(crate) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = (u16, u16, &[u8])> {
    std::iter::from_fn(move || {
        let (header, rest) = datagram.split_first_chunk::<NLMSG_HEADER>()?;
        let [l0, l1, l2, l3, t0, t1, f0, f1, ..] = *header;
        let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).unwrap_or(usize::MAX);
        let payload = rest.get(..length.saturating_sub(NLMSG_HEADER)).unwrap_or(rest);
        let next = length.max(NLMSG_HEADER).checked_next_multiple_of(4).unwrap_or(usize::MAX);
        datagram = datagram.get(next..).unwrap_or(&[]);
        Some((u16::from_ne_bytes([t0, t1]), u16::from_ne_bytes([f0, f1]), payload))
    })
}

/// What a message says changed; nothing if it is about something else.
fn change(kind: u16, flags: u16, payload: &[u8]) -> Option<Change> {
    let word = |at: usize| {
        let bytes = payload.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_ne_bytes(bytes))
    };
    let byte = |at: usize| payload.get(at).copied();
    let (table, gone) = match kind {
        // With a family it is what one protocol says of a device: never all of it.
        16 | 17 if byte(0) == Some(AF_UNSPEC) => (Table::Link, kind == 17),
        20 | 21 => (Table::Address, kind == 21),
        24 | 25 => (Table::Route, kind == 25),
        28 | 29 if byte(0) == Some(AF_BRIDGE) => (Table::Fdb, kind == 29),
        28 | 29 => (Table::Neighbour, kind == 29),
        32 | 33 => (Table::Rule, kind == 33),
        80 | 81 => (Table::Setting, kind == 81),
        104 | 105 => (Table::Nexthop, kind == 105),
        _ => return None,
    };
    let (device, protocol) = match table {
        // `ifinfomsg`, `ifaddrmsg` and `ndmsg` all have the index there.
        Table::Link | Table::Address | Table::Neighbour | Table::Fdb => (word(4), None),
        Table::Route => (None, byte(5)),
        Table::Nexthop => (None, byte(2)),
        Table::Rule => (None, None),
        Table::Setting => match setting_device(payload)? {
            DEFAULT => return None,
            ALL => (None, None),
            index => (Some(index), None),
        },
    };
    let replaces = flags & NLM_F_REPLACE != 0;
    Some(Change { table, gone, replaces, device, protocol, kind, payload: payload.to_vec() })
}

/// The index of the device that settings are of.
fn setting_device(payload: &[u8]) -> Option<u32> {
    // One byte of family, and its padding.
    let mut attributes = Attributes(payload.get(4..)?).filter_map(Result::ok);
    let (_, index) = attributes.find(|(kind, _)| *kind == NETCONFA_IFINDEX)?;
    u32_of(index).ok()
}

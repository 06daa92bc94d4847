//! Pure: neighbour entries (address to MAC address) and FDB entries (MAC address to VTEP).

use std::fmt;
use std::net::IpAddr;

use limpet_net_types::{Family, Mac};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourHeader, NeighbourMessage,
    NeighbourState,
};
use netlink_packet_route::route::RouteProtocol;

use crate::address::family_of;
use crate::wire::{Malformed, address_of};

const NUD_NOARP: u16 = 0x40;
const NUD_PERMANENT: u16 = 0x80;

/// A permanent neighbour entry to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Neighbour {
    /// The device's index.
    pub device: u32,
    /// The neighbour's address.
    pub address: IpAddr,
    /// Its MAC address.
    pub mac: Mac,
    /// Who made it; 0 for nobody in particular.
    pub protocol: u8,
}

/// A neighbour entry as the kernel has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FoundNeighbour {
    /// The device's index.
    pub device: u32,
    /// The neighbour's address.
    pub address: IpAddr,
    /// Its MAC address, where it has a usable one.
    pub mac: Option<Mac>,
    /// Whether it stays until it is deleted.
    pub permanent: bool,
    /// Who made it; 0 for the kernel.
    pub protocol: u8,
}

/// A forwarding entry of a VXLAN device: frames to `mac` go to the VTEP at `vtep`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FdbEntry {
    /// The index of the VXLAN device.
    pub device: u32,
    /// The MAC address. All zeros is the default entry, which floods, and others may be multicast addresses:
    /// they can be found and deleted, limpet sets none.
    pub mac: [u8; 6],
    /// The underlay address of the VTEP; entries of other devices than VXLAN have none.
    pub vtep: Option<IpAddr>,
    /// Whether it stays until it is deleted; `false` is what learning made.
    pub permanent: bool,
}

impl Neighbour {
    pub(crate) fn message(&self) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.family = family_of(self.address);
        message.header.ifindex = self.device;
        message.header.state = NeighbourState::Permanent;
        message.attributes = vec![
            NeighbourAttribute::Destination(destination(self.address)),
            NeighbourAttribute::LinkLayerAddress(self.mac.bytes().to_vec()),
        ];
        if self.protocol != 0 {
            let protocol = RouteProtocol::from(self.protocol);
            message.attributes.push(NeighbourAttribute::Protocol(protocol));
        }
        message
    }

    /// What asks for the entries of one family on one device, or on all.
    pub(crate) fn dump(device: Option<u32>, family: Family) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.family = match family {
            Family::V4 => AddressFamily::Inet,
            Family::V6 => AddressFamily::Inet6,
        };
        // A strict kernel refuses the index in the header.
        message.attributes = device.map(NeighbourAttribute::IfIndex).into_iter().collect();
        message
    }
}

impl FoundNeighbour {
    /// The entry as it could be set, if it is a permanent one.
    #[must_use]
    pub fn as_permanent(&self) -> Option<Neighbour> {
        let Self { device, address, mac, permanent, protocol } = *self;
        permanent.then_some(())?;
        Some(Neighbour { device, address, mac: mac?, protocol })
    }

    pub(crate) fn decode(message: &NeighbourMessage) -> Result<Self, Malformed> {
        let mut found = None;
        let (mut mac, mut protocol) = (None, 0);
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::Destination(address) => found = Some(ip_of(address)?),
                NeighbourAttribute::LinkLayerAddress(bytes) => mac = mac_of(bytes),
                NeighbourAttribute::Protocol(by) => protocol = u8::from(*by),
                _ => {}
            }
        }
        Ok(Self {
            device: message.header.ifindex,
            address: found.ok_or(Malformed("neighbour has no address"))?,
            mac: mac.and_then(|bytes| Mac::new(bytes).ok()),
            permanent: state_bits(&message.header) & NUD_PERMANENT != 0,
            protocol,
        })
    }
}

impl FdbEntry {
    /// An entry as limpet sets it.
    #[must_use]
    pub fn new(device: u32, mac: Mac, vtep: IpAddr) -> Self {
        Self { device, mac: mac.bytes(), vtep: Some(vtep), permanent: true }
    }

    pub(crate) fn message(&self) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = self.device;
        message.header.flags = NeighbourFlags::Own;
        message.header.state =
            if self.permanent { NeighbourState::Permanent } else { NeighbourState::Reachable };
        message.attributes = vec![NeighbourAttribute::LinkLayerAddress(self.mac.to_vec())];
        if let Some(vtep) = self.vtep {
            message.attributes.push(NeighbourAttribute::Destination(destination(vtep)));
        }
        message
    }

    /// What asks for the entries of one device.
    pub(crate) fn dump(device: u32) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = device;
        message
    }

    pub(crate) fn decode(message: &NeighbourMessage) -> Result<Self, Malformed> {
        let (mut mac, mut vtep) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::LinkLayerAddress(bytes) => mac = mac_of(bytes),
                NeighbourAttribute::Destination(address) => vtep = Some(ip_of(address)?),
                _ => {}
            }
        }
        Ok(Self {
            device: message.header.ifindex,
            mac: mac.ok_or(Malformed("FDB entry has no MAC address"))?,
            vtep,
            permanent: state_bits(&message.header) & (NUD_PERMANENT | NUD_NOARP) != 0,
        })
    }
}

fn destination(address: IpAddr) -> NeighbourAddress {
    match address {
        IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
        IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
    }
}

/// In FDB entries the address comes as bytes: the message's family is the bridge's.
fn ip_of(address: &NeighbourAddress) -> Result<IpAddr, Malformed> {
    match address {
        NeighbourAddress::Inet(v4) => Ok((*v4).into()),
        NeighbourAddress::Inet6(v6) => Ok((*v6).into()),
        NeighbourAddress::Other(bytes) => address_of(bytes),
        _ => Err(Malformed("address of an unknown family")),
    }
}

fn mac_of(bytes: &[u8]) -> Option<[u8; 6]> {
    bytes.try_into().ok()
}

fn state_bits(header: &NeighbourHeader) -> u16 {
    header.state.into()
}

/// As the arguments of `ip neigh replace`.
impl fmt::Display for Neighbour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { device, address, mac, protocol } = self;
        write!(f, "{address} lladdr {mac} dev if{device} nud permanent")?;
        if *protocol == 0 { Ok(()) } else { write!(f, " protocol {protocol}") }
    }
}

/// As the arguments of `bridge fdb replace`.
impl fmt::Display for FdbEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.mac.iter().enumerate() {
            write!(f, "{}{byte:02x}", if i == 0 { "" } else { ":" })?;
        }
        write!(f, " dev if{}", self.device)?;
        if let Some(vtep) = self.vtep {
            write!(f, " dst {vtep}")?;
        }
        f.write_str(if self.permanent { " self permanent" } else { " self dynamic" })
    }
}

//! Pure: addresses of devices.

use std::fmt;
use std::net::IpAddr;

use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeader, AddressHeaderFlags, AddressMessage, AddressScope,
};

use crate::wire::Malformed;

/// An address to set on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// The device's index.
    pub device: u32,
    /// The address.
    pub address: IpAddr,
    /// The length of the prefix that is on the link; 32 or 128 for none but the address.
    pub length: u8,
    /// Skip duplicate address detection, so that an IPv6 address serves at once.
    pub no_dad: bool,
}

/// An address as the kernel has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FoundAddress {
    /// What was set.
    pub address: Address,
    /// How far it reaches.
    pub scope: Scope,
    /// Whether it may be used: neither awaiting or having failed duplicate detection, nor deprecated.
    pub usable: bool,
    /// Whether it is a privacy address (RFC 8981), which will be gone tomorrow.
    pub temporary: bool,
}

/// How far an address reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Everywhere.
    Global,
    /// The link.
    Link,
    /// This host.
    Host,
    /// Anything else.
    Other,
}

impl Address {
    pub(crate) fn message(&self) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header.family = family_of(self.address);
        message.header.prefix_len = self.length;
        message.header.index = self.device;
        let is_loopback = self.address.is_loopback();
        let is_link_local = match self.address {
            IpAddr::V4(v4) => v4.is_link_local(),
            IpAddr::V6(v6) => v6.is_unicast_link_local(),
        };
        message.header.scope = match (is_loopback, is_link_local) {
            (true, _) => AddressScope::Host,
            (_, true) => AddressScope::Link,
            _ => AddressScope::Universe,
        };
        message.attributes.push(AddressAttribute::Local(self.address));
        message.attributes.push(AddressAttribute::Address(self.address));
        if self.no_dad && self.address.is_ipv6() {
            message.header.flags = AddressHeaderFlags::Nodad;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        message
    }

    /// What asks for the addresses of one device, or of all.
    pub(crate) fn dump(device: Option<u32>) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header = AddressHeader::default();
        message.header.index = device.unwrap_or(0);
        message
    }
}

impl FoundAddress {
    pub(crate) fn decode(message: &AddressMessage) -> Result<Self, Malformed> {
        let (mut local, mut address, mut flags) = (None, None, None);
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Local(ip) => local = Some(*ip),
                AddressAttribute::Address(ip) => address = Some(*ip),
                AddressAttribute::Flags(all) => flags = Some(*all),
                _ => {}
            }
        }
        let ip = local.or(address).ok_or(Malformed("address message has no address"))?;
        let flags =
            flags.unwrap_or(AddressFlags::from_bits_retain(message.header.flags.bits().into()));
        let unusable = AddressFlags::Tentative | AddressFlags::Dadfailed | AddressFlags::Deprecated;
        Ok(Self {
            address: Address {
                device: message.header.index,
                address: ip,
                length: message.header.prefix_len,
                no_dad: flags.contains(AddressFlags::Nodad),
            },
            scope: match message.header.scope {
                AddressScope::Universe => Scope::Global,
                AddressScope::Link => Scope::Link,
                AddressScope::Host => Scope::Host,
                _ => Scope::Other,
            },
            usable: !flags.intersects(unusable) || flags.contains(AddressFlags::Optimistic),
            // The same bit says *secondary* of an IPv4 address.
            temporary: ip.is_ipv6() && flags.contains(AddressFlags::Secondary),
        })
    }
}

/// The family of `address`, as the kernel numbers it.
pub(crate) fn family_of(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// As the arguments of `ip address replace`.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} dev if{}", self.address, self.length, self.device)?;
        f.write_str(if self.no_dad { " nodad" } else { "" })
    }
}

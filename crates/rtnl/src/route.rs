//! Pure: routes.

use std::fmt;
use std::net::IpAddr;

use limpet_net_types::{Family, Prefix};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteScope, RouteType,
    RouteVia,
};

use crate::wire::Malformed;

/// What the kernel makes of an IPv6 route with no metric.
const V6_DEFAULT_METRIC: u32 = 1024;
/// The old field of eight bits says this of tables with larger numbers.
const TABLE_COMPAT: u8 = 252;

/// A route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// The number of its table.
    pub table: u32,
    /// Who made it.
    pub protocol: u8,
    /// The addresses it is for.
    pub destination: Prefix,
    /// Where it leads.
    pub target: RouteTarget,
    /// The address that the host itself sends from.
    pub source: Option<IpAddr>,
    /// The larger is the less preferred; 0 is the kernel's default (read back as 0 also for IPv6, where the
    /// kernel says 1024).
    pub metric: u32,
}

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RouteTarget {
    /// Where the nexthop object with this id leads.
    Nexthop(u32),
    /// Out of a device. Without a gateway the destination is on the link.
    Device {
        /// The device's index.
        index: u32,
        /// The next router; an IPv6 one serves IPv4 routes too.
        gateway: Option<IpAddr>,
        /// Take the gateway to be on the link whatever other routes say.
        onlink: bool,
    },
    /// Nowhere: the sender is told that the destination is unreachable.
    Unreachable,
    /// Not by this table: the next rule is asked.
    Throw,
    /// Anything that limpet never sets. Only read.
    Other,
}

impl RouteTarget {
    /// Out of the device with this index, on the link.
    #[must_use]
    pub fn link(index: u32) -> Self {
        Self::Device { index, gateway: None, onlink: false }
    }

    /// By a gateway behind the device with this index.
    #[must_use]
    pub fn gateway(index: u32, gateway: IpAddr) -> Self {
        Self::Device { index, gateway: Some(gateway), onlink: false }
    }
}

/// Which routes to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteFilter {
    /// The number of the table, 254 is main; 0 for all.
    pub table: u32,
    /// Who made them; 0 for everybody.
    pub protocol: u8,
}

impl Route {
    pub(crate) fn message(&self) -> RouteMessage {
        let mut message = message(self.destination.family(), self.table, self.protocol);
        message.header.destination_prefix_length = self.destination.length();
        message.header.kind = RouteType::Unicast;
        message
            .attributes
            .push(RouteAttribute::Destination(route_address(self.destination.address())));
        match self.target {
            RouteTarget::Nexthop(id) => message.attributes.push(RouteAttribute::NhId(id)),
            RouteTarget::Device { index, gateway, onlink } => {
                message.attributes.push(RouteAttribute::Oif(index));
                match gateway {
                    Some(gateway) => message.attributes.push(self.by(gateway)),
                    None if self.destination.family() == Family::V4 => {
                        message.header.scope = RouteScope::Link;
                    }
                    None => {}
                }
                if onlink {
                    message.header.flags |= RouteFlags::Onlink;
                }
            }
            RouteTarget::Unreachable => message.header.kind = RouteType::Unreachable,
            RouteTarget::Throw => message.header.kind = RouteType::Throw,
            RouteTarget::Other => {}
        }
        if let Some(source) = self.source {
            message.attributes.push(RouteAttribute::PrefSource(route_address(source)));
        }
        if self.metric != 0 {
            message.attributes.push(RouteAttribute::Priority(self.metric));
        }
        message
    }

    fn by(&self, gateway: IpAddr) -> RouteAttribute {
        match gateway {
            IpAddr::V6(v6) if self.destination.family() == Family::V4 => {
                RouteAttribute::Via(RouteVia::Inet6(v6))
            }
            _ => RouteAttribute::Gateway(route_address(gateway)),
        }
    }

    pub(crate) fn decode(message: &RouteMessage) -> Result<Self, Malformed> {
        let family = match message.header.address_family {
            AddressFamily::Inet => Family::V4,
            AddressFamily::Inet6 => Family::V6,
            _ => return Err(Malformed("route is of neither IPv4 nor IPv6")),
        };
        let mut found = Found::default();
        for attribute in &message.attributes {
            found.take(attribute)?;
        }
        let any = limpet_net_types::address_at(family, 0);
        let destination = Prefix::containing(
            found.destination.unwrap_or(any),
            message.header.destination_prefix_length,
        );
        let metric = match (family, found.metric) {
            (Family::V6, V6_DEFAULT_METRIC) => 0,
            (_, metric) => metric,
        };
        Ok(Self {
            table: found.table.unwrap_or(message.header.table.into()),
            protocol: message.header.protocol.into(),
            destination,
            target: found.target(message),
            source: found.source,
            metric,
        })
    }
}

impl RouteFilter {
    /// What asks for the routes of one family.
    pub(crate) fn dump(self, family: Family) -> RouteMessage {
        message(family, self.table, self.protocol)
    }
}

/// The attributes of a route that was read.
#[derive(Default)]
struct Found {
    table: Option<u32>,
    destination: Option<IpAddr>,
    nexthop: Option<u32>,
    device: Option<u32>,
    gateway: Option<IpAddr>,
    source: Option<IpAddr>,
    metric: u32,
    /// Several nexthops, an encapsulation: nothing that limpet sets.
    foreign: bool,
}

impl Found {
    fn take(&mut self, attribute: &RouteAttribute) -> Result<(), Malformed> {
        match attribute {
            RouteAttribute::Table(table) => self.table = Some(*table),
            RouteAttribute::Destination(address) => self.destination = Some(ip_of(address)?),
            RouteAttribute::NhId(id) => self.nexthop = Some(*id),
            RouteAttribute::Oif(index) => self.device = Some(*index),
            RouteAttribute::Gateway(address) => self.gateway = Some(ip_of(address)?),
            RouteAttribute::Via(RouteVia::Inet(v4)) => self.gateway = Some((*v4).into()),
            RouteAttribute::Via(RouteVia::Inet6(v6)) => self.gateway = Some((*v6).into()),
            RouteAttribute::PrefSource(address) => self.source = Some(ip_of(address)?),
            RouteAttribute::Priority(metric) => self.metric = *metric,
            RouteAttribute::MultiPath(_) | RouteAttribute::Encap(_) => self.foreign = true,
            _ => {}
        }
        Ok(())
    }

    /// The kernel adds to a nexthop's route what the nexthop says, and to an IPv6 route that leads nowhere the
    /// loopback device: neither was set.
    fn target(&self, message: &RouteMessage) -> RouteTarget {
        match (message.header.kind, self.nexthop, self.device) {
            (RouteType::Unreachable, _, _) => RouteTarget::Unreachable,
            (RouteType::Throw, _, _) => RouteTarget::Throw,
            (RouteType::Unicast, Some(id), _) => RouteTarget::Nexthop(id),
            (RouteType::Unicast, None, Some(index)) if !self.foreign => RouteTarget::Device {
                index,
                gateway: self.gateway,
                onlink: message.header.flags.contains(RouteFlags::Onlink),
            },
            _ => RouteTarget::Other,
        }
    }
}

fn message(family: Family, table: u32, protocol: u8) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    };
    message.header.table = u8::try_from(table).unwrap_or(TABLE_COMPAT);
    message.header.protocol = RouteProtocol::from(protocol);
    message.attributes.push(RouteAttribute::Table(table));
    message
}

fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(v4) => RouteAddress::Inet(v4),
        IpAddr::V6(v6) => RouteAddress::Inet6(v6),
    }
}

fn ip_of(address: &RouteAddress) -> Result<IpAddr, Malformed> {
    match address {
        RouteAddress::Inet(v4) => Ok((*v4).into()),
        RouteAddress::Inet6(v6) => Ok((*v6).into()),
        _ => Err(Malformed("address of an unknown family")),
    }
}

/// As the arguments of `ip route replace`.
impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.target {
            RouteTarget::Unreachable => f.write_str("unreachable ")?,
            RouteTarget::Throw => f.write_str("throw ")?,
            _ => {}
        }
        write!(f, "{}", self.destination)?;
        match self.target {
            RouteTarget::Nexthop(id) => write!(f, " nhid {id}")?,
            RouteTarget::Device { index, gateway, onlink } => {
                match gateway {
                    Some(IpAddr::V6(v6)) if self.destination.family() == Family::V4 => {
                        write!(f, " via inet6 {v6}")?;
                    }
                    Some(gateway) => write!(f, " via {gateway}")?,
                    None => {}
                }
                write!(f, " dev if{index}")?;
                f.write_str(if onlink { " onlink" } else { "" })?;
                if gateway.is_none() && self.destination.family() == Family::V4 {
                    f.write_str(" scope link")?;
                }
            }
            RouteTarget::Unreachable | RouteTarget::Throw => {}
            RouteTarget::Other => f.write_str(" to something else")?,
        }
        if let Some(source) = self.source {
            write!(f, " src {source}")?;
        }
        if self.metric != 0 {
            write!(f, " metric {}", self.metric)?;
        }
        write!(f, " table {} proto {}", self.table, self.protocol)
    }
}

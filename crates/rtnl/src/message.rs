//! Pure: what travels on the socket: netlink-packet-route's messages, and bytes for what it does not know.

use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader, NetlinkSerializable};
use netlink_packet_route::RouteNetlinkMessage;

pub(crate) const RTM_NEWLINK: u16 = 16;
pub(crate) const RTM_SETLINK: u16 = 19;
pub(crate) const RTM_NEWQDISC: u16 = 36;
pub(crate) const RTM_GETQDISC: u16 = 38;
pub(crate) const RTM_NEWTFILTER: u16 = 44;
pub(crate) const RTM_GETTFILTER: u16 = 46;
pub(crate) const RTM_NEWNEXTHOP: u16 = 104;
pub(crate) const RTM_DELNEXTHOP: u16 = 105;
pub(crate) const RTM_GETNEXTHOP: u16 = 106;

/// A message of the protocol `NETLINK_ROUTE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Rt {
    /// One that netlink-packet-route knows.
    Route(RouteNetlinkMessage),
    /// Its type and its payload.
    ///
    /// Nexthops and traffic control, of which it knows nothing or little; links that were read, because a device of a kind or with an
    /// attribute that it cannot decode must not keep limpet from seeing its own; and whatever else it
    /// cannot decode, so that the reader of a table hears of it (netlink-proto would drop it silently).
    Raw(u16, Vec<u8>),
}

impl NetlinkSerializable for Rt {
    fn message_type(&self) -> u16 {
        match self {
            Self::Route(message) => message.message_type(),
            Self::Raw(kind, _) => *kind,
        }
    }

    fn buffer_len(&self) -> usize {
        match self {
            Self::Route(message) => NetlinkSerializable::buffer_len(message),
            Self::Raw(_, payload) => payload.len(),
        }
    }

    fn serialize(&self, buffer: &mut [u8]) {
        match self {
            Self::Route(message) => message.serialize(buffer),
            Self::Raw(_, payload) => buffer.copy_from_slice(payload),
        }
    }
}

impl NetlinkDeserializable for Rt {
    type Error = std::convert::Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Self::Error> {
        let kind = header.message_type;
        let raw = || Self::Raw(kind, payload.to_vec());
        if matches!(
            kind,
            RTM_NEWLINK..=RTM_SETLINK
                | RTM_NEWQDISC..=RTM_GETTFILTER
                | RTM_NEWNEXTHOP..=RTM_GETNEXTHOP
        ) {
            return Ok(raw());
        }
        let decoded = RouteNetlinkMessage::deserialize(header, payload);
        Ok(decoded.map_or_else(|_| raw(), Self::Route))
    }
}

//! Pure: VXLAN devices of anybody, as far as they can be in each other's way.
//!
//! The kernel gives a UDP port to the devices of one address family that read packets alike. One that reads them
//! otherwise cannot be set up beside them (`EADDRINUSE`), and two of one VNI among them cannot be at all (`EEXIST`).

use std::net::IpAddr;

use crate::wire::{Attributes, Malformed, address_of, text_of, u16_of, u32_of};

const HEADER: usize = 16;
const IFF_UP: u32 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_GROUP6: u16 = 16;
const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_VXLAN_LOCAL: u16 = 4;
const IFLA_VXLAN_LOCAL6: u16 = 17;
/// How packets are read: attributes that are flags by being there, or by their value, and the words of `ip link`.
const READING: [(u16, &str); 6] = [
    (20, "udp6zerocsumrx"),
    (22, "remcsumrx"),
    (23, "gbp"),
    (25, "external"),
    (27, "gpe"),
    (30, "vnifilter"),
];

/// A VXLAN device of anybody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// Its name.
    pub name: String,
    /// Its VNI; 0 for one that serves many.
    pub vni: u32,
    /// Its UDP port.
    pub port: u16,
    /// The underlay address that its packets come from, if it has one.
    pub local: Option<IpAddr>,
    /// Whether it speaks IPv6 in the underlay. One that is `external` speaks both.
    pub v6: bool,
    /// How it reads packets, where that is not the usual way: the words of `ip link`, such as `external` or `gbp`.
    pub reading: Vec<&'static str>,
    /// Whether it is set up: only then the port is its.
    pub up: bool,
}

impl Tunnel {
    /// Whether a device that serves many VNIs (`external`): its maker decides packet by packet.
    #[must_use]
    pub fn is_external(&self) -> bool {
        self.reading.contains(&"external")
    }

    /// Reads a device from the payload of a message; none if it is no VXLAN device.
    pub(crate) fn decode(payload: &[u8]) -> Result<Option<Self>, Malformed> {
        let (header, rest) = payload
            .split_first_chunk::<HEADER>()
            .ok_or(Malformed("link is shorter than its header"))?;
        let flags = u32_of(&header[8..12])?;
        let (mut name, mut info) = (String::new(), &[][..]);
        for attribute in Attributes(rest) {
            match attribute? {
                (IFLA_IFNAME, value) => name = text_of(value),
                (IFLA_LINKINFO, value) => info = value,
                _ => {}
            }
        }
        let (mut kind, mut data) = (String::new(), &[][..]);
        for attribute in Attributes(info) {
            match attribute? {
                (IFLA_INFO_KIND, value) => kind = text_of(value),
                (IFLA_INFO_DATA, value) => data = value,
                _ => {}
            }
        }
        if kind != "vxlan" {
            return Ok(None);
        }
        let up = flags & IFF_UP != 0;
        let mut found =
            Self { name, vni: 0, port: 0, local: None, v6: false, reading: Vec::new(), up };
        for attribute in Attributes(data) {
            found.take(attribute?)?;
        }
        Ok(Some(found))
    }

    fn take(&mut self, (kind, value): (u16, &[u8])) -> Result<(), Malformed> {
        match kind {
            IFLA_VXLAN_ID => self.vni = u32_of(value)?,
            IFLA_VXLAN_PORT => self.port = u16::from_be(u16_of(value)?),
            IFLA_VXLAN_LOCAL => self.local = Some(address_of(value)?),
            IFLA_VXLAN_LOCAL6 => (self.local, self.v6) = (Some(address_of(value)?), true),
            IFLA_VXLAN_GROUP6 => self.v6 = true,
            _ => {
                let word = READING.iter().find(|(known, _)| *known == kind);
                // GBP and GPE are flags by being there; the others have a value.
                let on = value.first().is_none_or(|&byte| byte != 0);
                self.reading.extend(word.filter(|_| on).map(|(_, word)| word));
            }
        }
        Ok(())
    }
}

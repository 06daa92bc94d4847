//! Pure: numbers of the link layer and of VXLAN.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{ContainerId, Hex, IfName, NetworkName, parsed, stable_hash};

/// Why a number or text is not a value of its kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// A VNI is 24 bits (RFC 7348, section 5), and 0 is not given out.
    #[error("VNI {0} is not in 1..=16777215")]
    Vni(u32),
    /// A network's index numbers its device and group.
    #[error("network index {0} is not in 1..=4095")]
    Index(u16),
    /// IPv6 needs 1280 bytes (RFC 8200, section 5); Ethernet devices take at most 65535.
    #[error("MTU {0} is not in 1280..=65535")]
    Mtu(u32),
    /// Not six groups of two hexadecimal digits.
    #[error("{0:?} is not a MAC address such as 02:00:00:00:00:01")]
    MacText(String),
    /// A multicast or all-zero address cannot be an interface's.
    #[error("MAC address {0} is a multicast or all-zero address, which no interface can have")]
    MacNotUnicast(Mac),
}

/// The number of an overlay network on the wire: 1 to 2^24-1 (RFC 7348, section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Vni(u32);

impl TryFrom<u32> for Vni {
    type Error = LinkError;

    fn try_from(number: u32) -> Result<Self, LinkError> {
        if (1..1 << 24).contains(&number) { Ok(Self(number)) } else { Err(LinkError::Vni(number)) }
    }
}

impl From<Vni> for u32 {
    fn from(vni: Vni) -> Self {
        vni.0
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The small stable number of a network, 1 to 4095: of its device, its interface group and its marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct NetworkIndex(u16);

impl TryFrom<u16> for NetworkIndex {
    type Error = LinkError;

    fn try_from(number: u16) -> Result<Self, LinkError> {
        if (1..=4095).contains(&number) { Ok(Self(number)) } else { Err(LinkError::Index(number)) }
    }
}

impl From<NetworkIndex> for u16 {
    fn from(index: NetworkIndex) -> Self {
        index.0
    }
}

impl fmt::Display for NetworkIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The smallest MTU of an overlay network, in bytes: what IPv6 needs (RFC 8200, section 5).
pub const MIN_MTU: u16 = 1280;

/// The size of the largest packet that a link carries, in bytes: 1280 to 65535.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Mtu(u16);

impl Mtu {
    /// The smallest: [`MIN_MTU`].
    pub const LEAST: Self = Self(MIN_MTU);
}

impl TryFrom<u32> for Mtu {
    type Error = LinkError;

    fn try_from(bytes: u32) -> Result<Self, LinkError> {
        u16::try_from(bytes)
            .ok()
            .filter(|&bytes| bytes >= MIN_MTU)
            .map(Self)
            .ok_or(LinkError::Mtu(bytes))
    }
}

impl From<Mtu> for u32 {
    fn from(mtu: Mtu) -> Self {
        mtu.0.into()
    }
}

impl fmt::Display for Mtu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The underlay's MTU leaves too little for an overlay packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "an underlay MTU of {underlay} leaves {overlay} bytes for the overlay, IPv6 needs {MIN_MTU}"
)]
pub struct MtuTooSmall {
    /// The underlay's MTU, in bytes.
    pub underlay: u32,
    /// What would remain, in bytes.
    pub overlay: u32,
}

/// Bytes that VXLAN takes from the underlay's MTU: inner Ethernet 14, VXLAN 8, UDP 8 and the outer IP header,
/// 20 for IPv4 and 40 for IPv6 (RFC 7348, section 5).
#[must_use]
pub fn vxlan_overhead(underlay: IpAddr) -> u32 {
    14 + 8 + 8 + if underlay.is_ipv4() { 20 } else { 40 }
}

/// Returns the MTU to set on the VXLAN device and on every veth behind it.
///
/// `underlay_mtu` is the MTU in bytes of the device that carries the outer packets, `underlay` the address
/// they are sent from. No outer packet then needs fragmenting, which RFC 7348 (section 4.3) forbids a VTEP.
///
/// # Errors
///
/// [`MtuTooSmall`] if less than [`MIN_MTU`] bytes would remain: tell the operator, retrying cannot help.
pub fn overlay_mtu(underlay_mtu: u32, underlay: IpAddr) -> Result<Mtu, MtuTooSmall> {
    let overlay = underlay_mtu.saturating_sub(vxlan_overhead(underlay));
    // The loopback's and some virtual devices' MTU is beyond what an Ethernet device can have.
    Mtu::try_from(overlay.min(65535)).map_err(|_| MtuTooSmall { underlay: underlay_mtu, overlay })
}

/// A unicast MAC address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac([u8; 6]);

impl Mac {
    /// The MAC address of the host's end of every container's veth pair, and so of the containers' gateway.
    ///
    /// One for all: it is never seen outside the pair, and a container's neighbour entry for its gateway
    /// stays right when the host's end is made again.
    pub const GATEWAY: Self = Self([0x02, 0x4c, 0xff, 0xff, 0xff, 0xff]);

    /// Makes a MAC address of its six bytes.
    ///
    /// # Errors
    ///
    /// [`LinkError::MacNotUnicast`] for multicast and all-zero addresses.
    pub fn new(bytes: [u8; 6]) -> Result<Self, LinkError> {
        let mac = Self(bytes);
        if bytes[0] & 1 == 1 || bytes == [0; 6] {
            Err(LinkError::MacNotUnicast(mac))
        } else {
            Ok(mac)
        }
    }

    /// A locally administered address (IEEE 802, section 8.4) that is always the same for the same `parts`.
    ///
    /// The first two bytes are 02:4c, the others a hash: two names collide with probability 2^-32, so who
    /// hands them out compares.
    #[must_use]
    pub fn derived(parts: &[&str]) -> Self {
        let [.., a, b, c, d] = stable_hash(parts).to_be_bytes();
        Self([0x02, 0x4c, a, b, c, d])
    }

    /// The six bytes.
    #[must_use]
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for Mac {
    type Err = LinkError;

    fn from_str(text: &str) -> Result<Self, LinkError> {
        let wrong = || LinkError::MacText(text.chars().take(40).collect());
        let mut bytes = [0; 6];
        let mut groups = text.split(':');
        for byte in &mut bytes {
            let group =
                groups.next().filter(|g| g.len() == 2 && !g.starts_with('+')).ok_or_else(wrong)?;
            *byte = u8::from_str_radix(group, 16).map_err(|_| wrong())?;
        }
        if groups.next().is_some() {
            return Err(wrong());
        }
        Self::new(bytes)
    }
}

impl Serialize for Mac {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        parsed::deserialize(from)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::with_capacity(17);
        for byte in self.0 {
            if !text.is_empty() {
                text.push(':');
            }
            text.push_str(Hex::of(&[byte]).as_str());
        }
        f.pad(&text)
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The link-local address of the VTEP with this MAC address: `fe80::` with the modified EUI-64 (RFC 4291, appendix A).
///
/// The nexthop of every route to that host, IPv4 and IPv6.
#[must_use]
pub fn link_local(vtep: Mac) -> Ipv6Addr {
    let mac = vtep.0;
    let half = |high: u8, low: u8| u16::from_be_bytes([high, low]);
    let middle = (half(mac[2], 0xff), half(0xfe, mac[3]));
    Ipv6Addr::new(
        0xfe80,
        0,
        0,
        0,
        half(mac[0] ^ 2, mac[1]),
        middle.0,
        middle.1,
        half(mac[4], mac[5]),
    )
}

/// The name of the host's end of an attachment's veth pair: `lc` and eleven hexadecimal digits.
///
/// Plugin and agent derive it alike from what identifies the attachment, so that DEL finds the interface
/// with nobody to ask. Whoever finds one checks its alias: eleven digits can collide.
#[must_use]
pub fn host_ifname(network: &NetworkName, container: &ContainerId, ifname: &IfName) -> String {
    let hash = stable_hash(&[network.as_str(), container.as_str(), ifname.as_str()]);
    format!("lc{:011x}", hash >> 20)
}

/// The name of the device that shapes what the container behind this host's end sends: `lb` and the same digits.
#[must_use]
pub fn shaper_ifname(host_ifname: &str) -> String {
    format!("lb{}", host_ifname.strip_prefix("lc").unwrap_or(host_ifname))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vni_has_24_bits_and_is_not_zero() {
        assert_eq!(Vni::try_from(0), Err(LinkError::Vni(0)));
        assert_eq!(Vni::try_from((1 << 24) - 1).unwrap().to_string(), "16777215");
        assert_eq!(
            Vni::try_from(1 << 24).unwrap_err().to_string(),
            "VNI 16777216 is not in 1..=16777215"
        );
    }

    #[test]
    fn an_overlay_packet_fits_the_underlay() {
        let (v4, v6) = ("192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap());
        assert_eq!(u32::from(overlay_mtu(1500, v4).unwrap()), 1450);
        assert_eq!(u32::from(overlay_mtu(1500, v6).unwrap()), 1430);
        assert_eq!(u32::from(overlay_mtu(65536, v4).unwrap()), 65486);
        assert_eq!(overlay_mtu(1300, v4), Err(MtuTooSmall { underlay: 1300, overlay: 1250 }));
    }

    #[test]
    fn a_mac_address_is_read_as_it_is_printed() {
        let mac: Mac = "02:4C:00:00:00:ff".parse().unwrap();
        assert_eq!(mac.to_string(), "02:4c:00:00:00:ff");
        for wrong in
            ["", "02:4c:00:00:00", "02:4c:00:00:00:00:00", "02:4c:00:00:00:+1", "024c.0000.0001"]
        {
            assert!(matches!(wrong.parse::<Mac>(), Err(LinkError::MacText(_))), "{wrong}");
        }
        assert!(matches!("01:00:5e:00:00:01".parse::<Mac>(), Err(LinkError::MacNotUnicast(_))));
    }

    #[test]
    fn the_link_local_address_is_the_eui_64() {
        let mac: Mac = "02:4c:12:34:56:78".parse().unwrap();
        assert_eq!(link_local(mac).to_string(), "fe80::4c:12ff:fe34:5678");
    }

    #[test]
    fn the_name_of_a_veth_fits_and_tells_attachments_apart() {
        let name = |container: &str| {
            host_ifname(
                &"n".parse().unwrap(),
                &container.parse().unwrap(),
                &"eth0".parse().unwrap(),
            )
        };
        assert_eq!(name("c1").len(), 13);
        assert!(name("c1").parse::<IfName>().is_ok());
        assert_ne!(name("c1"), name("c2"));
    }
}

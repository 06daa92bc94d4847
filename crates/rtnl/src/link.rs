//! Pure: devices: VXLAN devices and veth pairs to make, changes to make to any, and devices as they are.

use std::fmt;
use std::net::IpAddr;
use std::os::fd::AsRawFd;

use limpet_net_types::{Mac, Vni};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoVeth, LinkAttribute, LinkExtentMask,
    LinkMessage,
};
use rtnetlink::{LinkUnspec, LinkVeth, LinkVxlan};

use crate::netns::Netns;
use crate::wire::{Attributes, Malformed, address_of, text_of, u16_of, u32_of};

const HEADER: usize = 16;
const IFF_UP: u32 = 1;
const IFF_LOWER_UP: u32 = 1 << 16;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_GROUP: u16 = 27;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_LOCAL: u16 = 4;
const IFLA_VXLAN_LEARNING: u16 = 7;
const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_VXLAN_LOCAL6: u16 = 17;
const IFLA_VXLAN_UDP_CSUM: u16 = 18;
const IFLA_VXLAN_UDP_ZERO_CSUM6_TX: u16 = 19;

/// A device as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index, unique in its namespace and never used again while the machine is up.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its MAC address, if it is a link of that kind.
    pub mac: Option<Mac>,
    /// The size of the largest packet, in bytes.
    pub mtu: u32,
    /// The number of its interface group; 0 is everybody's.
    pub group: u32,
    /// The text that someone attached to it.
    pub alias: Option<String>,
    /// Whether it is set up.
    pub up: bool,
    /// Whether it has carrier: the other end of a veth pair is up too.
    pub carrier: bool,
    /// What it is.
    pub kind: LinkKind,
}

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// A VXLAN device with one VNI and one underlay address.
    Vxlan(Vxlan),
    /// One end of a veth pair.
    Veth(Veth),
    /// Anything else, by the kernel's word for it; empty for hardware.
    Other(String),
}

/// One end of a veth pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Veth {
    /// The index of the other end, in its own namespace.
    pub peer: u32,
    /// The number here of the namespace that the other end is in; none where it is this one.
    pub peer_netns: Option<u32>,
}

/// What makes a VXLAN device what it is, none of which can be changed while it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vxlan {
    /// The number of its network on the wire.
    pub vni: Vni,
    /// The underlay address that the outer packets come from.
    pub local: IpAddr,
    /// The UDP port of this device and of its peers.
    pub port: u16,
    /// Whether the FDB learns from what arrives.
    pub learning: bool,
    /// Whether the outer UDP packets have checksums.
    pub checksums: bool,
}

/// A VXLAN device to make. It comes up when it is told to ([`LinkChange::up`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewVxlan {
    /// Its name.
    pub name: String,
    /// Its MAC address, which must not change later: systemd and others leave one alone that was set here.
    pub mac: Mac,
    /// The size of the largest packet, in bytes.
    pub mtu: u32,
    /// The number of its interface group.
    pub group: u32,
    /// What makes it a VXLAN device.
    pub vxlan: Vxlan,
}

/// A veth pair to make: one end here, the other at once in another namespace under its final name.
///
/// Both come up when they are told to ([`LinkChange::up`]): the kernel refuses (`ENOTCONN`) to make one whose
/// peer is to be up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewVeth {
    /// The name of the end here.
    pub name: String,
    /// The MAC address of the end here.
    pub mac: Mac,
    /// The size of the largest packet of both ends, in bytes.
    pub mtu: u32,
    /// The number of the interface group of the end here.
    pub group: u32,
    /// The other end.
    pub peer: VethPeer,
}

/// The other end of a veth pair to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VethPeer {
    /// Its name.
    pub name: String,
    /// Its MAC address.
    pub mac: Mac,
    /// The namespace that it is made in.
    pub netns: Netns,
}

/// What is to become different about a device; what is not named stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkChange {
    /// The device's index.
    pub index: u32,
    /// A new name. The kernel renames devices that are up, too.
    pub name: Option<String>,
    /// A new largest packet, in bytes.
    pub mtu: Option<u32>,
    /// The number of a new interface group.
    pub group: Option<u32>,
    /// A new text.
    pub alias: Option<String>,
    /// Make no link-local address by itself (`addrgenmode none`); only serves before the device comes up.
    pub no_link_local: bool,
    /// Set it up or down. Down takes its routes, neighbours and nexthops with it.
    pub up: Option<bool>,
}

impl LinkChange {
    /// No change yet of the device with this index.
    #[must_use]
    pub fn of(index: u32) -> Self {
        Self { index, ..Self::default() }
    }

    pub(crate) fn message(&self) -> LinkMessage {
        let mut link = LinkUnspec::new_with_index(self.index);
        if let Some(name) = &self.name {
            link = link.name(name);
        }
        if let Some(mtu) = self.mtu {
            link = link.mtu(mtu);
        }
        if let Some(group) = self.group {
            link = link.link_group(group);
        }
        if let Some(alias) = &self.alias {
            link = link.alias(alias);
        }
        if self.no_link_local {
            let none = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
            let spec = LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![none])]);
            link = link.append_extra_attribute(spec);
        }
        match self.up {
            Some(true) => link.up(),
            Some(false) => link.down(),
            None => link,
        }
        .build()
    }
}

impl NewVxlan {
    pub(crate) fn message(&self) -> LinkMessage {
        let Vxlan { vni, local, port, learning, checksums } = self.vxlan;
        let link = LinkVxlan::new(&self.name, vni.into()).port(port).learning(learning);
        let link = match local {
            IpAddr::V4(v4) => link.local(v4).udp_csum(checksums),
            IpAddr::V6(v6) => {
                link.local6(v6).udp_zero_csum6_tx(!checksums).udp_zero_csum6_rx(!checksums)
            }
        };
        link.address(self.mac.bytes().to_vec()).mtu(self.mtu).link_group(self.group).build()
    }
}

impl NewVeth {
    pub(crate) fn message(&self) -> LinkMessage {
        let peer = LinkUnspec::new_with_name(&self.peer.name)
            .address(self.peer.mac.bytes().to_vec())
            .mtu(self.mtu)
            .setns_by_fd(self.peer.netns.as_raw_fd())
            .build();
        LinkVeth::new(&self.name, &self.peer.name)
            .address(self.mac.bytes().to_vec())
            .mtu(self.mtu)
            .link_group(self.group)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .build()
    }
}

/// Which devices a message is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which<'a> {
    All,
    Index(u32),
    Name(&'a str),
    Group(u32),
}

impl Which<'_> {
    pub(crate) fn message(self) -> LinkMessage {
        let mut message = LinkMessage::default();
        match self {
            Which::All => {}
            Which::Index(index) => message.header.index = index,
            Which::Name(name) => message.attributes.push(LinkAttribute::IfName(name.to_owned())),
            Which::Group(group) => message.attributes.push(LinkAttribute::Group(group)),
        }
        message
    }

    /// What asks for them; without their counters, which are most of a device's message.
    pub(crate) fn question(self) -> LinkMessage {
        let mut message = self.message();
        message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        message
    }
}

impl Link {
    /// Reads a device from the payload of a message.
    pub(crate) fn decode(payload: &[u8]) -> Result<Self, Malformed> {
        let (header, rest) = payload
            .split_first_chunk::<HEADER>()
            .ok_or(Malformed("link is shorter than its header"))?;
        let word = |at: usize| u32_of(&header[at..at + 4]);
        let flags = word(8)?;
        let mut link = Self {
            index: word(4)?,
            name: String::new(),
            mac: None,
            mtu: 0,
            group: 0,
            alias: None,
            up: flags & IFF_UP != 0,
            carrier: flags & IFF_LOWER_UP != 0,
            kind: LinkKind::Other(String::new()),
        };
        let (mut peer, mut info) = (Veth { peer: 0, peer_netns: None }, None);
        for attribute in Attributes(rest) {
            match attribute? {
                (IFLA_IFNAME, value) => link.name = text_of(value),
                (IFLA_ADDRESS, value) => {
                    link.mac = value.try_into().ok().and_then(|bytes| Mac::new(bytes).ok());
                }
                (IFLA_MTU, value) => link.mtu = u32_of(value)?,
                (IFLA_GROUP, value) => link.group = u32_of(value)?,
                (IFLA_IFALIAS, value) => link.alias = Some(text_of(value)),
                (IFLA_LINK, value) => peer.peer = u32_of(value)?,
                (IFLA_LINK_NETNSID, value) => peer.peer_netns = Some(u32_of(value)?),
                (IFLA_LINKINFO, value) => info = Some(value),
                _ => {}
            }
        }
        if let Some(info) = info {
            link.kind = kind_of(info, peer)?;
        }
        Ok(link)
    }
}

fn kind_of(info: &[u8], peer: Veth) -> Result<LinkKind, Malformed> {
    let (mut kind, mut data) = (String::new(), &[][..]);
    for attribute in Attributes(info) {
        match attribute? {
            (IFLA_INFO_KIND, value) => kind = text_of(value),
            (IFLA_INFO_DATA, value) => data = value,
            _ => {}
        }
    }
    Ok(match kind.as_str() {
        "veth" => LinkKind::Veth(peer),
        // One of another sort (external, multicast, with no local address) is nobody's of limpet's.
        "vxlan" => vxlan_of(data)?.map_or(LinkKind::Other(kind), LinkKind::Vxlan),
        _ => LinkKind::Other(kind),
    })
}

fn vxlan_of(data: &[u8]) -> Result<Option<Vxlan>, Malformed> {
    let (mut vni, mut local, mut port) = (None, None, 0);
    let (mut learning, mut csum4, mut zero6) = (false, true, false);
    let on = |value: &[u8]| value.first().is_some_and(|&byte| byte != 0);
    for attribute in Attributes(data) {
        match attribute? {
            (IFLA_VXLAN_ID, value) => vni = Vni::try_from(u32_of(value)?).ok(),
            (IFLA_VXLAN_LOCAL | IFLA_VXLAN_LOCAL6, value) => local = Some(address_of(value)?),
            (IFLA_VXLAN_PORT, value) => port = u16::from_be(u16_of(value)?),
            (IFLA_VXLAN_LEARNING, value) => learning = on(value),
            (IFLA_VXLAN_UDP_CSUM, value) => csum4 = on(value),
            (IFLA_VXLAN_UDP_ZERO_CSUM6_TX, value) => zero6 = on(value),
            _ => {}
        }
    }
    Ok(vni.zip(local).map(|(vni, local)| Vxlan {
        vni,
        local,
        port,
        learning,
        checksums: if local.is_ipv4() { csum4 } else { !zero6 },
    }))
}

/// As the arguments of `ip link add`.
impl fmt::Display for NewVxlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, mac, mtu, group, vxlan } = self;
        let Vxlan { vni, local, port, learning, checksums } = vxlan;
        let learning = if *learning { "learning" } else { "nolearning" };
        write!(
            f,
            "{name} address {mac} mtu {mtu} group {group} type vxlan id {vni} local {local}"
        )?;
        write!(f, " dstport {port} {learning}")?;
        f.write_str(match (checksums, local) {
            (true, IpAddr::V4(_)) => " udpcsum",
            (false, IpAddr::V4(_)) => " noudpcsum",
            (true, IpAddr::V6(_)) => " noudp6zerocsumtx noudp6zerocsumrx",
            (false, IpAddr::V6(_)) => " udp6zerocsumtx udp6zerocsumrx",
        })
    }
}

/// As the arguments of `ip link add`.
impl fmt::Display for NewVeth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, mac, mtu, group, peer } = self;
        write!(
            f,
            "{name} address {mac} mtu {mtu} group {group} type veth peer name {}",
            peer.name
        )?;
        write!(f, " address {} mtu {mtu} netns {}", peer.mac, peer.netns)
    }
}

/// As the arguments of `ip link set`.
impl fmt::Display for LinkChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dev if{}", self.index)?;
        if let Some(name) = &self.name {
            write!(f, " name {name}")?;
        }
        if let Some(mtu) = self.mtu {
            write!(f, " mtu {mtu}")?;
        }
        if let Some(group) = self.group {
            write!(f, " group {group}")?;
        }
        if let Some(alias) = &self.alias {
            write!(f, " alias {alias}")?;
        }
        f.write_str(if self.no_link_local { " addrgenmode none" } else { "" })?;
        f.write_str(match self.up {
            Some(true) => " up",
            Some(false) => " down",
            None => "",
        })
    }
}

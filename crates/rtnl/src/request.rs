//! Pure: what can be asked of the kernel, each printing as the command that it equals.

use std::fmt;

use limpet_net_types::Family;
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST};
use netlink_packet_route::RouteNetlinkMessage as Message;
use nix::errno::Errno;

use crate::link::Which;
use crate::message::{RTM_DELNEXTHOP, RTM_NEWNEXTHOP, RTM_NEWQDISC, RTM_NEWTFILTER, Rt};
use crate::{
    Address, Detour, FdbEntry, LinkChange, Neighbour, NewIfb, NewVeth, NewVxlan, Nexthop, Route,
    Rule, Tbf, nexthop,
};

/// One change of the kernel's tables. Setting replaces or creates; deleting what is not there succeeds.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Request {
    /// Makes a VXLAN device. Fails with `EEXIST` if there is a device of its name.
    NewVxlan(NewVxlan),
    /// Makes a veth pair. Fails with `EEXIST` if there is a device of either name where it is to be.
    NewVeth(NewVeth),
    /// Makes an IFB device. Fails with `EEXIST` if there is a device of its name.
    NewIfb(NewIfb),
    /// Changes a device.
    ChangeLink(LinkChange),
    /// Deletes the device with this index; of a veth pair both ends.
    DelLink(u32),
    /// Deletes every device of this interface group: a hundred cost twice what one costs.
    DelLinkGroup(u32),
    /// Sets an address.
    SetAddress(Address),
    /// Deletes an address.
    DelAddress(Address),
    /// Sets a permanent neighbour entry.
    SetNeighbour(Neighbour),
    /// Deletes the neighbour entry of this device and address.
    DelNeighbour(Neighbour),
    /// Sets a forwarding entry.
    SetFdb(FdbEntry),
    /// Deletes a forwarding entry.
    DelFdb(FdbEntry),
    /// Sets a route: replaces the one of the same table, destination and metric.
    SetRoute(Route),
    /// Deletes a route.
    DelRoute(Route),
    /// Sets a rule. The kernel cannot replace one: a rule of the same preference that differs stays beside it.
    SetRule(Rule),
    /// Deletes a rule.
    DelRule(Rule),
    /// Sets a nexthop: replaces the one of the same id, and so moves its routes at once.
    SetNexthop(Nexthop),
    /// Deletes the nexthop with this id, and with it the routes that carry it.
    DelNexthop(u32),
    /// Sets the token bucket at a device's root; fails with `EINVAL` in place of something else than one.
    SetTbf(Tbf),
    /// Makes what a detour hangs on, beside the detour. Both go with the device.
    NewIngress(Detour),
    /// Adds a detour to what a device has.
    AddDetour(Detour),
}

impl Request {
    /// The message and its flags.
    pub(crate) fn encode(&self) -> (Rt, u16) {
        let new = NLM_F_CREATE | NLM_F_EXCL;
        let set = NLM_F_CREATE | NLM_F_REPLACE;
        let (message, flags) = match self {
            Self::NewVxlan(link) => (Message::NewLink(link.message()), new),
            Self::NewVeth(link) => (Message::NewLink(link.message()), new),
            Self::NewIfb(link) => (Message::NewLink(link.message()), new),
            Self::ChangeLink(change) => (Message::SetLink(change.message()), 0),
            Self::DelLink(index) => (Message::DelLink(Which::Index(*index).message()), 0),
            Self::DelLinkGroup(group) => (Message::DelLink(Which::Group(*group).message()), 0),
            Self::SetAddress(address) => (Message::NewAddress(address.message()), set),
            Self::DelAddress(address) => (Message::DelAddress(address.message()), 0),
            Self::SetNeighbour(entry) => (Message::NewNeighbour(entry.message()), set),
            Self::DelNeighbour(entry) => (Message::DelNeighbour(entry.message()), 0),
            Self::SetFdb(entry) => (Message::NewNeighbour(entry.message()), set),
            Self::DelFdb(entry) => (Message::DelNeighbour(entry.message()), 0),
            Self::SetRoute(route) => (Message::NewRoute(route.message()), set),
            Self::DelRoute(route) => (Message::DelRoute(route.message()), 0),
            Self::SetRule(rule) => (Message::NewRule(rule.message()), new),
            Self::DelRule(rule) => (Message::DelRule(rule.message()), 0),
            Self::SetNexthop(nexthop) => {
                return (Rt::Raw(RTM_NEWNEXTHOP, nexthop.encode()), acked(set));
            }
            Self::DelNexthop(id) => {
                return (Rt::Raw(RTM_DELNEXTHOP, nexthop::encode_delete(*id)), acked(0));
            }
            Self::SetTbf(tbf) => return (Rt::Raw(RTM_NEWQDISC, tbf.encode()), acked(set)),
            Self::NewIngress(detour) => {
                return (Rt::Raw(RTM_NEWQDISC, detour.encode_qdisc()), acked(new));
            }
            Self::AddDetour(detour) => {
                return (Rt::Raw(RTM_NEWTFILTER, detour.encode_filter()), acked(new));
            }
        };
        (Rt::Route(message), acked(flags))
    }

    /// Whether the kernel's refusal means that things are as they were to become.
    pub(crate) fn is_done_by(&self, errno: Errno) -> bool {
        let gone = errno == Errno::ENODEV;
        match self {
            Self::DelLink(_) | Self::DelLinkGroup(_) => gone,
            Self::DelAddress(_) => gone || errno == Errno::EADDRNOTAVAIL,
            Self::DelNeighbour(_) | Self::DelFdb(_) => gone || errno == Errno::ENOENT,
            Self::DelRoute(_) => gone || errno == Errno::ESRCH,
            Self::SetRule(_) => errno == Errno::EEXIST,
            Self::DelRule(_) | Self::DelNexthop(_) => errno == Errno::ENOENT,
            _ => false,
        }
    }
}

fn acked(flags: u16) -> u16 {
    NLM_F_REQUEST | NLM_F_ACK | flags
}

/// As the command that it equals. Devices are named `if<index>`, which `ip` and `bridge` take for an index.
impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NewVxlan(link) => write!(f, "ip link add {link}"),
            Self::NewVeth(link) => write!(f, "ip link add {link}"),
            Self::NewIfb(link) => write!(f, "ip link add {link}"),
            Self::ChangeLink(change) => write!(f, "ip link set {change}"),
            Self::DelLink(index) => write!(f, "ip link del dev if{index}"),
            Self::DelLinkGroup(group) => write!(f, "ip link del group {group}"),
            Self::SetAddress(address) => write!(f, "ip address replace {address}"),
            Self::DelAddress(address) => write!(f, "ip address del {address}"),
            Self::SetNeighbour(entry) => write!(f, "ip neigh replace {entry}"),
            Self::DelNeighbour(entry) => {
                write!(f, "ip neigh del {} dev if{}", entry.address, entry.device)
            }
            Self::SetFdb(entry) => write!(f, "bridge fdb replace {entry}"),
            Self::DelFdb(entry) => write!(f, "bridge fdb del {entry}"),
            Self::SetRoute(route) => {
                write!(f, "ip {}route replace {route}", dash(route.destination.family()))
            }
            Self::DelRoute(route) => {
                write!(f, "ip {}route del {route}", dash(route.destination.family()))
            }
            Self::SetRule(rule) => write!(f, "ip {}rule add {rule}", dash(rule.family)),
            Self::DelRule(rule) => write!(f, "ip {}rule del {rule}", dash(rule.family)),
            Self::SetNexthop(nexthop) => write!(f, "ip nexthop replace {nexthop}"),
            Self::DelNexthop(id) => write!(f, "ip nexthop del id {id}"),
            Self::SetTbf(tbf) => write!(f, "tc qdisc replace {tbf}"),
            Self::NewIngress(detour) => write!(f, "tc qdisc add dev if{} ingress", detour.from),
            Self::AddDetour(detour) => write!(f, "tc filter add {detour}"),
        }
    }
}

fn dash(family: Family) -> &'static str {
    match family {
        Family::V4 => "",
        Family::V6 => "-6 ",
    }
}

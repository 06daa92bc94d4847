//! Pure: one change of the kernel, which prints as the command that it equals.

use std::fmt;
use std::net::IpAddr;

use limpet_net_types::{Family, Mac};

use crate::layout::{
    Address, Device, Fdb, Nexthop, PROTOCOL, Route, Rule, Setting, Target, Vxlan, is_veth_name,
};
use crate::nft::Ruleset;

/// One change. Setting replaces, and deleting what is not there succeeds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Makes a network's device. `anew`: there is one of the name, which goes first.
    NewDevice {
        name: String,
        device: Device,
        anew: bool,
    },
    /// Changes a device; what is not named stays.
    ChangeDevice {
        name: String,
        mtu: Option<u32>,
        group: Option<u32>,
        up: bool,
    },
    DelDevice(String),
    SetSetting(Setting, String),
    SetAddress(Address),
    SetRuleset(Ruleset),
    SetFdb(Fdb),
    DelFdb(Fdb),
    SetNeighbour {
        device: String,
        address: IpAddr,
        mac: Mac,
    },
    DelNeighbour {
        device: String,
        address: IpAddr,
    },
    SetNexthop(u32, Nexthop),
    DelNexthop(u32),
    SetRoute(Route),
    DelRoute(Route),
    SetRule(Rule),
    DelRule(Rule),
}

impl Step {
    /// Of which kind it is, as metrics have it.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::NewDevice { .. } => "new-device",
            Self::ChangeDevice { .. } => "change-device",
            Self::DelDevice(_) => "delete-device",
            Self::SetSetting(..) => "set-setting",
            Self::SetAddress(_) => "set-address",
            Self::SetRuleset(_) => "set-ruleset",
            Self::SetFdb(_) => "set-fdb-entry",
            Self::DelFdb(_) => "delete-fdb-entry",
            Self::SetNeighbour { .. } => "set-neighbour",
            Self::DelNeighbour { .. } => "delete-neighbour",
            Self::SetNexthop(..) => "set-nexthop",
            Self::DelNexthop(_) => "delete-nexthop",
            Self::SetRoute(_) => "set-route",
            Self::DelRoute(_) => "delete-route",
            Self::SetRule(_) => "set-rule",
            Self::DelRule(_) => "delete-rule",
        }
    }

    /// The container's interface that it is about, if it is about one.
    pub(crate) fn veth(&self) -> Option<&str> {
        let device = match self {
            Self::ChangeDevice { name, .. } => name,
            Self::SetSetting(setting, _) => &setting.device,
            Self::SetNeighbour { device, .. }
            | Self::DelNeighbour { device, .. }
            | Self::SetRoute(Route { target: Target::Link(device), .. })
            | Self::DelRoute(Route { target: Target::Link(device), .. }) => device,
            _ => return None,
        };
        is_veth_name(device).then_some(device)
    }
}

/// The command; of the nftables table the whole text that `nft` reads.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NewDevice { name, device, anew } => {
                if *anew {
                    write!(f, "ip link del {name} && ")?;
                }
                new_device(f, name, device)
            }
            Self::ChangeDevice { name, mtu, group, up } => {
                write!(f, "ip link set {name}")?;
                if let Some(mtu) = mtu {
                    write!(f, " mtu {mtu}")?;
                }
                if let Some(group) = group {
                    write!(f, " group {group}")?;
                }
                f.write_str(if *up { " addrgenmode none up" } else { "" })
            }
            Self::DelDevice(name) => write!(f, "ip link del {name}"),
            Self::SetSetting(setting, value) => write!(f, "sysctl -w {setting}={value}"),
            Self::SetAddress(Address { device, ip, length }) => {
                let how = if ip.is_ipv4() { "scope link" } else { "nodad" };
                write!(f, "ip address replace {ip}/{length} dev {device} {how}")
            }
            Self::SetRuleset(ruleset) => {
                let text = ruleset.replacement().replace('\n', "; ").replace("{; ", "{ ");
                write!(f, "nft '{}'", text.trim_end_matches("; "))
            }
            Self::SetFdb(entry) => write!(f, "bridge fdb replace {entry} self permanent"),
            Self::DelFdb(entry) => write!(f, "bridge fdb del {entry} self"),
            Self::SetNeighbour { device, address, mac } => {
                let kind = format!("nud permanent protocol {PROTOCOL}");
                write!(f, "ip neigh replace {address} lladdr {mac} dev {device} {kind}")
            }
            Self::DelNeighbour { device, address } => {
                write!(f, "ip neigh del {address} dev {device}")
            }
            Self::SetNexthop(id, nexthop) => {
                write!(f, "ip nexthop replace id {id} {nexthop} protocol {PROTOCOL}")
            }
            Self::DelNexthop(id) => write!(f, "ip nexthop del id {id}"),
            Self::SetRoute(route) => {
                write!(f, "ip {}route replace {route}", dash(route.key.destination.family()))
            }
            Self::DelRoute(route) => {
                write!(f, "ip {}route del {route}", dash(route.key.destination.family()))
            }
            Self::SetRule(rule) => write!(f, "ip {}rule add {rule}", dash(rule.family)),
            Self::DelRule(rule) => write!(f, "ip {}rule del {rule}", dash(rule.family)),
        }
    }
}

fn new_device(f: &mut fmt::Formatter<'_>, name: &str, device: &Device) -> fmt::Result {
    let Device { vxlan, mtu, group, .. } = device;
    // A device without is only ever found.
    let Some(Vxlan { vni, local, port, mac }) = vxlan else { return Ok(()) };
    write!(f, "ip link add {name} address {mac} mtu {mtu} group {group} type vxlan")?;
    write!(f, " id {vni} local {local} dstport {port} nolearning")?;
    // Before it is set up, or the kernel asks the overlay who else has the address that it makes.
    write!(f, " && ip link set {name} addrgenmode none")
}

fn dash(family: Family) -> &'static str {
    match family {
        Family::V4 => "",
        Family::V6 => "-6 ",
    }
}

//! Pure: nexthop objects and their messages, which netlink-packet-route does not have.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use crate::wire::{Attributes, Malformed, address_of, bytes_of, put, u16_of, u32_of};

const AF_UNSPEC: u8 = 0;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const HEADER: usize = 8;
const NHA_ID: u16 = 1;
const NHA_GROUP: u16 = 2;
const NHA_GROUP_TYPE: u16 = 3;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;
const NHA_RES_GROUP: u16 = 12;
const NHA_RES_GROUP_BUCKETS: u16 = 1;
const NHA_RES_GROUP_IDLE_TIMER: u16 = 2;
const GROUP_TYPE_RESILIENT: u16 = 1;
const NLA_F_NESTED: u16 = 0x8000;
const RTNH_F_ONLINK: u32 = 4;
/// Timers are in `clock_t`, which is 1/100 s for every program whatever the kernel's tick.
const CLOCK_MS: u32 = 10;

/// A nexthop object: the routes that carry its id go where it says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nexthop {
    /// Its number, not 0, unique in its namespace.
    pub id: u32,
    /// Who made it.
    pub protocol: u8,
    /// Where it leads.
    pub kind: NexthopKind,
}

/// Where a nexthop leads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NexthopKind {
    /// To a gateway behind a device, which needs carrier when the nexthop is made (else `ENETDOWN`).
    Gateway {
        /// The device's index.
        device: u32,
        /// The gateway; an IPv6 one serves IPv4 routes too.
        gateway: IpAddr,
        /// Take the gateway to be behind the device whatever the routes say.
        onlink: bool,
    },
    /// To the members, flow by flow.
    Group {
        /// The nexthops that share the flows.
        members: Vec<Member>,
        /// Keep the flows of members that stay when others come and go.
        resilient: Option<Resilient>,
    },
    /// Something that limpet never makes. Only read.
    Other,
}

/// One nexthop of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    /// The id of its nexthop.
    pub id: u32,
    /// Its share, 1 to 255.
    pub weight: u8,
}

/// How a resilient group deals flows out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Resilient {
    /// How many buckets the flows are hashed into. Cannot be changed in place.
    pub buckets: u16,
    /// How long a bucket must be without traffic before it may be given to another member; whole
    /// hundredths of a second.
    pub idle_timer: Duration,
}

impl Nexthop {
    /// The payload of the message that creates or replaces it.
    ///
    /// [`NexthopKind::Other`] encodes as a nexthop that leads nowhere, which the kernel refuses.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let (family, flags) = match &self.kind {
            NexthopKind::Gateway { gateway, onlink, .. } => (
                if gateway.is_ipv4() { AF_INET } else { AF_INET6 },
                if *onlink { RTNH_F_ONLINK } else { 0 },
            ),
            NexthopKind::Group { .. } | NexthopKind::Other => (AF_UNSPEC, 0),
        };
        let mut message = header(family, self.protocol, flags);
        put(&mut message, NHA_ID, &self.id.to_ne_bytes());
        match &self.kind {
            NexthopKind::Gateway { device, gateway, .. } => {
                put(&mut message, NHA_OIF, &device.to_ne_bytes());
                put(&mut message, NHA_GATEWAY, &bytes_of(*gateway));
            }
            NexthopKind::Group { members, resilient } => {
                put_group(&mut message, members, *resilient);
            }
            NexthopKind::Other => {}
        }
        message
    }

    /// Reads a nexthop from the payload of a message.
    pub(crate) fn decode(payload: &[u8]) -> Result<Self, Malformed> {
        let (header, rest) = payload
            .split_first_chunk::<HEADER>()
            .ok_or(Malformed("nexthop is shorter than its header"))?;
        let [_, _, protocol, _, f0, f1, f2, f3] = *header;
        let onlink = u32::from_ne_bytes([f0, f1, f2, f3]) & RTNH_F_ONLINK != 0;
        let mut found = Found::default();
        for attribute in Attributes(rest) {
            let (kind, value) = attribute?;
            found.take(kind, value)?;
        }
        let id = found.id.ok_or(Malformed("nexthop has no id"))?;
        Ok(Self { id, protocol, kind: found.kind(onlink) })
    }
}

/// The attributes of a nexthop that was read.
#[derive(Default)]
struct Found {
    id: Option<u32>,
    device: Option<u32>,
    gateway: Option<IpAddr>,
    members: Option<Vec<Member>>,
    group_type: u16,
    resilient: Option<Resilient>,
    /// An attribute that limpet never sets: an encapsulation, a blackhole, ...
    foreign: bool,
}

impl Found {
    fn take(&mut self, kind: u16, value: &[u8]) -> Result<(), Malformed> {
        match kind {
            NHA_ID => self.id = Some(u32_of(value)?),
            NHA_OIF => self.device = Some(u32_of(value)?),
            NHA_GATEWAY => self.gateway = Some(address_of(value)?),
            NHA_GROUP => self.members = Some(members_of(value)?),
            NHA_GROUP_TYPE => self.group_type = u16_of(value)?,
            NHA_RES_GROUP => self.resilient = Some(resilient_of(value)?),
            // Newer kernels add counters; none of theirs changes where the nexthop leads, an unknown
            // attribute below them does.
            4 | 7 | 8 | 11 => self.foreign = true,
            _ => {}
        }
        Ok(())
    }

    fn kind(self, onlink: bool) -> NexthopKind {
        match (self.foreign, self.device, self.gateway, self.members) {
            (false, Some(device), Some(gateway), None) => {
                NexthopKind::Gateway { device, gateway, onlink }
            }
            (false, None, None, Some(members)) => NexthopKind::Group {
                members,
                resilient: self.resilient.filter(|_| self.group_type == GROUP_TYPE_RESILIENT),
            },
            _ => NexthopKind::Other,
        }
    }
}

/// The payload of the message that deletes the nexthop `id`.
pub(crate) fn encode_delete(id: u32) -> Vec<u8> {
    let mut message = header(AF_UNSPEC, 0, 0);
    put(&mut message, NHA_ID, &id.to_ne_bytes());
    message
}

/// The payload of the message that asks for all nexthops.
pub(crate) fn encode_dump() -> Vec<u8> {
    header(AF_UNSPEC, 0, 0)
}

/// `struct nhmsg`: family, scope, protocol, reserved, flags.
fn header(family: u8, protocol: u8, flags: u32) -> Vec<u8> {
    let mut message = vec![family, 0, protocol, 0];
    message.extend_from_slice(&flags.to_ne_bytes());
    message
}

fn put_group(message: &mut Vec<u8>, members: &[Member], resilient: Option<Resilient>) {
    let mut group = Vec::with_capacity(members.len() * 8);
    for member in members {
        group.extend_from_slice(&member.id.to_ne_bytes());
        // The kernel's weight counts from 0; two reserved fields follow.
        group.extend_from_slice(&[member.weight.saturating_sub(1), 0, 0, 0]);
    }
    put(message, NHA_GROUP, &group);
    if let Some(Resilient { buckets, idle_timer }) = resilient {
        put(message, NHA_GROUP_TYPE, &GROUP_TYPE_RESILIENT.to_ne_bytes());
        let mut nested = Vec::new();
        put(&mut nested, NHA_RES_GROUP_BUCKETS, &buckets.to_ne_bytes());
        let ticks = u32::try_from(idle_timer.as_millis() / u128::from(CLOCK_MS));
        put(&mut nested, NHA_RES_GROUP_IDLE_TIMER, &ticks.unwrap_or(u32::MAX).to_ne_bytes());
        put(message, NHA_RES_GROUP | NLA_F_NESTED, &nested);
    }
}

fn members_of(value: &[u8]) -> Result<Vec<Member>, Malformed> {
    let (members, rest) = value.as_chunks::<8>();
    if !rest.is_empty() {
        return Err(Malformed("nexthop group is not a whole number of members"));
    }
    let member = |&[a, b, c, d, weight, ..]: &[u8; 8]| Member {
        id: u32::from_ne_bytes([a, b, c, d]),
        weight: weight.saturating_add(1),
    };
    Ok(members.iter().map(member).collect())
}

fn resilient_of(value: &[u8]) -> Result<Resilient, Malformed> {
    let mut found = Resilient { buckets: 0, idle_timer: Duration::ZERO };
    for attribute in Attributes(value) {
        match attribute? {
            (NHA_RES_GROUP_BUCKETS, value) => found.buckets = u16_of(value)?,
            (NHA_RES_GROUP_IDLE_TIMER, value) => {
                let ticks = u64::from(u32_of(value)?);
                found.idle_timer = Duration::from_millis(ticks * u64::from(CLOCK_MS));
            }
            _ => {}
        }
    }
    Ok(found)
}

/// As the arguments of `ip nexthop replace`.
impl fmt::Display for Nexthop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "id {}", self.id)?;
        match &self.kind {
            NexthopKind::Gateway { device, gateway, onlink } => {
                write!(f, " via {gateway} dev if{device}")?;
                f.write_str(if *onlink { " onlink" } else { "" })?;
            }
            NexthopKind::Group { members, resilient } => {
                f.write_str(" group ")?;
                for (i, member) in members.iter().enumerate() {
                    f.write_str(if i == 0 { "" } else { "/" })?;
                    write!(f, "{}", member.id)?;
                    if member.weight != 1 {
                        write!(f, ",{}", member.weight)?;
                    }
                }
                if let Some(Resilient { buckets, idle_timer }) = resilient {
                    write!(f, " type resilient buckets {buckets}")?;
                    write!(f, " idle_timer {}", idle_timer.as_secs_f64())?;
                }
            }
            NexthopKind::Other => f.write_str(" of another kind")?,
        }
        write!(f, " protocol {}", self.protocol)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn kind() -> impl Strategy<Value = NexthopKind> {
        let gateway = (0..3u32, any::<IpAddr>(), any::<bool>())
            .prop_map(|(device, gateway, onlink)| NexthopKind::Gateway { device, gateway, onlink });
        let member = (any::<u32>(), 1..=255u8).prop_map(|(id, weight)| Member { id, weight });
        let resilient = (any::<u16>(), any::<u32>()).prop_map(|(buckets, ticks)| Resilient {
            buckets,
            idle_timer: Duration::from_millis(u64::from(ticks) * u64::from(CLOCK_MS)),
        });
        let group = (prop::collection::vec(member, 0..4), prop::option::of(resilient))
            .prop_map(|(members, resilient)| NexthopKind::Group { members, resilient });
        prop_oneof![gateway, group]
    }

    fn nexthop() -> impl Strategy<Value = Nexthop> {
        (any::<u32>(), any::<u8>(), kind()).prop_map(|(id, protocol, kind)| Nexthop {
            id,
            protocol,
            kind,
        })
    }

    proptest! {
        #[test]
        fn a_nexthop_is_read_as_it_was_written(nexthop in nexthop()) {
            prop_assert_eq!(Nexthop::decode(&nexthop.encode()), Ok(nexthop));
        }

        #[test]
        fn any_bytes_are_a_nexthop_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = Nexthop::decode(&bytes);
        }

        #[test]
        fn a_truncated_nexthop_is_never_taken_for_a_whole_one(nexthop in nexthop(), cut in 1..8usize) {
            let bytes = nexthop.encode();
            let short = &bytes[..bytes.len().saturating_sub(cut)];
            prop_assert_ne!(Nexthop::decode(short), Ok(nexthop));
        }
    }

    #[test]
    fn a_nexthop_prints_as_ip_takes_it() {
        let resilient = Resilient { buckets: 64, idle_timer: Duration::from_secs(30) };
        let members = vec![Member { id: 7, weight: 1 }, Member { id: 8, weight: 2 }];
        let kind = NexthopKind::Group { members, resilient: Some(resilient) };
        assert_eq!(
            Nexthop { id: 9, protocol: 76, kind }.to_string(),
            "id 9 group 7/8,2 type resilient buckets 64 idle_timer 30 protocol 76"
        );
    }
}

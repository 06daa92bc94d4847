//! Pure: policy routing rules.

use std::fmt;

use limpet_net_types::{Family, Prefix};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};

use crate::wire::Malformed;

/// A rule: packets from `from` are looked up in `table`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    /// The family it is for.
    pub family: Family,
    /// Its place among the rules: the smaller is asked first.
    pub preference: u32,
    /// The sources it is for; none for all.
    pub from: Option<Prefix>,
    /// The number of the table.
    pub table: u32,
    /// Who made it.
    pub protocol: u8,
}

impl Rule {
    pub(crate) fn message(&self) -> RuleMessage {
        let mut message = Self::dump(self.family);
        message.header.action = RuleAction::ToTable;
        message.header.table = u8::try_from(self.table).unwrap_or(0);
        message.attributes = vec![
            RuleAttribute::Table(self.table),
            RuleAttribute::Priority(self.preference),
            RuleAttribute::Protocol(RouteProtocol::from(self.protocol)),
        ];
        if let Some(from) = self.from {
            message.header.src_len = from.length();
            message.attributes.push(RuleAttribute::Source(from.address()));
        }
        message
    }

    /// What asks for the rules of one family.
    pub(crate) fn dump(family: Family) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = match family {
            Family::V4 => AddressFamily::Inet,
            Family::V6 => AddressFamily::Inet6,
        };
        message
    }

    /// Reads a rule, or nothing if it is of a kind that limpet never sets.
    ///
    /// A rule of limpet's own protocol number that someone gave another condition is of such a kind.
    pub(crate) fn decode(message: &RuleMessage) -> Result<Option<Self>, Malformed> {
        let family = match message.header.family {
            AddressFamily::Inet => Family::V4,
            AddressFamily::Inet6 => Family::V6,
            _ => return Err(Malformed("rule is of neither IPv4 nor IPv6")),
        };
        let header = &message.header;
        let mut rule =
            Self { family, preference: 0, from: None, table: header.table.into(), protocol: 0 };
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Priority(preference) => rule.preference = *preference,
                RuleAttribute::Source(address) => {
                    rule.from = Some(Prefix::containing(*address, header.src_len));
                }
                RuleAttribute::Table(table) => rule.table = *table,
                RuleAttribute::Protocol(protocol) => rule.protocol = u8::from(*protocol),
                // What the kernel says of every rule with a table.
                RuleAttribute::SuppressPrefixLen(u32::MAX) => {}
                _ => return Ok(None),
            }
        }
        let plain = header.action == RuleAction::ToTable && header.dst_len == 0;
        Ok(plain.then_some(rule))
    }
}

/// As the arguments of `ip rule add`.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.from {
            Some(from) => write!(f, "from {from}")?,
            None => f.write_str("from all")?,
        }
        let Self { preference, table, protocol, .. } = self;
        write!(f, " lookup {table} pref {preference} protocol {protocol}")
    }
}

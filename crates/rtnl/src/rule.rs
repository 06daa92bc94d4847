//! Pure: policy routing rules.

use std::fmt;

use limpet_net_types::{Family, Prefix};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::rule::{RuleAction as Action, RuleAttribute, RuleMessage};

use crate::wire::Malformed;

/// What the kernel takes the host's own packets to come in by.
const LOOPBACK: &str = "lo";

/// A rule: what becomes of the packets that it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    /// The family it is for.
    pub family: Family,
    /// Its place among the rules: the smaller is asked first.
    pub preference: u32,
    /// The packets it is for.
    pub selector: Selector,
    /// What becomes of them.
    pub action: RuleAction,
    /// Who made it.
    pub protocol: u8,
}

/// Which packets a rule is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Selector {
    /// All.
    All,
    /// Those from here.
    From(Prefix),
    /// Those whose mark is this one where the mask has ones.
    Marked {
        /// The mark.
        mark: u32,
        /// The bits of it that count.
        mask: u32,
    },
    /// Those that the host itself sends.
    OfHost,
}

/// What a rule does with its packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RuleAction {
    /// They are looked up in the table of this number; what is not in it is for the rules below.
    Lookup(u32),
    /// The next rule is the first of this preference, which must be a later one. Passed over while there is none.
    GoTo(u32),
    /// The sender is told that the destination is unreachable.
    Unreachable,
}

impl Rule {
    pub(crate) fn message(&self) -> RuleMessage {
        let mut message = Self::dump(self.family);
        message.attributes = vec![
            RuleAttribute::Priority(self.preference),
            RuleAttribute::Protocol(RouteProtocol::from(self.protocol)),
        ];
        let (action, attribute) = match self.action {
            RuleAction::Lookup(table) => (Action::ToTable, Some(RuleAttribute::Table(table))),
            RuleAction::GoTo(to) => (Action::Goto, Some(RuleAttribute::Goto(to))),
            RuleAction::Unreachable => (Action::Unreachable, None),
        };
        message.header.action = action;
        message.attributes.extend(attribute);
        match self.selector {
            Selector::All => {}
            Selector::From(from) => {
                message.header.src_len = from.length();
                message.attributes.push(RuleAttribute::Source(from.address()));
            }
            Selector::Marked { mark, mask } => {
                message
                    .attributes
                    .extend([RuleAttribute::FwMark(mark), RuleAttribute::FwMask(mask)]);
            }
            Selector::OfHost => {
                message.attributes.push(RuleAttribute::Iifname(LOOPBACK.to_owned()));
            }
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
        let mut found = Found { table: header.table.into(), ..Found::default() };
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Priority(preference) => found.preference = *preference,
                RuleAttribute::Source(address) => {
                    let from = Prefix::containing(*address, header.src_len);
                    found.selectors.push(Selector::From(from));
                }
                RuleAttribute::Table(table) => found.table = *table,
                RuleAttribute::Goto(to) => found.goto = Some(*to),
                RuleAttribute::FwMark(mark) => found.mark = *mark,
                RuleAttribute::FwMask(mask) => found.mask = Some(*mask),
                RuleAttribute::Iifname(name) if name == LOOPBACK => {
                    found.selectors.push(Selector::OfHost);
                }
                RuleAttribute::Protocol(protocol) => found.protocol = u8::from(*protocol),
                // What the kernel says of every rule with a table.
                RuleAttribute::SuppressPrefixLen(u32::MAX) => {}
                _ => return Ok(None),
            }
        }
        let action = match (header.action, found.goto) {
            (Action::ToTable, None) => RuleAction::Lookup(found.table),
            (Action::Goto, Some(to)) => RuleAction::GoTo(to),
            (Action::Unreachable, None) => RuleAction::Unreachable,
            _ => return Ok(None),
        };
        // A mark of zero is only said together with its mask.
        let marked = found.mask.map(|mask| Selector::Marked { mark: found.mark, mask });
        found.selectors.extend(marked);
        let selector = match found.selectors[..] {
            [] => Selector::All,
            [selector] => selector,
            _ => return Ok(None),
        };
        let Found { preference, protocol, .. } = found;
        let rule = Self { family, preference, selector, action, protocol };
        Ok((header.dst_len == 0).then_some(rule))
    }
}

/// The attributes of a rule that was read.
#[derive(Default)]
struct Found {
    preference: u32,
    table: u32,
    goto: Option<u32>,
    mark: u32,
    mask: Option<u32>,
    selectors: Vec<Selector>,
    protocol: u8,
}

/// As the first arguments of `ip rule add`.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("from all"),
            Self::From(from) => write!(f, "from {from}"),
            Self::Marked { mark, mask } => write!(f, "fwmark {mark:#x}/{mask:#x}"),
            Self::OfHost => f.write_str("iif lo"),
        }
    }
}

/// As the arguments of `ip rule add` that come next.
impl fmt::Display for RuleAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lookup(table) => write!(f, "lookup {table}"),
            Self::GoTo(to) => write!(f, "goto {to}"),
            Self::Unreachable => f.write_str("unreachable"),
        }
    }
}

/// As the arguments of `ip rule add`.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { preference, selector, action, protocol, .. } = self;
        write!(f, "{selector} {action} pref {preference} protocol {protocol}")
    }
}

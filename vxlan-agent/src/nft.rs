//! Pure: the nftables table `inet limpet` as text.
//!
//! What it says:
//!
//! - a container sends from its own addresses only; nobody outside limpet's devices sends from a pool, and by a
//!   network's tunnel nobody does from a pool of a network that may not open connections into this one;
//! - what comes through a network's tunnel goes to its containers, or out of a device of a gateway that leads to what is
//!   behind it; what comes from a container goes to its network, to those that are open to it, and out;
//! - what is for containers comes from limpet's devices, from such a device of a gateway, or because another program
//!   translated its destination;
//! - packets of a network with an address space of its own are marked, and so are the host's answers to them.
//!
//! Everything goes by interface group, 4097 to 8191 for the networks' devices, so there are as many rules however
//! many containers and networks there are. [`crate::filter`] reads and replaces the table.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use limpet_net_types::{Family, NetworkName, Range};

use crate::mark::MarkMask;
use crate::segments::Segment;

mod own;

/// The name of the table.
pub(crate) const NAME: &str = "limpet";

/// The name of the table, with its family.
pub(crate) const TABLE: &str = "inet limpet";

/// What the table says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ruleset {
    pub(crate) networks: Networks,
    /// The devices that lead to what is behind this gateway.
    pub(crate) external: BTreeSet<String>,
    /// Whether a program of this host translates destinations, so that one may be a container's. Asking whether
    /// it was has the kernel track all connections, which costs as much as all else here; it does so then anyway.
    pub(crate) translated: bool,
    /// Whether the kernel's own check of IPv4 sources is too loose here for that of containers' own.
    pub(crate) loose4: bool,
    /// Whether IPv6 is forwarded between other devices only because limpet had to switch it on for all.
    pub(crate) closed6: bool,
}

/// The networks of a host, by their groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Networks {
    /// All pools, IPv4 first, in their order.
    pools: Vec<Range>,
    groups: BTreeSet<u32>,
    /// From which network connections may be opened into which other.
    opened: BTreeSet<(u32, u32)>,
    /// The pools that may send by each network's tunnel.
    senders: Vec<(Range, u32)>,
    /// The marks of networks with an address space of their own.
    marks: BTreeMap<u32, u32>,
    /// Those of them that the host itself can mean by an address.
    alone: BTreeSet<u32>,
    /// The bits of the mark that are limpet's, each by itself.
    bits: Vec<u32>,
}

impl Networks {
    /// The networks that a host has a part in.
    pub(crate) fn of(segments: &BTreeMap<NetworkName, Segment<'_>>, mask: MarkMask) -> Self {
        let order = |range: &Range| (range.family(), range.bits());
        let shared = || segments.values().filter(|segment| segment.is_shared());
        let mut opened = BTreeSet::new();
        for to in shared() {
            let allowed = shared().filter(|from| to.network.allow.contains(&from.network.name));
            let others = allowed.filter(|from| from.group() != to.group());
            opened.extend(others.map(|from| (from.group(), to.group())));
        }
        let (mut pools, mut senders) = (Vec::new(), Vec::new());
        for from in segments.values() {
            let into = opened.iter().filter_map(|(one, other)| {
                let from = from.group();
                // Answers come from those who were called.
                (*one == from).then_some(*other).or((*other == from).then_some(*one))
            });
            let into: BTreeSet<u32> = into.chain([from.group()]).collect();
            pools.extend(&from.pools);
            for pool in &from.pools {
                senders.extend(into.iter().map(|group| (*pool, *group)));
            }
        }
        pools.sort_unstable_by_key(order);
        // Spaces of their own may have the same addresses.
        pools.dedup_by(|later, earlier| {
            let overlap = earlier.overlaps(*later);
            if let Some(both) = Range::between(earlier.first(), earlier.last().max(later.last()))
                && overlap
            {
                *earlier = both;
            }
            overlap
        });
        senders.sort_unstable_by_key(|(range, group)| (order(range), *group));
        let own = || segments.values().filter_map(|segment| Some((segment.group(), segment.own?)));
        Self {
            pools,
            groups: segments.values().map(Segment::group).collect(),
            opened,
            senders,
            marks: own().map(|(group, own)| (group, own.mark)).collect(),
            alone: own().filter(|(_, own)| own.alone).map(|(group, _)| group).collect(),
            bits: mask.bits().collect(),
        }
    }

    /// Whether an opening is for one direction only, so that answers must be known as such.
    fn asks_for_answers(&self) -> bool {
        self.opened.iter().any(|(from, to)| !self.opened.contains(&(*to, *from)))
    }

    /// What becomes of packets from containers, by the groups that they come from and go to.
    fn ways(&self) -> impl Iterator<Item = String> {
        let within = self.groups.iter().map(|group| format!("{group} . {group} : accept"));
        let open = self.opened.iter().map(|(from, to)| format!("{from} . {to} : accept"));
        let answers = self.opened.iter().filter(|(from, to)| !self.opened.contains(&(*to, *from)));
        let answers = answers.map(|(from, to)| format!("{to} . {from} : goto answers"));
        within.chain(open).chain(answers)
    }

    fn has_own(&self) -> bool {
        !self.marks.is_empty()
    }

    fn mask(&self) -> u32 {
        self.bits.iter().sum()
    }
}

/// As `nft` reads it.
impl fmt::Display for Ruleset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let networks = &self.networks;
        writeln!(f, "table {TABLE} {{")?;
        self.sets(f)?;
        if networks.has_own() {
            networks.own_sets(f)?;
        }
        self.prerouting(f)?;
        self.forward(f)?;
        if networks.has_own() {
            networks.own_chains(f)?;
        }
        f.write_str("}\n")
    }
}

impl Ruleset {
    fn sets(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let networks = &self.networks;
        let pools = |family| {
            let pools = networks.pools.iter().filter(move |pool| pool.family() == family);
            pools.map(|pool| interval(*pool))
        };
        let senders = |family| {
            let senders = networks.senders.iter().filter(move |(pool, _)| pool.family() == family);
            senders.map(|(pool, group)| format!("{} . {group}", interval(*pool)))
        };
        set(f, "set pools4", "ipv4_addr flags interval", pools(Family::V4))?;
        set(f, "set pools6", "ipv6_addr flags interval", pools(Family::V6))?;
        set(f, "set senders4", "ipv4_addr . devgroup flags interval", senders(Family::V4))?;
        set(f, "set senders6", "ipv6_addr . devgroup flags interval", senders(Family::V6))?;
        let always = ["0-255 . 4097-8191".to_owned()];
        set(f, "set complete", "inet_proto . devgroup flags interval", always.into_iter())?;
        set(f, "map ways", "devgroup . devgroup : verdict", networks.ways())?;
        let within = networks.groups.iter().map(|group| format!("{group} . {group}"));
        set(f, "set within", "devgroup . devgroup", within)?;
        // A name that nft's language cannot quote is none that a device of a gateway has.
        let names = self.external.iter().filter(|name| !name.contains(['"', '\\', '*']));
        set(f, "set external", "ifname", names.map(|name| format!("\"{name}\"")))
    }

    /// After marks and connection tracking, before routing.
    ///
    /// Asking the routing table about a source costs as much as routing the packet. Of IPv4 the kernel does it
    /// already where its reverse-path filter is strict, which it is made for containers' interfaces.
    fn prerouting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unchecked = if self.loose4 { "" } else { "meta nfproto ipv6 " };
        f.write_str(
            "chain prerouting {
type filter hook prerouting priority -150; policy accept
iifgroup 4097-8191 goto inside_prerouting
ip saddr @pools4 fib saddr type != local drop
ip6 saddr @pools6 fib saddr type != local drop
}
chain inside_prerouting {
",
        )?;
        if self.networks.has_own() {
            writeln!(f, "iifgroup @own goto own_prerouting")?;
        }
        writeln!(f, "iifname \"limpet*\" goto tunnel_prerouting")?;
        writeln!(f, "iifname \"lc*\" {unchecked}fib saddr . iif oif missing drop")?;
        writeln!(f, "}}")?;
        // When the table is replaced, its rules hold a moment before sets of this kind have their elements. They get
        // them one after the other, in the order of the text: who sees the last one's sees the others'.
        f.write_str(
            "chain tunnel_prerouting {
ip saddr . iifgroup @senders4 accept
ip6 saddr . iifgroup @senders6 accept
meta l4proto . iifgroup != @complete accept
ip saddr . iifgroup @senders4 accept
ip6 saddr . iifgroup @senders6 accept
ip saddr @pools4 drop
ip6 saddr @pools6 drop
}
",
        )?;
        if self.networks.has_own() {
            self.networks.own_prerouting(f, unchecked)?;
        }
        Ok(())
    }

    /// Where the packets of others pass.
    ///
    /// Whoever reaches the VXLAN port can send into the tunnel: that must not lead to what is behind just any host.
    fn forward(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "chain forward {
type filter hook forward priority 0; policy accept
iifgroup 4097-8191 goto inside_forward
",
        )?;
        if self.closed6 {
            writeln!(f, "{CLOSED6}")?;
        }
        if self.translated {
            writeln!(f, "ct status dnat accept")?;
        }
        f.write_str(
            "oifgroup 4097-8191 iifname != @external drop
}
chain inside_forward {
iifname \"limpet*\" goto tunnel_forward
iifgroup . oifgroup vmap @ways
oifgroup 4097-8191 drop
",
        )?;
        if self.networks.has_own() {
            writeln!(f, "iifgroup @own drop")?;
        }
        f.write_str(
            "}
chain tunnel_forward {
iifgroup . oifgroup @within accept
",
        )?;
        if self.translated {
            // Answers of containers elsewhere to whoever asked this host for them, by a port of it say.
            writeln!(f, "ct direction reply ct status dnat accept")?;
        }
        f.write_str("oifname != @external drop\n}\n")?;
        if self.networks.asks_for_answers() {
            writeln!(f, "chain answers {{\nct state established,related accept\ndrop\n}}")?;
        }
        Ok(())
    }

    /// The table in the form in which [`squeezed`] leaves a listing.
    pub(crate) fn listing(&self) -> String {
        // nft ends the policy with a semicolon, where the end of the line would do.
        squeezed(&self.to_string().replace("policy accept\n", "policy accept;\n"))
    }

    /// What `nft -f` takes: the table is there all the time, old or new and never half.
    pub(crate) fn replacement(&self) -> String {
        // Deleting what is not there fails, so it is made first; nft before 1.0.8 knows no `destroy`.
        format!("add table {TABLE}\ndelete table {TABLE}\n{self}")
    }
}

/// What comes from outside limpet's devices and does not go to them.
const CLOSED6: &str = "meta nfproto ipv6 oifgroup != 4097-8191 drop";

/// Whether a listing of the table says that IPv6 is forwarded for limpet only.
pub(crate) fn is_closed6(listing: &str) -> bool {
    listing.contains(CLOSED6)
}

/// Whether a listing of all chains has one that can translate destinations.
pub(crate) fn translates(chains: &str) -> bool {
    ["type nat hook prerouting ", "type nat hook output "].iter().any(|head| chains.contains(head))
}

/// A text with every run of white space as one blank and the elements of each set in order: nft breaks lines as it
/// likes, and lists elements as the kernel has them.
pub(crate) fn squeezed(text: &str) -> String {
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut parts = words.split("elements = { ");
    let mut ordered = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (elements, rest) = part.split_once(" }").unwrap_or((part, ""));
        let mut elements: Vec<_> = elements.split(", ").collect();
        elements.sort_unstable();
        ordered.extend(["elements = { ", &elements.join(", "), " }", rest]);
    }
    ordered
}

fn set(
    f: &mut fmt::Formatter<'_>,
    head: &str,
    kind: &str,
    elements: impl Iterator<Item = String>,
) -> fmt::Result {
    let elements: Vec<_> = elements.collect();
    writeln!(f, "{head} {{")?;
    match kind.split_once(" flags ") {
        Some((kind, flags)) => writeln!(f, "type {kind}\nflags {flags}")?,
        None => writeln!(f, "type {kind}")?,
    }
    if !elements.is_empty() {
        writeln!(f, "elements = {{ {} }}", elements.join(", "))?;
    }
    f.write_str("}\n")
}

/// A range as an element of an interval set.
fn interval(range: Range) -> String {
    match range.as_prefix() {
        _ if range.size() == 1 => range.first().to_string(),
        Some(prefix) => prefix.to_string(),
        None => format!("{}-{}", range.first(), range.last()),
    }
}

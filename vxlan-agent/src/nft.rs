//! Pure: the nftables table `inet limpet` as text.
//!
//! What it says: a container sends from its own addresses only; nobody outside limpet's devices sends from a
//! pool; what comes through the tunnel goes to containers, or out of a device of a gateway that leads to what is
//! behind it; and what is for containers comes from limpet's devices, from such a device of a gateway, or because
//! another program translated its destination. Everything goes by interface group, 4097 to 8191 for the
//! networks' devices, so the table is the same however many containers and networks there are. [`crate::filter`] reads and replaces it.

use std::collections::BTreeSet;
use std::fmt;

use limpet_net_types::{Family, Range};

/// The name of the table.
pub(crate) const NAME: &str = "limpet";

/// The name of the table, with its family.
pub(crate) const TABLE: &str = "inet limpet";

/// What the table says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ruleset {
    /// The pools, IPv4 first, in their order.
    pub(crate) pools: Vec<Range>,
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

/// As `nft` reads it.
impl fmt::Display for Ruleset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pools = |family| {
            self.pools
                .iter()
                .filter(move |pool| pool.family() == family)
                .map(|pool| interval(*pool))
        };
        writeln!(f, "table {TABLE} {{")?;
        set(f, "set pools4", "ipv4_addr flags interval", pools(Family::V4))?;
        set(f, "set pools6", "ipv6_addr flags interval", pools(Family::V6))?;
        // A name that nft's language cannot quote is none that a device of a gateway has.
        let names = self.external.iter().filter(|name| !name.contains(['"', '\\', '*']));
        set(f, "set external", "ifname", names.map(|name| format!("\"{name}\"")))?;
        self.prerouting(f)?;
        self.forward(f)?;
        f.write_str("}\n")
    }
}

impl Ruleset {
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
",
        )?;
        writeln!(f, "chain inside_prerouting {{")?;
        writeln!(f, "iifname \"lc*\" {unchecked}fib saddr . iif oif missing drop")?;
        writeln!(f, "}}")
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
iifname \"limpet*\" oifgroup != 4097-8191 oifname != @external drop
}
",
        )
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

/// A text with every run of white space as one blank: nft breaks lines as it likes.
pub(crate) fn squeezed(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
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

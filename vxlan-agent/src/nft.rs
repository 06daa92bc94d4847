//! Pure: the nftables table `inet limpet` as text.
//!
//! What it says: a container sends from its own addresses only; nobody outside limpet's devices sends from a
//! pool; what comes through the tunnel goes to containers, or out of a device of a gateway that leads to what is
//! behind it; and what is for containers comes from limpet's devices, from such a device of a gateway, or because
//! another program translated its destination. Everything goes by interface group, so
//! the table is the same however many containers there are. [`crate::filter`] reads and replaces it.

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
    /// The interface groups of the networks.
    pub(crate) groups: BTreeSet<u32>,
    /// The pools, IPv4 first, in their order.
    pub(crate) pools: Vec<Range>,
    /// The devices that lead to what is behind this gateway.
    pub(crate) external: BTreeSet<String>,
    /// Whether this host runs containers. Only there can a destination have been translated into a container's; asking
    /// for that switches connection tracking on for all of a host's traffic.
    pub(crate) containers: bool,
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
        set(f, "set networks", "devgroup", self.groups.iter().map(u32::to_string))?;
        // A name that nft's language cannot quote is none that a device of a gateway has.
        let names = self.external.iter().filter(|name| !name.contains(['"', '\\', '*']));
        set(f, "set external", "ifname", names.map(|name| format!("\"{name}\"")))?;
        let verdicts = self.groups.iter().map(|group| format!("{group} : accept"));
        set(f, "map from", "devgroup : verdict", verdicts)?;
        f.write_str(PREROUTING)?;
        f.write_str("chain forward {\n")?;
        f.write_str("type filter hook forward priority 0; policy accept\n")?;
        if self.closed6 {
            writeln!(f, "{CLOSED6}")?;
        }
        f.write_str(FROM_TUNNEL)?;
        f.write_str("iifgroup vmap @from\n")?;
        if self.containers {
            f.write_str("ct status dnat accept\n")?;
        }
        f.write_str("oifgroup @networks iifname != @external drop\n}\n}\n")
    }
}

/// Whether a listing of the table says that IPv6 is forwarded for limpet only.
pub(crate) fn is_closed6(listing: &str) -> bool {
    listing.contains(CLOSED6)
}

/// What neither comes from limpet's devices nor goes to them.
const CLOSED6: &str = "meta nfproto ipv6 iifgroup != @networks oifgroup != @networks drop";

/// Whoever reaches the VXLAN port can send into the tunnel: that must not lead to what is behind just any host.
const FROM_TUNNEL: &str =
    "iifgroup @networks iifname \"limpet*\" oifgroup != @networks oifname != @external drop\n";

/// After marks and connection tracking, before routing.
const PREROUTING: &str = r#"chain prerouting {
type filter hook prerouting priority -150; policy accept
iifgroup != @networks ip saddr @pools4 fib saddr type != local drop
iifgroup != @networks ip6 saddr @pools6 fib saddr type != local drop
iifgroup @networks iifname "lc*" fib saddr . iif oif missing drop
}
"#;

impl Ruleset {
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

//! Pure: what the table says of networks with an address space of their own: their marks, bit by bit.
//!
//! Nftables can set bits of a mark to what the rule says, not to what a map says, without touching the other
//! bits. So there is a set of networks for each bit, and a rule for each.

use std::fmt;

use super::{Networks, set};

impl Networks {
    /// The groups of all of them, of those that the host can mean by an address, and of each bit.
    pub(super) fn own_sets(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        set(f, "set own", "devgroup", self.marks.keys().map(u32::to_string))?;
        set(f, "set alone", "devgroup", self.alone.iter().map(u32::to_string))?;
        for bit in &self.bits {
            let with = self.marks.iter().filter(|(_, mark)| *mark & bit != 0);
            let groups = with.map(|(group, _)| group.to_string());
            set(f, &format!("set {}", name(*bit)), "devgroup", groups)?;
        }
        Ok(())
    }

    /// Marks what comes from a network's devices, and checks it with its mark.
    pub(super) fn own_prerouting(
        &self,
        f: &mut fmt::Formatter<'_>,
        unchecked: &str,
    ) -> fmt::Result {
        writeln!(f, "chain own_prerouting {{")?;
        writeln!(f, "meta mark set meta mark & {:#010x}", !self.mask())?;
        for bit in &self.bits {
            writeln!(f, "iifgroup @{} {}", name(*bit), marking("meta", *bit))?;
        }
        f.write_str("iifname \"limpet*\" goto tunnel_prerouting\n")?;
        writeln!(f, "iifname \"lc*\" {unchecked}fib saddr . mark . iif oif missing drop")?;
        f.write_str("}\n")
    }

    /// The answers of the host's own programs, and its own packets.
    ///
    /// The kernel gives its own answers, and those of TCP, the mark of what they answer. Of others the connection
    /// remembers it. Two networks whose containers have the same address and port cannot ask at once.
    pub(super) fn own_chains(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mask = self.mask();
        f.write_str(
            "chain raw {
type filter hook prerouting priority -300; policy accept
iifgroup @own fib daddr type != local notrack
}
chain input {
type filter hook input priority 0; policy accept
iifgroup @own meta l4proto != tcp goto own_input
}
chain own_input {
",
        )?;
        writeln!(f, "{} goto own_first", among("ct", mask, 0))?;
        for bit in &self.bits {
            let set = name(*bit);
            writeln!(f, "iifgroup @{set} {} drop", among("ct", *bit, 0))?;
            writeln!(f, "iifgroup != @{set} {} drop", among("ct", *bit, *bit))?;
        }
        writeln!(f, "}}\nchain own_first {{")?;
        for bit in &self.bits {
            writeln!(f, "iifgroup @{} {}", name(*bit), marking("ct", *bit))?;
        }
        f.write_str(
            "}
chain output {
type route hook output priority -150; policy accept
",
        )?;
        writeln!(f, "{} accept", marked("meta", mask))?;
        writeln!(f, "ct direction reply {} goto own_answer", marked("ct", mask))?;
        f.write_str("oifgroup @alone goto own_begin\noifgroup @own drop\n}\nchain own_answer {\n")?;
        for bit in &self.bits {
            writeln!(f, "{} {}", among("ct", *bit, *bit), marking("meta", *bit))?;
        }
        f.write_str("}\nchain own_begin {\n")?;
        for bit in &self.bits {
            writeln!(f, "oifgroup @{} {}", name(*bit), marking("meta", *bit))?;
        }
        f.write_str(
            "}
chain postrouting {
type filter hook postrouting priority -150; policy accept
",
        )?;
        let kept = !mask;
        writeln!(f, "{} meta mark set meta mark & {kept:#010x}", marked("meta", mask))?;
        f.write_str("}\n")
    }
}

/// The name of a bit's set.
fn name(bit: u32) -> String {
    format!("bit{}", bit.trailing_zeros())
}

/// Asks whether a mark is a value among the bits of a mask, as nft spells it.
fn among(whose: &str, mask: u32, value: u32) -> String {
    match prefix(mask) {
        Some(length) => format!("{whose} mark {value:#010x}/{length}"),
        None => format!("{whose} mark & {mask:#010x} == {value:#010x}"),
    }
}

/// Asks whether a mark has any bit of a mask, as nft spells it.
fn marked(whose: &str, mask: u32) -> String {
    match prefix(mask) {
        Some(length) => format!("{whose} mark != 0x00000000/{length}"),
        None => format!("{whose} mark & {mask:#010x} != 0x00000000"),
    }
}

/// How many bits a mask has, if they are the highest.
fn prefix(mask: u32) -> Option<u32> {
    (mask.leading_ones() + mask.trailing_zeros() == u32::BITS).then(|| mask.leading_ones())
}

/// Sets a bit of a packet's mark, or of its connection's.
fn marking(whose: &str, bit: u32) -> String {
    format!("{whose} mark set {whose} mark | {bit:#010x}")
}

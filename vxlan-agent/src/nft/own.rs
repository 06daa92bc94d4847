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
        writeln!(f, "ct mark & {mask:#010x} == 0x00000000 goto own_first")?;
        for bit in &self.bits {
            let set = name(*bit);
            writeln!(f, "iifgroup @{set} ct mark & {bit:#010x} == 0x00000000 drop")?;
            writeln!(f, "iifgroup != @{set} ct mark & {bit:#010x} == {bit:#010x} drop")?;
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
        writeln!(f, "meta mark & {mask:#010x} != 0x00000000 accept")?;
        writeln!(f, "ct direction reply ct mark & {mask:#010x} != 0x00000000 goto own_answer")?;
        f.write_str("oifgroup @alone goto own_begin\noifgroup @own drop\n}\nchain own_answer {\n")?;
        for bit in &self.bits {
            writeln!(f, "ct mark & {bit:#010x} == {bit:#010x} {}", marking("meta", *bit))?;
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
        writeln!(
            f,
            "meta mark & {mask:#010x} != 0x00000000 meta mark set meta mark & {kept:#010x}"
        )?;
        f.write_str("}\n")
    }
}

/// The name of a bit's set.
fn name(bit: u32) -> String {
    format!("bit{}", bit.trailing_zeros())
}

/// Sets a bit of a packet's mark, or of its connection's.
fn marking(whose: &str, bit: u32) -> String {
    format!("{whose} mark set {whose} mark | {bit:#010x}")
}

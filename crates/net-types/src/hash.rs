//! Pure: one hash that is the same on every host, in every version, for ever.

/// FNV-1a, 64 bits, over `parts` with a separator between them.
///
/// For names and MAC addresses derived from longer names. The standard library's hasher is
/// free to change with a new compiler; a changed name would orphan what carries the old one. It is no
/// defence against somebody who looks for collisions: whoever uses it checks whose a thing is.
#[must_use]
pub fn stable_hash(parts: &[&str]) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(PRIME);
    let mixed = parts.iter().fold(OFFSET, |hash, part| step(part.bytes().fold(hash, step), 0));
    // FNV leaves the high bits of short inputs alike; this is the finaliser of MurmurHash3.
    let mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    mixed ^ (mixed >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_never_changes() {
        assert_eq!(stable_hash(&[]), 0xefd0_1f60_ba99_2926);
        assert_ne!(stable_hash(&["ab", "c"]), stable_hash(&["a", "bc"]));
    }
}

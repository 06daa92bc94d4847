//! Pure: a few bytes as hexadecimal digits.
//!
//! The standard library's formatter does the same through a call for each digit, and every claim writes some dozens
//! of identifiers and addresses down.

/// At most 16 bytes as lower-case hexadecimal digits, two for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hex {
    digits: [u8; 32],
    length: usize,
}

impl Hex {
    /// The digits of `bytes`; of more than 16 those of the first.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let mut digits = [0; 32];
        for (pair, byte) in digits.chunks_exact_mut(2).zip(bytes) {
            pair.copy_from_slice(&[digit(byte >> 4), digit(byte & 0xf)]);
        }
        Self { digits, length: 2 * bytes.len().min(16) }
    }

    /// The digits as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        let digits = self.digits.get(..self.length).unwrap_or_default();
        std::str::from_utf8(digits).unwrap_or_default()
    }
}

fn digit(number: u8) -> u8 {
    if number < 10 { b'0' + number } else { b'a' + number - 10 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn digits_are_what_the_formatter_writes(number in any::<u128>(), short in any::<u32>()) {
            let hex = Hex::of(&number.to_be_bytes());
            prop_assert_eq!(hex.as_str(), format!("{number:032x}"));
            let hex = Hex::of(&short.to_be_bytes());
            prop_assert_eq!(hex.as_str(), format!("{short:08x}"));
        }
    }
}

//! Pure: identifiers of 128 and more bits that nobody types.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::Hex;
use crate::parsed;

/// Why a text is not an identifier.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not the 32 hexadecimal digits of 128 bits.
    #[error("{text:?} is not 32 lower-case hexadecimal digits")]
    NotHex {
        /// The beginning of the text.
        text: String,
    },
}

/// 128 bits in lower-case hexadecimal: installations, boots, stores, sessions.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token {
    // Not one u128, whose alignment would leave holes in the records that have tokens.
    high: u64,
    low: u64,
}

impl Token {
    /// Makes a token of 128 bits, which the caller takes from a random source.
    #[must_use]
    pub fn from_bits(bits: u128) -> Self {
        let [high, low] = [bits >> 64, bits & u128::from(u64::MAX)]
            .map(|half| u64::try_from(half).unwrap_or(u64::MAX));
        Self { high, low }
    }

    fn digits(self) -> Hex {
        Hex::of(&self.bits().to_be_bytes())
    }

    /// The bits.
    #[must_use]
    pub fn bits(self) -> u128 {
        (u128::from(self.high) << 64) | u128::from(self.low)
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let hex = text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        u128::from_str_radix(text, 16)
            .ok()
            .filter(|_| hex)
            .map(Self::from_bits)
            .ok_or_else(|| TokenError::NotHex { text: text.chars().take(40).collect() })
    }
}

impl Serialize for Token {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.digits().as_str())
    }
}

impl<'de> Deserialize<'de> for Token {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        parsed::deserialize(from)
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.digits().as_str())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One incarnation of an attachment: 128 random bits that the agent makes for each ADD.
///
/// It fences: who ends an attachment names its uid, so that a late request of an old
/// incarnation touches nothing of a newer one. It is the alias of the host's end of the veth pair, where
/// any later program can read whose the interface is.
pub type Uid = Token;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_32_lower_case_digits_and_nothing_else() {
        let text = "00112233445566778899aabbccddeeff";
        assert_eq!(text.parse::<Token>().unwrap().to_string(), text);
        for wrong in
            ["", "0", "00112233445566778899AABBCCDDEEFF", "+0112233445566778899aabbccddeeff"]
        {
            assert!(wrong.parse::<Token>().is_err(), "{wrong}");
        }
    }
}

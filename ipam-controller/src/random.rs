//! Edge: random identifiers, from the system.

use std::fs::File;
use std::io::{self, Read};

use limpet_net_types::Token;

/// Returns 128 random bits.
///
/// # Errors
///
/// Fails if the system's random device cannot be read.
pub(crate) fn token() -> io::Result<Token> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(Token::from_bits(u128::from_le_bytes(bytes)))
}

//! Edge: what is told of long work on stderr, once it has taken longer than a second.

use std::io::{self, Write};
use std::time::{Duration, Instant};

/// How often it is told.
const EVERY: Duration = Duration::from_secs(1);

/// Work under way.
pub(crate) struct Progress {
    next: Instant,
}

impl Progress {
    /// Begins now.
    pub(crate) fn begin() -> Self {
        Self { next: Instant::now() + EVERY }
    }

    /// Tells how far it is, if it is time to.
    pub(crate) fn tell(&mut self, words: impl FnOnce() -> String) {
        if Instant::now() >= self.next {
            self.next = Instant::now() + EVERY;
            // That nobody reads it changes nothing.
            let _ = writeln!(io::stderr(), "limpetctl: {}", words());
        }
    }
}

/// A number of bytes for people.
pub(crate) fn mebibytes(bytes: u64) -> String {
    let tenths = bytes.saturating_mul(10) >> 20;
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_told_in_tenths_of_mebibytes() {
        assert_eq!(mebibytes(0), "0.0 MiB");
        assert_eq!(mebibytes((3 << 20) + (1 << 19)), "3.5 MiB");
    }
}

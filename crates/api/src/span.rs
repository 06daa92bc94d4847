//! Pure: times on the wire: lengths as `90s`, `15m`, `12h`, `7d`; points as seconds of fleet time.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A text is not a length of time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a length of time such as 90s, 15m, 12h or 7d")]
pub struct SpanError(pub String);

/// A length of time in whole seconds, written with one unit: `90s`, `15m`, `12h`, `7d`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(try_from = "String", into = "String")]
pub struct Span(u64);

const UNITS: [(char, u64); 4] = [('d', 86_400), ('h', 3_600), ('m', 60), ('s', 1)];

impl Span {
    /// A length of this many seconds.
    #[must_use]
    pub const fn from_seconds(seconds: u64) -> Self {
        Self(seconds)
    }

    /// The length in seconds.
    #[must_use]
    pub const fn seconds(self) -> u64 {
        self.0
    }

    /// The length as the standard library has it.
    #[must_use]
    pub const fn duration(self) -> Duration {
        Duration::from_secs(self.0)
    }
}

impl FromStr for Span {
    type Err = SpanError;

    fn from_str(text: &str) -> Result<Self, SpanError> {
        let wrong = || SpanError(text.chars().take(40).collect());
        let (digits, unit) = UNITS
            .iter()
            .find_map(|&(letter, unit)| Some((text.strip_suffix(letter)?, unit)))
            .ok_or_else(wrong)?;
        if !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(wrong());
        }
        let seconds = digits.parse::<u64>().ok().and_then(|count| count.checked_mul(unit));
        seconds.map(Self).ok_or_else(wrong)
    }
}

impl TryFrom<String> for Span {
    type Error = SpanError;

    fn try_from(text: String) -> Result<Self, SpanError> {
        text.parse()
    }
}

impl From<Span> for String {
    fn from(span: Span) -> Self {
        span.to_string()
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fitting =
            UNITS.iter().find(|(_, unit)| self.0 >= *unit && self.0.is_multiple_of(*unit));
        let (letter, unit) = fitting.copied().unwrap_or(('s', 1));
        f.pad(&format!("{}{letter}", self.0 / unit))
    }
}

/// How long a reservation is kept after its last attachment ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Retention {
    /// Until an operator releases it.
    Forever,
    /// This long.
    For(Span),
}

impl FromStr for Retention {
    type Err = SpanError;

    fn from_str(text: &str) -> Result<Self, SpanError> {
        if text == "forever" { Ok(Self::Forever) } else { text.parse().map(Self::For) }
    }
}

impl TryFrom<String> for Retention {
    type Error = SpanError;

    fn try_from(text: String) -> Result<Self, SpanError> {
        text.parse()
    }
}

impl From<Retention> for String {
    fn from(retention: Retention) -> Self {
        retention.to_string()
    }
}

impl fmt::Display for Retention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forever => f.pad("forever"),
            Self::For(span) => span.fmt(f),
        }
    }
}

/// How long something is waited for before it is done, or that it never is: `60s`, `never`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum After {
    /// It is not done.
    Never,
    /// This long.
    For(Span),
}

impl FromStr for After {
    type Err = SpanError;

    fn from_str(text: &str) -> Result<Self, SpanError> {
        if text == "never" { Ok(Self::Never) } else { text.parse().map(Self::For) }
    }
}

impl TryFrom<String> for After {
    type Error = SpanError;

    fn try_from(text: String) -> Result<Self, SpanError> {
        text.parse()
    }
}

impl From<After> for String {
    fn from(after: After) -> Self {
        after.to_string()
    }
}

impl fmt::Display for After {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Never => f.pad("never"),
            Self::For(span) => span.fmt(f),
        }
    }
}

/// A point in fleet time: seconds for which controllers of this store have been running.
///
/// It stands still while no controller runs and knows nothing of wall clocks, so that a clock set wrong or a
/// weekend without a controller takes nobody's address away.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct FleetTime(pub u64);

impl FleetTime {
    /// The point `span` later.
    #[must_use]
    pub fn plus(self, span: Span) -> Self {
        Self(self.0.saturating_add(span.0))
    }

    /// How long it is from `earlier` to this point; nothing if it is the later one.
    #[must_use]
    pub fn since(self, earlier: Self) -> Span {
        Span(self.0.saturating_sub(earlier.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_read_as_it_is_printed() {
        for text in ["0s", "90s", "15m", "12h", "7d", "61s"] {
            assert_eq!(text.parse::<Span>().unwrap().to_string(), text);
        }
        assert_eq!("3600s".parse::<Span>().unwrap().to_string(), "1h");
        for wrong in
            ["", "s", "7", "-1s", "+1s", "1 d", "1w", "1.5h", "99999999999999999999s", "forever"]
        {
            assert!(wrong.parse::<Span>().is_err(), "{wrong}");
        }
        assert_eq!("forever".parse::<Retention>().unwrap(), Retention::Forever);
        assert_eq!("7d".parse::<Retention>().unwrap().to_string(), "7d");
    }
}

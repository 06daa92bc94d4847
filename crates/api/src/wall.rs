//! Pure: points in wall-clock time, as people search by them: RFC 3339, in UTC.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

const DAY: i64 = 86_400;

/// The last year that RFC 3339 has digits for.
const LAST_YEAR: i64 = 9_999;

/// A text is not a point in time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a date and time such as 2026-11-20T14:05, 2026-11-20T14:05:07Z or 2026-11-20T14:05:07+01:00"
)]
pub struct WallTimeError(pub String);

/// A point in wall-clock time, in whole seconds since 1970; written as RFC 3339 in UTC.
///
/// It is what a controller's clock said and serves only to be searched by: no decision depends on it,
/// since a wall clock can be set wrong. Texts without an offset are taken for UTC, seconds may be left out.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(try_from = "String", into = "String")]
pub struct WallTime(i64);

impl WallTime {
    /// The point this many seconds after the beginning of 1970, or the nearest that can be written.
    #[must_use]
    pub fn from_seconds(seconds: i64) -> Self {
        Self(seconds.clamp(days_before(0, 1, 1) * DAY, days_before(LAST_YEAR + 1, 1, 1) * DAY - 1))
    }

    /// The seconds since the beginning of 1970.
    #[must_use]
    pub fn seconds(self) -> i64 {
        self.0
    }
}

/// The days from 1970-01-01 to this date of the Gregorian calendar.
///
/// Years begin in March here, so that the day that leap years have more is the last one.
fn days_before(year: i64, month: i64, day: i64) -> i64 {
    let year = if month > 2 { year } else { year - 1 };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// Year, month and day of the date this many days after 1970-01-01.
fn date_after(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + i64::from(month <= 2), month, day)
}

/// Takes the numbers at the beginning of a text that is digits where `pattern` has `0`.
fn numbers<'a>(text: &'a str, pattern: &str) -> Option<(Vec<i64>, &'a str)> {
    let (head, rest) = text.split_at_checked(pattern.len())?;
    let fits = |(c, p): (u8, u8)| if p == b'0' { c.is_ascii_digit() } else { c == p };
    if !head.bytes().zip(pattern.bytes()).all(fits) {
        return None;
    }
    let numbers = head.split(|c: char| !c.is_ascii_digit()).filter(|part| !part.is_empty());
    Some((numbers.map(str::parse).collect::<Result<_, _>>().ok()?, rest))
}

fn parse(text: &str) -> Option<WallTime> {
    let (date, rest) = numbers(text, "0000-00-00")?;
    let &[year, month, day] = &date[..] else { return None };
    let days = days_before(year, month, day);
    if !(1..=12).contains(&month) || date_after(days) != (year, month, day) {
        return None;
    }
    let rest = rest.strip_prefix(['T', 't', ' '])?;
    let (time, rest) = numbers(rest, "00:00")?;
    let &[hour, minute] = &time[..] else { return None };
    let (second, rest) = match numbers(rest, ":00") {
        Some((second, rest)) => (*second.first()?, rest),
        None => (0, rest),
    };
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let seconds = days * DAY + hour * 3_600 + minute * 60 + second - offset(rest)?;
    let time = WallTime::from_seconds(seconds);
    (time.0 == seconds).then_some(time)
}

/// The seconds by which a place's clock is ahead of UTC.
fn offset(text: &str) -> Option<i64> {
    if matches!(text, "" | "Z" | "z") {
        return Some(0);
    }
    let sign = match text.chars().next()? {
        '+' => 1,
        '-' => -1,
        _ => return None,
    };
    let (offset, rest) = numbers(text.get(1..)?, "00:00")?;
    let &[hours, minutes] = &offset[..] else { return None };
    (rest.is_empty() && hours <= 23 && minutes <= 59)
        .then_some(sign * (hours * 3_600 + minutes * 60))
}

impl FromStr for WallTime {
    type Err = WallTimeError;

    fn from_str(text: &str) -> Result<Self, WallTimeError> {
        parse(text).ok_or_else(|| WallTimeError(text.chars().take(40).collect()))
    }
}

impl TryFrom<String> for WallTime {
    type Error = WallTimeError;

    fn try_from(text: String) -> Result<Self, WallTimeError> {
        text.parse()
    }
}

impl From<WallTime> for String {
    fn from(time: WallTime) -> Self {
        let (year, month, day) = date_after(time.0.div_euclid(DAY));
        let second = time.0.rem_euclid(DAY);
        let mut text = Self::with_capacity(20);
        for (number, digits, after) in [
            (year, 4, '-'),
            (month, 2, '-'),
            (day, 2, 'T'),
            (second / 3_600, 2, ':'),
            (second / 60 % 60, 2, ':'),
            (second % 60, 2, 'Z'),
        ] {
            let of = |place| u32::try_from(number / 10_i64.pow(place) % 10).unwrap_or_default();
            let digits = (0..digits).rev().map(of);
            text.extend(digits.filter_map(|digit| char::from_digit(digit, 10)));
            text.push(after);
        }
        text
    }
}

impl fmt::Display for WallTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&String::from(*self))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seconds(text: &str) -> i64 {
        text.parse::<WallTime>().unwrap().seconds()
    }

    #[test]
    fn known_points_are_where_they_are() {
        assert_eq!(seconds("1970-01-01T00:00:00Z"), 0);
        assert_eq!(seconds("2000-02-29T12:00"), 951_825_600);
        assert_eq!(seconds("2026-11-20T14:05:07Z"), 1_795_183_507);
        assert_eq!(seconds("2026-11-20 15:05:07+01:00"), 1_795_183_507);
        assert_eq!(seconds("2026-11-20t13:35:07-00:30"), 1_795_183_507);
        assert_eq!(WallTime::from_seconds(i64::MAX).to_string(), "9999-12-31T23:59:59Z");
        assert_eq!(WallTime::from_seconds(i64::MIN).to_string(), "0000-01-01T00:00:00Z");
    }

    #[test]
    fn what_is_no_point_in_time_is_refused() {
        for wrong in [
            "",
            "2026-11-20",
            "2026-11-20T14",
            "2026-11-20T14:05:0",
            "2026-11-20T24:00",
            "2026-11-20T14:60",
            "2026-11-20T14:05:60",
            "2026-13-01T00:00",
            "2026-00-01T00:00",
            "2025-02-29T00:00",
            "2026-04-31T00:00",
            "2026-11-20T14:05:07ZZ",
            "2026-11-20T14:05+1:00",
            "+026-11-20T14:05",
            "0000-01-01T00:00+01:00",
            "\u{ff12}026-11-20T14:05",
        ] {
            assert!(wrong.parse::<WallTime>().is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn a_point_is_read_as_it_is_written_and_sorts_as_its_text(a: i64, b in -99_i64..99) {
            let a = WallTime::from_seconds(a % 400_000_000_000);
            let b = WallTime::from_seconds(a.seconds() + b);
            prop_assert_eq!(a.to_string().parse(), Ok(a));
            prop_assert_eq!(a.cmp(&b), a.to_string().cmp(&b.to_string()));
        }
    }
}

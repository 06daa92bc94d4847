//! Pure: which one record is meant by what the operator typed.

use std::fmt;

use crate::table::plural;

/// How many candidates a message lists.
const SHOWN: usize = 5;

/// What was typed does not mean exactly one record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FindError {
    /// Nothing fits.
    #[error("there is no {what} {wanted:?}")]
    Nothing {
        /// The kind of record.
        what: &'static str,
        /// What was typed.
        wanted: String,
    },
    /// Several fit.
    #[error("{} fit {wanted:?}: {}", plural(*.count, .what), .candidates.join("; "))]
    Several {
        /// The kind of record.
        what: &'static str,
        /// What was typed.
        wanted: String,
        /// How many there are.
        count: usize,
        /// The first of them, described.
        candidates: Vec<String>,
    },
}

/// Returns the only one of `found`.
///
/// # Errors
///
/// [`FindError`], which describes the candidates with their `Display`.
pub(crate) fn only<T: fmt::Display>(
    what: &'static str,
    wanted: &str,
    mut found: Vec<T>,
) -> Result<T, FindError> {
    let wanted = wanted.to_owned();
    if found.len() > 1 {
        let mut candidates: Vec<String> =
            found.iter().take(SHOWN).map(ToString::to_string).collect();
        if found.len() > SHOWN {
            candidates.push("\u{2026}".to_owned());
        }
        return Err(FindError::Several { what, wanted, count: found.len(), candidates });
    }
    found.pop().ok_or(FindError::Nothing { what, wanted })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_candidates_are_all_named_up_to_five() {
        let found = |n: u32| only("host", "h", (0..n).collect()).map_err(|e| e.to_string());
        assert_eq!(found(1), Ok(0));
        assert_eq!(found(0).unwrap_err(), "there is no host \"h\"");
        assert_eq!(found(2).unwrap_err(), "2 hosts fit \"h\": 0; 1");
        assert_eq!(found(7).unwrap_err(), "7 hosts fit \"h\": 0; 1; 2; 3; 4; \u{2026}");
    }
}

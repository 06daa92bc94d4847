//! Pure: the names of things, each checked once when it is made.

use std::fmt;
use std::str::FromStr;

use arcstr::ArcStr;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::parsed;
use crate::text::shared;

/// Why a text is not a name of its kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No character at all.
    #[error("a {what} is empty")]
    Empty {
        /// What the name would have named.
        what: &'static str,
    },
    /// Longer than such a name may be.
    #[error("{what} {text:?}… is {length} characters long, at most {most} are allowed")]
    TooLong {
        /// What the name would have named.
        what: &'static str,
        /// The beginning of the text.
        text: String,
        /// How many characters it has.
        length: usize,
        /// How many are allowed.
        most: usize,
    },
    /// A character that such a name cannot have, or not in that place.
    #[error("{what} {text:?} has {found:?} at position {position}; allowed are {allowed}")]
    Character {
        /// What the name would have named.
        what: &'static str,
        /// The text.
        text: String,
        /// The character that is not allowed.
        found: char,
        /// Its position, counted in characters from 1.
        position: usize,
        /// What is allowed, in words.
        allowed: &'static str,
    },
    /// A name that the system keeps for itself.
    #[error("{what} {text:?} is reserved: choose another")]
    Reserved {
        /// What the name would have named.
        what: &'static str,
        /// The text.
        text: String,
    },
}

/// The rule of one kind of name.
struct Rule {
    what: &'static str,
    most: usize,
    allowed: &'static str,
    first: fn(char) -> bool,
    inner: fn(char) -> bool,
    last: fn(char) -> bool,
    reserved: &'static [&'static str],
}

impl Rule {
    /// Whether the text obeys the rule. All that is allowed anywhere is ASCII.
    fn fits(&self, text: &str) -> bool {
        let [first, .., last] = text.as_bytes() else { return false };
        text.len() <= self.most
            && (self.first)(char::from(*first))
            && (self.last)(char::from(*last))
            && text.bytes().all(|byte| byte.is_ascii() && (self.inner)(char::from(byte)))
            && !self.reserved.contains(&text)
    }

    fn check(&self, text: &str) -> Result<(), NameError> {
        let what = self.what;
        if self.fits(text) {
            return Ok(());
        }
        let length = text.chars().count();
        if length == 0 {
            return Err(NameError::Empty { what });
        }
        if length > self.most {
            let text = text.chars().take(32).collect();
            return Err(NameError::TooLong { what, text, length, most: self.most });
        }
        for (at, found) in text.chars().enumerate() {
            let fits = (self.inner)(found)
                && (at > 0 || (self.first)(found))
                && (at + 1 < length || (self.last)(found));
            if !fits {
                let (text, position) = (text.to_owned(), at + 1);
                return Err(NameError::Character {
                    what,
                    text,
                    found,
                    position,
                    allowed: self.allowed,
                });
            }
        }
        if self.reserved.contains(&text) {
            return Err(NameError::Reserved { what, text: text.to_owned() });
        }
        Ok(())
    }
}

fn alphanumeric(c: char) -> bool {
    c.is_ascii_alphanumeric()
}

fn lower_alphanumeric(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit()
}

fn label(c: char) -> bool {
    lower_alphanumeric(c) || c == '-'
}

fn word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')
}

fn word_start(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// Defines a name: a text that obeys a [`Rule`], parsed on the way in, also from JSON. It is as large
/// as a pointer, and a clone of it costs nothing.
macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $rule:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(ArcStr);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                const RULE: Rule = $rule;
                RULE.check(text)?;
                Ok(Self(shared(text)))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                parsed::deserialize(from)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

const LABEL: &str = "a-z, 0-9 and, inside, '-'";
const WORD: &str = "A-Z, a-z, 0-9, '_', '.' and '-', the first of them alphanumeric";

name!(
    /// The name of a host: a DNS label or several joined by dots, lower case, at most 253 characters.
    HostName,
    Rule {
        what: "host name",
        most: 253,
        allowed: "a-z, 0-9 and, inside, '-' and '.'",
        first: lower_alphanumeric,
        inner: |c| label(c) || c == '.',
        last: lower_alphanumeric,
        reserved: &[],
    }
);

name!(
    /// The name of an overlay network: a DNS label (RFC 1123), at most 63 characters.
    NetworkName,
    Rule {
        what: "network name",
        most: 63,
        allowed: LABEL,
        first: lower_alphanumeric,
        inner: label,
        last: lower_alphanumeric,
        reserved: &[],
    }
);

name!(
    /// The name of a pool: a DNS label (RFC 1123), at most 63 characters.
    PoolName,
    Rule {
        what: "pool name",
        most: 63,
        allowed: LABEL,
        first: lower_alphanumeric,
        inner: label,
        last: lower_alphanumeric,
        reserved: &[],
    }
);

name!(
    /// The namespace of a workload; `_` is the one of callers that have none. At most 253 characters.
    Namespace,
    Rule {
        what: "namespace",
        most: 253,
        allowed: "A-Z, a-z, 0-9, '_', '.' and '-', the first of them alphanumeric or '_'",
        first: word_start,
        inner: word,
        last: word,
        reserved: &[],
    }
);

impl Default for Namespace {
    /// `_`: the namespace of callers that have none.
    fn default() -> Self {
        Self(arcstr::literal!("_"))
    }
}

name!(
    /// The hostname of a workload: what a reservation is kept for. At most 253 characters.
    WorkloadName,
    Rule {
        what: "workload name",
        most: 253,
        allowed: WORD,
        first: alphanumeric,
        inner: word,
        last: word,
        reserved: &[],
    }
);

name!(
    /// The ID that a container runtime gave to a container (CNI specification, section 2). At most 253 characters.
    ContainerId,
    Rule {
        what: "container ID",
        most: 253,
        allowed: WORD,
        first: alphanumeric,
        inner: word,
        last: word,
        reserved: &[],
    }
);

name!(
    /// The label of the runtime that a CNI configuration is for; garbage collection speaks for one of them.
    RuntimeName,
    Rule {
        what: "runtime name",
        most: 63,
        allowed: WORD,
        first: alphanumeric,
        inner: word,
        last: word,
        reserved: &[],
    }
);

impl Default for RuntimeName {
    fn default() -> Self {
        Self(arcstr::literal!("default"))
    }
}

name!(
    /// The name of a network interface, at most 15 bytes (`IFNAMSIZ` less one; kernel `dev_valid_name`).
    IfName,
    Rule {
        what: "interface name",
        most: 15,
        allowed: "visible ASCII characters but '/' and ':'",
        first: |c| c.is_ascii_graphic(),
        inner: |c| c.is_ascii_graphic() && c != '/' && c != ':',
        last: |c| c.is_ascii_graphic(),
        reserved: &[".", "..", "all", "default"],
    }
);

name!(
    /// The key of a host's label: as a workload's name, with `/` allowed inside. At most 253 characters.
    LabelKey,
    Rule {
        what: "label key",
        most: 253,
        allowed: "A-Z, a-z, 0-9, '_', '.', '-' and, inside, '/'",
        first: alphanumeric,
        inner: |c| word(c) || c == '/',
        last: alphanumeric,
        reserved: &[],
    }
);

name!(
    /// A pattern over workload names: `*` stands for any number of characters, `?` for one.
    NameGlob,
    Rule {
        what: "name pattern",
        most: 253,
        allowed: "A-Z, a-z, 0-9, '_', '.', '-', '*' and '?'",
        first: |_| true,
        inner: |c| word(c) || c == '*' || c == '?',
        last: |_| true,
        reserved: &[],
    }
);

impl NameGlob {
    /// Whether `name` matches the whole pattern. Takes time in the product of both lengths at most.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let (pattern, name) = (self.0.as_bytes(), name.as_bytes());
        let (mut p, mut n) = (0, 0);
        // Where to go on after the last `*`: in the pattern behind it, in the name one further than before.
        let mut retry = None;
        while n < name.len() {
            match pattern.get(p) {
                Some(b'*') => {
                    retry = Some((p + 1, n));
                    p += 1;
                }
                Some(&c) if c == b'?' || c == name[n] => {
                    p += 1;
                    n += 1;
                }
                _ => match retry {
                    Some((after, from)) => {
                        p = after;
                        n = from + 1;
                        retry = Some((after, n));
                    }
                    None => return false,
                },
            }
        }
        pattern[p..].iter().all(|&c| c == b'*')
    }
}

impl WorkloadName {
    /// Whether the name ends in `-<ordinal>`, as those of stateful workloads do: `web-0`, `db-12`.
    ///
    /// An ordinal has at most four digits and no leading zero, so that neither a date nor a hash that
    /// happens to be numeric is taken for one.
    #[must_use]
    pub fn has_ordinal(&self) -> bool {
        self.0.rsplit_once('-').is_some_and(|(stem, digits)| {
            !stem.is_empty()
                && (1..=4).contains(&digits.len())
                && digits.bytes().all(|b| b.is_ascii_digit())
                && (digits == "0" || !digits.starts_with('0'))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused<T: FromStr<Err = NameError> + fmt::Debug>(text: &str) -> String {
        text.parse::<T>().unwrap_err().to_string()
    }

    #[test]
    fn a_name_says_what_is_wrong_with_it_and_where() {
        assert_eq!(refused::<NetworkName>(""), "a network name is empty");
        assert_eq!(
            refused::<NetworkName>("a/b"),
            "network name \"a/b\" has '/' at position 2; allowed are a-z, 0-9 and, inside, '-'"
        );
        assert!(refused::<PoolName>("a b").contains("' ' at position 2"));
        assert!(refused::<PoolName>("b\u{e4}r").contains("'\u{e4}' at position 2"));
        assert!(
            refused::<WorkloadName>(&"x".repeat(300))
                .contains("is 300 characters long, at most 253")
        );
        assert!(refused::<PoolName>("-a").contains("position 1"));
        assert!(refused::<PoolName>("a-").contains("position 2"));
        assert!(refused::<IfName>("..").contains("reserved"));
        assert!(refused::<IfName>("sixteencharsname").contains("at most 15"));
        assert!(refused::<ContainerId>("_a").contains("position 1"));
    }

    #[test]
    fn names_that_runtimes_use_are_names() {
        for name in ["web-0", "Web_1.a", "0"] {
            assert_eq!(name.parse::<WorkloadName>().unwrap().as_str(), name);
        }
        assert_eq!(Namespace::default(), "_".parse().unwrap());
        assert!("kube-system".parse::<Namespace>().is_ok());
        assert!("node-a.example.net".parse::<HostName>().is_ok());
        assert!("eth0@x".parse::<IfName>().is_ok());
    }

    #[test]
    fn json_is_checked_like_text() {
        assert!(serde_json::from_str::<PoolName>("\"a/b\"").is_err());
        assert_eq!(serde_json::from_str::<PoolName>("\"p\"").unwrap().as_str(), "p");
    }

    #[test]
    fn an_ordinal_has_at_most_four_digits_and_no_leading_zero() {
        let ordinal = |name: &str| name.parse::<WorkloadName>().unwrap().has_ordinal();
        for name in ["web-0", "db-12", "a-b-9999"] {
            assert!(ordinal(name), "{name}");
        }
        for name in ["web", "web-", "web-01", "web-10000", "web-7f9", "0"] {
            assert!(!ordinal(name), "{name}");
        }
    }

    #[test]
    fn a_glob_matches_whole_names() {
        let glob = |pattern: &str, name| pattern.parse::<NameGlob>().unwrap().matches(name);
        assert!(glob("web-*", "web-0"));
        assert!(glob("*", ""));
        assert!(glob("w?b*0", "web-10"));
        assert!(glob("*a*b", "xaayb"));
        assert!(!glob("web-*", "my-web-0"));
        assert!(!glob("web", "web-0"));
        assert!(!glob("?", ""));
    }
}

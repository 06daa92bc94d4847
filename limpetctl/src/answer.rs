//! Pure: answers, kept as they came beside what this version reads of them.

use limpet_api::Listing;
use limpet_api::book::Released;
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use crate::cli::Output;
use crate::table;

/// A record as the controller gave it, and as this version reads it.
///
/// `-o json` prints the former, so that a field of a newer controller's reaches programs through an older
/// `limpetctl`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Answer<T> {
    json: Value,
    pub(crate) record: T,
}

/// All records of a kind.
pub(crate) type Answers<T> = Listing<Answer<T>>;

impl<T> Answer<T> {
    /// The revision that the controller gave with the record; 0 if it gave none.
    pub(crate) fn revision(&self) -> limpet_api::Revision {
        self.json.get("revision").and_then(Value::as_u64).unwrap_or_default()
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Answer<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let json = Value::deserialize(deserializer)?;
        let record = T::deserialize(&json).map_err(D::Error::custom)?;
        Ok(Self { json, record })
    }
}

impl<T> Serialize for Answer<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.json.serialize(serializer)
    }
}

/// The text of `-o json`: indented, keys sorted, one line feed at the end.
pub(crate) fn json(answer: &impl Serialize) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(answer)? + "\n")
}

/// What a deletion prints: for people that it is done, for programs what was answered, which may be nothing.
pub(crate) fn gone(answer: Option<&Value>, done: &str, output: Output) -> anyhow::Result<String> {
    match (output, answer.filter(|answer| !answer.is_null())) {
        (Output::Table, _) => Ok(format!("{done}\n")),
        (Output::Json, None) => Ok(String::new()),
        (Output::Json, Some(answer)) => json(answer),
    }
}

/// What a release of `what` prints: the addresses too, where the controller that did it answered.
pub(crate) fn released(
    answer: Option<&Answer<Released>>,
    what: &str,
    output: Output,
) -> anyhow::Result<String> {
    match (output, answer) {
        (Output::Table, Some(released)) => {
            Ok(format!("{what} is released: {}\n", table::list(&released.record.addresses)))
        }
        (Output::Table, None) => Ok(format!("{what} is released\n")),
        (Output::Json, Some(released)) => json(released),
        (Output::Json, None) => Ok(String::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use limpet_api::config::Network;

    #[test]
    fn a_field_of_tomorrow_is_printed_as_it_came() {
        let text =
            r#"{"items":[{"name":"n","vni":1,"index":1,"port":4789,"new":[1]}],"revision":7}"#;
        let answers: Answers<Network> = serde_json::from_str(text).unwrap();
        assert_eq!(answers.items[0].record.name.as_str(), "n");
        let printed: Value = serde_json::from_str(&json(&answers).unwrap()).unwrap();
        assert_eq!(printed, serde_json::from_str::<Value>(text).unwrap());
    }

    #[test]
    fn a_record_that_breaks_a_rule_is_no_answer() {
        let text = r#"{"items":[{"name":"a b","vni":1,"index":1,"port":1}],"revision":7}"#;
        assert!(serde_json::from_str::<Answers<Network>>(text).is_err());
    }
}

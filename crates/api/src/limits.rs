//! Pure: limits of texts that are nobody's names: checked when a request is read.

use std::collections::BTreeMap;

use limpet_net_types::LabelKey;
use serde::Deserialize;
use serde::de::{Deserializer, Error};

/// The longest path of a network namespace, in bytes: the kernel opens none that is longer (`PATH_MAX`).
const MOST_PATH: usize = 4096;

/// The longest value of a label, in characters.
const MOST_LABEL: usize = 253;

/// Reads the path of a network namespace.
pub(crate) fn netns<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let path = String::deserialize(from)?;
    if path.len() > MOST_PATH {
        let text = format!("netns has {} bytes, at most {MOST_PATH} are allowed", path.len());
        return Err(Error::custom(text));
    }
    if let Some(at) = path.chars().position(char::is_control) {
        return Err(Error::custom(format!("netns has a control character at position {}", at + 1)));
    }
    Ok(path)
}

/// Reads labels.
pub(crate) fn labels<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<BTreeMap<LabelKey, String>, D::Error> {
    let labels = BTreeMap::deserialize(from)?;
    check(&labels).map_err(Error::custom)?;
    Ok(labels)
}

/// Reads labels that may be left out.
pub(crate) fn labels_if_any<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<BTreeMap<LabelKey, String>>, D::Error> {
    let labels = Option::deserialize(from)?;
    labels.as_ref().map_or(Ok(()), check).map_err(Error::custom)?;
    Ok(labels)
}

fn check(labels: &BTreeMap<LabelKey, String>) -> Result<(), String> {
    for (key, value) in labels {
        let length = value.chars().count();
        if length > MOST_LABEL {
            return Err(format!(
                "label {key} has a value of {length} characters, at most {MOST_LABEL} are allowed"
            ));
        }
        if let Some(at) = value.chars().position(char::is_control) {
            return Err(format!(
                "label {key} has a value with a control character at position {}",
                at + 1
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::config::{HostChange, HostSpec, Select};
    use crate::host::Wanted;

    #[test]
    fn a_path_that_cannot_be_one_is_refused() {
        let read = |path: String| serde_json::from_value::<Wanted>(json!({ "netns": path }));
        read("x".repeat(4096)).unwrap();
        let error = read("x".repeat(4097)).unwrap_err().to_string();
        assert_eq!(error, "netns has 4097 bytes, at most 4096 are allowed");
        let error = read("/run\n".to_owned()).unwrap_err().to_string();
        assert_eq!(error, "netns has a control character at position 5");
    }

    #[test]
    fn the_value_of_a_label_has_a_limit_wherever_labels_are() {
        let labels = |value: &str| json!({ "rack": value });
        let (long, odd) = ("x".repeat(254), "a\u{1b}");
        for (value, words) in [
            (long.as_str(), "label rack has a value of 254 characters, at most 253 are allowed"),
            (odd, "label rack has a value with a control character at position 2"),
        ] {
            let spec = serde_json::from_value::<HostSpec>(json!({ "labels": labels(value) }));
            assert_eq!(spec.unwrap_err().to_string(), words);
            let change = serde_json::from_value::<HostChange>(json!({ "labels": labels(value) }));
            assert_eq!(change.unwrap_err().to_string(), words);
            let select = serde_json::from_value::<Select>(json!({ "host_labels": labels(value) }));
            assert_eq!(select.unwrap_err().to_string(), words);
        }
        let spec = serde_json::from_value::<HostSpec>(json!({ "labels": labels(&long[1..]) }));
        spec.unwrap();
        assert_eq!(serde_json::from_value::<HostChange>(json!({})).unwrap().labels, None);
    }
}

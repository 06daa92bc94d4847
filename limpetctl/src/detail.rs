//! Pure: what an error says besides its sentence: who has the addresses of a full pool, and what could be released.

use limpet_api::ErrorCode;
use limpet_api::client::ClientError;
use serde_json::Value;

/// Lines for people, none where there is nothing to add.
pub(crate) fn of(error: &anyhow::Error) -> Vec<String> {
    let refused = error.chain().find_map(|cause| match cause.downcast_ref::<ClientError>() {
        Some(ClientError::Refused(refused)) if refused.code == ErrorCode::PoolFull => Some(refused),
        _ => None,
    });
    let Some(refused) = refused else { return Vec::new() };
    let others = refused.details.get("others").and_then(Value::as_array);
    std::iter::once(&refused.details).chain(others.into_iter().flatten()).flat_map(pool).collect()
}

fn pool(pool: &Value) -> Vec<String> {
    let name = text(pool, "pool");
    let by = list(pool, "by", |one| {
        let held = one.get("held").and_then(Value::as_u64).unwrap_or_default();
        let reserved = one.get("reserved").and_then(Value::as_u64).unwrap_or_default();
        format!("{} ({held} held, {reserved} reserved)", text(one, "namespace"))
    });
    let detached = list(pool, "detached", |one| {
        format!("{}/{} (for {})", text(one, "namespace"), text(one, "name"), text(one, "for"))
    });
    let by = by.map(|by| format!("pool {name}: most are of namespaces {by}"));
    let detached =
        detached.map(|detached| format!("pool {name}: longest reserved and not held: {detached}"));
    by.into_iter().chain(detached).collect()
}

fn list(value: &Value, name: &str, shown: impl Fn(&Value) -> String) -> Option<String> {
    let items: Vec<String> = value.get(name)?.as_array()?.iter().map(shown).collect();
    (!items.is_empty()).then(|| items.join(", "))
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or("?")
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;
    use limpet_api::ApiError;
    use serde_json::json;

    fn shown(code: ErrorCode, details: Value) -> Vec<String> {
        let refused = ClientError::from(ApiError::new(code, "full").with_details(details));
        of(&Err::<(), _>(refused).context("reserving").unwrap_err())
    }

    #[test]
    fn a_full_pool_says_who_has_it_and_what_could_be_released() {
        let details = json!({
            "pool": "p", "by": [{"namespace": "prod", "held": 7, "reserved": 2}, {"namespace": "_", "held": 1}],
            "detached": [{"namespace": "prod", "name": "web-0", "since": 60, "for": "3d"}],
            "others": [{"pool": "q", "by": [], "detached": []}, {"pool": "r", "by": [{"namespace": "test"}]}],
        });
        assert_eq!(
            shown(ErrorCode::PoolFull, details.clone()),
            [
                "pool p: most are of namespaces prod (7 held, 2 reserved), _ (1 held, 0 reserved)",
                "pool p: longest reserved and not held: prod/web-0 (for 3d)",
                "pool r: most are of namespaces test (0 held, 0 reserved)",
            ]
        );
        assert!(shown(ErrorCode::NoPool, details).is_empty());
        assert!(shown(ErrorCode::PoolFull, Value::Null).is_empty(), "an older controller's");
    }
}

//! Pure: what docs/api.md says, held against the types and paths of the API.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise, its helpers too")]

use limpet_api::book::{Attachment, Released, Rename, Reservation, ReservationSpec, Swept};
use limpet_api::config::{
    HostSpec, HostStatus, Network, NetworkChange, NetworkSpec, PoolSpec, PoolUse,
};
use limpet_api::history::History;
use limpet_api::holding::{Holding, PoolReleased};
use limpet_api::host::{
    ClaimRequest, Heartbeat, ReassertRequest, Reasserted, Report, SessionRequest, WatchLine,
};
use limpet_api::quota::{QuotaSpec, QuotaUse};
use limpet_api::socket::{Attach, GcRequest, Readiness};
use limpet_api::{ApiError, ErrorCode};
use limpet_api::{Listing, Versioned};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

const MANUAL: &str = include_str!("../../../docs/api.md");

/// The manual's examples: the type that each names, and its text.
fn examples() -> Vec<(&'static str, &'static str)> {
    MANUAL
        .split("```json ")
        .skip(1)
        .map(|rest| {
            let (kind, rest) = rest.split_once('\n').unwrap();
            (kind, rest.split("\n```").next().unwrap())
        })
        .collect()
}

/// Reads an example as `T` and returns what is left of it when it is written again.
fn written_again<T: DeserializeOwned + Serialize>(text: &str) -> Result<Value, serde_json::Error> {
    serde_json::to_value(serde_json::from_str::<T>(text)?)
}

#[test]
fn every_example_is_of_the_type_that_it_names_and_has_no_field_besides() {
    let examples = examples();
    assert!(examples.len() > 15, "{}", examples.len());
    for (kind, text) in examples {
        let again = match kind {
            "ApiError" => written_again::<ApiError>(text),
            "Attach" => written_again::<Attach>(text),
            "Attachment" => written_again::<Versioned<Attachment>>(text),
            "ClaimRequest" => written_again::<ClaimRequest>(text),
            "GcRequest" => written_again::<GcRequest>(text),
            "Heartbeat" => written_again::<Heartbeat>(text),
            "History" => written_again::<History>(text),
            "Holding" => written_again::<Holding>(text),
            "HostSpec" => written_again::<HostSpec>(text),
            "HostStatus" => written_again::<Versioned<HostStatus>>(text),
            "Listing" => written_again::<Listing<Value>>(text),
            "Network" => written_again::<Versioned<Network>>(text),
            "NetworkChange" => written_again::<NetworkChange>(text),
            "NetworkSpec" => written_again::<NetworkSpec>(text),
            "PoolReleased" => written_again::<PoolReleased>(text),
            "PoolSpec" => written_again::<PoolSpec>(text),
            "PoolUse" => written_again::<Versioned<PoolUse>>(text),
            "QuotaSpec" => written_again::<QuotaSpec>(text),
            "QuotaUse" => written_again::<Versioned<QuotaUse>>(text),
            "Readiness" => written_again::<Readiness>(text),
            "ReassertRequest" => written_again::<ReassertRequest>(text),
            "Reasserted" => written_again::<Reasserted>(text),
            "Released" => written_again::<Released>(text),
            "Rename" => written_again::<Rename>(text),
            "Report" => written_again::<Report>(text),
            "Reservation" => written_again::<Versioned<Reservation>>(text),
            "ReservationSpec" => written_again::<ReservationSpec>(text),
            "SessionRequest" => written_again::<SessionRequest>(text),
            "Swept" => written_again::<Swept>(text),
            "WatchLine" => written_again::<WatchLine>(text),
            other => panic!("docs/api.md: no type is called {other}"),
        };
        let again = again.unwrap_or_else(|error| panic!("docs/api.md, {kind}: {error}\n{text}"));
        let example: Value = serde_json::from_str(text).unwrap();
        let (Value::Object(example), Value::Object(again)) = (example, again) else {
            panic!("docs/api.md, {kind}: no object")
        };
        let lost: Vec<&String> = example.keys().filter(|key| !again.contains_key(*key)).collect();
        assert!(lost.is_empty(), "docs/api.md, {kind}: the type has no {lost:?}");
    }
}

#[test]
fn every_path_is_in_the_manual() {
    let source = include_str!("../src/paths.rs");
    let paths: Vec<&str> = source
        .lines()
        .filter(|line| line.trim_start().starts_with("pub const"))
        .map(|line| line.split('"').nth(1).unwrap())
        .collect();
    assert!(paths.len() > 15, "{paths:?}");
    for path in paths {
        assert!(MANUAL.contains(&format!("`{path}`")), "docs/api.md has no {path}");
    }
}

#[test]
fn every_code_that_the_manual_gives_as_an_error_exists() {
    for code in ["bad-request", "vni-taken", "outcome-unknown", "session-lost", "host-silent"] {
        assert!(
            MANUAL.contains(code) && ErrorCode::ALL.iter().any(|c| c.as_str() == code),
            "{code}"
        );
    }
}

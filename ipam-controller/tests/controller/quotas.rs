//! Edge: quotas over the API, as operators and hosts meet them.

use limpet_api::quota::QuotaUse;
use limpet_api::{ErrorCode, Listing, Versioned, paths};
use serde_json::{Value, json};

use crate::process::{Controller, place};

#[tokio::test]
async fn a_quota_is_set_shown_met_and_removed_and_outlives_the_process() {
    let (_dir, store) = place();
    let controller = Controller::start(&store);
    controller.fill().await;
    let host = controller.join("a", 1).await;
    let path = paths::quota(&"_".parse().unwrap());
    let missing = controller.get::<Value>(&path).await.unwrap_err();
    assert_eq!(missing.code, ErrorCode::QuotaNotFound);
    let bad = controller.put(&path, json!({ "addresses": -1 })).await.unwrap_err();
    assert_eq!(bad.code, ErrorCode::BadRequest);
    let set = controller.put(&path, json!({ "addresses": 3 })).await.unwrap();
    assert_eq!((&set["addresses"], &set["held"]), (&json!(3), &json!(0)));
    controller.claim(&host, 1, Some("web-0")).await.unwrap();
    let refused = controller.claim(&host, 2, None).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::QuotaExceeded);
    assert_eq!(refused.details["wanted"], 2, "one of each family");

    controller.kill();
    let controller = Controller::start(&store);
    let all: Listing<QuotaUse> = controller.get(paths::QUOTAS).await.unwrap();
    assert_eq!((all.items.len(), all.items[0].held), (1, 2));
    let shown: Versioned<QuotaUse> = controller.get(&path).await.unwrap();
    assert_eq!(shown.record, all.items[0]);
    controller.delete::<()>(&path).await.unwrap();
    let host = controller.join("a", 1).await;
    controller.claim(&host, 2, None).await.unwrap();
}

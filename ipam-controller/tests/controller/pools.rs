//! Edge: what becomes of a pool's reservations, over the API.

use limpet_api::book::Reservation;
use limpet_api::client::Method;
use limpet_api::holding::{Holding, PoolReleased};
use limpet_api::{ErrorCode, Listing, Versioned};
use serde_json::{Value, json};

use crate::process::{Controller, place};

#[tokio::test]
async fn a_pool_is_drained_emptied_and_removed() {
    let (_dir, store) = place();
    let controller = Controller::start(&store);
    controller.fill().await;
    let a = controller.join("a", 1).await;
    let held = controller.claim(&a, 1, Some("web-0")).await.unwrap().attachment;
    for n in 0..70 {
        controller.put(&format!("/v1/reservations/blue/prod/db-{n}"), json!({})).await.unwrap();
    }
    let draining = json!({ "state": "draining" });
    let path = "/v1/pools/p4";
    controller.ask::<Value>(Method::PATCH, path, &draining).await.unwrap();
    let error = controller.claim(&a, 2, Some("web-1")).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::NoPool);
    assert!(error.message.contains("p4 is draining"), "{error}");

    let left = format!("{path}/addresses");
    let all: Listing<Holding> = controller.get(&left).await.unwrap();
    assert_eq!((all.items.len(), all.next), (71, None));
    let page: Listing<Holding> = controller.get(&format!("{left}?limit=30")).await.unwrap();
    let next = page.next.unwrap();
    let rest: Listing<Holding> = controller.get(&format!("{left}?after={next}")).await.unwrap();
    assert_eq!(page.items.len() + rest.items.len(), 71);

    let release = format!("{path}/reservations");
    let dry: PoolReleased =
        controller.delete(&format!("{release}?dry_run=true&limit=256")).await.unwrap();
    assert_eq!((dry.released.len(), dry.next), (70, None));
    let none: PoolReleased =
        controller.delete(&format!("{release}?namespace=other&detached_for=0s")).await.unwrap();
    assert_eq!(none.released, []);
    let first: PoolReleased = controller.delete(&release).await.unwrap();
    assert_eq!(first.released.len(), 64, "as many as one request is to release");
    let next = first.next.unwrap();
    let last: PoolReleased = controller.delete(&format!("{release}?after={next}")).await.unwrap();
    assert_eq!((last.released.len(), last.next), (6, None));

    let kept: Listing<Reservation> = controller.get("/v1/reservations").await.unwrap();
    assert_eq!(kept.items.len(), 1, "what is held stays");
    let error = controller.delete::<Value>(path).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::PoolInUse);
    controller.end(&a, 1).await.unwrap();
    let last: PoolReleased = controller.delete(&release).await.unwrap();
    let theirs: Vec<_> = held.addresses.iter().map(|held| held.address).collect();
    assert_eq!(last.released[0].addresses, theirs);
    controller.delete::<()>(path).await.unwrap();
    for wrong in ["limit=0", "limit=257", "after=192.0.2.1", "detached_for=soon"] {
        let path = format!("/v1/pools/p6/reservations?{wrong}");
        let error = controller.delete::<Value>(&path).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::BadRequest, "{wrong}");
    }
    let error = controller.delete::<Value>(&release).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::PoolNotFound);
}

#[tokio::test]
async fn a_reservation_gets_another_name_unless_a_container_has_that() {
    let (_dir, store) = place();
    let controller = Controller::start(&store);
    controller.fill().await;
    let a = controller.join("a", 1).await;
    controller.put("/v1/reservations/blue/_/db", json!({ "retention": "30d" })).await.unwrap();
    controller.claim(&a, 1, Some("plain")).await.unwrap();
    let path = "/v1/reservations/blue/_/db/rename";
    let to = |name: &str| json!({ "namespace": "_", "name": name });
    let error = controller.ask::<Value>(Method::POST, path, &to("plain")).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::NameInUse);
    assert!(error.message.ends_with("in container c1 on host a"), "{error}");

    let renamed: Versioned<Reservation> =
        controller.ask(Method::POST, path, &to("web")).await.unwrap();
    assert_eq!(renamed.record.retention.to_string(), "30d");
    let error = controller.get::<Value>("/v1/reservations/blue/_/db").await.unwrap_err();
    assert_eq!(error.code, ErrorCode::ReservationNotFound);
    let claimed = controller.claim(&a, 2, Some("web")).await.unwrap().attachment;
    assert_eq!(claimed.addresses, renamed.record.addresses);
}

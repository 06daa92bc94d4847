//! Edge: what the API says to good and to bad requests.

use std::time::{Duration, Instant};

use limpet_api::book::{Attachment, Released, Reservation};
use limpet_api::client::Method;
use limpet_api::config::HostStatus;
use limpet_api::host::{
    Heartbeat, LEASE_SECONDS, OwnChange, PresentRequest, WatchEvent, WatchLine,
};
use limpet_api::{ErrorCode, Listing, Versioned, paths};
use limpet_net_types::Token;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::process::{Controller, key, place};

/// Sends bytes as they are, and returns all that comes back.
async fn raw(controller: &Controller, request: &str) -> String {
    let mut stream = TcpStream::connect(controller.address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer);
    tokio::time::timeout(Duration::from_secs(20), read).await.unwrap().unwrap();
    answer
}

fn request(method: &str, path: &str, kind: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: {kind}\r\n\
         content-length: {length}\r\n\r\n{body}"
    )
}

#[tokio::test]
async fn every_error_has_the_one_shape() {
    let (_dir, store) = place();
    let controller = Controller::start(&store);
    let (json, long) = ("application/json", "x".repeat(254));
    let cases = [
        (request("GET", "/v1/nothing", json, ""), 404, "not-found"),
        (request("GET", "/", json, ""), 404, "not-found"),
        (request("POST", "/v1/networks", json, ""), 405, "method-not-allowed"),
        (request("BREW", "/v1/networks/blue", json, ""), 405, "method-not-allowed"),
        (request("PUT", "/v1/networks/blue", json, ""), 400, "bad-request"),
        (request("PUT", "/v1/networks/blue", json, "{"), 400, "bad-request"),
        (request("PUT", "/v1/networks/blue", json, "[]"), 400, "bad-request"),
        (request("PUT", "/v1/networks/blue", json, " [7]"), 400, "bad-request"),
        (request("PUT", "/v1/networks/blue", json, "\u{e4}\u{0}"), 400, "bad-request"),
        (request("PUT", "/v1/networks/blue", "text/plain", "{}"), 400, "bad-request"),
        (request("PUT", "/v1/networks/blue", json, r#"{"vnii":1}"#), 400, "bad-request"),
        (request("PUT", "/v1/networks/blue", json, r#"{"vni":16777216}"#), 400, "bad-request"),
        (request("PUT", "/v1/networks/blue", json, r#"{"vni":0}"#), 400, "bad-request"),
        (request("PUT", "/v1/networks/a%2Fb", json, "{}"), 400, "bad-request"),
        (request("PUT", "/v1/networks/a%20b", json, "{}"), 400, "bad-request"),
        (request("PUT", "/v1/networks/b%C3%A4r", json, "{}"), 400, "bad-request"),
        (request("PUT", "/v1/networks/%FF", json, "{}"), 400, "bad-request"),
        (request("PUT", "/v1/networks/blue", json, &" ".repeat(2_000_000)), 413, "too-large"),
        (request("PUT", "/v1/networks/blue", json, &" ".repeat(9_000_000)), 413, "too-large"),
        (
            request("PUT", "/v1/hosts/h", json, &format!(r#"{{"labels":{{"a":"{long}"}}}}"#)),
            400,
            "bad-request",
        ),
        (request("GET", "/v1/networks/blue", json, ""), 404, "network-not-found"),
        (request("GET", "/v1/pools/p", json, ""), 404, "pool-not-found"),
        (request("GET", "/v1/hosts/h", json, ""), 404, "host-not-found"),
        (request("GET", "/v1/hosts/h/watch", json, ""), 404, "host-not-found"),
        (request("GET", "/v1/hosts/h/watch?since=1", json, ""), 400, "bad-request"),
        (request("GET", "/v1/hosts/h/watch?sinse=1", json, ""), 400, "bad-request"),
        (request("GET", "/v1/reservations?netwrok=x", json, ""), 400, "bad-request"),
        (request("DELETE", "/v1/reservations/n/_/web-0", json, ""), 404, "reservation-not-found"),
        (request("DELETE", "/v1/attachments/h/n/c/eth0", json, ""), 404, "attachment-not-found"),
    ];
    let long = format!("/v1/networks/{}", "x".repeat(300));
    let long = (request("PUT", &long, json, "{}"), 400, "bad-request");
    for (request, status, code) in cases.into_iter().chain([long]) {
        let answer = raw(&controller, &request).await;
        let shown: String = request.chars().take(80).collect();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{shown}: {answer}");
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        let body: Value =
            serde_json::from_str(body).unwrap_or_else(|_| panic!("{shown}: {answer}"));
        assert_eq!(body["code"], code, "{shown}: {body}");
        assert!(!body["message"].as_str().unwrap().is_empty());
    }
    let all: Listing<Value> = controller.get(paths::NETWORKS).await.unwrap();
    assert_eq!((all.items.len(), all.revision), (0, 1), "nothing was changed by any of it");
}

#[tokio::test]
async fn a_body_that_ends_early_is_not_called_large_and_a_slow_one_did_nothing() {
    let (_dir, store) = place();
    let controller = Controller::start(&store);
    let head = |length| {
        format!("PUT /v1/networks/blue HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n")
    };
    let mut broken = TcpStream::connect(controller.address).await.unwrap();
    broken.write_all((head(9) + "{").as_bytes()).await.unwrap();
    broken.shutdown().await.unwrap();
    let mut answer = String::new();
    broken.read_to_string(&mut answer).await.unwrap();
    assert!(!answer.contains("too-large"), "{answer}");

    let slow = raw(&controller, &(head(9) + "{")).await;
    assert!(slow.starts_with("HTTP/1.1 504 "), "{slow}");
    assert!(slow.contains("connection: close\r\n"), "{slow}");
    assert!(slow.contains("took longer than 10s to arrive; nothing was done"), "{slow}");
    let error = controller.get::<Value>("/v1/networks/blue").await.unwrap_err();
    assert_eq!(error.code, ErrorCode::NetworkNotFound);
}

#[tokio::test]
async fn an_answer_that_leaves_the_body_unread_says_that_the_connection_ends() {
    let (_dir, store) = place();
    let controller = Controller::start(&store);
    let request = |path: &str, body: &str| {
        let length = body.len();
        format!("PUT {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n{body}")
    };
    let unread = raw(&controller, &request("/v1/nothing", "{}")).await;
    assert!(unread.starts_with("HTTP/1.1 404 "), "{unread}");
    assert!(unread.contains("connection: close\r\n"), "{unread}");
    let closing = "GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let read = raw(&controller, &(request("/v1/networks/blue", "{}") + closing)).await;
    assert_eq!(read.matches("HTTP/1.1 200 ").count(), 2, "both on one connection: {read}");
}

#[tokio::test]
async fn what_is_no_http_ends_the_connection_and_nothing_else() {
    let (_dir, store) = place();
    let controller = Controller::start(&store);
    for garbage in
        ["\u{16}\u{3}\u{1}\u{2}\u{0}\r\n\r\n", "GET\r\n\r\n", "\r\n\r\n\r\n\r\nx\r\n\r\n"]
    {
        let answer = raw(&controller, garbage).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
    }
    controller.get::<()>(paths::READY).await.unwrap();
}

#[tokio::test]
async fn configuration_that_is_wrong_together_is_refused_with_its_own_code() {
    let (_dir, store) = place();
    let controller = Controller::start(&store);
    controller.fill().await;
    controller.join("a", 1).await;
    let pool = |range: &str| json!({ "network": "blue", "range": range });
    let cases = [
        ("/v1/networks/red", json!({ "vni": 1 }), ErrorCode::VniTaken),
        ("/v1/networks/blue", json!({ "vni": 9 }), ErrorCode::NetworkExists),
        ("/v1/networks/red", json!({ "port": 0 }), ErrorCode::Invalid),
        ("/v1/pools/q", pool("10.0.0.0/8"), ErrorCode::PoolOverlaps),
        ("/v1/pools/q", pool("192.0.2.0/24"), ErrorCode::PoolContainsHost),
        ("/v1/pools/p4", pool("10.40.0.0/16"), ErrorCode::PoolExists),
        (
            "/v1/pools/r",
            json!({ "network": "no", "range": "10.50.0.0/16" }),
            ErrorCode::NetworkNotFound,
        ),
        (
            "/v1/pools/r",
            json!({ "network": "blue", "range": "10.50.0.0/30", "exclude": ["10.50.0.0/30"] }),
            ErrorCode::PoolEmpty,
        ),
        (
            "/v1/hosts/g",
            json!({ "external": ["10.32.1.0/24"], "roles": ["gateway"] }),
            ErrorCode::HostAddressConflict,
        ),
    ];
    for (path, body, code) in cases {
        let error = controller.put(path, body.clone()).await.unwrap_err();
        assert_eq!(error.code, code, "{path} {body}: {error}");
    }
    let error = controller.delete::<()>("/v1/networks/blue").await.unwrap_err();
    assert_eq!(error.code, ErrorCode::NetworkInUse);
}

#[tokio::test]
async fn a_host_name_has_one_living_installation() {
    let (_dir, store) = place();
    let controller = Controller::start(&store);
    let first = controller.join("a", 1).await;
    let error = controller.try_join("a", 2, 2, 1).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::HostNameTaken);
    let error = controller.try_join("a", 2, 1, 2).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::HostNameTaken, "a copy beside the living machine");
    let change = json!({ "reinstalled": true });
    let error = controller.ask::<Value>(Method::PATCH, "/v1/hosts/a", &change).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::HostNameTaken, "it is alive");
    let heartbeat = Heartbeat { session: first.session };
    let path = paths::heartbeat(&"a".parse().unwrap());
    controller.ask::<()>(Method::POST, &path, &heartbeat).await.unwrap();
    let second = controller.try_join("a", 1, 1, 2).await.unwrap();
    let error = controller.ask::<()>(Method::POST, &path, &heartbeat).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::SessionLost);
    let error = controller.try_join("a", 1, 1, 1).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::HostSuperseded);
    let status: Versioned<HostStatus> = controller.get("/v1/hosts/a").await.unwrap();
    assert!(status.record.alive);
    assert_ne!(first.session, second.session);
}

#[tokio::test]
async fn a_reinstalled_host_joins_when_an_operator_has_said_so_and_ends_what_was() {
    let (_dir, store) = place();
    let controller = Controller::start(&store);
    controller.fill().await;
    let old = controller.join("a", 1).await;
    controller.claim(&old, 1, Some("web-0")).await.unwrap();
    tokio::time::sleep(Duration::from_secs(LEASE_SECONDS + 1)).await;
    let error = controller.try_join("a", 2, 2, 1).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::HostNameTaken);
    assert!(error.message.contains("limpetctl host set a --reinstalled"), "{error}");
    let change = json!({ "reinstalled": true });
    let said: Versioned<HostStatus> =
        controller.ask(Method::PATCH, "/v1/hosts/a", &change).await.unwrap();
    assert_eq!((said.record.alive, said.record.attachments), (false, 1));
    let new = controller.try_join("a", 2, 2, 1).await.unwrap();
    let error = controller.end(&old, 1).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::SessionLost);
    controller.end(&new, 1).await.unwrap();
    controller.claim(&new, 2, Some("web-0")).await.unwrap();
}

/// Waits for a change of the host's own.
async fn own_change(watch: &mut crate::process::Watching) -> OwnChange {
    loop {
        let WatchLine { event, .. } = watch.next().await.expect("the watch goes on");
        if let WatchEvent::Changes(changes) = event
            && let Some(change) = changes.own.into_iter().next()
        {
            return change;
        }
    }
}

#[tokio::test]
async fn a_moving_name_waits_until_its_old_host_has_let_go() {
    let (_dir, store) = place();
    let controller = Controller::start(&store);
    controller.fill().await;
    let (a, b) = (controller.join("a", 1).await, controller.join("b", 2).await);
    let first = controller.claim(&a, 1, Some("web-0")).await.unwrap();
    let mut watch = controller.watch("a", None).await;
    watch.next().await.unwrap();

    let old_host = async {
        let OwnChange::AskSet(ask) = own_change(&mut watch).await else { panic!("not asked") };
        assert_eq!(ask.attachment.uid, Token::from_bits(1));
        controller.end(&a, 1).await.unwrap();
    };
    let started = Instant::now();
    let (moved, ()) = tokio::join!(controller.claim(&b, 2, Some("web-0")), old_host);
    assert_eq!(moved.unwrap().attachment.addresses, first.attachment.addresses);
    assert!(started.elapsed() < Duration::from_secs(2), "told at once, not at the limit");
}

#[tokio::test]
async fn a_name_whose_container_is_there_is_refused_after_five_seconds() {
    let (_dir, store) = place();
    let controller = Controller::start(&store);
    controller.fill().await;
    let (a, b) = (controller.join("a", 1).await, controller.join("b", 2).await);
    controller.claim(&a, 1, Some("web-0")).await.unwrap();
    let mut watch = controller.watch("a", None).await;
    watch.next().await.unwrap();
    let old_host = async {
        own_change(&mut watch).await;
        let path = paths::ask(&"a".parse().unwrap(), Token::from_bits(1));
        let present = PresentRequest { session: a.session };
        controller.ask::<()>(Method::POST, &path, &present).await.unwrap();
    };
    let started = Instant::now();
    let (refused, ()) = tokio::join!(controller.claim(&b, 2, Some("web-0")), old_host);
    let error = refused.unwrap_err();
    assert_eq!(error.code, ErrorCode::ReservationHeld);
    assert!(error.message.contains("c1") && error.message.contains("host a"), "{error}");
    assert!((4..9).contains(&started.elapsed().as_secs()));
    let still: Listing<Attachment> = controller.get(paths::ATTACHMENTS).await.unwrap();
    assert_eq!(still.items.len(), 1);
    let OwnChange::AskSet(answered) = own_change(&mut watch).await else { panic!("answered") };
    assert!(answered.present);
}

#[tokio::test]
async fn an_operator_ends_what_its_host_says_is_gone() {
    let (_dir, store) = place();
    let controller = Controller::start(&store);
    controller.fill().await;
    let a = controller.join("a", 1).await;
    controller.claim(&a, 1, None).await.unwrap();
    let path = paths::attachment(&key(&a, Token::from_bits(1)));
    let mut watch = controller.watch("a", None).await;
    watch.next().await.unwrap();
    let host = async {
        own_change(&mut watch).await;
        controller.end(&a, 1).await.unwrap();
    };
    let (released, ()) = tokio::join!(controller.delete::<Released>(&path), host);
    assert_eq!(released.unwrap().addresses.len(), 2);
    let error = controller.delete::<Released>(&path).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::AttachmentNotFound);
}

#[tokio::test]
async fn an_operator_reserves_changes_and_releases() {
    let (_dir, store) = place();
    let controller = Controller::start(&store);
    controller.fill().await;
    let path = "/v1/reservations/blue/prod/db-0";
    let spec = json!({ "addresses": ["10.32.7.7"], "retention": "30d" });
    for _ in 0..2 {
        controller.put(path, spec.clone()).await.unwrap();
    }
    let change = json!({ "retention": "forever" });
    let changed: Versioned<Reservation> =
        controller.ask(Method::PATCH, path, &change).await.unwrap();
    assert_eq!(changed.record.retention.to_string(), "forever");
    assert_eq!(changed.record.addresses.len(), 2, "the other family was chosen");
    let listed: Listing<Reservation> =
        controller.get("/v1/reservations?namespace=prod&network=blue").await.unwrap();
    assert_eq!(listed.items, [changed.record]);
    let other: Listing<Reservation> =
        controller.get("/v1/reservations?namespace=test").await.unwrap();
    assert_eq!(other.items.len(), 0);
    let fixed = json!({ "addresses": ["10.32.7.8"] });
    let error = controller.ask::<Value>(Method::PATCH, path, &fixed).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Immutable);
    let released: Released = controller.delete(path).await.unwrap();
    assert_eq!(released.addresses.len(), 2);
}

#[test]
fn every_code_is_explained() {
    let docs = include_str!("../../../docs/errors.md");
    let (_, section) = docs.split_once("\n## API error codes\n").expect("the section");
    for code in ErrorCode::ALL {
        let line = format!("| `{code}` | {} | ", code.status());
        assert_eq!(section.matches(&line).count(), 1, "docs/errors.md: {line}");
    }
    let lines = section.lines().filter(|line| line.starts_with("| `")).count();
    assert_eq!(lines, ErrorCode::ALL.len(), "docs/errors.md has no others");
}

//! Edge: who had an address when, as the process tells it.

use limpet_api::book::{EndReason, EndedBy};
use limpet_api::client::Method;
use limpet_api::history::{History, Tenure};
use limpet_api::host::{ClaimRequest, Claimed, Session, Wanted};
use limpet_api::{ErrorCode, paths};
use limpet_net_types::Token;
use serde_json::Value;

use crate::process::{Controller, key, place};

async fn history(controller: &Controller, query: &str) -> Vec<Tenure> {
    controller.get::<History>(&format!("{}?{query}", paths::HISTORY)).await.unwrap().items
}

fn containers(tenures: &[Tenure]) -> Vec<&str> {
    tenures.iter().map(|tenure| tenure.key.container.as_str()).collect()
}

#[tokio::test]
async fn an_address_that_went_from_one_to_another_says_who_had_it_when() {
    let (_dir, store) = place();
    let controller = Controller::start(&store);
    controller.fill().await;
    let (a, b) = (controller.join("a", 1).await, controller.join("b", 2).await);
    let first = controller.claim(&a, 1, Some("web-0")).await.unwrap();
    let address = first.attachment.addresses[0].address;
    controller.end(&a, 1).await.unwrap();
    controller.delete::<Value>("/v1/reservations/blue/_/web-0").await.unwrap();
    claim_address(&controller, &b, 2, &address.to_string()).await;

    let told = history(&controller, &format!("address={address}")).await;
    assert_eq!(containers(&told), ["c2", "c1"], "whoever has it comes first");
    assert_eq!((told[0].key.host.as_str(), &told[0].end), ("b", &None));
    assert_eq!((told[1].key.host.as_str(), told[1].name.as_str()), ("a", "web-0"));
    let end = told[1].end.clone().unwrap();
    assert_eq!((end.reason, end.by), (EndReason::Detached, EndedBy::Host("a".parse().unwrap())));

    let (from, to) = (told[1].from_wall.unwrap(), end.wall);
    let at = history(&controller, &format!("address={address}&since={from}&until={from}")).await;
    assert!(containers(&at).contains(&"c1"), "it had it when it began");
    let later = history(&controller, &format!("address={address}&since=9999-01-01T00:00Z")).await;
    assert_eq!(containers(&later), ["c2"], "nothing has ended after that");
    assert!(from <= to);
    let error = controller.get::<History>(paths::HISTORY).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Invalid);

    controller.kill();
    let controller = Controller::start(&store);
    let told = history(&controller, &format!("address={address}")).await;
    assert_eq!(containers(&told), ["c2", "c1"], "it outlives the process");
}

async fn claim_address(controller: &Controller, session: &Session, uid: u128, address: &str) {
    let wanted = Wanted {
        netns: "/run/netns/x".to_owned(),
        addresses: vec![address.parse().unwrap()],
        ..Wanted::default()
    };
    let uid = Token::from_bits(uid);
    let request = ClaimRequest { session: session.session, uid, wanted };
    let path = paths::claim(&key(session, uid));
    controller.ask::<Claimed>(Method::PUT, &path, &request).await.unwrap();
}

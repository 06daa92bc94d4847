//! Edge: what operators ask of who had which address when.
//!
//! What goes on is in the state; what has ended is read from the store, record by record: the state
//! knows which few come into question.

use axum::Json;
use axum::extract::State as Shared;
use futures_util::{StreamExt, stream};
use limpet_api::history::{History, HistoryQuery, Tenure};
use limpet_api::{ApiError, ErrorCode, FleetTime};
use limpet_net_types::Token;

use crate::http::extract::Query;
use crate::http::{Answer, App};
use crate::keys::Subject;
use crate::state::State;
use crate::store::Store;
use crate::tenures::TenureKey;

/// How many records an answer has unless it is said.
const USUAL: usize = 100;

/// How many records an answer has at most.
const MOST: usize = 1_000;

/// How many records are read for one answer: most fit, unless times are asked for.
const READ: usize = 4_000;

/// How many records are read at a time.
const AT_ONCE: usize = 16;

/// What the state knows of an answer.
struct Known {
    current: Vec<Tenure>,
    candidates: Vec<TenureKey>,
    revision: u64,
}

pub(in crate::http) async fn list(
    Shared(app): Shared<App>,
    Query(query): Query<HistoryQuery>,
) -> Answer<History> {
    if query.address.is_none() && query.name.is_none() && query.host.is_none() {
        let text = "all of history is too much for an answer: ask for an address, a name or a host";
        return Err(ApiError::new(ErrorCode::Invalid, text).into());
    }
    let before = query.after.as_deref().map(cursor).transpose()?;
    let limit = query.limit.unwrap_or(USUAL).clamp(1, MOST);
    let wanted = query.clone();
    let Known { current, candidates, revision } =
        app.book.read(move |state| known(state, &wanted, before)).await?;
    let (mut items, mut ended, mut last) = (current, 0, None);
    let end = candidates.last().copied();
    let is_cut = candidates.len() == READ;
    let store = &*app.store;
    let mut records = stream::iter(candidates)
        .map(|key| async move { (key, tenure(store, key).await) })
        .buffered(AT_ONCE);
    while ended < limit
        && let Some((key, tenure)) = records.next().await
    {
        last = Some(key);
        // One that is gone has grown too old just now.
        if let Some(tenure) = tenure?.filter(|tenure| query.fits(tenure)) {
            items.push(tenure);
            ended += 1;
        }
    }
    let is_all = last == end && !is_cut;
    let next = last.filter(|_| !is_all).map(|TenureKey { at, uid }| format!("{:x}-{uid}", at.0));
    Ok(Json(History { items, next, revision }))
}

fn known(state: &State, query: &HistoryQuery, before: Option<TenureKey>) -> Known {
    let current = if before.is_none() { current(state, query) } else { Vec::new() };
    let candidates = state.tenures().candidates(query, before).take(READ).collect();
    Known { current, candidates, revision: state.revision().0 }
}

/// The tenures that go on.
fn current(state: &State, query: &HistoryQuery) -> Vec<Tenure> {
    let fitting = |tenure: &Tenure| query.fits(tenure);
    let tenure = |attachment| Tenure::of(attachment, None);
    if let Some(address) = query.address {
        let slots = state.networks().filter_map(|n| state.slot(&n.record.name, address));
        let holders = slots.filter_map(|slot| slot.record.attachment.as_ref());
        let attachments = holders.filter_map(|holder| state.attachment(&holder.key));
        attachments.map(|entry| tenure(&entry.record)).filter(fitting).collect()
    } else if let Some(host) = &query.host {
        state.attachments_of(host).map(|entry| tenure(&entry.record)).filter(fitting).collect()
    } else {
        let named = state.attachments().filter(|e| Some(&e.record.name) == query.name.as_ref());
        named.map(|entry| tenure(&entry.record)).filter(fitting).collect()
    }
}

/// What an earlier answer said to go on after.
fn cursor(text: &str) -> Result<TenureKey, ApiError> {
    let key = text.split_once('-').and_then(|(at, uid)| {
        let at = FleetTime(u64::from_str_radix(at, 16).ok()?);
        Some(TenureKey { at, uid: uid.parse::<Token>().ok()? })
    });
    key.ok_or_else(|| {
        ApiError::new(ErrorCode::BadRequest, "query: after: it is not the next of an answer")
    })
}

async fn tenure(store: &dyn Store, key: TenureKey) -> Result<Option<Tenure>, ApiError> {
    let unreadable = |cause: &dyn std::error::Error| {
        let text = format!("history cannot be read just now: {cause}");
        ApiError::new(ErrorCode::Unavailable, text)
    };
    let key = Subject::Tenure(key).key();
    let mut pages = store.read(&key).await.map_err(|error| unreadable(&error))?;
    let page = pages.next().await.map_err(|error| unreadable(&error))?;
    let found = page.into_iter().flatten().next();
    found
        .map(|(_, entry)| serde_json::from_slice(&entry.value).map_err(|error| unreadable(&error)))
        .transpose()
}

#[cfg(test)]
mod tests {
    use limpet_api::WallTime;
    use limpet_api::book::{AttachmentKey, EndReason, EndedBy};
    use limpet_api::host::{ClaimRequest, EndRequest, Wanted};
    use limpet_net_types::HostName;

    use super::*;
    use crate::alloc::{Outcome, Patience, claim, ends};
    use crate::http::extract::{Body, Params};
    use crate::http::fixture::{app, joining};
    use crate::rules::{networks, pools};
    use crate::state::sample::name;

    fn key(container: &str) -> AttachmentKey {
        let (host, network) = (name("a"), name("blue"));
        AttachmentKey { host, network, container: name(container), ifname: name("eth0") }
    }

    async fn attached(app: &App, session: Token, container: &str, workload: &str) {
        let uid = crate::random::token().unwrap();
        let wanted = Wanted { name: Some(name(workload)), ..Wanted::default() };
        let (key, request) = (key(container), ClaimRequest { session, uid, wanted });
        let decide = move |state: &State| claim::claim(state, &key, &request, Patience::Over);
        let (claimed, _) = app.book.decide(decide).await.unwrap();
        assert!(matches!(claimed, Outcome::Done(_)));
    }

    async fn ended(app: &App, session: Token, container: &str) {
        let key = key(container);
        let wanted = key.clone();
        let found = app.book.read(move |state| state.attachment(&wanted).cloned()).await.unwrap();
        let uid = found.unwrap().record.uid;
        let request = EndRequest { session, uid, reason: EndReason::Gone };
        app.book.decide(move |state| ends::end(state, &key, &request)).await.unwrap();
    }

    /// web-0 three times in a row and still there, other-0 once, on host a.
    async fn lived() -> App {
        let (app, _) = app().await;
        let spec = limpet_api::config::NetworkSpec::default();
        app.book.decide(move |s| networks::create(s, &name("blue"), &spec)).await.unwrap();
        let spec: limpet_api::config::PoolSpec =
            serde_json::from_str(r#"{"network": "blue", "range": "10.0.0.0/24"}"#).unwrap();
        app.book.decide(move |s| pools::create(s, &name("p"), &spec)).await.unwrap();
        let host: HostName = name("a");
        let joined = crate::http::hosts::join(Shared(app.clone()), Params(host), Body(joining(1)));
        let session = joined.await.unwrap().0.session;
        for container in ["c1", "c2", "c3"] {
            attached(&app, session, container, "web-0").await;
            ended(&app, session, container).await;
        }
        attached(&app, session, "c4", "web-0").await;
        attached(&app, session, "d1", "other-0").await;
        ended(&app, session, "d1").await;
        app
    }

    async fn asked(app: &App, query: &HistoryQuery) -> Result<History, ErrorCode> {
        let answer = list(Shared(app.clone()), Query(query.clone())).await;
        answer.map(|Json(history)| history).map_err(|failure| failure.0.code)
    }

    fn containers(history: &History) -> Vec<String> {
        history.items.iter().map(|tenure| tenure.key.container.to_string()).collect()
    }

    #[tokio::test]
    async fn who_had_an_address_is_known_with_why_it_ended_and_by_whom() {
        let app = lived().await;
        let query = HistoryQuery { name: Some(name("web-0")), ..HistoryQuery::default() };
        let by_name = asked(&app, &query).await.unwrap();
        assert_eq!(by_name.items.len(), 4);
        assert_eq!(by_name.next, None);
        let current = &by_name.items[0];
        assert_eq!((current.key.container.as_str(), &current.end), ("c4", &None));
        for tenure in &by_name.items[1..] {
            let end = tenure.end.as_ref().unwrap();
            assert_eq!((end.reason, &end.by), (EndReason::Gone, &EndedBy::Host(name("a"))));
            assert!(end.wall >= tenure.from_wall.unwrap());
            assert!(end.wall > "2020-01-01T00:00Z".parse().unwrap(), "a clock of today's");
        }
        let address = Some(current.addresses[0].address);
        let by_address = HistoryQuery { address, ..HistoryQuery::default() };
        assert_eq!(asked(&app, &by_address).await.unwrap().items, by_name.items);
        let by_host = HistoryQuery { host: Some(name("a")), ..HistoryQuery::default() };
        assert_eq!(asked(&app, &by_host).await.unwrap().items.len(), 5);
        let elsewhere = HistoryQuery { network: Some(name("red")), ..query.clone() };
        assert_eq!(asked(&app, &elsewhere).await.unwrap().items, []);
        let long_ago: WallTime = "2001-01-01T00:00Z".parse().unwrap();
        let until = HistoryQuery { until: Some(long_ago), ..query.clone() };
        assert_eq!(asked(&app, &until).await.unwrap().items, []);
        let all = asked(&app, &HistoryQuery::default()).await;
        assert_eq!(all.unwrap_err(), ErrorCode::Invalid);
        let garbage = HistoryQuery { after: Some("x-y".to_owned()), ..query };
        assert_eq!(asked(&app, &garbage).await.unwrap_err(), ErrorCode::BadRequest);
    }

    #[tokio::test]
    async fn history_comes_in_pages_without_a_gap() {
        let app = lived().await;
        let mut query = HistoryQuery { host: Some(name("a")), ..HistoryQuery::default() };
        let whole = containers(&asked(&app, &query).await.unwrap());
        query.limit = Some(1);
        let mut parts = Vec::new();
        loop {
            let history = asked(&app, &query).await.unwrap();
            parts.extend(containers(&history));
            query.after = history.next;
            if query.after.is_none() {
                break;
            }
        }
        assert_eq!(parts, whole);
        assert_eq!(parts.len(), 5);
    }
}

//! Edge: a controller of a few lines: it grants everything, tells what it is told to tell, and remembers what it heard.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use axum::body::{Body, Bytes};
use axum::extract::{Path as At, Query, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use futures_util::{StreamExt as _, stream};
use limpet_api::book::{Attachment, AttachmentKey, Held};
use limpet_api::config::{Host, Network, Pool, PoolState, Role, Select, Sticky};
use limpet_api::host::{
    Block, Changes, ClaimRequest, Claimed, EndRequest, Ended, OwnChange, ReassertOutcome,
    ReassertRequest, ReassertResult, Reasserted, Report, Session, SessionRequest, Snapshot, Stray,
    WatchEvent, WatchLine,
};
use limpet_api::paths::route;
use limpet_api::{ApiError, ErrorCode, FleetTime};
use limpet_net_types::{Mac, Token, Uid, Vni};
use tokio::net::UnixListener;
use tokio::sync::{broadcast, mpsc};

/// What a handler is to do instead of its work.
#[derive(Clone, Debug)]
pub(crate) enum Instead {
    /// Refuse with this code.
    Refuse(ErrorCode),
    /// Do the work and never answer.
    Hang,
}

/// What the controller knows and has heard.
#[derive(Default)]
pub(crate) struct Book {
    pub(crate) snapshot: Snapshot,
    pub(crate) revision: u64,
    pub(crate) sessions: Vec<SessionRequest>,
    pub(crate) claims: Vec<(AttachmentKey, ClaimRequest)>,
    pub(crate) ended: Vec<Uid>,
    /// Why, of each of them.
    pub(crate) reasons: Vec<limpet_api::book::EndReason>,
    /// Those whose end fails by a defect.
    pub(crate) endless: Vec<Uid>,
    pub(crate) present: Vec<Uid>,
    pub(crate) reasserted: Vec<ReassertRequest>,
    /// What becomes of those that are re-asserted; the store has all others again.
    pub(crate) outcomes: BTreeMap<Uid, ReassertOutcome>,
    pub(crate) reports: Vec<Report>,
    /// Which store it is; 1 if none is given.
    pub(crate) store: Option<Token>,
    pub(crate) watches: usize,
    /// By the name of the handler.
    pub(crate) instead: BTreeMap<&'static str, Instead>,
}

/// The controller; it is away when it is dropped.
pub(crate) struct Fake {
    pub(crate) path: PathBuf,
    shared: Arc<Shared>,
    /// Whether it is stopped: it may have read what it was asked, and does not say a word.
    stopped: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

struct Shared {
    book: Mutex<Book>,
    lines: broadcast::Sender<WatchLine>,
}

impl Shared {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap()
    }

    fn tell(&self, changes: Changes) {
        self.commit(&mut self.book(), changes);
    }

    /// Tells of changes at a revision of their own.
    fn commit(&self, book: &mut Book, changes: Changes) {
        book.revision += 1;
        let _ = self.lines.send(book.line(WatchEvent::Changes(changes)));
    }
}

impl Book {
    fn store(&self) -> Token {
        self.store.unwrap_or(Token::from_bits(1))
    }

    fn line(&self, event: WatchEvent) -> WatchLine {
        WatchLine { store: self.store(), revision: self.revision, event }
    }
}

impl Fake {
    /// Listens in `dir` and knows of `snapshot`.
    pub(crate) fn start(dir: &Path, snapshot: Snapshot) -> Self {
        let shared = Arc::new(Shared {
            book: Mutex::new(Book { snapshot, revision: 10, ..Book::default() }),
            lines: broadcast::Sender::new(1000),
        });
        Self::serve(dir.join("controller.sock"), shared)
    }

    /// Another controller of the same store.
    pub(crate) fn replica(&self, name: &str) -> Self {
        Self::serve(self.path.with_file_name(name), Arc::clone(&self.shared))
    }

    fn serve(path: PathBuf, shared: Arc<Shared>) -> Self {
        let stopped = Arc::new(AtomicBool::new(false));
        let task = serve(&path, Arc::clone(&shared), Arc::clone(&stopped));
        Self { path, shared, stopped, task }
    }

    /// Does what it is asked from now on, and neither answers nor tells of anything.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
    }

    pub(crate) fn book(&self) -> MutexGuard<'_, Book> {
        self.shared.book()
    }

    /// Tells the agent of changes, and takes them into the snapshot where the caller has not.
    pub(crate) fn tell(&self, changes: Changes) {
        self.shared.tell(changes);
    }

    /// Takes an attachment of the host away, as if it had never been or was another's now.
    pub(crate) fn lose(&self, uid: Uid) {
        let mut book = self.book();
        let attachments = &mut book.snapshot.attachments;
        let at = attachments.iter().position(|attachment| attachment.uid == uid).unwrap();
        let AttachmentKey { network, container, ifname, .. } = attachments.remove(at).key;
        let own = vec![OwnChange::AttachmentGone { network, container, ifname, uid }];
        self.shared.commit(&mut book, Changes { own, ..Changes::default() });
    }

    /// Its store is another one from now on, in which the host has no attachments, at a revision of long ago.
    pub(crate) async fn restore(&mut self) {
        self.leave().await;
        let mut book = self.book();
        book.store = Some(Token::from_bits(book.store().bits() + 1));
        book.revision = 5;
        book.snapshot.attachments.clear();
        drop(book);
        self.come_back();
    }

    /// Is away; what it knows stays.
    pub(crate) async fn leave(&mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
        let _ = std::fs::remove_file(&self.path);
    }

    /// Is back.
    pub(crate) fn come_back(&mut self) {
        self.task = serve(&self.path, Arc::clone(&self.shared), Arc::clone(&self.stopped));
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn serve(
    path: &Path,
    shared: Arc<Shared>,
    stopped: Arc<AtomicBool>,
) -> tokio::task::JoinHandle<()> {
    let app = Router::new()
        .route(route::SESSION, post(session))
        .route(route::HEARTBEAT, post(heartbeat))
        .route(route::WATCH, get(watch))
        .route(route::ASK, post(present))
        .route(route::REASSERT, post(reassert))
        .route(route::REPORT, post(report))
        .route(route::CLAIM, put(claim).delete(end))
        .with_state(shared)
        .layer(middleware::from_fn(move |request: Request, next: Next| {
            let stopped = Arc::clone(&stopped);
            async move {
                let answer = next.run(request).await;
                unless(&stopped).await;
                answer.map(|body| {
                    Body::from_stream(body.into_data_stream().then(move |part| {
                        let stopped = Arc::clone(&stopped);
                        async move {
                            unless(&stopped).await;
                            part
                        }
                    }))
                })
            }
        }));
    let listener = UnixListener::bind(path).unwrap();
    tokio::spawn(async move {
        // Connections are tasks of their own; when this one is aborted they must go too.
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let service = hyper_util::service::TowerToHyperService::new(app.clone());
            connections.spawn(async move {
                let stream = hyper_util::rt::TokioIo::new(stream);
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(stream, service)
                    .await;
            });
        }
    })
}

async fn unless(stopped: &AtomicBool) {
    if stopped.load(Ordering::SeqCst) {
        std::future::pending::<()>().await;
    }
}

type Book_ = State<Arc<Shared>>;

async fn instead(shared: &Shared, name: &str) -> Option<Response> {
    let instead = shared.book().instead.get(name).cloned();
    match instead? {
        Instead::Refuse(code) => Some(refuse(code)),
        Instead::Hang => std::future::pending().await,
    }
}

fn refuse(code: ErrorCode) -> Response {
    let error = ApiError::new(code, format!("the fake says {code}"));
    (StatusCode::from_u16(code.status()).unwrap(), Json(error)).into_response()
}

async fn session(State(shared): Book_, body: Bytes) -> Response {
    let request: SessionRequest = serde_json::from_slice(&body).unwrap();
    shared.book().sessions.push(request.clone());
    if let Some(response) = instead(&shared, "session").await {
        return response;
    }
    let mut book = shared.book();
    book.revision += 1;
    let number = u128::try_from(book.sessions.len()).unwrap();
    let revision = book.revision;
    let hosts = &mut book.snapshot.hosts;
    let host = hosts.iter_mut().find(|host| host.name.as_str() == "node-a").unwrap();
    host.underlay = Some(request.underlay);
    host.addresses = request.addresses;
    let host = host.clone();
    let session = Token::from_bits(number);
    Json(Session { session, host, store: book.store(), revision }).into_response()
}

async fn heartbeat(State(shared): Book_) -> Response {
    match instead(&shared, "heartbeat").await {
        Some(response) => response,
        None => Json(()).into_response(),
    }
}

async fn watch(State(shared): Book_, Query(query): Query<BTreeMap<String, String>>) -> Response {
    let mut lines = shared.lines.subscribe();
    let (sender, receiver) = mpsc::unbounded_channel::<WatchLine>();
    {
        let mut book = shared.book();
        book.watches += 1;
        let of_store = query.get("store").is_some_and(|store| *store == book.store().to_string());
        let since = query.get("since").is_some_and(|since| *since == book.revision.to_string());
        let resumed = of_store && since;
        let event = if resumed {
            WatchEvent::Heartbeat {}
        } else {
            WatchEvent::Snapshot(Box::new(book.snapshot.clone()))
        };
        sender.send(book.line(event)).unwrap();
    }
    let alive = Arc::downgrade(&shared);
    tokio::spawn(async move {
        while let Ok(line) = lines.recv().await {
            if sender.send(line).is_err() || alive.upgrade().is_none() {
                return;
            }
        }
    });
    let lines = stream::unfold(receiver, |mut receiver| async move {
        let line = receiver.recv().await?;
        let mut text = serde_json::to_vec(&line).unwrap();
        text.push(b'\n');
        Some((Ok::<_, std::io::Error>(Bytes::from(text)), receiver))
    });
    Body::from_stream(lines).into_response()
}

async fn present(State(shared): Book_, At((_, uid)): At<(String, Uid)>) -> Response {
    shared.book().present.push(uid);
    Json(()).into_response()
}

async fn reassert(State(shared): Book_, body: Bytes) -> Response {
    let request: ReassertRequest = serde_json::from_slice(&body).unwrap();
    shared.book().reasserted.push(request.clone());
    if let Some(response) = instead(&shared, "reassert").await {
        return response;
    }
    let mut book = shared.book();
    let mut results = Vec::new();
    for attachment in request.attachments {
        let uid = attachment.uid;
        let kept = book.snapshot.attachments.iter().any(|known| known.uid == uid);
        let outcome = book.outcomes.get(&uid).cloned().unwrap_or(if kept {
            ReassertOutcome::Kept
        } else {
            ReassertOutcome::Restored
        });
        if outcome == ReassertOutcome::Restored {
            book.snapshot.attachments.push(attachment.clone());
            let own = vec![OwnChange::AttachmentSet(attachment)];
            shared.commit(&mut book, Changes { own, ..Changes::default() });
        }
        results.push(ReassertResult { uid, outcome, revision: Some(book.revision) });
    }
    Json(Reasserted { results, revision: book.revision }).into_response()
}

async fn report(State(shared): Book_, body: Bytes) -> Response {
    shared.book().reports.push(serde_json::from_slice(&body).unwrap());
    Json(()).into_response()
}

async fn claim(
    State(shared): Book_,
    At((host, network, container, ifname)): At<(String, String, String, String)>,
    body: Bytes,
) -> Response {
    let request: ClaimRequest = serde_json::from_slice(&body).unwrap();
    let key = AttachmentKey {
        host: host.parse().unwrap(),
        network: network.parse().unwrap(),
        container: container.parse().unwrap(),
        ifname: ifname.parse().unwrap(),
    };
    shared.book().claims.push((key.clone(), request.clone()));
    if let Some(response) = instead(&shared, "claim").await {
        return response;
    }
    let mut book = shared.book();
    let known = book.snapshot.attachments.iter().find(|known| known.uid == request.uid).cloned();
    let of_boot = book.sessions.last().unwrap().boot;
    let attachment = known.clone().unwrap_or_else(|| Attachment {
        boot: of_boot,
        ..attachment(&key, &request, book.claims.len())
    });
    if known.is_none() {
        book.snapshot.attachments.push(attachment.clone());
        let own = vec![OwnChange::AttachmentSet(attachment.clone())];
        shared.commit(&mut book, Changes { own, ..Changes::default() });
    }
    let network = book.snapshot.networks[0].clone();
    Json(Claimed { attachment, network, revision: book.revision }).into_response()
}

async fn end(
    State(shared): Book_,
    At((_, network, container, ifname)): At<(String, String, String, String)>,
    Query(query): Query<EndRequest>,
) -> Response {
    if let Some(response) = instead(&shared, "end").await {
        return response;
    }
    let mut book = shared.book();
    if book.endless.contains(&query.uid) {
        return refuse(ErrorCode::Internal);
    }
    book.ended.push(query.uid);
    book.reasons.push(query.reason);
    book.snapshot.attachments.retain(|attachment| attachment.uid != query.uid);
    let (network, container) = (network.parse().unwrap(), container.parse().unwrap());
    let ifname = ifname.parse().unwrap();
    let gone = OwnChange::AttachmentGone { network, container, ifname, uid: query.uid };
    shared.commit(&mut book, Changes { own: vec![gone], ..Changes::default() });
    Json(Ended { revision: book.revision }).into_response()
}

fn attachment(key: &AttachmentKey, request: &ClaimRequest, n: usize) -> Attachment {
    let held = |address: String, pool: &str| Held {
        address: address.parse().unwrap(),
        pool: pool.parse().unwrap(),
    };
    let name = key.container.as_str().parse().unwrap();
    Attachment {
        key: key.clone(),
        uid: request.uid,
        boot: Token::from_bits(0),
        namespace: request.wanted.namespace.clone(),
        name: request.wanted.name.clone().unwrap_or(name),
        sticky: false,
        addresses: [held(format!("10.32.0.{n}"), "p4"), held(format!("fd32::{n:x}"), "p6")].into(),
        mac: Mac::new([2, 0x4c, 0, 0, 1, u8::try_from(n).unwrap()]).unwrap(),
        runtime: request.wanted.runtime.clone(),
        netns: request.wanted.netns.as_str().into(),
        created: FleetTime(0),
        created_wall: None,
    }
}

/// An attachment of container `c<n>` that an earlier agent made.
pub(crate) fn made_before(n: u8, uid: u128, boot: Token, netns: &str) -> Attachment {
    let key = AttachmentKey {
        host: "node-a".parse().unwrap(),
        network: "pods".parse().unwrap(),
        container: format!("c{n}").parse().unwrap(),
        ifname: "eth0".parse().unwrap(),
    };
    let wanted = limpet_api::host::Wanted { netns: netns.to_owned(), ..Default::default() };
    let request = ClaimRequest { session: boot, uid: Token::from_bits(uid), wanted };
    Attachment { boot, ..attachment(&key, &request, n.into()) }
}

pub(crate) fn network(name: &str, index: u16, vni: u32) -> Network {
    Network {
        name: name.parse().unwrap(),
        vni: Vni::try_from(vni).unwrap(),
        index: index.try_into().unwrap(),
        mtu: None,
        port: 4789,
        own_space: false,
        allow: std::collections::BTreeSet::default(),
    }
}

pub(crate) fn pool(name: &str, network: &str, range: &str) -> Pool {
    Pool {
        name: name.parse().unwrap(),
        network: network.parse().unwrap(),
        range: range.parse().unwrap(),
        exclude: vec![],
        block_size: 64,
        sticky: Sticky::Auto,
        retention: limpet_api::config::DEFAULT_RETENTION,
        cooldown: limpet_api::config::DEFAULT_COOLDOWN,
        takeover_after: limpet_api::config::DEFAULT_TAKEOVER_AFTER,
        select: Select::default(),
        priority: 0,
        state: PoolState::Active,
    }
}

pub(crate) fn host(name: &str, n: u8, role: Role, underlay: &str) -> Host {
    let external = match role {
        Role::Gateway => [format!("198.51.{n}.0/24").parse().unwrap()].into(),
        _ => std::collections::BTreeSet::default(),
    };
    Host {
        name: name.parse().unwrap(),
        roles: [role].into(),
        labels: BTreeMap::default(),
        external,
        networks: None,
        vtep_mac: Mac::new([2, 0x4c, 0, 0, 0, n]).unwrap(),
        underlay: Some(underlay.parse().unwrap()),
        addresses: vec![
            format!("192.0.2.{n}").parse().unwrap(),
            format!("2001:db8::{n:x}").parse().unwrap(),
        ],
    }
}

pub(crate) fn block(network: &str, pool: &str, prefix: &str, host: &str) -> Block {
    Block {
        pool: pool.parse().unwrap(),
        network: network.parse().unwrap(),
        prefix: prefix.parse().unwrap(),
        host: host.parse().unwrap(),
    }
}

/// `node-a` has not joined yet; `node-b` and the gateway `gw` have.
pub(crate) fn small() -> Snapshot {
    let mut own = host("node-a", 1, Role::Node, "192.0.2.1");
    (own.underlay, own.addresses) = (None, vec![]);
    Snapshot {
        networks: vec![network("pods", 1, 100)],
        pools: vec![pool("p4", "pods", "10.32.0.0/16"), pool("p6", "pods", "fd32::/64")],
        hosts: vec![
            own,
            host("node-b", 2, Role::Node, "192.0.2.2"),
            host("gw", 9, Role::Gateway, "192.0.2.9"),
        ],
        blocks: vec![
            block("pods", "p4", "10.32.0.0/26", "node-a"),
            block("pods", "p4", "10.32.0.64/26", "node-b"),
            block("pods", "p6", "fd32::40/122", "node-b"),
        ],
        strays: vec![Stray {
            network: "pods".parse().unwrap(),
            address: "10.32.0.7".parse().unwrap(),
            host: "node-b".parse().unwrap(),
        }],
        ..Snapshot::default()
    }
}

//! Edge: a controller as a child process, and requests to it.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use limpet_api::book::{AttachmentKey, EndReason};
use limpet_api::client::{Call, Client, ClientError, Endpoint, Lines, Method};
use limpet_api::host::{
    ClaimRequest, Claimed, EndRequest, Ended, Session, SessionRequest, Wanted, WatchLine,
    WatchQuery,
};
use limpet_api::{ApiError, paths};
use limpet_net_types::Token;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tempfile::TempDir;

use crate::server::Cluster;

/// How long anything may take before the test fails.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// A running controller; dropping it kills it.
pub(crate) struct Controller {
    child: Child,
    log: PathBuf,
    pub(crate) address: SocketAddr,
    client: Client,
}

/// A directory with a store in it.
pub(crate) fn place() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store.redb");
    (dir, store)
}

/// The program, with flags.
pub(crate) fn command(flags: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_limpet-controller"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("LIMPET_")) {
        command.env_remove(name);
    }
    command.args(flags);
    command
}

/// Runs the program until it ends by itself; returns its status and what it said.
pub(crate) fn run(flags: &[&str]) -> (ExitStatus, String) {
    let output = command(flags).stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status, text)
}

/// Runs the program on a store that it must refuse; returns what it said.
pub(crate) fn refused(store: &Path) -> String {
    let store = store.to_str().unwrap();
    let (status, said) = run(&["--plain-http", "--listen", "127.0.0.1:0", "--store", store]);
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains(store), "names the file: {said}");
    said
}

/// A controller that was started, and may not be ready yet.
pub(crate) struct Starting {
    child: Option<Child>,
    ready: PathBuf,
    log: PathBuf,
}

impl Starting {
    /// Starts one; its files have this path, with other extensions.
    pub(crate) fn new(path: &Path, flags: &[&str]) -> Self {
        let ready = path.with_extension("ready");
        let _ = fs::remove_file(&ready);
        let log = path.with_extension("log");
        let child = command(&["--plain-http"])
            .args(if flags.contains(&"--listen") { &[][..] } else { &["--listen", "127.0.0.1:0"] })
            .arg("--ready-file")
            .arg(&ready)
            .args(flags)
            .stderr(fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Self { child: Some(child), ready, log }
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until it is ready.
    pub(crate) fn ready(mut self) -> Controller {
        let deadline = Instant::now() + LIMIT;
        let address: SocketAddr = loop {
            if let Ok(text) = fs::read_to_string(&self.ready) {
                break text.trim().parse().unwrap();
            }
            assert!(Instant::now() < deadline, "not ready: {}", self.log());
            thread::sleep(Duration::from_millis(10));
        };
        let endpoint = Endpoint::Http { authority: address.to_string() };
        let client = Client::new(vec![endpoint], LIMIT);
        let (child, log) = (self.child.take().unwrap(), self.log.clone());
        Controller { child, log, address, client }
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Controller {
    pub(crate) fn start(store: &Path) -> Self {
        Self::start_with(store, &[])
    }

    pub(crate) fn start_with(store: &Path, flags: &[&str]) -> Self {
        let store_flags = ["--store", store.to_str().unwrap()];
        Starting::new(store, &[&store_flags, flags].concat()).ready()
    }

    /// Starts one on etcd; its files have this path, with other extensions.
    pub(crate) fn start_on(cluster: &Cluster, path: &Path) -> Self {
        Starting::new(path, &["--etcd", &cluster.urls().join(",")]).ready()
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Kills it as a power failure would.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to stop, and waits until it has.
    pub(crate) fn stop(mut self) -> ExitStatus {
        self.terminate();
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "does not stop: {}", self.log());
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Asks it to stop.
    pub(crate) fn terminate(&self) {
        self.signal("-TERM");
    }

    /// Lets it stand still.
    pub(crate) fn freeze(&self) {
        self.signal("-STOP");
    }

    /// Lets it go on.
    pub(crate) fn thaw(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    pub(crate) async fn ask<A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<A, ApiError> {
        refusal(self.client.call(&Call::with_body(method, path, body).unwrap()).await)
    }

    pub(crate) async fn get<A: DeserializeOwned>(&self, path: &str) -> Result<A, ApiError> {
        refusal(self.client.call(&Call::new(Method::GET, path)).await)
    }

    pub(crate) async fn delete<A: DeserializeOwned>(&self, path: &str) -> Result<A, ApiError> {
        refusal(self.client.call(&Call::new(Method::DELETE, path)).await)
    }

    pub(crate) async fn put(&self, path: &str, body: Value) -> Result<Value, ApiError> {
        self.ask(Method::PUT, path, &body).await
    }

    /// A network `blue` with a pool of each family.
    pub(crate) async fn fill(&self) {
        self.put("/v1/networks/blue", serde_json::json!({})).await.unwrap();
        for (pool, range) in [("p4", "10.32.0.0/16"), ("p6", "fd32::/64")] {
            let spec = serde_json::json!({ "network": "blue", "range": range });
            self.put(&format!("/v1/pools/{pool}"), spec).await.unwrap();
        }
    }

    pub(crate) async fn join(&self, host: &str, last: u8) -> Session {
        self.try_join(host, last, 1, 1).await.unwrap()
    }

    pub(crate) async fn try_join(
        &self,
        host: &str,
        last: u8,
        install: u128,
        boot: u128,
    ) -> Result<Session, ApiError> {
        let address = [192, 0, 2, last].into();
        let request = SessionRequest {
            install: Token::from_bits(install),
            boot: Token::from_bits(boot),
            underlay: address,
            addresses: vec![address],
            on_link: ["192.0.2.0/25".parse().unwrap()].into(),
            roles: [].into(),
            external: [].into(),
            version: "test".to_owned(),
        };
        self.ask(Method::POST, &paths::session(&host.parse().unwrap()), &request).await
    }

    pub(crate) async fn claim(
        &self,
        session: &Session,
        uid: u128,
        name: Option<&str>,
    ) -> Result<Claimed, ApiError> {
        let wanted = Wanted {
            netns: "/run/netns/x".to_owned(),
            name: name.map(|name| name.parse().unwrap()),
            ..Wanted::default()
        };
        let uid = Token::from_bits(uid);
        let request = ClaimRequest { session: session.session, uid, wanted };
        self.ask(Method::PUT, &paths::claim(&key(session, uid)), &request).await
    }

    pub(crate) async fn end(&self, session: &Session, uid: u128) -> Result<Ended, ApiError> {
        let uid = Token::from_bits(uid);
        let query = EndRequest { session: session.session, uid, reason: EndReason::Detached };
        let call = Call::new(Method::DELETE, paths::claim(&key(session, uid)));
        refusal(self.client.call(&call.with_query(&query).unwrap()).await)
    }

    pub(crate) async fn lines(&self, call: &Call) -> Result<Lines, ClientError> {
        self.client.lines(call).await
    }

    pub(crate) async fn watch(&self, host: &str, known: Option<&WatchLine>) -> Watching {
        let query = WatchQuery {
            store: known.map(|line| line.store),
            since: known.map(|line| line.revision),
        };
        let call = Call::new(Method::GET, paths::watch(&host.parse().unwrap()));
        let call = call.with_query(&query).unwrap();
        Watching(self.client.lines(&call).await.unwrap())
    }
}

/// The key of the attachment that a session's host makes under a uid.
pub(crate) fn key(session: &Session, uid: Token) -> AttachmentKey {
    AttachmentKey {
        host: session.host.name.clone(),
        network: "blue".parse().unwrap(),
        container: format!("c{:x}", uid.bits()).parse().unwrap(),
        ifname: "eth0".parse().unwrap(),
    }
}

/// A running watch.
pub(crate) struct Watching(Lines);

impl Watching {
    /// The next line; none when the watch was ended.
    pub(crate) async fn next(&mut self) -> Option<WatchLine> {
        self.0.next(LIMIT).await.unwrap()
    }
}

fn refusal<A>(answer: Result<A, ClientError>) -> Result<A, ApiError> {
    answer.map_err(|error| match error {
        ClientError::Refused(error) => error,
        error => panic!("no answer of the API: {error:?}"),
    })
}

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

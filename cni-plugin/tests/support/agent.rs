//! Edge: a working small agent: it holds one attachment, and answers as it is told to.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

/// The incarnation that the fake gives to every attachment.
pub(crate) const UID: &str = "00112233445566778899aabbccddeeff";

/// What the fake answers instead of what it should.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    /// This status and body.
    Json(u16, Value),
    /// Bytes that are no HTTP.
    Garbage(&'static str),
    /// HTTP whose body is not limpet's.
    Html,
    /// Nothing, and the connection stays open.
    Silence,
    /// Nothing, and the connection is closed.
    Close,
}

/// A request that arrived.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) body: Value,
    /// The number of its connection, from 1.
    pub(crate) connection: usize,
}

#[derive(Default)]
struct State {
    seen: Vec<Seen>,
    replies: Vec<(String, Reply)>,
    commands: Vec<(String, String)>,
    families: BTreeSet<char>,
    /// What the network is given over its attachment's own values.
    changes: Value,
}

/// An agent on a socket of its own, until it is dropped or stopped.
pub(crate) struct FakeAgent {
    folder: TempDir,
    state: Arc<Mutex<State>>,
}

impl FakeAgent {
    pub(crate) fn start() -> Self {
        let folder = TempDir::new().unwrap();
        let state = State { families: BTreeSet::from(['4', '6']), ..State::default() };
        let agent = Self { folder, state: Arc::new(Mutex::new(state)) };
        let listener = UnixListener::bind(agent.socket()).unwrap();
        let state = Arc::clone(&agent.state);
        std::thread::spawn(move || {
            for (connection, stream) in listener.incoming().enumerate() {
                let state = Arc::clone(&state);
                std::thread::spawn(move || serve(&state, stream.unwrap(), connection + 1));
            }
        });
        agent
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("agent.sock")
    }

    /// Nobody listens any more.
    pub(crate) fn stop(&self) {
        std::fs::remove_file(self.socket()).unwrap();
    }

    /// Answers this method so from now on, whatever its path.
    pub(crate) fn reply(&self, method: &str, reply: Reply) {
        self.state.lock().unwrap().replies.insert(0, (method.to_owned(), reply));
    }

    /// Runs a shell command before it answers this method.
    pub(crate) fn before_answering(&self, method: &str, command: &str) {
        self.state.lock().unwrap().commands.push((method.to_owned(), command.to_owned()));
    }

    /// Answers as it should from now on.
    pub(crate) fn behave(&self) {
        self.state.lock().unwrap().replies.clear();
    }

    /// Gives addresses of these families only: `4`, `6`.
    pub(crate) fn give(&self, families: &str) {
        self.state.lock().unwrap().families = families.chars().collect();
    }

    /// Answers with other values than usual.
    pub(crate) fn change(&self, changes: Value) {
        self.state.lock().unwrap().changes = changes;
    }

    /// What has arrived.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.state.lock().unwrap().seen.clone()
    }

    /// What has arrived, in short: `PUT /v1/...`.
    pub(crate) fn log(&self) -> Vec<String> {
        self.seen().iter().map(|seen| format!("{} {}", seen.method, seen.path)).collect()
    }

    /// What ADD asked for last.
    pub(crate) fn wanted(&self) -> Value {
        let seen = self.seen();
        seen.iter().rfind(|seen| seen.method == "PUT").unwrap().body.clone()
    }
}

/// The error object of the API.
pub(crate) fn error(code: &str, message: &str) -> Value {
    json!({"code": code, "message": message, "details": {"pool": "pods-v4"}})
}

fn serve(state: &Mutex<State>, stream: UnixStream, connection: usize) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    while let Some(seen) = read(&mut reader, connection) {
        let reply = {
            let mut state = state.lock().unwrap();
            state.seen.push(seen.clone());
            let commands = state.commands.iter().filter(|(method, _)| *method == seen.method);
            commands.for_each(|(_, command)| drop(super::run(command)));
            let told = state.replies.iter().find(|(method, _)| *method == seen.method);
            told.map_or_else(|| properly(&seen, &state), |(_, reply)| reply.clone())
        };
        let written = match reply {
            Reply::Json(status, body) => write_body(&mut stream, status, &body.to_string()),
            Reply::Html => write_body(&mut stream, 200, "<html>It works!</html>"),
            Reply::Garbage(bytes) => stream.write_all(bytes.as_bytes()),
            Reply::Silence => {
                std::thread::sleep(Duration::from_secs(20));
                return;
            }
            Reply::Close => return,
        };
        if written.is_err() {
            return;
        }
    }
}

fn write_body(stream: &mut UnixStream, status: u16, body: &str) -> std::io::Result<()> {
    let length = body.len();
    write!(stream, "HTTP/1.1 {status} X\r\ncontent-length: {length}\r\n\r\n{body}")
}

fn read(reader: &mut BufReader<UnixStream>, connection: usize) -> Option<Seen> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|&length| length > 0)?;
    let mut words = line.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        if header.trim().is_empty() {
            break;
        }
        let (name, value) = header.split_once(':')?;
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() };
    Some(Seen { method, path, body, connection })
}

fn properly(seen: &Seen, state: &State) -> Reply {
    let path = Path::new(&seen.path);
    match seen.method.as_str() {
        "GET" if path.starts_with("/v1/readiness") => Reply::Json(200, json!({"problems": []})),
        "PUT" | "GET" => Reply::Json(200, attach(seen, state)),
        "DELETE" => Reply::Json(200, json!("ended")),
        _ if seen.path == "/v1/gc" => Reply::Json(200, json!({"ended": [], "present": []})),
        _ => Reply::Json(200, Value::Null),
    }
}

/// What the agent answers to a PUT on `/v1/attachments/<network>/<container>/<ifname>`.
fn attach(seen: &Seen, state: &State) -> Value {
    let mut parts = seen.path.split('/').skip(3);
    let mut next = || parts.next().unwrap().to_owned();
    let (network, container, ifname) = (next(), next(), next());
    let name = limpet_net_types::host_ifname(
        &network.parse().unwrap(),
        &container.parse().unwrap(),
        &ifname.parse().unwrap(),
    );
    let all = [
        ('4', "10.32.0.5", "169.254.1.1", "192.0.2.1"),
        ('6', "fd32::5", "fe80::1", "2001:db8::1"),
    ];
    let given = || all.iter().filter(|(family, ..)| state.families.contains(family));
    let addresses: Vec<_> = given()
        .map(|(family, address, ..)| json!({"address": address, "pool": format!("pods-v{family}")}))
        .collect();
    let mut attach = json!({
        "attachment": {
            "host": "node-a",
            "network": network,
            "container": container,
            "ifname": ifname,
            "uid": UID,
            "boot": "0123456789abcdef0123456789abcdef",
            "namespace": "shop",
            "name": "web-0",
            "sticky": true,
            "addresses": addresses,
            "mac": "02:4c:0a:20:00:05",
            "runtime": "default",
            "netns": "/run/netns/x",
            "created": 7,
        },
        "mtu": 1450,
        "host_ifname": name,
        "group": 4097,
        "gateway_mac": "02:4c:ff:ff:ff:ff",
        "gateways": given().map(|(_, _, gateway, _)| gateway).collect::<Vec<_>>(),
        "sources": given().map(|(_, _, _, source)| source).collect::<Vec<_>>(),
        "table": 7601,
    });
    merge(&mut attach, &state.changes);
    attach
}

/// Puts the fields of `changes` in place of those of the same name, within objects too.
fn merge(into: &mut Value, changes: &Value) {
    for (field, value) in changes.as_object().into_iter().flatten() {
        match into.get_mut(field) {
            Some(inner) if inner.is_object() && value.is_object() => merge(inner, value),
            _ => into[field] = value.clone(),
        }
    }
}

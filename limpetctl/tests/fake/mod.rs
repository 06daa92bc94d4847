//! Edge: a controller that answers what a test tells it to, and remembers what it was asked.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// What was asked: `GET /v1/pools`, or with a body, `PUT /v1/pools/p {"range":...}`.
pub(crate) type Request = String;

/// How it answers.
#[derive(Clone)]
pub(crate) enum Reply {
    /// An HTTP answer with this status and body.
    Http(u16, String),
    /// These bytes, and the end of the connection.
    Bytes(&'static [u8]),
    /// Nothing at all, for longer than any test waits.
    Silence,
}

/// A server on a port of its own, which ends with the test's process.
pub(crate) struct Fake {
    /// Where it listens.
    pub(crate) url: String,
    asked: Arc<Mutex<Vec<Request>>>,
}

impl Fake {
    /// Starts one that answers each request with what `reply` makes of it.
    pub(crate) fn start(reply: impl Fn(&str) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (log, reply) = (Arc::clone(&asked), Arc::new(reply));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (log, reply) = (Arc::clone(&log), Arc::clone(&reply));
                thread::spawn(move || serve(stream, &log, &*reply));
            }
        });
        Self { url, asked }
    }

    /// One that answers everything alike.
    pub(crate) fn always(reply: Reply) -> Self {
        Self::start(move |_| reply.clone())
    }

    /// What it was asked so far.
    pub(crate) fn asked(&self) -> Vec<Request> {
        self.asked.lock().unwrap().clone()
    }
}

fn serve(stream: TcpStream, log: &Mutex<Vec<Request>>, reply: &dyn Fn(&str) -> Reply) {
    let mut writer = stream.try_clone().unwrap();
    let mut reader = BufReader::new(stream);
    while let Some(request) = read(&mut reader) {
        log.lock().unwrap().push(request.clone());
        let written = match reply(&request) {
            Reply::Http(status, body) => write!(
                writer,
                "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            ),
            Reply::Bytes(bytes) => {
                let _ = writer.write_all(bytes);
                return;
            }
            Reply::Silence => {
                thread::sleep(Duration::from_secs(60));
                return;
            }
        };
        if written.is_err() {
            return;
        }
    }
}

/// Reads one request, or nothing at the end of the connection.
fn read(reader: &mut impl BufRead) -> Option<Request> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|&length| length > 0)?;
    let mut words = line.split_whitespace();
    let mut request = format!("{} {}", words.next()?, words.next()?);
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        if header.trim().is_empty() {
            break;
        }
        if let Some(value) = header.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    if !body.is_empty() {
        request = format!("{request} {}", String::from_utf8(body).ok()?);
    }
    Some(request)
}

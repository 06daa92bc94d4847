//! Edge: a client of several servers, each of which fails in a way of its own.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise, its helpers too")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use limpet_api::ErrorCode;
use limpet_api::client::{Call, Client, ClientError, Endpoint, Method};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

const LIMIT: Duration = Duration::from_secs(5);

/// How a server deals with what it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// Says its number.
    Answer(u32),
    /// The same after a while, and says at once that it runs.
    Late(u32),
    /// Takes connections and says nothing, as a process that is stopped.
    Mute,
    /// Speaks something else than HTTP.
    Babble,
    /// Speaks HTTP and something else than limpet.
    Stranger,
    /// Reads the request and closes.
    HangUp,
    /// Says that it cannot serve.
    Unavailable,
    /// Says that there is no such pool.
    NoPool,
    /// Streams one line with its number, and then nothing, until it has another manner.
    Lines(u32),
    /// Streams one line and closes.
    OneLine(u32),
}

struct Server {
    endpoint: Endpoint,
    manner: watch::Sender<Manner>,
    asked: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    async fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let (manner, asked) = (watch::Sender::new(manner), Arc::new(AtomicUsize::new(0)));
        let (manners, count) = (manner.subscribe(), Arc::clone(&asked));
        let task = tokio::spawn(async move {
            let mut open = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                open.spawn(serve(stream, manners.clone(), Arc::clone(&count)));
            }
        });
        Self { endpoint, manner, asked, task }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One connection, to its end.
async fn serve(
    mut stream: TcpStream,
    mut manners: watch::Receiver<Manner>,
    asked: Arc<AtomicUsize>,
) {
    while let Some(request) = read(&mut stream).await {
        let manner = *manners.borrow_and_update();
        let health = request.starts_with("GET /healthz");
        if !health {
            asked.fetch_add(1, Ordering::Relaxed);
        }
        let chunk = |number: u32| {
            let line = format!("{number}\n");
            let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
            format!("{head}{:x}\r\n{line}\r\n", line.len())
        };
        let refusal = |code: ErrorCode| {
            let body = json!({"code": code, "message": "the server says no"}).to_string();
            answer(code.status(), &body)
        };
        let text = match manner {
            Manner::Mute => return std::future::pending().await,
            Manner::HangUp => return,
            Manner::Babble => "220 mail.example ESMTP\r\n".to_owned(),
            Manner::Stranger => answer(200, "<html>hello</html>"),
            Manner::Unavailable => refusal(ErrorCode::Unavailable),
            Manner::NoPool => refusal(ErrorCode::PoolNotFound),
            Manner::Late(_) if health => answer(200, "0"),
            Manner::Answer(number) => answer(200, &number.to_string()),
            Manner::Late(number) => {
                tokio::time::sleep(Duration::from_millis(2500)).await;
                answer(200, &number.to_string())
            }
            Manner::Lines(number) | Manner::OneLine(number) => chunk(number),
        };
        stream.write_all(text.as_bytes()).await.unwrap();
        if matches!(manner, Manner::Lines(_)) {
            let _ = manners.changed().await;
            return std::future::pending().await;
        }
        if matches!(manner, Manner::Babble | Manner::OneLine(_)) {
            return;
        }
    }
}

fn answer(status: u16, body: &str) -> String {
    format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

/// A request without a body.
async fn read(stream: &mut TcpStream) -> Option<String> {
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        text.push(stream.read_u8().await.ok()?);
    }
    String::from_utf8(text).ok()
}

/// An address at which nobody listens.
async fn nobody() -> Endpoint {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}", listener.local_addr().unwrap()).parse().unwrap()
}

fn get() -> Call {
    Call::new(Method::GET, "/v1/pools")
}

fn client(endpoints: &[&Endpoint]) -> Client {
    Client::new(endpoints.iter().map(|endpoint| (*endpoint).clone()).collect(), LIMIT)
}

#[tokio::test]
async fn whatever_is_wrong_with_one_server_another_answers_and_is_kept() {
    for manner in
        [Manner::Mute, Manner::Babble, Manner::Stranger, Manner::HangUp, Manner::Unavailable]
    {
        let (bad, good) = (Server::start(manner).await, Server::start(Manner::Answer(7)).await);
        let client = client(&[&nobody().await, &bad.endpoint, &good.endpoint]);
        for _ in 0..3 {
            let number: Value =
                client.call(&get()).await.unwrap_or_else(|e| panic!("{manner:?}: {e}"));
            assert_eq!(number, 7, "{manner:?}");
        }
        assert_eq!((bad.asked(), good.asked()), (1, 3), "{manner:?}: the one that works is kept");
    }
}

#[tokio::test]
async fn a_server_that_takes_long_with_reason_is_waited_for() {
    let (late, other) =
        (Server::start(Manner::Late(1)).await, Server::start(Manner::Answer(2)).await);
    let client = client(&[&late.endpoint, &other.endpoint]);
    assert_eq!(client.call::<Value>(&get()).await.unwrap(), 1);
    assert_eq!(other.asked(), 0);
}

#[tokio::test]
async fn a_server_that_stops_in_the_middle_is_left_and_another_asked() {
    let (first, second) =
        (Server::start(Manner::Answer(1)).await, Server::start(Manner::Answer(2)).await);
    let client = client(&[&first.endpoint, &second.endpoint]);
    assert_eq!(client.call::<Value>(&get()).await.unwrap(), 1);
    first.manner.send_replace(Manner::Mute);
    let attempted = client.attempt::<Value>(&get()).await;
    assert_eq!(attempted.answer.unwrap(), 2);
    assert!(attempted.unsure, "the first one may have done it");
    second.manner.send_replace(Manner::Unavailable);
    first.manner.send_replace(Manner::Answer(3));
    let attempted = client.attempt::<Value>(&get()).await;
    assert_eq!(attempted.answer.unwrap(), 3, "nobody is left for ever");
    assert!(!attempted.unsure, "one that cannot serve has done nothing");
}

#[tokio::test]
async fn a_refusal_is_an_answer_and_nobody_else_is_asked() {
    let (first, second) =
        (Server::start(Manner::NoPool).await, Server::start(Manner::Answer(2)).await);
    let client = client(&[&first.endpoint, &second.endpoint]);
    let error = client.call::<Value>(&get()).await.unwrap_err();
    assert!(matches!(error, ClientError::Refused(error) if error.code == ErrorCode::PoolNotFound));
    assert_eq!(second.asked(), 0);
}

#[tokio::test]
async fn where_all_fail_the_error_is_the_one_of_which_most_may_follow() {
    let (gone, busy) =
        (Server::start(Manner::HangUp).await, Server::start(Manner::Unavailable).await);
    let all = client(&[&gone.endpoint, &busy.endpoint, &nobody().await]);
    let error = all.call::<Value>(&get()).await.unwrap_err();
    assert!(error.outcome_unknown(), "{error}");
    assert_eq!((gone.asked(), busy.asked()), (1, 1), "each is asked once");
    let two = client(&[&busy.endpoint, &nobody().await]);
    let error = two.call::<Value>(&get()).await.unwrap_err();
    assert!(matches!(error, ClientError::Refused(_)), "{error}");
    let none = client(&[&nobody().await, &nobody().await]);
    let error = none.call::<Value>(&get()).await.unwrap_err();
    assert!(matches!(error, ClientError::Connect { .. }), "{error}");
}

#[tokio::test]
async fn a_stream_goes_on_at_another_server_when_its_own_dies_or_is_left() {
    let dying = Server::start(Manner::OneLine(1)).await;
    let steady = Server::start(Manner::Lines(2)).await;
    let client = client(&[&nobody().await, &dying.endpoint, &steady.endpoint]);
    let mut lines = client.lines(&get()).await.unwrap();
    assert_eq!(lines.next::<u32>(LIMIT).await.unwrap(), Some(1));
    let end = lines.next::<u32>(LIMIT).await;
    assert!(matches!(end, Ok(None) | Err(ClientError::Broken { .. })), "{end:?}");
    dying.manner.send_replace(Manner::Unavailable);
    let mut lines = client.lines(&get()).await.unwrap();
    assert_eq!(lines.next::<u32>(LIMIT).await.unwrap(), Some(2));
    // The server stops: its stream says nothing, and another request finds it out.
    steady.manner.send_replace(Manner::Mute);
    dying.manner.send_replace(Manner::Answer(3));
    assert_eq!(client.call::<Value>(&get()).await.unwrap(), 3);
    let end = lines.next::<u32>(Duration::from_secs(3600)).await;
    assert!(matches!(end, Err(ClientError::Left { .. })), "{end:?}");
}

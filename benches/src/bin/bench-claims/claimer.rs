//! Edge: hosts that claim addresses and give them back, over HTTP.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use limpet_api::book::{AttachmentKey, EndReason};
use limpet_api::client::{Call, Connection, Endpoint, Method};
use limpet_api::config::NetworkSpec;
use limpet_api::host::{ClaimRequest, Claimed, EndRequest, Session, Wanted};
use limpet_api::paths;
use limpet_benches::milliseconds;
use limpet_net_types::{NetworkName, Token};
use serde_json::{Value, json};

/// How long one request may take.
const LIMIT: Duration = Duration::from_secs(10);

/// A pool's name and its range.
pub(crate) type PoolRange<'a> = (&'a str, &'a str);

/// More addresses of both families than any run takes.
pub(crate) const WIDE: [PoolRange<'_>; 2] = [("v4", "10.0.0.0/8"), ("v6", "fd32::/64")];

/// What each request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// Claims.
    Claim,
    /// Claims, and ends it again.
    ClaimAndEnd,
}

/// When a run ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stop {
    /// After this time.
    After(Duration),
    /// When so many claims were begun since the first.
    At(u32),
}

/// Some hosts of one network, which claim in turn.
#[derive(Debug)]
pub(crate) struct Claimer {
    endpoint: Endpoint,
    network: NetworkName,
    families: usize,
    sessions: Vec<(String, Token)>,
    next: AtomicU32,
}

impl Claimer {
    /// Makes a network with these pools and joins so many hosts, at most 250.
    pub(crate) async fn join(
        url: &str,
        network: &str,
        pools: &[PoolRange<'_>],
        hosts: u8,
    ) -> Result<Self> {
        let endpoint: Endpoint = url.parse()?;
        let mut connection = connect(&endpoint).await?;
        let network: NetworkName = network.parse()?;
        let create =
            Call::with_body(Method::PUT, paths::network(&network), &NetworkSpec::default())?;
        connection.call::<Value>(&create, LIMIT).await?;
        for (name, range) in pools {
            let spec = json!({"network": network, "range": range});
            let create = Call::with_body(Method::PUT, paths::pool(&name.parse()?), &spec)?;
            connection.call::<Value>(&create, LIMIT).await?;
        }
        let mut sessions = Vec::new();
        for number in 1..=hosts {
            let host = format!("bench-{number}");
            let request = json!({
                "install": Token::from_bits(u128::from(number)),
                "boot": Token::from_bits(1000 + u128::from(number)),
                "underlay": format!("192.0.2.{number}"),
                "addresses": [format!("192.0.2.{number}"), format!("2001:db8::{number}")],
                "roles": ["node"],
                "version": "bench",
            });
            let open = Call::with_body(Method::POST, paths::session(&host.parse()?), &request)?;
            let Session { session, .. } = connection.call(&open, LIMIT).await?;
            sessions.push((host, session));
        }
        let next = AtomicU32::new(0);
        Ok(Self { endpoint, network, families: pools.len(), sessions, next })
    }

    /// How many claims were begun.
    pub(crate) fn begun(&self) -> u32 {
        self.next.load(Ordering::Relaxed)
    }

    /// The number of the next claim, unless the run is over.
    fn draw(&self, start: Instant, stop: Stop) -> Option<u32> {
        let next = |number| match stop {
            Stop::After(time) => (start.elapsed() < time).then_some(number + 1),
            Stop::At(end) => (number < end).then_some(number + 1),
        };
        self.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).ok()
    }

    /// Claims the addresses of a name, over `connection`.
    async fn act(&self, connection: &mut Connection, act: Act, number: u32) -> Result<()> {
        let turn = usize::try_from(number)? % self.sessions.len();
        let (host, session) = self.sessions.get(turn).context("no host joined")?;
        let key = AttachmentKey {
            host: host.parse()?,
            network: self.network.clone(),
            container: format!("c{number:08x}").parse()?,
            ifname: "eth0".parse()?,
        };
        let wanted = Wanted {
            netns: format!("/run/netns/c{number}"),
            namespace: format!("n{}", number / 10_000).parse()?,
            name: Some(format!("web-{}", number % 10_000).parse()?),
            ..Wanted::default()
        };
        let (session, uid) = (*session, Token::from_bits(u128::from(number) + 1));
        let request = ClaimRequest { session, uid, wanted };
        let call = Call::with_body(Method::PUT, paths::claim(&key), &request)?;
        let answer: Claimed = connection.call(&call, LIMIT).await?;
        ensure!(answer.attachment.addresses.len() == self.families, "a claim without a family");
        if act == Act::ClaimAndEnd {
            let request = EndRequest { session, uid, reason: EndReason::Detached };
            let call = Call::new(Method::DELETE, paths::claim(&key)).with_query(&request)?;
            connection.call::<Value>(&call, LIMIT).await?;
        }
        Ok(())
    }

    /// Acts over `at_once` connections; returns the milliseconds that each took.
    pub(crate) async fn run(self: &Arc<Self>, at_once: usize, act: Act, stop: Stop) -> Result<Ran> {
        let mut connections = Vec::new();
        for _ in 0..at_once {
            connections.push(connect(&self.endpoint).await?);
        }
        let start = Instant::now();
        let mut running = Vec::new();
        for mut connection in connections {
            let claimer = Arc::clone(self);
            running.push(tokio::spawn(async move {
                let mut times = Vec::new();
                while let Some(number) = claimer.draw(start, stop) {
                    let asked = Instant::now();
                    claimer.act(&mut connection, act, number).await?;
                    times.push(milliseconds(asked.elapsed()));
                }
                Ok::<_, anyhow::Error>(times)
            }));
        }
        let mut times = Vec::new();
        for task in running {
            times.extend(task.await.context("a task panicked")??);
        }
        Ok(Ran { times, took: start.elapsed() })
    }
}

/// What came of a run.
#[derive(Debug)]
pub(crate) struct Ran {
    /// The milliseconds that each act took.
    pub(crate) times: Vec<f64>,
    /// How long the whole took.
    pub(crate) took: Duration,
}

impl Ran {
    /// Acts per second.
    pub(crate) fn rate(&self) -> f64 {
        limpet_benches::count(self.times.len()) / self.took.as_secs_f64()
    }
}

async fn connect(endpoint: &Endpoint) -> Result<Connection> {
    let end = Instant::now() + LIMIT;
    loop {
        match Connection::open(endpoint, LIMIT).await {
            Ok(connection) => return Ok(connection),
            Err(error) if Instant::now() > end => return Err(error.into()),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

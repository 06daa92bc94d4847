//! Edge: what the agent counts, for Prometheus; and the listener that others read it from.
//!
//! What is counted is counted where it happens. What stands as it stands (joined, attachments, ...) is looked up when
//! somebody asks, so that no number can be forgotten to be brought up to date. docs/metrics.md has every metric.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{Request, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use limpet_api::client::ClientError;
use limpet_api::condition::ConditionCode;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;
use tracing::{info, warn};

use crate::agent::Agent;
use crate::kernel::StepFailed;
use crate::step::Step;

/// What the text is: `OpenMetrics`, which Prometheus asks for.
const CONTENT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The pause before an address that is taken is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// How many are answered at once: anybody may come, and the agent needs its file descriptors and its memory for the host.
const MOST: usize = 16;

/// How long a connection may last.
const LIMIT: Duration = Duration::from_secs(10);

/// How a request to a controller went.
const OUTCOMES: [&str; 3] = ["answered", "refused", "failed"];

/// One label and its value, both from lists that end: no metric grows with the cluster.
type Label = [(&'static str, &'static str); 1];

/// What the agent counts.
pub(crate) struct Metrics {
    registry: Registry,
    steps: Family<Label, Counter>,
    steps_failed: Family<Label, Counter>,
    pass_seconds: Histogram,
    requests: Family<Label, Counter>,
    joined: Gauge,
    joins: Counter,
    revision: Gauge,
    attachments: Gauge,
    severed: Gauge,
    severings: Counter,
    endings: Gauge,
    failures: Gauge,
    problems: Gauge,
    silence: Gauge,
    recalled: Gauge,
    not_saved: Gauge,
    overruns: Counter,
    drift: Family<Label, Counter>,
    condition: Family<Label, Gauge>,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("limpet");
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("agent", "The agent's version", version);
        let mut gauge = |name: &str, help: &str| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let joined = gauge("joined", "Whether the host has joined");
        let revision = gauge("revision", "The last revision of the store that the agent knows");
        let attachments = gauge("attachments", "Attachments of this host");
        let severed = gauge("severed", "Containers that are off the network by the agent's doing");
        let endings = gauge("endings", "Ends of attachments that no controller has confirmed yet");
        let failures = gauge("failures", "What the last pass could not do");
        let problems = gauge("problems", "What cannot be laid out on this host");
        let recalled = gauge("recalled", "Whether all that is known is from the host's own disk");
        let not_saved = gauge("not_saved", "Whether what is known cannot be written to the disk");
        let silence = Gauge::default();
        registry.register_with_unit(
            "controller_silence",
            "For how long no controller has answered",
            Unit::Seconds,
            silence.clone(),
        );
        let mut counters = |name: &str, help: &str| {
            let counters = Family::<Label, Counter>::default();
            registry.register(name, help, counters.clone());
            counters
        };
        let [joins, severings] = [Counter::default(), Counter::default()];
        let steps = counters("steps", "Changes of the kernel that were carried out");
        let steps_failed = counters("steps_failed", "Changes of the kernel that failed");
        let drift = counters("drift", "What of limpet's others changed and was put back");
        let requests = counters("controller_requests", "Requests to controllers, by how they went");
        // What has a value from the beginning is no news with its first one.
        for outcome in OUTCOMES {
            let _ = requests.get_or_create(&[("outcome", outcome)]);
        }
        registry.register("joins", "How often the host has joined", joins.clone());
        registry.register("severings", "Containers taken off the network", severings.clone());
        let overruns = Counter::default();
        let help = "Times that the kernel's notifications overran";
        registry.register("notification_overruns", help, overruns.clone());
        let condition = Family::<Label, Gauge>::default();
        let help = "Whether a condition of the host holds";
        registry.register("condition", help, condition.clone());
        let pass_seconds = Histogram::new(exponential_buckets(0.001, 4.0, 8));
        registry.register_with_unit(
            "pass",
            "How long passes over the kernel took",
            Unit::Seconds,
            pass_seconds.clone(),
        );
        Self {
            registry,
            steps,
            steps_failed,
            pass_seconds,
            requests,
            joined,
            joins,
            revision,
            attachments,
            severed,
            severings,
            endings,
            failures,
            problems,
            silence,
            recalled,
            not_saved,
            overruns,
            drift,
            condition,
        }
    }

    /// A pass is over: how long it took, and what it did.
    pub(crate) fn passed(&self, took: Duration) {
        self.pass_seconds.observe(took.as_secs_f64());
    }

    /// Steps were carried out, all but `failed`.
    pub(crate) fn stepped(&self, steps: &[Step], failed: &[StepFailed]) {
        for step in steps {
            self.steps.get_or_create(&[("kind", step.kind())]).inc();
        }
        for failed in failed {
            self.steps_failed.get_or_create(&[("kind", failed.step.kind())]).inc();
        }
    }

    /// The kernel's notifications overran.
    pub(crate) fn overran(&self) {
        self.overruns.inc();
    }

    /// How often they did.
    pub(crate) fn overruns(&self) -> u64 {
        self.overruns.get()
    }

    /// These conditions hold, and no others.
    pub(crate) fn conditions(&self, holding: &[ConditionCode]) {
        for code in ConditionCode::ALL {
            let holds = holding.contains(code);
            self.condition.get_or_create(&[("code", code.as_str())]).set(i64::from(holds));
        }
    }

    /// A controller was asked.
    pub(crate) fn asked<A>(&self, answer: &Result<A, ClientError>) {
        let [answered, refused, failed] = OUTCOMES;
        let outcome = match answer {
            Ok(_) => answered,
            Err(ClientError::Refused(_)) => refused,
            Err(_) => failed,
        };
        self.requests.get_or_create(&[("outcome", outcome)]).inc();
    }

    /// All of it as text, with what stands as it stands now.
    pub(crate) fn text(agent: &Agent) -> String {
        let metrics = &agent.metrics;
        let joined = agent.session().is_ok();
        {
            let pass = agent.passes.borrow();
            metrics.failures.set(number(pass.failures.len()));
            metrics.problems.set(number(pass.problems.len()));
        }
        {
            let state = agent.state();
            metrics.joined.set(i64::from(joined));
            metrics.revision.set(number(state.view.position().map_or(0, |(_, at)| at)));
            metrics.attachments.set(number(state.view.attachments().count()));
            metrics.severed.set(number(state.severed.len()));
            // Under the lock, so that nobody else counts the same ones.
            follow(&metrics.severings, state.severed_ever);
            follow(&metrics.joins, *agent.joins.borrow());
            for (kind, count) in state.drifts.counts() {
                follow(&metrics.drift.get_or_create(&[("kind", kind.name())]), count);
            }
            metrics.endings.set(number(state.endings.len()));
            let silent = state.contact.silent.as_ref().map(|(since, _)| since.elapsed());
            metrics.silence.set(number(silent.unwrap_or_default().as_secs()));
            metrics.recalled.set(i64::from(state.recalled.is_some()));
            metrics.not_saved.set(i64::from(state.not_saved.is_some()));
        }
        let mut text = String::new();
        match encode(&mut text, &metrics.registry) {
            Ok(()) => text,
            // A string takes whatever is written to it.
            Err(std::fmt::Error) => unreachable!("writing into memory succeeds"),
        }
    }
}

/// What the socket and the listener answer.
pub(crate) fn answer(agent: &Agent) -> Response {
    ([(header::CONTENT_TYPE, CONTENT)], Metrics::text(agent)).into_response()
}

/// Serves `/metrics` at `address` until `stop`, and nothing else.
///
/// An address that is taken is tried again for ever: a host does not go without network for want of its numbers.
pub(crate) async fn serve(agent: Arc<Agent>, address: SocketAddr, stop: CancellationToken) {
    let Some(listener) = stop.run_until_cancelled(listen(address)).await else { return };
    let scrape = |State(agent): State<Arc<Agent>>| async move { answer(&agent) };
    let router = Router::new().route("/metrics", get(scrape)).with_state(agent);
    // A connection that is kept open must not keep the agent.
    let _ = stop.run_until_cancelled(accept(listener, router)).await;
}

/// Answers whoever comes, [`MOST`] at once, for ever.
async fn accept(listener: TcpListener, router: Router) {
    let mut open = JoinSet::new();
    loop {
        while open.try_join_next().is_some() {}
        if open.len() >= MOST {
            open.join_next().await;
            continue;
        }
        match listener.accept().await {
            Ok((stream, _)) => drop(open.spawn(converse(stream, router.clone()))),
            Err(error) => {
                warn!(%error, "cannot accept a connection for metrics");
                sleep(RETRY).await;
            }
        }
    }
}

/// One connection: one request and its answer, within [`LIMIT`].
async fn converse(stream: TcpStream, router: Router) {
    let service = service_fn(move |request: Request<Incoming>| router.clone().oneshot(request));
    let mut http = hyper::server::conn::http1::Builder::new();
    let serving = http.keep_alive(false).serve_connection(TokioIo::new(stream), service);
    // Whoever went away, or said nothing that can be answered, is not missed.
    let _ = timeout(LIMIT, serving).await;
}

async fn listen(address: SocketAddr) -> TcpListener {
    let mut complaint: Option<io::ErrorKind> = None;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => {
                info!(%address, "metrics at /metrics");
                return listener;
            }
            Err(error) if complaint == Some(error.kind()) => {}
            Err(error) => {
                warn!(%address, %error, "cannot listen for who reads the metrics, trying on");
                complaint = Some(error.kind());
            }
        }
        sleep(RETRY).await;
    }
}

/// Brings a counter to what is counted elsewhere.
fn follow(counter: &Counter, count: u64) {
    counter.inc_by(count.saturating_sub(counter.get()));
}

/// A number as the library has it.
fn number(number: impl TryInto<i64>) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::fixture;

    /// The metrics that the manual has: name and type.
    fn manual() -> BTreeSet<(String, String)> {
        let manual = include_str!("../../docs/metrics.md");
        let (_, manual) = manual.split_once("## The agent\n").unwrap();
        let manual = manual.split("\n## ").next().unwrap();
        let rows = manual.lines().filter(|line| line.starts_with("| `limpet_"));
        let rows = rows.map(|row| {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            (cells[1].trim_matches('`').to_owned(), cells[2].to_owned())
        });
        rows.collect()
    }

    #[test]
    fn every_metric_of_the_agent_is_in_the_manual_and_every_one_of_the_manual_is_there() {
        let agent = fixture::agent();
        agent.metrics.conditions(&[]);
        agent.metrics.stepped(&[Step::DelNexthop(1)], &[]);
        agent.metrics.steps_failed.get_or_create(&[("kind", "delete-nexthop")]).inc();
        let text = Metrics::text(&agent);
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        let ours: BTreeSet<_> = types
            .map(|line| {
                let (name, kind) = line.split_once(' ').unwrap();
                let suffix = match kind {
                    "counter" => "_total",
                    "info" => "_info",
                    _ => "",
                };
                (format!("{name}{suffix}"), kind.to_owned())
            })
            .collect();
        assert!(ours.len() > 10, "{text}");
        assert_eq!(ours, manual());
    }

    #[test]
    fn what_is_counted_is_shown_by_its_kind() {
        let agent = fixture::agent();
        let steps = [Step::DelDevice("limpet9".to_owned()), Step::DelNexthop(1)];
        agent.metrics.stepped(&steps, &[]);
        agent.metrics.stepped(&steps[..1], &[]);
        agent.metrics.passed(Duration::from_millis(3));
        agent.joined(fixture::session());
        let text = Metrics::text(&agent);
        for line in [
            "limpet_steps_total{kind=\"delete-device\"} 2",
            "limpet_steps_total{kind=\"delete-nexthop\"} 1",
            "limpet_pass_seconds_count 1",
            "limpet_joined 1",
            "limpet_agent_info{version=\"0.1.0\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }

    #[tokio::test]
    async fn the_listener_waits_for_an_address_that_is_taken_and_stops_when_told() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = taken.local_addr().unwrap();
        let stop = CancellationToken::new();
        let agent = Arc::new(fixture::agent());
        tokio::time::pause();
        let serving = tokio::spawn(serve(agent, address, stop.clone()));
        sleep(RETRY / 2).await;
        drop(taken);
        let endpoint = format!("http://{address}").parse().unwrap();
        let limit = Duration::from_secs(60);
        let body = loop {
            // Until it listens, and its text is no JSON: the complaint begins with it.
            match limpet_api::client::Connection::open(&endpoint, limit).await {
                Ok(mut connection) => {
                    let call =
                        limpet_api::client::Call::new(limpet_api::client::Method::GET, "/metrics");
                    break connection.call::<serde_json::Value>(&call, limit).await;
                }
                Err(_) => sleep(Duration::from_secs(1)).await,
            }
        };
        let said = format!("{:?}", body.unwrap_err());
        assert!(said.contains("limpet_"), "{said}");
        stop.cancel();
        serving.await.unwrap();
    }

    #[tokio::test]
    async fn strangers_who_say_nothing_are_few_and_go_so_that_others_are_answered() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/metrics", get(|| async { "limpet_up 1" }));
        let mut silent = Vec::new();
        for _ in 0..MOST {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let mut asks = TcpStream::connect(address).await.unwrap();
        asks.write_all(b"GET /metrics HTTP/1.1\r\nhost: limpet\r\n\r\n").await.unwrap();
        tokio::time::pause();
        let begun = tokio::time::Instant::now();
        let accepting = tokio::spawn(accept(listener, router));
        let mut answer = String::new();
        timeout(LIMIT * 6, asks.read_to_string(&mut answer)).await.unwrap().unwrap();
        assert!(answer.ends_with("limpet_up 1"), "{answer}");
        assert!(begun.elapsed() >= LIMIT, "the others were there first");
        for mut stream in silent {
            assert_eq!(timeout(LIMIT, stream.read(&mut [0])).await.unwrap().unwrap(), 0);
        }
        accepting.abort();
    }
}

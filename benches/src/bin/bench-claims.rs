//! Edge: durable claims per second at the controller, beside what its disk and its store can do alone.
//!
//! The claims come over HTTP from 1 and from 64 connections to the real controller, whose store is on the disk. `disk`
//! is a file that is appended to and synced, `redb` the embedded store's library writing the records of a claim;
//! with `.64`, the writes of 64 claims share a sync, as they can in the controller. All alternate.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use limpet_api::book::AttachmentKey;
use limpet_api::client::{Call, Connection, Endpoint, Method};
use limpet_api::config::{NetworkSpec, PoolSpec};
use limpet_api::host::{ClaimRequest, Claimed, Session, SessionRequest, Wanted};
use limpet_api::paths;
use limpet_benches::{Better, Report, Row, count, milliseconds, row, scratch};
use limpet_net_types::{NetworkName, Token};
use redb::{Database, TableDefinition};

/// How many times each side runs.
const ROUNDS: usize = 7;
/// How long one run of a side is.
const RUN: Duration = Duration::from_millis(1500);
/// How long one request may take.
const LIMIT: Duration = Duration::from_secs(10);
/// Addresses that are held when memory is read; each claim has two.
const ADDRESSES: u32 = 100_000;
/// About what a claim writes, in bytes: attachment, two addresses, reservation, and all again in the change log.
const RECORDS: [usize; 5] = [420, 120, 120, 330, 990];

const TABLE: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("claims");

fn main() -> Result<()> {
    let disk = scratch("bench-claims")?;
    let controller = Controller::start(&disk)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let claimer = Arc::new(runtime.block_on(Claimer::join(&controller.url))?);
    let database = Database::create(disk.join("alone.redb"))?;

    let mut sides = [1, 64].map(Side::new);
    for _ in 0..ROUNDS {
        for side in &mut sides {
            side.disk.push(appends(&disk, side.at_once)?);
            side.redb.push(commits(&database, side.at_once)?);
            let times = runtime.block_on(claims(&claimer, side.at_once, Stop::After(RUN)))?;
            side.claims.push(count(times.len()) / RUN.as_secs_f64());
            side.times.extend(times);
        }
    }
    let mut rows: Vec<Row> = sides.iter().flat_map(Side::rows).collect();
    rows.push(memory(&controller, &claimer, &runtime)?);
    let report = Report::new("claims", rows);
    report.publish(&remarks(&report))?;

    drop((controller, database));
    fs::remove_dir_all(disk)?;
    Ok(())
}

/// What was measured with this many at once.
struct Side {
    at_once: usize,
    disk: Vec<f64>,
    redb: Vec<f64>,
    claims: Vec<f64>,
    times: Vec<f64>,
}

impl Side {
    fn new(at_once: usize) -> Self {
        Self { at_once, disk: Vec::new(), redb: Vec::new(), claims: Vec::new(), times: Vec::new() }
    }

    fn rows(&self) -> [Row; 4] {
        let rate = |name: &str, samples: &[f64]| {
            row(format!("{name}.{}", self.at_once), "1/s", Better::High, samples)
        };
        [
            rate("embedded", &self.claims),
            row(format!("embedded.{}.time", self.at_once), "ms", Better::Low, &self.times),
            rate("disk", &self.disk),
            rate("redb", &self.redb),
        ]
    }
}

fn remarks(report: &Report) -> Vec<String> {
    ["1", "64"]
        .iter()
        .map(|n| {
            let claims = report.median(&format!("embedded.{n}"));
            let of = |side: &str| claims / report.median(&format!("{side}.{n}"));
            format!(
                "with {n} at once: {claims:.0} claims/s, {:.2} of what redb does alone, {:.2} of the bare disk",
                of("redb"),
                of("disk")
            )
        })
        .collect()
}

/// Appends of a claim's records per second, `at_once` of them to a sync.
fn appends(disk: &Path, at_once: usize) -> Result<f64> {
    let record = vec![0x5a; RECORDS.iter().sum::<usize>() * at_once];
    let mut file = File::create(disk.join("appended"))?;
    let (start, mut done) = (Instant::now(), 0);
    while start.elapsed() < RUN {
        file.write_all(&record)?;
        file.sync_data()?;
        done += at_once;
    }
    Ok(count(done) / start.elapsed().as_secs_f64())
}

/// Claims' records that the store's library makes durable per second, `at_once` claims to a commit.
fn commits(database: &Database, at_once: usize) -> Result<f64> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let (start, mut done) = (Instant::now(), 0);
    while start.elapsed() < RUN {
        let mut transaction = database.begin_write()?;
        transaction.set_quick_repair(true);
        {
            let mut table = transaction.open_table(TABLE)?;
            for _ in 0..at_once {
                for length in RECORDS {
                    let key = NEXT.fetch_add(1, Ordering::Relaxed);
                    // Keys of a claim are spread over the tables: the multiplier is odd, so none comes twice.
                    let key = u64::from(key).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                    table.insert(key, vec![0x5a; length].as_slice())?;
                }
            }
        }
        transaction.commit()?;
        done += at_once;
    }
    Ok(count(done) / start.elapsed().as_secs_f64())
}

/// The real controller, on loopback.
struct Controller {
    child: Child,
    url: String,
}

impl Controller {
    fn start(disk: &Path) -> Result<Self> {
        // The sandbox's loopback is this process' own, so the port is free.
        let listen = "127.0.0.1:7600";
        let child = Command::new(netns_tests::binary("limpet-controller"))
            .args(["--listen", listen, "--plain-http", "--store"])
            .arg(disk.join("store.redb"))
            .stdin(Stdio::null())
            .stdout(File::create(disk.join("controller.out"))?)
            .stderr(File::create(disk.join("controller.log"))?)
            .spawn()
            .context("starting the controller")?;
        Ok(Self { child, url: format!("http://{listen}") })
    }

    /// Its resident memory, in MiB.
    fn resident(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let kilobytes = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u32>().ok());
        Ok(f64::from(kilobytes.context("no VmRSS in the controller's status")?) / 1024.0)
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A host that claims.
struct Claimer {
    endpoint: Endpoint,
    network: NetworkName,
    session: Token,
    next: AtomicU32,
}

impl Claimer {
    /// Makes a network with a pool of each family and joins a host.
    async fn join(url: &str) -> Result<Self> {
        let endpoint: Endpoint = url.parse()?;
        let mut connection = connect(&endpoint).await?;
        let network: NetworkName = "pods".parse()?;
        let create =
            Call::with_body(Method::PUT, paths::network(&network), &NetworkSpec::default())?;
        connection.call::<serde_json::Value>(&create, LIMIT).await?;
        for (name, range) in [("v4", "10.0.0.0/8"), ("v6", "fd32::/64")] {
            let spec = PoolSpec {
                network: network.clone(),
                range: range.parse()?,
                exclude: Vec::new(),
                block_size: None,
                sticky: limpet_api::config::Sticky::Auto,
                retention: None,
                cooldown: None,
                takeover_after: None,
                select: limpet_api::config::Select::default(),
                priority: 0,
            };
            let create = Call::with_body(Method::PUT, paths::pool(&name.parse()?), &spec)?;
            connection.call::<serde_json::Value>(&create, LIMIT).await?;
        }
        let request = SessionRequest {
            install: Token::from_bits(1),
            boot: Token::from_bits(2),
            underlay: "192.0.2.1".parse()?,
            addresses: vec!["192.0.2.1".parse()?, "2001:db8::1".parse()?],
            on_link: [].into(),
            roles: [limpet_api::config::Role::Node].into(),
            external: [].into(),
            version: "bench".to_owned(),
        };
        let open = Call::with_body(Method::POST, paths::session(&"bench".parse()?), &request)?;
        let Session { session, .. } = connection.call(&open, LIMIT).await?;
        Ok(Self { endpoint, network, session, next: AtomicU32::new(0) })
    }

    /// Claims the addresses of the next name, over `connection`.
    async fn claim(&self, connection: &mut Connection) -> Result<Claimed> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let key = AttachmentKey {
            host: "bench".parse()?,
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
        let uid = Token::from_bits(u128::from(number) + 1);
        let request = ClaimRequest { session: self.session, uid, wanted };
        let call = Call::with_body(Method::PUT, paths::claim(&key), &request)?;
        Ok(connection.call(&call, LIMIT).await?)
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

/// When a run ends.
#[derive(Clone, Copy)]
enum Stop {
    /// After this time.
    After(Duration),
    /// When so many claims were begun since the start.
    At(u32),
}

/// Claims with `at_once` connections; returns the milliseconds that each claim took.
async fn claims(claimer: &Arc<Claimer>, at_once: usize, stop: Stop) -> Result<Vec<f64>> {
    let start = Instant::now();
    let mut running = Vec::new();
    for _ in 0..at_once {
        let claimer = Arc::clone(claimer);
        let mut connection = connect(&claimer.endpoint).await?;
        running.push(tokio::spawn(async move {
            let mut times = Vec::new();
            let goes_on = || match stop {
                Stop::After(time) => start.elapsed() < time,
                Stop::At(number) => claimer.next.load(Ordering::Relaxed) < number,
            };
            while goes_on() {
                let asked = Instant::now();
                let answer = claimer.claim(&mut connection).await?;
                times.push(milliseconds(asked.elapsed()));
                ensure!(answer.attachment.addresses.len() == 2, "a claim without both families");
            }
            Ok(times)
        }));
    }
    let mut times = Vec::new();
    for task in running {
        times.extend(task.await.context("a task panicked")??);
    }
    Ok(times)
}

/// The controller's memory when [`ADDRESSES`] are held.
fn memory(
    controller: &Controller,
    claimer: &Arc<Claimer>,
    runtime: &tokio::runtime::Runtime,
) -> Result<Row> {
    // The runs before may have taken more already; then that is what is shown.
    let wanted = ADDRESSES / 2;
    runtime.block_on(claims(claimer, 64, Stop::At(wanted)))?;
    // What is freed lazily is given a moment; the lowest of some readings is the controller's own.
    let mut readings = Vec::new();
    for _ in 0..5 {
        readings.push(controller.resident()?);
        thread::sleep(Duration::from_millis(100));
    }
    let addresses = claimer.next.load(Ordering::Relaxed) * 2;
    Ok(row(format!("memory.{}k", addresses / 1000), "MiB", Better::Low, &readings))
}

//! Edge: Debian's etcd on the disk, and what it does alone with single transactions.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use etcd_client::{Client, Compare, CompareOp, Txn, TxnOp};
use limpet_benches::{count, milliseconds};

use crate::alone::RECORDS;

/// How long it may take to start.
const LIMIT: Duration = Duration::from_secs(20);

const URL: &str = "http://127.0.0.1:2379";

/// One member, which is the whole cluster.
#[derive(Debug)]
pub(crate) struct Etcd {
    child: Child,
    next: Arc<AtomicU64>,
}

impl Etcd {
    /// Starts it with its data in `disk`.
    pub(crate) async fn start(disk: &Path) -> Result<Self> {
        let child = Command::new("etcd")
            .arg("--data-dir")
            .arg(disk.join("etcd"))
            .args(["--listen-client-urls", URL, "--advertise-client-urls", URL])
            .args(["--listen-peer-urls", "http://127.0.0.1:2380", "--logger", "zap"])
            .args(["--log-level", "warn", "--quota-backend-bytes", "8589934592"])
            .stdin(Stdio::null())
            .stdout(File::create(disk.join("etcd.out"))?)
            .stderr(File::create(disk.join("etcd.log"))?)
            .spawn()
            .context("starting etcd: scripts/setup bench installs it")?;
        let etcd = Self { child, next: Arc::default() };
        let end = Instant::now() + LIMIT;
        while let Err(error) = etcd.answers().await {
            ensure!(Instant::now() < end, "etcd did not start within {LIMIT:?}: {error}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(etcd)
    }

    async fn answers(&self) -> Result<()> {
        self.client().await?.get("ready", None).await?;
        Ok(())
    }

    /// Where it serves.
    pub(crate) fn url() -> String {
        URL.to_owned()
    }

    async fn client(&self) -> Result<Client> {
        Ok(Client::connect([URL], None).await?)
    }

    /// Transactions of a claim's size by `at_once` clients, each with one at a time; returns how
    /// many were done in a second, and the milliseconds that each took.
    pub(crate) async fn singles(&self, at_once: usize, run: Duration) -> Result<(f64, Vec<f64>)> {
        // A connection for each would be more than any client makes; one for all queues.
        let mut clients = Vec::new();
        for _ in 0..at_once.min(8) {
            clients.push(self.client().await?);
        }
        let start = Instant::now();
        let mut running = Vec::new();
        for client in clients.iter().cycle().take(at_once) {
            let (mut client, next) = (client.clone(), Arc::clone(&self.next));
            running.push(tokio::spawn(async move {
                let mut times = Vec::new();
                while start.elapsed() < run {
                    let asked = Instant::now();
                    let answer = client.txn(single(next.fetch_add(1, Ordering::Relaxed))).await?;
                    ensure!(answer.succeeded(), "nobody else writes these keys");
                    times.push(milliseconds(asked.elapsed()));
                }
                Ok(times)
            }));
        }
        let mut times = Vec::new();
        for task in running {
            times.extend(task.await.context("a task panicked")??);
        }
        Ok((count(times.len()) / start.elapsed().as_secs_f64(), times))
    }
}

/// What a claim does: keys that must not be there, and are put.
fn single(number: u64) -> Txn {
    let keys = (0..).zip(RECORDS).map(|(kind, length)| {
        (format!("/bench/v1/{kind}/a-name-about-as-long-as-they-are/{number:012}"), length)
    });
    let keys: Vec<_> = keys.collect();
    let absent: Vec<Compare> = keys
        .iter()
        .map(|(key, _)| Compare::create_revision(key.as_str(), CompareOp::Equal, 0))
        .collect();
    let puts: Vec<TxnOp> =
        keys.into_iter().map(|(key, length)| TxnOp::put(key, vec![0x5a; length], None)).collect();
    Txn::new().when(absent).and_then(puts)
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

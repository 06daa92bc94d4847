//! Edge: durable claims per second at the controller, beside what its disk and its store can do alone.
//!
//! The claims come over HTTP from 1, 64 and 512 connections to the real controller, whose store is on the disk: in a
//! file (`embedded`) or in etcd. Beside it: `disk` is a file that is appended to and synced; `store` the library of the
//! embedded store writing what claims write as the store writes it, where the claims of that many clients share a
//! sync as they can in the controller; `etcd-alone` single transactions of a claim's size by that many clients. All
//! alternate. Then come a pool that is exactly large enough, claims that are ended again, each with its record in the
//! history, and a controller that holds a million addresses beside one that holds a thousand.

mod alone;
mod claimer;
mod controller;
mod etcd;
mod million;

use std::env;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use limpet_benches::{Better, Report, Row, count, row, scratch};
use tokio::runtime::Runtime;

use self::alone::Alone;
use self::claimer::{Act, Claimer, Stop, WIDE};
use self::controller::{Controller, Kept};
use self::etcd::Etcd;

/// How many clients there are at once.
const AT_ONCE: [usize; 3] = [1, 64, 512];
/// How many times each side runs.
const ROUNDS: usize = 5;
/// How long one run of a side is.
const RUN: Duration = Duration::from_millis(1200);

/// What a part measures.
type Measure = fn(&Path, &Runtime) -> Result<Vec<Row>>;

/// The parts, which can be named to run them alone.
const PARTS: [(&str, Measure); 5] = [
    ("embedded", embedded),
    ("etcd", in_etcd),
    ("full-pool", million::full_pool),
    ("history", million::history),
    ("million", million::rows),
];

fn main() -> Result<()> {
    let disk = scratch("bench-claims")?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let parts: Vec<String> = env::args().skip(1).collect();
    let mut rows = Vec::new();
    for (name, measure) in PARTS {
        if parts.is_empty() || parts.iter().any(|part| part == name) {
            rows.extend(measure(&disk, &runtime)?);
        }
    }
    let report = Report::new("claims", rows);
    report.publish(&remarks(&report))?;
    fs::remove_dir_all(disk)?;
    Ok(())
}

/// What was measured with one number of clients.
#[derive(Default)]
struct Side {
    claims: Vec<f64>,
    times: Vec<f64>,
    alone: Vec<f64>,
    alone_times: Vec<f64>,
    disk: Vec<f64>,
    /// Processor time of the controller for each claim, in microseconds.
    used: Vec<f64>,
}

impl Side {
    /// Claims with so many at once, and notes how that went.
    fn claim(
        &mut self,
        at_once: usize,
        runtime: &Runtime,
        (controller, claimer): (&Controller, &Arc<Claimer>),
    ) -> Result<()> {
        let before = controller.used()?;
        let ran = runtime.block_on(claimer.run(at_once, Act::Claim, Stop::After(RUN)))?;
        self.used.push((controller.used()? - before) / count(ran.times.len()));
        self.claims.push(ran.rate());
        self.times.extend(ran.times);
        Ok(())
    }

    fn rows(&self, at_once: usize, claims: &str, alone: &str) -> Vec<Row> {
        let rate = |name: &str, samples: &[f64]| {
            row(format!("{name}.{at_once}"), "1/s", Better::High, samples)
        };
        let time = |name: &str, samples: &[f64]| {
            row(format!("{name}.{at_once}.time"), "ms", Better::Low, samples)
        };
        let rows = [
            rate(claims, &self.claims),
            time(claims, &self.times),
            row(format!("{claims}.{at_once}.cpu"), "us", Better::Low, &self.used),
            rate(alone, &self.alone),
            time(alone, &self.alone_times),
            rate("disk", &self.disk),
        ];
        // What was not measured here has no row.
        rows.into_iter().filter(|row| row.n > 0).collect()
    }
}

fn embedded(disk: &Path, runtime: &Runtime) -> Result<Vec<Row>> {
    let controller = Controller::with_file(&disk.join("embedded"), 7600)?;
    let claimer = Arc::new(runtime.block_on(Claimer::join(&controller.url(), "pods", &WIDE, 1))?);
    let mut alone = Alone::new(disk)?;
    let mut sides = AT_ONCE.map(|at_once| (at_once, Side::default()));
    for _ in 0..ROUNDS {
        for (at_once, side) in &mut sides {
            side.disk.push(alone::appends(disk, *at_once, RUN)?);
            side.alone.push(alone.commits(*at_once, RUN)?);
            side.claim(*at_once, runtime, (&controller, &claimer))?;
        }
    }
    Ok(sides.iter().flat_map(|(at_once, side)| side.rows(*at_once, "embedded", "store")).collect())
}

fn in_etcd(disk: &Path, runtime: &Runtime) -> Result<Vec<Row>> {
    let etcd = runtime.block_on(Etcd::start(disk))?;
    let controller =
        Controller::start(&disk.join("etcd-controller"), 7601, Kept::Etcd(Etcd::url()))?;
    let claimer = Arc::new(runtime.block_on(Claimer::join(&controller.url(), "pods", &WIDE, 1))?);
    let mut sides = AT_ONCE.map(|at_once| (at_once, Side::default()));
    for _ in 0..ROUNDS {
        for (at_once, side) in &mut sides {
            let (rate, times) = runtime.block_on(etcd.singles(*at_once, RUN))?;
            side.alone.push(rate);
            side.alone_times.extend(times);
            side.claim(*at_once, runtime, (&controller, &claimer))?;
        }
    }
    Ok(sides.iter().flat_map(|(at_once, side)| side.rows(*at_once, "etcd", "etcd-alone")).collect())
}

fn remarks(report: &Report) -> Vec<String> {
    let mut remarks = Vec::new();
    for (claims, alone) in [("embedded", "store"), ("etcd", "etcd-alone")] {
        for at_once in AT_ONCE {
            let median = report.median(&format!("{claims}.{at_once}"));
            if median.is_nan() {
                continue;
            }
            let share = median / report.median(&format!("{alone}.{at_once}"));
            let cpu = report.median(&format!("{claims}.{at_once}.cpu"));
            remarks.push(format!(
                "{claims}, {at_once} at once: {median:.0} claims/s, {share:.2} of {alone}; {cpu:.0} us of the \
                 controller's processor time for each"
            ));
        }
    }
    let share = report.median("million.64.time") / report.median("thousand.64.time");
    if !share.is_nan() {
        remarks.push(format!(
            "with 1,000,000 addresses held a claim takes {share:.2} of what it takes with 1,000"
        ));
    }
    remarks
}

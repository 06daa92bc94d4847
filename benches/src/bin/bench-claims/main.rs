//! Edge: durable claims per second at the controller, beside what its disk and its store can do alone.
//!
//! The claims come over HTTP from 1, 64 and 512 connections to the real controller, whose store is a file on the disk.
//! Beside it, `disk` is a file that is appended to and synced, and `store` the library of the embedded store writing what
//! claims write as the store writes it; the claims of that many clients share a sync, as they can in the controller.
//! All alternate. Then come a pool that is exactly large enough, claims that are ended again, each with its record in the
//! history, and a controller that holds a million addresses beside one that holds a thousand.

mod alone;
mod claimer;
mod controller;
mod million;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use limpet_benches::{Better, Report, Row, row, scratch};
use tokio::runtime::Runtime;

use self::alone::Alone;
use self::claimer::{Act, Claimer, Stop, WIDE};
use self::controller::Controller;

/// How many clients there are at once.
const AT_ONCE: [usize; 3] = [1, 64, 512];
/// How many times each side runs.
const ROUNDS: usize = 5;
/// How long one run of a side is.
const RUN: Duration = Duration::from_millis(1200);

fn main() -> Result<()> {
    let disk = scratch("bench-claims")?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let mut rows = embedded(&disk, &runtime)?;
    rows.push(million::full_pool(&disk, &runtime)?);
    rows.extend(million::history(&disk, &runtime, RUN)?);
    rows.extend(million::rows(&disk, &runtime)?);
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
    store: Vec<f64>,
    disk: Vec<f64>,
}

impl Side {
    fn rows(&self, at_once: usize) -> [Row; 4] {
        let rate = |name: &str, samples: &[f64]| {
            row(format!("{name}.{at_once}"), "1/s", Better::High, samples)
        };
        [
            rate("embedded", &self.claims),
            row(format!("embedded.{at_once}.time"), "ms", Better::Low, &self.times),
            rate("store", &self.store),
            rate("disk", &self.disk),
        ]
    }
}

fn embedded(disk: &Path, runtime: &Runtime) -> Result<Vec<Row>> {
    let controller = Controller::start(&disk.join("embedded"), 7600)?;
    let claimer = Arc::new(runtime.block_on(Claimer::join(&controller.url(), "pods", &WIDE, 1))?);
    let mut alone = Alone::new(disk)?;
    let mut sides = AT_ONCE.map(|at_once| (at_once, Side::default()));
    for _ in 0..ROUNDS {
        for (at_once, side) in &mut sides {
            side.disk.push(alone::appends(disk, *at_once, RUN)?);
            side.store.push(alone.commits(*at_once, RUN)?);
            let ran = runtime.block_on(claimer.run(*at_once, Act::Claim, Stop::After(RUN)))?;
            side.claims.push(ran.rate());
            side.times.extend(ran.times);
        }
    }
    Ok(sides.iter().flat_map(|(at_once, side)| side.rows(*at_once)).collect())
}

fn remarks(report: &Report) -> Vec<String> {
    let mut remarks = Vec::new();
    for at_once in AT_ONCE {
        let claims = report.median(&format!("embedded.{at_once}"));
        let of = |side: &str| claims / report.median(&format!("{side}.{at_once}"));
        remarks.push(format!(
            "with {at_once} at once: {claims:.0} claims/s, {:.2} of what the store does alone, {:.2} of the bare disk",
            of("store"),
            of("disk")
        ));
    }
    let share = report.median("million.64.time") / report.median("thousand.64.time");
    remarks.push(format!(
        "with 1,000,000 addresses held a claim takes {share:.2} of what it takes with 1,000"
    ));
    remarks
}

//! Edge: the controller with a million addresses, and with a pool that is exactly large enough.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, ensure};
use limpet_benches::{Better, Row, count, row};
use tokio::runtime::Runtime;

use crate::RUN;
use crate::claimer::{Act, Claimer, Stop, WIDE};
use crate::controller::Controller;

/// Addresses that are held in the end; each claim has two.
const ADDRESSES: u32 = 1_000_000;
/// Addresses that the other controller holds.
const FEW: u32 = 1_000;
/// On how many hosts they are.
const HOSTS: u8 = 100;
/// How many times each side claims, and how many claims that are.
const ROUNDS: usize = 5;
const CLAIMS: u32 = 4_000;

/// Fills a controller, reads its memory, starts it again, and claims beside one that has few.
pub(crate) fn rows(disk: &Path, runtime: &Runtime) -> Result<Vec<Row>> {
    let mut many = Controller::with_file(&disk.join("many"), 7610)?;
    let claimer = Arc::new(runtime.block_on(Claimer::join(&many.url(), "pods", &WIDE, HOSTS))?);
    let hundred_thousand = Stop::At(50_000);
    runtime.block_on(claimer.run(512, Act::Claim, hundred_thousand))?;
    let mut rows = vec![row("memory.100k", "MiB", Better::Low, &[many.resident()?])];
    let filled = runtime.block_on(claimer.run(512, Act::Claim, Stop::At(ADDRESSES / 2)))?;
    rows.push(row("million.fill", "1/s", Better::High, &[filled.rate()]));
    rows.push(row("million.memory.filled", "MiB", Better::Low, &[many.resident()?]));

    let mut starts = [Vec::new(), Vec::new()];
    for _ in 0..2 {
        for (by_force, starts) in [false, true].into_iter().zip(&mut starts) {
            starts.push(many.restart(by_force)?.as_secs_f64());
        }
    }
    let [stopped, killed] = starts;
    rows.push(row("million.start", "s", Better::Low, &stopped));
    rows.push(row("million.start.killed", "s", Better::Low, &killed));
    rows.push(row("million.memory", "MiB", Better::Low, &[many.resident()?]));
    rows.extend(claims(disk, runtime, &claimer)?);
    Ok(rows)
}

/// The same claims with very many addresses held and with few, in turn.
fn claims(disk: &Path, runtime: &Runtime, many: &Arc<Claimer>) -> Result<Vec<Row>> {
    let mut sides = [("million", Vec::new(), Vec::new()), ("thousand", Vec::new(), Vec::new())];
    for round in 0..ROUNDS {
        let few = Controller::with_file(&disk.join(format!("few-{round}")), 7611)?;
        let fresh = Arc::new(runtime.block_on(Claimer::join(&few.url(), "pods", &WIDE, HOSTS))?);
        runtime.block_on(fresh.run(64, Act::Claim, Stop::At(FEW / 2)))?;
        for (claimer, (_, rates, times)) in [many, &fresh].into_iter().zip(&mut sides) {
            let until = Stop::At(claimer.begun() + CLAIMS);
            let ran = runtime.block_on(claimer.run(64, Act::Claim, until))?;
            rates.push(ran.rate());
            times.extend(ran.times);
        }
    }
    Ok(sides
        .into_iter()
        .flat_map(|(name, rates, times)| {
            [
                row(format!("{name}.64"), "1/s", Better::High, &rates),
                row(format!("{name}.64.time"), "ms", Better::Low, &times),
            ]
        })
        .collect())
}

/// A thousand claims from ten hosts at once, of pools that have a thousand addresses: all succeed.
pub(crate) fn full_pool(disk: &Path, runtime: &Runtime) -> Result<Vec<Row>> {
    let mut seconds = Vec::new();
    for round in 0..ROUNDS {
        let controller = Controller::with_file(&disk.join(format!("full-{round}")), 7612)?;
        let pool = [("full", "10.64.0.0..10.64.3.231")];
        let claimer =
            Arc::new(runtime.block_on(Claimer::join(&controller.url(), "pods", &pool, 10))?);
        let ran = runtime.block_on(claimer.run(100, Act::Claim, Stop::At(1000)))?;
        ensure!(ran.times.len() == 1000, "{} of 1,000 claims", ran.times.len());
        seconds.push(ran.took.as_secs_f64());
    }
    Ok(vec![row("full-pool", "s", Better::Low, &seconds)])
}

/// Claims that are ended again, per second, each with its record in the history.
pub(crate) fn history(disk: &Path, runtime: &Runtime) -> Result<Vec<Row>> {
    let controller = Controller::with_file(&disk.join("history"), 7613)?;
    let claimer = Arc::new(runtime.block_on(Claimer::join(&controller.url(), "pods", &WIDE, 1))?);
    let (mut rates, mut times) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let ran = runtime.block_on(claimer.run(64, Act::ClaimAndEnd, Stop::After(RUN)))?;
        rates.push(count(ran.times.len()) / ran.took.as_secs_f64());
        times.extend(ran.times);
    }
    Ok(vec![
        row("history.64", "1/s", Better::High, &rates),
        row("history.64.time", "ms", Better::Low, &times),
    ])
}

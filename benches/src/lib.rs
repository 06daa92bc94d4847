//! Edge: what the benchmarks share: figures, the table that people read and the file that programs read.
//!
//! Each benchmark is one command (`make bench-cni`, `bench-path`, `bench-networks`, `bench-claims`, `bench-agent`) that compares its sides in one run on
//! one machine, alternating between them, since machines are noisy and ratios are not. Figures of
//! one run are comparable with each other and with nothing else. `make bench-restart` counts, and wants nothing.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

/// One line of a report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// What was measured: `limpet.add`.
    pub name: String,
    /// The unit of both figures: `ms`.
    pub unit: &'static str,
    /// The median.
    pub p50: f64,
    /// What 99 of 100 samples are no worse than: the high end of times, the low end of rates.
    pub p99: f64,
    /// How many samples there are; of what is counted, out of how many.
    pub n: usize,
}

/// Which samples are the good ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// Times and sizes.
    Low,
    /// Rates.
    High,
}

/// Makes a row of samples; all zero if there are none.
#[must_use]
pub fn row(name: impl Into<String>, unit: &'static str, better: Better, samples: &[f64]) -> Row {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    if better == Better::High {
        sorted.reverse();
    }
    let at = |hundredth: usize| {
        let last = sorted.len().saturating_sub(1);
        sorted.get((sorted.len() * hundredth / 100).min(last)).copied().unwrap_or_default()
    };
    Row { name: name.into(), unit, p50: at(50), p99: at(99), n: sorted.len() }
}

/// A duration in milliseconds.
#[must_use]
pub fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// A duration in microseconds.
#[must_use]
pub fn microseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// A count as a number to divide; exact up to 2^32, which no benchmark here reaches.
#[must_use]
pub fn count(n: impl TryInto<u32>) -> f64 {
    f64::from(n.try_into().unwrap_or(u32::MAX))
}

/// All that one benchmark found.
#[derive(Debug, Serialize)]
pub struct Report {
    bench: &'static str,
    machine: String,
    rows: Vec<Row>,
}

impl Report {
    /// A report of the benchmark `bench` on this machine.
    #[must_use]
    pub fn new(bench: &'static str, rows: Vec<Row>) -> Self {
        Self { bench, machine: machine(), rows }
    }

    /// The median of a row; not a number if there is none of this name.
    #[must_use]
    pub fn median(&self, name: &str) -> f64 {
        self.rows.iter().find(|row| row.name == name).map_or(f64::NAN, |row| row.p50)
    }

    /// The 99th hundredth of a row; not a number if there is none of this name.
    #[must_use]
    pub fn worst(&self, name: &str) -> f64 {
        self.rows.iter().find(|row| row.name == name).map_or(f64::NAN, |row| row.p99)
    }

    /// Prints the table and, below it, `remarks`; writes `target/bench/<bench>.json`.
    ///
    /// # Errors
    ///
    /// If the file or the table cannot be written.
    pub fn publish(&self, remarks: &[String]) -> io::Result<()> {
        let path = directory()?.join(format!("{}.json", self.bench));
        fs::write(&path, serde_json::to_string_pretty(self)? + "\n")?;
        let mut out = io::stdout().lock();
        writeln!(out, "{}: {}", self.bench, self.machine)?;
        writeln!(out, "{:<24} {:>10} {:>12} {:>12} {:>8}", "", "unit", "p50", "p99", "n")?;
        for Row { name, unit, p50, p99, n } in &self.rows {
            writeln!(out, "{name:<24} {unit:>10} {p50:>12.3} {p99:>12.3} {n:>8}")?;
        }
        for remark in remarks {
            writeln!(out, "{remark}")?;
        }
        writeln!(out, "written to {}", path.display())
    }
}

/// Where reports and what a benchmark needs on a real disk are kept: `target/bench`.
///
/// # Errors
///
/// If it cannot be made.
pub fn directory() -> io::Result<PathBuf> {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bench"));
    fs::create_dir_all(&path)?;
    path.canonicalize()
}

/// An empty directory on the disk for one run; what an earlier run left there is removed.
///
/// # Errors
///
/// If it cannot be made.
pub fn scratch(name: &str) -> io::Result<PathBuf> {
    let path = directory()?.join(format!("{name}.tmp"));
    match fs::remove_dir_all(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => fs::create_dir_all(&path)?,
    }
    Ok(path)
}

/// Processor, cores, memory and kernel, in one line.
fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once(':').map_or("?", |(_, value)| value.trim()).to_owned()
    };
    let processor = field(&read("/proc/cpuinfo"), "model name");
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let memory = field(&read("/proc/meminfo"), "MemTotal");
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{processor}, {cores} cores, {memory}, Linux {}", kernel.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_of_times_is_the_longest_and_of_rates_the_lowest() {
        let samples: Vec<f64> = (1..=100).map(f64::from).collect();
        let times = row("t", "ms", Better::Low, &samples);
        assert_eq!((times.p50, times.p99, times.n), (51.0, 100.0, 100));
        let rates = row("r", "1/s", Better::High, &samples);
        assert_eq!((rates.p50, rates.p99), (50.0, 1.0));
        assert_eq!(row("none", "ms", Better::Low, &[]).n, 0);
    }
}

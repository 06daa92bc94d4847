//! Edge: the real controller as a process of its own, on loopback.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// How long it may take to start, with a store of any size, or to stop.
const LIMIT: Duration = Duration::from_secs(60);

/// The unit of a process' times in `/proc`, in microseconds: the same on every machine that this runs on.
const TICK: f64 = 10_000.0;

/// Where a controller keeps its state.
#[derive(Clone, Debug)]
pub(crate) enum Kept {
    /// In this file.
    File(PathBuf),
    /// In etcd, at this URL.
    Etcd(String),
}

/// A controller that serves.
#[derive(Debug)]
pub(crate) struct Controller {
    child: Child,
    kept: Kept,
    port: u16,
    files: PathBuf,
}

impl Controller {
    /// Starts one whose files are in `directory`, and waits until it serves.
    ///
    /// The sandbox's loopback is this process' own, so every port is free.
    pub(crate) fn start(directory: &Path, port: u16, kept: Kept) -> Result<Self> {
        fs::create_dir_all(directory)?;
        let files = directory.to_owned();
        let child = spawn(&files, port, &kept)?;
        let mut controller = Self { child, kept, port, files };
        controller.wait()?;
        Ok(controller)
    }

    /// One with a new store file in `directory`.
    pub(crate) fn with_file(directory: &Path, port: u16) -> Result<Self> {
        Self::start(directory, port, Kept::File(directory.join("store.redb")))
    }

    /// Where it serves.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Ends it, by its leave or by force, and starts it again; returns how long it takes to serve.
    pub(crate) fn restart(&mut self, by_force: bool) -> Result<Duration> {
        if by_force {
            self.child.kill()?;
            self.child.wait()?;
        } else {
            let asked = Command::new("kill").arg(self.child.id().to_string()).status()?;
            ensure!(asked.success(), "kill ended with {asked}");
            let status = self.child.wait()?;
            ensure!(status.success(), "the controller ended with {status}");
        }
        let start = Instant::now();
        self.child = spawn(&self.files, self.port, &self.kept)?;
        self.wait()?;
        Ok(start.elapsed())
    }

    /// The processor time that it has used, in microseconds. Unlike the time that a claim takes it
    /// hardly depends on what else the machine does.
    pub(crate) fn used(&self) -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let (_, fields) = stat.rsplit_once(')').context("no name in the controller's stat")?;
        let times = fields.split_whitespace().skip(11).take(2);
        let ticks = times.map(str::parse::<u32>).sum::<Result<u32, _>>()?;
        Ok(f64::from(ticks) * TICK)
    }

    fn wait(&mut self) -> Result<()> {
        let end = Instant::now() + LIMIT;
        let ready = self.files.join("ready");
        while !ready.exists() {
            if let Some(status) = self.child.try_wait()? {
                let log = fs::read_to_string(self.files.join("controller.log"))?;
                anyhow::bail!("the controller ended with {status}: {log}");
            }
            ensure!(Instant::now() < end, "the controller did not start within {LIMIT:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Its resident memory, in MiB: the lowest of some readings, since what is freed goes lazily.
    pub(crate) fn resident(&self) -> Result<f64> {
        let mut least = f64::MAX;
        for _ in 0..5 {
            std::thread::sleep(Duration::from_millis(100));
            let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
            let line = status.lines().find(|line| line.starts_with("VmRSS:"));
            let kilobytes =
                line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u32>().ok());
            let kilobytes = kilobytes.context("no VmRSS in the controller's status")?;
            least = least.min(f64::from(kilobytes) / 1024.0);
        }
        Ok(least)
    }
}

fn spawn(files: &Path, port: u16, kept: &Kept) -> Result<Child> {
    let ready = files.join("ready");
    if ready.exists() {
        fs::remove_file(&ready)?;
    }
    let mut command = Command::new(netns_tests::binary("limpet-controller"));
    command.args(["--plain-http", "--listen", &format!("127.0.0.1:{port}"), "--ready-file"]);
    command.arg(ready);
    match kept {
        Kept::File(path) => command.arg("--store").arg(path),
        Kept::Etcd(url) => command.arg("--etcd").arg(url),
    };
    command
        .stdin(Stdio::null())
        .stdout(File::create(files.join("controller.out"))?)
        .stderr(File::create(files.join("controller.log"))?)
        .spawn()
        .context("starting the controller")
}

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

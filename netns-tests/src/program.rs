//! Edge: the programs under test, and processes that end with the test that started them.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long building the programs may take, on a slow machine and from nothing.
const BUILD_LIMIT: Duration = Duration::from_secs(1200);

/// How long a program has to end after it was asked to.
const STOP_LIMIT: Duration = Duration::from_secs(15);

/// Where the program `name` is, built in the profile of this test and never older than its source.
///
/// `LIMPET_BIN_DIR` names a directory of programs to test in their place, such as a package's.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    let path = DIR.get_or_init(|| match env::var_os("LIMPET_BIN_DIR") {
        Some(dir) => dir.into(),
        None => build(),
    });
    let path = path.join(name);
    assert!(path.is_file(), "{} is missing", path.display());
    path
}

/// Builds the workspace's programs (quick when they are built) and returns their directory.
fn build() -> PathBuf {
    // target/<profile>/deps/<test>-<hash>
    let test = env::current_exe().unwrap();
    let dir = test.ancestors().nth(2).unwrap().to_owned();
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--offline", "--workspace", "--bins", "--manifest-path"]);
    cargo.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"));
    cargo.arg("--target-dir").arg(dir.parent().unwrap());
    if dir.ends_with("release") {
        cargo.arg("--release");
    }
    crate::run::finish_within(BUILD_LIMIT, &mut cargo, "building the programs under test")
        .unwrap_or_else(|e| panic!("{e}"));
    dir
}

/// A process that runs until it is stopped, or until it is dropped. Its output goes to a file.
#[derive(Debug)]
pub struct Process {
    child: Child,
    what: String,
    log: PathBuf,
}

impl Process {
    /// Starts `command`, with both its outputs appended to `log`.
    #[must_use]
    pub fn start(mut command: Command, log: &Path) -> Self {
        let what = command.get_program().to_string_lossy().into_owned();
        let out = File::options().create(true).append(true).open(log).unwrap();
        command.stdin(Stdio::null()).stdout(out.try_clone().unwrap()).stderr(out);
        let child = command.spawn().unwrap_or_else(|error| panic!("`{command:?}`: {error}"));
        Self { child, what, log: log.to_owned() }
    }

    /// What it has printed so far.
    #[must_use]
    pub fn output(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Panics with its output if it has ended.
    pub fn assert_running(&mut self) {
        if let Some(status) = self.child.try_wait().unwrap() {
            panic!("{} ended by itself, {status}:\n{}", self.what, self.output());
        }
    }

    /// Asks it to end, as a service manager does, and returns how it ended.
    #[must_use]
    pub fn stop(mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.ended(STOP_LIMIT)
    }

    /// Ends it at once, as a crash does.
    pub fn kill(mut self) {
        self.signal(Signal::SIGKILL);
        self.ended(STOP_LIMIT);
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let _ = kill(self.pid(), signal);
    }

    /// Waits until it has ended by itself.
    pub fn ended(&mut self, limit: Duration) -> ExitStatus {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(
                Instant::now() < end,
                "{} still runs after {limit:?}:\n{}",
                self.what,
                self.output()
            );
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// The program's own process: where `nsenter` had to fork to enter a process namespace, its child.
    fn pid(&self) -> Pid {
        let own = self.child.id();
        let children =
            fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap_or_default();
        let forked = fs::read_to_string(format!("/proc/{own}/comm"))
            .is_ok_and(|name| name.trim() == "nsenter");
        let pid =
            children.split_whitespace().next().filter(|_| forked).and_then(|pid| pid.parse().ok());
        Pid::from_raw(pid.unwrap_or_else(|| i32::try_from(own).unwrap()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // No panic here: a second one while the first unwinds would abort and hide it.
        let _ = kill(self.pid(), Signal::SIGKILL);
        let _ = self.child.wait();
        if thread::panicking() {
            // The test's own output, which cargo shows for a test that failed.
            let _ = std::io::Write::write_all(
                &mut std::io::stderr(),
                format!("---- {} ({})\n{}\n", self.what, self.log.display(), self.output())
                    .as_bytes(),
            );
        }
    }
}

//! Edge: running commands, waiting for conditions, and names that no other test has.

use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

/// How long a command may run that nobody waits for in other words.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// How long [`wait_until`] rests between two looks at its condition.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A name that no other test of this run has: `name`, and a number.
///
/// At most 15 bytes if `name` has at most 9, so that it can name an interface.
#[must_use]
pub fn unique(name: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    format!("{name}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A new directory of this name for files that live as long as the sandbox.
#[must_use]
pub fn state_dir(name: &str) -> PathBuf {
    assert!(
        std::env::var_os("LIMPET_SANDBOX").is_some(),
        "tests run through netns-tests/in-sandbox, which .cargo/config.toml sets as cargo's runner"
    );
    let dir = PathBuf::from("/dev/shm/limpet-tests").join(name);
    fs::create_dir_all(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    dir
}

/// Runs a shell command line and returns its standard output, trimmed.
///
/// Panics with all its output if it fails.
#[must_use = "or use `drop`: an observation that nobody looks at proves nothing"]
pub fn sh(line: &str) -> String {
    try_sh(line).unwrap_or_else(|why| panic!("{why}"))
}

/// Runs a shell command line.
///
/// # Errors
///
/// What it printed, and its exit status, if that is not success.
pub fn try_sh(line: &str) -> Result<String, String> {
    let mut command = Command::new("sh");
    command.args(["-ec", line]);
    finish(&mut command, line)
}

/// Runs `command` to its end, which must come soon; `what` names it in the error.
pub(crate) fn finish(command: &mut Command, what: &str) -> Result<String, String> {
    finish_within(COMMAND_LIMIT, command, what)
}

/// Runs `command` to its end, which must come within `limit`; `what` names it in the error.
pub(crate) fn finish_within(
    limit: Duration,
    command: &mut Command,
    what: &str,
) -> Result<String, String> {
    let failed = |error: std::io::Error| format!("`{what}`: {error}");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(failed)?;
    let stdout = read_all(child.stdout.take());
    let stderr = read_all(child.stderr.take());
    let end = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            break status;
        }
        if Instant::now() > end {
            let _ = child.kill();
            let _ = child.wait();
            return Err(format!("`{what}`: still running after {limit:?}"));
        }
        thread::sleep(Duration::from_millis(1));
    };
    // A process that it left in the background may hold the other ends.
    let text = |pipe: &Receiver<String>| pipe.recv_timeout(Duration::from_secs(2));
    let (Ok(stdout), Ok(stderr)) = (text(&stdout), text(&stderr)) else {
        return Err(format!("`{what}`: ended, and something that it started holds its output"));
    };
    if status.success() {
        return Ok(stdout.trim().to_owned());
    }
    Err(format!("`{what}`: {status}\n{}\n{}", stdout.trim(), stderr.trim()))
}

/// Reads a pipe to its end on a thread of its own.
fn read_all(pipe: Option<impl Read + Send + 'static>) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.map(|mut pipe| pipe.read_to_end(&mut bytes));
        let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    receiver
}

/// Waits until `condition` holds; panics with `what` when it does not within `limit`.
pub fn wait_until(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !condition() {
        assert!(Instant::now() < end, "after {limit:?} still not so: {what}");
        thread::sleep(LOOK_EVERY);
    }
}

//! Edge: running commands, waiting for conditions, and names that no other test has.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

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

/// Runs `command` to its end; `what` names it in the error.
pub(crate) fn finish(command: &mut Command, what: &str) -> Result<String, String> {
    let Output { status, stdout, stderr } =
        command.output().map_err(|error| format!("`{what}`: {error}"))?;
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    if status.success() {
        return Ok(stdout.trim().to_owned());
    }
    Err(format!("`{what}`: {status}\n{}\n{}", stdout.trim(), stderr.trim()))
}

/// Waits until `condition` holds; panics with `what` when it does not within `limit`.
pub fn wait_until(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !condition() {
        assert!(Instant::now() < end, "after {limit:?} still not so: {what}");
        thread::sleep(LOOK_EVERY);
    }
}

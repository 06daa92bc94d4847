//! The demo: what it shows holds, and nothing of it stays.
#![expect(clippy::unwrap_used, reason = "also what helps a test stops at the first surprise")]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use netns_tests::{binary, sh, state_dir, try_sh, unique, wait_until};

/// There is one demo at a time.
static DEMO: Mutex<()> = Mutex::new(());

fn demo(verb: &str) -> Command {
    let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/demo/demo"));
    command.arg(verb).env("LIMPET_BIN_DIR", binary("limpet").parent().unwrap());
    command
}

fn down() {
    assert!(demo("down").status().unwrap().success());
    assert_eq!(sh("ip netns list | grep limpet-demo || true"), "");
    assert!(!Path::new("/run/limpet-demo").exists());
    wait_until(Duration::from_secs(5), "no process of the demo is left", || {
        try_sh("ps -eo args | grep '[l]impet-controller --plain-http'").is_err()
    });
}

#[test]
fn the_demo_shows_that_all_directions_work_and_leaves_nothing() {
    let _one = DEMO.lock().unwrap_or_else(PoisonError::into_inner);
    let began = Instant::now();
    let output = demo("up").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(text.matches(" ok ").count(), 26, "{text}");
    assert!(text.contains("web-0 keeps 10.32."), "{text}");
    assert!(text.contains(" again."), "{text}");
    // 15 s is what it may take by itself; here it shares two processors with other tests.
    assert!(began.elapsed() < Duration::from_secs(45), "{:?}", began.elapsed());
    assert!(sh("/run/limpet-demo/limpetctl attachment list").contains("web-0"));
    down();
    // With no demo there is nothing to remove, and that is success.
    down();
}

#[test]
fn a_demo_that_was_killed_is_removed_whole() {
    let _one = DEMO.lock().unwrap_or_else(PoisonError::into_inner);
    let mut killed = demo("up").stdout(Stdio::null()).spawn().unwrap();
    wait_until(Duration::from_secs(30), "the demo has made a container", || {
        sh("ip netns list").contains("limpet-demo-c-web-0")
    });
    killed.kill().unwrap();
    killed.wait().unwrap();
    down();
}

#[test]
fn a_demo_that_lost_a_direction_says_which_and_fails() {
    let _one = DEMO.lock().unwrap_or_else(PoisonError::into_inner);
    // Everything is real but for a gateway that does not say what is behind it.
    let dir = state_dir(&unique("bin"));
    for program in ["limpet", "limpet-controller", "limpetctl"] {
        symlink(binary(program), dir.join(program)).unwrap();
    }
    let agent = binary("limpet-agent");
    let script = format!(
        "#!/bin/bash\nexec {} \"${{@/#*198.51.100.0*/203.0.113.0/24}}\"\n",
        agent.display()
    );
    fs::write(dir.join("limpet-agent"), script).unwrap();
    fs::set_permissions(dir.join("limpet-agent"), fs::Permissions::from_mode(0o755)).unwrap();

    let output = demo("up").env("LIMPET_BIN_DIR", &dir).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{text}\n{said}");
    let lost: Vec<&str> = text.lines().filter(|line| line.contains("LOST")).collect();
    assert!(!lost.is_empty() && lost.iter().all(|line| line.contains("plain-1")), "{text}");
    assert!(said.contains("of 26 directions are lost"), "{said}");
    assert!(said.contains("The demo ended while finding out who reaches whom"), "{said}");
    assert!(said.contains("make demo-down"), "{said}");
    down();
}

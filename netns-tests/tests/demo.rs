//! The demo: what it shows holds, and nothing of it stays.
#![expect(clippy::unwrap_used, reason = "also what helps a test stops at the first surprise")]

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use netns_tests::{binary, sh, try_sh, wait_until};

fn demo(verb: &str) -> Command {
    let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/demo/demo"));
    command.arg(verb).env("LIMPET_BIN_DIR", binary("limpet").parent().unwrap());
    command
}

fn nothing_is_left() {
    let left = sh("ip netns list | grep limpet-demo || true");
    assert_eq!(left, "");
    assert!(!Path::new("/run/limpet-demo").exists());
    wait_until(Duration::from_secs(5), "no process of the demo is left", || {
        try_sh("ps -eo args | grep '[l]impet-controller --plain-http'").is_err()
    });
}

// One test: there is one demo at a time.
#[test]
fn the_demo_shows_that_all_directions_work_and_leaves_nothing_also_when_killed() {
    let began = Instant::now();
    let output = demo("up").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(text.matches(" ok ").count(), 26, "{text}");
    assert!(text.contains("web-0 keeps 10.32."), "{text}");
    assert!(text.contains("again."), "{text}");
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    assert!(sh("/run/limpet-demo/limpetctl attachment list").contains("web-0"));
    assert!(demo("down").status().unwrap().success());
    nothing_is_left();

    // Killed in the middle of its work.
    let mut killed = demo("up").spawn().unwrap();
    wait_until(Duration::from_secs(20), "the demo has made a container", || {
        sh("ip netns list").contains("limpet-demo-c-web-0")
    });
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert!(demo("down").status().unwrap().success());
    nothing_is_left();

    // With no demo there is nothing to remove, and that is success.
    assert!(demo("down").status().unwrap().success());
}

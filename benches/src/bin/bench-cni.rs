//! Edge: ADD and DEL of limpet against Debian's `bridge` with `host-local`: whole processes, on one host.
//!
//! Both sides get a container's namespace that is there already, and end with the result on standard output;
//! limpet's claim is on the controller's disk by then. The sides alternate.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use limpet_benches::{Better, Report, Row, milliseconds, row, scratch};
use netns_tests::{Agent, Container, Fabric, Host, Process, binary, wait_until};
use serde_json::{Value, json};

/// How many times each verb of each side runs, one at a time.
const ROUNDS: usize = 150;
/// How many times eight run at once.
const ROUNDS_OF_EIGHT: usize = 25;
/// Where Debian has the plugins.
const PLUGINS: &str = "/usr/lib/cni";

/// One of the two that are compared.
struct Side {
    name: &'static str,
    program: PathBuf,
    config: Value,
}

/// Times of one side, at one concurrency.
#[derive(Default)]
struct Times {
    add: Vec<f64>,
    del: Vec<f64>,
}

fn main() -> Result<()> {
    let disk = scratch("bench-cni")?;
    let host = Host::new("node");
    let underlay = Fabric::of("underlay", &[(&host, &["192.0.2.1/24", "2001:db8::1/64"])]);
    let controller = start_controller(&host, &disk)?;
    let agent = Agent::new(&host, "http://192.0.2.1:7600", "--role node").started();
    let sides = [limpet(&agent), bridge(&disk)];

    let mut rows = Vec::new();
    for (at_once, rounds, suffix) in [(1, ROUNDS, ""), (8, ROUNDS_OF_EIGHT, ".8")] {
        let mut times = [Times::default(), Times::default()];
        // The first round fills caches and is not counted.
        for round in 0..=rounds {
            for (side, times) in sides.iter().zip(&mut times) {
                let (adds, dels) = attach_and_detach(&host, side, at_once)?;
                if round > 0 {
                    times.add.extend(adds);
                    times.del.extend(dels);
                }
            }
        }
        rows.extend(
            sides.iter().zip(&times).flat_map(|(side, times)| rows_of(side, times, suffix)),
        );
    }
    let report = Report::new("cni", rows);
    report.publish(&remarks(&report))?;

    drop((agent, controller, underlay));
    fs::remove_dir_all(disk)?;
    Ok(())
}

fn rows_of(side: &Side, times: &Times, suffix: &str) -> [Row; 2] {
    let name = |verb| format!("{}.{verb}{suffix}", side.name);
    [
        row(name("add"), "ms", Better::Low, &times.add),
        row(name("del"), "ms", Better::Low, &times.del),
    ]
}

fn remarks(report: &Report) -> Vec<String> {
    ["add", "del", "add.8", "del.8"]
        .iter()
        .map(|verb| {
            let (ours, theirs) = (format!("limpet.{verb}"), format!("bridge.{verb}"));
            let median = report.median(&ours) / report.median(&theirs);
            let worst = report.worst(&ours) / report.worst(&theirs);
            format!(
                "{verb}: limpet takes {median:.2} of bridge's time at the median, {worst:.2} at p99"
            )
        })
        .collect()
}

/// Starts a controller whose store is on the disk, with a network and a pool of each family.
fn start_controller(host: &Host, disk: &Path) -> Result<Process> {
    let mut command = host.command(binary("limpet-controller"));
    command
        .args(["--listen", "192.0.2.1:7600", "--plain-http", "--store"])
        .arg(disk.join("store.redb"));
    let process = Process::start(command, &disk.join("controller.log"));
    let ctl = |words: &str| {
        let mut command = host.command(binary("limpetctl"));
        command
            .args(["--plain-http", "--controller", "http://192.0.2.1:7600"])
            .args(words.split(' '));
        command.output().is_ok_and(|output| output.status.success())
    };
    wait_until(Duration::from_secs(10), "the controller is ready", || ctl("network list"));
    for words in [
        "network create pods --vni 100",
        "pool create pods-v4 --network pods --range 10.32.0.0/16",
        "pool create pods-v6 --network pods --range fd32::/64",
    ] {
        ensure!(ctl(words), "limpetctl {words}: failed");
    }
    Ok(process)
}

fn limpet(agent: &Agent) -> Side {
    Side { name: "limpet", program: binary("limpet"), config: agent.config() }
}

fn bridge(disk: &Path) -> Side {
    let config = json!({
        "cniVersion": "1.0.0", "name": "bench", "type": "bridge", "bridge": "cni0",
        "isGateway": true, "ipMasq": false,
        "ipam": {
            "type": "host-local", "dataDir": disk.join("host-local"),
            "ranges": [[{"subnet": "10.77.0.0/16"}], [{"subnet": "fd77::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        },
    });
    Side { name: "bridge", program: Path::new(PLUGINS).join("bridge"), config }
}

/// Attaches and detaches `at_once` new containers at the same time, and returns how long each took.
fn attach_and_detach(host: &Host, side: &Side, at_once: usize) -> Result<(Vec<f64>, Vec<f64>)> {
    let containers: Vec<Container> = (0..at_once).map(|_| Container::new("bench")).collect();
    let added = all(host, &containers, |container| call(side, "ADD", container, None))?;
    let (add, results): (Vec<f64>, Vec<Value>) = added.into_iter().unzip();
    let pairs: Vec<(&Container, Value)> = containers.iter().zip(results).collect();
    let deleted = all(host, &pairs, |(container, result)| {
        call(side, "DEL", container, Some(result.clone()))
    })?;
    Ok((add, deleted.into_iter().map(|(time, _)| time).collect()))
}

/// Does `one` for each of `what` at the same time, in threads inside the host's namespace.
fn all<T: Sync>(
    host: &Host,
    what: &[T],
    one: impl Fn(&T) -> Result<(f64, Value)> + Sync,
) -> Result<Vec<(f64, Value)>> {
    let start = Barrier::new(what.len());
    // Threads inherit the namespace of the one that starts them, and so do their processes.
    host.inside(|| {
        thread::scope(|scope| {
            let run = |item| {
                start.wait();
                one(item)
            };
            let running: Vec<_> = what.iter().map(|item| scope.spawn(move || run(item))).collect();
            running
                .into_iter()
                .map(|thread| thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?)
                .collect()
        })
    })
}

/// Calls the plugin as a runtime does, and returns how many milliseconds it took and its result.
fn call(
    side: &Side,
    verb: &str,
    container: &Container,
    previous: Option<Value>,
) -> Result<(f64, Value)> {
    let mut config = side.config.clone();
    if let Some(previous) = previous {
        config["prevResult"] = previous;
    }
    let stdin = config.to_string();
    let args = format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=bench;K8S_POD_NAME={}", container.id());
    let mut command = Command::new(&side.program);
    command
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", container.id())
        .env("CNI_NETNS", container.netns())
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", PLUGINS)
        .env("CNI_ARGS", args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let start = Instant::now();
    let mut child =
        command.spawn().with_context(|| format!("starting {}", side.program.display()))?;
    child.stdin.take().context("a plugin without standard input")?.write_all(stdin.as_bytes())?;
    let output = child.wait_with_output()?;
    let took = milliseconds(start.elapsed());
    let text = String::from_utf8_lossy(&output.stdout);
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{} {verb}: {}: {text}{said}", side.name, output.status);
    let result = if text.is_empty() { Value::Null } else { serde_json::from_str(&text)? };
    Ok((took, result))
}

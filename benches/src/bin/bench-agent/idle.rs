//! Edge: what an agent costs that knows many hosts while nothing happens.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use limpet_api::client::{Call, Method};
use limpet_api::host::{Session, SessionRequest};
use limpet_api::paths;
use limpet_benches::count;
use limpet_net_types::{HostName, Token};
use netns_tests::{Host, wait_until};

use crate::fleet::Control;

/// How long it is watched.
pub(crate) const PERIOD: Duration = Duration::from_secs(60);

/// How long it is left alone before.
const SETTLE: Duration = Duration::from_secs(5);

/// Clock ticks of a process's times in a second: the same on every Linux that limpet runs on.
const TICKS: f64 = 100.0;

pub(crate) struct Idle {
    /// Milliseconds of processor time in a minute.
    pub(crate) cpu: f64,
    /// Resident memory in MiB.
    pub(crate) memory: f64,
}

/// Kills the agent when it is dropped.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn measure(disk: &Path, known: usize) -> Result<Idle> {
    let control = Control::start(disk, "idle")?;
    control.with_client(async move |client| {
        for n in 1..known {
            let [.., high, low] = n.to_be_bytes();
            let name: HostName = format!("other-{n}").parse()?;
            let underlay = format!("10.99.{}.{low}", 100 + high).parse()?;
            let request = SessionRequest {
                install: Token::from_bits(1 + u128::from(high) * 256 + u128::from(low)),
                boot: Token::from_bits(7),
                underlay,
                addresses: vec![underlay, format!("2001:db8:99::{n:x}").parse()?],
                on_link: [].into(),
                roles: [limpet_api::config::Role::Node].into(),
                external: [].into(),
                version: "bench".to_owned(),
            };
            let call = Call::with_body(Method::POST, paths::session(&name), &request)?;
            client.call::<Session>(&call).await.with_context(|| format!("joining as {name}"))?;
        }
        Ok(())
    })?;
    let host = Host::new("idle");
    control.fabric.join(&host, "eth0", &["10.99.1.1/16"]);
    let log = fs::File::create(host.dir().join("agent.log"))?;
    let mut command = Control::agent(&host);
    let agent = Running(command.stdout(log.try_clone()?).stderr(log).spawn()?);
    wait_until(Duration::from_secs(30), "the agent has a way to every host", || {
        host.sh("ip nexthop show protocol 76").lines().count() == known - 1
    });
    std::thread::sleep(SETTLE);
    let before = ticks(agent.0.id())?;
    std::thread::sleep(PERIOD);
    let used = ticks(agent.0.id())? - before;
    let cpu = used / TICKS * 1e3 * (60.0 / PERIOD.as_secs_f64());
    Ok(Idle { cpu, memory: memory(agent.0.id())? })
}

/// The processor time that a process and its threads have used, in clock ticks.
fn ticks(process: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The name, in brackets, may have blanks in it.
    let (_, rest) = text.rsplit_once(')').context("a process without a name")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let at = |n: usize| fields.get(n).context("a short line").and_then(|of| Ok(of.parse::<u32>()?));
    Ok(count(at(11)?) + count(at(12)?))
}

fn memory(process: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: u32 = line.split_whitespace().next().context("no number")?.parse()?;
    Ok(count(kib) / 1024.0)
}

//! Edge: what changes in a host's kernel while a test does something else, as `ip monitor` and
//! `nft monitor` see it.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use crate::host::Host;
use crate::program::Process;
use crate::run::unique;

/// The destination of the route that is a watch's own change, of those for documentation.
const MARK: &str = "203.0.113.99";

/// Records every change of a host's links, addresses, routes, rules, nexthops, neighbours and nftables.
#[derive(Debug)]
pub struct KernelWatch {
    host: Host,
    monitors: Vec<Process>,
}

impl KernelWatch {
    /// Starts to watch; returns when both monitors are seen to work.
    #[must_use]
    pub fn start(host: &Host) -> Self {
        let monitor = |command: &str| {
            let log: PathBuf = host.dir().join(unique("monitor"));
            let mut words = command.split(' ');
            let mut process = host.command(words.next().unwrap());
            process.args(words);
            Process::start(process, &log)
        };
        let monitors = vec![
            monitor("stdbuf -oL ip -o monitor link address route rule nexthop neigh"),
            monitor("stdbuf -oL nft monitor"),
        ];
        let watch = Self { host: host.clone(), monitors };
        watch.flush();
        watch
    }

    /// Every line that tells of a change since the start.
    #[must_use]
    pub fn changes(&self) -> Vec<String> {
        self.flush();
        let lines = self.monitors.iter().map(Process::output).collect::<Vec<_>>().join("\n");
        let ours = |line: &&str| {
            line.contains("lmark") || line.contains(MARK) || line.starts_with("# new generation")
        };
        // A neighbour on the underlay that the kernel asks for by itself is nobody's change.
        let states = ["REACHABLE", "STALE", "DELAY", "PROBE", "INCOMPLETE", "FAILED"];
        let own = |line: &&str| states.iter().any(|state| line.trim_end().ends_with(state));
        // `ip` looks for names of all namespaces there are, and says so of one that another test takes down just then.
        let others = |line: &&str| line.contains("Peer netns reference is invalid");
        lines
            .lines()
            .filter(|l| !l.trim().is_empty() && !ours(l) && !own(l) && !others(l))
            .map(str::to_owned)
            .collect()
    }

    /// Makes a change that no test could mistake until both monitors told of it: then they told of
    /// everything before it. The first one may come before a monitor that has just been started listens.
    fn flush(&self) {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let number = unique("").replace('-', "");
            self.host.run(&format!(
                "nft add table ip lmark{number}; nft delete table ip lmark{number}; \
                 ip route add unreachable {MARK} table 9{number}; ip route del {MARK} table 9{number}"
            ));
            let (table, route) = (format!("ip lmark{number}"), format!("table 9{number} "));
            let told = |line: &str| {
                line.starts_with("delete table") && line.ends_with(&table)
                    || line.starts_with("Deleted") && line.contains(&route)
            };
            for _ in 0..25 {
                if self.monitors.iter().all(|monitor| monitor.output().lines().any(told)) {
                    return;
                }
                thread::sleep(Duration::from_millis(20));
            }
            assert!(Instant::now() < end, "the monitors do not tell of our own changes");
        }
    }
}

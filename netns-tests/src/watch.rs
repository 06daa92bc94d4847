//! Edge: what changes in a host's kernel while a test does something else, as `ip monitor` and
//! `nft monitor` see it.

use std::path::PathBuf;
use std::time::Duration;

use crate::host::Host;
use crate::program::Process;
use crate::run::{unique, wait_until};

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
        let ours = |line: &&str| line.contains("lmark") || line.starts_with("# new generation");
        // A neighbour on the underlay that is asked again and answers is the kernel's own doing.
        let own = |line: &&str| {
            ["REACHABLE", "STALE", "DELAY", "PROBE"]
                .iter()
                .any(|state| line.trim_end().ends_with(state))
        };
        lines
            .lines()
            .filter(|l| !l.trim().is_empty() && !ours(l) && !own(l))
            .map(str::to_owned)
            .collect()
    }

    /// Makes a change of our own that no test could mistake and waits until both monitors told of it:
    /// then they told of everything before it.
    fn flush(&self) {
        let mark = unique("lmark").replace('-', "");
        self.host.run(&format!("\
            nft add table ip {mark} && nft delete table ip {mark}; ip link add {mark} type bridge && ip link del {mark}"));
        wait_until(Duration::from_secs(10), "the monitors tell of our own change", || {
            self.monitors.iter().all(|monitor| {
                let text = monitor.output();
                text.lines().any(|line| {
                    (line.contains("delete table") || line.contains("Deleted"))
                        && line.contains(&mark)
                })
            })
        });
    }
}

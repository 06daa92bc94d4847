//! Edge: a program of limpet's as a machine's systemd runs it, installed as the manual says.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::host::Host;
use crate::program::binary;
use crate::run::wait_until;

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/systemd");

/// How long a unit may take to get where it is waited for.
const LIMIT: Duration = Duration::from_secs(30);

/// A unit of a machine with systemd.
#[derive(Debug)]
pub struct Unit {
    host: Host,
    program: String,
}

impl Unit {
    /// Installs the program and its shipped unit on `host`, with these lines in its environment file, and enables it.
    /// It starts when the host boots.
    #[must_use]
    pub fn install(host: &Host, program: &str, environment: &[&str]) -> Self {
        let unit = Self { host: host.clone(), program: program.to_owned() };
        unit.replace_program();
        host.run(&format!("install -m 644 {EXAMPLES}/{program}.service /etc/systemd/system/"));
        host.run("mkdir -p /etc/limpet");
        let file = program.trim_start_matches("limpet-");
        unit.write(&format!("/etc/limpet/{file}.env"), &(environment.join("\n") + "\n"));
        host.run(&format!("systemctl enable {program} 2>&1"));
        unit
    }

    /// Enables a unit of the host's own, with this text; a service, whose name has no suffix.
    #[must_use]
    pub fn own(host: &Host, name: &str, text: &str) -> Self {
        let unit = Self { host: host.clone(), program: name.to_owned() };
        unit.write(&format!("/etc/systemd/system/{name}.service"), text);
        host.run(&format!("systemctl enable {name} 2>&1"));
        unit
    }

    /// Moves a new file of the program over the old one, as an upgrade does.
    pub fn replace_program(&self) {
        let (from, program) = (binary(&self.program), &self.program);
        let from = from.display();
        self.host.run(&format!(
            "install -m 755 {from} /usr/bin/.{program} && mv /usr/bin/.{program} /usr/bin/{program}"
        ));
    }

    /// Writes a file of its host.
    pub fn write(&self, path: &str, text: &str) {
        let place = self.host.path_from_outside(path);
        let dir = Path::new(path).parent().unwrap();
        self.host.run(&format!("mkdir -p {}", dir.display()));
        fs::write(&place, text).unwrap_or_else(|error| panic!("{}: {error}", place.display()));
    }

    /// Adds lines to the unit's section `[Service]`, as an operator does; counts from its next start on.
    pub fn drop_in(&self, lines: &str) {
        let path = format!("/etc/systemd/system/{}.service.d/test.conf", self.program);
        self.write(&path, &format!("[Service]\n{lines}\n"));
    }

    /// What `systemctl` does with it.
    pub fn systemctl(&self, verb: &str) {
        self.host.run(&format!("systemctl {verb} {}", self.program));
    }

    /// A property of the unit, as `systemctl show` prints it.
    #[must_use]
    pub fn property(&self, name: &str) -> String {
        self.host.sh(&format!("systemctl show -P {name} {}", self.program))
    }

    /// Waits until it is active: a unit that notifies is so once it has said that it is ready.
    pub fn wait_active(&self) {
        let what = format!("{} is active", self.program);
        let active = || self.property("ActiveState") == "active";
        let end = std::time::Instant::now() + LIMIT;
        while !active() {
            assert!(std::time::Instant::now() < end, "not so: {what}\n{}", self.journal());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until it was started so often by itself, and is active again.
    pub fn wait_restarts(&self, number: u32) {
        let what = format!("{} was started anew {number} times", self.program);
        wait_until(LIMIT, &what, || {
            self.property("NRestarts").parse::<u32>().unwrap_or(0) >= number
        });
        self.wait_active();
    }

    /// Sends its main process a signal.
    pub fn signal(&self, signal: &str) {
        self.host.run(&format!("kill -{signal} {}", self.property("MainPID")));
    }

    /// Everything that it has logged, and systemd of it.
    #[must_use]
    pub fn journal(&self) -> String {
        self.host
            .try_sh(&format!("journalctl --no-pager -o cat -u {}", self.program))
            .unwrap_or_else(|why| why)
    }
}

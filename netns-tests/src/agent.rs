//! Edge: the real agent on a host. Its plugin calls are in [`crate::cni`].

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::host::Host;
use crate::program::{Process, binary};
use crate::run::wait_until;

/// What it logs when its kernel is right for the first time.
const READY: &str = ": ready";

/// An agent, running or not, and where it keeps what.
#[derive(Debug)]
pub struct Agent {
    host: Host,
    flags: Vec<String>,
    /// A file of its own, if it was installed: the one under test otherwise.
    program: Option<PathBuf>,
    environment: Vec<(String, String)>,
    process: Option<Process>,
}

impl Agent {
    /// An agent for `host` that is not started yet; `controller` is a URL and `flags` its other flags.
    #[must_use]
    pub fn new(host: &Host, controller: &str, flags: &str) -> Self {
        let mut all = vec!["--host".to_owned(), host.name().to_owned()];
        all.extend(["--controller", controller, "--plain-http"].map(str::to_owned));
        // A machine's standard paths are its own; other hosts share theirs with the test.
        if !host.is_machine() {
            let at = |name: &str| host.dir().join(name).display().to_string();
            all.extend([
                "--socket".to_owned(),
                at("agent.sock"),
                "--state-dir".to_owned(),
                at("agent"),
            ]);
            all.extend(["--boot-id-file".to_owned(), at("boot-id")]);
        }
        all.extend(flags.split_whitespace().map(str::to_owned));
        Self {
            host: host.clone(),
            flags: all,
            program: None,
            environment: Vec::new(),
            process: None,
        }
    }

    /// The same with these variables in its environment.
    #[must_use]
    pub fn with_environment(mut self, variables: &[(&str, String)]) -> Self {
        let owned = variables.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
        self.environment.extend(owned);
        self
    }

    /// Starts it and waits until it has joined and serves the plugin.
    #[must_use]
    pub fn started(mut self) -> Self {
        self.start();
        self
    }

    /// Starts it and waits until it serves the plugin.
    pub fn start(&mut self) {
        let command = self.command();
        self.process = Some(Process::start(command, &self.log()));
        wait_until(Duration::from_secs(15), "the agent serves the plugin", || {
            self.process.as_mut().unwrap().assert_running();
            self.status("pods").code == 0
        });
    }

    /// Starts it while no controller answers, and waits until it has made its kernel right by what it knows itself.
    pub fn start_alone(&mut self) {
        let before = self.logged().matches(READY).count();
        self.process = Some(Process::start(self.command(), &self.log()));
        wait_until(Duration::from_secs(20), "the agent is ready by itself", || {
            self.process.as_mut().unwrap().assert_running();
            self.logged().matches(READY).count() > before
        });
    }

    /// Waits until it serves the plugin.
    pub fn await_joined(&self) {
        let what = format!("{} has joined again", self.host.name());
        wait_until(Duration::from_secs(40), &what, || self.status("pods").code == 0);
    }

    /// Puts another file in the place of its program, as a package's upgrade does; what runs goes on.
    pub fn replace_program(&mut self) {
        let place = self.host.dir().join("limpet-agent");
        let draft = place.with_extension("new");
        std::fs::copy(binary("limpet-agent"), &draft).unwrap();
        std::fs::rename(draft, &place).unwrap();
        self.program = Some(place);
    }

    /// Lets it stand still.
    pub fn freeze(&self) {
        self.process.as_ref().expect("the agent runs").signal(Signal::SIGSTOP);
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.process.as_ref().expect("the agent runs").signal(Signal::SIGCONT);
    }

    /// The command line that [`Agent::start`] runs, for tests that want it to fail or to say more.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command =
            self.host.command(self.program.clone().unwrap_or_else(|| binary("limpet-agent")));
        command.args(&self.flags).envs(self.environment.iter().cloned());
        command
    }

    /// Stops it as a service manager does; it must succeed.
    pub fn stop(&mut self) {
        let status = self.process.take().expect("the agent runs").stop();
        assert!(status.success(), "the agent ended with {status}");
    }

    /// Ends it as a crash does.
    pub fn kill(&mut self) {
        self.process.take().expect("the agent runs").kill();
    }

    /// Forgets that it ran: its host was rebooted under it.
    pub fn died_with_its_host(&mut self) {
        self.process = None;
    }

    /// Everything it has logged.
    #[must_use]
    pub fn logged(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// The host it is on.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Its socket, as seen on its host.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        if self.host.is_machine() {
            "/run/limpet/agent.sock".into()
        } else {
            self.host.dir().join("agent.sock")
        }
    }

    fn log(&self) -> PathBuf {
        self.host.dir().join("agent.log")
    }
}

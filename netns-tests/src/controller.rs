//! Edge: the real controller on a host, and `limpetctl` against it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::host::Host;
use crate::program::{Process, binary};
use crate::run::{finish, wait_until};

const PORT: u16 = 7600;

/// The port of a store of its own.
const ETCD: &str = "http://127.0.0.1:2379";

/// A controller on its embedded store, or on a member of etcd beside it.
#[derive(Debug)]
pub struct Controller {
    host: Host,
    listen: String,
    store: PathBuf,
    process: Option<Process>,
    /// Whether its store is in etcd.
    over_etcd: bool,
    /// The member that runs.
    etcd: Option<Process>,
}

impl Controller {
    /// Starts a controller on `host`, listening on `address`, with an empty store.
    #[must_use]
    pub fn start(host: &Host, address: &str) -> Self {
        let mut controller = Self::new(host, address);
        controller.resume();
        controller
    }

    /// Starts one whose store is in etcd, on the same host.
    #[must_use]
    pub fn start_over_etcd(host: &Host, address: &str) -> Self {
        let mut controller = Self { over_etcd: true, ..Self::new(host, address) };
        controller.resume_etcd();
        controller.resume();
        controller
    }

    /// Starts its etcd on the data that it left, and waits until it answers.
    pub fn resume_etcd(&mut self) {
        let mut command = self.host.command("etcd");
        command.args(["--listen-client-urls", ETCD, "--advertise-client-urls", ETCD]);
        command.args(["--listen-peer-urls", "http://127.0.0.1:2380"]);
        command.arg("--data-dir").arg(self.host.dir().join("etcd"));
        self.etcd = Some(Process::start(command, &self.host.dir().join("etcd.log")));
        wait_until(Duration::from_secs(60), "etcd answers", || {
            self.host.try_sh(&format!("curl -sf -m 1 {ETCD}/health")).is_ok()
        });
    }

    /// Kills its etcd at once, as a crash does.
    pub fn kill_etcd(&mut self) {
        self.etcd.take().expect("etcd runs").kill();
    }

    fn new(host: &Host, address: &str) -> Self {
        let listen = if address.contains(':') {
            format!("[{address}]:{PORT}")
        } else {
            format!("{address}:{PORT}")
        };
        let store = host.dir().join("store.redb");
        Self { host: host.clone(), listen, store, process: None, over_etcd: false, etcd: None }
    }

    /// Starts it again on the store that it left.
    pub fn resume(&mut self) {
        self.start_with(&[], "network list");
    }

    /// Starts it on a new store, into which a backup is to be restored.
    pub fn await_restore(&mut self, store: &str) {
        self.store = self.host.dir().join(store);
        self.start_with(&["--await-restore"], "restore status");
    }

    /// Where it can keep files.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.host.dir()
    }

    fn start_with(&mut self, flags: &[&str], works: &str) {
        let mut command = self.host.command(binary("limpet-controller"));
        command.args(["--listen", &self.listen, "--plain-http"]);
        if self.over_etcd {
            command.args(["--etcd", ETCD]);
        } else {
            command.arg("--store").arg(&self.store);
        }
        command.args(flags);
        self.process = Some(Process::start(command, &self.host.dir().join("controller.log")));
        wait_until(Duration::from_secs(30), "the controller is ready", || {
            self.process.as_mut().unwrap().assert_running();
            self.try_ctl(works).is_ok()
        });
    }

    /// Stops it as a service manager does; it must succeed.
    pub fn stop(&mut self) {
        let status = self.process.take().expect("the controller runs").stop();
        assert!(status.success(), "the controller ended with {status}");
    }

    /// Ends it as a crash does.
    pub fn kill(&mut self) {
        self.process.take().expect("the controller runs").kill();
    }

    /// The URL that agents and `limpetctl` are given.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.listen)
    }

    /// Runs `limpetctl` with these words and returns what it printed; panics if it fails.
    #[must_use = "or use `run` when only its success matters"]
    pub fn ctl(&self, words: &str) -> String {
        self.try_ctl(words).unwrap_or_else(|why| panic!("{why}"))
    }

    /// Runs `limpetctl` with these words; panics if it fails.
    pub fn run(&self, words: &str) {
        drop(self.ctl(words));
    }

    /// Runs `limpetctl` with these words, which are split at spaces.
    ///
    /// # Errors
    ///
    /// What it printed, if it fails.
    pub fn try_ctl(&self, words: &str) -> Result<String, String> {
        let mut command = self.host.command(binary("limpetctl"));
        command.args(["--plain-http", "--controller", &self.url()]).args(words.split(' '));
        finish(&mut command, &format!("limpetctl {words}"))
    }

    /// What `limpetctl ... -o json` prints, as a list.
    #[must_use]
    pub fn rows(&self, words: &str) -> Vec<Value> {
        let text = self.ctl(&format!("{words} -o json"));
        match serde_json::from_str(&text).unwrap_or_else(|error| panic!("{words}: {error}: {text}"))
        {
            Value::Array(rows) => rows,
            Value::Object(mut listing) => match listing.remove("items") {
                Some(Value::Array(rows)) => rows,
                _ => vec![Value::Object(listing)],
            },
            other => panic!("{words}: neither a list nor an object: {other}"),
        }
    }
}

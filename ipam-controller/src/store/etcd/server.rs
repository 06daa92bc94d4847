//! Edge: real members of etcd, as child processes of a test. Dropping them kills them.
//!
//! Every test binary has a network of its own, so addresses need no luck: each member has one of
//! the loopback's, and etcd's usual ports.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use etcd_client::Client;
use tempfile::TempDir;

/// How long anything may take before the test fails.
const LIMIT: Duration = Duration::from_secs(30);

/// Members of one etcd.
pub(crate) struct Cluster {
    members: Vec<Member>,
    scheme: &'static str,
    dir: TempDir,
}

struct Member {
    name: String,
    address: Ipv4Addr,
    flags: Vec<String>,
    child: Child,
}

impl Cluster {
    /// Starts so many members, and waits until they answer.
    pub(crate) fn start(count: usize) -> Self {
        Self::start_with(count, "http", |_| Vec::new())
    }

    /// Starts members with further flags, which may depend on the directory of all.
    pub(crate) fn start_with(
        count: usize,
        scheme: &'static str,
        flags: impl FnOnce(&TempDir) -> Vec<String>,
    ) -> Self {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let names: Vec<(String, Ipv4Addr)> = (0..count)
            .map(|n| {
                let [high, low] = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
                (format!("m{n}"), Ipv4Addr::new(127, 79, high, low))
            })
            .collect();
        let peers: Vec<String> =
            names.iter().map(|(name, address)| format!("{name}=http://{address}:2380")).collect();
        // One by itself needs nobody's vote; several must not be hurried by a busy machine.
        let ticks = if count == 1 { ["10", "100"] } else { ["100", "1000"] };
        let mut common: Vec<String> = [
            "--initial-cluster",
            &peers.join(","),
            "--heartbeat-interval",
            ticks[0],
            "--election-timeout",
            ticks[1],
        ]
        .map(str::to_owned)
        .to_vec();
        common.extend(flags(&dir));
        let members = names.into_iter().map(|(name, address)| {
            let mut flags = common.clone();
            for (flag, scheme, port) in [
                ("--listen-client-urls", scheme, 2379),
                ("--advertise-client-urls", scheme, 2379),
                ("--listen-peer-urls", "http", 2380),
                ("--initial-advertise-peer-urls", "http", 2380),
                ("--listen-metrics-urls", "http", 2381),
            ] {
                flags.extend([flag.to_owned(), format!("{scheme}://{address}:{port}")]);
            }
            flags.extend(["--name".to_owned(), name.clone()]);
            flags.extend(["--data-dir".to_owned(), dir.path().join(&name).display().to_string()]);
            let child = spawn(&dir, &name, &flags);
            Member { name, address, flags, child }
        });
        let cluster = Self { members: members.collect(), scheme, dir };
        for n in 0..count {
            cluster.await_health(n);
        }
        cluster
    }

    /// Where the members are.
    pub(crate) fn urls(&self) -> Vec<String> {
        self.members
            .iter()
            .map(|member| format!("{}://{}:2379", self.scheme, member.address))
            .collect()
    }

    /// Where the members' files are.
    pub(crate) fn directory(&self) -> &Path {
        self.dir.path()
    }

    /// The library, to see and do what the store does not.
    pub(crate) async fn client(&self) -> Client {
        Client::connect(self.urls(), None).await.unwrap()
    }

    /// Which member leads.
    pub(crate) async fn leader(&self) -> usize {
        let deadline = Instant::now() + LIMIT;
        loop {
            for (n, url) in self.urls().iter().enumerate() {
                let mut client = Client::connect([url], None).await.unwrap();
                let Ok(status) = client.status().await else { continue };
                if status.header().unwrap().member_id() == status.leader() {
                    return n;
                }
            }
            assert!(Instant::now() < deadline, "no leader");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Kills a member as a power failure would.
    pub(crate) fn kill(&mut self, n: usize) {
        self.members[n].child.kill().unwrap();
        self.members[n].child.wait().unwrap();
    }

    /// Starts a member again that was killed.
    pub(crate) fn restart(&mut self, n: usize) {
        let member = &mut self.members[n];
        member.child = spawn(&self.dir, &member.name, &member.flags);
        self.await_health(n);
    }

    /// Lets a member stand still.
    pub(crate) fn freeze(&self, n: usize) {
        signal("-STOP", &self.members[n].child);
    }

    /// Lets it go on.
    pub(crate) fn thaw(&self, n: usize) {
        signal("-CONT", &self.members[n].child);
    }

    fn await_health(&self, n: usize) {
        let member = &self.members[n];
        let deadline = Instant::now() + LIMIT;
        while !is_healthy(member.address) {
            let log = fs::read_to_string(self.dir.path().join(format!("{}.log", member.name)));
            assert!(Instant::now() < deadline, "{} is not well: {log:?}", member.name);
            thread::sleep(Duration::from_millis(20));
        }
    }
}

fn spawn(dir: &TempDir, name: &str, flags: &[String]) -> Child {
    let log = dir.path().join(format!("{name}.log"));
    let log = File::options().create(true).append(true).open(log).unwrap();
    // Debian's package etcd-server; scripts/setup installs it.
    Command::new("etcd")
        .args(flags)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .expect("etcd is there: scripts/setup test")
}

fn is_healthy(address: Ipv4Addr) -> bool {
    let ask = || {
        let mut stream = TcpStream::connect((address, 2381))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"GET /health HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok::<_, std::io::Error>(answer)
    };
    ask().is_ok_and(|answer| answer.contains("\"true\""))
}

fn signal(signal: &str, child: &Child) {
    let pid = child.id().to_string();
    assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for member in &mut self.members {
            let _ = member.child.kill();
            let _ = member.child.wait();
        }
    }
}

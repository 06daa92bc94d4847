//! Edge: traffic: who reaches whom, what source address the other side sees, and what a change loses.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::host::inside;

/// How long one connection may take; far more than it needs.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);

/// Connects from the namespace `from` to `address` in the namespace `to`, and returns the source
/// address that `to` saw. A byte goes each way, so both directions work if this succeeds.
///
/// # Errors
///
/// What did not work, in words.
pub fn seen_as(from: &Path, to: &Path, address: IpAddr) -> Result<IpAddr, String> {
    let listener = inside(to, || TcpListener::bind(SocketAddr::new(address, 0)))
        .map_err(|error| format!("listening on {address}: {error}"))?;
    let at = listener.local_addr().map_err(|error| error.to_string())?;
    listener.set_nonblocking(true).map_err(|error| error.to_string())?;
    let (said, heard) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(move || drop(said.send(answer_one(&listener))));
        let asked = inside(from, || ask(at));
        let peer = heard.recv().map_err(|error| error.to_string())?;
        asked.map_err(|error| format!("asking {at}: {error}"))?;
        peer.map(|peer| peer.ip()).map_err(|error| format!("answering on {at}: {error}"))
    })
}

/// Whether a connection from the namespace `from` to `address` in `to` is seen to come from `source`.
#[must_use]
pub fn reaches(from: &Path, source: IpAddr, to: &Path, address: IpAddr) -> bool {
    seen_as(from, to, address) == Ok(source)
}

fn ask(at: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&at, CONNECT_LIMIT)?;
    stream.set_read_timeout(Some(CONNECT_LIMIT))?;
    stream.write_all(b"?")?;
    stream.read_exact(&mut [0])
}

fn answer_one(listener: &TcpListener) -> std::io::Result<SocketAddr> {
    let end = Instant::now() + CONNECT_LIMIT;
    let (mut stream, peer) = loop {
        match listener.accept() {
            Err(error)
                if error.kind() == std::io::ErrorKind::WouldBlock && Instant::now() < end =>
            {
                thread::sleep(Duration::from_millis(2));
            }
            other => break other?,
        }
    };
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(CONNECT_LIMIT))?;
    stream.read_exact(&mut [0])?;
    stream.write_all(b"!")?;
    Ok(peer)
}

/// A ping that goes on until it is asked what became of it: one every 10 ms.
#[derive(Debug)]
pub struct Flow {
    child: std::process::Child,
}

/// What a [`Flow`] saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tally {
    /// Packets that were sent.
    pub sent: u32,
    /// Packets that were answered.
    pub answered: u32,
    /// Everything that ping printed.
    pub text: String,
}

impl Tally {
    /// Packets without an answer.
    #[must_use]
    pub fn lost(&self) -> u32 {
        self.sent - self.answered
    }
}

impl Flow {
    /// Starts to ping `address` with `command`, which runs `ping` where it is to come from, and
    /// returns once it was answered.
    #[must_use]
    pub fn start(mut command: Command, address: IpAddr) -> Self {
        command.args(["-n", "-q", "-i", "0.01", "-W", "1", &address.to_string()]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        Self { child }
    }

    /// Ends it, and counts. The last packets get their time to be answered.
    #[must_use]
    pub fn end(self) -> Tally {
        // SIGINT is what makes ping print its sums. `ip netns exec` has become ping by now.
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), Signal::SIGINT).unwrap();
        let output = self.child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let sums = text.lines().find(|line| line.contains("packets transmitted"));
        let sums = sums.unwrap_or_else(|| panic!("ping printed no sums: {text}"));
        let number = |at: usize| {
            sums.split(", ").nth(at).unwrap().split(' ').next().unwrap().parse().unwrap()
        };
        Tally { sent: number(0), answered: number(1), text }
    }
}

//! Edge: traffic of which every piece is accounted for: datagrams with numbers, and a connection with a known content.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce, sockopt::SndBufForce};

use crate::host::inside;

/// The payload of a datagram, in bytes; its number is at the front.
const SIZE: usize = 64;

/// How much the receiver's socket holds, in bytes: seconds of traffic, so that a busy machine loses none of it there.
const BUFFER: usize = 64 << 20;

/// The most that is sent at once when the machine was busy with others: what is further behind is not made up for.
const BURST: u64 = 32;

/// How long the last datagrams may be on their way.
const TAIL: Duration = Duration::from_secs(2);

/// How often a receiver to which nothing comes looks whether there is more to come.
const LOOK_UP: Duration = Duration::from_millis(50);

/// How long a connection may stand still.
const STILL: Duration = Duration::from_secs(20);

/// What a connection carries at a time, in bytes, and the pause after it: a steady trickle, which leaves the processors
/// to others.
const PIECE: usize = 8 << 10;
const TRICKLE: Duration = Duration::from_millis(5);

/// Where traffic comes from and where it goes: namespaces, and the addresses there.
#[derive(Clone, Debug)]
pub struct Ends {
    /// Who sends.
    pub from: (PathBuf, IpAddr),
    /// Who receives.
    pub to: (PathBuf, IpAddr),
}

/// Datagrams with numbers, sent at a steady rate until they are counted.
#[derive(Debug)]
pub struct Stream {
    stop: Arc<AtomicBool>,
    total: Arc<AtomicU64>,
    sender: JoinHandle<u64>,
    receiver: JoinHandle<Heard>,
    socket: Arc<UdpSocket>,
    to: PathBuf,
}

/// What became of the datagrams of a [`Stream`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// How many were sent.
    pub sent: u64,
    /// How many did not arrive, those left out that the receiver's own socket had no room for.
    pub lost: u64,
    /// How many the receiver's own socket had no room for.
    pub overrun: u64,
    /// How many arrived once more.
    pub duplicated: u64,
    /// How many arrived after a later one.
    pub reordered: u64,
}

/// What a receiver saw.
#[derive(Debug, Default)]
struct Heard {
    seen: Vec<u64>,
    distinct: u64,
    duplicated: u64,
    reordered: u64,
    highest: u64,
}

impl Stream {
    /// Starts to send so many a second.
    #[must_use]
    pub fn start(ends: &Ends, rate: u64) -> Self {
        let bound = |(netns, address): &(PathBuf, IpAddr)| {
            let at = SocketAddr::new(*address, 0);
            inside(netns, || UdpSocket::bind(at)).unwrap_or_else(|error| panic!("{at}: {error}"))
        };
        let (sending, socket) = (bound(&ends.from), Arc::new(bound(&ends.to)));
        setsockopt(&*socket, RcvBufForce, &BUFFER).unwrap();
        setsockopt(&sending, SndBufForce, &BUFFER).unwrap();
        socket.set_read_timeout(Some(LOOK_UP)).unwrap();
        sending.connect(socket.local_addr().unwrap()).unwrap();
        let (stop, total) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(u64::MAX)));
        let (stopped, all, heard) = (Arc::clone(&stop), Arc::clone(&total), Arc::clone(&socket));
        let sender = thread::spawn(move || send(&sending, rate, &stopped));
        let receiver = thread::spawn(move || receive(&heard, &all));
        Self { stop, total, sender, receiver, socket, to: ends.to.0.clone() }
    }

    /// Stops to send, waits for what is on its way, and counts.
    #[must_use]
    pub fn end(self) -> Count {
        self.stop.store(true, Ordering::SeqCst);
        let sent = self.sender.join().expect("the sender goes on to its end");
        self.total.store(sent, Ordering::SeqCst);
        let heard = self.receiver.join().expect("the receiver goes on to its end");
        let overrun = overrun(&self.to, self.socket.local_addr().unwrap());
        let missing = sent - heard.distinct;
        let Heard { duplicated, reordered, .. } = heard;
        Count { sent, lost: missing.saturating_sub(overrun), overrun, duplicated, reordered }
    }
}

/// Sends until it is told to stop, and returns how many numbers it has used. A number whose datagram the kernel does not
/// take, because it knows no way, is lost like any other.
fn send(socket: &UdpSocket, rate: u64, stop: &AtomicBool) -> u64 {
    let begun = Instant::now();
    let (mut sent, mut skipped) = (0_u64, 0_u64);
    let mut datagram = [0; SIZE];
    while !stop.load(Ordering::SeqCst) {
        let due = u64::try_from(begun.elapsed().as_micros()).unwrap() * rate / 1_000_000;
        let behind = due.saturating_sub(sent + skipped);
        skipped += behind.saturating_sub(BURST);
        for _ in 0..behind.min(BURST) {
            datagram[..8].copy_from_slice(&sent.to_be_bytes());
            // This machine's own queue is no part of the way.
            while matches!(socket.send(&datagram), Err(error) if is_full(&error)) {
                thread::yield_now();
            }
            sent += 1;
        }
        thread::sleep(Duration::from_millis(1));
    }
    sent
}

fn is_full(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
        || error.raw_os_error().map(Errno::from_raw) == Some(Errno::ENOBUFS)
}

/// Receives until all are there that were sent, or nothing comes any more.
fn receive(socket: &UdpSocket, total: &AtomicU64) -> Heard {
    let mut heard = Heard::default();
    let mut datagram = [0; SIZE];
    let mut last = Instant::now();
    loop {
        // An error may be the network's word about a datagram, too: it is missing, which is counted.
        if socket.recv(&mut datagram).is_ok() {
            heard.take(u64::from_be_bytes(datagram[..8].try_into().unwrap()));
            last = Instant::now();
            continue;
        }
        let sent = total.load(Ordering::SeqCst);
        if sent == heard.distinct || sent != u64::MAX && last.elapsed() > TAIL {
            return heard;
        }
    }
}

impl Heard {
    fn take(&mut self, number: u64) {
        let (word, bit) = (usize::try_from(number / 64).unwrap(), 1_u64 << (number % 64));
        if self.seen.len() <= word {
            self.seen.resize(word + 1, 0);
        }
        if self.seen[word] & bit != 0 {
            self.duplicated += 1;
            return;
        }
        self.seen[word] |= bit;
        self.distinct += 1;
        self.reordered += u64::from(number < self.highest);
        self.highest = self.highest.max(number);
    }
}

/// How many datagrams the socket at this address had no room for.
fn overrun(netns: &Path, at: SocketAddr) -> u64 {
    let file = if at.is_ipv4() { "udp" } else { "udp6" };
    let text = inside(netns, || std::fs::read_to_string(format!("/proc/thread-self/net/{file}")));
    let port = format!(":{:04X}", at.port());
    let text = text.unwrap();
    let line = text.lines().find(|line| {
        line.split_whitespace().nth(1).is_some_and(|address| address.ends_with(&port))
    });
    let drops = line.and_then(|line| line.split_whitespace().last());
    drops.unwrap_or_else(|| panic!("no socket at {at} in\n{text}")).parse().unwrap()
}

/// A connection that carries a trickle of known bytes until it is closed.
#[derive(Debug)]
pub struct Transfer {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<std::io::Result<u64>>,
    receiver: JoinHandle<std::io::Result<u64>>,
}

impl Transfer {
    /// Connects, and begins.
    #[must_use]
    pub fn start(ends: &Ends) -> Self {
        let (netns, address) = &ends.to;
        let listener = inside(netns, || TcpListener::bind(SocketAddr::new(*address, 0))).unwrap();
        let at = listener.local_addr().unwrap();
        let sending = inside(&ends.from.0, || TcpStream::connect_timeout(&at, STILL)).unwrap();
        let (receiving, peer) = listener.accept().unwrap();
        assert_eq!(peer.ip(), ends.from.1, "the source address is the sender's own");
        sending.set_write_timeout(Some(STILL)).unwrap();
        receiving.set_read_timeout(Some(STILL)).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let sender = thread::spawn(move || trickle(sending, &stopped));
        let receiver = thread::spawn(move || drain(receiving));
        Self { stop, sender, receiver }
    }

    /// Closes it, and returns how many bytes it has carried.
    ///
    /// # Errors
    ///
    /// What broke it, or what was not as it was sent.
    pub fn end(self) -> Result<u64, String> {
        self.stop.store(true, Ordering::SeqCst);
        let sent = self.sender.join().expect("the sender goes on to its end");
        let received = self.receiver.join().expect("the receiver goes on to its end");
        let sent = sent.map_err(|error| format!("sending: {error}"))?;
        let received = received.map_err(|error| format!("receiving: {error}"))?;
        if sent == received { Ok(sent) } else { Err(format!("{received} bytes of {sent} came")) }
    }
}

fn trickle(mut stream: TcpStream, stop: &AtomicBool) -> std::io::Result<u64> {
    let mut sent = 0;
    while !stop.load(Ordering::SeqCst) {
        let piece: Vec<u8> = (sent..).take(PIECE).map(content).collect();
        stream.write_all(&piece)?;
        sent += u64::try_from(PIECE).unwrap();
        thread::sleep(TRICKLE);
    }
    Ok(sent)
}

fn drain(mut stream: TcpStream) -> std::io::Result<u64> {
    let (mut received, mut piece) = (0, vec![0; PIECE]);
    loop {
        let size = stream.read(&mut piece)?;
        if size == 0 {
            return Ok(received);
        }
        for byte in &piece[..size] {
            if *byte != content(received) {
                let words = format!("byte {received} is not what was sent");
                return Err(std::io::Error::new(ErrorKind::InvalidData, words));
            }
            received += 1;
        }
    }
}

/// What a connection carries at a place.
fn content(at: u64) -> u8 {
    (at % 251).to_be_bytes()[7]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_counted_once_and_what_comes_late_is_said_to() {
        let mut heard = Heard::default();
        for number in [0, 1, 3, 2, 3, 200] {
            heard.take(number);
        }
        let Heard { distinct, duplicated, reordered, highest, .. } = heard;
        assert_eq!((distinct, duplicated, reordered, highest), (5, 1, 1, 200));
    }
}

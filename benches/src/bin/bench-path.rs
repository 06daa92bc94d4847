//! Edge: what limpet's path costs a packet: a container pair across two hosts, against the same made by hand.
//!
//! `underlay` is host to host with nothing between them; `byhand` a container pair over a VXLAN that was made with
//! `ip`, routed as limpet's is and with none of its rules; `limpet` the real thing. All share one fabric and alternate.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use limpet_benches::{Better, Report, Row, count, microseconds, row};
use netns_tests::{Container, Datacentre, Host};

/// How many times each way is measured.
const ROUNDS: usize = 15;
/// How long one transfer runs.
const TCP: Duration = Duration::from_millis(600);
/// How long bytes go there and back.
const ROUND_TRIPS: Duration = Duration::from_millis(300);
/// How long small datagrams are sent.
const DATAGRAMS: Duration = Duration::from_millis(300);
/// The payload of a datagram, in bytes.
const DATAGRAM: usize = 64;
/// How long a socket may be silent before the measurement fails.
const SILENCE: Duration = Duration::from_secs(3);

/// Two ends that are connected one way or another.
struct Pair {
    name: &'static str,
    from: PathBuf,
    to: PathBuf,
    /// The address of `to`.
    address: IpAddr,
}

/// What one pair showed.
#[derive(Default)]
struct Figures {
    gigabits: Vec<f64>,
    round_trips: Vec<f64>,
    datagrams: Vec<f64>,
}

fn main() -> Result<()> {
    let datacentre = Datacentre::small();
    let (near, far) = (datacentre.a.add("bench", "near-0"), datacentre.b.add("bench", "far-0"));
    datacentre.settle_on(&far, &datacentre.b);
    let byhand = ByHand::new(&datacentre);
    let pairs = [
        Pair {
            name: "underlay",
            from: byhand.hosts[0].netns(),
            to: byhand.hosts[1].netns(),
            address: "192.0.2.12".parse()?,
        },
        Pair {
            name: "byhand",
            from: byhand.containers[0].netns(),
            to: byhand.containers[1].netns(),
            address: "10.33.2.1".parse()?,
        },
        Pair {
            name: "limpet",
            from: near.container.netns(),
            to: far.container.netns(),
            address: far.v4(),
        },
    ];
    let mut figures: [Figures; 3] = Default::default();
    for _ in 0..ROUNDS {
        for (pair, figures) in pairs.iter().zip(&mut figures) {
            measure(pair, figures).with_context(|| pair.name.to_owned())?;
        }
    }
    let report = Report::new("path", pairs.iter().zip(&figures).flat_map(rows_of).collect());
    report.publish(&remarks(&report))?;
    Ok(())
}

fn rows_of((pair, figures): (&Pair, &Figures)) -> [Row; 3] {
    let name = |what| format!("{}.{what}", pair.name);
    [
        row(name("tcp"), "Gbit/s", Better::High, &figures.gigabits),
        row(name("rr"), "us", Better::Low, &figures.round_trips),
        row(name("pps"), "packets/s", Better::High, &figures.datagrams),
    ]
}

fn remarks(report: &Report) -> Vec<String> {
    ["tcp", "rr", "pps"]
        .iter()
        .map(|what| {
            let median = |side: &str| report.median(&format!("{side}.{what}"));
            let (hand, bare) =
                (median("limpet") / median("byhand"), median("limpet") / median("underlay"));
            format!(
                "{what}: limpet has {hand:.3} of what was made by hand, {bare:.3} of the underlay"
            )
        })
        .collect()
}

/// Two hosts and a container on each, connected with `ip` alone.
struct ByHand {
    hosts: [Host; 2],
    containers: [Container; 2],
}

impl ByHand {
    fn new(datacentre: &Datacentre) -> Self {
        let made = Self {
            hosts: [Host::new("hand-a"), Host::new("hand-b")],
            containers: [Container::new("hand-c"), Container::new("hand-d")],
        };
        for (host, number) in made.hosts.iter().zip([1_u8, 2]) {
            // As careful about sources as the hosts of the datacentre are.
            host.run("sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.default.rp_filter=1");
            let address = format!("192.0.2.1{number}/24");
            datacentre.underlay.join(host, "eth0", &[&address]);
        }
        for (index, number) in [1_u8, 2].into_iter().enumerate() {
            let (host, container) = (&made.hosts[index], made.containers[index].id());
            let other = 3 - number;
            host.run(&format!(
                "sysctl -qw net.ipv4.ip_forward=1
                 ip link add hand address 02:00:00:00:00:0{number} mtu 1450 type vxlan id 200 \
                     local 192.0.2.1{number} dstport 4789 nolearning
                 ip link set hand up
                 bridge fdb add 02:00:00:00:00:0{other} dev hand dst 192.0.2.1{other} self permanent
                 ip neigh add 169.254.9.{other} lladdr 02:00:00:00:00:0{other} dev hand nud permanent
                 ip route add 10.33.{other}.0/24 via 169.254.9.{other} dev hand onlink
                 ip link add port mtu 1450 type veth peer name eth0 mtu 1450 netns {container}
                 ip link set port up
                 ip addr add 10.33.{number}.254/32 dev port
                 ip route add 10.33.{number}.1/32 dev port"
            ));
            drop(netns_tests::sh(&format!(
                "ip -n {container} link set eth0 up
                 ip -n {container} addr add 10.33.{number}.1/32 dev eth0
                 ip -n {container} route add 10.33.{number}.254 dev eth0
                 ip -n {container} route add default via 10.33.{number}.254"
            )));
        }
        made
    }
}

fn measure(pair: &Pair, figures: &mut Figures) -> Result<()> {
    figures.gigabits.push(transfer(pair).context("tcp")?);
    figures.round_trips.extend(round_trips(pair).context("rr")?);
    figures.datagrams.push(datagrams(pair).context("pps")?);
    Ok(())
}

/// Calls `act` on a thread inside the namespace: what it opens there stays there.
fn inside<T: Send>(netns: &Path, act: impl FnOnce() -> std::io::Result<T> + Send) -> Result<T> {
    Ok(netns_tests::inside(netns, act)?)
}

/// A connected pair of TCP sockets, one end in each namespace.
fn connected(pair: &Pair) -> Result<(TcpStream, TcpStream)> {
    let listener = inside(&pair.to, || TcpListener::bind(SocketAddr::new(pair.address, 0)))?;
    let at = listener.local_addr()?;
    let near = inside(&pair.from, || TcpStream::connect_timeout(&at, SILENCE))?;
    let (far, _) = listener.accept()?;
    for stream in [&near, &far] {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SILENCE))?;
        stream.set_write_timeout(Some(SILENCE))?;
    }
    Ok((near, far))
}

/// Returns the gigabits per second that arrive.
fn transfer(pair: &Pair) -> Result<f64> {
    let (mut near, mut far) = connected(pair)?;
    let sending = thread::spawn(move || -> std::io::Result<()> {
        let (chunk, end) = (vec![0; 1 << 17], Instant::now() + TCP);
        while Instant::now() < end {
            near.write_all(&chunk)?;
        }
        Ok(())
    });
    let (mut buffer, mut kilobytes, mut rest) = (vec![0; 1 << 18], 0_u32, 0);
    let start = Instant::now();
    loop {
        match far.read(&mut buffer)? {
            0 => break,
            length => {
                rest += length;
                kilobytes += u32::try_from(rest / 1000)?;
                rest %= 1000;
            }
        }
    }
    let took = start.elapsed();
    sending.join().map_err(|_| anyhow!("the sender panicked"))??;
    Ok(f64::from(kilobytes) * 8e-6 / took.as_secs_f64())
}

/// Returns the microseconds of each byte's way there and back.
fn round_trips(pair: &Pair) -> Result<Vec<f64>> {
    let (mut near, mut far) = connected(pair)?;
    let echo = thread::spawn(move || {
        let mut byte = [0];
        while far.read_exact(&mut byte).is_ok() && far.write_all(&byte).is_ok() {}
    });
    let (mut times, end) = (Vec::new(), Instant::now() + ROUND_TRIPS);
    while Instant::now() < end {
        let start = Instant::now();
        near.write_all(&[1])?;
        near.read_exact(&mut [0])?;
        times.push(microseconds(start.elapsed()));
    }
    drop(near);
    echo.join().map_err(|_| anyhow!("the echo panicked"))?;
    Ok(times)
}

/// Returns the datagrams per second that arrive.
fn datagrams(pair: &Pair) -> Result<f64> {
    let far = inside(&pair.to, || UdpSocket::bind(SocketAddr::new(pair.address, 0)))?;
    let at = far.local_addr()?;
    let any: IpAddr = "0.0.0.0".parse()?;
    let near = inside(&pair.from, || UdpSocket::bind(SocketAddr::new(any, 0)))?;
    near.connect(at)?;
    far.set_read_timeout(Some(Duration::from_millis(100)))?;
    let sent_all = AtomicBool::new(false);
    thread::scope(|scope| {
        let sending = scope.spawn(|| -> std::io::Result<()> {
            let end = Instant::now() + DATAGRAMS;
            while Instant::now() < end {
                // Looking at the clock for each would cost more than sending.
                for _ in 0..64 {
                    near.send(&[0; DATAGRAM])?;
                }
            }
            sent_all.store(true, Ordering::Release);
            Ok(())
        });
        let (mut arrived, start) = (0_u32, Instant::now());
        let mut last = start;
        // The first silence after the sender has ended ends the count.
        while far.recv(&mut [0; DATAGRAM]).is_ok() || !sent_all.load(Ordering::Acquire) {
            arrived += 1;
            last = Instant::now();
        }
        sending.join().map_err(|_| anyhow!("the sender panicked"))??;
        Ok(count(arrived) / (last - start).as_secs_f64().max(1e-3))
    })
}

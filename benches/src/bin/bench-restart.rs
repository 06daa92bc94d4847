//! Edge: packets that are lost while limpet's programs are killed, replaced, frozen or left without each other.
//!
//! Every row is one upheaval under a load of numbered datagrams: container to container at the rate below, and at a
//! fraction of it back, from container to physical host and the other way; besides, two TCP connections. A stream between
//! two namespaces with nothing of limpet's in between tells what the machine itself loses: a row in which that is anything
//! is measured again.

use std::time::Duration;

use anyhow::{Result, ensure};
use limpet_benches::{Report, Row, count};
use netns_tests::{Datacentre, Load, Pod, Toll, Upheaval};

/// Datagrams per second from container to container.
const RATE: u64 = 10_000;
/// The same on each of the three other paths.
const OTHERS: u64 = 1_000;
/// How long what is away is away: a controller for longer than a lease (15 s).
const PAUSE: Duration = Duration::from_secs(2);
const LONG: Duration = Duration::from_secs(17);
/// How often a row is measured in which the machine lost packets.
const TRIES: usize = 3;

fn main() -> Result<()> {
    let mut datacentre = Datacentre::to_be_shaken();
    let (web, db) = (datacentre.a.add("bench", "web-0"), datacentre.b.add("bench", "db-0"));
    datacentre.settle_on(&db, &datacentre.b);
    datacentre.settle_on(&web, &datacentre.a);
    let mut rows = Vec::new();
    let mut remarks = Vec::new();
    for upheaval in Upheaval::EACH {
        let toll = measure(&mut datacentre, (&web, &db), upheaval)?;
        rows.push(packets(upheaval.name(), &toll)?);
        remarks.push(remark(upheaval, &toll));
    }
    Report::new("restart", rows).publish(&remarks)?;
    Ok(())
}

/// One upheaval, again if the machine itself lost something.
fn measure(dc: &mut Datacentre, pods: (&Pod, &Pod), upheaval: Upheaval) -> Result<Toll> {
    let pause = if upheaval == Upheaval::ControllerAway { LONG } else { PAUSE };
    let mut once = || {
        let load = Load::start(dc, pods, RATE, OTHERS);
        upheaval.happen(dc, pause);
        load.end()
    };
    let mut toll = once();
    for _ in 1..TRIES {
        if toll.is_blurred() {
            toll = once();
        }
    }
    for (path, carried) in &toll.transfers {
        ensure!(carried.is_ok(), "{}: {path}: the connection broke: {carried:?}", upheaval.name());
    }
    Ok(toll)
}

/// How many are lost, and out of how many.
fn packets(name: &str, toll: &Toll) -> Result<Row> {
    let (lost, n) = (count(toll.lost()), usize::try_from(toll.sent())?);
    Ok(Row { name: name.to_owned(), unit: "packets", p50: lost, p99: lost, n })
}

/// What else is to be said.
fn remark(upheaval: Upheaval, toll: &Toll) -> String {
    let name = upheaval.name();
    let sum = |of: fn(&netns_tests::Count) -> u64| -> u64 {
        toll.streams.iter().map(|(_, count)| of(count)).sum()
    };
    let (again, late) = (sum(|count| count.duplicated), sum(|count| count.reordered));
    let carried: u64 = toll.transfers.iter().filter_map(|(_, carried)| carried.as_ref().ok()).sum();
    let blurred = if toll.is_blurred() {
        format!(
            "; the machine itself lost packets: {} of {} without limpet, {} in its queues",
            toll.control.lost, toll.control.sent, toll.dropped
        )
    } else {
        String::new()
    };
    format!(
        "{name}: {} lost of {}, {again} twice, {late} out of turn; {} kB by TCP, unbroken{blurred}",
        toll.lost(),
        toll.sent(),
        carried / 1000
    )
}

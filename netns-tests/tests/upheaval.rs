//! Not one packet is lost while limpet's programs are killed, replaced, frozen, or left without each other: thousands of
//! numbered datagrams and connections, on every kind of path, and all of them counted.

use std::time::Duration;

use netns_tests::{Datacentre, Load, Upheaval};

/// Datagrams per second on each path: what a busy machine with two cores sends beside its other work.
const RATE: u64 = 400;

/// What each costs whose programs are away for `pause`: nothing.
fn cost_nothing(upheavals: &[Upheaval], pause: Duration) {
    let mut dc = Datacentre::to_be_shaken();
    let (web, db) = (dc.a.add("shop", "web-0"), dc.b.add("shop", "db-0"));
    dc.settle_on(&db, &dc.b);
    dc.settle_on(&web, &dc.a);
    for upheaval in upheavals {
        let load = Load::start(&dc, (&web, &db), RATE, RATE);
        upheaval.happen(&mut dc, pause);
        load.end().assert_nothing_lost();
    }
    // What was shaken works.
    let late = dc.b.add("shop", "late-0");
    dc.settle_on(&late, &dc.b);
}

#[test]
fn agents_that_are_killed_restarted_frozen_or_upgraded_lose_no_packet() {
    use Upheaval::{Frozen, Killed, Restarted, Upgraded};
    cost_nothing(&[Killed, Restarted, Frozen, Upgraded], Duration::from_secs(1));
}

#[test]
fn a_controller_or_a_store_that_is_away_for_longer_than_a_lease_costs_no_packet() {
    // A lease has 15 s. Of what there is afterwards nothing depends on how long it lasts: no agent has a longer timer.
    cost_nothing(&[Upheaval::ControllerAway], Duration::from_secs(17));
    cost_nothing(&[Upheaval::StoreAway], Duration::from_secs(3));
}

#[test]
fn all_of_it_at_once_costs_no_packet() {
    cost_nothing(&[Upheaval::All], Duration::from_secs(3));
}

#[test]
fn what_is_cut_for_a_moment_is_counted() {
    let dc = Datacentre::to_be_shaken();
    let (web, db) = (dc.a.add("shop", "web-0"), dc.b.add("shop", "db-0"));
    dc.settle_on(&db, &dc.b);
    dc.settle_on(&web, &dc.a);
    let load = Load::start(&dc, (&web, &db), RATE, RATE);
    dc.a.freeze();
    dc.a.host().run("ip link set limpet1 down; sleep 0.2; ip link set limpet1 up");
    dc.a.thaw();
    dc.settle_on(&web, &dc.a);
    let toll = load.end();
    assert!(toll.lost() > 20 && !toll.is_blurred(), "{toll:#?}");
}

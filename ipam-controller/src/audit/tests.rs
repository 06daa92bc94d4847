//! Pure: a store that limpet left agrees with itself; what a hand breaks is found and mended.

use limpet_api::check::StoreFinding as F;
use limpet_net_types::Token;
use proptest::prelude::*;

use super::*;
use crate::state::sample::{Sample, name};

fn sample() -> Sample {
    let mut sample = Sample::new();
    sample.network("blue");
    for host in ["a", "b"] {
        sample.host(host);
    }
    sample.pool("p", "10.0.0.0/27", |pool| pool.sticky = limpet_api::config::Sticky::Always);
    for (host, container) in [("a", "c1"), ("b", "c2")] {
        sample.attach_named(host, container, &format!("web-{container}"));
    }
    sample
}

fn kinds(sample: &Sample) -> Vec<F> {
    let mut kinds: Vec<F> = find(sample.state()).into_iter().map(|found| found.kind).collect();
    kinds.sort_unstable();
    kinds.dedup();
    kinds
}

/// Mends until nothing that can be mended is left; it must end.
fn mended(sample: &mut Sample) -> Vec<F> {
    for _ in 0..4 {
        let mends: Vec<Mend> =
            find(sample.state()).into_iter().filter_map(|found| found.mend).collect();
        for it in &mends {
            sample.decided(|state| mend(state, it)).unwrap();
        }
        if mends.is_empty() {
            return kinds(sample);
        }
    }
    panic!("it never ends: {:?}", find(sample.state()));
}

fn delete(sample: &mut Sample, subject: &Subject) {
    let mut draft = Draft::default();
    draft.delete(subject);
    sample.commit(&draft.into_txn());
}

fn first(sample: &Sample) -> Attachment {
    sample.state().attachments().next().unwrap().record.clone()
}

fn slot(attachment: &Attachment) -> Subject {
    Subject::Address(attachment.key.network.clone(), attachment.addresses[0].address)
}

#[test]
fn what_limpet_leaves_agrees_with_itself() {
    assert_eq!(kinds(&sample()), []);
}

#[test]
fn an_address_that_does_not_say_whose_it_is_says_it_again() {
    let mut sample = sample();
    let attachment = first(&sample);
    let before = sample.state().slot(&name("blue"), attachment.addresses[0].address).cloned();
    delete(&mut sample, &slot(&attachment));
    assert_eq!(kinds(&sample), [F::AddressUnmarked, F::ReservationTimes]);
    assert_eq!(mended(&mut sample), []);
    let after = sample.state().slot(&name("blue"), attachment.addresses[0].address).cloned();
    assert_eq!(after.unwrap().record, before.unwrap().record);
}

#[test]
fn an_address_of_nobody_cools_and_one_that_an_attachment_has_is_not_freed() {
    let mut sample = sample();
    let attachment = first(&sample);
    let key = reservation_key(&name("blue"), &attachment.namespace, &attachment.name);
    delete(&mut sample, &Subject::Reservation(key));
    assert_eq!(kinds(&sample), [F::AddressWithoutReservation, F::StickyWithoutReservation]);
    assert_eq!(mended(&mut sample), []);
    let address = attachment.addresses[0].address;
    let held = sample.state().slot(&name("blue"), address).unwrap().record.clone();
    assert_eq!(held.attachment.map(|it| it.uid), Some(attachment.uid));

    delete(&mut sample, &Subject::Attachment(attachment.key.clone()));
    assert_eq!(kinds(&sample), [F::AddressWithoutAttachment]);
    assert_eq!(mended(&mut sample), []);
    let free = sample.state().slot(&name("blue"), address).unwrap().record.clone();
    assert!(!free.is_taken() && free.released.is_some());
}

#[test]
fn an_address_that_two_hold_is_told_and_left() {
    let mut sample = sample();
    let attachment = first(&sample);
    let mut twin = attachment.clone();
    twin.key.container = name("twin");
    twin.uid = Token::from_bits(99);
    sample.put(&Subject::Attachment(twin.key.clone()), &twin);
    assert_eq!(kinds(&sample), [F::AddressHeldTwice, F::MacHeldTwice]);
    assert!(find(sample.state()).iter().any(Found::is_fatal));
    assert_eq!(mended(&mut sample), [F::AddressHeldTwice, F::MacHeldTwice]);
}

#[test]
fn what_is_left_of_pools_and_hosts_is_found() {
    let mut sample = sample();
    delete(&mut sample, &Subject::Host(name("a")));
    assert_eq!(kinds(&sample), [F::AttachmentWithoutHost, F::BlockWithoutOwner]);
    assert_eq!(mended(&mut sample), [F::AttachmentWithoutHost]);
}

#[test]
fn an_attachment_on_a_host_that_is_no_member_is_found() {
    let mut sample = sample();
    sample.change_host("a", |host| host.networks = Some([].into()));
    assert_eq!(mended(&mut sample), [F::AttachmentOfNonMember]);
    sample.change_host("a", |host| host.networks = Some([name("blue")].into()));
    assert_eq!(kinds(&sample), []);
}

proptest! {
    #[test]
    fn whatever_is_deleted_mending_ends_and_frees_nothing_that_is_attached(
        gone in prop::collection::vec(any::<prop::sample::Index>(), 1..4),
    ) {
        let mut sample = sample();
        for index in gone {
            let keys: Vec<Subject> = find_all(&sample);
            delete(&mut sample, &keys[index.index(keys.len())]);
        }
        let left = mended(&mut sample);
        let outside = [F::AddressOutsidePool, F::AttachmentWithoutHost];
        prop_assert!(left.iter().all(|kind| outside.contains(kind)), "{left:?}");
        for entry in sample.state().attachments() {
            for held in &entry.record.addresses {
                let slot = sample.state().slot(&name("blue"), held.address).unwrap();
                let holder = slot.record.attachment.as_ref().map(|it| it.uid);
                prop_assert_eq!(holder, Some(entry.record.uid));
            }
        }
    }
}

/// Some of what the store has.
fn find_all(sample: &Sample) -> Vec<Subject> {
    let state = sample.state();
    let attachments = state.attachments().map(|it| Subject::Attachment(it.record.key.clone()));
    let slots =
        state.slots().map(|(network, address, _)| Subject::Address(network.clone(), address));
    let reservations = state.reservations().map(|it| {
        let Reservation { network, namespace, name, .. } = &it.record;
        Subject::Reservation(reservation_key(network, namespace, name))
    });
    let hosts = state.hosts().map(|it| Subject::Host(it.record.name.clone()));
    let blocks = state.blocks().map(|it| Subject::Block(it.record.pool.clone(), it.record.prefix));
    let network = [Subject::Config];
    attachments.chain(slots).chain(reservations).chain(hosts).chain(blocks).chain(network).collect()
}

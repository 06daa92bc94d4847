//! Pure: blocks that hosts give back: what one has too many, and what a host leaves behind.
//!
//! Uniqueness does not depend on it: who is given an address of a block at the same moment has it,
//! as a stray.

use limpet_api::host::Block;
use limpet_net_types::{PoolName, Prefix};

use crate::draft::{Decision, Draft};
use crate::keys::Subject;
use crate::records::Vacancy;
use crate::state::{BlockEntry, Entry, State, bits};
use crate::store::end_of;

/// The blocks that can be given back now.
pub(crate) fn idle(state: &State) -> impl Iterator<Item = &Block> {
    state.blocks().filter(|block| is_idle(state, block)).map(|block| &block.record)
}

/// Decides that a block is nobody's, if it can be given back.
pub(crate) fn give_back(state: &State, pool: &PoolName, prefix: Prefix) -> Decision<()> {
    Decision::make(|draft| {
        let block = state.block(pool, bits(prefix.address()));
        let subject = Subject::Block(pool.clone(), prefix);
        draft.rely_on(&subject, block.map(|block| block.revision));
        let Some(block) = block.filter(|block| is_idle(state, block)) else { return Ok(()) };
        let owner = Subject::Host(block.record.host.clone());
        draft.rely(&owner, state.host(&block.record.host));
        stay_quiet(state, draft, &block.record);
        draft.delete(&subject);
        Ok(())
    })
}

/// Relies on nobody being given an address of the block.
fn stay_quiet(state: &State, draft: &mut Draft, block: &Block) {
    let (range, network) = (block.prefix.range(), &block.network);
    let key = |address| Subject::Address(network.clone(), address).key();
    let slots = state.slots_between(network, range.first(), range.last());
    let newest = slots.map(|(_, slot)| slot.revision).max().unwrap_or_default();
    draft.rely_on_quiet(key(range.first()), end_of(&key(range.last())), newest);
}

fn is_idle(state: &State, block: &BlockEntry) -> bool {
    let Block { pool: name, network, prefix, host } = &block.record;
    let is_member = state.host(host).is_some_and(|host| {
        state.network(network).is_none_or(|network| host.record.is_member_of(&network.record))
    });
    if !is_member {
        return true;
    }
    let Some(pool) = state.pool(name).filter(|_| block.taken == 0) else { return false };
    let range = prefix.range();
    let is_free = |slot: &Entry<_>| {
        let slot: &crate::records::Slot = &slot.record;
        slot.vacancy(state.now(), pool.record.cooldown) == Vacancy::Free
    };
    let mut slots = state.slots_between(network, range.first(), range.last());
    slots.all(|(_, slot)| is_free(slot)) && has_room_elsewhere(state, block)
}

/// Whether the host has another block of the pool that is not full.
fn has_room_elsewhere(state: &State, block: &BlockEntry) -> bool {
    let Block { pool: name, host, .. } = &block.record;
    let Some(pool) = state.pool(name) else { return false };
    let has_room = |other: &BlockEntry| {
        let (first, last) = other.record.prefix.range().bits();
        u128::from(other.taken) < pool.givable.count(first, last)
    };
    state
        .owned(name, host, 0)
        .filter_map(|first| state.block(name, first))
        .any(|other| other.record.prefix != block.record.prefix && has_room(other))
}

#[cfg(test)]
mod tests {
    use limpet_api::book::{AttachmentKey, EndReason};
    use limpet_api::host::EndRequest;
    use limpet_net_types::Token;

    use super::*;
    use crate::alloc::ends::end;
    use crate::state::sample::{Sample, name};
    use crate::store::Revision;

    /// Host a has two blocks of four, the first of three that can be given.
    fn sample() -> Sample {
        let mut sample = Sample::new();
        sample.network("blue");
        sample.host("a");
        sample.pool("p", "10.0.0.0/28", |_| {});
        for n in 0..4 {
            sample.attach("a", &format!("c{n}"));
        }
        sample
    }

    fn detach(sample: &mut Sample, container: &str) {
        let key = AttachmentKey {
            host: name("a"),
            network: name("blue"),
            container: name(container),
            ifname: name("eth0"),
        };
        let uid = sample.state().attachment(&key).unwrap().record.uid;
        let session = Token::from_bits(7);
        let request = EndRequest { session, uid, reason: EndReason::Detached };
        sample.decided(|state| end(state, &key, &request)).unwrap();
    }

    fn given_back(sample: &mut Sample) -> Vec<String> {
        let due: Vec<Block> = idle(sample.state()).cloned().collect();
        for block in &due {
            sample.decided(|state| give_back(state, &block.pool, block.prefix)).unwrap();
        }
        due.iter().map(|block| block.prefix.to_string()).collect()
    }

    #[test]
    fn an_empty_block_is_given_back_by_a_host_that_has_room_elsewhere_once_it_has_cooled() {
        let mut sample = sample();
        detach(&mut sample, "c3");
        sample.wait(60);
        assert!(given_back(&mut sample).is_empty(), "its other block is full");
        detach(&mut sample, "c0");
        assert_eq!(given_back(&mut sample), ["10.0.0.4/30"]);
        assert_eq!(sample.state().blocks().count(), 1);
        sample.attach("a", "c4");
        sample.attach("a", "c5");
        detach(&mut sample, "c4");
        detach(&mut sample, "c5");
        assert!(given_back(&mut sample).is_empty(), "what it held still cools");
    }

    #[test]
    fn of_two_empty_blocks_one_stays() {
        let mut sample = sample();
        for n in 0..4 {
            detach(&mut sample, &format!("c{n}"));
        }
        sample.wait(60);
        assert_eq!(given_back(&mut sample).len(), 2, "each has room beside the other");
        assert_eq!(sample.state().blocks().count(), 1, "which is seen when it is decided");
    }

    #[test]
    fn a_block_that_keeps_an_address_for_a_name_stays() {
        let mut sample = sample();
        detach(&mut sample, "c0");
        detach(&mut sample, "c3");
        let spec = limpet_api::book::ReservationSpec {
            addresses: vec![name("10.0.0.6")],
            ..limpet_api::book::ReservationSpec::default()
        };
        let web = crate::state::reservation_key(&name("blue"), &name("_"), &name("web"));
        sample.decided(|state| crate::alloc::reserve::create(state, &web, &spec)).unwrap();
        sample.wait(60);
        assert!(given_back(&mut sample).is_empty());
    }

    #[test]
    fn what_a_removed_host_leaves_behind_goes_at_once() {
        let mut sample = sample();
        for n in 0..4 {
            detach(&mut sample, &format!("c{n}"));
        }
        let mut draft = Draft::default();
        draft.delete(&Subject::Host(name("a")));
        sample.commit(&draft.into_txn());
        assert_eq!(given_back(&mut sample).len(), 2);
        assert_eq!(sample.state().blocks().count(), 0);
    }

    #[test]
    fn giving_back_relies_on_nobody_being_given_an_address_of_the_block() {
        let mut sample = sample();
        detach(&mut sample, "c3");
        detach(&mut sample, "c0");
        sample.wait(60);
        let block = idle(sample.state()).next().unwrap().clone();
        let txn = give_back(sample.state(), &block.pool, block.prefix).draft.into_txn();
        let address = Subject::Address(name("blue"), name("10.0.0.7")).key();
        let newest = sample.state().slot(&name("blue"), name("10.0.0.4")).unwrap().revision;
        assert!(txn.quiet.iter().any(|q| q.covers(&address) && q.since == newest));
        assert_ne!(newest, Revision::default());
    }
}

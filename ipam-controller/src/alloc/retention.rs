//! Pure: how long what nobody holds is kept: reservations for their retention, released addresses
//! for their cool-down. All of it is counted in fleet time.

use std::net::IpAddr;

use limpet_api::book::Reservation;
use limpet_api::{FleetTime, Retention};
use limpet_net_types::NetworkName;

use super::reserve::{give_up, holder};
use super::restored::settled;
use crate::draft::Decision;
use crate::keys::{ReservationKey, Subject};
use crate::records::Vacancy;
use crate::state::State;

/// Returns when a reservation ends by itself: its retention after its last attachment ended, or after
/// it was made if it never had one. `None` while it is held, and for one that is kept for ever.
///
/// What an earlier version made and nobody has held since has no time to count from, and stays.
pub(crate) fn ends(state: &State, reservation: &Reservation) -> Option<FleetTime> {
    let Retention::For(span) = reservation.retention else { return None };
    if holder(state, reservation).is_some() {
        return None;
    }
    Some(reservation.detached_at.or(reservation.created)?.plus(span))
}

/// Returns the reservations whose time is over.
pub(crate) fn over(state: &State) -> impl Iterator<Item = ReservationKey> {
    let is_over = |found: &&Reservation| ends(state, found).is_some_and(|end| end <= state.now());
    let all = state.reservations().map(|entry| &entry.record);
    all.filter(is_over).map(|found| ReservationKey {
        network: found.network.clone(),
        namespace: found.namespace.clone(),
        name: found.name.clone(),
    })
}

/// Decides the end of a reservation whose time is over. One that has come back into use stays.
pub(crate) fn expire(state: &State, key: &ReservationKey) -> Decision<()> {
    Decision::make(|draft| {
        let entry = state.reservation(key);
        draft.rely(&Subject::Reservation(key.clone()), entry);
        if settled(state, draft).is_err() {
            // Whoever holds it may not have said so yet since the restore.
            return Ok(());
        }
        let is_over =
            |found: &Reservation| ends(state, found).is_some_and(|end| end <= state.now());
        if let Some(entry) = entry.filter(|entry| is_over(&entry.record)) {
            give_up(state, draft, key, &entry.record);
        }
        Ok(())
    })
}

/// Returns the addresses that have cooled: nobody needs to remember who had them.
pub(crate) fn cooled(state: &State) -> impl Iterator<Item = (NetworkName, IpAddr)> {
    let now = state.now();
    let pools = state.pools().filter(move |pool| {
        let first = pool.tally.released.keys().next();
        first.is_some_and(|released| released.plus(pool.record.cooldown) <= now)
    });
    pools.flat_map(move |pool| {
        let is_cool = move |slot: &crate::records::Slot| {
            slot.vacancy(now, pool.record.cooldown) == Vacancy::Free
        };
        let cool = state.slots_of(&pool.record).filter(move |(_, slot)| is_cool(&slot.record));
        cool.map(move |(address, _)| (pool.record.network.clone(), address))
    })
}

/// Decides that released addresses that have cooled are forgotten. Those in use again stay.
pub(crate) fn forget(state: &State, cooled: &[(NetworkName, IpAddr)]) -> Decision<()> {
    Decision::make(|draft| {
        for (network, address) in cooled {
            let Some(slot) = state.slot(network, *address) else { continue };
            let cooldown = state.pool_at(network, *address).map(|pool| pool.record.cooldown);
            let is_cool = cooldown
                .is_none_or(|cooldown| slot.record.vacancy(state.now(), cooldown) == Vacancy::Free);
            if is_cool && !slot.record.is_taken() {
                let subject = Subject::Address(network.clone(), *address);
                draft.rely(&subject, Some(slot));
                draft.delete(&subject);
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use limpet_api::Span;
    use limpet_api::book::{AttachmentKey, ReservationSpec};
    use limpet_api::host::{ClaimRequest, Wanted};
    use limpet_net_types::Token;

    use super::*;
    use crate::alloc::claim::claim;
    use crate::alloc::reserve::create;
    use crate::alloc::{Outcome, Patience, ends as endings};
    use crate::state::sample::{Sample, name};

    fn sample() -> Sample {
        let mut sample = Sample::new();
        sample.network("blue");
        sample.host("a");
        sample.pool("p", "10.0.0.0/29", |pool| {
            pool.retention = Retention::For(Span::from_seconds(100));
            pool.cooldown = Span::from_seconds(10);
        });
        sample
    }

    fn key(container: &str) -> AttachmentKey {
        AttachmentKey {
            host: name("a"),
            network: name("blue"),
            container: name(container),
            ifname: name("eth0"),
        }
    }

    fn attach(sample: &mut Sample, container: &str, workload: &str) -> IpAddr {
        let wanted = Wanted { name: Some(name(workload)), ..Wanted::default() };
        let (session, uid) = (Token::from_bits(7), Token::from_bits(1));
        let request = ClaimRequest { session, uid, wanted };
        let decide = |state: &State| claim(state, &key(container), &request, Patience::Left);
        match sample.decided(decide).unwrap() {
            Outcome::Done(granted) => granted.attachment.addresses[0].address,
            Outcome::Asked(about) => panic!("asked about {about:?}"),
        }
    }

    fn detach(sample: &mut Sample, container: &str) {
        let request = limpet_api::host::EndRequest {
            session: Token::from_bits(7),
            uid: Token::from_bits(1),
            reason: limpet_api::book::EndReason::Detached,
        };
        sample.decided(|state| endings::end(state, &key(container), &request)).unwrap();
    }

    fn reclaim(sample: &mut Sample) {
        for key in over(sample.state()).collect::<Vec<_>>() {
            sample.decided(|state| expire(state, &key)).unwrap();
        }
        let cool: Vec<_> = cooled(sample.state()).collect();
        sample.decided(|state| forget(state, &cool)).unwrap();
    }

    fn reservations(sample: &Sample) -> Vec<String> {
        sample.state().reservations().map(|entry| entry.record.name.to_string()).collect()
    }

    #[test]
    fn a_name_keeps_its_address_for_its_retention_and_not_while_it_is_in_use() {
        let mut sample = sample();
        let address = attach(&mut sample, "c1", "web-0");
        sample.wait(1000);
        reclaim(&mut sample);
        assert_eq!(reservations(&sample), ["web-0"], "in use");
        detach(&mut sample, "c1");
        sample.wait(99);
        reclaim(&mut sample);
        assert_eq!(attach(&mut sample, "c2", "web-0"), address, "in time");
        detach(&mut sample, "c2");
        sample.wait(100);
        reclaim(&mut sample);
        assert_eq!(reservations(&sample), Vec::<String>::new());
        let usage = crate::alloc::pick::usage(
            sample.state(),
            sample.state().now(),
            sample.state().pool(&name("p")).unwrap(),
        );
        assert_eq!((usage.held, usage.reserved, usage.cooling), (0, 0, 1));
        sample.wait(10);
        reclaim(&mut sample);
        assert_eq!(sample.state().slot(&name("blue"), address), None, "nothing is left of it");
    }

    #[test]
    fn an_operators_reservation_stays_and_one_for_a_time_counts_from_when_it_was_made() {
        let mut sample = sample();
        let network = name("blue");
        let make = |sample: &mut Sample, workload: &str, retention| {
            let key = ReservationKey {
                network: name("blue"),
                namespace: name("_"),
                name: name(workload),
            };
            let spec = ReservationSpec { retention, ..ReservationSpec::default() };
            sample.decided(|state| create(state, &key, &spec)).unwrap().record
        };
        make(&mut sample, "db", None);
        let short = make(&mut sample, "tmp", Some(Retention::For(Span::from_seconds(50))));
        sample.wait(49);
        reclaim(&mut sample);
        assert_eq!(reservations(&sample), ["db", "tmp"]);
        sample.wait(1);
        reclaim(&mut sample);
        sample.wait(1_000_000);
        reclaim(&mut sample);
        assert_eq!(reservations(&sample), ["db"]);
        assert_eq!(sample.state().slot(&network, short.addresses[0].address), None);
    }

    #[test]
    fn a_name_that_comes_back_before_its_end_is_carried_out_keeps_its_address() {
        let mut sample = sample();
        let address = attach(&mut sample, "c1", "web-0");
        detach(&mut sample, "c1");
        sample.wait(100);
        let due: Vec<_> = over(sample.state()).collect();
        assert_eq!(due.len(), 1);
        assert_eq!(attach(&mut sample, "c2", "web-0"), address);
        sample.decided(|state| expire(state, &due[0])).unwrap();
        assert_eq!(reservations(&sample), ["web-0"]);
    }

    #[test]
    fn no_reservation_ends_while_a_host_may_hold_it_that_has_not_spoken_since_a_restore() {
        let mut sample = sample();
        attach(&mut sample, "c1", "web-0");
        detach(&mut sample, "c1");
        let restored = limpet_api::restore::Restored {
            at: sample.state().now(),
            cause: limpet_api::restore::RestoreCause::Restored,
            hosts: 1,
            waiting: [name("a")].into(),
            spoken: [].into(),
        };
        sample.put(&Subject::Restored, &restored);
        sample.wait(100);
        reclaim(&mut sample);
        assert_eq!(reservations(&sample), ["web-0"]);
        let waiting = [].into();
        sample.put(&Subject::Restored, &limpet_api::restore::Restored { waiting, ..restored });
        reclaim(&mut sample);
        assert_eq!(reservations(&sample), Vec::<String>::new());
    }

    #[test]
    fn an_address_that_was_given_again_is_not_forgotten() {
        let mut sample = sample();
        let first = attach(&mut sample, "c1", "plain");
        detach(&mut sample, "c1");
        sample.wait(10);
        let cool: Vec<_> = cooled(sample.state()).collect();
        assert_eq!(cool, [(name("blue"), first)]);
        let mut again = None;
        for n in 0..8 {
            let container = format!("d{n}");
            if attach(&mut sample, &container, "plain") == first {
                again = Some(container);
                break;
            }
        }
        assert!(again.is_some(), "the pool comes round to it");
        sample.decided(|state| forget(state, &cool)).unwrap();
        assert!(sample.state().slot(&name("blue"), first).unwrap().record.is_taken());
    }
}

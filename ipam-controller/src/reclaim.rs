//! Pure: what is to be cleared away: questions that nobody waits for, reservations and cool-downs that
//! are over, what silent hosts hold, blocks that nobody uses, history that is old.
//!
//! Whoever advances fleet time does the clearing of that period. Two who do it at once are
//! harmless: each thing is decided on by itself, and compares what it relies on.

use limpet_api::book::AttachmentRef;
use limpet_api::{After, Span};

use crate::alloc::{blocks, ends, release, retention, tenure};
use crate::draft::Decision;
use crate::state::State;
use crate::tenures::TenureKey;

/// How many things of a kind are cleared away in one period: what is left waits for the next.
const MOST: usize = 512;

/// How many small things go in one transaction: stores take few more than a hundred changes.
const TOGETHER: usize = 64;

/// What is kept, and for how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// How long a host may be silent before its attachments are ended, in fleet time.
    pub(crate) silent_hosts_end_after: After,
    /// How many records history has at most.
    pub(crate) history_records: usize,
    /// How old they become, in fleet time.
    pub(crate) history_age: Span,
}

/// Something to clear away; decided anew, when it is carried out.
pub(crate) type Chore = Box<dyn Fn(&State) -> Decision<()> + Send>;

/// Returns what is due.
pub(crate) fn due(state: &State, limits: &Limits) -> Vec<Chore> {
    let mut due: Vec<Chore> = asks(state).take(MOST).collect();
    due.extend(reservations(state).take(MOST));
    due.extend(cooled(state));
    due.extend(of_silent_hosts(state, limits).take(MOST));
    due.extend(idle_blocks(state).take(MOST));
    due.extend(history(state, limits));
    due
}

/// The attachments of hosts that have been silent for too long. Reservations stay.
fn of_silent_hosts<'a>(state: &'a State, limits: &Limits) -> impl Iterator<Item = Chore> + 'a {
    let span = match limits.silent_hosts_end_after {
        After::Never => None,
        After::For(span) => Some(span),
    };
    span.into_iter().flat_map(move |span| {
        let long = move |since: limpet_api::FleetTime| since.plus(span) <= state.now();
        let hosts = state.silences().filter(move |(_, silence)| long(silence.record.since));
        hosts.flat_map(|(host, _)| state.attachments_of(host)).map(move |entry| {
            let (key, uid) = (entry.record.key.clone(), entry.record.uid);
            let about = AttachmentRef { key, uid };
            chore(move |state| release::end_silent(state, &about, span))
        })
    })
}

fn idle_blocks(state: &State) -> impl Iterator<Item = Chore> {
    blocks::idle(state).map(|block| {
        let (pool, prefix) = (block.pool.clone(), block.prefix);
        chore(move |state| blocks::give_back(state, &pool, prefix))
    })
}

/// The oldest records of history: those beyond the number that is kept, and those too old.
fn history(state: &State, limits: &Limits) -> impl Iterator<Item = Chore> {
    let tenures = state.tenures();
    let surplus = tenures.len().saturating_sub(limits.history_records);
    let now = state.now();
    let old = |key: &TenureKey| key.at.plus(limits.history_age) <= now;
    let mut due = tenures.oldest().enumerate().take_while(|(n, key)| *n < surplus || old(key));
    let due: Vec<TenureKey> = due.by_ref().map(|(_, key)| key).take(MOST * TOGETHER).collect();
    let parts: Vec<Vec<TenureKey>> = due.chunks(TOGETHER).map(<[_]>::to_vec).collect();
    parts.into_iter().map(|part| chore(move |state| tenure::forget(state, &part)))
}

/// Reservations whose retention is over.
fn reservations(state: &State) -> impl Iterator<Item = Chore> {
    retention::over(state).map(|key| chore(move |state| retention::expire(state, &key)))
}

/// Addresses that were released and have cooled.
fn cooled(state: &State) -> Vec<Chore> {
    let cooled: Vec<_> = retention::cooled(state).take(MOST * TOGETHER).collect();
    let parts = cooled.chunks(TOGETHER).map(<[_]>::to_vec);
    parts.map(|part| chore(move |state| retention::forget(state, &part))).collect()
}

fn asks(state: &State) -> impl Iterator<Item = Chore> {
    state.asks().filter(|(_, ask)| ends::is_over(state, &ask.record)).map(|((host, uid), _)| {
        let (host, uid) = (host.clone(), *uid);
        chore(move |state| ends::expire(state, &host, uid))
    })
}

fn chore(decide: impl Fn(&State) -> Decision<()> + Send + 'static) -> Chore {
    Box::new(decide)
}

#[cfg(test)]
mod tests {
    use limpet_api::Span;
    use limpet_api::book::EndReason;
    use limpet_api::host::{ASK_KEPT_SECONDS, Ask, EndRequest};
    use limpet_net_types::Token;

    use super::*;
    use crate::keys::Subject;
    use crate::rules::silence;
    use crate::state::sample::{Sample, name};

    fn sample() -> Sample {
        let mut sample = Sample::new();
        sample.network("blue");
        for host in ["a", "b"] {
            sample.host(host);
        }
        sample.pool("p", "10.0.0.0/26", |_| {});
        sample
    }

    const LIMITS: Limits = Limits {
        silent_hosts_end_after: After::For(Span::from_seconds(600)),
        history_records: 100,
        history_age: Span::from_seconds(1000),
    };

    fn cleared(sample: &mut Sample) -> usize {
        let due = due(sample.state(), &LIMITS);
        let count = due.len();
        for chore in due {
            sample.decided(|state| chore(state)).unwrap();
        }
        count
    }

    fn asked(sample: &mut Sample, uid: Option<Token>) {
        let attachment = sample.state().attachments().next().unwrap().record.clone();
        let (key, uid) = (attachment.key, uid.unwrap_or(attachment.uid));
        let asked = sample.state().now();
        let subject = Subject::Ask(key.host.clone(), uid);
        let attachment = AttachmentRef { key, uid };
        sample.put(&subject, &Ask { attachment, present: false, force: false, asked });
    }

    fn ended(sample: &mut Sample, count: usize) {
        for _ in 0..count {
            sample.attach("a", "c1");
            let attachment = sample.state().attachments().next().unwrap().record.clone();
            let session = Token::from_bits(7);
            let request = EndRequest { session, uid: attachment.uid, reason: EndReason::Detached };
            sample.decided(|state| ends::end(state, &attachment.key, &request)).unwrap();
        }
    }

    #[test]
    fn history_loses_its_oldest_records_when_they_are_too_many_or_too_old() {
        let mut sample = sample();
        ended(&mut sample, 90);
        let first = sample.state().tenures().oldest().collect::<Vec<_>>();
        sample.wait(10);
        ended(&mut sample, 80);
        assert_eq!(history(sample.state(), &LIMITS).count(), 2, "70 records, 64 to a transaction");
        cleared(&mut sample);
        assert_eq!(sample.state().tenures().len(), 100);
        assert!(sample.state().tenures().oldest().take(20).eq(first[70..].iter().copied()));
        sample.wait(989);
        assert_eq!(history(sample.state(), &LIMITS).count(), 0, "nothing is too old");
        sample.wait(1);
        cleared(&mut sample);
        assert_eq!(sample.state().tenures().len(), 80);
        sample.wait(10);
        cleared(&mut sample);
        assert_eq!(sample.state().tenures().len(), 0);
    }

    #[test]
    fn a_question_goes_when_nobody_can_wait_for_it_or_what_it_is_about_has_ended() {
        let mut sample = sample();
        sample.attach("a", "c1");
        asked(&mut sample, None);
        asked(&mut sample, Some(Token::from_bits(99)));
        assert_eq!(cleared(&mut sample), 1, "the one about an incarnation that there is not");
        sample.wait(ASK_KEPT_SECONDS - 1);
        assert_eq!(cleared(&mut sample), 0);
        sample.wait(1);
        assert_eq!(cleared(&mut sample), 1);
        assert_eq!(sample.state().asks().count(), 0);
    }

    #[test]
    fn what_a_host_holds_that_is_silent_for_too_long_ends_and_what_is_reserved_stays() {
        let mut sample = sample();
        for n in 0..3 {
            sample.attach("a", &format!("c{n}"));
            sample.attach("b", &format!("c{n}"));
        }
        let mark = |state: &State| silence::mark(state, &name("a"), Token::from_bits(7));
        sample.decided(mark).unwrap();
        sample.wait(599);
        assert_eq!(cleared(&mut sample), 0);
        let never = Limits { silent_hosts_end_after: After::Never, ..LIMITS };
        sample.wait(1);
        assert_eq!(due(sample.state(), &never).len(), 0);
        assert_eq!(cleared(&mut sample), 3);
        assert_eq!(sample.state().attachments_of(&name("a")).count(), 0);
        assert_eq!(sample.state().attachments_of(&name("b")).count(), 3);
    }

    #[test]
    fn a_host_that_is_heard_in_the_meantime_keeps_what_it_has() {
        let mut sample = sample();
        sample.attach("a", "c1");
        let session = Token::from_bits(7);
        sample.decided(|state| silence::mark(state, &name("a"), session)).unwrap();
        sample.wait(600);
        let due = due(sample.state(), &LIMITS);
        let heard = |state: &State| silence::hear(state, &name("a"), session, session);
        sample.decided(heard).unwrap();
        for chore in due {
            sample.decided(|state| chore(state)).unwrap();
        }
        assert_eq!(sample.state().attachments().count(), 1);
    }
}

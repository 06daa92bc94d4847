//! Pure: what is to be cleared away: questions that nobody waits for, what silent hosts hold, blocks
//! that nobody uses.
//!
//! Whoever advances fleet time does the clearing of that period. Two who do it at once are
//! harmless: each thing is decided on by itself, and compares what it relies on.

use limpet_api::After;
use limpet_api::book::AttachmentRef;

use crate::alloc::{blocks, ends, release};
use crate::draft::Decision;
use crate::state::State;

/// How many things of a kind are cleared away in one period: what is left waits for the next.
const MOST: usize = 512;

/// What is kept, and for how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// How long a host may be silent before its attachments are ended, in fleet time.
    pub(crate) silent_hosts_end_after: After,
}

/// Something to clear away; decided anew, when it is carried out.
pub(crate) type Chore = Box<dyn Fn(&State) -> Decision<()> + Send>;

/// Returns what is due.
pub(crate) fn due(state: &State, limits: &Limits) -> Vec<Chore> {
    let mut due: Vec<Chore> = asks(state).take(MOST).collect();
    due.extend(of_silent_hosts(state, limits).take(MOST));
    due.extend(idle_blocks(state).take(MOST));
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
    use limpet_api::host::{ASK_KEPT_SECONDS, Ask};
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

    const LIMITS: Limits = Limits { silent_hosts_end_after: After::For(Span::from_seconds(600)) };

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
        let never = Limits { silent_hosts_end_after: After::Never };
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

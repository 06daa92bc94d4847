//! Pure: what is to be cleared away: questions that nobody waits for.
//!
//! Whoever advances fleet time does the clearing of that period. Two who do it at once are
//! harmless: each thing is decided on by itself, and compares what it relies on.

use crate::alloc::ends;
use crate::draft::Decision;
use crate::state::State;

/// How many things of a kind are cleared away in one period: what is left waits for the next.
const MOST: usize = 512;

/// Something to clear away; decided anew, when it is carried out.
pub(crate) type Chore = Box<dyn Fn(&State) -> Decision<()> + Send>;

/// Returns what is due.
pub(crate) fn due(state: &State) -> Vec<Chore> {
    asks(state).take(MOST).collect()
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
    use limpet_api::book::AttachmentRef;
    use limpet_api::host::{ASK_KEPT_SECONDS, Ask};
    use limpet_net_types::Token;

    use super::*;
    use crate::keys::Subject;
    use crate::state::sample::Sample;

    fn sample() -> Sample {
        let mut sample = Sample::new();
        sample.network("blue");
        for host in ["a", "b"] {
            sample.host(host);
        }
        sample.pool("p", "10.0.0.0/26", |_| {});
        sample
    }

    fn cleared(sample: &mut Sample) -> usize {
        let due = due(sample.state());
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
}

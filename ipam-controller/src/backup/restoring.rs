//! Pure: a restore, step by step.
//!
//! A mark says that it is under way. Until the mark is gone nothing else is decided, so what was
//! written by a restore that broke off is nobody's: repeating it writes it again, discarding it
//! deletes it. Each attempt makes the mark anew, and an earlier one then writes nothing any more.

use bytes::Bytes;
use limpet_api::restore::{RestoreCause, Restoring};
use limpet_api::{ApiError, ErrorCode};
use limpet_net_types::Token;

use super::holds;
use crate::alloc::restored::write_restored;
use crate::draft::{Decision, Draft, refuse};
use crate::keys::Subject;
use crate::state::State;
use crate::store::Key;

/// A key with its value.
pub(crate) type Stored = (Key, Bytes);

/// The refusal of everything else while a restore is under way.
pub(crate) fn refusal<T>(state: &State) -> Option<Decision<T>> {
    let restoring = state.restoring()?;
    Some(Decision::make(|draft| {
        draft.rely(&Subject::Restoring, Some(restoring));
        Err(under_way(&restoring.record))
    }))
}

/// The words for a restore that is under way, or broke off.
pub(crate) fn under_way(restoring: &Restoring) -> ApiError {
    let Restoring { keys, sha256, .. } = restoring;
    if restoring.is_awaited() && !restoring.discarding {
        let text = "the store waits for a backup, and does nothing else until one is restored";
        return ApiError::new(ErrorCode::StoreRestoring, text);
    }
    let what = if restoring.discarding { "being discarded" } else { "under way, or broke off" };
    let text = format!(
        "a restore of {keys} keys is {what}; the SHA-256 of its file begins with {sha256:.12}"
    );
    ApiError::new(ErrorCode::StoreRestoring, text)
}

/// Decides that a restore begins, or goes on after it broke off.
pub(crate) fn begin(state: &State, restoring: &Restoring) -> Decision<()> {
    Decision::make(|draft| {
        let before = state.restoring();
        draft.rely(&Subject::Restoring, before);
        match before.map(|entry| &entry.record) {
            Some(before) if before.discarding || !may_follow(before, restoring) => {
                return Err(under_way(before));
            }
            Some(_) => {}
            None => {
                if let Some(holds) = holds(state) {
                    let text = format!("the store is in use, it has {holds}");
                    return refuse(ErrorCode::StoreInUse, text);
                }
                // Whoever creates something at the same time decides again.
                draft.change_config(state);
            }
        }
        draft.put(&Subject::Restoring, restoring);
        Ok(())
    })
}

fn may_follow(before: &Restoring, restoring: &Restoring) -> bool {
    before.is_awaited() || before.sha256 == restoring.sha256
}

/// Decides that an empty store does nothing until a backup is restored into it: hosts that joined it
/// as it is would take down all that they have. Returns whether it waits.
pub(crate) fn await_backup(state: &State, attempt: Token) -> Decision<bool> {
    Decision::make(|draft| {
        let before = state.restoring();
        draft.rely(&Subject::Restoring, before);
        draft.rely(&Subject::Restored, state.restored());
        let is_empty = holds(state).is_none() && state.restored().is_none();
        if before.is_none() && is_empty {
            // Whoever creates something at the same time decides again.
            draft.change_config(state);
            let sha256 = String::new();
            let waiting = Restoring { attempt, sha256, keys: 0, discarding: false };
            draft.put(&Subject::Restoring, &waiting);
        }
        Ok(before.is_some() || is_empty)
    })
}

/// Decides that a restore that broke off is discarded.
pub(crate) fn discard(state: &State, attempt: Token) -> Decision<Restoring> {
    Decision::make(|draft| {
        let before = state.restoring();
        draft.rely(&Subject::Restoring, before);
        let Some(before) = before else {
            return refuse(ErrorCode::Invalid, "no restore is under way, nor did one break off");
        };
        let discarding = Restoring { attempt, discarding: true, ..before.record.clone() };
        draft.put(&Subject::Restoring, &discarding);
        Ok(discarding)
    })
}

/// Writes a part of the backup.
pub(crate) fn write(state: &State, attempt: Token, part: &[Stored]) -> Decision<()> {
    Decision::make(|draft| {
        is_mine(state, draft, attempt)?;
        for (key, value) in part {
            let subject = Subject::parse(key)
                .map_err(|error| ApiError::new(ErrorCode::Invalid, error.to_string()))?;
            draft.put_stored(subject, value.clone());
        }
        Ok(())
    })
}

/// Deletes a part of what was written.
pub(crate) fn erase(state: &State, attempt: Token, part: &[Subject]) -> Decision<()> {
    Decision::make(|draft| {
        is_mine(state, draft, attempt)?;
        for subject in part {
            draft.delete(subject);
        }
        Ok(())
    })
}

/// Ends a restore: the store is the backup's, under a new identity, and waits for the hosts.
pub(crate) fn finish(state: &State, attempt: Token, fresh: Token) -> Decision<()> {
    Decision::make(|draft| {
        is_mine(state, draft, attempt)?;
        write_restored(state, draft, fresh, RestoreCause::Restored);
        draft.delete(&Subject::Restoring);
        Ok(())
    })
}

/// Ends the discarding: the store is empty again.
pub(crate) fn finish_discard(state: &State, attempt: Token) -> Decision<()> {
    Decision::make(|draft| {
        is_mine(state, draft, attempt)?;
        draft.delete(&Subject::Restoring);
        Ok(())
    })
}

fn is_mine(state: &State, draft: &mut Draft, attempt: Token) -> Result<(), ApiError> {
    let restoring = state.restoring();
    draft.rely(&Subject::Restoring, restoring);
    if restoring.is_some_and(|entry| entry.record.attempt == attempt) {
        return Ok(());
    }
    refuse(ErrorCode::StoreRestoring, "another attempt has taken this restore over")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::sample::Sample;

    fn restoring(attempt: u128, sha256: &str) -> Restoring {
        let attempt = Token::from_bits(attempt);
        Restoring { attempt, sha256: sha256.to_owned(), keys: 3, discarding: false }
    }

    #[test]
    fn a_store_in_use_is_not_restored_into_and_says_what_it_has() {
        let mut sample = Sample::new();
        sample.network("blue");
        sample.host("a");
        let error = sample.decided(|state| begin(state, &restoring(1, "aa"))).unwrap_err();
        assert_eq!(error.code, ErrorCode::StoreInUse);
        assert!(error.message.contains("1 networks, 1 hosts"), "{error}");
    }

    #[test]
    fn a_store_that_waits_for_a_backup_takes_any_and_one_in_use_does_not_wait() {
        let mut sample = Sample::new();
        let token = Token::from_bits(1);
        assert!(sample.decided(|state| await_backup(state, token)).unwrap());
        let refused = refusal::<()>(sample.state()).unwrap().answer.unwrap_err();
        assert!(refused.message.contains("waits for a backup"), "{refused}");
        sample.decided(|state| begin(state, &restoring(2, "aa"))).unwrap();
        sample.decided(|state| finish(state, Token::from_bits(2), token)).unwrap();
        assert!(!sample.decided(|state| await_backup(state, token)).unwrap(), "it has had one");
        let mut sample = Sample::new();
        sample.network("blue");
        assert!(!sample.decided(|state| await_backup(state, token)).unwrap());
        assert!(refusal::<()>(sample.state()).is_none());
    }

    #[test]
    fn a_restore_that_broke_off_is_gone_on_with_by_the_same_file_or_discarded() {
        let mut sample = Sample::new();
        sample.decided(|state| begin(state, &restoring(1, "aa"))).unwrap();
        assert!(refusal::<()>(sample.state()).is_some());
        let other = sample.decided(|state| begin(state, &restoring(2, "bb"))).unwrap_err();
        assert_eq!(other.code, ErrorCode::StoreRestoring);
        sample.decided(|state| begin(state, &restoring(3, "aa"))).unwrap();
        let (first, third) = (Token::from_bits(1), Token::from_bits(3));
        let late = sample.decided(|state| write(state, first, &[])).unwrap_err();
        assert!(late.message.contains("taken this restore over"), "{late}");
        let clock = (Subject::Clock.key(), Bytes::from_static(b"500"));
        sample.decided(|state| write(state, third, std::slice::from_ref(&clock))).unwrap();
        assert_eq!(sample.state().now().0, 500);
        let mut other = sample.copy();
        sample.decided(|state| finish(state, third, first)).unwrap();
        assert_eq!((sample.state().store(), sample.state().now().0), (first, 501));
        assert!(refusal::<()>(sample.state()).is_none());

        other.decided(|state| discard(state, first)).unwrap();
        let again = other.decided(|state| begin(state, &restoring(4, "aa"))).unwrap_err();
        assert_eq!(again.code, ErrorCode::StoreRestoring, "part of it is deleted");
        other.decided(|state| erase(state, first, &[Subject::Clock])).unwrap();
        other.decided(|state| finish_discard(state, first)).unwrap();
        assert!(refusal::<()>(other.state()).is_none());
    }
}

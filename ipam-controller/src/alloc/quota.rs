//! Pure: whether a namespace may have more addresses.
//!
//! What takes addresses relies on its namespace's quota, also where there is none. Where there is one it is put again
//! as it is, so that of two that are decided at once, on whichever controllers, one is decided again and counts the
//! other's addresses. That is one claim at a time for such a namespace, and no burden for any other.

use limpet_api::quota::Quota;
use limpet_api::{ApiError, ErrorCode};
use limpet_net_types::Namespace;
use serde_json::json;

use crate::draft::Draft;
use crate::keys::Subject;
use crate::state::{State, Use};

/// Takes `wanted` more addresses for a namespace.
///
/// # Errors
///
/// `quota-exceeded` where there is a quota, and it would have more.
pub(super) fn take(
    state: &State,
    draft: &mut Draft,
    namespace: &Namespace,
    wanted: usize,
) -> Result<(), ApiError> {
    let wanted = u64::try_from(wanted).unwrap_or(u64::MAX);
    let Some(Quota { addresses: quota, .. }) = ticket(state, draft, namespace) else {
        return Ok(());
    };
    let Use { held, reserved } = state.used(namespace);
    if wanted == 0 || held.saturating_add(reserved).saturating_add(wanted) <= *quota {
        return Ok(());
    }
    let text = format!(
        "namespace {namespace} may have {quota} addresses: {held} are held by attachments, {reserved} are \
         reserved and not held, and {wanted} more are wanted"
    );
    Err(ApiError::new(ErrorCode::QuotaExceeded, text).with_details(json!({
        "namespace": namespace, "quota": quota, "held": held, "reserved": reserved, "wanted": wanted,
    })))
}

/// Makes everybody else who takes addresses for this namespace at the same time decide again, and returns its quota.
pub(super) fn ticket<'a>(
    state: &'a State,
    draft: &mut Draft,
    namespace: &Namespace,
) -> Option<&'a Quota> {
    let subject = Subject::Quota(namespace.clone());
    let entry = state.quota(namespace);
    draft.rely(&subject, entry);
    let quota = &entry?.record;
    draft.put(&subject, quota);
    Some(quota)
}

#[cfg(test)]
mod tests {
    use limpet_api::book::{Attachment, AttachmentKey, EndReason, ReservationSpec};
    use limpet_api::host::{ClaimRequest, EndRequest, Wanted};
    use limpet_api::quota::QuotaSpec;
    use limpet_net_types::Token;
    use proptest::prelude::*;

    use super::*;
    use crate::alloc::claim::claim;
    use crate::alloc::ends::end;
    use crate::alloc::reassert::reassert;
    use crate::alloc::{Outcome, Patience, reserve};
    use crate::rules::quotas;
    use crate::state::reservation_key;
    use crate::state::sample::{Sample, name};

    fn sample() -> Sample {
        let mut sample = Sample::new();
        sample.network("blue");
        sample.host("a");
        sample.pool("p4", "10.0.0.0/28", |_| {});
        sample.pool("p6", "fd00::/124", |_| {});
        sample
    }

    fn set(sample: &mut Sample, namespace: &str, addresses: u64) {
        let spec = QuotaSpec { addresses };
        sample.decided(|state| quotas::set(state, &name(namespace), spec)).unwrap();
    }

    fn key(bits: u128) -> AttachmentKey {
        let container = name(&format!("c{bits}"));
        AttachmentKey { host: name("a"), network: name("blue"), container, ifname: name("eth0") }
    }

    fn claimed(
        sample: &mut Sample,
        bits: u128,
        namespace: &str,
        workload: Option<&str>,
    ) -> Result<Attachment, ApiError> {
        let wanted =
            Wanted { namespace: name(namespace), name: workload.map(name), ..Wanted::default() };
        let request =
            ClaimRequest { session: Token::from_bits(7), uid: Token::from_bits(bits), wanted };
        let key = key(bits);
        match sample.decided(|state| claim(state, &key, &request, Patience::Over))? {
            Outcome::Done(granted) => Ok(granted.attachment),
            Outcome::Asked(about) => panic!("asked about {about:?} when patience was over"),
        }
    }

    fn ended(sample: &mut Sample, bits: u128) {
        let (session, uid) = (Token::from_bits(7), Token::from_bits(bits));
        let request = EndRequest { session, uid, reason: EndReason::Detached };
        let key = key(bits);
        sample.decided(|state| end(state, &key, &request)).unwrap();
    }

    fn reserved(sample: &mut Sample, namespace: &str, workload: &str) -> Result<(), ApiError> {
        let key = reservation_key(&name("blue"), &name(namespace), &name(workload));
        let spec = ReservationSpec::default();
        sample.decided(|state| reserve::create(state, &key, &spec)).map(drop)
    }

    #[test]
    fn what_would_be_more_than_the_quota_is_refused_with_all_its_numbers() {
        let mut sample = sample();
        set(&mut sample, "prod", 5);
        claimed(&mut sample, 1, "prod", Some("web-0")).unwrap();
        claimed(&mut sample, 2, "prod", None).unwrap();
        ended(&mut sample, 1);
        let before = sample.state().clone();
        let error = claimed(&mut sample, 3, "prod", None).unwrap_err();
        assert_eq!(*sample.state(), before, "a refusal changes nothing");
        assert_eq!((error.code, error.code.status()), (ErrorCode::QuotaExceeded, 503));
        assert_eq!(
            error.details,
            json!({"namespace": "prod", "quota": 5, "held": 2, "reserved": 2, "wanted": 2})
        );
        assert_eq!(reserved(&mut sample, "prod", "db-0").unwrap_err().code, error.code);
        claimed(&mut sample, 4, "test", None).unwrap();
        claimed(&mut sample, 5, "prod", Some("web-0")).expect("its addresses are counted already");
        ended(&mut sample, 2);
        reserved(&mut sample, "prod", "db-0").unwrap();
    }

    #[test]
    fn a_quota_below_what_is_used_takes_nothing_away_and_lets_nothing_in() {
        let mut sample = sample();
        claimed(&mut sample, 1, "prod", Some("web-0")).unwrap();
        set(&mut sample, "prod", 0);
        assert_eq!(sample.state().attachments().count(), 1);
        ended(&mut sample, 1);
        claimed(&mut sample, 2, "prod", Some("web-0")).unwrap();
        assert_eq!(
            claimed(&mut sample, 3, "prod", None).unwrap_err().code,
            ErrorCode::QuotaExceeded
        );
        let remove = |state: &State| quotas::remove(state, &name("prod"));
        sample.decided(remove).unwrap();
        claimed(&mut sample, 3, "prod", None).unwrap();
        assert_eq!(sample.decided(remove).unwrap_err().code, ErrorCode::QuotaNotFound);
    }

    #[test]
    fn what_lives_is_restored_whatever_the_quota_says_and_counts() {
        let mut sample = sample();
        set(&mut sample, "prod", 0);
        let mut other = self::sample();
        let lives = claimed(&mut other, 1, "prod", None).unwrap();
        let before = sample.state().quota(&name("prod")).unwrap().revision;
        sample.decided(|state| reassert(state, &lives, Token::from_bits(7))).unwrap();
        assert_eq!(sample.state().used(&name("prod")), Use { held: 2, reserved: 0 });
        assert!(sample.state().quota(&name("prod")).unwrap().revision > before, "a ticket");
    }

    #[derive(Clone, Debug)]
    enum Step {
        Set { namespace: usize, addresses: u64 },
        Claim { namespace: usize, name: Option<u8> },
        End { which: u128 },
        Reserve { namespace: usize, name: u8 },
        Release { namespace: usize, name: u8 },
    }

    fn step() -> impl Strategy<Value = Step> {
        let maybe = || prop_oneof![(0..3_u8).prop_map(Some), Just(None)];
        prop_oneof![
            1 => (0..2_usize, 0..12_u64)
                .prop_map(|(namespace, addresses)| Step::Set { namespace, addresses }),
            6 => (0..2_usize, maybe()).prop_map(|(namespace, name)| Step::Claim { namespace, name }),
            4 => (0..40_u128).prop_map(|which| Step::End { which }),
            2 => (0..2_usize, 0..3_u8).prop_map(|(namespace, name)| Step::Reserve { namespace, name }),
            1 => (0..2_usize, 0..3_u8).prop_map(|(namespace, name)| Step::Release { namespace, name }),
        ]
    }

    /// Counts from scratch, by the addresses.
    fn counted(state: &State, namespace: &str) -> Use {
        let mut counted = Use::default();
        for (_, _, slot) in state.slots() {
            let holder = slot.record.attachment.as_ref();
            let holder = holder.and_then(|holder| state.attachment(&holder.key));
            if let Some(holder) = holder {
                counted.held += u64::from(holder.record.namespace.as_str() == namespace);
            } else if let Some(owner) = &slot.record.reservation {
                counted.reserved += u64::from(owner.namespace.as_str() == namespace);
            }
        }
        counted
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn nothing_is_taken_above_a_quota_and_every_address_is_counted_once(
            steps in prop::collection::vec(step(), 0..40),
        ) {
            const NAMESPACES: [&str; 2] = ["prod", "_"];
            let mut sample = sample();
            for (number, step) in steps.into_iter().enumerate() {
                let before = NAMESPACES.map(|namespace| sample.state().used(&name(namespace)));
                let workload = |name: u8| format!("web-{name}");
                match step {
                    Step::Set { namespace, addresses } => {
                        set(&mut sample, NAMESPACES[namespace], addresses);
                    }
                    Step::Claim { namespace, name } => {
                        let (name, bits) = (name.map(workload), u128::try_from(number).unwrap());
                        let _ = claimed(&mut sample, bits, NAMESPACES[namespace], name.as_deref());
                    }
                    Step::End { which } => ended(&mut sample, which),
                    Step::Reserve { namespace, name } => {
                        let _ = reserved(&mut sample, NAMESPACES[namespace], &workload(name));
                    }
                    Step::Release { namespace, name: number } => {
                        let namespace = name(NAMESPACES[namespace]);
                        let key = reservation_key(&name("blue"), &namespace, &name(&workload(number)));
                        let _ = sample.decided(|state| reserve::release(state, &key));
                    }
                }
                let state = sample.state();
                for (namespace, before) in NAMESPACES.iter().zip(before) {
                    let now = state.used(&name(namespace));
                    prop_assert_eq!(now, counted(state, namespace));
                    let all = |used: Use| used.held + used.reserved;
                    let quota = state.quota(&name(namespace)).map(|entry| entry.record.addresses);
                    prop_assert!(
                        all(now) <= all(before) || quota.is_none_or(|quota| all(now) <= quota)
                    );
                }
            }
        }
    }
}

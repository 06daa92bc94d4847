//! Pure: what becomes of what a silent host holds, one story each.

use limpet_api::book::{Attachment, AttachmentKey, ReleaseRequest};
use limpet_api::host::{ClaimRequest, Wanted};
use limpet_api::{After, ApiError, ErrorCode, Span};
use limpet_net_types::Token;

use super::claim::{Granted, claim};
use super::{Outcome, Patience, release};
use crate::keys::Subject;
use crate::rules::sessions::Liveness;
use crate::rules::silence;
use crate::state::reservation_key;
use crate::state::sample::{Sample, name};

/// The session of all hosts that a sample makes.
fn session() -> Token {
    Token::from_bits(7)
}

fn key(host: &str, container: &str) -> AttachmentKey {
    AttachmentKey {
        host: name(host),
        network: name("blue"),
        container: name(container),
        ifname: name("eth0"),
    }
}

fn ask(
    sample: &mut Sample,
    key: &AttachmentKey,
    uid: u128,
    patience: Patience,
) -> Result<Outcome<Granted>, ApiError> {
    let wanted = Wanted { name: Some(name("web-0")), ..Wanted::default() };
    let request = ClaimRequest { session: session(), uid: Token::from_bits(uid), wanted };
    sample.decided(|state| claim(state, key, &request, patience))
}

fn given(sample: &mut Sample, key: &AttachmentKey, uid: u128) -> Granted {
    match ask(sample, key, uid, Patience::Left) {
        Ok(Outcome::Done(granted)) => granted,
        other => panic!("not given: {other:?}"),
    }
}

fn fall_silent(sample: &mut Sample, host: &str) {
    assert!(sample.decided(|state| silence::mark(state, &name(host), session())).unwrap());
}

/// Hosts a and b, both families; web-0 is on a.
fn sample() -> (Sample, Attachment) {
    let mut sample = Sample::new();
    sample.network("blue");
    for host in ["a", "b"] {
        sample.host(host);
    }
    sample.pool("p", "10.0.0.0/27", |_| {});
    sample.pool("p6", "fd00::/64", |pool| {
        pool.takeover_after = After::For(Span::from_seconds(90));
    });
    let attachment = given(&mut sample, &key("a", "c1"), 1).attachment;
    (sample, attachment)
}

#[test]
fn what_a_silent_host_holds_is_taken_over_when_every_pool_lets_it() {
    let (mut sample, old) = sample();
    sample.wait(100);
    fall_silent(&mut sample, "a");
    sample.wait(80);
    let error = ask(&mut sample, &key("b", "c2"), 2, Patience::Left).unwrap_err();
    assert_eq!(error.code, ErrorCode::ReservationHeld);
    assert_eq!(
        error.message,
        "the addresses of _/web-0 are held by container c1 on host a, which has been silent for \
         80s; they can be taken over in 10s"
    );
    assert_eq!(sample.state().asks().count(), 0, "nobody is asked who does not hear");
    sample.wait(10);
    let Granted { attachment, taken_over, .. } = given(&mut sample, &key("b", "c2"), 2);
    assert_eq!((attachment.addresses, attachment.mac), (old.addresses, old.mac));
    assert_eq!(taken_over.len(), 1);
    assert_eq!(taken_over[0].uid, old.uid);
    assert!(sample.state().attachment(&old.key).is_none());
    let reservation = reservation_key(&name("blue"), &name("_"), &name("web-0"));
    let record = &sample.state().reservation(&reservation).unwrap().record;
    assert_eq!((record.last_host.clone(), record.detached_at), (Some(name("b")), None));
    let again = given(&mut sample, &key("b", "c2"), 2);
    assert!(again.taken_over.is_empty(), "told once");
}

#[test]
fn a_takeover_compares_the_silence_and_the_old_attachment() {
    let (mut sample, old) = sample();
    fall_silent(&mut sample, "a");
    sample.wait(90);
    let wanted = Wanted { name: Some(name("web-0")), ..Wanted::default() };
    let request = ClaimRequest { session: session(), uid: Token::from_bits(2), wanted };
    let mine = key("b", "c2");
    let txn = claim(sample.state(), &mine, &request, Patience::Left).draft.into_txn();
    for subject in [Subject::Silent(name("a")), Subject::Attachment(old.key)] {
        assert!(matches!(txn.compares.get(&subject.key()), Some(crate::store::Seen::At(_))));
    }
}

#[test]
fn a_host_that_is_heard_again_keeps_what_it_has() {
    let (mut sample, _) = sample();
    fall_silent(&mut sample, "a");
    sample.wait(90);
    let heard = sample.decided(|s| silence::hear(s, &name("a"), session(), Token::from_bits(5)));
    assert!(heard.unwrap().is_some(), "it was silent");
    let outcome = ask(&mut sample, &key("b", "c2"), 2, Patience::Left).unwrap();
    assert!(matches!(outcome, Outcome::Asked(about) if about.key == key("a", "c1")));
    let error = ask(&mut sample, &key("b", "c2"), 2, Patience::Over).unwrap_err();
    assert_eq!(error.code, ErrorCode::ReservationHeld);
}

#[test]
fn who_has_not_listened_takes_nothing_over_and_a_host_takes_nothing_from_itself() {
    let (mut sample, _) = sample();
    fall_silent(&mut sample, "a");
    sample.wait(90);
    let outcome = ask(&mut sample, &key("b", "c2"), 2, Patience::Deaf).unwrap();
    assert!(matches!(outcome, Outcome::Asked(_)));
    ask(&mut sample, &key("b", "c2"), 2, Patience::Over).unwrap_err();
    let outcome = ask(&mut sample, &key("a", "c2"), 2, Patience::Left).unwrap();
    assert!(matches!(outcome, Outcome::Asked(_)), "it claims, so it lives");
}

#[test]
fn the_other_interface_of_the_same_container_takes_nothing_over() {
    let (mut sample, old) = sample();
    fall_silent(&mut sample, "a");
    sample.wait(90);
    let other = AttachmentKey { ifname: name("eth1"), ..key("a", "c1") };
    let granted = given(&mut sample, &other, 2);
    assert!(granted.taken_over.is_empty());
    assert_ne!(granted.attachment.addresses, old.addresses);
}

#[test]
fn a_pool_can_let_nobody_take_over() {
    let (mut sample, old) = sample();
    let mut pool = sample.state().pool(&name("p")).unwrap().record.clone();
    pool.takeover_after = After::Never;
    sample.put(&Subject::Pool(name("p")), &pool);
    fall_silent(&mut sample, "a");
    sample.wait(1_000_000);
    let error = ask(&mut sample, &key("b", "c2"), 2, Patience::Left).unwrap_err();
    assert_eq!(error.code, ErrorCode::ReservationHeld);
    let hint = format!("limpetctl attachment release {} --force --host-is-down", old.uid);
    assert!(error.message.ends_with(&hint), "{error}");
}

fn release(
    sample: &mut Sample,
    asked: &Attachment,
    how: ReleaseRequest,
    liveness: Liveness,
) -> Result<Outcome<()>, ApiError> {
    sample.decided(|state| release::end(state, asked, how, Patience::Left, liveness))
}

const FORCE: ReleaseRequest = ReleaseRequest { force: true, host_is_down: false };
const DOWN: ReleaseRequest = ReleaseRequest { force: true, host_is_down: true };

#[test]
fn a_forced_release_is_told_to_a_live_host_also_if_it_said_that_the_container_is_there() {
    let (mut sample, old) = sample();
    let plain = ReleaseRequest::default();
    assert!(matches!(release(&mut sample, &old, plain, Liveness::Alive), Ok(Outcome::Asked(_))));
    let uid = old.uid;
    let present = |state: &_| crate::rules::sessions::present(state, &name("a"), uid, session());
    sample.decided(present).unwrap();
    assert!(matches!(release(&mut sample, &old, FORCE, Liveness::Alive), Ok(Outcome::Asked(_))));
    let ask = &sample.state().ask(&name("a"), uid).unwrap().record;
    assert_eq!((ask.force, ask.present), (true, false));
    assert!(matches!(release(&mut sample, &old, FORCE, Liveness::Alive), Ok(Outcome::Asked(_))));
    let late = |state: &_| release::end(state, &old, FORCE, Patience::Over, Liveness::Alive);
    assert_eq!(sample.decided(late).unwrap_err().code, ErrorCode::HostSilent);
}

#[test]
fn only_a_host_that_nobody_hears_is_down() {
    let (mut sample, old) = sample();
    let error = release(&mut sample, &old, DOWN, Liveness::Alive).unwrap_err();
    assert_eq!(error.code, ErrorCode::HostAlive);
    fall_silent(&mut sample, "a");
    sample.wait(30);
    let error = release(&mut sample, &old, FORCE, Liveness::Lapsed).unwrap_err();
    assert_eq!(error.code, ErrorCode::HostSilent);
    assert!(error.message.contains("silent for 30s"), "{error}");
    assert!(error.message.contains("--host-is-down"), "{error}");
    let only_down = ReleaseRequest { force: false, host_is_down: true };
    let error = release(&mut sample, &old, only_down, Liveness::Lapsed).unwrap_err();
    assert_eq!(error.code, ErrorCode::Invalid);
    assert!(matches!(release(&mut sample, &old, DOWN, Liveness::Lapsed), Ok(Outcome::Done(()))));
    assert!(sample.state().attachment(&old.key).is_none());
    let reservation = reservation_key(&name("blue"), &name("_"), &name("web-0"));
    assert!(sample.state().reservation(&reservation).is_some(), "it keeps the addresses");
    assert!(matches!(release(&mut sample, &old, DOWN, Liveness::Lapsed), Ok(Outcome::Done(()))));
}

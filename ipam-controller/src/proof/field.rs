//! Pure: what users of other address managers saw, one test for each kind of it: that it does not
//! happen here.

use limpet_api::book::{Attachment, AttachmentKey, EndReason};
use limpet_api::host::{ClaimRequest, EndRequest, Wanted};
use limpet_api::{After, ApiError, Span};
use limpet_net_types::Token;
use serde_json::Value;

use crate::alloc::claim::claim;
use crate::alloc::ends::end;
use crate::alloc::{Outcome, Patience};
use crate::keys::Subject;
use crate::reclaim::{Limits, due};
use crate::state::sample::{Sample, name};

fn sample() -> Sample {
    let mut sample = Sample::new();
    sample.network("blue");
    for host in ["a", "b"] {
        sample.host(host);
    }
    sample.pool("p", "10.0.0.0/29", |_| {});
    sample
}

fn key(host: &str, container: &str) -> AttachmentKey {
    AttachmentKey {
        host: name(host),
        network: name("blue"),
        container: name(container),
        ifname: name("eth0"),
    }
}

fn start(
    sample: &mut Sample,
    key: &AttachmentKey,
    uid: u128,
    pod: &str,
) -> Result<Attachment, ApiError> {
    let wanted = Wanted { netns: "/n".to_owned(), name: Some(name(pod)), ..Wanted::default() };
    let request = ClaimRequest { session: Token::from_bits(7), uid: Token::from_bits(uid), wanted };
    sample.decided(|state| claim(state, key, &request, Patience::Over)).map(|outcome| match outcome
    {
        Outcome::Done(granted) => granted.attachment,
        Outcome::Asked(about) => panic!("asked about {about:?}"),
    })
}

fn stop(sample: &mut Sample, key: &AttachmentKey, uid: u128, reason: EndReason) {
    let (session, uid) = (Token::from_bits(7), Token::from_bits(uid));
    let request = EndRequest { session, uid, reason };
    sample.decided(|state| end(state, key, &request)).unwrap();
}

/// Whereabouts 176, Spiderpool 1187, 2526 and 3751.
#[test]
fn a_pod_recreated_under_its_name_keeps_its_address_when_the_old_ones_delete_comes_late() {
    for (host, container) in [("a", "old"), ("a", "new"), ("b", "new")] {
        let mut sample = sample();
        let (old, new) = (key("a", "old"), key(host, container));
        let address = start(&mut sample, &old, 1, "web-0").unwrap().addresses[0].address;
        stop(&mut sample, &old, 1, EndReason::Detached);
        let again = start(&mut sample, &new, 2, "web-0").unwrap();
        assert_eq!(again.addresses[0].address, address);
        // The runtime, the collector and a finalizer, all of them late.
        for reason in [EndReason::Detached, EndReason::Gone, EndReason::Superseded] {
            stop(&mut sample, &old, 1, reason);
            stop(&mut sample, &new, 1, reason);
        }
        assert_eq!(sample.state().attachment(&new).unwrap().record.uid, again.uid);
        let slot = sample.state().slot(&name("blue"), address).unwrap();
        assert_eq!(slot.record.attachment.as_ref().unwrap().uid, again.uid);
        assert!(start(&mut sample, &key("b", "other"), 3, "web-0").is_err(), "it has it alone");
    }
}

/// Calico 12257.
#[test]
fn a_collector_on_a_host_with_a_stale_name_frees_nothing_of_another_host() {
    let mut sample = sample();
    let living = key("a", "c1");
    start(&mut sample, &living, 1, "web-0").unwrap();
    stop(&mut sample, &key("b", "c1"), 1, EndReason::Gone);
    assert!(sample.state().attachment(&living).is_some());
}

/// Calico 5044, Whereabouts 162: what is cleared away without a host's word is never what lives.
#[test]
fn live_addresses_are_no_leaks_after_an_upgrade_however_long_they_live() {
    let mut sample = sample();
    let living = key("a", "c1");
    start(&mut sample, &living, 1, "web-0").unwrap();
    // As a version wrote it that knew less.
    let subject = Subject::Attachment(living.clone());
    let record = sample.state().attachment(&living).unwrap().record.clone();
    let mut older = serde_json::to_value(&record).unwrap();
    older.as_object_mut().unwrap().remove("created_wall");
    sample.put::<Value>(&subject, &older);
    let limits = Limits {
        silent_hosts_end_after: After::For(Span::from_seconds(1)),
        history_records: 0,
        history_age: Span::from_seconds(0),
    };
    for _ in 0..5 {
        sample.wait(365 * 86_400);
        for chore in due(sample.state(), &limits) {
            sample.decided(|state| chore(state)).unwrap();
        }
    }
    assert_eq!(sample.state().attachment(&living).unwrap().record.uid, record.uid);
    assert!(start(&mut sample, &key("b", "c2"), 2, "web-0").is_err());
}

/// Kube-OVN 4304, AWS VPC CNI 711: the store is the truth, and not a list of what lives.
#[test]
fn after_a_restart_no_address_is_free_that_was_held_and_none_is_held_by_who_is_gone() {
    let mut sample = sample();
    let mut held = Vec::new();
    for number in 0..3 {
        let pod = format!("web-{number}");
        let at = key("a", &format!("c{number}"));
        held.push(start(&mut sample, &at, number, &pod).unwrap().addresses[0].address);
    }
    stop(&mut sample, &key("a", "c0"), 0, EndReason::Detached);
    start(&mut sample, &key("a", "x"), 9, "db").unwrap();
    // Each change of a sample is also read back as a controller that starts reads it.
    let mut restarted = sample.copy();
    let other = start(&mut restarted, &key("b", "c9"), 10, "db").unwrap().addresses[0].address;
    assert!(!held.contains(&other), "{other} is held, or kept for web-0");
    let back = start(&mut restarted, &key("b", "c0"), 11, "web-0").unwrap();
    assert_eq!(back.addresses[0].address, held[0], "nobody who is gone has it");
}

//! Edge: what lives here and is missing from the store is re-asserted, and severed if its addresses are another's.

use std::collections::BTreeSet;

use limpet_api::book::Attachment;
use limpet_api::client::{Attempted, Call, ClientError, Method};
use limpet_api::host::{ReassertOutcome, ReassertRequest, ReassertResult, Reasserted};
use limpet_api::{ErrorCode, Revision, paths};
use limpet_net_types::Uid;
use tracing::{error, info, warn};

use crate::agent::{Agent, Patience, sentence};
use crate::flights::Flights;
use crate::orphans::{Known, Orphans, orphans};
use crate::records::Record;
use crate::upkeep::{current_join, settled};
use crate::veths::{Interfaces, VethError, Veths};
use crate::view::Key;

/// The most attachments of one request: a body has at most 1 MiB, and these half of it if their names are long.
const MOST: usize = 500;

/// Why what lives here was not all looked at.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReassertError {
    /// The interfaces are not known, or not set down.
    #[error(transparent)]
    Veth(#[from] VethError),
    /// The controller was not asked.
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// One look at all interfaces. It does nothing while the watch has not told of everything before the session.
pub(crate) async fn look(agent: &Agent, veths: &Veths) -> Result<(), ReassertError> {
    if current_join(agent).is_none() {
        return Ok(());
    }
    let begun = Begun::now(agent);
    let interfaces = veths.interfaces().await?;
    let (orphans, all, lost, making) = {
        let state = agent.state();
        let known = Known {
            host: &agent.identity.host,
            boot: agent.identity.boot,
            view: &state.view,
            flights: &state.flights,
            records: &state.records,
            endings: &state.endings,
        };
        let all = state.view.reassert;
        let all_of = all.then(|| state.view.position().map(|(store, _)| store)).flatten();
        let making: BTreeSet<Uid> =
            begun.making.iter().copied().chain(state.flights.uids()).collect();
        (orphans(&interfaces, all, &known), all_of, state.view.lost().clone(), making)
    };
    let orphans = if orphans == Orphans::default() {
        orphans
    } else {
        let interfaces = veths.interfaces().await?;
        orphans.still(&interfaces, &agent.state().flights)
    };
    let severed =
        sever(agent, veths, &orphans.sever, "nothing is known of it here or in the store");
    severed.await?;
    assert_all(agent, veths, orphans.assert, all.map(|_| making)).await?;
    let mut state = agent.state();
    state.view.looked_for(&lost);
    // Another store that came meanwhile has not been told.
    if all.is_some() && state.view.position().map(|(store, _)| store) == all {
        state.view.reassert = false;
    }
    drop(state);
    tidy(agent, &begun, &interfaces);
    Ok(())
}

/// What there was before the interfaces were listed. A plugin may make and confirm one meanwhile: afterwards it is neither
/// among them nor in the making.
struct Begun {
    making: BTreeSet<Uid>,
    recorded: BTreeSet<Uid>,
}

impl Begun {
    fn now(agent: &Agent) -> Self {
        let state = agent.state();
        let recorded = state.records.keys().copied().collect();
        Self { making: state.flights.uids().collect(), recorded }
    }

    /// Whether an incarnation that was there already has no interface, and had none in the making.
    fn has_none(&self, uid: Uid, interfaces: &Interfaces, flights: &Flights) -> bool {
        !interfaces.contains_key(&uid) && !self.making.contains(&uid) && !flights.has(uid)
    }
}

/// What is said in one request.
#[derive(Debug)]
struct Part {
    attachments: Vec<Attachment>,
    complete: bool,
    living: Vec<Uid>,
}

/// Divides what is re-asserted. `making`: everything is, and these incarnations are in the making besides. Each part has
/// all that lives, since what a host does not name ends.
fn parts(attachments: &[Attachment], making: Option<BTreeSet<Uid>>) -> Vec<Part> {
    let all = making.is_some();
    let named = attachments.iter().map(|attachment| attachment.uid);
    let living: BTreeSet<Uid> =
        making.into_iter().flat_map(|making| making.into_iter().chain(named.clone())).collect();
    let living: Vec<Uid> = living.into_iter().collect();
    let mut parts: Vec<Part> = attachments
        .chunks(MOST)
        .map(|some| Part { attachments: some.to_vec(), complete: false, living: living.clone() })
        .collect();
    if all && parts.is_empty() {
        // That nothing lives here is worth saying, too.
        parts.push(Part { attachments: vec![], complete: false, living });
    }
    if let Some(last) = parts.last_mut() {
        last.complete = all;
    }
    parts
}

/// Re-asserts attachments; with `making` these, and what is in the making, are all.
async fn assert_all(
    agent: &Agent,
    veths: &Veths,
    attachments: Vec<Attachment>,
    making: Option<BTreeSet<Uid>>,
) -> Result<(), ReassertError> {
    for Part { attachments, complete, living } in parts(&attachments, making) {
        let session = agent.session().map_err(ClientError::Refused)?;
        let request =
            ReassertRequest { session, attachments: attachments.clone(), complete, living };
        let path = paths::reassert(&agent.identity.host);
        let call = Call::with_body(Method::POST, path, &request)?;
        let Attempted { answer, unsure } = agent.attempt::<Reasserted>(&call, Patience::Long).await;
        if unsure || answer.as_ref().is_err_and(ClientError::outcome_unknown) {
            // Carried out late it would make again what has ended meanwhile: not in a session that is over.
            agent.spoil(session);
        }
        let reasserted = match settled(agent, session, answer) {
            Err(ClientError::Refused(error)) if error.code == ErrorCode::NotFound => {
                warn!("the controller is of a version to which nothing can be re-asserted");
                return Ok(());
            }
            other => other?,
        };
        info!(count = attachments.len(), complete, "re-asserted what lives here");
        take(agent, veths, &attachments, reasserted).await?;
    }
    Ok(())
}

/// Takes in what has become of attachments.
async fn take(
    agent: &Agent,
    veths: &Veths,
    attachments: &[Attachment],
    reasserted: Reasserted,
) -> Result<(), ReassertError> {
    let Reasserted { results, revision } = reasserted;
    let mut restored = BTreeSet::new();
    for ReassertResult { uid, outcome, revision: at } in results {
        // What is told of another attachment at a later revision says nothing of this one.
        let revision = at.unwrap_or(revision);
        let Some(attachment) = attachments.iter().find(|attachment| attachment.uid == uid) else {
            warn!(%uid, "the controller answers about an attachment that it was not asked about");
            continue;
        };
        let container = &attachment.key.container;
        match outcome {
            ReassertOutcome::Kept => stands(agent, attachment, revision),
            ReassertOutcome::Restored => {
                warn!(%uid, %container, "the store had lost an attachment and has it again");
                stands(agent, attachment, revision);
                restored.insert(uid);
            }
            ReassertOutcome::Severed { holder, why } => {
                let holder = holder.map(|holder| holder.key);
                let why = match holder {
                    Some(key) => format!("{why}: {} on host {}", key.container, key.host),
                    None => why,
                };
                sever(agent, veths, &[uid].into(), &why).await?;
            }
        }
    }
    agent.look.notify_one();
    if restored.is_empty() {
        return Ok(());
    }
    // A DEL in the meantime was told that there is nothing to end.
    let begun = Begun::now(agent);
    let there = veths.interfaces().await?;
    let mut state = agent.state();
    for attachment in attachments.iter().filter(|attachment| restored.contains(&attachment.uid)) {
        if begun.has_none(attachment.uid, &there, &state.flights) {
            state.endings.insert(attachment.uid, Key::of(attachment));
            agent.tend.notify_one();
        }
    }
    Ok(())
}

/// Takes in that the store has an attachment. One that was severed comes back with the next pass.
fn stands(agent: &Agent, attachment: &Attachment, revision: Revision) {
    let mut state = agent.state();
    // If it has ended since, the next look finds it again.
    let _ = state.view.answered(attachment, revision);
    let severed = state.records.get_mut(&attachment.uid).filter(|record| record.severed.is_some());
    let record = severed.map(|record| {
        record.severed = None;
        record.clone()
    });
    drop(state);
    if let Some(record) = record {
        agent.keep(&record);
    }
}

/// Takes containers off the network, and says so.
pub(crate) async fn sever(
    agent: &Agent,
    veths: &Veths,
    uids: &BTreeSet<Uid>,
    why: &str,
) -> Result<(), VethError> {
    if uids.is_empty() {
        return Ok(());
    }
    for uid in veths.sever(uids).await? {
        let mut state = agent.state();
        let record = state.records.get_mut(&uid).map(|record| {
            record.severed = Some(why.to_owned());
            record.clone()
        });
        let news = state.severed.insert(uid, why.to_owned()).is_none();
        state.severed_ever += u64::from(news);
        drop(state);
        let container = record.as_ref().map(|record| record.attachment.key.container.clone());
        let container = container.as_ref().map_or("not known", |container| container.as_str());
        error!(%uid, container, why, "severed: a container is without network");
        if let Some(record) = record {
            agent.keep(&record);
        }
    }
    Ok(())
}

/// Records what lives here and was not recorded, by an earlier agent; forgets what is neither here nor in the store.
fn tidy(agent: &Agent, begun: &Begun, interfaces: &Interfaces) {
    let mut guard = agent.state();
    let state = &mut *guard;
    state.severed.retain(|uid, _| interfaces.contains_key(uid) && !state.view.has(*uid));
    let Some((store, revision)) = state.view.position() else { return };
    let gone: Vec<Uid> = state
        .records
        .keys()
        .filter(|uid| begun.recorded.contains(uid) && !state.view.has(**uid))
        .filter(|uid| begun.has_none(**uid, interfaces, &state.flights))
        .copied()
        .collect();
    let boot = agent.identity.boot;
    let new: Vec<Record> = state
        .view
        .attachments()
        .filter(|(_, attachment)| attachment.boot == boot)
        .filter(|(_, attachment)| interfaces.contains_key(&attachment.uid))
        .filter(|(_, attachment)| !state.records.contains_key(&attachment.uid))
        .filter_map(|(key, attachment)| {
            let network = state.view.networks.get(&key.network)?.clone();
            let attachment = attachment.clone();
            Some(Record { attachment, network, store, revision, severed: None, inside: None })
        })
        .collect();
    drop(guard);
    for uid in gone {
        agent.forget(uid);
    }
    for record in new {
        agent.keep(&record);
    }
}

/// The same look, for those who go on whatever comes of it. Returns whether it was whole.
pub(crate) async fn look_and_say(agent: &Agent, veths: &Veths) -> bool {
    match look(agent, veths).await {
        Ok(()) => {
            agent.state().not_asserted = None;
            true
        }
        Err(error) => {
            let words = sentence(&error);
            let news = agent.state().not_asserted.replace(words.clone()) != Some(words.clone());
            if news {
                warn!(error = words, "cannot re-assert what lives here yet, trying on");
            }
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use limpet_net_types::Token;

    use super::*;
    use crate::fixture;

    #[test]
    fn of_many_containers_each_request_names_all_and_the_last_is_the_end() {
        let uid = |n: usize| Token::from_bits(u128::try_from(n).unwrap());
        let many: Vec<Attachment> = (0..=2 * MOST)
            .map(|n| Attachment { uid: uid(n), ..fixture::attachment(1, 0) })
            .collect();
        let making = BTreeSet::from([uid(7), uid(5 * MOST)]);
        let told = parts(&many, Some(making));
        assert_eq!(told.iter().map(|part| part.complete).collect::<Vec<_>>(), [false, false, true]);
        let named: usize = told.iter().map(|part| part.attachments.len()).sum();
        assert_eq!(named, many.len());
        for part in &told {
            let living: BTreeSet<Uid> = part.living.iter().copied().collect();
            assert!(many.iter().all(|attachment| living.contains(&attachment.uid)));
            assert!(living.contains(&uid(5 * MOST)), "what is in the making, too");
            assert_eq!(living.len(), many.len() + 1);
        }
        assert!(parts(&many, None).iter().all(|part| !part.complete && part.living.is_empty()));
        assert!(parts(&[], None).is_empty());
        let nothing = parts(&[], Some(BTreeSet::new()));
        assert!(nothing.len() == 1 && nothing[0].complete);
    }

    #[tokio::test]
    async fn a_container_that_ended_while_it_was_asserted_does_not_come_back() {
        let agent = fixture::agent();
        agent.state().view = fixture::view(limpet_api::host::Snapshot::default());
        let attachment = fixture::attachment(1, 7);
        let known = agent.state().view.position().map_or(0, |(_, revision)| revision);
        // It was asserted, then its DEL was answered, then the watch told of that, then the rest was answered.
        let result = |revision| ReassertResult {
            uid: attachment.uid,
            outcome: ReassertOutcome::Kept,
            revision,
        };
        let answer = |revision| Reasserted { results: vec![result(revision)], revision: known + 9 };
        let all = std::slice::from_ref(&attachment);
        take(&agent, &Veths::default(), all, answer(Some(known))).await.unwrap();
        assert!(!agent.state().view.has(attachment.uid), "the watch knows better");
        take(&agent, &Veths::default(), all, answer(Some(known + 1))).await.unwrap();
        assert!(
            agent.state().view.has(attachment.uid),
            "it was there after all that the watch has told"
        );
        agent.state().view.ended(attachment.uid, known + 2);
        take(&agent, &Veths::default(), all, answer(Some(known + 1))).await.unwrap();
        assert!(!agent.state().view.has(attachment.uid), "its end was answered");
        let agent = fixture::agent();
        agent.state().view = fixture::view(limpet_api::host::Snapshot::default());
        take(&agent, &Veths::default(), all, answer(None)).await.unwrap();
        assert!(
            agent.state().view.has(attachment.uid),
            "an earlier controller has but one revision"
        );
    }

    #[test]
    fn what_is_made_and_confirmed_while_the_interfaces_are_listed_is_not_taken_for_gone() {
        let agent = fixture::agent();
        let attachment = fixture::attachment(1, 7);
        agent.state().records.insert(attachment.uid, fixture::record(1, 7));
        agent.state().flights.begin(attachment.uid, 1, Key::of(&attachment));
        let begun = Begun::now(&agent);
        // The list was made before the interface was there.
        let listed = Interfaces::new();
        agent.state().flights.end(attachment.uid);
        agent.state().view = fixture::view(limpet_api::host::Snapshot::default());
        let is_gone = begun.has_none(attachment.uid, &listed, &agent.state().flights);
        assert!(!is_gone);
        tidy(&agent, &begun, &listed);
        assert!(agent.state().records.contains_key(&attachment.uid));
        tidy(&agent, &Begun::now(&agent), &listed);
        assert!(agent.state().records.is_empty(), "by the next look");
    }
}

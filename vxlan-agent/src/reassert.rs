//! Edge: what lives here and is missing from the store is re-asserted, and severed if its addresses are another's.

use std::collections::BTreeSet;

use limpet_api::book::Attachment;
use limpet_api::client::{Call, ClientError, Method};
use limpet_api::host::{ReassertOutcome, ReassertRequest, ReassertResult, Reasserted};
use limpet_api::{ErrorCode, Revision, paths};
use limpet_net_types::Uid;
use tracing::{error, info, warn};

use crate::agent::{Agent, Patience, sentence};
use crate::orphans::{Known, Orphans, orphans};
use crate::records::Record;
use crate::upkeep::{current_join, settled};
use crate::veths::{Interfaces, VethError, Veths};
use crate::view::Key;

/// The most attachments of one request: half a megabyte.
const MOST: usize = 1000;

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
    let interfaces = veths.interfaces().await?;
    let (orphans, all, lost) = {
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
        (orphans(&interfaces, all, &known), all, state.view.lost().clone())
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
    assert_all(agent, veths, orphans.assert, all).await?;
    let mut state = agent.state();
    state.view.looked_for(&lost);
    if all {
        state.view.reassert = false;
    }
    drop(state);
    tidy(agent, &interfaces);
    Ok(())
}

/// Re-asserts attachments, `all`: and says that these are all.
async fn assert_all(
    agent: &Agent,
    veths: &Veths,
    attachments: Vec<Attachment>,
    all: bool,
) -> Result<(), ReassertError> {
    let count = attachments.len().div_ceil(MOST);
    let mut parts = attachments.chunks(MOST);
    // That nothing lives here is worth saying, too.
    for part in 0..count.max(usize::from(all)) {
        let attachments = parts.next().unwrap_or_default().to_vec();
        let complete = all && part + 1 >= count;
        let session = agent.session().map_err(ClientError::Refused)?;
        let request = ReassertRequest { session, attachments: attachments.clone(), complete };
        let path = paths::reassert(&agent.identity.host);
        let call = Call::with_body(Method::POST, path, &request)?;
        let answer = agent.ask::<Reasserted>(&call, Patience::Long).await;
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
    for ReassertResult { uid, outcome } in results {
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
    let there = veths.interfaces().await?;
    let mut state = agent.state();
    for attachment in attachments.iter().filter(|attachment| restored.contains(&attachment.uid)) {
        if !there.contains_key(&attachment.uid) && !state.flights.has(attachment.uid) {
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
fn tidy(agent: &Agent, interfaces: &Interfaces) {
    let mut guard = agent.state();
    let state = &mut *guard;
    state.severed.retain(|uid, _| interfaces.contains_key(uid) && !state.view.has(*uid));
    let Some((store, revision)) = state.view.position() else { return };
    let gone: Vec<Uid> = state
        .records
        .keys()
        .filter(|uid| {
            !interfaces.contains_key(uid) && !state.view.has(**uid) && !state.flights.has(**uid)
        })
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
            Some(Record { attachment, network, store, revision, severed: None })
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

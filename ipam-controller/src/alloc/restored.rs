//! Pure: a store that was restored: until every host has said what lives on it, nothing new is given.

use std::collections::BTreeSet;

use limpet_api::config::Role;
use limpet_api::restore::{RestoreCause, Restored};
use limpet_api::{ApiError, ErrorCode, Span};
use limpet_net_types::{HostName, Token};
use serde_json::json;

use super::claim::session;
use crate::draft::{Decision, Draft, refuse};
use crate::keys::Subject;
use crate::state::{Entry, State};
use crate::store::Revision;

/// How many of the hosts that are waited for an error names.
const NAMED: usize = 5;

/// Refuses what would give an address to somebody new while hosts are waited for.
pub(crate) fn settled(state: &State, draft: &mut Draft) -> Result<(), ApiError> {
    let restored = state.restored();
    draft.rely(&Subject::Restored, restored);
    let Some(Entry { record, .. }) = restored.filter(|entry| !entry.record.waiting.is_empty())
    else {
        return Ok(());
    };
    let count = record.waiting.len();
    let first: Vec<_> = record.waiting.iter().take(NAMED).collect();
    let names: Vec<_> = first.iter().map(|host| host.as_str()).collect();
    let more = if count > NAMED { ", ..." } else { "" };
    let text = format!(
        "the store was restored, and {count} of {} hosts have not said yet what lives on them: {}{more}",
        record.hosts,
        names.join(", ")
    );
    let details = json!({ "waiting": count, "first": first });
    Err(ApiError::new(ErrorCode::StoreRestored, text).with_details(details))
}

/// What a store says of itself from the moment that it is not the one it was: all its nodes are
/// waited for.
///
/// Fleet time goes on by a second, so that what was made before was made earlier.
pub(crate) fn write_restored(state: &State, draft: &mut Draft, fresh: Token, cause: RestoreCause) {
    let nodes = state.hosts().filter(|host| host.record.is(Role::Node));
    let waiting: BTreeSet<HostName> = nodes.map(|host| host.record.name.clone()).collect();
    let hosts = u64::try_from(waiting.len()).unwrap_or(u64::MAX);
    let at = state.now().plus(Span::from_seconds(1));
    let restored = Restored { at, cause, hosts, waiting, spoken: BTreeSet::new() };
    // A host that joins at the same moment is to be waited for as well.
    draft.rely_on(&Subject::Config, state.config());
    draft.rely(&Subject::Clock, state.clock());
    draft.put(&Subject::Clock, &at);
    draft.put(&Subject::StoreId, &fresh);
    draft.put(&Subject::Restored, &restored);
}

/// Decides that the store was set back behind the controllers' back: a host knows revision `known`
/// of store `store`, which it has not reached.
pub(crate) fn set_back(
    state: &State,
    (store, known): (Token, Revision),
    fresh: Token,
) -> Decision<bool> {
    Decision::make(|draft| {
        draft.rely(&Subject::Restored, state.restored());
        let is_set_back = state.store() == store && state.revision() < known;
        if is_set_back {
            write_restored(state, draft, fresh, RestoreCause::SetBack);
        }
        Ok(is_set_back)
    })
}

/// Notes that a host has said all that lives on it, and that what does not was ended.
pub(crate) fn spoke(state: &State, host: &HostName, token: Token) -> Decision<()> {
    note(state, host, token, |restored| restored.spoken.insert(host.clone()))
}

/// Notes that nothing of a host needs to be waited for any more.
pub(crate) fn complete(state: &State, host: &HostName, token: Token) -> Decision<()> {
    note(state, host, token, |restored| {
        restored.spoken.remove(host);
        restored.waiting.remove(host)
    })
}

fn note(
    state: &State,
    host: &HostName,
    token: Token,
    change: impl FnOnce(&mut Restored) -> bool,
) -> Decision<()> {
    Decision::make(|draft| {
        session(state, draft, host, token)?;
        let entry = state.restored();
        draft.rely(&Subject::Restored, entry);
        let Some(entry) = entry.filter(|entry| entry.record.waiting.contains(host)) else {
            return Ok(());
        };
        let mut restored = entry.record.clone();
        if change(&mut restored) {
            draft.put(&Subject::Restored, &restored);
        }
        Ok(())
    })
}

/// Decides that hosts are not waited for; what lives on them is severed if somebody else gets their
/// addresses before they are back.
pub(crate) fn waive(state: &State, hosts: &[HostName]) -> Decision<()> {
    Decision::make(|draft| {
        let entry = state.restored();
        draft.rely(&Subject::Restored, entry);
        let waiting = entry.map(|entry| &entry.record.waiting);
        let is_known = |host: &HostName| {
            waiting.is_some_and(|waiting| waiting.contains(host)) || state.host(host).is_some()
        };
        if let Some(unknown) = hosts.iter().find(|host| !is_known(host)) {
            return refuse(ErrorCode::HostNotFound, format!("there is no host {unknown}"));
        }
        let Some(entry) = entry else { return Ok(()) };
        let mut restored = entry.record.clone();
        for host in hosts {
            restored.waiting.remove(host);
            restored.spoken.remove(host);
        }
        if restored != entry.record {
            draft.put(&Subject::Restored, &restored);
        }
        Ok(())
    })
}

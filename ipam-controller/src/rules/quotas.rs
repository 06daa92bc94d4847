//! Pure: quotas: how many addresses namespaces may have, as operators say.
//!
//! Every claim of a namespace relies on its quota, or on there being none: one that is being decided while a quota is
//! set is decided again.

use limpet_api::quota::{Quota, QuotaSpec, QuotaUse};
use limpet_api::{ApiError, ErrorCode};
use limpet_net_types::Namespace;

use crate::draft::{Decision, Draft};
use crate::keys::Subject;
use crate::state::{Entry, State};
use crate::store::Revision;

/// Decides a quota. What is used already stays, also if it is more.
pub(crate) fn set(
    state: &State,
    namespace: &Namespace,
    spec: QuotaSpec,
) -> Decision<Entry<QuotaUse>> {
    Decision::make(|draft| {
        let subject = Subject::Quota(namespace.clone());
        let existing = state.quota(namespace);
        draft.rely(&subject, existing);
        let quota = Quota { namespace: namespace.clone(), addresses: spec.addresses };
        if let Some(same) = existing.filter(|existing| existing.record == quota) {
            return Ok(with_use(state, same));
        }
        draft.put(&subject, &quota);
        Ok(with_use(state, &Entry { record: quota, revision: Revision::OWN }))
    })
}

/// Decides that a namespace has no quota any more.
pub(crate) fn remove(state: &State, namespace: &Namespace) -> Decision<()> {
    Decision::make(|draft| {
        found(state, draft, namespace)?;
        draft.delete(&Subject::Quota(namespace.clone()));
        Ok(())
    })
}

/// A quota, and how much of it is used.
pub(crate) fn with_use(state: &State, quota: &Entry<Quota>) -> Entry<QuotaUse> {
    let used = state.used(&quota.record.namespace);
    let record = QuotaUse { quota: quota.record.clone(), held: used.held, reserved: used.reserved };
    Entry { record, revision: quota.revision }
}

/// The refusal of what is about a quota that is not there.
pub(crate) fn missing(namespace: &Namespace) -> ApiError {
    let text = format!("namespace {namespace} has no quota");
    ApiError::new(ErrorCode::QuotaNotFound, text)
}

fn found(state: &State, draft: &mut Draft, namespace: &Namespace) -> Result<(), ApiError> {
    let entry = state.quota(namespace);
    draft.rely(&Subject::Quota(namespace.clone()), entry);
    entry.map(|_| ()).ok_or_else(|| missing(namespace))
}

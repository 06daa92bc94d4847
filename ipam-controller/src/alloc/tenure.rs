//! Pure: what history is told of an attachment that ends, in the transaction that ends it, and how its
//! records go.

use limpet_api::book::Attachment;
use limpet_api::history::{Tenure, TenureEnd};

use super::ends::Ending;
use crate::draft::{Decision, Draft};
use crate::keys::Subject;
use crate::state::State;
use crate::tenures::TenureKey;

/// Decides that records of history go. Those that are gone already are no matter.
pub(crate) fn forget(state: &State, tenures: &[TenureKey]) -> Decision<()> {
    Decision::make(|draft| {
        for tenure in tenures.iter().filter(|tenure| state.tenures().has(**tenure)) {
            draft.delete(&Subject::Tenure(*tenure));
        }
        Ok(())
    })
}

/// Writes down that an attachment has had its addresses until now.
pub(super) fn record(state: &State, draft: &mut Draft, attachment: &Attachment, ending: &Ending) {
    let at = state.now();
    let end = TenureEnd { at, wall: state.wall(), reason: ending.reason, by: ending.by.clone() };
    let subject = Subject::Tenure(TenureKey { at, uid: attachment.uid });
    draft.put(&subject, &Tenure::of(attachment, Some(end)));
}

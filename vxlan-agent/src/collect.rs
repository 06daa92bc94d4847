//! Edge: GC: what a runtime does not know of any more is ended, where this host sees for itself that it is gone.

use limpet_api::book::EndReason;
use limpet_api::socket::{GcAnswer, GcRequest, ValidAttachment};
use limpet_api::{ApiError, ErrorCode};
use limpet_net_types::Uid;
use tracing::info;

use crate::agent::{Agent, not_joined, sentence};
use crate::evidence::{Evidence, gone};
use crate::upkeep::{end_or_list, sight};
use crate::veths::{Veths, netns_exists};
use crate::view::Key;

/// Ends what a runtime does not know of any more, as far as this host sees for itself that it is gone.
pub(crate) async fn collect(
    agent: &Agent,
    veths: &Veths,
    request: GcRequest,
) -> Result<GcAnswer, ApiError> {
    let sight = sight(agent, veths.living())
        .await
        .map_err(|error| ApiError::new(ErrorCode::Internal, sentence(&error)))?;
    let GcRequest { network, runtime, valid } = request;
    let is_valid = |key: &Key| {
        valid.iter().any(|valid| valid.container == key.container && valid.ifname == key.ifname)
    };
    let (unknown, gone) = {
        let state = agent.state();
        if state.view.position().is_none() {
            return Err(not_joined(&state));
        }
        let is_there = |uid| sight.is_there(uid);
        let boot = agent.identity.boot;
        let evidence = Evidence { boot, is_there: &is_there, netns_exists: &netns_exists };
        let gone = gone(state.view.attachments(), &evidence).now;
        let of_runtime = state.view.attachments().filter(|(key, attachment)| {
            key.network == network && attachment.runtime == runtime && !is_valid(key)
        });
        let unknown: Vec<(Key, Uid)> =
            of_runtime.map(|(key, attachment)| (key.clone(), attachment.uid)).collect();
        (unknown, gone)
    };
    let mut answer = GcAnswer::default();
    for (key, uid) in unknown {
        let of = ValidAttachment { container: key.container.clone(), ifname: key.ifname.clone() };
        if gone.contains(&(key.clone(), uid)) {
            info!(%uid, container = %key.container, "collected");
            agent.state().reasons.insert(uid, EndReason::Gone);
            end_or_list(agent, &key, uid).await;
            answer.ended.push(of);
        } else {
            answer.present.push(of);
        }
    }
    Ok(answer)
}

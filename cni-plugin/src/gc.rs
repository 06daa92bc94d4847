//! Edge: GC: what the runtime does not know of any more is ended, where the agent sees that it is gone.

use limpet_api::socket::{GcRequest, ValidAttachment};
use tracing::info;

use crate::agent::{Agent, AgentError};
use crate::error::Failure;
use crate::request::Gc;

/// Carries out GC.
///
/// The list speaks for this host, this network and this runtime only; the agent keeps to that, and ends nothing
/// that it finds alive.
pub(crate) async fn gc(request: &Gc) -> Result<(), Failure> {
    let valid = request.valid.iter().filter_map(|valid| {
        // Under a name that limpet would not have taken there is nothing of limpet's.
        let container = valid.container.parse().ok()?;
        Some(ValidAttachment { container, ifname: valid.ifname.parse().ok()? })
    });
    let mut valid: Vec<_> = valid.collect();
    valid.sort_unstable();
    valid.dedup();
    let config = &request.config;
    let list =
        GcRequest { network: config.network.clone(), runtime: config.runtime.clone(), valid };
    let collect = async {
        let answer = Agent::connect(config).await?.collect(&list).await?;
        Ok::<_, AgentError>(answer)
    };
    let answer = collect.await.map_err(|error| error.failure())?;
    info!(ended = answer.ended.len(), present = answer.present.len(), "collected");
    Ok(())
}

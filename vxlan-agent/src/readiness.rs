//! Edge: whether an ADD on a network could be served now, and whether those that were are still well.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::IpAddr;
use std::time::Duration;

use limpet_api::client::{Call, ClientError, Method};
use limpet_api::config::{PoolState, PoolUse};
use limpet_api::socket::{Problem, Readiness};
use limpet_api::{ApiError, ErrorCode, Listing, paths};
use limpet_net_types::{Family, LabelKey, NetworkName};
use limpet_rtnl::Socket;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::agent::{Agent, Patience, api_error, not_joined, sentence};
use crate::attachments::network_problem;
use crate::layout::device_name;
use crate::veths::VethError;

/// How long it is taken for granted that there is room. Runtimes ask every 5 s on each host, and the controller has the
/// pools to count.
const ROOM_KEPT: Duration = Duration::from_secs(20);

/// How long it is taken for granted that there is none.
const NO_ROOM_KEPT: Duration = Duration::from_secs(3);

/// Says what stands in the way of an ADD.
///
/// Containers suffer only from what is wrong on this host: with no controller all goes on as it was.
pub(crate) async fn readiness(agent: &Agent, network: &NetworkName) -> Readiness {
    let problem =
        |error: ApiError| Problem { connectivity: error.code == ErrorCode::NetworkNotReady, error };
    let pass = agent.passes.borrow().clone();
    let here = network_problem(&agent.state(), &pass, network);
    let cut = cut_off(agent, network).await;
    let failures =
        pass.failures.iter().map(|words| ApiError::new(ErrorCode::NetworkNotReady, words.clone()));
    let recalled = agent.state().recalled_words(&agent.identity.host, Instant::now());
    let elsewhere = match (agent.session(), unheard(agent)) {
        (Err(error), _) => Some(match &recalled {
            Some(words) => ApiError { message: format!("{}; {words}", error.message), ..error },
            None => error,
        }),
        (Ok(_), Some(error)) => Some(error),
        // Whether a network that is not there is full is no question.
        (Ok(_), None) if here.is_some() => None,
        (Ok(_), None) => full(agent, network).await,
    };
    let mut problems: Vec<Problem> =
        elsewhere.into_iter().chain(here).chain(cut).map(problem).collect();
    problems.extend(failures.map(problem));
    let mut told = Vec::new();
    problems.retain(|problem| {
        let news = !told.contains(&problem.error.message);
        told.push(problem.error.message.clone());
        news
    });
    Readiness { problems }
}

/// Why no controller is asked, if none answered last time.
fn unheard(agent: &Agent) -> Option<ApiError> {
    let state = agent.state();
    state.contact.silent.as_ref().map(|_| not_joined(&state))
}

/// Why this host's containers reach no other host, as far as the host itself can see: it has no underlay address any
/// more, the device that has it is down or unplugged, or the network's own device is gone.
async fn cut_off(agent: &Agent, network: &NetworkName) -> Option<ApiError> {
    let not_ready = |words: String| Some(ApiError::new(ErrorCode::NetworkNotReady, words));
    let (reach, device) = {
        let state = agent.state();
        let device = state.view.networks.get(network).map(|network| device_name(network.index));
        (
            state
                .reach
                .as_ref()
                .map(|reach| reach.as_ref().map(|reach| reach.underlay).map_err(Clone::clone)),
            device,
        )
    };
    let underlay = match reach? {
        Ok(underlay) => underlay,
        Err(words) => return not_ready(format!("the underlay is lost: {words}")),
    };
    match look(underlay, device.as_deref()).await {
        Ok(words) => not_ready(words?),
        Err(error) => not_ready(format!("cannot look at the underlay: {}", sentence(&error))),
    }
}

/// What is wrong with the devices that packets to other hosts take.
async fn look(underlay: IpAddr, device: Option<&str>) -> Result<Option<String>, VethError> {
    let mut socket = Socket::open()?;
    let addresses = socket.addresses(None).await?;
    let carrier = addresses.iter().find(|found| found.address.address == underlay);
    let Some(carrier) = carrier.map(|found| found.address.device) else {
        return Ok(Some(format!("the underlay is lost: no device has the address {underlay}")));
    };
    if let Some(link) = socket.link_at(carrier).await?
        && !(link.up && link.carrier)
    {
        let (name, state) = (link.name, if link.up { "has no carrier" } else { "is down" });
        return Ok(Some(format!("the underlay is lost: {name}, which has {underlay}, {state}")));
    }
    let Some(name) = device else { return Ok(None) };
    Ok(match socket.link_named(name).await? {
        None => Some(format!("the device {name} is missing")),
        Some(link) if !link.up => Some(format!("the device {name} is down")),
        Some(_) => None,
    })
}

/// Whether a family of a network has no address left for this host, as the controller counts them.
async fn full(agent: &Agent, network: &NetworkName) -> Option<ApiError> {
    let ask = || async {
        let call = Call::new(Method::GET, paths::POOLS);
        agent.ask::<Listing<PoolUse>>(&call, Patience::Short).await.map(|pools| pools.items)
    };
    let labels = {
        let state = agent.state();
        let host = state.view.hosts.get(&agent.identity.host);
        host.map(|host| host.labels.clone()).unwrap_or_default()
    };
    agent.pools.no_room(ask, |pools| no_room(pools, network, &labels)).await
}

/// The pools as the controller counted them last.
#[derive(Default)]
pub(crate) struct KeptPools(Mutex<Option<(Instant, Vec<PoolUse>)>>);

impl KeptPools {
    /// What `judge` says of the pools, which `ask` gets if what is kept is too old. Who comes meanwhile waits for the same
    /// answer.
    async fn no_room<F: Future<Output = Result<Vec<PoolUse>, ClientError>>>(
        &self,
        ask: impl FnOnce() -> F,
        judge: impl Fn(&[PoolUse]) -> Option<ApiError>,
    ) -> Option<ApiError> {
        let mut kept = self.0.lock().await;
        if let Some((since, pools)) = kept.as_ref() {
            let verdict = judge(pools);
            let lasts = if verdict.is_some() { NO_ROOM_KEPT } else { ROOM_KEPT };
            if since.elapsed() < lasts {
                return verdict;
            }
        }
        match ask().await {
            Ok(pools) => {
                let verdict = judge(&pools);
                *kept = Some((Instant::now(), pools));
                verdict
            }
            Err(error) => Some(api_error(error)),
        }
    }

    /// Something is different from what was counted: a claim was refused.
    pub(crate) async fn forget(&self) {
        *self.0.lock().await = None;
    }
}

/// Why the pools of a network give a host nothing. Pools that only some names or namespaces may use count: a container of
/// those could be served.
fn no_room(
    pools: &[PoolUse],
    network: &NetworkName,
    labels: &BTreeMap<LabelKey, String>,
) -> Option<ApiError> {
    let may_use = |pool: &&PoolUse| {
        let wanted = &pool.pool.select.host_labels;
        wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
    };
    let of_network = || {
        let active = |pool: &&PoolUse| pool.pool.state == PoolState::Active;
        pools.iter().filter(|pool| pool.pool.network == *network).filter(active)
    };
    if of_network().find(may_use).is_none() {
        let whom = if of_network().next().is_some() { " to this host" } else { "" };
        let words = format!("network {network} has no pool that gives addresses{whom}");
        return Some(ApiError::new(ErrorCode::NoPool, words));
    }
    Family::BOTH.into_iter().find_map(|family| {
        let of_family: Vec<_> = of_network().filter(|pool| pool.pool.family() == family).collect();
        let usable: Vec<_> = of_family.iter().copied().filter(may_use).collect();
        let left = |pool: &&PoolUse| pool.usage.free.saturating_add(pool.usage.cooling);
        if of_family.is_empty() || usable.iter().any(|pool| left(pool) > 0) {
            return None;
        }
        let counted = usable.iter().map(|PoolUse { pool, usage }| {
            let (name, size) = (&pool.name, usage.size);
            format!("{name} ({} held, {} reserved of {size})", usage.held, usage.reserved)
        });
        let counted = counted.collect::<Vec<_>>().join(", ");
        let words = format!("no {family} pool of network {network} has a free address: {counted}");
        Some(ApiError::new(ErrorCode::PoolFull, words))
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_controller_is_asked_seldom_and_sooner_when_there_is_no_room() {
        let (kept, asked) = (KeptPools::default(), AtomicU32::new(0));
        let look = |full: bool| {
            let ask = || async {
                asked.fetch_add(1, Ordering::Relaxed);
                Ok(vec![])
            };
            let verdict = move |_: &[PoolUse]| full.then(|| ApiError::new(ErrorCode::PoolFull, ""));
            kept.no_room(ask, verdict)
        };
        let second = Duration::from_secs(1);
        for _ in 0..20 {
            assert!(look(false).await.is_none());
            tokio::time::advance(second).await;
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        assert!(look(true).await.is_some());
        assert_eq!(asked.load(Ordering::Relaxed), 2);
        tokio::time::advance(NO_ROOM_KEPT).await;
        assert!(look(true).await.is_some());
        assert_eq!(asked.load(Ordering::Relaxed), 3);
        // An ADD was refused.
        kept.forget().await;
        assert!(look(false).await.is_none());
        assert_eq!(asked.load(Ordering::Relaxed), 4);
    }
}

//! Edge: DEL: a container's interface goes, and then its addresses.

use limpet_net_types::{Uid, host_ifname};
use limpet_rtnl::{Request, Socket};
use tracing::{debug, info, warn};

use crate::agent::Agent;
use crate::attach::{AttachError, Container};
use crate::error::Failure;
use crate::host_end::HostEnd;
use crate::request::Del;
use crate::shape::unshape;

/// Carries out DEL.
///
/// The container is cut off first: only then may somebody else be given its addresses. Nothing that is missing
/// is an error (the interface, the namespace, the attachment), and neither is an agent that is away: the kernel is
/// the journal. The plugin then deletes the interface itself, and the agent, when it is back, ends the
/// attachment whose interface is not there. Only a kernel that refuses fails DEL, since the addresses are in
/// use for as long as it does.
pub(crate) async fn del(request: &Del) -> Result<(), Failure> {
    let Del { config, target, netns } = request;
    let name = host_ifname(&config.network, &target.container, &target.ifname);
    let mut host = Socket::open().map_err(|error| AttachError::from(error).failure())?;
    let end = cut_off(&mut host, &name).await.map_err(|error| error.failure())?;

    if let (Some(end), Some(path)) = (&end, netns) {
        // The name inside is a courtesy to the next ADD; most of the time the namespace goes next.
        let freed = match Container::open(path) {
            Ok(mut container) => end.free_name(&mut container, target.ifname.as_str()).await,
            Err(error) => Err(error),
        };
        if let Err(error) = freed {
            debug!(%error, ifname = %target.ifname, "name not freed");
        }
    }

    // Nothing goes through it any more, and it is no reason to keep the addresses.
    let shaper = unshape(&mut host, &name).await.unwrap_or_else(|error| {
        warn!(%error, interface = %name, "cannot take its limits away");
        None
    });
    if !release(request, end.as_ref().and_then(|end| end.uid)).await {
        for index in end.iter().map(|end| end.index).chain(shaper) {
            // It is down and dead; whoever comes next deletes it.
            if let Err(error) = host.request(&Request::DelLink(index)).await {
                warn!(%error, interface = %name, "dead interface not deleted");
            }
        }
    }
    Ok(())
}

/// Takes the interface out of use and returns it, if there is one.
async fn cut_off(host: &mut Socket, name: &str) -> Result<Option<HostEnd>, AttachError> {
    let end = HostEnd::find(host, name).await?;
    if let Some(end) = end.as_ref().filter(|end| !end.is_dead) {
        end.bury(host).await?;
    }
    Ok(end)
}

/// Has the addresses released, and returns whether the agent is there: if it is, it deletes the interface.
///
/// Without a uid whatever there is under the container's ID is ended: an ID is never used for another container.
async fn release(request: &Del, uid: Option<Uid>) -> bool {
    let detached = match Agent::connect(&request.config).await {
        Ok(mut agent) => agent.detach(&request.target, uid).await,
        Err(error) => Err(error),
    };
    match detached {
        Ok(detached) => {
            debug!(?detached, "detached");
            true
        }
        Err(error) if error.is_answer() => {
            info!(%error, "attachment left to the agent");
            true
        }
        Err(error) => {
            warn!(error = %error.failure(), "agent away, the attachment ends when it is back");
            false
        }
    }
}

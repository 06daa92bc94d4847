//! Edge: CHECK: whether the attachment is still as ADD left it; it reads everything and compares at the end.

use limpet_api::ErrorCode;
use limpet_api::socket::Attach;
use limpet_rtnl::{FoundAddress, FoundNeighbour, Link, ReadError, Route, RouteFilter, Socket};

use crate::agent::{Agent, AgentError};
use crate::attach::{AttachError, Container, MAIN, PROTOCOL};
use crate::audit::{Found, Inside, Outside, audit};
use crate::bandwidth::Bandwidth;
use crate::error::{Code, Failure};
use crate::request::Check;
use crate::result::CniResult;
use crate::shape;

/// Carries out CHECK.
///
/// A runtime may take a failure for final, so an agent that is away is code 11 and nothing else.
pub(crate) async fn check(request: &Check) -> Result<(), Failure> {
    let prev = CniResult::read(&request.prev_result)?;
    let attach = match ask(request).await {
        Ok(attach) => attach,
        Err(AgentError::Refused(error)) if error.code == ErrorCode::AttachmentNotFound => {
            return Err(Failure::new(Code::Broken, error.message));
        }
        Err(error) => return Err(error.failure()),
    };
    let found = read(request, &attach).await.map_err(|error| error.failure())?;
    let bandwidth = request.config.bandwidth;
    let problems = audit(&prev, &attach, (&request.target.ifname, bandwidth), &found);
    match problems.as_slice() {
        [] => Ok(()),
        [first, ..] => Err(Failure {
            code: Code::Broken,
            message: format!("the attachment is not as it should be: {first}"),
            details: problems.join("; "),
        }),
    }
}

async fn ask(request: &Check) -> Result<Attach, AgentError> {
    Agent::connect(&request.config).await?.attachment(&request.target).await
}

async fn read(request: &Check, attach: &Attach) -> Result<Found, AttachError> {
    let Check { config, target, netns, .. } = request;
    let mut container = Container::open(netns)?;
    let mut host = Socket::open()?;
    let inside = match container.socket().link_named(target.ifname.as_str()).await? {
        Some(link) => Some(inside(container.socket(), link).await?),
        None => None,
    };
    let outside = match host.link_named(&attach.host_ifname).await? {
        Some(link) => Some(outside(&mut host, link, (attach.table, config.bandwidth)).await?),
        None => None,
    };
    Ok(Found { inside, outside })
}

async fn inside(socket: &mut Socket, link: Link) -> Result<Inside, ReadError> {
    let addresses: Vec<FoundAddress> = socket.addresses(Some(link.index)).await?;
    let routes: Vec<Route> = socket.routes(RouteFilter { table: MAIN, protocol: 0 }).await?;
    let neighbours: Vec<FoundNeighbour> = socket.neighbours(Some(link.index)).await?;
    Ok(Inside { link, addresses, routes, neighbours })
}

async fn outside(
    socket: &mut Socket,
    link: Link,
    (table, bandwidth): (u32, Bandwidth),
) -> Result<Outside, ReadError> {
    let routes = socket.routes(RouteFilter { table, protocol: PROTOCOL }).await?;
    let neighbours = socket.neighbours(Some(link.index)).await?;
    let shaping = shape::read(socket, &link, bandwidth).await?;
    Ok(Outside { link, routes, neighbours, shaping })
}

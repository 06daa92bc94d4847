//! Edge: CHECK: whether the attachment is still as ADD left it; it reads everything and compares at the end.

use std::time::Duration;

use limpet_api::ErrorCode;
use limpet_api::socket::Attach;
use limpet_rtnl::{Link, OpenError, ReadError, RouteFilter, Socket, has_filter_table, sysctl};
use tokio::time::{Instant, sleep};

use crate::agent::{Agent, AgentError};
use crate::attach::{AttachError, Container, MAIN, PROTOCOL, host_settings};
use crate::audit::{Found, Inside, Outside, Wanted, audit};
use crate::bandwidth::Bandwidth;
use crate::error::{Code, Failure};
use crate::part;
use crate::request::Check;
use crate::result::CniResult;
use crate::shape;

/// How long what is wrong is looked at again and again. The agent mends most of it within a second, and a runtime may
/// take what it is told here for final.
const PATIENCE: Duration = Duration::from_secs(2);

/// The pause between two looks.
const PAUSE: Duration = Duration::from_millis(100);

/// Carries out CHECK.
///
/// A runtime may take a failure for final, so whatever may pass by itself is code 11 and nothing else: the agent is away,
/// or has just started, or hears no controller.
pub(crate) async fn check(request: &Check) -> Result<(), Failure> {
    let prev = CniResult::read(&request.prev_result)?;
    let deadline = Instant::now() + PATIENCE.min(request.config.timeout);
    loop {
        let attach = ask(request).await?;
        let found = read(request, &attach).await.map_err(|error| error.failure())?;
        let (ifname, bandwidth) = (&request.target.ifname, request.config.bandwidth);
        let problems = audit(&Wanted { prev: &prev, attach: &attach, ifname, bandwidth }, &found);
        let Some(first) = problems.first() else {
            return match attach.doubt {
                Some(doubt) => Err(AgentError::Refused(doubt).failure()),
                None => Ok(()),
            };
        };
        if Instant::now() + PAUSE >= deadline {
            return Err(Failure {
                code: Code::Broken,
                message: format!("the attachment is not as it should be: {first}"),
                details: problems.join("; "),
            });
        }
        sleep(PAUSE).await;
    }
}

async fn ask(request: &Check) -> Result<Attach, Failure> {
    let asked = match Agent::connect(&request.config).await {
        Ok(mut agent) => agent.attachment(&request.target).await,
        Err(error) => Err(error),
    };
    asked.map_err(|error| match error {
        AgentError::Refused(error) if error.code == ErrorCode::AttachmentNotFound => {
            Failure::new(Code::Broken, error.message)
        }
        error => error.failure(),
    })
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
        Some(link) => Some(outside(&mut host, link, (attach, config.bandwidth)).await?),
        None => None,
    };
    let device = match &attach.device {
        Some(name) => host.link_named(name).await?,
        None => None,
    };
    let filter = attach.filter.as_deref().map(has_filter_table).transpose();
    let filter = filter.map_err(|error| AttachError::Open(OpenError::Socket(error)))?;
    Ok(Found { inside, outside, device, filter })
}

async fn inside(socket: &mut Socket, link: Link) -> Result<Inside, ReadError> {
    let addresses = socket.addresses(Some(link.index)).await?;
    let mut routes = Vec::new();
    for table in [MAIN, part::table_of(link.index)] {
        routes.extend(socket.routes(RouteFilter { table, protocol: 0 }).await?);
    }
    let rules = socket.rules().await?;
    let neighbours = socket.neighbours(Some(link.index)).await?;
    Ok(Inside { link, addresses, routes, rules, neighbours })
}

async fn outside(
    socket: &mut Socket,
    link: Link,
    (attach, bandwidth): (&Attach, Bandwidth),
) -> Result<Outside, ReadError> {
    let routes = socket.routes(RouteFilter { table: attach.table, protocol: PROTOCOL }).await?;
    let neighbours = socket.neighbours(Some(link.index)).await?;
    let shaping = shape::read(socket, &link, bandwidth).await?;
    let settings = host_settings(attach)
        .filter_map(|setting| Some((setting, sysctl::read(&setting.path(&link.name)).ok()?)));
    Ok(Outside { settings: settings.collect(), link, routes, neighbours, shaping })
}

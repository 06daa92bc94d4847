//! Edge: ADD: a container gets its interface. The order is the design.

use limpet_api::socket::Attach;
use limpet_net_types::host_ifname;
use limpet_rtnl::Socket;
use serde_json::Value;

use crate::agent::{Agent, AgentError};
use crate::attach::{AttachError, Container, Order};
use crate::error::{Code, Failure};
use crate::part::Parts;
use crate::request::Add;
use crate::result::CniResult;

/// Why ADD failed, sorted by what is left behind.
#[derive(Debug, thiserror::Error)]
enum AddError {
    /// The interface could not be made; what there was of it is gone again.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The agent gave no addresses, or did not take notice that the interface is up.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// Plugin and agent disagree about the name of the host's end, by which DEL must find it.
    #[error("the agent calls the host's end {theirs}, the plugin {ours}: their versions differ")]
    Mismatch { theirs: String, ours: String },
}

impl From<AddError> for Failure {
    fn from(error: AddError) -> Self {
        match &error {
            AddError::Attach(error) => error.failure(),
            AddError::Agent(error) => error.failure(),
            AddError::Mismatch { .. } => Self::of(Code::Mismatch, &error),
        }
    }
}

/// Carries out ADD and returns its result.
///
/// The namespace is opened first, because code 3 tells the runtime that no DEL is needed, which is true only
/// while no address is held. The claim is one request, and the connection it went over stays open until
/// the interface is confirmed: while it is open the agent answers for the attachment. A failure after the claim
/// takes the interface away and leaves the addresses to the DEL that follows every failed ADD (CNI
/// specification, section 3).
pub(crate) async fn add(request: &Add) -> Result<Value, Failure> {
    let prev = request.config.prev_result.as_ref();
    let mut result = prev.map(CniResult::read).transpose()?.unwrap_or_default();
    let (attach, parts) = attach(request).await?;
    result.add((&attach, parts), request.target.ifname.as_str(), &request.wanted.netns);
    result.set_dns(request.config.dns.as_ref());
    Ok(result.render(request.config.version))
}

async fn attach(request: &Add) -> Result<(Attach, Parts), AddError> {
    let Add { config, target, netns, wanted } = request;
    let mut container = Container::open(netns)?;
    container.refuse_existing(target.ifname.as_str()).await?;
    let mut host = Socket::open().map_err(AttachError::from)?;

    let mut agent = Agent::connect(config).await?;
    let attach = agent.attach(target, wanted).await?;
    let ours = host_ifname(&config.network, &target.container, &target.ifname);
    if attach.host_ifname != ours {
        return Err(AddError::Mismatch { theirs: attach.host_ifname, ours });
    }

    let (ifname, bandwidth, default_route) =
        (target.ifname.as_str(), config.bandwidth, config.default_route);
    let order = Order { attach: &attach, ifname, bandwidth, default_route };
    let parts = order.carry_out(&mut host, &mut container).await?;
    if let Err(error) = agent.confirm(target, attach.attachment.uid).await {
        order.undo(&mut host, &mut container).await;
        return Err(error.into());
    }
    Ok((attach, parts))
}

//! Edge: asking the host's agent over its unix socket.

use std::time::{Duration, Instant};

use limpet_api::client::{Call, ClientError, Connection, Endpoint, Method};
use limpet_api::paths;
use limpet_api::socket::{
    Attach, ConfirmRequest, DetachQuery, Detached, GcAnswer, GcRequest, Readiness,
};
use limpet_api::{ApiError, ErrorCode, host::Wanted};
use limpet_net_types::{NetworkName, Uid};
use serde::de::DeserializeOwned;

use crate::config::Config;
use crate::error::{Code, Failure};
use crate::request::Target;

/// How long DEL waits for somebody to answer the socket: its agent is on this very host.
const CONNECT: Duration = Duration::from_secs(5);

/// A connection to the agent, and how long there is left to use it.
pub(crate) struct Agent {
    connection: Connection,
    socket: String,
    network: NetworkName,
    deadline: Instant,
}

/// Why the agent did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentError {
    /// Nobody answers, or not in time, or the connection broke. Whether it was done is not known.
    #[error("the agent at {socket} does not answer")]
    Away { socket: String, source: ClientError },
    /// It answers what nobody understands.
    #[error("the agent at {socket} is not understood")]
    NotUnderstood { socket: String, source: ClientError },
    /// It says no.
    #[error("{}", .0.message)]
    Refused(ApiError),
}

impl AgentError {
    /// The failure that it is for a runtime.
    pub(crate) fn failure(&self) -> Failure {
        match self {
            Self::Away { .. } => Failure::of(Code::TryLater, self),
            Self::NotUnderstood { .. } => Failure::of(Code::Mismatch, self),
            Self::Refused(error) => {
                // An earlier interface of this container is still there; it may be about to go.
                let later = error.code.is_transient() || error.code == ErrorCode::AttachmentPresent;
                let code = if later { Code::TryLater } else { Code::Refused };
                let mut details = format!("code {}", error.code);
                if !error.details.is_null() {
                    details = format!("{details}, {}", error.details);
                }
                Failure { code, message: error.message.clone(), details }
            }
        }
    }

    /// Whether the agent is there and has answered.
    pub(crate) fn is_answer(&self) -> bool {
        matches!(self, Self::Refused(_))
    }
}

impl Agent {
    /// Connects to the socket that the configuration names.
    pub(crate) async fn connect(config: &Config) -> Result<Self, AgentError> {
        let deadline = Instant::now() + config.timeout;
        let endpoint = Endpoint::Unix(config.socket.clone());
        let (socket, network) = (config.socket.display().to_string(), config.network.clone());
        match Connection::open(&endpoint, config.timeout.min(CONNECT)).await {
            Ok(connection) => Ok(Self { connection, socket, network, deadline }),
            Err(source) => Err(AgentError::Away { socket, source }),
        }
    }

    /// Claims what the container is to be given.
    pub(crate) async fn attach(
        &mut self,
        target: &Target,
        wanted: &Wanted,
    ) -> Result<Attach, AgentError> {
        let call = Call::with_body(Method::PUT, self.path(target), wanted);
        self.call(call).await
    }

    /// Says that the interface is up. Until then the agent answers for the attachment because the connection
    /// is open; from then on because it finds the interface.
    pub(crate) async fn confirm(&mut self, target: &Target, uid: Uid) -> Result<(), AgentError> {
        let path = format!("{}/confirm", self.path(target));
        self.call(Call::with_body(Method::POST, path, &ConfirmRequest { uid })).await
    }

    /// Asks what the container was given.
    pub(crate) async fn attachment(&mut self, target: &Target) -> Result<Attach, AgentError> {
        self.call(Ok(Call::new(Method::GET, self.path(target)))).await
    }

    /// Ends the attachment: this incarnation, or whichever there is.
    pub(crate) async fn detach(
        &mut self,
        target: &Target,
        uid: Option<Uid>,
    ) -> Result<Detached, AgentError> {
        let call = Call::new(Method::DELETE, self.path(target));
        self.call(call.with_query(&DetachQuery { uid })).await
    }

    /// Asks whether an ADD could be served.
    pub(crate) async fn readiness(&mut self) -> Result<Readiness, AgentError> {
        self.call(Ok(Call::new(Method::GET, paths::socket_readiness(&self.network)))).await
    }

    /// Has what the runtime does not know of any more collected.
    pub(crate) async fn collect(&mut self, request: &GcRequest) -> Result<GcAnswer, AgentError> {
        self.call(Call::with_body(Method::POST, paths::route::SOCKET_GC, request)).await
    }

    fn path(&self, target: &Target) -> String {
        paths::socket_attachment(&self.network, &target.container, &target.ifname)
    }

    async fn call<A: DeserializeOwned>(
        &mut self,
        call: Result<Call, ClientError>,
    ) -> Result<A, AgentError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let answer = match call {
            Ok(call) => self.connection.call(&call, left).await,
            Err(error) => Err(error),
        };
        let socket = self.socket.clone();
        answer.map_err(|error| match error {
            ClientError::Refused(error) => AgentError::Refused(error),
            source @ ClientError::Garbage { .. } => AgentError::NotUnderstood { socket, source },
            source => AgentError::Away { socket, source },
        })
    }
}

//! Edge: STATUS: whether an ADD could be served now.

use crate::agent::Agent;
use crate::config::Config;
use crate::error::{Code, Failure};

/// Carries out STATUS.
///
/// An agent that is away cannot serve an ADD; what is attached goes on without it.
pub(crate) async fn status(config: &Config) -> Result<(), Failure> {
    let asked = match Agent::connect(config).await {
        Ok(mut agent) => agent.readiness().await,
        Err(error) => Err(error),
    };
    let problems = match asked {
        Ok(readiness) => readiness.problems,
        Err(error) => return Err(Failure { code: Code::NotAvailable, ..error.failure() }),
    };
    // What may have cut containers off is said first: it is the worse of the two.
    let limited = problems.iter().find(|problem| problem.connectivity);
    let Some(first) = limited.or(problems.first()) else { return Ok(()) };
    let all: Vec<_> = problems.iter().map(|problem| problem.error.to_string()).collect();
    Err(Failure {
        code: if limited.is_some() { Code::LimitedConnectivity } else { Code::NotAvailable },
        message: first.error.message.clone(),
        details: all.join("; "),
    })
}

//! Edge: asks hosts about their kernels and how they are, and waits for what they report.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use limpet_api::check::REPORT_SECONDS;
use limpet_api::config::Role;
use limpet_api::host::ReportWanted;
use limpet_api::{ApiError, ErrorCode};
use limpet_net_types::{HostName, Token};
use tokio::time::{Instant, sleep};
use tracing::debug;

use super::App;
use crate::random;
use crate::rules::reports;
use crate::state::State;

/// How long hosts have to report.
const PATIENCE: Duration = Duration::from_secs(REPORT_SECONDS);

/// How often reports are looked for.
const LOOK: Duration = Duration::from_millis(100);

/// What hosts report, and those that did not.
pub(super) type Reports = (BTreeMap<HostName, reports::Answer>, Vec<HostName>);

/// Asks `hosts`, and returns what they report, and who did not.
pub(super) async fn ask(
    app: &App,
    hosts: Vec<HostName>,
    repair: bool,
) -> Result<Reports, ApiError> {
    let id = random::token().map_err(|error| {
        let text = format!("the system gives no random bits: {error}");
        ApiError::new(ErrorCode::Internal, text)
    })?;
    let answers = answers(app, &hosts, ReportWanted { id, repair }).await;
    // Also where the store failed meanwhile: a question that is left makes its host report once more.
    withdraw(app, &hosts, id).await;
    let answers = answers?;
    let silent = hosts.into_iter().filter(|host| !answers.contains_key(host)).collect();
    Ok((answers, silent))
}

async fn answers(
    app: &App,
    hosts: &[HostName],
    wanted: ReportWanted,
) -> Result<BTreeMap<HostName, reports::Answer>, ApiError> {
    let id = wanted.id;
    let asked = hosts.iter().cloned().map(|host| {
        let wanted = wanted.clone();
        app.book.decide(move |state| reports::ask(state, &host, &wanted))
    });
    // All are asked before it is said that one could not be: what is asked can be withdrawn.
    join_all(asked).await.into_iter().collect::<Result<Vec<_>, _>>()?;
    let deadline = Instant::now() + PATIENCE;
    let mut answers = BTreeMap::new();
    while answers.len() < hosts.len() && Instant::now() < deadline {
        sleep(LOOK).await;
        answers = app.book.read(move |state| reports::answers(state, id)).await?;
    }
    Ok(answers)
}

async fn withdraw(app: &App, hosts: &[HostName], id: Token) {
    let withdrawn = hosts
        .iter()
        .cloned()
        .map(|host| app.book.decide(move |state| reports::withdraw(state, &host, id)));
    for error in join_all(withdrawn).await.into_iter().filter_map(Result::err) {
        // It goes with this controller.
        debug!(%error, "a question was not withdrawn");
    }
}

/// The hosts whose agents have joined and can say what is in their kernels.
pub(super) fn joined(state: &State) -> Vec<HostName> {
    let hosts = state.hosts().map(|entry| &entry.record);
    let nodes =
        hosts.filter(|host| host.is(Role::Node) || host.is(Role::Member) || host.is(Role::Gateway));
    nodes.filter(|host| state.session(&host.name).is_some()).map(|host| host.name.clone()).collect()
}

//! Edge: how hosts are: each is asked, and its answer passed on.

use std::collections::BTreeSet;

use axum::extract::State as Shared;
use axum::response::Response;
use limpet_api::doctor::{DoctorLine, DoctorRequest};
use limpet_api::{ApiError, ErrorCode};
use limpet_net_types::HostName;
use tokio::sync::mpsc;

use super::asking::{ask, joined};
use super::backup::{json_line, streamed};
use super::extract::Body;
use super::{App, Failure};
use crate::state::State;

/// How many lines may wait for a caller who reads slowly.
const QUEUE: usize = 64;

pub(super) async fn doctor(
    Shared(app): Shared<App>,
    Body(request): Body<DoctorRequest>,
) -> Result<Response, Failure> {
    let hosts = chosen(&app, request.hosts).await?;
    let (lines, heard) = mpsc::channel(QUEUE);
    let asking = app.clone();
    app.tasks.spawn(async move {
        // Whoever asked may have gone.
        let tell = async |line: &DoctorLine| drop(lines.send(json_line(line)).await);
        tell(&DoctorLine::Doing(format!("asking {} hosts", hosts.len()))).await;
        let (reports, silent) = match ask(&asking, hosts, false).await {
            Ok(asked) => asked,
            Err(error) => return tell(&DoctorLine::Failed(error)).await,
        };
        for (host, answer) in reports {
            let (health, findings, more) = (answer.health, answer.findings, answer.more);
            tell(&DoctorLine::Host { host, health, findings, more }).await;
        }
        for host in silent {
            tell(&DoctorLine::Unanswered(host)).await;
        }
        tell(&DoctorLine::Done).await;
    });
    Ok(streamed(heard))
}

/// The hosts that were named, which must be there, or all that have joined.
async fn chosen(app: &App, named: Vec<HostName>) -> Result<Vec<HostName>, ApiError> {
    if named.is_empty() {
        return app.book.read(joined).await;
    }
    let named: BTreeSet<HostName> = named.into_iter().collect();
    let looked_for = named.clone();
    let missing =
        move |state: &State| looked_for.iter().find(|host| state.host(host).is_none()).cloned();
    match app.book.read(missing).await? {
        Some(host) => {
            Err(ApiError::new(ErrorCode::HostNotFound, format!("there is no host {host}")))
        }
        None => Ok(named.into_iter().collect()),
    }
}

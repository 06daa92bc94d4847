//! Edge: a check: the store against itself, and each host's kernel against the store.

use axum::extract::State as Shared;
use axum::http::StatusCode;
use axum::response::Response;
use futures_util::future::try_join_all;
use limpet_api::ApiError;
use limpet_api::check::{CheckLine, CheckRequest, Inconsistency};
use limpet_api::host::Report;
use limpet_net_types::HostName;
use tokio::sync::mpsc;

use super::asking::{Reports, ask, joined};
use super::backup::{json_line, streamed};
use super::extract::{Body, Params};
use super::{App, Done, Failure};
use crate::audit;
use crate::rules::reports;

/// How many lines may wait for a caller who reads slowly.
const QUEUE: usize = 64;

pub(super) async fn report(
    Shared(app): Shared<App>,
    Params(host): Params<HostName>,
    Body(report): Body<Report>,
) -> Done {
    app.book.decide(move |state| reports::answer(state, &host, &report)).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn check(
    Shared(app): Shared<App>,
    Body(request): Body<CheckRequest>,
) -> Result<Response, Failure> {
    let (lines, heard) = mpsc::channel(QUEUE);
    let checking = Checking { app: app.clone(), lines };
    app.tasks.spawn(async move {
        let last = match checking.run(request.repair).await {
            Ok(hosts) => CheckLine::Done { hosts },
            Err(error) => CheckLine::Failed(error),
        };
        checking.tell(&last).await;
    });
    Ok(streamed(heard))
}

struct Checking {
    app: App,
    lines: mpsc::Sender<bytes::Bytes>,
}

impl Checking {
    /// Whoever asked may have gone.
    async fn tell(&self, line: &CheckLine) {
        let _ = self.lines.send(json_line(line)).await;
    }

    async fn doing(&self, what: String) {
        self.tell(&CheckLine::Doing(what)).await;
    }

    async fn run(&self, repair: bool) -> Result<u64, ApiError> {
        if repair {
            self.doing("repairing the store".to_owned()).await;
            let repaired = self.mend().await?;
            self.tell(&CheckLine::Repaired(repaired)).await;
        }
        self.doing("checking the store".to_owned()).await;
        for found in self.app.book.read(audit::find).await? {
            let inconsistency = Inconsistency {
                kind: found.kind,
                subject: found.subject.key(),
                what: found.what,
                repair: found.repair,
                repairable: found.mend.is_some(),
            };
            self.tell(&CheckLine::Store(inconsistency)).await;
        }
        if repair {
            self.doing("hosts repair what they can".to_owned()).await;
            self.ask(true).await?;
        }
        let (reports, silent) = self.ask(false).await?;
        let hosts = u64::try_from(reports.len()).unwrap_or(u64::MAX);
        for (host, answer) in reports {
            for finding in answer.findings {
                self.tell(&CheckLine::Host { host: host.clone(), finding }).await;
            }
            if answer.more > 0 {
                self.tell(&CheckLine::More { host, count: answer.more }).await;
            }
        }
        for host in silent {
            self.tell(&CheckLine::Unchecked(host)).await;
        }
        Ok(hosts)
    }

    /// Repairs what can be repaired; one repair may uncover another.
    async fn mend(&self) -> Result<u64, ApiError> {
        let mut repaired = 0;
        for _ in 0..4 {
            let found = self.app.book.read(audit::find).await?;
            let mends: Vec<_> = found.into_iter().filter_map(|found| found.mend).collect();
            if mends.is_empty() {
                break;
            }
            for some in mends.chunks(256) {
                let mending = some
                    .iter()
                    .cloned()
                    .map(|mend| self.app.book.decide(move |state| audit::mend(state, &mend)));
                let done = try_join_all(mending).await?;
                let count = done.iter().filter(|(changed, _)| *changed).count();
                repaired += u64::try_from(count).unwrap_or(0);
            }
        }
        Ok(repaired)
    }

    /// Asks every host that runs an agent.
    async fn ask(&self, repair: bool) -> Result<Reports, ApiError> {
        let hosts = self.app.book.read(joined).await?;
        self.doing(format!("asking {} hosts", hosts.len())).await;
        ask(&self.app, hosts, repair).await
    }
}

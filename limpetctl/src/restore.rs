//! Edge: `limpetctl restore`: a backup into an empty store, and whom the store waits for afterwards.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Subcommand;
use limpet_api::backup::{BackupError, Footer, Header, Line, MOST_LINE, Reader};
use limpet_api::client::Method;
use limpet_api::paths;
use limpet_api::restore::{RestoreCause, RestoreLine, RestoreStatus, Waive};
use limpet_api::{ApiError, ErrorCode};
use limpet_net_types::HostName;

use crate::answer::{self, Answer};
use crate::cli::{Done, Misuse, Output};
use crate::controller::Controller;
use crate::progress::{Progress, mebibytes};
use crate::table;

/// What `restore` takes: a file, or a verb.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// The backup to restore into an empty store. Repeated, it goes on where an earlier attempt broke off
    file: Option<PathBuf>,
}

/// What to do.
#[derive(Debug, Subcommand)]
enum Verb {
    /// Show whether a restore is under way, and which hosts are waited for after one
    Status,
    /// Do not wait for hosts that do not come back; what lives on them is severed if its address is another's by then
    Waive {
        /// The hosts
        #[arg(required = true)]
        host: Vec<HostName>,
    },
    /// Delete what a restore that broke off has written
    Discard {
        /// Do it; without, what would be deleted is shown
        #[arg(long)]
        yes: bool,
    },
}

/// Carries out one command.
pub(crate) fn run(args: &Args, controller: &Controller, output: Output) -> anyhow::Result<Done> {
    let status = || -> anyhow::Result<Answer<RestoreStatus>> {
        controller.read(paths::RESTORE).context("asking about restores")
    };
    let answer = match (&args.verb, &args.file) {
        (None, Some(file)) => restore(file, &status()?.record, controller)?,
        (None, None) => {
            return Err(Misuse("name the file to restore, or a verb: --help".to_owned()).into());
        }
        (Some(Verb::Status), _) => status()?,
        (Some(Verb::Waive { host }), _) => {
            let waive = Waive { hosts: host.clone() };
            controller.post(paths::RESTORE_WAIVE, &waive).context("waiving hosts")?
        }
        (Some(Verb::Discard { yes: true }), _) => {
            let lines = |each: &mut dyn FnMut(RestoreLine) -> anyhow::Result<()>| {
                controller.lines_of(Method::DELETE, paths::RESTORE, each)
            };
            follow(lines).context("discarding a restore")?
        }
        (Some(Verb::Discard { yes: false }), _) => {
            let Some(restoring) = status()?.record.restoring else {
                bail!("no restore is under way, nor did one break off");
            };
            let keys = restoring.keys;
            return Ok(Done::Plan(format!(
                "this deletes what a restore of {keys} keys has written, and leaves an empty store\n"
            )));
        }
    };
    render(&answer, output).map(Done::Answer)
}

fn restore(
    path: &Path,
    status: &RestoreStatus,
    controller: &Controller,
) -> anyhow::Result<Answer<RestoreStatus>> {
    let reading = || format!("reading {}", path.display());
    let file = File::open(path).with_context(reading)?;
    let size = file.metadata().with_context(reading)?.len();
    let (header, footer, file) = check(file).with_context(reading)?;
    if let (None, Some(holds)) = (&status.restoring, &status.holds) {
        let text = format!("the store is in use, it has {holds}");
        return Err(ApiError::new(ErrorCode::StoreInUse, text)).context("restoring");
    }
    let words = format!("{} keys of {} ({})", footer.keys, header.created, mebibytes(size));
    let mut progress = Progress::begin();
    let sent = move |bytes: u64| {
        progress.tell(|| format!("{words}: {} sent", mebibytes(bytes)));
    };
    let lines = |each: &mut dyn FnMut(RestoreLine) -> anyhow::Result<()>| {
        controller.upload(paths::RESTORE, file, sent, each)
    };
    follow(lines).with_context(|| format!("restoring {}", path.display()))
}

/// Follows a restore to its end.
fn follow(
    lines: impl FnOnce(&mut dyn FnMut(RestoreLine) -> anyhow::Result<()>) -> anyhow::Result<()>,
) -> anyhow::Result<Answer<RestoreStatus>> {
    let (mut done, mut progress) = (None, Progress::begin());
    lines(&mut |line| {
        match line {
            RestoreLine::Written { keys, of: 0 } => {
                progress.tell(|| format!("{keys} keys deleted"));
            }
            RestoreLine::Written { keys, of } => {
                progress.tell(|| format!("{keys} of {of} keys written"));
            }
            RestoreLine::Done(status) => done = Some(status),
            RestoreLine::Failed(error) => return Err(error.into()),
        }
        Ok(())
    })?;
    let Some(done) = done else {
        bail!("the controller ended before it was done: repeat the command, which goes on");
    };
    Ok(serde_json::from_value(serde_json::to_value(done)?)?)
}

/// Makes sure that a file is a whole backup, before anything is asked.
fn check(file: File) -> anyhow::Result<(Header, Footer, File)> {
    let mut lines = BufReader::with_capacity(1 << 18, file);
    let (mut reader, mut line) = (Reader::default(), Vec::new());
    let (mut first, mut last) = (None, None);
    loop {
        line.clear();
        let most = u64::try_from(MOST_LINE)?;
        if io::Read::take(&mut lines, most).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        match reader.line(&line)? {
            Line::Header(header) => first = Some(header),
            Line::Record(_) => {}
            Line::Footer(footer) => last = Some(footer),
        }
    }
    reader.end()?;
    let (Some(header), Some(footer)) = (first, last) else {
        return Err(BackupError::Foreign.into());
    };
    let mut file = lines.into_inner();
    file.rewind()?;
    Ok((header, footer, file))
}

fn render(answer: &Answer<RestoreStatus>, output: Output) -> anyhow::Result<String> {
    if let Output::Json = output {
        return answer::json(answer);
    }
    let RestoreStatus { store, holds, restoring, restored, .. } = &answer.record;
    let under_way = restoring.as_ref().map(|restoring| {
        let what = if restoring.discarding { "discarding" } else { "restoring" };
        format!("{what} {} keys, under way or broken off", restoring.keys)
    });
    let cause = restored.as_ref().map(|restored| match restored.cause {
        RestoreCause::Restored => "from a backup".to_owned(),
        RestoreCause::SetBack => "set back behind limpet's back".to_owned(),
    });
    let waiting = restored.as_ref().map(|restored| {
        let (left, hosts) = (restored.waiting.len(), restored.hosts);
        let done = hosts.saturating_sub(u64::try_from(left).unwrap_or(u64::MAX));
        format!("{done} of {hosts} hosts have said what lives on them")
    });
    let for_whom = restored.as_ref().filter(|restored| !restored.waiting.is_empty());
    let since = for_whom.and_then(|_| answer.record.waited()).map(|since| since.to_string());
    let for_whom = for_whom.map(|restored| {
        let names: Vec<&str> = restored.waiting.iter().map(HostName::as_str).collect();
        names.join(", ")
    });
    Ok(table::facts([
        ("store", Some(store.to_string())),
        ("holds", Some(holds.clone().unwrap_or_else(|| "nothing".to_owned()))),
        ("restore", under_way),
        ("restored", cause),
        ("hosts", waiting),
        ("waiting for", for_whom),
        ("waiting since", since.map(|since| format!("{since} ago"))),
    ]))
}

#[cfg(test)]
mod tests {
    use limpet_api::FleetTime;
    use limpet_api::restore::Restored;
    use limpet_net_types::Token;

    use super::*;
    use crate::golden;

    #[test]
    fn a_status_says_whom_is_waited_for() {
        let status = RestoreStatus {
            store: Token::from_bits(5),
            now: FleetTime(190),
            holds: Some("1 networks, 2 pools, 3 hosts".to_owned()),
            restoring: None,
            restored: Some(Restored {
                at: FleetTime(100),
                cause: RestoreCause::Restored,
                hosts: 3,
                waiting: ["node-b", "node-c"].map(|host| host.parse().unwrap()).into(),
                spoken: [].into(),
            }),
        };
        let answer = serde_json::from_value(serde_json::to_value(status).unwrap()).unwrap();
        golden::check("restore-status", &render(&answer, Output::Table).unwrap());
    }
}

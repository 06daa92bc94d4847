//! Edge: `limpetctl backup`: the store, line by line, into a file that is there whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use limpet_api::backup::{Footer, Line, Reader};
use limpet_api::paths;
use serde_json::json;
use serde_json::value::RawValue;

use crate::answer;
use crate::cli::{Done, Output};
use crate::controller::Controller;
use crate::progress::{Progress, mebibytes};

/// What `backup` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The file to write; - is standard output
    file: PathBuf,
}

/// Carries out the command.
pub(crate) fn run(args: &Args, controller: &Controller, output: Output) -> anyhow::Result<Done> {
    if args.file == Path::new("-") {
        let mut out = BufWriter::new(io::stdout().lock());
        fetch(controller, &mut out)?;
        out.flush().context("writing to stdout")?;
        return Ok(Done::Answer(String::new()));
    }
    let file = &args.file;
    let beside = Beside::new(file).with_context(|| format!("writing {}", file.display()))?;
    let mut out = BufWriter::new(&beside.file);
    let (footer, bytes) = fetch(controller, &mut out)?;
    out.flush().and_then(|()| beside.file.sync_all())?;
    drop(out);
    beside.keep(file).with_context(|| format!("writing {}", file.display()))?;
    let Footer { keys, sha256 } = &footer;
    Ok(Done::Answer(match output {
        Output::Table => {
            format!("{keys} keys, {}, are in {}\n", mebibytes(bytes), file.display())
        }
        Output::Json => {
            answer::json(&json!({ "file": file, "keys": keys, "bytes": bytes, "sha256": sha256 }))?
        }
    }))
}

/// Writes what comes, and makes sure that it is all.
fn fetch(controller: &Controller, out: &mut impl Write) -> anyhow::Result<(Footer, u64)> {
    let (mut reader, mut progress) = (Reader::default(), Progress::begin());
    let (mut last, mut keys, mut bytes) = (None, 0_u64, 0_u64);
    controller
        .lines(paths::BACKUP, |raw: Box<RawValue>| {
            let line = [raw.get().as_bytes(), b"\n"].concat();
            match reader.line(&line)? {
                Line::Footer(footer) => last = Some(footer),
                Line::Record(_) => keys += 1,
                Line::Header(_) => {}
            }
            bytes += u64::try_from(line.len())?;
            progress.tell(|| format!("{keys} keys, {}", mebibytes(bytes)));
            out.write_all(&line).context("writing the backup")
        })
        .context("asking for a backup")?;
    reader.end()?;
    match last {
        Some(footer) => Ok((footer, bytes)),
        None => bail!("the backup has no last line"),
    }
}

/// A file beside the one that is wanted: gone unless it is kept.
struct Beside {
    file: File,
    path: PathBuf,
}

impl Beside {
    fn new(wanted: &Path) -> io::Result<Self> {
        let mut name = wanted.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.part", std::process::id()));
        let path = wanted.with_file_name(name);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Self { file, path })
    }

    fn keep(&self, wanted: &Path) -> io::Result<()> {
        fs::rename(&self.path, wanted)
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // Once it is kept there is nothing under this name.
        let _ = fs::remove_file(&self.path);
    }
}

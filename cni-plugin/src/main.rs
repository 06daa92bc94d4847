//! Edge: limpet's CNI plugin: one call of a container runtime, from its environment and standard input to its
//! standard output and exit status.
//!
//! Everything that is decided is decided elsewhere: the call is checked in `request`, each verb has a file of its
//! own, and addresses come from the host's agent. Results and errors go to standard output as JSON, as the
//! specification says; logs go to standard error.

mod add;
mod agent;
mod args;
mod attach;
mod audit;
mod bandwidth;
mod check;
mod config;
mod del;
mod error;
mod gc;
mod host_end;
mod part;
mod request;
mod result;
mod shape;
mod status;

use std::io::{self, Read, Write};
use std::process::ExitCode;

use serde_json::{Map, Value, json};
use tracing::level_filters::LevelFilter;

use crate::config::{LogLevel, Version, log_level, version_of};
use crate::error::{Code, Failure};
use crate::request::{Environment, Request, Verb};

/// The most that is read of standard input, in bytes; a configuration has a few thousand.
const MOST_STDIN: u64 = 16 << 20;

fn main() -> ExitCode {
    if std::env::args().nth(1).is_some_and(|argument| argument == "--version") {
        let version = concat!("limpet ", env!("CARGO_PKG_VERSION"), "\n");
        return exit(print(version), Version::NEWEST);
    }
    // Names that are not UTF-8 are told as nearly as possible, and then refused like others.
    let lookup =
        |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
    let mut version = Version::NEWEST;
    let answered =
        answer(&Environment::read(lookup), &mut version).and_then(|answer| match answer {
            Some(answer) => print(&answer.to_string()),
            None => Ok(()),
        });
    exit(answered, version)
}

/// Carries the call out. `version` becomes the configuration's as soon as that is known.
fn answer(environment: &Environment, version: &mut Version) -> Result<Option<Value>, Failure> {
    let verb = Verb::of(&environment.command)?;
    let stdin = read_stdin()?;
    if verb == Verb::Version {
        return versions(&stdin).map(Some);
    }
    let fields = parse(&stdin)?;
    if let Ok(known) = version_of(&fields) {
        *version = known;
    }
    log(log_level(&fields));
    let request = Request::read(verb, fields, environment)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::of(Code::Io, &error))?;
    runtime.block_on(async {
        match request {
            Request::Add(request) => add::add(&request).await.map(Some),
            Request::Del(request) => del::del(&request).await.map(|()| None),
            Request::Check(request) => check::check(&request).await.map(|()| None),
            Request::Status(config) => status::status(&config).await.map(|()| None),
            Request::Gc(request) => gc::gc(&request).await.map(|()| None),
        }
    })
}

fn read_stdin() -> Result<Vec<u8>, Failure> {
    let mut stdin = Vec::new();
    io::stdin().lock().take(MOST_STDIN).read_to_end(&mut stdin).map_err(|error| Failure {
        details: error.to_string(),
        ..Failure::new(Code::Io, "cannot read standard input")
    })?;
    Ok(stdin)
}

fn parse(stdin: &[u8]) -> Result<Map<String, Value>, Failure> {
    serde_json::from_slice(stdin).map_err(|error| {
        let message = "standard input is no configuration: not a JSON object";
        Failure { details: error.to_string(), ..Failure::new(Code::Decode, message) }
    })
}

/// The answer to VERSION, in whichever version it is asked: this verb is how a runtime finds out.
fn versions(stdin: &[u8]) -> Result<Value, Failure> {
    let fields = if stdin.trim_ascii().is_empty() { Map::new() } else { parse(stdin)? };
    let asked = fields.get("cniVersion").and_then(Value::as_str);
    Ok(json!({
        "cniVersion": asked.unwrap_or(Version::NEWEST.as_str()),
        "supportedVersions": Version::ALL.map(Version::as_str),
    }))
}

fn log(level: LogLevel) {
    let level = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
    };
    tracing_subscriber::fmt().with_max_level(level).with_ansi(false).with_writer(io::stderr).init();
}

fn print(text: &str) -> Result<(), Failure> {
    io::stdout().write_all(text.as_bytes()).map_err(|error| {
        let message = "cannot write to standard output";
        Failure { details: error.to_string(), ..Failure::new(Code::Io, message) }
    })
}

/// Tells the runtime what went wrong, on standard output as the specification wants it.
fn exit(answered: Result<(), Failure>, version: Version) -> ExitCode {
    let Err(failure) = answered else { return ExitCode::SUCCESS };
    // Nobody is left to tell where this fails too.
    let _ = io::stdout().write_all(failure.object(version).to_string().as_bytes());
    ExitCode::FAILURE
}

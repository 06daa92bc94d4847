//! Edge: reads and replaces the nftables table, by the program `nft`.

use std::io;
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

use crate::nft::{Ruleset, TABLE, squeezed, translates};

/// How long `nft` has: it takes a few milliseconds, and waits its turn where others change tables.
const LIMIT: Duration = Duration::from_secs(10);

/// Why the table was not read or replaced.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FilterError {
    /// The program cannot be run.
    #[error("cannot run nft: is the package nftables installed?")]
    Run(#[from] io::Error),
    /// It took too long.
    #[error("nft did not end within {LIMIT:?}")]
    TimedOut,
    /// It says no.
    #[error("nft says: {0}")]
    Refused(String),
}

/// The table, and how this version of `nft` prints it.
#[derive(Debug, Default)]
pub(crate) struct Filter {
    /// What was put into place last as text of ours, and as `nft` lists it where that is not the same.
    spelling: Option<(String, String)>,
}

impl Filter {
    /// The table as [`Ruleset::listing`] has it; none if it is not there.
    ///
    /// # Errors
    ///
    /// [`FilterError`]; try again with the next pass.
    pub(crate) async fn read(&self) -> Result<Option<String>, FilterError> {
        let mut arguments = vec!["-s", "-y", "list", "table"];
        arguments.extend(TABLE.split(' '));
        let output = run(&arguments, "").await?;
        if output.status.success() {
            let listing = squeezed(&String::from_utf8_lossy(&output.stdout));
            let ours = self.spelling.as_ref().filter(|(_, theirs)| *theirs == listing);
            return Ok(Some(ours.map_or(listing, |(ours, _)| ours.clone())));
        }
        let complaint = String::from_utf8_lossy(&output.stderr);
        if complaint.contains("No such file or directory") {
            return Ok(None);
        }
        Err(FilterError::Refused(squeezed(&complaint)))
    }

    /// Whether any program of the host translates destinations, by nftables or by its predecessor.
    ///
    /// # Errors
    ///
    /// [`FilterError`]; try again with the next pass.
    pub(crate) async fn translates(&self) -> Result<bool, FilterError> {
        // Absent where the kernel does not have the predecessor.
        for names in ["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"] {
            let tables = tokio::fs::read_to_string(names).await.unwrap_or_default();
            if tables.lines().any(|table| table == "nat") {
                return Ok(true);
            }
        }
        let output = run(&["-y", "list", "chains"], "").await?;
        if output.status.success() {
            return Ok(translates(&squeezed(&String::from_utf8_lossy(&output.stdout))));
        }
        Err(FilterError::Refused(squeezed(&String::from_utf8_lossy(&output.stderr))))
    }

    /// Puts the table into place, the old one away in the same moment.
    ///
    /// # Errors
    ///
    /// [`FilterError`], and the old table is as it was.
    pub(crate) async fn replace(&mut self, ruleset: &Ruleset) -> Result<(), FilterError> {
        let output = run(&["-f", "-"], &ruleset.replacement()).await?;
        if !output.status.success() {
            let complaint = String::from_utf8_lossy(&output.stderr);
            return Err(FilterError::Refused(squeezed(&complaint)));
        }
        // Another version of nft may spell the same rules otherwise: that is no difference.
        self.spelling = None;
        let theirs = self.read().await?;
        let ours = ruleset.listing();
        self.spelling = theirs.filter(|theirs| *theirs != ours).map(|theirs| (ours, theirs));
        Ok(())
    }
}

async fn run(arguments: &[&str], input: &str) -> Result<Output, FilterError> {
    let mut child = Command::new("nft")
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let stdin = child.stdin.take();
    let talk = async {
        if let Some(mut stdin) = stdin {
            // One that ends early says why on stderr.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    Ok(timeout(LIMIT, talk).await.map_err(|_| FilterError::TimedOut)??)
}

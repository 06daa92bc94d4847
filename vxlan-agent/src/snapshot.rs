//! Edge: what is known of the cluster, on disk, so that a host that reboots while no controller answers has a network.
//!
//! Only what a controller has told is written, whole or not at all, off the way of everything else. What is read is gone
//! by until a controller has told of everything, and nothing is judged or answered by it.
//!
//! An agent that was killed may have laid out more than it had written. So before it takes in what the file does not have
//! it says so in a second file, which is gone after a boot, as what it laid out is. The next agent then leaves the kernel
//! as it is.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use limpet_api::Revision;
use limpet_net_types::Token;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::agent::{Agent, Identity};
use crate::saved::{Saved, SavedError};

/// How long changes are gathered before they are written.
const GATHER: Duration = Duration::from_millis(500);

/// The least time between two writes, or attempts: a disk is not kept busy by a busy cluster.
const PAUSE: Duration = Duration::from_secs(5);

/// The most that is read, in bytes: a hundred times what 10,000 hosts need.
const MOST: u64 = 512 << 20;

/// Where the snapshot is, and whether the kernel may know more than it.
#[derive(Debug)]
pub(crate) struct Snapshots {
    path: PathBuf,
    ahead: PathBuf,
    /// Whether the second file says that there is more than the first one has.
    said: AtomicBool,
    /// Whether what was found in its place could not be read: it is not to be lost.
    strange: AtomicBool,
}

/// Why there is no snapshot to go by.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SnapshotError {
    /// The system says no.
    #[error(transparent)]
    File(#[from] io::Error),
    /// It is of no use.
    #[error(transparent)]
    Content(#[from] SavedError),
    /// It is larger than any.
    #[error("it has {0} bytes, and no snapshot has more than {MOST}")]
    TooLarge(u64),
}

impl Snapshots {
    /// In the directory of what outlives a boot; beside `boot_id_file` is what does not.
    pub(crate) fn new(state_dir: &Path, boot_id_file: &Path) -> Self {
        Self {
            path: state_dir.join("snapshot"),
            ahead: boot_id_file.with_file_name("ahead-of-snapshot"),
            said: AtomicBool::new(false),
            strange: AtomicBool::new(false),
        }
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What was written last; none if nothing was ever. Also whether the kernel may know more than that.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`]; the file is left as it is.
    pub(crate) fn load(&self, own: &Identity) -> Result<Option<(Saved, bool)>, SnapshotError> {
        let saved = self.read(own).inspect_err(|_| self.strange.store(true, Ordering::SeqCst))?;
        let Some(saved) = saved else { return Ok(None) };
        let ahead = self.is_ahead(&saved);
        self.said.store(ahead, Ordering::SeqCst);
        Ok(Some((saved, ahead)))
    }

    fn read(&self, own: &Identity) -> Result<Option<Saved>, SnapshotError> {
        let file = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let size = file.metadata()?.len();
        if size > MOST {
            return Err(SnapshotError::TooLarge(size));
        }
        let mut text = Vec::new();
        file.take(MOST).read_to_end(&mut text)?;
        Ok(Some(Saved::from_bytes(&text, (&own.host, own.install))?))
    }

    fn is_ahead(&self, saved: &Saved) -> bool {
        match fs::read_to_string(&self.ahead) {
            Ok(text) => {
                let known = text.trim_end().split_once(' ').and_then(|(store, revision)| {
                    Some((store.parse::<Token>().ok()?, revision.parse::<Revision>().ok()?))
                });
                // Of half a file nothing is known.
                known.is_none_or(|(store, first)| store != saved.store || first > saved.revision)
            }
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        }
    }

    /// Something is about to be known that the file does not have, and the kernel may follow it at once.
    pub(crate) fn outdated(&self, store: Token, revision: Revision) {
        if self.said.swap(true, Ordering::SeqCst) {
            return;
        }
        // It need not outlive a boot, so that nothing waits for a disk. Half of it says as much as all of it.
        if let Err(error) = fs::write(&self.ahead, format!("{store} {revision}\n")) {
            self.said.store(false, Ordering::SeqCst);
            warn!(path = %self.ahead.display(), %error, "cannot say that the snapshot is outdated");
        }
    }

    /// What is known is taken down just now: whatever comes next the file does not have.
    pub(crate) fn taken(&self) {
        self.said.store(false, Ordering::SeqCst);
    }

    /// Writes the file in place of the one before, whole or not at all. What was there and is no snapshot that this agent
    /// can read is set aside.
    fn write(&self, saved: &Saved) -> io::Result<()> {
        let text = saved.to_bytes()?;
        let draft = self.path.with_extension("new");
        let written = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&draft)
            .and_then(|mut file| {
                file.write_all(&text)?;
                file.sync_all()
            });
        if let Err(error) = written {
            // Half of it would fill the disk further.
            let _ = fs::remove_file(&draft);
            return Err(error);
        }
        if self.strange.load(Ordering::SeqCst) {
            let aside = self.path.with_extension("set-aside");
            match fs::rename(&self.path, &aside) {
                Ok(()) => {
                    warn!(path = %aside.display(), "what was in the snapshot's place is set aside");
                }
                // Somebody has taken it away meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            self.strange.store(false, Ordering::SeqCst);
        }
        fs::rename(&draft, &self.path)?;
        // Without this the old name may be back after a power cut.
        self.path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
    }
}

/// Seconds since 1970, by the host's clock.
pub(crate) fn wall() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Writes what is known whenever it has changed, until `stop`, and then once more.
pub(crate) async fn run(agent: Arc<Agent>, stop: CancellationToken) {
    let mut complaint = String::new();
    loop {
        // The bell is heard below if it was not heard here.
        let stopping = tokio::select! {
            biased;
            () = stop.cancelled() => true,
            () = agent.save.notified() => false,
        };
        let changed = !stopping || timeout(Duration::ZERO, agent.save.notified()).await.is_ok();
        if !stopping {
            let _ = stop.run_until_cancelled(sleep(GATHER)).await;
        }
        let written = if changed { save(&agent).await } else { Ok(()) };
        match written {
            Ok(()) if complaint.is_empty() => {}
            Ok(()) => {
                info!("the snapshot is written again");
                complaint.clear();
            }
            Err(error) => {
                let words = error.to_string();
                if words != complaint {
                    let path = agent.snapshots.path().display();
                    warn!(%path, error = words, "cannot write the snapshot, trying on");
                    complaint = words;
                }
                agent.save.notify_one();
            }
        }
        agent.state().not_saved = Some(&complaint).filter(|words| !words.is_empty()).cloned();
        if stopping {
            return;
        }
        let _ = stop.run_until_cancelled(sleep(PAUSE)).await;
    }
}

/// Writes what a controller has told; nothing if none has.
async fn save(agent: &Arc<Agent>) -> io::Result<()> {
    let known = {
        let state = agent.state();
        // Under the same lock under which it changes: nothing falls between.
        let known = state.view.saved();
        if known.is_some() {
            agent.snapshots.taken();
        }
        known
    };
    let Some((store, revision, snapshot)) = known else { return Ok(()) };
    let Identity { host, install, .. } = agent.identity.clone();
    let saved = Saved { host, install, store, revision, written: wall(), snapshot };
    let agent = Arc::clone(agent);
    spawn_blocking(move || agent.snapshots.write(&saved)).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    #[test]
    fn a_strange_file_that_somebody_took_away_keeps_nobody_from_writing() {
        let directory = fixture::Directory::new("strange");
        let snapshots = Snapshots::new(&directory.path(""), &directory.path("boot-id"));
        let own = fixture::agent().identity;
        fs::write(snapshots.path(), "notes").unwrap();
        assert!(snapshots.load(&own).is_err());
        fs::remove_file(snapshots.path()).unwrap();
        let snapshot = limpet_api::host::Snapshot::default();
        let (host, install, store) = (own.host.clone(), own.install, Token::from_bits(5));
        let saved = Saved { host, install, store, revision: 7, written: 1, snapshot };
        snapshots.write(&saved).unwrap();
        assert_eq!(snapshots.load(&own).unwrap(), Some((saved, false)));
    }
}

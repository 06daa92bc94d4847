//! Edge: network namespaces as values, and running something in one.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sched::{CloneFlags, setns};
use nix::sys::stat::fstat;
use nix::sys::statfs::{FsType, fstatfs};

/// The file system that namespaces are files of (`NSFS_MAGIC` of the kernel's `linux/magic.h`).
const NSFS: FsType = FsType(0x6e73_6673);

/// An open network namespace. It lives on while it is open.
///
/// Two are equal if they are the same namespace.
#[derive(Clone, Debug)]
pub struct Netns {
    file: Arc<OwnedFd>,
    path: Arc<Path>,
    /// Device and inode, which are a namespace's identity.
    identity: (u64, u64),
}

/// Why a network namespace cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// There is none, or it may not be opened.
    #[error("cannot open the network namespace {}", path.display())]
    Open {
        /// Where it was looked for.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The file is of another kind: for one, what is left when a namespace has been unmounted.
    #[error("{} is not a network namespace", path.display())]
    NotNetns {
        /// The file.
        path: PathBuf,
    },
    /// A thread cannot be started, or not moved into the namespace.
    #[error("cannot enter the network namespace {}", path.display())]
    Enter {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

impl Netns {
    /// Opens the namespace at `path`, such as `/run/netns/x` or `/proc/7/ns/net`.
    ///
    /// # Errors
    ///
    /// [`NetnsError::Open`] and [`NetnsError::NotNetns`]: there is no such namespace, or no longer.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, NetnsError> {
        let path = path.as_ref();
        let open = |source: io::Error| NetnsError::Open { path: path.to_owned(), source };
        let file = OwnedFd::from(File::open(path).map_err(open)?);
        let kind = fstatfs(&file).map_err(|errno| open(errno.into()))?.filesystem_type();
        if kind != NSFS {
            return Err(NetnsError::NotNetns { path: path.to_owned() });
        }
        let stat = fstat(&file).map_err(|errno| open(errno.into()))?;
        Ok(Self { file: Arc::new(file), path: path.into(), identity: (stat.st_dev, stat.st_ino) })
    }

    /// Opens the calling thread's own namespace.
    ///
    /// # Errors
    ///
    /// [`NetnsError::Open`] where `/proc` is not mounted.
    pub fn current() -> Result<Self, NetnsError> {
        Self::open("/proc/thread-self/ns/net")
    }

    /// Runs `act` on a thread of its own in this namespace, and waits for it.
    ///
    /// Sockets that it opens, and files below `/proc/sys/net`, are this namespace's. The calling thread stays
    /// where it is. Costs about 50 us.
    ///
    /// # Errors
    ///
    /// [`NetnsError::Enter`], with nothing done: the caller needs `CAP_SYS_ADMIN`, and the file must be of a
    /// network namespace.
    ///
    /// # Panics
    ///
    /// If `act` does.
    pub fn run<T: Send>(&self, act: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        let enter = |source: io::Error| NetnsError::Enter { path: self.path.to_path_buf(), source };
        std::thread::scope(|scope| {
            let moved = || setns(self.as_fd(), CloneFlags::CLONE_NEWNET).map(|()| act());
            let thread = std::thread::Builder::new()
                .name("netns".to_owned())
                .spawn_scoped(scope, moved)
                .map_err(enter)?;
            match thread.join() {
                Ok(done) => done.map_err(|errno| enter(errno.into())),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }
}

impl PartialEq for Netns {
    fn eq(&self, other: &Self) -> bool {
        self.identity == other.identity
    }
}

impl Eq for Netns {}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for Netns {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// As `ip` takes it: its path.
impl fmt::Display for Netns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.display().fmt(f)
    }
}

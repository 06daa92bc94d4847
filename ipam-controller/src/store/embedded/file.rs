//! Edge: opening and making the store's file, with a clear word for everything that can be
//! wrong with it. A file that is there is never overwritten and never initialised again.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};

use redb::{
    Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, StorageBackend,
    StorageError, TableError, backends::FileBackend,
};

use tracing::info;

use super::engine::words;
use super::tables::{APPLIED, EPHEMERAL, FORMAT, KEYS, LOG, LOG_BYTES, META, REVISION};
use crate::keys;

/// The version of the tables that this program writes, and the newest that it reads.
pub(super) const FORMAT_VERSION: u64 = 2;

/// What every file of the store's library starts with.
const MAGIC: &[u8] = b"redb\x1a\x0a\xa9\x0d\x0a";

/// Where the store is and how much it may keep.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// The file.
    pub(crate) path: PathBuf,
    /// Bytes of memory for pages of the file.
    pub(crate) cache_bytes: usize,
    /// How many revisions the change log keeps.
    pub(crate) log_revisions: u64,
}

/// Why the store's file was not opened. Nothing was written to it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum OpenError {
    /// The directory must be made first; a wrong path must not become a second, empty store.
    #[error("directory {} of the store does not exist: create it, or correct --store", .directory.display())]
    NoDirectory {
        /// The directory.
        directory: PathBuf,
    },
    /// One store is one controller's.
    #[error("store {} is in use by another process: stop it, or give this one a store of its own", .path.display())]
    Locked {
        /// The store's file.
        path: PathBuf,
    },
    /// Something made the file, or cut it to nothing; a store never has no bytes.
    #[error("store {} is empty (0 bytes): restore it from a backup, or move it away to start with a new store", .path.display())]
    Empty {
        /// The store's file.
        path: PathBuf,
    },
    /// The path names something else.
    #[error("{} is not a limpet store: {reason}; correct --store", .path.display())]
    NotAStore {
        /// The path.
        path: PathBuf,
        /// How that was seen.
        reason: String,
    },
    /// The file is a store that lost bytes.
    #[error("store {} is damaged or cut short: {reason}; restore it from a backup", .path.display())]
    Damaged {
        /// The store's file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A newer program wrote it, and this one could only spoil it.
    #[error("store {} has format {found}, and this program knows formats up to {known}: start a newer limpet-controller", .path.display())]
    NewerFormat {
        /// The store's file.
        path: PathBuf,
        /// The version it has.
        found: u64,
        /// The newest version known here.
        known: u64,
    },
    /// The file or its file system does not take writes.
    #[error("store {} cannot be written: check the permissions and that its file system is not read-only", .path.display())]
    ReadOnly {
        /// The store's file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is no room on the disk.
    #[error("no space left on the disk of store {}: make room", .path.display())]
    DiskFull {
        /// The store's file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Anything else that the system said.
    #[error("cannot open store {}", .path.display())]
    Io {
        /// The store's file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Opens the file, or makes a new store if there is none.
pub(super) fn open_or_create(options: &Options) -> Result<Database, OpenError> {
    match fs::symlink_metadata(&options.path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => create(options),
        _ => open(options),
    }
}

/// Opens a file that must be there.
pub(super) fn open(options: &Options) -> Result<Database, OpenError> {
    let path = &options.path;
    check_beginning(path)?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(|source| io_error(path, source))?;
    let backend = FileBackend::new(file).map_err(|error| database_error(path, error))?;
    open_backend(options, backend)
}

/// Opens a store on `backend`, which holds one, and checks that it is one.
pub(super) fn open_backend(
    options: &Options,
    backend: impl StorageBackend,
) -> Result<Database, OpenError> {
    let path = &options.path;
    // The library asserts some of what a damaged file can break.
    let opened = panic::catch_unwind(AssertUnwindSafe(|| {
        let database = builder(options)
            .create_with_backend(backend)
            .map_err(|error| database_error(path, error))?;
        if check_tables(path, &database)? < FORMAT_VERSION {
            upgrade(&database).map_err(|error| library_error(path, error))?;
        }
        Ok(database)
    }));
    opened.unwrap_or_else(|panic| {
        Err(OpenError::Damaged { path: path.clone(), reason: words(panic.as_ref()) })
    })
}

fn builder(options: &Options) -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(options.cache_bytes);
    let path = options.path.clone();
    builder.set_repair_callback(move |session| {
        let done = format!("{:.0} %", session.progress() * 100.0);
        info!(store = %path.display(), done, "the store was not closed: checking all of it");
    });
    builder
}

/// Tells an empty file, and one that is no store at all, before the library sees it: to the
/// library an empty file is a place for a new store.
fn check_beginning(path: &Path) -> Result<(), OpenError> {
    // Opening a pipe waits for its other end, and opening a device may do anything.
    let metadata = fs::metadata(path).map_err(|source| io_error(path, source))?;
    let not_a_store =
        |reason: &str| OpenError::NotAStore { path: path.to_owned(), reason: reason.to_owned() };
    if !metadata.is_file() {
        return Err(not_a_store("it is not a regular file"));
    }
    if metadata.len() == 0 {
        return Err(OpenError::Empty { path: path.to_owned() });
    }
    let mut start = Vec::new();
    let file = File::open(path).map_err(|source| io_error(path, source))?;
    file.take(u64::try_from(MAGIC.len()).unwrap_or(u64::MAX))
        .read_to_end(&mut start)
        .map_err(|source| io_error(path, source))?;
    if !MAGIC.starts_with(&start) {
        return Err(not_a_store("it starts with other bytes than a store does"));
    }
    if start.len() < MAGIC.len() {
        let reason = format!("only {} bytes are left", metadata.len());
        return Err(OpenError::Damaged { path: path.to_owned(), reason });
    }
    Ok(())
}

/// Returns the format of the tables, if it is known here.
fn check_tables(path: &Path, database: &Database) -> Result<u64, OpenError> {
    let transaction = database
        .begin_read()
        .map_err(|error| database_error(path, DatabaseError::Storage(storage_of(error))))?;
    let table_error = |error| match error {
        TableError::Storage(error) => database_error(path, DatabaseError::Storage(error)),
        other => OpenError::NotAStore { path: path.to_owned(), reason: other.to_string() },
    };
    let storage_error = |error| database_error(path, DatabaseError::Storage(error));
    let meta = transaction.open_table(META).map_err(table_error)?;
    let found = meta.get(FORMAT).map_err(storage_error)?.map_or(0, |version| version.value());
    if found > FORMAT_VERSION {
        return Err(OpenError::NewerFormat { path: path.to_owned(), found, known: FORMAT_VERSION });
    }
    transaction.open_table(KEYS).map_err(table_error)?;
    transaction.open_table(LOG).map_err(table_error)?;
    if found == FORMAT_VERSION {
        transaction.open_table(EPHEMERAL).map_err(table_error)?;
    }
    Ok(found)
}

/// Brings tables of the first format up to date: in it, a commit wrote to the table of keys at
/// once. From now on a program that would look only there refuses the file.
fn upgrade(database: &Database) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut meta = transaction.open_table(META)?;
        let revision = meta.get(REVISION)?.map_or(0, |value| value.value());
        let mut bytes = 0;
        for entry in transaction.open_table(LOG)?.iter()? {
            bytes += u64::try_from(entry?.1.value().len()).unwrap_or(u64::MAX);
        }
        meta.insert(APPLIED, revision)?;
        meta.insert(LOG_BYTES, bytes)?;
        meta.insert(FORMAT, FORMAT_VERSION)?;
        transaction.open_table(EPHEMERAL)?;
    }
    transaction.commit()?;
    Ok(())
}

/// Makes a new store beside `path`, whole and synced, and then gives it its name.
///
/// A link, unlike a rename, fails where a file of that name has come to be in the meantime, so
/// two first starts at once end with one store; and a crash leaves no half-made one behind.
fn create(options: &Options) -> Result<Database, OpenError> {
    let path = &options.path;
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if !directory.is_dir() {
        return Err(OpenError::NoDirectory { directory: directory.to_owned() });
    }
    let mut fresh = path.clone().into_os_string();
    fresh.push(".new");
    let fresh = PathBuf::from(fresh);
    let io_error = |source| io_error(path, source);

    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&fresh)
        .map_err(io_error)?;
    let backend = FileBackend::new(file.try_clone().map_err(io_error)?)
        .map_err(|error| database_error(path, error))?;
    // Held by another first start: it wins. Left by one that died: no lock, and no use.
    file.try_lock().map_err(|_| OpenError::Locked { path: path.clone() })?;
    file.set_len(0).map_err(io_error)?;
    let database = builder(options)
        .create_with_backend(backend)
        .map_err(|error| database_error(path, error))?;
    initialise(&database).map_err(|error| library_error(path, error))?;

    let linked = fs::hard_link(&fresh, path);
    fs::remove_file(&fresh).map_err(io_error)?;
    match linked {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            drop(database);
            return open(options);
        }
        Err(source) => return Err(io_error(source)),
    }
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(io_error)?;
    Ok(database)
}

/// Writes the tables of an empty store: its format, and the identity that tells it from others.
fn initialise(database: &Database) -> Result<(), redb::Error> {
    let identity = crate::random::token()?;
    let transaction = database.begin_write()?;
    {
        let mut meta = transaction.open_table(META)?;
        meta.insert(FORMAT, FORMAT_VERSION)?;
        meta.insert(REVISION, 1)?;
        meta.insert(APPLIED, 1)?;
        let mut value = 1_u64.to_le_bytes().to_vec();
        value.extend_from_slice(format!("\"{identity}\"").as_bytes());
        transaction.open_table(KEYS)?.insert(keys::STORE_ID, value.as_slice())?;
        let changes = [(
            keys::STORE_ID.to_owned(),
            super::super::Write::Put(format!("\"{identity}\"").into()),
        )];
        let record = super::super::log::encode(&changes.into());
        transaction.open_table(LOG)?.insert(1, record.as_slice())?;
        meta.insert(LOG_BYTES, u64::try_from(record.len()).unwrap_or(u64::MAX))?;
        transaction.open_table(EPHEMERAL)?;
    }
    transaction.commit()?;
    Ok(())
}

fn storage_of(error: redb::TransactionError) -> StorageError {
    match error {
        redb::TransactionError::Storage(error) => error,
        other => StorageError::Corrupted(other.to_string()),
    }
}

pub(super) fn library_error(path: &Path, error: redb::Error) -> OpenError {
    match error {
        redb::Error::Io(source) => io_error(path, source),
        other => OpenError::Damaged { path: path.to_owned(), reason: other.to_string() },
    }
}

fn database_error(path: &Path, error: DatabaseError) -> OpenError {
    let path = path.to_owned();
    match error {
        DatabaseError::DatabaseAlreadyOpen => OpenError::Locked { path },
        DatabaseError::UpgradeRequired(version) => {
            OpenError::Damaged { path, reason: format!("its file format {version} is too old") }
        }
        DatabaseError::Storage(StorageError::Io(source)) => io_error(&path, source),
        other => OpenError::Damaged { path, reason: other.to_string() },
    }
}

pub(super) fn io_error(path: &Path, source: io::Error) -> OpenError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            OpenError::ReadOnly { path, source }
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            OpenError::DiskFull { path, source }
        }
        // The library reads what the file's own tables point at: past the end, it was cut.
        io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData => {
            OpenError::Damaged { path, reason: source.to_string() }
        }
        _ => OpenError::Io { path, source },
    }
}

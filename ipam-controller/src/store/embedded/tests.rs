//! Pure: what only the store in a file does: restarts, bad files and failing disks.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redb::{Database, StorageBackend, backends::FileBackend};

use super::*;
use crate::store::{Seen, Write};

fn options(path: &Path) -> Options {
    Options { path: path.to_owned(), cache_bytes: 1 << 20, log_revisions: 100 }
}

fn put(key: &str, value: &str) -> Txn {
    let writes = [(key.to_owned(), Write::Put(value.to_owned().into()))].into();
    Txn { writes, ..Txn::default() }
}

async fn filled(path: &Path) {
    let store = Embedded::open(&options(path)).unwrap();
    for n in 0..20 {
        let value = "x".repeat(2000);
        store.commit(vec![put(&format!("k/{n}"), &value)]).await.unwrap();
    }
    store.close().await;
}

#[tokio::test]
async fn a_restart_keeps_everything_and_the_revision_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    filled(&path).await;

    let store = Embedded::open(&options(&path)).unwrap();
    let before = Snapshot::of(&store, "").await.unwrap();
    assert_eq!(before.entries.len(), 21);
    let outcomes = store.commit(vec![put("more", "1")]).await.unwrap();
    assert_eq!(outcomes, [Outcome::Committed(before.revision.next())]);
    let mut watch = store.watch(Revision(5)).await.unwrap();
    assert_eq!(watch.next().await.unwrap().revision, Revision(6), "the log survived too");
}

#[tokio::test]
async fn two_stores_have_two_identities_and_one_keeps_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let identity = async |name: &str| {
        let store = Embedded::open(&options(&dir.path().join(name))).unwrap();
        let identity = Snapshot::of(&store, crate::keys::STORE_ID).await.unwrap().entries;
        store.close().await;
        identity
    };
    let first = identity("a").await;
    assert_eq!(identity("a").await, first);
    assert_ne!(identity("b").await, first);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing else is left behind");
}

#[tokio::test]
async fn a_store_in_use_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let store = Embedded::open(&options(&path)).unwrap();
    let error = Embedded::open(&options(&path)).unwrap_err();
    assert!(matches!(error, OpenError::Locked { .. }), "{error}");
    store.commit(vec![put("a", "1")]).await.unwrap();
}

/// Opens what is at `path`, and checks that this changed no byte of it.
fn refused(path: &Path) -> OpenError {
    let before = fs::read(path).ok();
    let error = Embedded::open(&options(path)).unwrap_err();
    assert_eq!(fs::read(path).ok(), before, "a refused file stays as it is");
    assert!(error.to_string().contains(&path.display().to_string()), "{error}");
    error
}

#[test]
fn an_empty_file_is_not_made_a_store() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    fs::write(&path, b"").unwrap();
    assert!(matches!(refused(&path), OpenError::Empty { .. }));
}

#[test]
fn another_kind_of_file_is_not_taken_for_a_store() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    fs::write(&path, b"SQLite format 3\0 and so on").unwrap();
    assert!(matches!(refused(&path), OpenError::NotAStore { .. }));
    assert!(matches!(refused(dir.path()), OpenError::NotAStore { .. }));
}

#[test]
fn a_file_of_the_same_library_that_is_no_store_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    drop(Database::create(&path).unwrap());
    let error = Embedded::open(&options(&path)).unwrap_err();
    assert!(matches!(error, OpenError::NotAStore { .. }), "{error}");
}

#[tokio::test]
async fn a_file_cut_anywhere_is_refused_or_its_loss_is_an_error_on_reading() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    filled(&path).await;
    let whole = fs::read(&path).unwrap();
    for keep in [1, 8, 9, 100, 320, 511, 4096, 8192, 12_288, whole.len() / 2, whole.len() - 1] {
        let cut = dir.path().join("cut.redb");
        fs::write(&cut, &whole[..keep]).unwrap();
        let error = refused(&cut);
        assert!(matches!(error, OpenError::Damaged { .. }), "{keep} bytes: {error}");
    }
}

#[tokio::test]
async fn a_file_with_bytes_turned_never_ends_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    filled(&path).await;
    let whole = fs::read(&path).unwrap();
    for at in (0..whole.len()).step_by(whole.len() / 97) {
        let turned = dir.path().join("turned.redb");
        let mut bytes = whole.clone();
        for byte in &mut bytes[at..(at + 64).min(whole.len())] {
            *byte = !*byte;
        }
        fs::write(&turned, bytes).unwrap();
        // Free pages may be turned without harm; anything else must be an error.
        if let Ok(store) = Embedded::open(&options(&turned)) {
            let _ = store.read("").await;
            let _ = store.commit(vec![put("k/1", "new")]).await;
            store.close().await;
        }
    }
}

#[tokio::test]
async fn a_store_of_a_newer_format_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    filled(&path).await;
    let database = Database::open(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(engine::META).unwrap().insert(engine::FORMAT, 2).unwrap();
    transaction.commit().unwrap();
    drop(database);
    let error = Embedded::open(&options(&path)).unwrap_err();
    assert!(matches!(error, OpenError::NewerFormat { found: 2, known: 1, .. }), "{error}");
}

#[test]
fn a_missing_directory_is_told_and_not_made() {
    let dir = tempfile::tempdir().unwrap();
    let error = Embedded::open(&options(&dir.path().join("no/store.redb"))).unwrap_err();
    assert!(matches!(error, OpenError::NoDirectory { .. }), "{error}");
    assert!(!dir.path().join("no").exists());
}

#[test]
fn a_full_disk_is_told() {
    let link = tempfile::tempdir().unwrap();
    let path = link.path().join("store.redb");
    std::os::unix::fs::symlink("/dev/full", &path).unwrap();
    let error = Embedded::open(&options(&path)).unwrap_err();
    assert!(matches!(error, OpenError::NotAStore { .. }), "a device is no store: {error}");
    let source = io::Error::from(io::ErrorKind::StorageFull);
    let error = file::io_error(&path, source);
    assert!(matches!(error, OpenError::DiskFull { .. }), "{error}");
}

#[tokio::test]
async fn a_file_that_cannot_be_written_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    filled(&path).await;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
    // Root may write everything; for everybody else the file itself must say no.
    match Embedded::open(&options(&path)) {
        Ok(store) => store.close().await,
        Err(error) => assert!(matches!(error, OpenError::ReadOnly { .. }), "{error}"),
    }
    let error = file::io_error(&path, io::Error::from(io::ErrorKind::ReadOnlyFilesystem));
    assert!(matches!(error, OpenError::ReadOnly { .. }), "{error}");
}

/// A file whose disk fails while the switch is on.
#[derive(Debug)]
struct FailingDisk {
    file: FileBackend,
    fails: Arc<AtomicBool>,
}

impl FailingDisk {
    fn check(&self) -> io::Result<()> {
        if self.fails.load(Ordering::SeqCst) {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        Ok(())
    }
}

impl StorageBackend for FailingDisk {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.check()?;
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.check()?;
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check()?;
        self.file.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }
}

#[tokio::test]
async fn after_a_failing_disk_the_store_is_read_again_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    filled(&path).await;
    let fails = Arc::new(AtomicBool::new(false));
    let (reopen, disk) = (options(&path), fails.clone());
    let open = move || {
        let file = fs::OpenOptions::new().read(true).write(true).open(&reopen.path).unwrap();
        let file = FileBackend::new(file).unwrap();
        file::open_backend(&reopen, FailingDisk { file, fails: disk.clone() })
    };
    let store = Embedded::start(Engine::new(open().unwrap(), Box::new(open), 100)).unwrap();
    let before = Snapshot::of(&store, "").await.unwrap();

    fails.store(true, Ordering::SeqCst);
    for _ in 0..3 {
        let failed = store.commit(vec![put("a", "1")]).await;
        assert!(failed.is_err(), "{failed:?}");
    }
    fails.store(false, Ordering::SeqCst);
    let after = Snapshot::of(&store, "").await.unwrap();
    assert_eq!(after, before, "nothing was told, and here nothing was done");

    let txn = Txn { compares: [("a".to_owned(), Seen::Absent)].into(), ..put("a", "2") };
    let outcomes = store.commit(vec![txn]).await.unwrap();
    assert_eq!(outcomes, [Outcome::Committed(before.revision.next())]);
}

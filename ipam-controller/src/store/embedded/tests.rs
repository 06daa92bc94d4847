//! Pure: what only the store in a file does: restarts, bad files and failing disks.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use redb::{
    Database, ReadableDatabase, ReadableTableMetadata, StorageBackend, backends::FileBackend,
};

use super::*;
use crate::store::{Seen, Snapshot, Versioned, Write};

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
    transaction.open_table(tables::META).unwrap().insert(tables::FORMAT, 3).unwrap();
    transaction.commit().unwrap();
    drop(database);
    let error = Embedded::open(&options(&path)).unwrap_err();
    assert!(matches!(error, OpenError::NewerFormat { found: 3, known: 2, .. }), "{error}");
}

/// A store as the first format had it: the table of keys is true, and there is no more.
fn of_the_first_format(path: &Path) {
    let database = Database::create(path).unwrap();
    let transaction = database.begin_write().unwrap();
    {
        let mut meta = transaction.open_table(tables::META).unwrap();
        let mut keys = transaction.open_table(tables::KEYS).unwrap();
        let mut log = transaction.open_table(tables::LOG).unwrap();
        for (key, revision) in [(crate::keys::STORE_ID, 1), ("k/1", 2), ("k/2", 3)] {
            let value = Bytes::from_static(b"\"x\"");
            let write = [(key.to_owned(), Write::Put(value.clone()))].into();
            let versioned = Versioned { value, revision: Revision(revision) };
            keys.insert(key, tables::stored(&versioned).as_slice()).unwrap();
            log.insert(revision, crate::store::log::encode(&write).as_slice()).unwrap();
        }
        meta.insert(tables::FORMAT, 1).unwrap();
        meta.insert(tables::REVISION, 3).unwrap();
    }
    transaction.commit().unwrap();
}

#[tokio::test]
async fn a_store_of_the_first_format_goes_on_and_old_programs_refuse_it_from_then_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    of_the_first_format(&path);
    for round in 0..2 {
        let store = Embedded::open(&options(&path)).unwrap();
        let snapshot = Snapshot::of(&store, "").await.unwrap();
        assert_eq!(snapshot.revision, Revision(3 + round));
        assert_eq!(snapshot.entries["k/1"].revision, Revision(2));
        let event = store.watch(Revision(1)).await.unwrap().next().await.unwrap();
        assert!(event.changes.contains_key("k/1"), "the log is still there");
        store.commit(vec![put(&format!("new/{round}"), "1")]).await.unwrap();
        store.close().await;
    }
    let database = Database::open(&path).unwrap();
    let meta = database.begin_read().unwrap().open_table(tables::META).unwrap();
    assert_eq!(meta.get(tables::FORMAT).unwrap().unwrap().value(), 2);
}

#[tokio::test]
async fn the_log_is_cut_only_as_far_as_the_table_of_keys_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let short = Options { log_revisions: 1, ..options(&path) };
    let store = Embedded::open(&short).unwrap();
    for n in 0..500 {
        store.commit(vec![put(&format!("k/{n}"), "1")]).await.unwrap();
    }
    store.close().await;
    let store = Embedded::open(&short).unwrap();
    assert_eq!(Snapshot::of(&store, "k/").await.unwrap().entries.len(), 500);
    store.close().await;
    let database = Database::open(&path).unwrap();
    let log = database.begin_read().unwrap().open_table(tables::LOG).unwrap();
    assert!(log.len().unwrap() < 200, "{} records of the log are left", log.len().unwrap());
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

fn on_a_failing_disk(path: &Path, fails: &Arc<AtomicBool>) -> Embedded {
    let (reopen, disk) = (options(path), fails.clone());
    let open = move || {
        let file = fs::OpenOptions::new().read(true).write(true).open(&reopen.path).unwrap();
        let file = FileBackend::new(file).unwrap();
        file::open_backend(&reopen, FailingDisk { file, fails: disk.clone() })
    };
    Embedded::start(Engine::new(open().unwrap(), Box::new(open), 100).unwrap()).unwrap()
}

#[tokio::test]
async fn a_read_whose_file_fails_in_the_middle_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    filled(&path).await;
    let fails = Arc::new(AtomicBool::new(false));
    let store = on_a_failing_disk(&path, &fails);
    let mut pages = store.read("").await.unwrap();
    assert!(pages.next().await.unwrap().is_some());
    fails.store(true, Ordering::SeqCst);
    store.commit(vec![put("a", "1")]).await.unwrap_err();
    fails.store(false, Ordering::SeqCst);
    pages.next().await.unwrap_err();
    assert_eq!(Snapshot::of(&store, "k/").await.unwrap().entries.len(), 20, "the next is whole");
}

#[tokio::test]
async fn after_a_failing_disk_the_store_is_read_again_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    filled(&path).await;
    let fails = Arc::new(AtomicBool::new(false));
    let store = on_a_failing_disk(&path, &fails);
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

/// A file system of its own, so small that it is soon full.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=4m", "small"])
            .arg(dir.path())
            .status();
        assert!(mounted.unwrap().success(), "tests run where they may mount");
        Self(dir)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn a_disk_that_is_really_full_loses_nothing_and_works_again_when_there_is_room() {
    let disk = SmallDisk::mount();
    let (path, ballast) = (disk.0.path().join("store.redb"), disk.0.path().join("ballast"));
    fs::write(&ballast, vec![1; 1 << 20]).unwrap();
    let store = Embedded::open(&options(&path)).unwrap();
    let (mut kept, mut refused, mut n) = (Vec::new(), 0, 0);
    while refused < 3 {
        let key = format!("k/{n:05}");
        match store.commit(vec![put(&key, &"x".repeat(20_000))]).await {
            Ok(outcomes) => {
                assert!(matches!(outcomes[..], [Outcome::Committed(_)]));
                kept.push(key);
            }
            Err(CommitError::NotDone(_) | CommitError::Unknown(_)) => refused += 1,
        }
        n += 1;
        assert!(n < 1000, "the disk never was full");
    }
    assert!(kept.len() > 20, "{} were taken", kept.len());
    fs::remove_file(ballast).unwrap();
    let found = Snapshot::of(&store, "k/").await.unwrap().entries;
    assert!(kept.iter().all(|key| found.contains_key(key)), "what was acknowledged is there");
    assert!(found.values().all(|entry| entry.value.len() == 20_000));
    store.commit(vec![put("room", "again")]).await.unwrap();
    store.close().await;

    let store = Embedded::open(&options(&path)).unwrap();
    let after = Snapshot::of(&store, "").await.unwrap().entries;
    assert!(found.keys().all(|key| after.contains_key(key)) && after.contains_key("room"));
    store.close().await;
}

//! Pure: a crash at any moment, of the program or of the machine, loses nothing that was told.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use proptest::prelude::*;
use redb::StorageBackend;

use super::*;
use crate::store::{Key, Snapshot, Write};

/// What a machine may do to what was written and not yet synced.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Kept,
    Lost,
    /// Only so many of its sectors came to the disk.
    Torn(usize),
}

#[derive(Clone, Debug)]
enum Op {
    Write(usize, Vec<u8>),
    Length(usize),
    Sync,
}

/// A file in memory that remembers everything that was done to it.
#[derive(Clone, Debug, Default)]
struct Tape(Arc<Mutex<(Vec<u8>, Vec<Op>)>>);

impl Tape {
    fn of(file: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new((file, Vec::new()))))
    }

    fn with<T>(&self, f: impl FnOnce(&mut Vec<u8>, &mut Vec<Op>) -> T) -> T {
        let mut both = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (file, ops) = &mut *both;
        f(file, ops)
    }

    fn done(&self) -> usize {
        self.with(|_, ops| ops.len())
    }
}

fn write_at(file: &mut Vec<u8>, at: usize, data: &[u8]) {
    file.resize(file.len().max(at + data.len()), 0);
    file[at..at + data.len()].copy_from_slice(data);
}

impl StorageBackend for Tape {
    fn len(&self) -> io::Result<u64> {
        Ok(self.with(|file, _| file.len()).try_into().unwrap())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let at = usize::try_from(offset).unwrap();
        self.with(|file, _| {
            let found = file.get(at..at + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            out.copy_from_slice(found);
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let length = usize::try_from(len).unwrap();
        self.with(|file, ops| {
            file.resize(length, 0);
            ops.push(Op::Length(length));
        });
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.with(|_, ops| ops.push(Op::Sync));
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let at = usize::try_from(offset).unwrap();
        self.with(|file, ops| {
            write_at(file, at, data);
            ops.push(Op::Write(at, data.to_vec()));
        });
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        Ok(())
    }
}

/// The file as the disk has it when the machine stops after `done` operations.
fn after_crash(start: &[u8], ops: &[Op], done: usize, fates: &[Fate]) -> Vec<u8> {
    let ops = &ops[..done];
    let synced = ops.iter().rposition(|op| matches!(op, Op::Sync)).unwrap_or(0);
    let mut file = start.to_vec();
    for (n, op) in ops.iter().enumerate() {
        let fate = if n < synced { Fate::Kept } else { fates[n % fates.len()] };
        match (op, fate) {
            (Op::Write(at, data), Fate::Kept) => write_at(&mut file, *at, data),
            (Op::Write(at, data), Fate::Torn(sectors)) => {
                write_at(&mut file, *at, &data[..data.len().min(sectors * 512)]);
            }
            (Op::Length(length), _) => file.resize(*length, 0),
            (Op::Write(_, _), Fate::Lost) | (Op::Sync, _) => {}
        }
    }
    file
}

type Contents = BTreeMap<Key, Vec<u8>>;

fn apply(contents: &mut Contents, changes: &BTreeMap<Key, Write>) {
    for (key, write) in changes {
        match write {
            Write::Put(value) | Write::Ephemeral(value) => {
                contents.insert(key.clone(), value.to_vec());
            }
            Write::Delete => drop(contents.remove(key)),
        }
    }
}

fn open(tape: Tape) -> Embedded {
    let options =
        Options { path: Path::new("tape").to_owned(), cache_bytes: 1 << 20, log_revisions: 10_000 };
    let open = move || file::open_backend(&options, tape.clone());
    Embedded::start(Engine::new(open().unwrap(), Box::new(open), 10_000).unwrap()).unwrap()
}

/// What a run did: the file at its start, all that was done to it, and after how much of that
/// each revision was told, with what the store had then.
struct Run {
    start: Vec<u8>,
    ops: Vec<Op>,
    told: Vec<(usize, Revision)>,
    contents: BTreeMap<Revision, Contents>,
}

async fn run(batches: Vec<BTreeMap<Key, Write>>) -> Run {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let options = Options { path: path.clone(), cache_bytes: 1 << 20, log_revisions: 10_000 };
    Embedded::open(&options).unwrap().close().await;
    let start = std::fs::read(path).unwrap();

    let tape = Tape::of(start.clone());
    let store = open(tape.clone());
    let Snapshot { revision, entries } = Snapshot::of(&store, "").await.unwrap();
    let mut now: Contents =
        entries.into_iter().map(|(key, entry)| (key, entry.value.to_vec())).collect();
    let mut contents = BTreeMap::from([(revision, now.clone())]);
    let mut told = vec![(0, revision)];
    for changes in batches {
        apply(&mut now, &changes);
        let txn = Txn { writes: changes, ..Txn::default() };
        let Outcome::Committed(revision) = store.commit(vec![txn]).await.unwrap().remove(0) else {
            panic!("nothing was compared");
        };
        told.push((tape.done(), revision));
        contents.insert(revision, now.clone());
    }
    let ops = tape.with(|_, ops| ops.clone());
    store.close().await;
    Run { start, ops, told, contents }
}

async fn nothing_told_is_lost(run: &Run, done: usize, fates: &[Fate]) {
    let store = open(Tape::of(after_crash(&run.start, &run.ops, done, fates)));
    let found = Snapshot::of(&store, "").await.unwrap();
    let newest = run.told.iter().take_while(|(at, _)| *at <= done).last().unwrap().1;
    assert!(found.revision >= newest, "{} was told, {} is there", newest, found.revision);
    let entries: Contents =
        found.entries.into_iter().map(|(key, entry)| (key, entry.value.to_vec())).collect();
    assert_eq!(entries, run.contents[&found.revision], "as it was at {}", found.revision);

    let mut watch = store.watch(Revision(0)).await.unwrap();
    let mut replayed = Contents::new();
    for _ in 0..found.revision.0 {
        apply(&mut replayed, &watch.next().await.unwrap().changes);
    }
    assert_eq!(replayed, entries, "the log tells the same");
    store.close().await;
}

fn any_changes() -> impl Strategy<Value = BTreeMap<Key, Write>> {
    let write = prop_oneof![
        1 => Just(Write::Delete),
        3 => (0..3_usize).prop_map(|n| Write::Put("x".repeat(n * 700).into())),
    ];
    prop::collection::btree_map("k/[0-9a-f]", write, 1..4)
}

fn any_fate() -> impl Strategy<Value = Fate> {
    prop_oneof![Just(Fate::Kept), Just(Fate::Lost), (0..8_usize).prop_map(Fate::Torn)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn whenever_it_crashes_every_revision_that_was_told_is_there(
        batches in prop::collection::vec(any_changes(), 20..60),
        fates in prop::collection::vec(any_fate(), 1..50),
        moments in prop::collection::vec(any::<prop::sample::Index>(), 40),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let run = run(batches).await;
            for moment in moments {
                let done = moment.index(run.ops.len() + 1);
                nothing_told_is_lost(&run, done, &fates).await;
                // The program dies, the machine does not.
                nothing_told_is_lost(&run, done, &[Fate::Kept]).await;
            }
        });
    }
}

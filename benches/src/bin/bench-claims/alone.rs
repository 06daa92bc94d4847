//! Edge: what the disk and the embedded store's library do alone with what claims write.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use limpet_benches::count;
use redb::{Database, TableDefinition};

/// About what a claim writes, in bytes: attachment, two addresses, reservation.
pub(crate) const RECORDS: [usize; 4] = [420, 120, 120, 330];

/// How many keys the store keeps in memory before it brings them to where they belong.
const FOLD: usize = 8192;

const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const KEYS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("keys");

/// Appends of claims' records per second, `at_once` claims to a sync.
pub(crate) fn appends(disk: &Path, at_once: usize, run: Duration) -> Result<f64> {
    let record = vec![0x5a; RECORDS.iter().sum::<usize>() * at_once];
    let mut file = File::create(disk.join("appended"))?;
    let (start, mut done) = (Instant::now(), 0);
    while start.elapsed() < run {
        file.write_all(&record)?;
        file.sync_data()?;
        done += at_once;
    }
    Ok(count(done) / start.elapsed().as_secs_f64())
}

/// The library with the store's tables and the store's way to write them: one record of a log for
/// each commit, and later the keys, in their order, some with each commit.
pub(crate) struct Alone {
    database: Database,
    commits: u64,
    keys: u64,
    later: Vec<u64>,
    folding: Vec<u64>,
}

impl Alone {
    /// Makes a file of its own.
    pub(crate) fn new(disk: &Path) -> Result<Self> {
        let database = Database::create(disk.join("alone.redb"))?;
        Ok(Self { database, commits: 0, keys: 0, later: Vec::new(), folding: Vec::new() })
    }

    /// Claims that it makes durable per second, `at_once` to a commit.
    pub(crate) fn commits(&mut self, at_once: usize, run: Duration) -> Result<f64> {
        let (start, mut done) = (Instant::now(), 0);
        while start.elapsed() < run {
            self.commit(at_once)?;
            done += at_once;
        }
        Ok(count(done) / start.elapsed().as_secs_f64())
    }

    fn commit(&mut self, at_once: usize) -> Result<()> {
        let record = vec![0x5a; RECORDS.iter().sum::<usize>() * at_once];
        let transaction = self.database.begin_write()?;
        self.commits += 1;
        transaction.open_table(LOG)?.insert(self.commits, record.as_slice())?;
        if self.folding.is_empty() && self.later.len() >= FOLD {
            self.folding = std::mem::take(&mut self.later);
            self.folding.sort_unstable_by(|a, b| b.cmp(a));
        }
        let chunk = (2 * at_once * RECORDS.len()).max(64).min(self.folding.len());
        let mut keys = transaction.open_table(KEYS)?;
        for key in self.folding.drain(self.folding.len() - chunk..) {
            let kind = usize::try_from(key >> 60)?;
            let length = *RECORDS.get(kind).context("four kinds of keys")?;
            keys.insert(key, record.get(..length).context("a record of all")?)?;
        }
        drop(keys);
        transaction.commit()?;
        for _ in 0..at_once {
            self.keys += 1;
            // Each kind has a part of the table of its own, as prefixes give it to them.
            self.later.extend((0..4_u64).map(|kind| kind << 60 | self.keys));
        }
        Ok(())
    }
}

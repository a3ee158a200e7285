//! Other engines as a queue would use them, and the floor: a bare write and fdatasync.
//!
//! Each record is a key of tenant and sequence with the payload as its value; a group is one batch and one fsync; what was
//! delivered is removed a thousand records at a time, with the next group. The floor writes groups of the same size into
//! files that are preallocated and used again: no checksum, no index, no hand-over.

use std::collections::VecDeque;
use std::fs::File;
use std::io::IoSlice;
use std::path::Path;
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use rustix::fs::FallocateFlags;

use super::arm::{Engine, Latencies, Load};
use super::pillion::SEGMENT_BYTES;

/// Of each engine that has a cache.
const CACHE_BYTES: usize = 32 << 20;
/// Delivered records that are removed at once.
const REMOVED_AT_ONCE: usize = 1_000;

type Key = [u8; 12];

/// The engine of that name.
pub(crate) fn open(name: &str, dir: &Path, load: &Load) -> Result<Box<dyn Engine>> {
    Ok(match name {
        "bare" => Box::new(Bare::open(dir, load)?),
        "sled" => Box::new(Keyed::new(load, Sled::open(dir)?)),
        "fjall" => Box::new(Keyed::new(load, Fjall::open(dir)?)),
        "redb" => Box::new(Keyed::new(load, Redb::open(dir)?)),
        _ => bail!("unknown engine {name:?}"),
    })
}

/// The floor.
struct Bare {
    files: Vec<File>,
    file: usize,
    offset: u64,
    payload: Vec<u8>,
    group: usize,
}

impl Bare {
    fn open(dir: &Path, load: &Load) -> Result<Self> {
        let file = |number: usize| {
            let file = File::create(dir.join(number.to_string()))?;
            rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, SEGMENT_BYTES)?;
            Ok(file)
        };
        let files = (0..3).map(file).collect::<Result<_>>()?;
        Ok(Self { files, file: 0, offset: 0, payload: vec![7; load.record_bytes], group: load.group })
    }
}

impl Engine for Bare {
    fn run(&mut self, records: u64, latencies: &mut Latencies) -> Result<()> {
        let group: Vec<_> = (0..self.group).map(|_| IoSlice::new(&self.payload)).collect();
        let mut left = usize::try_from(records)?;
        while left > 0 {
            let group = &group[..left.min(self.group)];
            let group_bytes = (group.len() * self.payload.len()) as u64;
            left -= group.len();
            if self.offset + group_bytes > SEGMENT_BYTES {
                (self.file, self.offset) = ((self.file + 1) % self.files.len(), 0);
            }
            let started = Instant::now();
            let written = rustix::io::pwritev(&self.files[self.file], group, self.offset)?;
            ensure!(written as u64 == group_bytes, "a part of a group was written");
            rustix::fs::fdatasync(&self.files[self.file])?;
            latencies.push(started.elapsed());
            self.offset += group_bytes;
        }
        Ok(())
    }
}

/// Something with keys and values.
trait Store {
    /// One batch, durable when it returns.
    fn commit(&mut self, added: &[Key], payload: &[u8], removed: &[Key]) -> Result<()>;
}

struct Keyed<S> {
    store: S,
    load: Load,
    payload: Vec<u8>,
    sequence: u64,
    delivered: VecDeque<Key>,
}

impl<S> Keyed<S> {
    fn new(load: &Load, store: S) -> Self {
        Self { store, load: *load, payload: vec![7; load.record_bytes], sequence: 0, delivered: VecDeque::new() }
    }
}

impl<S: Store> Engine for Keyed<S> {
    fn run(&mut self, records: u64, latencies: &mut Latencies) -> Result<()> {
        let (mut added, mut removed) = (Vec::new(), Vec::new());
        for _ in 0..records / self.load.group as u64 {
            added.clear();
            removed.clear();
            for _ in 0..self.load.group {
                self.sequence += 1;
                let tenant = u32::try_from(self.sequence % u64::from(self.load.tenants))?;
                let mut key = [0; 12];
                key[..4].copy_from_slice(&tenant.to_be_bytes());
                key[4..].copy_from_slice(&self.sequence.to_be_bytes());
                added.push(key);
            }
            if self.delivered.len() >= REMOVED_AT_ONCE {
                removed.extend(self.delivered.drain(..));
            }
            let started = Instant::now();
            self.store.commit(&added, &self.payload, &removed)?;
            latencies.push(started.elapsed());
            self.delivered.extend(&added);
        }
        Ok(())
    }
}

struct Sled {
    db: sled::Db,
    file: File,
}

impl Sled {
    fn open(dir: &Path) -> Result<Self> {
        let db = sled::Config::new().path(dir).cache_capacity(CACHE_BYTES as u64).flush_every_ms(None).open()?;
        Ok(Self { db, file: File::open(dir.join("db"))? })
    }
}

impl Store for Sled {
    fn commit(&mut self, added: &[Key], payload: &[u8], removed: &[Key]) -> Result<()> {
        let mut batch = sled::Batch::default();
        added.iter().for_each(|key| batch.insert(key, payload));
        removed.iter().for_each(|key| batch.remove(key));
        self.db.apply_batch(batch)?;
        self.db.flush()?;
        // Its flush only writes.
        Ok(rustix::fs::fdatasync(&self.file)?)
    }
}

struct Fjall {
    db: fjall::Database,
    records: fjall::Keyspace,
}

impl Fjall {
    fn open(dir: &Path) -> Result<Self> {
        let db = fjall::Database::builder(dir).cache_size(CACHE_BYTES as u64).open()?;
        // What it advises for large values.
        let options =
            || fjall::KeyspaceCreateOptions::default().with_kv_separation(Some(fjall::KvSeparationOptions::default()));
        let records = db.keyspace("records", options)?;
        Ok(Self { db, records })
    }
}

impl Store for Fjall {
    fn commit(&mut self, added: &[Key], payload: &[u8], removed: &[Key]) -> Result<()> {
        let mut batch = self.db.batch().durability(Some(fjall::PersistMode::SyncData));
        added.iter().for_each(|key| batch.insert(&self.records, *key, payload));
        removed.iter().for_each(|key| batch.remove(&self.records, *key));
        Ok(batch.commit()?)
    }
}

const RECORDS: redb::TableDefinition<'_, &[u8], &[u8]> = redb::TableDefinition::new("records");

struct Redb(redb::Database);

impl Redb {
    fn open(dir: &Path) -> Result<Self> {
        Ok(Self(redb::Builder::new().set_cache_size(CACHE_BYTES).create(dir.join("redb"))?))
    }
}

impl Store for Redb {
    fn commit(&mut self, added: &[Key], payload: &[u8], removed: &[Key]) -> Result<()> {
        let transaction = self.0.begin_write()?;
        {
            let mut records = transaction.open_table(RECORDS)?;
            for key in added {
                records.insert(key.as_slice(), payload)?;
            }
            for key in removed {
                records.remove(key.as_slice())?;
            }
        }
        Ok(transaction.commit()?)
    }
}

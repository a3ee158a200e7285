//! A disk in memory that loses power as the worst permitted filesystem would.
//!
//! What was written and not synced survives or not by sector, each on its own, so writes are dropped, torn and reordered.
//! Creations, renames and removals that were not synced survive up to a random point of their order. It also flips bits,
//! fails syncs and writes, and fills up. Everything random comes from the seed.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex};

use super::{Disk, Free};

const SECTOR: usize = 512;

/// A simulated directory. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct SimDisk(Arc<Mutex<Inner>>);

/// An open file of it. One that was open at a power loss is of the old world: using it is an error.
#[derive(Debug)]
pub(crate) struct SimFile {
    inode: usize,
    boot: u32,
}

#[derive(Debug)]
struct Inner {
    rng: fastrand::Rng,
    boot: u32,
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    pending_names: Vec<NameChange>,
    faults: Faults,
    dead: bool,
    syncs: u64,
    writes: u64,
}

/// What goes wrong without a power loss.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Faults {
    /// Bytes of files that fit; 0: no limit.
    pub(crate) capacity: u64,
    /// The n-th sync from now fails (1: the next); 0: none. What it should have made durable is lost.
    pub(crate) sync_fails_in: u64,
    /// The n-th write from now fails half done; 0: none.
    pub(crate) write_fails_in: u64,
    /// The process dies at the n-th change from now: it half happens if it is a write, and nothing happens after; 0: never.
    pub(crate) dies_in: u64,
    /// Bytes that the filesystem says are free, of 1000; 0: all of them.
    pub(crate) free: u64,
    /// Reads that touch this sector of this file fail.
    pub(crate) unreadable: Option<(usize, u64)>,
}

#[derive(Debug, Default, Clone)]
struct Inode {
    now: Vec<u8>,
    durable: Vec<u8>,
    /// Versions of each sector since the last sync, oldest first.
    pending: BTreeMap<usize, Vec<Vec<u8>>>,
}

#[derive(Debug)]
enum NameChange {
    Create(String, usize),
    Rename(String, String),
    Remove(String),
}

impl SimDisk {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            rng: fastrand::Rng::with_seed(seed),
            boot: 0,
            inodes: Vec::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            pending_names: Vec::new(),
            faults: Faults::default(),
            dead: false,
            syncs: 0,
            writes: 0,
        })))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().expect("no test panics while it holds the lock")
    }

    pub(crate) fn set_faults(&self, faults: Faults) {
        self.lock().faults = faults;
    }

    /// Syncs and writes so far.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let inner = self.lock();
        (inner.syncs, inner.writes)
    }

    /// Loses power: what was not synced is dropped, torn and reordered.
    pub(crate) fn lose_power(&self) {
        let mut inner = self.lock();
        let Inner { rng, inodes, durable_names, pending_names, .. } = &mut *inner;
        let survive = rng.usize(0..=pending_names.len());
        for change in pending_names.drain(..).take(survive) {
            apply(durable_names, change);
        }
        for inode in inodes.iter_mut() {
            inode.lose_power(rng);
        }
        inner.names = inner.durable_names.clone();
        inner.faults = Faults { capacity: inner.faults.capacity, ..Faults::default() };
        inner.boot += 1;
        inner.dead = false;
    }

    /// The process dies: everything written is still there.
    pub(crate) fn kill(&self) {
        let mut inner = self.lock();
        inner.boot += 1;
        inner.dead = false;
        inner.faults = Faults { capacity: inner.faults.capacity, ..Faults::default() };
    }

    /// Flips one bit of a file at rest.
    pub(crate) fn flip_bit(&self, name: &str, bit: usize) {
        let mut inner = self.lock();
        let inode = inner.names[name];
        let inode = &mut inner.inodes[inode];
        inode.now[bit / 8] ^= 1 << (bit % 8);
        inode.durable = inode.now.clone();
        inode.pending.clear();
    }

    /// The length of a file.
    pub(crate) fn bytes_of(&self, name: &str) -> u64 {
        let inner = self.lock();
        inner.inodes[inner.names[name]].now.len() as u64
    }

    /// The bytes of a file.
    pub(crate) fn bytes(&self, name: &str) -> Vec<u8> {
        let inner = self.lock();
        inner.inodes[inner.names[name]].now.clone()
    }

    /// Puts a file there, as if it had always been.
    pub(crate) fn put(&self, name: &str, bytes: Vec<u8>) {
        let mut inner = self.lock();
        let inode = inner.inodes.len();
        inner.inodes.push(Inode { now: bytes.clone(), durable: bytes, pending: BTreeMap::new() });
        inner.names.insert(name.to_owned(), inode);
        inner.durable_names.insert(name.to_owned(), inode);
    }

    /// Makes one sector of a file unreadable.
    pub(crate) fn make_unreadable(&self, name: &str, sector: u64) {
        let mut inner = self.lock();
        inner.faults.unreadable = Some((inner.names[name], sector));
    }
}

impl Inner {
    fn inode(&mut self, file: &SimFile) -> io::Result<&mut Inode> {
        if file.boot != self.boot {
            return Err(io::Error::other("a file of before the crash"));
        }
        Ok(&mut self.inodes[file.inode])
    }

    /// Every change passes here.
    fn live(&mut self) -> io::Result<()> {
        self.dead |= due(&mut self.faults.dies_in);
        if self.dead { Err(io::Error::other("the process is dead")) } else { Ok(()) }
    }

    fn room(&self, more: u64) -> io::Result<()> {
        let used: usize = self.names.values().map(|inode| self.inodes[*inode].now.len()).sum();
        if self.faults.capacity > 0 && used as u64 + more > self.faults.capacity {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn find(&self, name: &str) -> io::Result<usize> {
        self.names.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Inode {
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        if self.now.len() < offset + bytes.len() {
            self.now.resize(offset + bytes.len(), 0);
        }
        self.now[offset..offset + bytes.len()].copy_from_slice(bytes);
        for sector in offset / SECTOR..(offset + bytes.len()).div_ceil(SECTOR) {
            let end = ((sector + 1) * SECTOR).min(self.now.len());
            let version = self.now[sector * SECTOR..end].to_vec();
            self.pending.entry(sector).or_default().push(version);
        }
    }

    fn lose_power(&mut self, rng: &mut fastrand::Rng) {
        // The new length may or may not have reached the disk.
        if self.now.len() != self.durable.len() && rng.bool() {
            self.durable.resize(self.now.len(), 0);
        }
        // Often nothing or everything of a file survives; else each sector on its own, in any of its versions.
        let odds = rng.u8(0..4);
        for (sector, versions) in std::mem::take(&mut self.pending) {
            let survives = match odds {
                0 => false,
                1 => true,
                _ => rng.bool(),
            };
            let start = sector * SECTOR;
            if !survives || start >= self.durable.len() {
                continue;
            }
            let version = if odds == 1 { versions.len() - 1 } else { rng.usize(0..versions.len()) };
            let length = versions[version].len().min(self.durable.len() - start);
            self.durable[start..start + length].copy_from_slice(&versions[version][..length]);
        }
        self.now = self.durable.clone();
    }
}

fn apply(names: &mut BTreeMap<String, usize>, change: NameChange) {
    match change {
        NameChange::Create(name, inode) => drop(names.insert(name, inode)),
        NameChange::Rename(from, to) => {
            if let Some(inode) = names.remove(&from) {
                names.insert(to, inode);
            }
        }
        NameChange::Remove(name) => drop(names.remove(&name)),
    }
}

/// Counts down to a fault; true when it is due.
fn due(countdown: &mut u64) -> bool {
    let due = *countdown == 1;
    *countdown = countdown.saturating_sub(1);
    due
}

impl Disk for SimDisk {
    type File = SimFile;

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.lock().names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<SimFile> {
        let inner = self.lock();
        Ok(SimFile { inode: inner.find(name)?, boot: inner.boot })
    }

    fn create(&self, name: &str, length: u64) -> io::Result<SimFile> {
        let mut inner = self.lock();
        inner.live()?;
        inner.room(length)?;
        let inode = inner.inodes.len();
        let size = usize::try_from(length).expect("a small file");
        inner.inodes.push(Inode { now: vec![0; size], ..Inode::default() });
        inner.names.insert(name.to_owned(), inode);
        inner.pending_names.push(NameChange::Create(name.to_owned(), inode));
        Ok(SimFile { inode, boot: inner.boot })
    }

    fn resize(&self, file: &SimFile, length: u64) -> io::Result<()> {
        let mut inner = self.lock();
        inner.live()?;
        let size = usize::try_from(length).expect("a small file");
        let grows = size.saturating_sub(inner.inode(file)?.now.len());
        inner.room(grows as u64)?;
        let inode = inner.inode(file)?;
        inode.now.resize(size, 0);
        Ok(())
    }

    fn length(&self, file: &SimFile) -> io::Result<u64> {
        Ok(self.lock().inode(file)?.now.len() as u64)
    }

    fn read_at(&self, file: &SimFile, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut inner = self.lock();
        if let Some((inode, sector)) = inner.faults.unreadable {
            let start = sector * SECTOR as u64;
            if inode == file.inode && offset < start + SECTOR as u64 && offset + buf.len() as u64 > start {
                return Err(io::Error::from_raw_os_error(libc::EIO));
            }
        }
        let now = &inner.inode(file)?.now;
        let start = usize::try_from(offset).expect("a small file").min(now.len());
        let length = buf.len().min(now.len() - start);
        buf[..length].copy_from_slice(&now[start..start + length]);
        Ok(length)
    }

    fn write_at(&self, file: &SimFile, offset: u64, parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        let mut inner = self.lock();
        inner.writes += 1;
        let mut bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        let was_dead = inner.dead;
        let fails = inner.live().is_err() | due(&mut inner.faults.write_fails_in);
        if was_dead {
            return Err(io::Error::other("the process is dead"));
        }
        if fails {
            bytes.truncate(bytes.len() / 2);
        }
        let offset = usize::try_from(offset).expect("a small file");
        inner.inode(file)?.write(offset, &bytes);
        if fails { Err(io::Error::from_raw_os_error(libc::EIO)) } else { Ok(()) }
    }

    fn sync(&self, file: &SimFile) -> io::Result<()> {
        let mut inner = self.lock();
        inner.live()?;
        inner.syncs += 1;
        let fails = due(&mut inner.faults.sync_fails_in);
        let inode = inner.inode(file)?;
        if fails {
            // As Linux does it: the pages are marked clean, and a second sync would say that all is well.
            inode.pending.clear();
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        inode.durable = inode.now.clone();
        inode.pending.clear();
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut inner = self.lock();
        inner.live()?;
        inner.find(from)?;
        apply(&mut inner.names, NameChange::Rename(from.to_owned(), to.to_owned()));
        inner.pending_names.push(NameChange::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut inner = self.lock();
        inner.live()?;
        inner.find(name)?;
        apply(&mut inner.names, NameChange::Remove(name.to_owned()));
        inner.pending_names.push(NameChange::Remove(name.to_owned()));
        Ok(())
    }

    fn free(&self) -> io::Result<Free> {
        let free = self.lock().faults.free;
        Ok(Free { available: if free == 0 { 1000 } else { free }, total: 1000 })
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut inner = self.lock();
        inner.live()?;
        if due(&mut inner.faults.sync_fails_in) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        inner.syncs += 1;
        let Inner { durable_names, pending_names, .. } = &mut *inner;
        for change in pending_names.drain(..) {
            apply(durable_names, change);
        }
        Ok(())
    }
}

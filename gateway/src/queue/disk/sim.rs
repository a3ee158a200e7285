//! A disk in memory that loses power as the worst permitted filesystem would.
//!
//! Everything random comes from the seed. What it may do, and no more than a filesystem may:
//!
//! ```text
//! not synced       each sector (512 bytes) survives or not on its own, in any of its versions: dropped, torn, reordered
//! length           a new one that was not synced may be there or not
//! names            what was not synced of one file survives up to some point of its order; files know nothing of one
//!                  another, so a later rename may survive an earlier removal. A rename is there or not, never half
//! failed sync      an error; of the sectors any may have been written, and no later sync knows of the others
//! failed write     an error after half of it
//! full             by bytes, or at one call that can allocate: create, resize, write, sync, rename, sync of the directory
//! unreadable       reads of a page (4096 bytes) and writes of a part of it fail, until it is written as a whole
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex};

use super::{Disk, Free};

/// What survives or not as a whole.
const SECTOR: usize = 512;
/// What the kernel reads or not as a whole.
pub(crate) const PAGE: usize = 4096;

/// A simulated directory. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct SimDisk(Arc<Mutex<Inner>>);

/// An open file of it. One that was open at a power loss is of the old world: using it is an error.
#[derive(Debug)]
pub(crate) struct SimFile {
    inode: usize,
    boot: u32,
}

#[derive(Debug, Clone)]
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
    /// The n-th call from now that can allocate finds no space; 0: none.
    pub(crate) full_in: u64,
    /// The n-th read from now panics; 0: none.
    pub(crate) read_panics_in: u64,
}

#[derive(Debug, Default, Clone)]
struct Inode {
    now: Vec<u8>,
    durable: Vec<u8>,
    /// Versions of each sector since the last sync, oldest first.
    pending: BTreeMap<usize, Vec<Vec<u8>>>,
    unreadable: BTreeSet<usize>,
}

/// A change of the directory, and of which file.
#[derive(Debug, Clone)]
struct NameChange {
    inode: usize,
    what: NameChanged,
}

#[derive(Debug, Clone)]
enum NameChanged {
    Create(String),
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

    /// The process dies at the n-th change from now; 0: not.
    pub(crate) fn die_in(&self, changes: u64) {
        self.lock().faults.dies_in = changes;
    }

    /// Whether the process has died.
    pub(crate) fn is_dead(&self) -> bool {
        self.lock().dead
    }

    /// Syncs and writes so far.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let inner = self.lock();
        (inner.syncs, inner.writes)
    }

    /// The same disk in another world, with another fate.
    pub(crate) fn copy(&self, seed: u64) -> Self {
        let copy = Inner { rng: fastrand::Rng::with_seed(seed), ..self.lock().clone() };
        Self(Arc::new(Mutex::new(copy)))
    }

    /// Loses power: what was not synced is dropped, torn and reordered.
    pub(crate) fn lose_power(&self) {
        let mut inner = self.lock();
        inner.lose_names();
        let Inner { rng, inodes, .. } = &mut *inner;
        for inode in inodes.iter_mut() {
            inode.lose_power(rng);
        }
        inner.names = inner.durable_names.clone();
        inner.restart();
    }

    /// The process dies: everything written is still there.
    pub(crate) fn kill(&self) {
        self.lock().restart();
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
        inner.inodes.push(Inode { now: bytes.clone(), durable: bytes, ..Inode::default() });
        inner.names.insert(name.to_owned(), inode);
        inner.durable_names.insert(name.to_owned(), inode);
    }

    /// Makes one page of a file unreadable.
    pub(crate) fn make_unreadable(&self, name: &str, page: usize) {
        let mut inner = self.lock();
        let inode = inner.names[name];
        inner.inodes[inode].unreadable.insert(page);
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

    /// Every call that can allocate passes here, with the bytes that it certainly needs.
    fn room(&mut self, more: u64) -> io::Result<()> {
        if due(&mut self.faults.full_in) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let used: usize = self.names.values().map(|inode| self.inodes[*inode].now.len()).sum();
        if more > 0 && self.faults.capacity > 0 && used as u64 + more > self.faults.capacity {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn find(&self, name: &str) -> io::Result<usize> {
        self.names.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn change_name(&mut self, inode: usize, what: NameChanged) {
        let change = NameChange { inode, what };
        change.apply(&mut self.names);
        self.pending_names.push(change);
    }

    /// Of each file's changes those up to some point are durable; sometimes it is the same point for all.
    fn lose_names(&mut self) {
        let Self { rng, durable_names, pending_names, .. } = self;
        let in_order = rng.bool().then(|| rng.usize(0..=pending_names.len()));
        let mut lost = BTreeSet::new();
        for (number, change) in pending_names.drain(..).enumerate() {
            let survives = in_order.map_or_else(|| rng.bool(), |point| number < point);
            if !survives {
                lost.insert(change.inode);
            }
            if !lost.contains(&change.inode) {
                change.apply(durable_names);
            }
        }
    }

    /// Files that are open are of the old world; what has no name any more is gone.
    fn restart(&mut self) {
        self.boot += 1;
        self.dead = false;
        self.faults = Faults { capacity: self.faults.capacity, ..Faults::default() };
        let named: BTreeSet<usize> = self.names.values().chain(self.durable_names.values()).copied().collect();
        for (number, inode) in self.inodes.iter_mut().enumerate().filter(|(number, _)| !named.contains(number)) {
            if self.pending_names.iter().all(|change| change.inode != number) {
                *inode = Inode::default();
            }
        }
    }
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<String, usize>) {
        match &self.what {
            NameChanged::Create(name) => drop(names.insert(name.clone(), self.inode)),
            NameChanged::Rename(from, to) => {
                names.remove(from);
                names.insert(to.clone(), self.inode);
            }
            NameChanged::Remove(name) => drop(names.remove(name)),
        }
    }
}

impl Inode {
    fn overwrite_unreadable(&mut self, offset: usize, length: usize) -> io::Result<()> {
        let end = offset + length;
        let touched: Vec<usize> = self.unreadable.range(offset / PAGE..end.div_ceil(PAGE)).copied().collect();
        if touched.iter().any(|page| page * PAGE < offset || (page + 1) * PAGE > end) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        self.unreadable.retain(|page| !touched.contains(page));
        Ok(())
    }

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

    /// As Linux does it: the pages are marked clean, and a second sync would say that all is well.
    fn fail_sync(&mut self, rng: &mut fastrand::Rng) {
        for (sector, versions) in std::mem::take(&mut self.pending) {
            if let Some(version) = versions.last().filter(|_| rng.bool()) {
                self.keep(sector, version);
            }
        }
    }

    fn keep(&mut self, sector: usize, version: &[u8]) {
        let start = sector * SECTOR;
        if start < self.durable.len() {
            let length = version.len().min(self.durable.len() - start);
            self.durable[start..start + length].copy_from_slice(&version[..length]);
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
            if survives {
                let version = if odds == 1 { versions.len() - 1 } else { rng.usize(0..versions.len()) };
                self.keep(sector, &versions[version]);
            }
        }
        self.now.clone_from(&self.durable);
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
        inner.change_name(inode, NameChanged::Create(name.to_owned()));
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
        let panics = due(&mut self.lock().faults.read_panics_in);
        assert!(!panics, "a read that was to panic");
        let mut inner = self.lock();
        let Inode { now, unreadable, .. } = inner.inode(file)?;
        let start = usize::try_from(offset).expect("a small file").min(now.len());
        let length = buf.len().min(now.len() - start);
        if unreadable.range(start / PAGE..(start + length).div_ceil(PAGE)).next().is_some() {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        buf[..length].copy_from_slice(&now[start..start + length]);
        Ok(length)
    }

    fn write_at(&self, file: &SimFile, offset: u64, parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        let mut inner = self.lock();
        inner.writes += 1;
        let mut bytes = Vec::with_capacity(parts.iter().map(|part| part.len()).sum());
        parts.iter().for_each(|part| bytes.extend_from_slice(part));
        let was_dead = inner.dead;
        let fails = inner.live().is_err() | due(&mut inner.faults.write_fails_in);
        if was_dead {
            return Err(io::Error::other("the process is dead"));
        }
        let offset = usize::try_from(offset).expect("a small file");
        let grows = (offset + bytes.len()).saturating_sub(inner.inode(file)?.now.len());
        let full = inner.room(grows as u64);
        if fails || full.is_err() {
            bytes.truncate(bytes.len() / 2);
        }
        let inode = inner.inode(file)?;
        inode.overwrite_unreadable(offset, bytes.len())?;
        inode.write(offset, &bytes);
        if fails { Err(io::Error::from_raw_os_error(libc::EIO)) } else { full }
    }

    fn sync(&self, file: &SimFile) -> io::Result<()> {
        let mut inner = self.lock();
        inner.live()?;
        inner.syncs += 1;
        let fails = due(&mut inner.faults.sync_fails_in);
        let full = inner.room(0);
        let mut rng = inner.rng.clone();
        let inode = inner.inode(file)?;
        full.inspect_err(|_| inode.fail_sync(&mut rng))?;
        if fails {
            inode.fail_sync(&mut rng);
            inner.rng = rng;
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        inode.durable = inode.now.clone();
        inode.pending.clear();
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut inner = self.lock();
        inner.live()?;
        inner.room(0)?;
        let inode = inner.find(from)?;
        inner.change_name(inode, NameChanged::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut inner = self.lock();
        inner.live()?;
        let inode = inner.find(name)?;
        inner.change_name(inode, NameChanged::Remove(name.to_owned()));
        Ok(())
    }

    fn free(&self) -> io::Result<Free> {
        let free = self.lock().faults.free;
        Ok(Free { available: if free == 0 { 1000 } else { free }, total: 1000 })
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut inner = self.lock();
        inner.live()?;
        inner.room(0)?;
        if due(&mut inner.faults.sync_fails_in) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        inner.syncs += 1;
        let Inner { durable_names, pending_names, .. } = &mut *inner;
        for change in pending_names.drain(..) {
            change.apply(durable_names);
        }
        Ok(())
    }
}

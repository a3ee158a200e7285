//! Segment files and their number: new ones, spare ones, and the log's limit.
//!
//! Owns the files that hold no records. A spare has all its blocks reserved before a single append is accepted into it, so
//! a full disk refuses appends and never breaks one. It never decides which segment is done.
//!
//! ```text
//! create .free, blocks reserved, synced          `ensure`; no space: the file is removed, appends are refused
//! directory synced; header written and synced;
//!   .free renamed to .seg, directory synced      `take`: now it may hold records
//! .seg renamed to .free                          `retire`: after the cursors that freed it are durable
//!
//! room counted, a key given                      `lend`: whoever relocates makes, fills and syncs .free with it
//! .free renamed to .seg, directory synced        `settle`: then what it replaces may be retired
//! ```
//! A crash between any two of these leaves a spare, or a segment whose records are all done.

use std::io::{self, IoSlice};
use std::sync::Arc;

use super::disk::{Disk, is_full};
use super::format::{SegmentHeader, SegmentKey};
use super::index::Segment;

/// Spare files that are kept; what is above is given back to the filesystem.
const SPARES_MAX: usize = 2;

/// Why an append cannot be planned.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The limit or the disk is reached. Nothing is damaged.
    Full,
    /// A call failed whose outcome is unknown: the log is poisoned.
    Io(&'static str, io::Error),
}

/// Files without records, and the bytes of those with.
#[derive(Debug)]
pub(crate) struct Space<D: Disk> {
    disk: Arc<D>,
    /// Length of a new segment.
    pub(crate) segment_bytes: u64,
    /// The log's limit.
    pub(crate) disk_bytes_max: u64,
    /// Bytes of files with records.
    pub(crate) used_bytes: u64,
    /// Bytes of files with records that a start has found.
    found_bytes: u64,
    /// Bytes that a relocation may take for its target.
    lent_bytes: u64,
    spares: Vec<Spare<D>>,
    next_id: u64,
    directory_changed: bool,
    rng: fastrand::Rng,
}

#[derive(Debug)]
struct Spare<D: Disk> {
    key: SegmentKey,
    file: Arc<D::File>,
    length: u64,
}

impl<D: Disk> Space<D> {
    /// No files yet; segments are numbered from `next_id`.
    pub(crate) fn new(
        disk: Arc<D>,
        (segment_bytes, disk_bytes_max): (u64, u64),
        next_id: u64,
        rng: fastrand::Rng,
    ) -> Self {
        Self {
            disk,
            segment_bytes,
            disk_bytes_max,
            used_bytes: 0,
            found_bytes: 0,
            lent_bytes: 0,
            spares: Vec::new(),
            next_id,
            directory_changed: true,
            rng,
        }
    }

    /// A start has found all there is, which may be more than the limit: somebody has lowered it.
    pub(crate) fn found_all(&mut self) {
        self.found_bytes = self.used_bytes;
        if self.found_bytes > self.disk_bytes_max {
            let (found, limit) = (self.found_bytes, self.disk_bytes_max);
            tracing::warn!(
                found,
                limit,
                "the queue holds more than its limit: nothing is accepted until enough is delivered"
            );
        }
    }

    /// What may be used when so much of it is left for others. Who leaves nothing frees space with what it writes (cursors and
    /// copies), so it has two segments beyond what was found: otherwise a lowered limit would be for ever.
    fn limit(&self, reserve: u64) -> u64 {
        // What was freed since does not come back.
        let found = self.found_bytes.min(self.used_bytes) + 2 * self.segment_bytes;
        let found = if reserve == 0 { found } else { 0 };
        self.disk_bytes_max.max(found)
    }

    /// Bytes of all files.
    pub(crate) fn disk_bytes(&self) -> u64 {
        self.used_bytes + self.lent_bytes + self.spares.iter().map(|spare| spare.length).sum::<u64>()
    }

    /// Adds a spare that a start has found. It may be broken: then it is removed.
    pub(crate) fn adopt(&mut self, key: SegmentKey) {
        let name = key.free_name();
        let opened = self.disk.open(&name).and_then(|file| Ok((self.disk.length(&file)?, file)));
        match opened {
            Ok((length, file)) if self.spares.len() < SPARES_MAX => {
                self.spares.push(Spare { key, file: Arc::new(file), length });
            }
            _ => drop(self.disk.remove(&name)),
        }
    }

    /// Has `count` spares ready, within the limit. `reserve` bytes below the limit, or in further spares, are left for
    /// others.
    pub(crate) fn ensure(&mut self, count: usize, reserve: u64) -> Result<(), Failure> {
        loop {
            let ready = self.spares.iter().filter(|spare| self.is_ready(spare)).count();
            if let Some(further) = ready.checked_sub(count) {
                let taken = self.disk_bytes() - further as u64 * self.segment_bytes;
                return if taken + reserve <= self.limit(reserve) { Ok(()) } else { Err(Failure::Full) };
            }
            // One whose file is shorter than a segment has given its blocks back.
            let short = self.spares.iter().position(|spare| spare.length < self.segment_bytes);
            let grows = short.map_or(self.segment_bytes, |at| self.segment_bytes - self.spares[at].length);
            if self.disk_bytes() + grows + reserve > self.limit(reserve) {
                return Err(Failure::Full);
            }
            match short {
                Some(at) => {
                    let (file, segment_bytes) = (self.spares[at].file.clone(), self.segment_bytes);
                    let grown = self.disk.resize(&file, segment_bytes).and_then(|()| self.disk.sync(&file));
                    grown.map_err(|error| refusal("reserving space", error))?;
                    self.spares[at].length = segment_bytes;
                }
                None => self.create(self.segment_bytes)?,
            }
        }
    }

    /// Has a spare ready for what frees space by being written: a whole one, or, where the disk has no room for that, one of at
    /// least `bytes`. Without it, others' files would decide whether anything is ever freed.
    pub(crate) fn ensure_some(&mut self, bytes: u64) -> Result<(), Failure> {
        match self.ensure(1, 0) {
            Err(Failure::Full) => {}
            other => return other,
        }
        if let Some(short) = self.spares.iter().find(|spare| holds(spare, bytes)) {
            // A start may have found it with holes.
            let reserved = self.disk.resize(&short.file, short.length).and_then(|()| self.disk.sync(&short.file));
            return reserved.map_err(|error| refusal("reserving space", error));
        }
        let bytes = (bytes + self.segment_bytes / 64).min(self.segment_bytes);
        if self.disk_bytes() + bytes > self.limit(0) {
            return Err(Failure::Full);
        }
        self.create(bytes)
    }

    fn is_ready(&self, spare: &Spare<D>) -> bool {
        holds(spare, self.segment_bytes)
    }

    fn create(&mut self, bytes: u64) -> Result<(), Failure> {
        let key = SegmentKey { id: self.id(), generation: 0, salt: self.rng.u32(..) };
        let name = key.free_name();
        let file = self.disk.create(&name, bytes).map_err(|error| refusal("making a segment", error))?;
        // It holds nothing yet: a failure here loses nothing, and a full disk shows itself here at the latest.
        if let Err(error) = self.disk.sync(&file) {
            drop(self.disk.remove(&name));
            return Err(refusal("syncing a new segment", error));
        }
        self.directory_changed = true;
        self.spares.push(Spare { key, file: Arc::new(file), length: bytes });
        Ok(())
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id - 1
    }

    /// Turns a spare into a segment that may hold records, and says how long it is: whole, or at least `bytes`. `ensure` or
    /// `ensure_some` must have said that there is one.
    pub(crate) fn take(
        &mut self,
        header: &SegmentHeader,
        bytes: u64,
    ) -> Result<(SegmentKey, Arc<D::File>, u64), Failure> {
        let whole = self.spares.iter().position(|spare| self.is_ready(spare));
        let some = || self.spares.iter().position(|spare| holds(spare, bytes));
        let at = whole.or_else(some).ok_or(Failure::Full)?;
        let failed = |action| move |error| Failure::Io(action, error);
        if self.directory_changed {
            self.disk.sync_dir().map_err(failed("syncing the log's directory"))?;
            self.directory_changed = false;
        }
        let spare = self.spares.swap_remove(at);
        let key =
            SegmentKey { id: self.id(), generation: spare.key.generation.wrapping_add(1), salt: self.rng.u32(..) };
        let bytes = header.encode(key);
        self.disk
            .write_at(&spare.file, 0, &mut [IoSlice::new(&bytes)])
            .map_err(failed("writing a segment's header"))?;
        self.disk.sync(&spare.file).map_err(failed("syncing a segment's header"))?;
        self.disk.rename(&spare.key.free_name(), &key.name()).map_err(failed("naming a segment"))?;
        self.disk.sync_dir().map_err(failed("syncing the log's directory"))?;
        self.used_bytes += spare.length;
        Ok((key, spare.file, spare.length))
    }

    /// Room for a segment that is made elsewhere, and its key.
    /// Spares make room for it: on a full log they are what is left of those that cursors took.
    pub(crate) fn lend(&mut self, bytes: u64) -> Result<SegmentKey, Failure> {
        if self.used_bytes + self.lent_bytes + bytes > self.limit(0) {
            return Err(Failure::Full);
        }
        while self.disk_bytes() + bytes > self.limit(0) {
            let spare = self.spares.pop().ok_or(Failure::Full)?;
            let removed = self.disk.remove(&spare.key.free_name());
            removed.map_err(|error| Failure::Io("removing a spare segment", error))?;
            self.directory_changed = true;
        }
        self.lent_bytes += bytes;
        Ok(SegmentKey { id: self.id(), generation: 0, salt: self.rng.u32(..) })
    }

    /// The loan has come to nothing; the file is gone, or never was.
    pub(crate) fn take_back(&mut self, bytes: u64) {
        self.lent_bytes -= bytes;
    }

    /// Gives a segment that was made elsewhere, sealed and synced, its name.
    pub(crate) fn settle(&mut self, segment: &Segment<D>, lent: u64) -> Result<(), Failure> {
        let (from, to) = (segment.key.free_name(), segment.key.name());
        self.disk.rename(&from, &to).map_err(|error| Failure::Io("naming a relocated segment", error))?;
        self.disk.sync_dir().map_err(|error| Failure::Io("syncing the log's directory", error))?;
        self.directory_changed = false;
        self.lent_bytes -= lent;
        self.used_bytes += segment.length;
        Ok(())
    }

    /// Gives up a segment whose records are done: a spare for later, or space for others.
    pub(crate) fn retire(&mut self, segment: &Segment<D>) -> Result<(), Failure> {
        let (key, length) = (segment.key, segment.length);
        if self.spares.len() < SPARES_MAX && length == self.segment_bytes {
            self.disk
                .rename(&key.name(), &key.free_name())
                .map_err(|error| Failure::Io("retiring a segment", error))?;
            self.spares.push(Spare { key, file: segment.file.clone(), length });
        } else {
            self.disk.remove(&key.name()).map_err(|error| Failure::Io("removing a segment", error))?;
        }
        self.used_bytes = self.used_bytes.saturating_sub(length);
        self.directory_changed = true;
        Ok(())
    }
}

/// Whether it is so long and nobody else's: a reader may not be done with its last life.
fn holds<D: Disk>(spare: &Spare<D>, bytes: u64) -> bool {
    spare.length >= bytes && Arc::strong_count(&spare.file) == 1
}

fn refusal(action: &'static str, error: io::Error) -> Failure {
    if is_full(&error) { Failure::Full } else { Failure::Io(action, error) }
}

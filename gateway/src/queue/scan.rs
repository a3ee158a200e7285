//! Reading a segment from one end to the other, whatever is in it.
//!
//! Owns how a scan goes on after damage. It holds one window of the file at a time, never the file.
//!
//! ```text
//! header and payload valid    -> a record; on to the next
//! payload damaged             -> one damaged record; its length is known, on to the next
//! header damaged              -> one damaged record; on to the next multiple of 8 that has a valid header
//! nothing valid up to the end -> the records ended before the damage: what a crash tore was never acknowledged
//! ```

use std::io;

use crc32c::crc32c_append;

use super::disk::Disk;
use super::format::{ALIGN, SegmentKey};
use super::record::{HEADER_BYTES, Header, MAGIC};

/// A file, seen through a window that moves forward.
#[derive(Debug)]
pub(crate) struct Window<'a, D: Disk> {
    disk: &'a D,
    file: &'a D::File,
    length: u64,
    start: u64,
    bytes: Vec<u8>,
}

const WINDOW_BYTES: usize = 1 << 20;
const SECTOR_BYTES: usize = 4096;

impl<'a, D: Disk> Window<'a, D> {
    /// A window on the first `length` bytes.
    pub(crate) fn new(disk: &'a D, file: &'a D::File, length: u64) -> Self {
        Self { disk, file, length, start: 0, bytes: Vec::new() }
    }

    /// The bytes at `offset`: `length` of them, fewer only at the file's end. What the disk cannot read is zeros.
    pub(crate) fn at(&mut self, offset: u64, length: usize) -> &[u8] {
        let wanted = length.min(usize::try_from(self.length.saturating_sub(offset)).unwrap_or(usize::MAX));
        let end = self.start + self.bytes.len() as u64;
        if offset < self.start || offset + wanted as u64 > end {
            self.fill(offset, wanted);
        }
        let from = usize::try_from(offset - self.start).unwrap_or(usize::MAX).min(self.bytes.len());
        &self.bytes[from..(from + wanted).min(self.bytes.len())]
    }

    fn fill(&mut self, offset: u64, wanted: usize) {
        let size = usize::try_from(self.length - offset).unwrap_or(usize::MAX).min(wanted.max(WINDOW_BYTES));
        self.start = offset;
        self.bytes.clear();
        self.bytes.resize(size, 0);
        match self.disk.read_at(self.file, offset, &mut self.bytes) {
            Ok(read) => self.bytes.truncate(read),
            Err(_) => self.fill_by_sector(offset),
        }
    }

    /// One bad sector costs the record it is in, not the window.
    fn fill_by_sector(&mut self, offset: u64) {
        self.bytes.fill(0);
        let mut at = 0;
        for sector in self.bytes.chunks_mut(SECTOR_BYTES) {
            if self.disk.read_at(self.file, offset + at, sector).is_err() {
                sector.fill(0);
            }
            at += sector.len() as u64;
        }
    }
}

/// What a scan found beside the records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ScanEnd {
    /// Where the last valid record ended.
    pub(crate) end: u64,
    /// Damaged records before that.
    pub(crate) damaged: u64,
}

/// Calls `found` with offset, header and payload of every valid record from `from` to `to`.
pub(crate) fn scan<D: Disk>(
    (disk, file, key): (&D, &D::File, SegmentKey),
    (from, to): (u64, u64),
    mut found: impl FnMut(u64, &Header, &[u8]),
) -> io::Result<ScanEnd> {
    let seed = key.seed();
    let mut window = Window::new(disk, file, to.min(disk.length(file)?));
    let mut result = ScanEnd { end: from, damaged: 0 };
    let mut damaged_since_end = 0;
    let mut lost = false;
    let mut offset = from;
    while offset + HEADER_BYTES as u64 <= window.length {
        let header = match window.at(offset, HEADER_BYTES) {
            bytes if bytes.starts_with(&MAGIC.to_le_bytes()) => Header::decode(bytes, seed.at(offset)),
            _ => None,
        };
        let Some(header) = header else {
            damaged_since_end += u64::from(!lost);
            lost = true;
            offset += ALIGN;
            continue;
        };
        lost = false;
        let length = header.length as usize;
        let payload = window.at(offset + HEADER_BYTES as u64, length);
        if payload.len() == length && crc32c_append(seed.at(offset), payload) == header.payload_crc {
            found(offset, &header, payload);
            result.end = offset + header.stride();
            result.damaged += std::mem::take(&mut damaged_since_end);
        } else {
            damaged_since_end += 1;
        }
        offset += header.stride();
    }
    Ok(result)
}

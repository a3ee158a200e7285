//! Reading a segment from one end to the other, whatever is in it.
//!
//! Owns how a scan goes on after damage. It holds one window of the file at a time, never the file.
//!
//! ```text
//! header and payload valid    -> a record; on to the next
//! payload damaged             -> one damaged record; its length is known, on to the next
//! header damaged              -> one damaged record; on to the next multiple of 8 that has a valid header
//! nothing valid up to the end -> the records ended before the damage: what a crash tore was never acknowledged
//! ... but it cannot be read   -> damaged records: no crash does that, so the records end after it
//! ```

use std::io;

use crc32c::crc32c_append;

use super::disk::Disk;
use super::format::{ALIGN, SegmentKey, aligned};
use super::record::{HEADER_BYTES, Header, MAGIC};

/// A file, seen through a window that moves forward.
#[derive(Debug)]
pub(crate) struct Window<'a, D: Disk> {
    disk: &'a D,
    file: &'a D::File,
    length: u64,
    start: u64,
    bytes: Vec<u8>,
    /// Where what could not be read ends, so far.
    unreadable_end: u64,
}

/// Damaged places that are told one by one between two valid records.
const PLACES_MAX: usize = 256;
/// Of one place: a little more than the largest record.
const PLACE_BYTES_MAX: usize = 5 << 20;
const WINDOW_BYTES: usize = 1 << 20;
/// What the kernel reads or not as a whole.
const PAGE_BYTES: u64 = 4096;

impl<'a, D: Disk> Window<'a, D> {
    /// A window on the first `length` bytes.
    pub(crate) fn new(disk: &'a D, file: &'a D::File, length: u64) -> Self {
        Self { disk, file, length, start: 0, bytes: Vec::new(), unreadable_end: 0 }
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
            Err(_) => self.fill_by_page(offset),
        }
    }

    /// One bad page costs the records in it, not the window.
    fn fill_by_page(&mut self, offset: u64) {
        let mut at = offset;
        let mut rest = &mut self.bytes[..];
        while !rest.is_empty() {
            let to_boundary = usize::try_from(PAGE_BYTES - at % PAGE_BYTES).unwrap_or(usize::MAX);
            let (page, after) = rest.split_at_mut(to_boundary.min(rest.len()));
            let end = at + page.len() as u64;
            if self.disk.read_at(self.file, at, page).is_err() {
                page.fill(0);
                self.unreadable_end = self.unreadable_end.max(end);
            }
            (at, rest) = (end, after);
        }
    }
}

/// What a scan found beside the records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ScanEnd {
    /// Where the records end.
    pub(crate) end: u64,
    /// Damaged records before that.
    pub(crate) damaged: u64,
}

/// Calls `found` with offset, header and payload of every valid record from `from` to `to`.
pub(crate) fn scan<D: Disk>(
    file: (&D, &D::File, SegmentKey),
    range: (u64, u64),
    found: impl FnMut(u64, &Header, &[u8]),
) -> io::Result<ScanEnd> {
    scan_with(file, range, found, |_, _| ())
}

/// The same, and `damaged` with offset and bytes of what was found damaged, at most so many places.
pub(crate) fn scan_with<D: Disk>(
    (disk, file, key): (&D, &D::File, SegmentKey),
    (from, to): (u64, u64),
    mut found: impl FnMut(u64, &Header, &[u8]),
    mut damaged: impl FnMut(u64, &[u8]),
) -> io::Result<ScanEnd> {
    let seed = key.seed();
    let mut window = Window::new(disk, file, to.min(disk.length(file)?));
    let mut result = ScanEnd { end: from, damaged: 0 };
    let mut damaged_since_end = 0;
    let mut places: Vec<(u64, u64)> = Vec::new();
    let mut lost = false;
    let mut offset = from;
    while offset + HEADER_BYTES as u64 <= window.length {
        let header = match window.at(offset, HEADER_BYTES) {
            bytes if bytes.starts_with(&MAGIC.to_le_bytes()) => Header::decode(bytes, seed.at(offset)),
            _ => None,
        };
        let Some(header) = header else {
            damaged_since_end += u64::from(!lost);
            if !lost && places.len() < PLACES_MAX {
                places.push((offset, offset));
            }
            lost = true;
            offset += ALIGN;
            continue;
        };
        if std::mem::take(&mut lost) {
            end_place(&mut places, offset);
        }
        let length = header.length as usize;
        let payload = window.at(offset + HEADER_BYTES as u64, length);
        if payload.len() == length && crc32c_append(seed.at(offset), payload) == header.payload_crc {
            found(offset, &header, payload);
            result.end = offset + header.stride();
            result.damaged += std::mem::take(&mut damaged_since_end);
            tell(&mut window, &mut places, &mut damaged);
        } else {
            damaged_since_end += 1;
            if places.len() < PLACES_MAX {
                places.push((offset, offset + header.stride()));
            }
        }
        offset += header.stride();
    }
    if window.unreadable_end > result.end {
        let end = aligned(window.unreadable_end);
        if places.is_empty() {
            places.push((result.end, end));
        }
        end_place(&mut places, end);
        result = ScanEnd { end, damaged: result.damaged + damaged_since_end.max(1) };
        tell(&mut window, &mut places, &mut damaged);
    }
    Ok(result)
}

/// A place whose end was not known ends here.
fn end_place(places: &mut [(u64, u64)], end: u64) {
    if let Some((from, to)) = places.last_mut()
        && from == to
    {
        *to = end;
    }
}

fn tell<D: Disk>(window: &mut Window<'_, D>, places: &mut Vec<(u64, u64)>, damaged: &mut impl FnMut(u64, &[u8])) {
    for (from, to) in places.drain(..) {
        let length = usize::try_from(to.saturating_sub(from)).unwrap_or(PLACE_BYTES_MAX).min(PLACE_BYTES_MAX);
        damaged(from, window.at(from, length));
    }
}

//! A message as a list of pieces: where its bytes come from, so that its size is known before the first one is copied.

use smallvec::SmallVec;

use super::primitive;

/// A run of bytes of the message to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece {
    /// `source[start..end]`.
    Source { start: u32, end: u32 },
    /// `side[start..end]`.
    Side { start: u32, end: u32 },
    /// A tag and a length.
    Header { tag: u8, body: u32 },
}

/// The list. Bytes come from a source (the request) and a side (what is added to it). Both are below 4 GiB.
#[derive(Debug, Default)]
pub(crate) struct Assembly {
    pieces: SmallVec<[Piece; 8]>,
    len: usize,
    written: usize,
}

/// A header whose length is not known yet.
#[derive(Debug, Clone, Copy)]
#[must_use = "a header without its length breaks the message"]
pub(crate) struct Open(usize);

impl Assembly {
    /// Bytes of the message, without headers that are still open.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// How many pieces it has.
    pub(crate) fn pieces(&self) -> usize {
        self.pieces.len()
    }

    /// Appends `source[start..end]`.
    pub(crate) fn source(&mut self, start: usize, end: usize) {
        let (from, to) = (narrow(start), narrow(end));
        if from == to {
            return;
        }
        self.len += end - start;
        match self.pieces.last_mut() {
            Some(Piece::Source { end, .. }) if *end == from => *end = to,
            _ => self.pieces.push(Piece::Source { start: from, end: to }),
        }
    }

    /// Appends `side[start..end]`.
    pub(crate) fn side(&mut self, start: usize, end: usize) {
        let (from, to) = (narrow(start), narrow(end));
        if from == to {
            return;
        }
        self.len += end - start;
        match self.pieces.last_mut() {
            Some(Piece::Side { end, .. }) if *end == from => *end = to,
            _ => self.pieces.push(Piece::Side { start: from, end: to }),
        }
    }

    /// Begins a length-delimited field.
    pub(crate) fn open(&mut self, tag: u8) -> Open {
        self.pieces.push(Piece::Header { tag, body: 0 });
        Open(self.pieces.len() - 1)
    }

    /// Ends it: its body has that many bytes.
    pub(crate) fn close(&mut self, open: Open, body: usize) {
        if let Some(Piece::Header { body: slot, .. }) = self.pieces.get_mut(open.0) {
            *slot = narrow(body);
            self.len += primitive::field_len(body) - body;
        }
    }

    /// Copies pieces worth at least `budget` bytes, if so many are left, and says whether that was all. The caller has
    /// reserved `len` bytes.
    pub(crate) fn write(&mut self, source: &[u8], side: &[u8], out: &mut Vec<u8>, budget: usize) -> bool {
        let stop = out.len().saturating_add(budget.max(1));
        while let Some(piece) = self.pieces.get_mut(self.written) {
            if out.len() >= stop {
                return false;
            }
            match piece {
                Piece::Source { start, end } => {
                    let (from, to) = (*start as usize, *end as usize);
                    let cut = to.min(from.saturating_add(stop - out.len()));
                    out.extend_from_slice(&source[from..cut]);
                    *start = narrow(cut);
                    if cut < to {
                        return false;
                    }
                }
                Piece::Side { start, end } => out.extend_from_slice(&side[*start as usize..*end as usize]),
                Piece::Header { tag, body } => {
                    out.push(*tag);
                    primitive::put_varint(out, *body as usize);
                }
            }
            self.written += 1;
        }
        true
    }

    /// Forgets everything but keeps its memory.
    pub(crate) fn clear(&mut self) {
        self.pieces.clear();
        self.len = 0;
        self.written = 0;
    }
}

fn narrow(offset: usize) -> u32 {
    u32::try_from(offset).expect("a request is below 4 GiB: Job::step and split refuse larger ones before")
}

//! Bytes that are to leave over a connection: appended at one end, sent from the other, in one buffer that is used again.

/// Bytes of a buffer that is kept although it is empty.
const KEPT_MAX: usize = 256 << 10;

#[derive(Debug, Default)]
pub(super) struct Out {
    bytes: Vec<u8>,
    sent: usize,
}

impl Out {
    /// To append to, and nothing else.
    pub(super) fn bytes(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sent == self.bytes.len()
    }

    /// What is to be sent next.
    pub(super) fn unsent(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    /// So much of it was sent.
    pub(super) fn advance(&mut self, count: usize) {
        self.sent += count;
        if self.is_empty() {
            self.bytes.clear();
            self.bytes.shrink_to(KEPT_MAX);
            self.sent = 0;
        } else if self.sent > KEPT_MAX {
            // A peer that always leaves a little would let it grow for ever.
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
    }
}

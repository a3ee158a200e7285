//! - [`real`]: the server of the h2 crate.
//! - [`planted`]: peers that do what no server should, frame by frame, and random ones.

mod planted;
mod real;

use super::*;

impl Http2 {
    /// Bytes that a peer made it keep.
    fn kept(&self) -> usize {
        let block = self.block.as_ref().map_or(0, |block| block.bytes.capacity());
        self.input.capacity() + block + self.calls.iter().map(|call| call.message.capacity()).sum::<usize>()
    }
}

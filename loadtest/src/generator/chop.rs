//! For tests: a seed that is told, and bytes that arrive in pieces of any size.

use fastrand::Rng;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::out::Out;

const SEED_VARIABLE: &str = "PILLION_LOADTEST_SEED";

/// A source of random numbers whose seed is printed, and may be given.
pub(super) fn rng() -> Rng {
    let seed = std::env::var(SEED_VARIABLE).map_or_else(|_| fastrand::u64(..), |seed| seed.parse().expect("a number"));
    println!("replay with {SEED_VARIABLE}={seed}");
    Rng::with_seed(seed)
}

/// A size from 1 byte to 64 KiB, small ones as often as large ones.
pub(super) fn piece(rng: &mut Rng) -> usize {
    1 << rng.u32(..17)
}

/// Writes all of it, piece by piece.
pub(super) async fn write(stream: &mut DuplexStream, out: &mut Out, rng: &mut Rng) {
    while !out.is_empty() {
        let length = out.unsent().len().min(piece(rng));
        // A peer that is gone is seen when it is read from.
        let written = stream.write(&out.unsent()[..length]).await.unwrap_or(length);
        out.advance(written);
    }
}

/// Reads one piece; none at the end.
pub(super) async fn read(stream: &mut DuplexStream, rng: &mut Rng) -> Vec<u8> {
    let mut bytes = vec![0; piece(rng)];
    let count = stream.read(&mut bytes).await.unwrap_or(0);
    bytes.truncate(count);
    bytes
}

//! What the disk takes for a small write and an fdatasync, one at a time: the measure of an acknowledgement that waits for it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::fs::{FallocateFlags, fallocate};

use super::{Percentiles, pause};
use crate::histogram::Latencies;

/// Enough for one of a hundred to be told: ten are slower.
const WRITES: u64 = 1_200;

/// As large as the request of a steady load, in whole pages.
const BYTES: usize = 8 << 10;

/// Between one and the next: a disk that is asked a thousand times a second, as by that load.
const PAUSE: Duration = Duration::from_millis(1);

/// Writes into a file of its own in `dir`, allocated before as a log is, and removes it.
pub(super) fn measure(dir: &Path) -> Result<Percentiles> {
    let path = dir.join("bare-sync");
    let file = File::create_new(&path).with_context(|| format!("making {}", path.display()))?;
    fallocate(&file, FallocateFlags::empty(), 0, WRITES * BYTES as u64)
        .with_context(|| format!("allocating {}", path.display()))?;
    file.sync_all()?;
    let mut latencies = Latencies::default();
    let bytes = [0x5a; BYTES];
    for number in 0..WRITES {
        pause(PAUSE)?;
        let started = Instant::now();
        file.write_all_at(&bytes, number * BYTES as u64)?;
        file.sync_data()?;
        latencies.record(started.elapsed());
    }
    std::fs::remove_file(&path)?;
    Ok(Percentiles::of(&latencies))
}

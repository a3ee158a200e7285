//! Generator and sink on one processor, the arm on the others; nothing is pinned where there is only one.

use anyhow::Result;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Which processors do what.
pub(crate) struct Pinning {
    all: CpuSet,
    load: CpuSet,
    rest: CpuSet,
}

impl Pinning {
    /// This thread, and what it starts from now on, has the arm's processors.
    pub(crate) fn new() -> Result<Self> {
        let all = sched_getaffinity(None)?;
        let mut pinning = Self { all, load: all, rest: all };
        if let Some(first) = (0..CpuSet::MAX_CPU).find(|cpu| all.is_set(*cpu)).filter(|_| all.count() > 1) {
            pinning.load = CpuSet::new();
            pinning.load.set(first);
            pinning.rest.unset(first);
        }
        sched_setaffinity(None, &pinning.rest)?;
        Ok(pinning)
    }

    /// What is started by `starts` has the load's processor.
    pub(crate) fn as_load<T>(&self, starts: impl FnOnce() -> T) -> Result<T> {
        sched_setaffinity(None, &self.load)?;
        let started = starts();
        sched_setaffinity(None, &self.rest)?;
        Ok(started)
    }
}

impl Drop for Pinning {
    fn drop(&mut self) {
        // At worst this thread stays where it was.
        let _stays = sched_setaffinity(None, &self.all);
    }
}

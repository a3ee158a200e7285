//! Whoever looks on while an arm is under load: a thread on the load's processor, so that looking costs the arm nothing but
//! what the kernel does with its locks.
//!
//! Once a second it looks at what the agents have spent and how much they hold, through load, restarts and drain; once, in
//! the middle of the load, it counts their memory page by page.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::Pinning;
use crate::limits::WorkingSet;
use crate::measure::Memory;
use crate::roster::Roster;

/// Its CPU time is counted with the sink's.
pub(super) const THREAD: &str = "watcher";

const EVERY: Duration = Duration::from_secs(1);

/// The most that was seen from the start of the load to the end of the drain, once a second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peak {
    /// Resident in the arm's processes, KiB; pages that some share are counted for each.
    pub rss: u64,
    /// Working set of its cgroup, KiB; `None`: it has none.
    pub working_set: Option<u64>,
}

/// What it has seen.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Seen {
    pub(super) peak: Peak,
    /// In the middle of the load.
    pub(super) middle: Memory,
}

/// It looks; ends when dropped.
pub(super) struct Watcher {
    stop: Option<SyncSender<()>>,
    thread: Option<JoinHandle<io::Result<Seen>>>,
}

impl Watcher {
    /// Looks from now on; the middle of the load is so far away.
    pub(super) fn start(
        pinning: &Pinning,
        roster: Arc<Roster>,
        working_set: WorkingSet,
        middle: Duration,
    ) -> Result<Self> {
        let (stop, stopped) = sync_channel::<()>(0);
        let mut middle = Some(Instant::now() + middle);
        let watch = move || {
            let mut seen = Seen::default();
            loop {
                let processes = roster.look(false)?;
                seen.peak.rss = seen.peak.rss.max(roster.resident(&processes));
                seen.peak.working_set = seen.peak.working_set.max(working_set.read());
                let wait = middle.map_or(EVERY, |at| EVERY.min(at.saturating_duration_since(Instant::now())));
                let is_over = !wait.is_zero() && stopped.recv_timeout(wait) == Err(RecvTimeoutError::Disconnected);
                if middle.is_some_and(|at| is_over || at <= Instant::now()) {
                    seen.middle = roster.memory()?;
                    middle = None;
                }
                if is_over {
                    return Ok(seen);
                }
            }
        };
        let thread = pinning.as_load(|| std::thread::Builder::new().name(THREAD.into()).spawn(watch))??;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }

    /// What it has seen, or why it could not.
    pub(super) fn end(mut self) -> Result<Seen> {
        drop(self.stop.take());
        let thread = self.thread.take().context("it ends once")?;
        thread.join().expect("looking does not panic").context("looking at the agents")
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Scenario: an agent that is replaced by another process while somebody looks on, in a load that ends before its middle.
    /// Guarantees: both are seen, the memory of the middle is there all the same, and looking has ended with the watcher.
    #[test]
    fn it_sees_what_comes_and_goes() {
        let roster = Arc::new(Roster::default());
        let pinning = Pinning::new().unwrap();
        let start = |role| {
            let child = Command::new("sleep").arg("1000").spawn().unwrap();
            (roster.enter(role, child.id()), child)
        };
        let (number, mut first) = start("first");
        let none = WorkingSet::default();
        let watcher = Watcher::start(&pinning, roster.clone(), none, Duration::from_secs(1000)).unwrap();
        first.kill().unwrap();
        roster.leave(number).unwrap();
        first.wait().unwrap();
        let (_, mut second) = start("second");
        let seen = watcher.end().unwrap();
        second.kill().unwrap();
        second.wait().unwrap();
        assert!(seen.middle.pss > 0 && seen.peak.working_set.is_none(), "{seen:?}");
        assert!(roster.spent().contains_key("first") && roster.spent().contains_key("second"));
        assert_eq!(Arc::strong_count(&roster), 1);
    }
}

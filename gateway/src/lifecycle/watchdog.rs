//! Frees acceptors that hang (docs/threats.md row 4), and keeps the reaper going.
//!
//! A thread of its own, because what it watches over must not depend on any runtime. Closing a listener does not wake an
//! accept that waits on it, shutting it down does. An acceptor that was merely not scheduled is left alone: it hangs only
//! if it was in the same call at two looks, and the kernel says that its thread sleeps.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use std::{fs, io};

use super::acceptor::Acceptor;
use super::counters::Counters;
use super::reaper::Reaper;

/// Between two looks. A hanging accept delays the neighbours on its thread for at most twice this.
const PERIOD: Duration = Duration::from_millis(125);

/// The running watchdog.
#[derive(Debug)]
pub(super) struct Watchdog {
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Watches over these until stopped.
    pub(super) fn start(
        acceptors: Vec<Arc<Acceptor>>,
        reaper: Arc<Reaper>,
        counters: Arc<Counters>,
    ) -> io::Result<Self> {
        let stopping = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&stopping);
        let thread = thread::Builder::new().name("pillion-watchdog".to_owned()).spawn(move || {
            let mut seen = vec![0; acceptors.len()];
            while !stop.load(Ordering::Acquire) {
                thread::park_timeout(PERIOD);
                for (acceptor, seen) in acceptors.iter().zip(&mut seen) {
                    *seen = look(acceptor, *seen, &counters);
                }
                reaper.relieve();
            }
        })?;
        Ok(Self { stopping, thread: Some(thread) })
    }

    /// Ends the thread. To be called after the acceptors have ended, because they may need it for that.
    pub(super) fn stop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

/// One look at an acceptor that was in call number `before` at the last one.
fn look(acceptor: &Acceptor, before: u64, counters: &Counters) -> u64 {
    let calls = acceptor.heartbeat.calls.load(Ordering::Acquire);
    let inside = calls % 2 == 1;
    if !inside || calls != before || !sleeps(acceptor.heartbeat.thread_id.load(Ordering::Acquire)) {
        return calls;
    }
    let slot = acceptor.heartbeat.slot().clone();
    if let Some(slot) = slot
        && acceptor.heartbeat.calls.load(Ordering::Acquire) == calls
    {
        counters.watchdog_trips.add(1);
        slot.shut_down();
    }
    calls
}

/// Whether the kernel has put the thread to sleep, as opposed to not having found a processor for it.
fn sleeps(thread_id: i32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/self/task/{thread_id}/stat")) else { return false };
    // The name may hold anything, also parentheses; the state follows the last one.
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('S'))
}

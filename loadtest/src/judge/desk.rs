//! Where requests wait to be judged, so that reading them delays nobody.
//!
//! The sink answers as soon as a request is here. Its reading is slow beside everything else that the load's processor does, and
//! some agents send a megabyte at once: read by the sink itself, it made the generator late for exactly those agents. The desk's
//! thread is the least urgent one of its processor, and what waits is bounded: beyond that the sink waits, too.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use bytes::Bytes;

use super::Judge;
use crate::identity::Signal;

/// Of payload; a request that is larger waits alone.
const WAITING_BYTES_MAX: usize = 256 << 20;

/// Its thread's name; see [`crate::measure::cpu_time_of_threads`].
pub const THREAD: &str = "judge";

/// A judge with a line in front of it. Dropping it ends the thread, after what waits.
#[derive(Debug)]
pub struct Desk {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    line: Mutex<Line>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Line {
    waiting: VecDeque<(Signal, Bytes, u64)>,
    bytes: usize,
    is_reading: bool,
    is_closed: bool,
}

/// Puts requests into the line.
#[derive(Debug, Clone)]
pub struct Tray(Arc<Shared>);

impl Desk {
    /// Starts its thread, on the calling thread's processors.
    pub fn start(judge: Arc<Judge>) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let own = shared.clone();
        let thread = std::thread::Builder::new().name(THREAD.into()).spawn(move || {
            // Where that is refused it is as urgent as the sink, as it would be without a thread of its own.
            let _as_it_is = rustix::process::setpriority_process(Some(rustix::thread::gettid()), 19);
            while let Some((signal, payload, now)) = own.next() {
                // What is no OTLP is in its account.
                let _told = judge.arrive(signal, &payload, now);
            }
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// For whoever takes requests.
    pub fn tray(&self) -> Tray {
        Tray(self.shared.clone())
    }

    /// Returns when everything that has arrived is judged.
    pub fn settle(&self) {
        let line = self.shared.line();
        drop(self.shared.changed.wait_while(line, |line| !line.waiting.is_empty() || line.is_reading));
    }
}

impl Tray {
    /// One that arrived `now`, in nanoseconds since 1970. Waits while the line is full.
    pub fn put(&self, signal: Signal, payload: Bytes, now: u64) {
        let is_full = |line: &mut Line| line.bytes > 0 && line.bytes + payload.len() > WAITING_BYTES_MAX;
        let waited = self.0.changed.wait_while(self.0.line(), is_full);
        let mut line = waited.unwrap_or_else(PoisonError::into_inner);
        line.bytes += payload.len();
        line.waiting.push_back((signal, payload, now));
        drop(line);
        self.0.changed.notify_all();
    }
}

impl Shared {
    /// `None`: it is closed, and nothing waits.
    fn next(&self) -> Option<(Signal, Bytes, u64)> {
        let mut line = self.line();
        line.is_reading = false;
        self.changed.notify_all();
        let waited = self.changed.wait_while(line, |line| line.waiting.is_empty() && !line.is_closed);
        let mut line = waited.unwrap_or_else(PoisonError::into_inner);
        let next = line.waiting.pop_front()?;
        line.bytes -= next.1.len();
        line.is_reading = true;
        Some(next)
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.shared.line().is_closed = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // Only a panic of the judge ends it with an error, which the hook has told.
            drop(thread.join());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::Settings;
    use crate::profile::{Profile, SHOP};
    use crate::template::Plan;

    /// Scenario: more is put into the line than may wait, while its reader is busy, and the desk is dropped at once.
    /// Guarantees: all of it is read, in bounded memory; who settles has seen everything.
    #[test]
    fn everything_that_arrived_is_judged() {
        let plan = Arc::new(Plan::new(&Profile::parse(SHOP).unwrap(), 1, 1, [1, 0, 0]).unwrap());
        let judge = Arc::new(Judge::new(Settings { plan, attested: None, resource: Vec::new() }));
        let desk = Desk::start(judge.clone()).unwrap();
        let noise = Bytes::from(vec![0xff; 1 << 20]);
        let malformed = || judge.account(&crate::ledger::Ledger::new(1)).malformed;
        let tray = desk.tray();
        (0..300).for_each(|_| tray.put(Signal::Traces, noise.clone(), 0));
        assert!(desk.shared.line().bytes <= WAITING_BYTES_MAX);
        desk.settle();
        assert_eq!(malformed(), 300);
        tray.put(Signal::Logs, noise, 0);
        drop(desk);
        assert_eq!(malformed(), 301);
    }
}

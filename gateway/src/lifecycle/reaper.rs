//! Closes the descriptors that a pod has chosen, where nobody waits.
//!
//! `close` may take as long as the pod likes: up to 65,535 s for a TCP socket with SO_LINGER and unsent bytes, for ever for
//! a file whose filesystem the pod serves. The same holds for a Unix socket with such a descriptor in its unread queue,
//! which is why control sessions are closed here too (2.0 s seen for a linger of 2 s, Linux 6.18).
//!
//! Owns a queue and the threads that empty it: one, and more only while closes hang. It never drops a descriptor unclosed,
//! and its queue is bounded by its callers: a site reads nothing from its shim while it has a [`Debt`], so one pod holds at
//! most one thread and what one message, one session and its listeners amount to.
//! It ends when the process does; a hung thread cannot be joined.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::{io, thread};

use tokio::sync::Notify;

/// Hung closes of so many pods at once; the next ones wait for the kernel to give up on one of them.
const THREADS_MAX: usize = 64;

/// The queue.
#[derive(Debug, Default)]
pub(super) struct Reaper {
    state: Mutex<State>,
    ready: Condvar,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<(OwnedFd, Arc<Debt>)>,
    threads: usize,
    /// Threads that wait for something to close.
    idle: usize,
    closed: u64,
    /// `closed` when [`Reaper::relieve`] last looked.
    seen: u64,
    stopped: bool,
}

/// How many descriptors of one site are still to be closed.
#[derive(Debug, Default)]
pub(super) struct Debt {
    open: AtomicUsize,
    paid: Notify,
}

/// A descriptor that is, or may hold, something that a pod has chosen. Closed by the reaper when dropped.
#[derive(Debug)]
pub(super) struct Foreign {
    fd: Option<OwnedFd>,
    reaper: Arc<Reaper>,
    debt: Arc<Debt>,
}

impl Reaper {
    /// Starts the first thread.
    pub(super) fn start() -> io::Result<Arc<Self>> {
        let reaper = Arc::<Self>::default();
        reaper.spawn()?;
        Ok(reaper)
    }

    /// Adds a thread if nothing was closed since the last call although something waits. Called at intervals.
    pub(super) fn relieve(self: &Arc<Self>) {
        let stuck = {
            let mut state = self.lock();
            let stuck = !state.queue.is_empty() && state.closed == state.seen && state.threads < THREADS_MAX;
            state.seen = state.closed;
            stuck
        };
        if stuck && let Err(error) = self.spawn() {
            tracing::warn!(%error, "no further thread to close descriptors: closes that pods hold up delay those of others");
        }
    }

    /// Lets the threads end once the queue is empty.
    pub(super) fn stop(&self) {
        self.lock().stopped = true;
        self.ready.notify_all();
    }

    fn spawn(self: &Arc<Self>) -> io::Result<()> {
        let reaper = Arc::clone(self);
        self.lock().threads += 1;
        let spawned = thread::Builder::new().name("pillion-reaper".to_owned()).spawn(move || reaper.run());
        if spawned.is_err() {
            self.lock().threads -= 1;
        }
        spawned.map(drop)
    }

    fn run(&self) {
        let mut state = self.lock();
        loop {
            if let Some((fd, debt)) = state.queue.pop_front() {
                drop(state);
                // Best effort, and only of use for TCP: whoever still has a duplicate may set it again, but then this
                // close is not the last one and does not wait.
                let _ = rustix::net::sockopt::set_socket_linger(&fd, None);
                drop(fd);
                debt.pay();
                state = self.lock();
                state.closed += 1;
            } else if state.stopped || state.idle > 0 {
                state.threads -= 1;
                return;
            } else {
                state.idle += 1;
                state = self.ready.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while the lock is held leaves at worst a count that is off by one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Debt {
    /// Whether anything is still to be closed.
    pub(super) fn is_owed(&self) -> bool {
        self.open.load(Ordering::Acquire) > 0
    }

    /// Returns when nothing is left to be closed.
    pub(super) async fn settled(&self) {
        loop {
            let paid = self.paid.notified();
            if !self.is_owed() {
                return;
            }
            paid.await;
        }
    }

    fn pay(&self) {
        if self.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.paid.notify_waiters();
        }
    }
}

impl Foreign {
    pub(super) fn new(fd: OwnedFd, reaper: &Arc<Reaper>, debt: &Arc<Debt>) -> Self {
        Self { fd: Some(fd), reaper: Arc::clone(reaper), debt: Arc::clone(debt) }
    }
}

impl AsFd for Foreign {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_ref().expect("taken only by drop").as_fd()
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let Some(fd) = self.fd.take() else { return };
        self.debt.open.fetch_add(1, Ordering::AcqRel);
        let mut state = self.reaper.lock();
        if state.stopped && state.threads == 0 {
            // The lifecycle is gone and the process ends, or a test does.
            drop(state);
            drop(fd);
            return self.debt.pay();
        }
        state.queue.push_back((fd, Arc::clone(&self.debt)));
        drop(state);
        self.reaper.ready.notify_one();
    }
}

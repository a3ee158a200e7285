//! Completions on their way back to a data worker: many results, one wake.
//!
//! A group commit finishes requests of many tenants on several workers. The writer posts all results for one worker and
//! wakes it once, instead of once per request.
//!
//! Not a queue in its own right: it never holds more entries than there are requests in flight, each of which holds a
//! reservation in the ledger.

use std::sync::Mutex;
use std::task::{Context, Poll, Waker};

/// Where one side posts results and the other takes them all.
#[derive(Debug)]
pub struct Mailbox<T> {
    inner: Mutex<Inner<T>>,
}

#[derive(Debug)]
struct Inner<T> {
    entries: Vec<T>,
    waker: Option<Waker>,
}

impl<T> Default for Mailbox<T> {
    fn default() -> Self {
        Self { inner: Mutex::new(Inner { entries: Vec::new(), waker: None }) }
    }
}

impl<T> Mailbox<T> {
    /// Posts all of `entries` and wakes the owner once.
    pub fn post(&self, entries: impl IntoIterator<Item = T>) {
        let waker = {
            let mut inner = self.lock();
            inner.entries.extend(entries);
            inner.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Swaps everything posted so far into `out` (which must be empty), or registers the task to be woken.
    pub fn poll_take(&self, cx: &mut Context<'_>, out: &mut Vec<T>) -> Poll<()> {
        debug_assert!(out.is_empty(), "entries that were not handled would be posted back");
        let mut inner = self.lock();
        if inner.entries.is_empty() {
            inner.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        std::mem::swap(&mut inner.entries, out);
        Poll::Ready(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner<T>> {
        // A panic while the lock is held cannot leave a Vec or a Waker half-changed.
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

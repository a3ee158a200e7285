//! A waker that tells its own poll from the rest of the world.
//!
//! h2 wakes the task that drives a connection whenever a reply is queued on it, which here happens within that task's own
//! poll: passed on, each such wake would cost another round through three sets of futures only to find nothing to do.
//!
//! ```text
//! woken while polling    remembered; the poll looks again before it ends, and passes on what is left
//! woken otherwise        passed on at once
//! ```

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Wake, Waker};

/// The waker of one connection.
#[derive(Debug)]
pub(super) struct Latch {
    polling: AtomicBool,
    woken: AtomicBool,
    outer: Mutex<Waker>,
}

impl Latch {
    pub(super) fn new() -> Arc<Self> {
        let outer = Mutex::new(Waker::noop().clone());
        Arc::new(Self { polling: AtomicBool::new(false), woken: AtomicBool::new(false), outer })
    }

    /// A poll begins; `outer` is to be woken from outside of it.
    pub(super) fn enter(&self, outer: &Waker) {
        let mut known = self.outer.lock().unwrap_or_else(PoisonError::into_inner);
        known.clone_from(outer);
        drop(known);
        self.polling.store(true, Ordering::SeqCst);
    }

    /// Forgets wakes so far: everything is about to be looked at.
    pub(super) fn look(&self) {
        self.woken.store(false, Ordering::SeqCst);
    }

    /// The poll ends. What woke it since the last look is passed on.
    pub(super) fn leave(&self) {
        self.polling.store(false, Ordering::SeqCst);
        if self.woken.swap(false, Ordering::SeqCst) {
            self.pass_on();
        }
    }

    fn pass_on(&self) {
        self.outer.lock().unwrap_or_else(PoisonError::into_inner).wake_by_ref();
    }
}

impl Wake for Latch {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::SeqCst);
        // In this order, and the other way round in `leave`: whoever comes second passes it on, or both do.
        if !self.polling.load(Ordering::SeqCst) {
            self.pass_on();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Count(std::sync::atomic::AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Scenario: wakes outside of a poll, within one before it looks again, within one after its last look.
    /// Guarantees: only those that nobody has looked after are passed on, and none of them is lost.
    #[test]
    fn only_wakes_that_nobody_looked_after_are_passed_on() {
        let count = Arc::new(Count(Default::default()));
        let (outer, latch) = (Waker::from(count.clone()), Latch::new());
        let waker = Waker::from(latch.clone());
        let passed = || count.0.load(Ordering::Relaxed);

        latch.enter(&outer);
        waker.wake_by_ref();
        latch.look();
        latch.leave();
        assert_eq!(passed(), 0, "looked after");

        waker.wake_by_ref();
        assert_eq!(passed(), 1, "outside");

        latch.enter(&outer);
        latch.look();
        waker.wake_by_ref();
        assert_eq!(passed(), 1, "not yet");
        latch.leave();
        assert_eq!(passed(), 2, "left over");
    }
}

//! A tenant's slice of its worker's time.
//!
//! Owns when the slice ends. Everything that works for the tenant asks between two pieces of work whether the slice is
//! spent, and then wakes itself and returns: reads from sockets, requests in pieces, connections before their turn. So
//! 200 busy connections of one tenant take turns within one tenant's share.

use std::cell::Cell;
use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// How long a tenant may work before its neighbours on the worker get their turn.
pub(super) const SLICE: Duration = Duration::from_micros(500);

/// Bytes of a request that are worked on between two looks at the clock.
pub const PIECE_BYTES: usize = 256 * 1024;

/// The present slice.
#[derive(Debug)]
pub struct Pace {
    length: Duration,
    ends: Cell<Instant>,
}

impl Pace {
    pub(super) fn new(length: Duration) -> Self {
        Self { length, ends: Cell::new(Instant::now()) }
    }

    /// Begins a slice: the tenant's task is polled.
    pub(super) fn begin(&self) {
        self.ends.set(Instant::now() + self.length);
    }

    /// Whether the neighbours' turn has come.
    pub fn is_spent(&self) -> bool {
        Instant::now() >= self.ends.get()
    }

    /// Goes on while the slice lasts; once it is spent, asks to be polled again in the next one.
    pub fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        if !self.is_spent() {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// The same between two pieces of a request.
    pub async fn breathe(&self) {
        poll_fn(|cx| self.poll(cx)).await;
    }
}

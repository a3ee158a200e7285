//! Descriptors that others have chosen, or that may hold such, closed where nobody waits (docs/threats.md row 3).
//!
//! `close` of a TCP socket with SO_LINGER and unsent bytes takes as long as its maker likes, and so does the close of a Unix
//! socket with one in its unread queue: `ctl` of a pod, a connection of a gateway, whatever that passes. On the driver's one
//! loop it would keep the kubelet, and so every pod of the node, waiting.
//!
//! Owns the count of a peer's closes that are still under way. It ends with the process, which waits for none of them.

use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

/// Closes of one peer that are under way: with more, nothing is read from it.
const OPEN_MAX: usize = 16;

/// Closes under way at once; the next ones wait in a queue, which [`Debt`] bounds for each peer.
pub(super) const THREADS_MAX: usize = 64;

/// What one peer has given and is still to be closed.
#[derive(Debug, Default)]
pub(super) struct Debt {
    open: AtomicUsize,
    paid: Notify,
}

/// A descriptor that is closed elsewhere when dropped.
#[derive(Debug)]
pub(super) struct Foreign {
    fd: Option<OwnedFd>,
    debt: Arc<Debt>,
}

/// A connection on the runtime, closed elsewhere when dropped: what it has not read may hold anything.
#[derive(Debug)]
pub(super) struct Watched {
    fd: Option<AsyncFd<OwnedFd>>,
    debt: Arc<Debt>,
}

impl Debt {
    /// Returns when little enough is under way.
    pub(super) async fn bearable(&self) {
        loop {
            let mut paid = std::pin::pin!(self.paid.notified());
            paid.as_mut().enable();
            if self.open.load(Ordering::Acquire) < OPEN_MAX {
                return;
            }
            paid.await;
        }
    }

    fn close(self: &Arc<Self>, fd: OwnedFd) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            // Without a runtime there is no loop that could wait.
            return drop(fd);
        };
        self.open.fetch_add(1, Ordering::AcqRel);
        let debt = Arc::clone(self);
        runtime.spawn_blocking(move || {
            // Best effort: what hides in a queue, or is changed by a duplicate's holder right now, takes its time.
            let _ = rustix::net::sockopt::set_socket_linger(&fd, None);
            drop(fd);
            debt.open.fetch_sub(1, Ordering::AcqRel);
            debt.paid.notify_waiters();
        });
    }
}

impl Foreign {
    pub(super) fn new(fd: OwnedFd, debt: &Arc<Debt>) -> Self {
        Self { fd: Some(fd), debt: Arc::clone(debt) }
    }

    pub(super) fn debt(&self) -> Arc<Debt> {
        Arc::clone(&self.debt)
    }

    /// For one that is kept, or whose close is known to wait for nothing.
    pub(super) fn trust(mut self) -> OwnedFd {
        self.fd.take().expect("taken only here and by drop")
    }
}

impl AsFd for Foreign {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_ref().expect("taken only when it is consumed").as_fd()
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        if let Some(fd) = self.fd.take() {
            self.debt.close(fd);
        }
    }
}

impl Watched {
    pub(super) fn new(fd: AsyncFd<OwnedFd>, debt: &Arc<Debt>) -> Self {
        Self { fd: Some(fd), debt: Arc::clone(debt) }
    }

    /// Of whoever is at the other end.
    pub(super) fn debt(&self) -> &Arc<Debt> {
        &self.debt
    }
}

impl Deref for Watched {
    type Target = AsyncFd<OwnedFd>;

    fn deref(&self) -> &Self::Target {
        self.fd.as_ref().expect("taken only by drop")
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(fd) = self.fd.take() {
            self.debt.close(fd.into_inner());
        }
    }
}

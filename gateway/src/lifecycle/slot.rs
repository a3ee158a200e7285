//! A listener in custody, between the site that holds it and the acceptor that polls it.
//!
//! Owns the descriptor and its registration with epoll, under one lock, so that pausing, resuming and retiring never race.
//! It is closed, by the reaper, when its last reference goes: an accept that hangs on it keeps it open.
//!
//! ```text
//! Parked   held, not accepted from
//! Polled   registered with epoll
//! Paused   deregistered for a moment: no room in the tenant, or no descriptors
//! Retired  deregistered for good; closed when the last reference goes
//! ```
//! Deregistering comes before closing: the pod's duplicate would keep the registration alive, and nothing could remove it.

use std::mem;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::Notify;

use super::acceptor::Acceptor;
use super::custody::Listener;
use super::reaper::Foreign;
use crate::tenant::{self, SocketKind};

/// A tenant's connections accepted before it is another tenant's turn.
const SLICE: u32 = 16;

/// What acceptors and a site share about the site.
#[derive(Debug)]
pub(super) struct Doorway {
    pub(super) tenant: Arc<tenant::Handle>,
    /// Told when the fate of a slot has changed, or a backlog was found empty.
    pub(super) changed: Notify,
    /// Whether the site waits for its backlogs to become empty.
    pub(super) draining: AtomicBool,
    round: AtomicU64,
    accepted_in_round: AtomicU32,
}

/// A listener in custody.
#[derive(Debug)]
pub(super) struct Slot {
    fd: Foreign,
    /// What it was when it was donated; `None` for `otlp`.
    pub(super) listener: Option<Listener>,
    pub(super) doorway: Arc<Doorway>,
    acceptor: Arc<Acceptor>,
    token: u64,
    polling: Mutex<Polling>,
    fate: AtomicU8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Polling {
    Parked,
    Polled,
    Paused,
    Retired,
}

/// What became of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Fate {
    Alive = 0,
    /// Hung up, or nothing can be accepted from it.
    Dead = 1,
    /// The watchdog had to shut it down.
    Hung = 2,
}

impl Doorway {
    pub(super) fn new(tenant: Arc<tenant::Handle>) -> Arc<Self> {
        Arc::new(Self {
            tenant,
            changed: Notify::new(),
            draining: AtomicBool::new(false),
            round: AtomicU64::new(0),
            accepted_in_round: AtomicU32::new(0),
        })
    }

    /// Whether one more may be accepted in this round. A site's slots are all on one acceptor, so nobody races here.
    pub(super) fn has_turn(&self, round: u64) -> bool {
        if self.round.swap(round, Ordering::Relaxed) != round {
            self.accepted_in_round.store(0, Ordering::Relaxed);
        }
        self.accepted_in_round.fetch_add(1, Ordering::Relaxed) < SLICE
    }
}

impl Slot {
    /// Puts a listener into custody, parked.
    pub(super) fn park(
        acceptor: &Arc<Acceptor>,
        doorway: &Arc<Doorway>,
        fd: Foreign,
        listener: Option<Listener>,
    ) -> Arc<Self> {
        let token = acceptor.next_token();
        let slot = Arc::new(Self {
            fd,
            listener,
            doorway: Arc::clone(doorway),
            acceptor: Arc::clone(acceptor),
            token,
            polling: Mutex::new(Polling::Parked),
            fate: AtomicU8::new(Fate::Alive as u8),
        });
        acceptor.slots().insert(token, Arc::clone(&slot));
        slot
    }

    /// Accepts from it from now on. A failure is its death.
    pub(super) fn poll(&self) {
        let mut polling = self.polling();
        if *polling == Polling::Parked {
            self.register(&mut polling);
        }
    }

    /// Deregisters it for good. Idempotent.
    pub(super) fn retire(&self) {
        let before = mem::replace(&mut *self.polling(), Polling::Retired);
        if before == Polling::Polled {
            self.acceptor.deregister(self);
        }
        self.acceptor.slots().remove(&self.token);
    }

    pub(super) fn fate(&self) -> Fate {
        match self.fate.load(Ordering::Acquire) {
            0 => Fate::Alive,
            1 => Fate::Dead,
            _ => Fate::Hung,
        }
    }

    /// Whether no connection waits. What cannot be asked counts as empty.
    pub(super) fn is_backlog_empty(&self) -> bool {
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        !matches!(poll(&mut fds, Some(&Timespec::default())), Ok(1) if fds[0].revents() == PollFlags::IN)
    }

    /// The watchdog's grip: an accept that hangs on it returns EINVAL.
    pub(super) fn shut_down(&self) {
        self.fate.store(Fate::Hung as u8, Ordering::Release);
        let _ = rustix::net::shutdown(&self.fd, rustix::net::Shutdown::Both);
    }

    pub(super) fn kind(&self) -> SocketKind {
        if self.listener.is_some() { SocketKind::Tcp } else { SocketKind::Unix }
    }

    fn register(&self, polling: &mut Polling) {
        match self.acceptor.register(self, self.token) {
            Ok(()) => *polling = Polling::Polled,
            Err(error) => {
                tracing::warn!(tenant = %self.doorway.tenant.identity().name, %error, "cannot wait for connections on a listener");
                *polling = Polling::Parked;
                self.mark_dead();
            }
        }
    }

    /// Deregisters it for a moment. False if it is not registered: somebody has retired it meanwhile.
    pub(super) fn pause(&self) -> bool {
        let mut polling = self.polling();
        if *polling != Polling::Polled {
            return false;
        }
        self.acceptor.deregister(self);
        *polling = Polling::Paused;
        true
    }

    pub(super) fn is_retired(&self) -> bool {
        *self.polling() == Polling::Retired
    }

    pub(super) fn resume(&self) {
        let mut polling = self.polling();
        if *polling == Polling::Paused {
            self.register(&mut polling);
        }
    }

    /// Deregisters it, so that a hung-up listener wakes nobody again, and tells the site.
    pub(super) fn die(&self) {
        self.pause();
        self.mark_dead();
    }

    fn mark_dead(&self) {
        let _ = self.fate.compare_exchange(Fate::Alive as u8, Fate::Dead as u8, Ordering::AcqRel, Ordering::Acquire);
        self.doorway.changed.notify_one();
    }

    fn polling(&self) -> MutexGuard<'_, Polling> {
        // A panic while the lock is held cannot leave an enum half-changed.
        self.polling.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for Slot {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

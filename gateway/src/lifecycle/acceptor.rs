//! The threads that accept: they wait for connections on the listeners that pods have donated, and on `otlp`.
//!
//! `accept` never runs on a runtime's worker, because a pod can make it hang: O_NONBLOCK lives in the open file
//! description that it shares, so it may clear the flag and take the connection first. An acceptor says in its
//! [`Heartbeat`] where it is, and the watchdog frees it.
//!
//! Owns an epoll instance and the [`Slot`]s registered there. It decides nothing about custody: it marks what happened to a
//! slot and wakes the site. It ends when told to stop; slots are retired by their sites.
//!
//! ```text
//! Parked   held, not accepted from
//! Polled   registered with epoll
//! Paused   deregistered for a moment: no room in the tenant, or no descriptors
//! Retired  deregistered for good; closed when the last reference goes
//! ```
//! Deregistering comes before closing: the pod's duplicate would keep the registration alive, and nothing could remove it.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{io, mem};

use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use tokio::sync::Notify;

use super::counters::Counters;
use super::custody::Listener;
use super::reaper::Foreign;
use super::reserve::Reserve;
use super::socket_options;
use crate::tenant::{self, Accepted, SocketKind};

/// A tenant's connections accepted before it is another tenant's turn.
const SLICE: u32 = 16;

/// How long a paused listener is left alone. A balance of wake-ups against what a new connection may wait.
const PAUSE_TIME: Duration = Duration::from_millis(25);

const EVENTS_AT_ONCE: usize = 64;

/// The token of the eventfd that wakes the thread to stop.
const STOP: u64 = 0;

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
    doorway: Arc<Doorway>,
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

/// One acceptor thread, from outside.
#[derive(Debug)]
pub(super) struct Acceptor {
    epoll: OwnedFd,
    wake: OwnedFd,
    stopping: AtomicBool,
    next_token: AtomicU64,
    slots: Mutex<HashMap<u64, Arc<Slot>>>,
    pub(super) heartbeat: Heartbeat,
    reserve: Arc<Reserve>,
    counters: Arc<Counters>,
}

/// Where the thread is, for the watchdog.
#[derive(Debug, Default)]
pub(super) struct Heartbeat {
    /// Of the thread, in this process's view; 0 before it runs.
    pub(super) thread_id: AtomicI32,
    /// Odd while inside `accept`. Grows by two with each.
    pub(super) calls: AtomicU64,
    /// The slot that it accepts from.
    pub(super) slot: Mutex<Option<Arc<Slot>>>,
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
    fn has_turn(&self, round: u64) -> bool {
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
        let token = acceptor.next_token.fetch_add(1, Ordering::Relaxed);
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
            let _ = epoll::delete(&self.acceptor.epoll, &self.fd);
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
        use rustix::event::{PollFd, PollFlags, poll};
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        !matches!(poll(&mut fds, Some(&Timespec::default())), Ok(1) if fds[0].revents() == PollFlags::IN)
    }

    /// The watchdog's grip: an accept that hangs on it returns EINVAL.
    pub(super) fn shut_down(&self) {
        self.fate.store(Fate::Hung as u8, Ordering::Release);
        let _ = rustix::net::shutdown(&self.fd, rustix::net::Shutdown::Both);
    }

    fn kind(&self) -> SocketKind {
        if self.listener.is_some() { SocketKind::Tcp } else { SocketKind::Unix }
    }

    fn register(&self, polling: &mut Polling) {
        let data = epoll::EventData::new_u64(self.token);
        match epoll::add(&self.acceptor.epoll, &self.fd, data, epoll::EventFlags::IN) {
            Ok(()) => *polling = Polling::Polled,
            Err(error) => {
                tracing::warn!(tenant = %self.doorway.tenant.identity().name, %error, "cannot wait for connections on a listener");
                *polling = Polling::Parked;
                self.mark_dead();
            }
        }
    }

    /// Deregisters it for a moment. False if it is not registered: somebody has retired it meanwhile.
    fn pause(&self) -> bool {
        let mut polling = self.polling();
        if *polling != Polling::Polled {
            return false;
        }
        let _ = epoll::delete(&self.acceptor.epoll, &self.fd);
        *polling = Polling::Paused;
        true
    }

    fn is_retired(&self) -> bool {
        *self.polling() == Polling::Retired
    }

    fn resume(&self) {
        let mut polling = self.polling();
        if *polling == Polling::Paused {
            self.register(&mut polling);
        }
    }

    /// Deregisters it, so that a hung-up listener wakes nobody again, and tells the site.
    fn die(&self) {
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
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Acceptor {
    /// Starts a thread of that number.
    pub(super) fn start(
        number: usize,
        reserve: &Arc<Reserve>,
        counters: &Arc<Counters>,
    ) -> io::Result<(Arc<Self>, JoinHandle<()>)> {
        let acceptor = Arc::new(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            stopping: AtomicBool::new(false),
            next_token: AtomicU64::new(STOP + 1),
            slots: Mutex::default(),
            heartbeat: Heartbeat::default(),
            reserve: Arc::clone(reserve),
            counters: Arc::clone(counters),
        });
        epoll::add(&acceptor.epoll, &acceptor.wake, epoll::EventData::new_u64(STOP), epoll::EventFlags::IN)?;
        let run = Arc::clone(&acceptor);
        let thread = thread::Builder::new()
            .name(format!("pillion-accept-{number}"))
            .spawn(move || Loop { acceptor: &run, paused: VecDeque::new(), round: 0 }.run())?;
        Ok((acceptor, thread))
    }

    /// Ends the thread after its present turn.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    pub(super) fn slots(&self) -> MutexGuard<'_, HashMap<u64, Arc<Slot>>> {
        // A panic while the lock is held cannot happen in a map's own operations.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Heartbeat {
    pub(super) fn slot(&self) -> MutexGuard<'_, Option<Arc<Slot>>> {
        // A panic while the lock is held cannot leave an Option half-changed.
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The inside of the thread.
struct Loop<'a> {
    acceptor: &'a Acceptor,
    /// In the order of their times, because every pause is equally long. At most one entry for each slot.
    paused: VecDeque<Pause>,
    round: u64,
}

/// A slot that is left alone for a moment.
struct Pause {
    until: Instant,
    slot: Arc<Slot>,
    /// Accepted, and given back by a worker whose inbox was full: offered again before anything else is accepted.
    waiting: Option<Accepted>,
}

/// How a turn ended.
enum Turn {
    /// Nothing waits any more, or it is somebody else's turn.
    Over,
    /// Leave it alone for a moment.
    Pause(Option<Accepted>),
    Dead,
}

impl Loop<'_> {
    fn run(mut self) {
        let thread_id = rustix::thread::gettid().as_raw_nonzero().get();
        self.acceptor.heartbeat.thread_id.store(thread_id, Ordering::Release);
        while !self.acceptor.stopping.load(Ordering::Acquire) {
            let mut events = Vec::with_capacity(EVENTS_AT_ONCE);
            let timeout = self.timeout();
            match epoll::wait(&self.acceptor.epoll, rustix::buffer::spare_capacity(&mut events), timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => {
                    // Only a programming error gets here (EBADF, EFAULT, EINVAL); spinning on it would help nobody.
                    tracing::error!(%error, "an acceptor cannot wait for connections and ends: no connection is accepted until a restart");
                    return;
                }
            }
            self.acceptor.counters.wakeups.add(1);
            self.resume_paused();
            self.round += 1;
            for event in events {
                self.handle(event.data.u64(), event.flags);
            }
        }
    }

    fn timeout(&self) -> Option<Timespec> {
        let next = self.paused.front()?;
        let left = next.until.saturating_duration_since(Instant::now());
        // A Timespec holds i64 seconds; what is left is at most PAUSE_TIME.
        Some(Timespec::try_from(left).unwrap_or_default())
    }

    fn resume_paused(&mut self) {
        let now = Instant::now();
        if self.is_due(now) && !self.acceptor.reserve.is_full() {
            self.acceptor.reserve.refill();
        }
        while self.is_due(now) {
            let Some(Pause { slot, waiting, .. }) = self.paused.pop_front() else { return };
            match waiting.map(|connection| slot.doorway.tenant.offer(connection)) {
                Some(Err(connection)) if !slot.is_retired() => self.leave_alone(slot, Some(connection)),
                Some(Ok(())) => {
                    self.acceptor.counters.connections.add(1);
                    slot.resume();
                }
                Some(Err(_)) | None => slot.resume(),
            }
        }
    }

    fn is_due(&self, now: Instant) -> bool {
        self.paused.front().is_some_and(|next| next.until <= now)
    }

    fn leave_alone(&mut self, slot: Arc<Slot>, waiting: Option<Accepted>) {
        self.acceptor.counters.pauses.add(1);
        self.paused.push_back(Pause { until: Instant::now() + PAUSE_TIME, slot, waiting });
    }

    fn handle(&mut self, token: u64, flags: epoll::EventFlags) {
        // Copied out, so that the lock is not held while a pod may make us wait.
        let Some(slot) = self.acceptor.slots().get(&token).cloned() else { return };
        if flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR) {
            return slot.die();
        }
        *self.acceptor.heartbeat.slot() = Some(Arc::clone(&slot));
        let turn = self.turn(&slot);
        *self.acceptor.heartbeat.slot() = None;
        match turn {
            Turn::Over => {
                // A slice may have emptied the backlog just so; then nothing would wake us for it again.
                if slot.doorway.draining.load(Ordering::Acquire) {
                    slot.doorway.changed.notify_one();
                }
            }
            Turn::Dead => slot.die(),
            Turn::Pause(waiting) => {
                if slot.pause() {
                    self.leave_alone(slot, waiting);
                }
            }
        }
    }

    fn turn(&self, slot: &Slot) -> Turn {
        while slot.doorway.has_turn(self.round) {
            if !self.acceptor.reserve.is_full() {
                return Turn::Pause(None);
            }
            let Some(permit) = slot.doorway.tenant.connection_permit() else { return Turn::Pause(None) };
            match self.accept(slot) {
                Ok(socket) if came_in_at(&socket, slot.listener) => {
                    let kind = slot.kind();
                    socket_options::prepare(&socket, kind);
                    if let Err(back) = slot.doorway.tenant.offer(Accepted { socket, kind, permit }) {
                        self.acceptor.counters.connections_given_back.add(1);
                        return Turn::Pause(Some(back));
                    }
                    self.acceptor.counters.connections.add(1);
                }
                Ok(socket) => {
                    socket_options::prepare(&socket, slot.kind());
                    self.acceptor.counters.connections_strayed.add(1);
                    return Turn::Dead;
                }
                Err(Errno::AGAIN) => return Turn::Over,
                Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                    self.acceptor.counters.starved.add(1);
                    self.acceptor.reserve.release();
                    return Turn::Pause(None);
                }
                Err(Errno::INVAL | Errno::BADF | Errno::NOTSOCK | Errno::OPNOTSUPP) => return Turn::Dead,
                // accept(2): errors of the connection that was waiting are reported here; it is gone, the next may be good.
                Err(_) => {}
            }
        }
        Turn::Over
    }

    fn accept(&self, slot: &Slot) -> Result<OwnedFd, Errno> {
        let calls = &self.acceptor.heartbeat.calls;
        calls.fetch_add(1, Ordering::AcqRel);
        let outcome = rustix::net::accept_with(slot, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC);
        calls.fetch_add(1, Ordering::AcqRel);
        outcome
    }
}

/// A pod can take a listener's port away and bind it elsewhere without its being noticed: an automatically chosen port
/// (IP_LOCAL_PORT_RANGE may force which) is not locked. So the address is asked of each connection.
fn came_in_at(socket: &OwnedFd, listener: Option<Listener>) -> bool {
    let Some(listener) = listener else { return true };
    let local = rustix::net::getsockname(socket).ok().and_then(|address| SocketAddr::try_from(address).ok());
    local.is_some_and(|local| local.ip() == listener.address.ip() && local.port() == listener.address.port())
}

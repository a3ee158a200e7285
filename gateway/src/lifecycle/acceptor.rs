//! The threads that accept: they wait for connections on the listeners that pods have donated, and on `otlp`.
//!
//! `accept` never runs on a runtime's worker, because a pod can make it hang: O_NONBLOCK lives in the open file
//! description that it shares, so it may clear the flag and take the connection first. An acceptor says in its
//! [`Heartbeat`] where it is, and the watchdog frees it.
//!
//! Owns an epoll instance and the [`Slot`]s registered there. It decides nothing about custody: it marks what happened to a
//! slot and wakes the site. It ends when told to stop; slots are retired by their sites.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use rustix::io::Errno;
use rustix::net::SocketFlags;

use super::counters::Counters;
use super::custody::Listener;
use super::reserve::Reserve;
use super::slot::Slot;
use super::socket_options;
use crate::tenant::Accepted;

/// How long a paused listener is left alone. A balance of wake-ups against what a new connection may wait.
const PAUSE_TIME: Duration = Duration::from_millis(25);

const EVENTS_AT_ONCE: usize = 64;

/// The token of the eventfd that wakes the thread to stop.
const STOP: u64 = 0;

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
        acceptor.register(&acceptor.wake, STOP)?;
        let run = Arc::clone(&acceptor);
        let thread = thread::Builder::new().name(format!("pillion-accept-{number}")).spawn(move || {
            let essential = Essential;
            Loop { acceptor: &run, paused: VecDeque::new(), round: 0 }.run();
            std::mem::forget(essential);
        })?;
        Ok((acceptor, thread))
    }

    /// Ends the thread after its present turn.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    pub(super) fn next_token(&self) -> u64 {
        self.next_token.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn register(&self, fd: impl AsFd, token: u64) -> rustix::io::Result<()> {
        epoll::add(&self.epoll, fd, epoll::EventData::new_u64(token), epoll::EventFlags::IN)
    }

    pub(super) fn deregister(&self, fd: impl AsFd) {
        // Fails only if it is not registered, which is what is wanted.
        let _ = epoll::delete(&self.epoll, fd);
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

/// A gateway whose acceptor has panicked would live on, and accept nothing: better that its supervisor starts it again.
struct Essential;

impl Drop for Essential {
    fn drop(&mut self) {
        tracing::error!("an acceptor thread panicked; the process ends, to be started again");
        std::process::abort();
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
                // EBADF, EFAULT or EINVAL: no input leads here, and going on would be a busy loop.
                Err(error) => panic!("an acceptor cannot wait for connections: {error}"),
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
                    self.acceptor.reserve.release();
                    self.acceptor.counters.starved.add(1);
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

//! The one loop of a shim, and its listeners.
//!
//! Owns every descriptor and every timer. A timer runs only while something is missing (a port that is not bound, a
//! gateway that refuses connections, a donation that has to be repeated): in the steady state, and while it waits in the
//! queue of `ctl`, the shim sleeps in epoll_wait() without a timeout. What the gateway says is [`crate::session`]'s. It
//! ends on SIGTERM, after the gateway has acknowledged BYE or [`BYE_PATIENCE`] is over.

use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use pillion_proto::control::Mode;
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use crate::args::Options;
use crate::backoff::Retry;
use crate::ctl::Ctl;
use crate::ports::Ports;
use crate::relay::Relay;
use crate::say::{say, why};
use crate::sys;

/// How long BYE may take; the gateway drains the backlog within 2 s.
const BYE_PATIENCE: Duration = Duration::from_millis(2500);

/// What an event of the loop is about; listeners follow, in the order of their slots.
pub(crate) const SIGNALS: u64 = 0;
pub(crate) const CTL: u64 = 1;
pub(crate) const WATCH: u64 = 2;
pub(crate) const RELAY: u64 = 3;
const LISTENER: u64 = 16;

/// A pod's shim.
pub(crate) struct Shim {
    pub(crate) options: Options,
    pub(crate) epoll: OwnedFd,
    signals: OwnedFd,
    pub(crate) ports: Ports,
    pub(crate) relay: Relay,
    pub(crate) ctl: Option<Ctl>,
    /// On the directory of `ctl`, while nobody listens there.
    pub(crate) watch: Option<OwnedFd>,
    /// What the gateway or the command line asks for. Until anybody does: hold the ports, accept nothing.
    pub(crate) mode: Mode,
    /// Differs for each start.
    pub(crate) instance: u64,
    pub(crate) last_id: u32,
    pub(crate) connect: Retry,
    pub(crate) bind: Retry,
    pub(crate) offer: Retry,
    /// What the last attempt to be served met, so that it is said once.
    pub(crate) complained: Option<Errno>,
    /// When to end for want of a gateway.
    pub(crate) alone_until: Option<Instant>,
    /// The pod has been told to end.
    pub(crate) leave_by: Option<Instant>,
    pub(crate) bye: Bye,
    /// Of the present turn.
    pub(crate) now: Instant,
}

/// How far the farewell has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bye {
    Unsaid,
    /// With this id.
    Said(u32),
    /// Or there has never been anybody to say it to.
    Acknowledged,
}

/// Runs until the pod ends.
pub(crate) fn run(options: Options) -> ExitCode {
    match Shim::new(options).and_then(Shim::turn_until_over) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&["cannot go on: ", &why(error), "; check the limits of open files and memory"]);
            ExitCode::FAILURE
        }
    }
}

impl Shim {
    fn new(options: Options) -> Result<Self, Errno> {
        let signals = sys::signals()?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let clock = clock_gettime(ClockId::Realtime);
        let instance = clock.tv_sec.wrapping_mul(1_000_000_000).wrapping_add(clock.tv_nsec).cast_unsigned();
        let relay = Relay::new(options.dir.clone(), instance.rotate_left(8))?;
        epoll::add(&epoll, &signals, EventData::new_u64(SIGNALS), EventFlags::IN)?;
        epoll::add(&epoll, relay.events(), EventData::new_u64(RELAY), EventFlags::IN)?;
        let now = Instant::now();
        let mut shim = Self {
            ports: Ports::new([options.grpc, options.http]),
            epoll,
            signals,
            relay,
            ctl: None,
            watch: None,
            mode: if options.capabilities.allows(Mode::Donate) { Mode::Donate } else { Mode::Relay },
            instance,
            last_id: 0,
            connect: Retry::new(10, 1000, instance.rotate_left(16)),
            bind: Retry::new(20, 1000, instance.rotate_left(24)),
            offer: Retry::new(10_000, 10_000, instance.rotate_left(32)),
            complained: None,
            alone_until: options.exit_after_alone.and_then(|alone| now.checked_add(alone)),
            leave_by: None,
            bye: Bye::Acknowledged,
            now,
            options,
        };
        // The ports come first: they exist whatever happens to the gateway.
        shim.bind_ports();
        shim.connect.at = Some(now);
        Ok(shim)
    }

    fn turn_until_over(mut self) -> Result<(), Errno> {
        while !self.is_over() {
            self.turn()?;
            self.do_what_is_due();
        }
        Ok(())
    }

    fn do_what_is_due(&mut self) {
        if self.bind.take_due(self.now) {
            self.bind_ports();
        }
        if self.connect.take_due(self.now) {
            self.connect();
        }
        if self.offer.take_due(self.now) {
            self.offer_all();
        }
        self.watch_listeners();
    }

    /// Waits for events, and handles them.
    fn turn(&mut self) -> Result<(), Errno> {
        let delay = self.next_timer().map(|at| at.saturating_duration_since(Instant::now()));
        // A delay that does not fit is longer than any machine runs.
        let timeout = delay.and_then(|delay| Timespec::try_from(delay).ok());
        let mut events = Vec::with_capacity(16);
        match epoll::wait(&self.epoll, spare_capacity(&mut events), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        self.now = Instant::now();
        for event in events {
            match event.data.u64() {
                SIGNALS => self.on_signal(),
                CTL => self.on_ctl(),
                WATCH => self.on_watch(),
                RELAY => self.relay.turn(),
                listener => self.on_connection(listener.wrapping_sub(LISTENER)),
            }
        }
        Ok(())
    }

    fn next_timer(&self) -> Option<Instant> {
        let relay = self.relay.resumes_at();
        let timers = [self.connect.at, self.bind.at, self.offer.at, relay, self.alone_until, self.leave_by];
        timers.into_iter().flatten().min()
    }

    fn is_over(&self) -> bool {
        if self.alone_until.is_some_and(|at| at <= self.now) {
            say(&["no gateway for the time given by --exit-after-alone: ending"]);
            return true;
        }
        let served = self.relay.is_idle() && self.bye == Bye::Acknowledged;
        self.leave_by.is_some_and(|at| served || at <= self.now)
    }

    fn on_signal(&mut self) {
        let _ = rustix::io::read(&self.signals, &mut [0; 128]);
        // The second time somebody is in a hurry.
        self.leave_by = Some(self.leave_by.map_or(self.now + BYE_PATIENCE, |_| self.now));
        self.say_bye();
    }

    /// Binds what is missing, and offers it to a gateway that is there.
    pub(crate) fn bind_ports(&mut self) {
        for index in self.ports.bind_missing() {
            self.ports.slots[index].relayed = self.mode == Mode::Relay;
            if self.mode == Mode::Donate && self.ctl.as_ref().is_some_and(|ctl| ctl.welcomed) {
                self.offer(index);
            }
        }
        self.bind.at = None;
        if self.ports.is_missing() {
            self.bind.again(self.now, Duration::ZERO);
        } else {
            self.bind.reset();
        }
    }

    /// Has the listeners watched on which the shim is to accept, and no others.
    fn watch_listeners(&mut self) {
        let has_room = self.relay.has_room(self.now);
        for (slot, token) in self.ports.slots.iter_mut().zip(LISTENER..) {
            let wanted = slot.relayed && has_room;
            let Some(socket) = slot.socket.as_ref().filter(|_| wanted != slot.watched) else { continue };
            let changed = if wanted {
                epoll::add(&self.epoll, socket, EventData::new_u64(token), EventFlags::IN)
            } else {
                // Before any close: the gateway's duplicate would keep the registration alive.
                epoll::delete(&self.epoll, socket)
            };
            if changed.is_ok() {
                slot.watched = wanted;
            }
        }
    }

    fn on_connection(&mut self, index: u64) {
        let slot = usize::try_from(index).ok().and_then(|index| self.ports.slots.get(index));
        let Some(socket) = slot.and_then(|slot| slot.socket.as_ref()) else { return };
        if self.relay.accept(socket, self.now).is_err() {
            self.renew_dead();
        }
    }

    /// Binds anew what somebody (the gateway's watchdog, the pod itself) has shut down.
    pub(crate) fn renew_dead(&mut self) {
        for dead in self.ports.take_dead() {
            let _ = epoll::delete(&self.epoll, &dead);
        }
        self.bind_ports();
    }
}

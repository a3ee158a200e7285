//! The one loop of a shim.
//!
//! Owns every descriptor and every timer, and decides what an event means. A timer runs only while something is missing
//! (a port that is not bound, a gateway that refuses connections, a donation that has to be repeated): in the steady state,
//! and while it waits in the queue of `ctl`, the shim sleeps in epoll_wait() without a timeout. It ends on SIGTERM, after
//! the gateway has acknowledged BYE or [`BYE_PATIENCE`] is over.
//!
//! ```text
//! no ctl      connect() works    -> HELLO, wait in the queue for as long as it takes
//!             nobody listens     -> watch the directory, try again when a name appears
//! WELCOME     donate  -> DONATE each listener, READY; nobody accepts here
//!             relay   -> accept here and copy to `otlp`
//! NACK, or the kernel refuses to pass a listener  -> relay that listener
//! end of file -> connect again within 10 ms; who accepted goes on accepting: with donated listeners nobody does, and
//!                the kernel keeps the connections
//! ```

use std::os::fd::{AsFd as _, OwnedFd};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use pillion_proto::control::{
    Capabilities, Hello, Mode, Nack, NackCode, ToGateway, ToShim, VERSION, Welcome, negotiate,
};
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::SocketType;
use rustix::time::{ClockId, clock_gettime};

use crate::args::Options;
use crate::backoff::{Backoff, Random};
use crate::ctl::{self, Ctl, Incoming, Obstacle, Sent};
use crate::ports::Ports;
use crate::relay::Relay;
use crate::say::{say, why};
use crate::sys;

/// How long BYE may take; the gateway drains the backlog within 2 s.
const BYE_PATIENCE: Duration = Duration::from_millis(2500);
/// While the directory is watched a timer is needed only where watching does not work, as in some sandboxes.
const WATCHED_RETRY: Duration = Duration::from_secs(5);
/// Before a donation that failed for a passing reason is repeated.
const OFFER_RETRY: Duration = Duration::from_secs(10);
/// Messages that are read before other events get their turn.
const MESSAGES_A_TURN: usize = 32;

const SIGNALS: u64 = 0;
const CTL: u64 = 1;
const WATCH: u64 = 2;
const RELAY: u64 = 3;
const LISTENER: u64 = 16;

/// Runs until the pod ends.
pub(crate) fn run(options: Options) -> ExitCode {
    let mut shim = match Shim::new(options) {
        Ok(shim) => shim,
        Err(error) => {
            say(&["cannot start: ", &why(error), "; raise the limits of open files and memory"]);
            return ExitCode::FAILURE;
        }
    };
    loop {
        if let Some(code) = shim.turn() {
            return code;
        }
    }
}

struct Shim {
    options: Options,
    epoll: OwnedFd,
    signals: OwnedFd,
    ports: Ports,
    ctl: Option<Ctl>,
    watch: Option<OwnedFd>,
    relay: Relay,
    /// Listeners that the relay is watching at present.
    accepting: Vec<bool>,
    /// What the gateway or the command line asks for. Until anybody does: hold the ports, accept nothing.
    mode: Mode,
    instance: u64,
    random: Random,
    next_id: u32,
    connect: Retry,
    bind: Retry,
    offer_at: Option<Instant>,
    /// What the last attempt to connect met, so that it is said once.
    complained: Option<Errno>,
    was_welcomed: bool,
    /// When to end for want of a gateway.
    alone_until: Option<Instant>,
    leaving: Option<Leaving>,
}

struct Retry {
    at: Option<Instant>,
    backoff: Backoff,
}

struct Leaving {
    deadline: Instant,
    /// The id of BYE, once it was said.
    bye: Option<u32>,
    acknowledged: bool,
}

impl Shim {
    fn new(options: Options) -> Result<Self, Errno> {
        let signals = sys::signals()?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let clock = clock_gettime(ClockId::Realtime);
        let instance =
            clock.tv_sec.unsigned_abs().wrapping_mul(1_000_000_000).wrapping_add(clock.tv_nsec.unsigned_abs());
        let relay = Relay::new(options.dir.clone(), instance.rotate_left(32))?;
        epoll::add(&epoll, &signals, EventData::new_u64(SIGNALS), EventFlags::IN)?;
        epoll::add(&epoll, relay.events(), EventData::new_u64(RELAY), EventFlags::IN)?;
        let now = Instant::now();
        let ports = Ports::new([options.grpc, options.http], options.forced == Some(Mode::Relay));
        Ok(Self {
            accepting: vec![false; ports.slots.len()],
            ports,
            epoll,
            signals,
            ctl: None,
            watch: None,
            relay,
            mode: options.forced.unwrap_or(Mode::Donate),
            instance,
            random: Random::new(instance),
            next_id: 1,
            connect: Retry { at: Some(now), backoff: Backoff::new(10, 1000) },
            bind: Retry { at: Some(now), backoff: Backoff::new(20, 1000) },
            offer_at: None,
            complained: None,
            was_welcomed: false,
            alone_until: options.exit_after_alone.and_then(|alone| now.checked_add(alone)),
            leaving: None,
            options,
        })
    }

    /// Does what is due, waits for the next event, and handles it. Some: the shim has ended.
    fn turn(&mut self) -> Option<ExitCode> {
        let now = Instant::now();
        // The ports come first: they exist whatever happens to the gateway.
        if self.bind.at.is_some_and(|at| at <= now) {
            self.bind_ports(now);
        }
        if self.ctl.is_none() && self.connect.at.is_some_and(|at| at <= now) {
            self.connect(now);
        }
        if self.offer_at.is_some_and(|at| at <= now) {
            self.offer_all();
        }
        if self.relay.due(now).is_some_and(|at| at <= now) {
            self.relay.turn(now);
        }
        self.flush(now);
        self.watch_listeners();
        if let Some(code) = self.end(now) {
            return Some(code);
        }

        let now = Instant::now();
        let timeout = self.next_timer(now).map(|at| timespec(at.saturating_duration_since(now)));
        let mut events = Vec::with_capacity(16);
        match epoll::wait(&self.epoll, spare_capacity(&mut events), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => {
                say(&["cannot wait for events: ", &why(error), "; this kernel does not do what the shim needs"]);
                return Some(ExitCode::FAILURE);
            }
        }
        let now = Instant::now();
        for event in events {
            match event.data.u64() {
                SIGNALS => self.on_signal(now),
                CTL => self.on_ctl(now),
                WATCH => self.on_watch(now),
                RELAY => self.relay.turn(now),
                listener => self.on_connection(listener.wrapping_sub(LISTENER), now),
            }
        }
        None
    }

    fn next_timer(&self, now: Instant) -> Option<Instant> {
        let connect = if self.ctl.is_none() { self.connect.at } else { None };
        let deadline = self.leaving.as_ref().map(|leaving| leaving.deadline);
        [connect, self.bind.at, self.offer_at, self.relay.due(now), self.alone_until, deadline]
            .into_iter()
            .flatten()
            .min()
    }

    /// Whether it is over.
    fn end(&self, now: Instant) -> Option<ExitCode> {
        if self.alone_until.is_some_and(|at| at <= now) {
            say(&["no gateway for the time given by --exit-after-alone: ending"]);
            return Some(ExitCode::SUCCESS);
        }
        let leaving = self.leaving.as_ref()?;
        let served = self.relay.is_idle() && (leaving.acknowledged || !self.was_welcomed);
        (served || leaving.deadline <= now).then_some(ExitCode::SUCCESS)
    }

    // --- the ports

    fn bind_ports(&mut self, now: Instant) {
        self.bind.at = None;
        for index in self.ports.bind_missing() {
            self.take_over(index, false);
        }
        if self.ports.is_missing() {
            self.bind.at = Some(now + self.bind.backoff.next(&mut self.random));
        } else {
            self.bind.backoff.reset();
        }
    }

    /// Decides who accepts on a listener that has just come into the shim's hands.
    fn take_over(&mut self, index: usize, gateway_has_it: bool) {
        let relay = self.mode == Mode::Relay;
        if let Some(slot) = self.ports.slots.get_mut(index) {
            slot.relayed = relay;
        }
        if !relay && !gateway_has_it && self.ctl.as_ref().is_some_and(|ctl| ctl.welcomed) {
            self.offer(index);
        }
    }

    /// Has the listeners watched on which the shim is to accept, and no others.
    fn watch_listeners(&mut self) {
        let has_room = self.relay.has_room();
        for (index, (slot, accepting)) in self.ports.slots.iter().zip(&mut self.accepting).enumerate() {
            let Some(socket) = &slot.socket else {
                *accepting = false;
                continue;
            };
            let wanted = slot.relayed && has_room;
            if wanted == *accepting {
                continue;
            }
            let data = EventData::new_u64(LISTENER + u64::try_from(index).unwrap_or_default());
            let changed = match wanted {
                true => epoll::add(&self.epoll, socket, data, EventFlags::IN),
                // Before any close: the gateway's duplicate would keep the registration alive.
                false => epoll::delete(&self.epoll, socket),
            };
            if changed.is_ok() {
                *accepting = wanted;
            }
        }
    }

    fn on_connection(&mut self, index: u64, now: Instant) {
        let Ok(index) = usize::try_from(index) else { return };
        let Some(Some(socket)) = self.ports.slots.get(index).map(|slot| &slot.socket) else { return };
        if self.relay.accept(socket, now).is_err() {
            self.renew_dead(now);
        }
    }

    /// Binds anew what somebody (the gateway's watchdog, the pod itself) has shut down.
    fn renew_dead(&mut self, now: Instant) {
        self.unwatch_listeners();
        self.ports.drop_dead();
        self.bind_ports(now);
    }

    fn unwatch_listeners(&mut self) {
        for (slot, accepting) in self.ports.slots.iter().zip(&mut self.accepting) {
            if let (true, Some(socket)) = (std::mem::take(accepting), &slot.socket) {
                let _ = epoll::delete(&self.epoll, socket);
            }
        }
    }

    // --- the connection to the gateway

    fn connect(&mut self, now: Instant) {
        self.connect.at = None;
        self.watch = None;
        let error = match ctl::open_dir(&self.options.dir) {
            Ok(dir) => {
                // Before connect(): a socket that appears in between is not missed.
                self.watch = self.watch(&dir).ok();
                match ctl::connect(&dir, "ctl", SocketType::SEQPACKET) {
                    Ok(socket) => return self.say_hello(socket),
                    Err(error) => error,
                }
            }
            Err(error) => error,
        };
        let delay = self.connect.backoff.next(&mut self.random);
        let slow = self.watch.is_some() && error != Errno::AGAIN;
        self.connect.at = Some(now + if slow { WATCHED_RETRY + delay } else { delay });
        if self.complained != Some(error) {
            self.complained = Some(error);
            let advice = match error {
                Errno::ACCESS | Errno::PERM => {
                    "the shim's user must be allowed to connect there (mode 0666; under SELinux the gateway needs type spc_t)"
                }
                _ => "waiting for the gateway; is it running on this node, and is --dir its directory for this pod?",
            };
            say(&["cannot connect to ", &self.options.dir_shown, "/ctl: ", &why(error), "; ", advice]);
        }
    }

    fn watch(&self, dir: &OwnedFd) -> Result<OwnedFd, Errno> {
        let watch = ctl::watch(dir)?;
        epoll::add(&self.epoll, &watch, EventData::new_u64(WATCH), EventFlags::IN)?;
        Ok(watch)
    }

    /// Something changed in the directory. The delay keeps a directory that never rests from keeping the shim busy.
    fn on_watch(&mut self, now: Instant) {
        self.watch = None;
        self.connect.at = Some(now + Duration::from_millis(self.random.up_to(20)));
    }

    fn say_hello(&mut self, socket: OwnedFd) {
        self.watch = None;
        if epoll::add(&self.epoll, &socket, EventData::new_u64(CTL), EventFlags::IN).is_err() {
            // Out of memory: as if nobody had listened.
            self.connect.at = Some(Instant::now() + self.connect.backoff.next(&mut self.random));
            return;
        }
        let mut ctl = Ctl::new(socket);
        let hello = Hello {
            version: VERSION,
            shim_version: env!("CARGO_PKG_VERSION").to_owned(),
            instance: self.instance,
            capabilities: self.capabilities(),
        };
        ctl.queue(&ToGateway::Hello(hello), None);
        self.ctl = Some(ctl);
    }

    fn capabilities(&self) -> Capabilities {
        match self.options.forced {
            None => Capabilities::DONATE | Capabilities::RELAY,
            Some(Mode::Relay) => Capabilities::RELAY,
            Some(_) => Capabilities::DONATE,
        }
    }

    fn on_ctl(&mut self, now: Instant) {
        self.flush(now);
        for _ in 0..MESSAGES_A_TURN {
            let Some(ctl) = self.ctl.as_ref() else { return };
            if ctl.is_backed_up() {
                return;
            }
            match ctl.receive() {
                Incoming::Message(message, fd) => self.on_message(message, fd, now),
                Incoming::Unknown => {}
                Incoming::Empty => return,
                Incoming::Closed => return self.on_end_of_file(now),
                Incoming::Garbage => {
                    say(&[
                        "the gateway sent what is not a control message: connecting again; upgrade the older of the two",
                    ]);
                    return self.on_end_of_file(now);
                }
            }
            self.flush(now);
        }
    }

    /// Sends what waits, and asks to be woken for what the kernel has no room for.
    fn flush(&mut self, now: Instant) {
        loop {
            let Some(ctl) = self.ctl.as_mut() else { return };
            if !ctl.is_backed_up() {
                return;
            }
            let slots = &self.ports.slots;
            let sent = ctl.flush(|index| slots.get(index)?.socket.as_ref().map(OwnedFd::as_fd));
            let wanted = if ctl.is_backed_up() { EventFlags::OUT } else { EventFlags::IN };
            let _ = epoll::modify(&self.epoll, &ctl.socket, EventData::new_u64(CTL), wanted);
            match sent {
                Sent::All | Sent::Full => return,
                Sent::Closed => return self.on_end_of_file(now),
                Sent::Refused(slot, error) => {
                    let for_now = ctl::obstacle(error) == Obstacle::ForNow;
                    self.on_refusal(slot, &why(error), for_now, now);
                }
            }
        }
    }

    fn queue(&mut self, message: &ToGateway, slot: Option<usize>) {
        if let Some(ctl) = self.ctl.as_mut() {
            ctl.queue(message, slot);
        }
    }

    fn on_end_of_file(&mut self, now: Instant) {
        let Some(ctl) = self.ctl.take() else { return };
        for slot in &mut self.ports.slots {
            slot.offer = None;
        }
        self.offer_at = None;
        if let Some(leaving) = &mut self.leaving {
            leaving.bye = None;
        }
        if ctl.welcomed {
            say(&["the gateway is gone; new connections wait until it is back"]);
            self.alone_until = self.options.exit_after_alone.and_then(|alone| now.checked_add(alone));
        }
        self.connect.at = Some(now + self.connect.backoff.next(&mut self.random));
    }

    // --- what the gateway says

    fn on_message(&mut self, message: ToShim, fd: Option<OwnedFd>, now: Instant) {
        match message {
            ToShim::Welcome(welcome) => self.on_welcome(&welcome),
            ToShim::Return { .. } => self.on_return(fd),
            ToShim::Returned => self.bind_ports(now),
            ToShim::Ack { id } => self.on_ack(id),
            ToShim::Nack(nack) => self.on_nack(&nack, now),
            ToShim::Mode { mode } => self.change_mode(mode, now),
            ToShim::Ping => self.queue(&ToGateway::Pong, None),
            ToShim::Dial { id, .. } => {
                let error = Some("this shim does not dial".to_owned());
                self.queue(&ToGateway::Dialed { id, error }, None);
            }
            // The end of file follows. CREDIT is for a mode that this shim does not offer.
            ToShim::Handoff | ToShim::Credit { .. } => {}
        }
    }

    fn on_welcome(&mut self, welcome: &Welcome) {
        let Some(ctl) = self.ctl.as_mut() else { return };
        ctl.welcomed = true;
        self.was_welcomed = true;
        self.alone_until = None;
        self.complained = None;
        self.connect.backoff.reset();
        let mode = match negotiate(welcome.version) {
            Ok(_) => welcome.mode,
            Err(_) => {
                say(&["the gateway's control protocol is too old: relaying; upgrade the gateway"]);
                Mode::Relay
            }
        };
        self.change_mode(mode, Instant::now());
        self.say_bye();
    }

    /// Donates or relays as the gateway asks, as far as the command line allows. Donating offers everything again: a
    /// gateway that has lost a listener asks for it that way.
    fn change_mode(&mut self, asked: Mode, now: Instant) {
        let mode = if self.capabilities().allows(asked) { asked } else { self.options.forced.unwrap_or(self.mode) };
        if mode != asked {
            say(&["the gateway asks for mode ", asked.as_str(), ", staying with ", mode.as_str()]);
        }
        self.mode = mode;
        self.renew_dead(now);
        match mode {
            Mode::Relay => {
                self.offer_at = None;
                for slot in &mut self.ports.slots {
                    slot.relayed = true;
                    slot.offer = None;
                }
                self.queue(&ToGateway::Ready, None);
            }
            Mode::Donate | Mode::Conn => self.offer_all(),
        }
        say(&["serving, mode ", mode.as_str()]);
    }

    fn offer_all(&mut self) {
        self.offer_at = None;
        for index in 0..self.ports.slots.len() {
            self.offer(index);
        }
        self.queue(&ToGateway::Ready, None);
    }

    /// Offers a listener, unless that is under way.
    fn offer(&mut self, index: usize) {
        let id = self.next_id;
        let Some(slot) = self.ports.slots.get_mut(index) else { return };
        if slot.socket.is_none() || slot.offer.is_some() {
            return;
        }
        slot.offer = Some(id);
        let message = ToGateway::Donate { id, address: slot.address };
        self.next_id = id.wrapping_add(1).max(1);
        self.queue(&message, Some(index));
    }

    fn on_return(&mut self, fd: Option<OwnedFd>) {
        let Some(socket) = fd else {
            return say(&["a returned listener was lost on its way; it is bound again when the gateway lets go of it"]);
        };
        match self.ports.adopt(socket) {
            Ok(Some(index)) => self.take_over(index, true),
            Ok(None) => {}
            Err(reason) => say(&["refused what the gateway returned: ", reason]),
        }
    }

    fn on_ack(&mut self, id: u32) {
        if let Some(leaving) = self.leaving.as_mut().filter(|leaving| leaving.bye == Some(id)) {
            leaving.acknowledged = true;
        }
        if let Some(slot) = self.ports.slots.iter_mut().find(|slot| slot.offer == Some(id)) {
            slot.offer = None;
            slot.relayed = false;
        }
    }

    fn on_nack(&mut self, nack: &Nack, now: Instant) {
        if let Some(leaving) = self.leaving.as_mut().filter(|leaving| leaving.bye == Some(nack.id)) {
            leaving.acknowledged = true;
        } else if nack.id == 0 {
            if self.complained != Some(Errno::PROTO) {
                self.complained = Some(Errno::PROTO);
                say(&["the gateway refuses this shim: ", &nack.reason]);
            }
            for index in 0..self.ports.slots.len() {
                self.fall_back(index);
            }
        } else if let Some(index) = self.ports.slots.iter().position(|slot| slot.offer == Some(nack.id)) {
            let for_now = matches!(nack.code, NackCode::RateLimited | NackCode::Draining);
            self.on_refusal(index, &nack.reason, for_now, now);
        }
    }

    /// A listener did not get through.
    fn on_refusal(&mut self, index: usize, reason: &str, for_now: bool, now: Instant) {
        if let Some(slot) = self.ports.slots.get_mut(index) {
            slot.offer = None;
            if !slot.relayed {
                let relays = self.options.forced != Some(Mode::Donate);
                let instead =
                    if relays { "; relaying" } else { "; connections wait, because --mode donate forbids to relay" };
                say(&["cannot donate ", &slot.shown, ": ", reason, instead]);
            }
        }
        self.fall_back(index);
        if for_now && self.offer_at.is_none() {
            self.offer_at = Some(now + OFFER_RETRY + Duration::from_millis(self.random.up_to(10_000)));
        }
    }

    fn fall_back(&mut self, index: usize) {
        if let (Some(slot), true) = (self.ports.slots.get_mut(index), self.options.forced != Some(Mode::Donate)) {
            slot.relayed = true;
        }
    }

    // --- the end

    fn on_signal(&mut self, now: Instant) {
        let mut record = [0; 128];
        let _ = rustix::io::read(&self.signals, &mut record);
        match &mut self.leaving {
            // Somebody is in a hurry.
            Some(leaving) => leaving.deadline = now,
            None => self.leaving = Some(Leaving { deadline: now + BYE_PATIENCE, bye: None, acknowledged: false }),
        }
        self.say_bye();
    }

    /// Says BYE if the shim is leaving and somebody is there to hear it; otherwise as soon as somebody is.
    fn say_bye(&mut self) {
        let id = self.next_id;
        let (Some(ctl), Some(leaving)) = (self.ctl.as_mut(), self.leaving.as_mut()) else { return };
        if !ctl.welcomed || leaving.bye.is_some() {
            return;
        }
        leaving.bye = Some(id);
        ctl.queue(&ToGateway::Bye { id }, None);
        self.next_id = id.wrapping_add(1).max(1);
    }
}

/// Rounded up: waking a fraction too early would mean waking twice.
fn timespec(delay: Duration) -> Timespec {
    let millis = delay.as_micros().div_ceil(1000);
    let millis = i64::try_from(millis).unwrap_or(i64::MAX / 2);
    Timespec { tv_sec: millis / 1000, tv_nsec: (millis % 1000) * 1_000_000 }
}

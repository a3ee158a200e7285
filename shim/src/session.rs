//! The conversation with the gateway: what the shim says, and what it does about the answers.
//!
//! Owns no state of its own; it is the half of [`Shim`] that knows the control protocol. It never waits for an answer:
//! each message is an event of the loop.
//!
//! ```text
//! no ctl      connect() works    -> HELLO, wait in the queue for as long as it takes
//!             nobody listens     -> watch the directory, try again when a name appears
//! WELCOME     donate  -> DONATE each listener, READY; nobody accepts here
//!             relay   -> READY; accept here and copy to `otlp`
//! RETURN      a listener whose address is missing is kept; the gateway has it already, so it is not donated
//! NACK, or the kernel refuses to pass a listener  -> relay that listener
//! end of file -> connect again within 10 ms; who accepted goes on accepting: with donated listeners nobody does, and
//!                the kernel keeps the connections
//! ```

use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use pillion_proto::control::{Hello, Mode, Nack, NackCode, ToGateway, ToShim, VERSION, negotiate};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::SocketType;

use crate::ctl::{self, Ctl, Incoming, Obstacle};
use crate::run::{Bye, CTL, Shim, WATCH};
use crate::say::{complain, say, why};

/// While the directory is watched a timer is needed only where watching does not work, as in some sandboxes.
const WATCHED_RETRY: Duration = Duration::from_secs(5);
/// At least so long until a donation is repeated that failed for a passing reason.
const OFFER_RETRY: Duration = Duration::from_secs(10);
/// Messages that are read before other events get their turn.
const MESSAGES_A_TURN: usize = 32;

impl Shim {
    pub(crate) fn connect(&mut self) {
        let error = match self.dial() {
            Ok(socket) => {
                self.watch = None;
                self.ctl = Some(Ctl { socket, welcomed: false });
                let shim_version = env!("CARGO_PKG_VERSION").to_owned();
                let (instance, capabilities) = (self.instance, self.options.capabilities);
                let hello = Hello { version: VERSION, shim_version, instance, capabilities };
                return self.send(&ToGateway::Hello(hello), None);
            }
            Err(error) => error,
        };
        let slow = self.watch.is_some() && error != Errno::AGAIN;
        self.connect.again(self.now, if slow { WATCHED_RETRY } else { Duration::ZERO });
        let advice = match error {
            Errno::ACCESS | Errno::PERM => {
                "the shim's user must be allowed to connect (mode 0666; under SELinux the gateway needs type spc_t)"
            }
            _ => "waiting for the gateway; is it running on this node, and is --dir its directory for this pod?",
        };
        let parts = ["cannot connect to ", &self.options.dir.to_string_lossy(), "/ctl: ", &why(error), "; ", advice];
        complain(&mut self.complained, error, &parts);
    }

    fn dial(&mut self) -> Result<OwnedFd, Errno> {
        self.watch = None;
        let dir = ctl::open_dir(&self.options.dir);
        // Before connect(): a socket that appears in between is not missed.
        let watched = dir.as_ref().ok().map(|_| self.options.dir.as_path()).or_else(|| self.options.dir.parent());
        let watch = watched.and_then(|path| ctl::watch(path).ok());
        self.watch = watch.filter(|watch| self.add(watch, WATCH).is_ok());
        let socket = ctl::connect(&dir?, "ctl", SocketType::SEQPACKET)?;
        self.add(&socket, CTL)?;
        Ok(socket)
    }

    fn add(&self, fd: &OwnedFd, token: u64) -> Result<(), Errno> {
        epoll::add(&self.epoll, fd, EventData::new_u64(token), EventFlags::IN)
    }

    /// Something changed in the directory. With a delay, so that a directory that never rests does not keep the shim busy.
    pub(crate) fn on_watch(&mut self) {
        self.watch = None;
        self.connect.reset();
        self.connect.again(self.now, Duration::from_millis(5));
    }

    /// Sends a message, with the listener of a slot where it carries one.
    fn send(&mut self, message: &ToGateway, slot: Option<usize>) {
        let Some(ctl) = &self.ctl else { return };
        let listener = slot.and_then(|index| self.ports.slots[index].socket.as_ref());
        let Err(error) = ctl.send(message, listener.map(OwnedFd::as_fd)) else { return };
        match (ctl::obstacle(error), slot) {
            (Obstacle::Session, _) | (_, None) => self.on_end_of_file(),
            (obstacle, Some(slot)) => self.on_refusal(slot, &why(error), obstacle == Obstacle::ForNow),
        }
    }

    pub(crate) fn on_ctl(&mut self) {
        for _ in 0..MESSAGES_A_TURN {
            match self.ctl.as_ref().map_or(Incoming::Empty, Ctl::receive) {
                Incoming::Message(message, fd) => self.on_message(message, fd),
                Incoming::Unknown => {}
                Incoming::Empty => return,
                Incoming::Closed => return self.on_end_of_file(),
                Incoming::Garbage => {
                    say(&["the gateway sent what is not a control message; upgrade the older of the two"]);
                    return self.on_end_of_file();
                }
            }
        }
    }

    fn on_end_of_file(&mut self) {
        let Some(ctl) = self.ctl.take() else { return };
        for slot in &mut self.ports.slots {
            slot.offer = None;
        }
        self.offer.at = None;
        if ctl.welcomed {
            self.bye = Bye::Unsaid;
            say(&["the gateway is gone; new connections wait until it is back"]);
            self.alone_until = self.options.exit_after_alone.and_then(|alone| self.now.checked_add(alone));
        }
        self.connect.again(self.now, Duration::ZERO);
    }

    fn on_message(&mut self, message: ToShim, fd: Option<OwnedFd>) {
        match message {
            ToShim::Welcome(welcome) => self.on_welcome(welcome.version, welcome.mode),
            ToShim::Return { .. } => self.on_return(fd),
            ToShim::Returned => self.bind_ports(),
            ToShim::Ack { id } => self.on_ack(id),
            ToShim::Nack(nack) => self.on_nack(&nack),
            ToShim::Mode { mode } => self.change_mode(mode),
            ToShim::Ping => self.send(&ToGateway::Pong, None),
            ToShim::Dial { id, .. } => {
                let error = Some("this shim does not dial".to_owned());
                self.send(&ToGateway::Dialed { id, error }, None);
            }
            // End of file follows HANDOFF. CREDIT is for a mode that this shim does not offer.
            ToShim::Handoff | ToShim::Credit { .. } => {}
        }
    }

    fn on_welcome(&mut self, version: u16, mode: Mode) {
        let Some(ctl) = &mut self.ctl else { return };
        ctl.welcomed = true;
        self.bye = Bye::Unsaid;
        self.alone_until = None;
        self.complained = None;
        self.connect.reset();
        if negotiate(version).is_ok() {
            self.change_mode(mode);
        } else {
            say(&["the gateway's control protocol is too old: relaying; upgrade the gateway"]);
            self.change_mode(Mode::Relay);
        }
        self.say_bye();
    }

    /// Donates or relays as the gateway asks, as far as the command line allows. Donating offers everything again: a
    /// gateway that has lost a listener asks for it that way.
    fn change_mode(&mut self, asked: Mode) {
        if self.options.capabilities.allows(asked) {
            self.mode = asked;
            say(&["serving, mode ", asked.as_str()]);
        } else {
            say(&["the gateway asks for mode ", asked.as_str(), ", staying with ", self.mode.as_str()]);
        }
        self.renew_dead();
        if self.mode == Mode::Donate {
            return self.offer_all();
        }
        self.offer.at = None;
        for slot in &mut self.ports.slots {
            slot.relayed = true;
            slot.offer = None;
        }
        self.send(&ToGateway::Ready, None);
    }

    pub(crate) fn offer_all(&mut self) {
        self.offer.at = None;
        for index in 0..self.ports.slots.len() {
            self.offer(index);
        }
        self.send(&ToGateway::Ready, None);
    }

    /// Offers a listener, unless that is under way.
    pub(crate) fn offer(&mut self, index: usize) {
        let id = self.fresh_id();
        let slot = &mut self.ports.slots[index];
        if slot.socket.is_some() && slot.offer.is_none() {
            slot.offer = Some(id);
            let address = slot.address;
            self.send(&ToGateway::Donate { id, address }, Some(index));
        }
    }

    fn fresh_id(&mut self) -> u32 {
        // 0 is HELLO's.
        self.last_id = self.last_id.checked_add(1).unwrap_or(1);
        self.last_id
    }

    fn on_return(&mut self, fd: Option<OwnedFd>) {
        match fd.map(|socket| self.ports.adopt(socket)) {
            Some(Ok(Some(index))) => self.ports.slots[index].relayed = self.mode == Mode::Relay,
            Some(Ok(None)) => {}
            Some(Err(reason)) => say(&["refused what the gateway returned: ", reason]),
            None => say(&["a returned listener was lost on its way; it is bound again when the gateway lets go of it"]),
        }
    }

    fn on_ack(&mut self, id: u32) {
        if self.bye == Bye::Said(id) {
            self.bye = Bye::Acknowledged;
        } else if let Some(slot) = self.ports.slots.iter_mut().find(|slot| slot.offer == Some(id)) {
            slot.offer = None;
            slot.relayed = false;
            slot.complained = None;
        }
    }

    fn on_nack(&mut self, nack: &Nack) {
        if nack.code == NackCode::ListenerDead {
            self.renew_dead();
        } else if nack.id == 0 {
            for index in 0..self.ports.slots.len() {
                self.on_refusal(index, &nack.reason, false);
            }
        } else if let Some(index) = self.ports.slots.iter().position(|slot| slot.offer == Some(nack.id)) {
            self.on_refusal(index, &nack.reason, matches!(nack.code, NackCode::RateLimited | NackCode::Draining));
        } else {
            // A refused BYE is not answered any better later.
            self.on_ack(nack.id);
        }
    }

    /// A listener did not get through: it is relayed, if that is allowed.
    fn on_refusal(&mut self, index: usize, reason: &str, for_now: bool) {
        let relays = self.options.capabilities.allows(Mode::Relay);
        let instead = if relays { "; relaying" } else { "; connections wait: --mode donate forbids to relay" };
        let slot = &mut self.ports.slots[index];
        slot.offer = None;
        slot.relayed = relays;
        complain(&mut slot.complained, Errno::PROTO, &["cannot donate ", &slot.shown, ": ", reason, instead]);
        if for_now {
            self.offer.again(self.now, OFFER_RETRY);
        }
    }

    /// Says BYE if the shim is leaving and somebody is there to hear it; otherwise as soon as somebody is.
    pub(crate) fn say_bye(&mut self) {
        let is_welcomed = self.ctl.as_ref().is_some_and(|ctl| ctl.welcomed);
        if is_welcomed && self.leave_by.is_some() && self.bye == Bye::Unsaid {
            let id = self.fresh_id();
            self.bye = Bye::Said(id);
            self.send(&ToGateway::Bye { id }, None);
        }
    }
}

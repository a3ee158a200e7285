//! Who holds a tenant's listeners, decided without touching one: `step(state, event, now) -> effects`.
//!
//! Owns the rules of ARCHITECTURE.md, "Listening sockets are donated, not proxied". It never sees a descriptor, reads no
//! clock and sends nothing; `site` does what comes back, in its order. It ends with its site.
//!
//! ```text
//! Absent     nobody is connected, nothing is held             -> Listing on HELLO
//! Listing    the shim says what it holds; what is donated is  -> Serving on READY
//!            held, and not accepted from until it has said all
//! Serving    every listener is accepted from                  -> Listing on a newer HELLO
//! Orphaned   the shim went without BYE; accepting goes on     -> Listing on HELLO; Absent when the grace is over
//! Draining   BYE: what waits in the backlogs is accepted      -> Finishing when they are empty, or after 2 s
//! Finishing  nothing is held; the tenant answers what it has  -> Absent, with the ACK of BYE, within the same 2 s
//! Gone       handed off or removed                            final
//! ```
//! A listener that dies is let go at once, and asked for again after a delay that doubles. One that made an accept hang
//! ends donating for this network namespace: the tenant relays from then on.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use pillion_proto::control::{Mode, NackCode};

/// A donated listener, by what the kernel says about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Listener {
    /// SO_COOKIE: names the socket, whichever descriptor it came as.
    pub(super) cookie: u64,
    /// What it is bound to.
    pub(super) address: SocketAddr,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// HELLO, from a process in this network namespace.
    Greeted { namespace: u64 },
    /// DONATE, and the descriptor passed every check.
    Donated { id: u32, listener: Listener },
    /// READY.
    Ready,
    /// BYE.
    Bye { id: u32 },
    /// The session ended. That of a superseded one is never told.
    Ended,
    /// The listener cannot be accepted from any more.
    Died { cookie: u64 },
    /// Accepting from the listener hung, and the watchdog broke it off.
    Hung { cookie: u64 },
    /// No connection waits in any backlog.
    BacklogEmpty,
    /// The tenant has no connection left, or ran out of time.
    Finished,
    /// Time has passed.
    Tick,
    /// How long an orphan is kept has changed; `None`: until removed.
    Grace(Option<Duration>),
    /// The gateway leaves and a successor will come.
    HandOff,
    /// The pod is gone, or the tenant is not served any more.
    Remove,
}

/// What is to be done, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// Send WELCOME.
    Welcome(Mode),
    /// Send RETURN with the listener.
    Return(Listener),
    /// Send RETURNED.
    Returned,
    /// Keep the donated descriptor, without accepting from it yet.
    Keep { cookie: u64 },
    /// Close the donated descriptor: its socket is held already.
    CloseCopy { cookie: u64 },
    /// Accept from it from now on.
    Poll { cookie: u64 },
    /// Deregister and close it.
    Release { cookie: u64 },
    /// Send ACK.
    Ack(u32),
    /// Send NACK.
    Nack(u32, NackCode),
    /// Send MODE.
    SetMode(Mode),
    /// Send HANDOFF.
    HandOff,
    /// Tell the tenant that nothing more will come, and report when it has finished.
    Finish { until: Instant },
    /// Close the session.
    HangUp,
}

/// A tenant's listeners never number more.
pub(super) const LISTENERS_MAX: usize = 8;

/// How long BYE waits for the backlog and the answers together; shims wait a little longer for the ACK.
pub(super) const BYE_LIMIT: Duration = Duration::from_secs(2);

/// The first delay before a dead listener is asked for again; doubles up to the longest.
const ASK_DELAY: Duration = Duration::from_millis(100);
const ASK_DELAY_MAX: Duration = Duration::from_secs(30);

/// After so long without a death the delay begins anew.
const DEATHS_FORGOTTEN: Duration = Duration::from_secs(60);

/// Where a site stands. See the module's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Absent,
    Listing,
    Serving,
    Orphaned { until: Option<Instant> },
    Draining { bye: u32, until: Instant },
    Finishing { bye: u32 },
    Gone,
}

/// The state of one site.
#[derive(Debug, Clone)]
pub(super) struct Custody {
    phase: Phase,
    mode: Mode,
    grace: Option<Duration>,
    namespace: Option<u64>,
    held: Vec<Held>,
    deaths: u32,
    last_death: Option<Instant>,
    /// NACKs that ask for a dead listener's successor, each at its time. With `held` at most LISTENERS_MAX.
    asks: Vec<(Instant, u32)>,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    listener: Listener,
    donation: u32,
    polled: bool,
}

impl Custody {
    /// Nothing is known yet. `grace`: how long an orphan is kept; `None`: until removed.
    pub(super) fn new(grace: Option<Duration>) -> Self {
        Self {
            phase: Phase::Absent,
            mode: Mode::Donate,
            grace,
            namespace: None,
            held: Vec::new(),
            deaths: 0,
            last_death: None,
            asks: Vec::new(),
        }
    }

    pub(super) fn phase(&self) -> Phase {
        self.phase
    }

    pub(super) fn mode(&self) -> Mode {
        self.mode
    }

    pub(super) fn listeners(&self) -> impl Iterator<Item = Listener> {
        self.held.iter().map(|held| held.listener)
    }

    /// When [`Event::Tick`] is due next.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let phase = match self.phase {
            Phase::Orphaned { until } => until,
            Phase::Draining { until, .. } => Some(until),
            _ => None,
        };
        phase.into_iter().chain(self.asks.iter().map(|(at, _)| *at)).min()
    }

    /// What follows from an event.
    pub(super) fn step(&mut self, event: Event, now: Instant) -> Vec<Effect> {
        let mut out = Vec::new();
        if self.phase == Phase::Gone {
            return self.refuse_after_end(event);
        }
        match event {
            Event::Greeted { namespace } => self.greeted(namespace, &mut out),
            Event::Donated { id, listener } => self.donated(id, listener, &mut out),
            Event::Ready => self.ready(&mut out),
            Event::Bye { id } => self.bye(id, now, &mut out),
            Event::Ended => self.ended(now, &mut out),
            Event::Died { cookie } => self.died(cookie, now, &mut out),
            Event::Hung { cookie } => self.hung(cookie, &mut out),
            Event::BacklogEmpty => self.drained(&mut out),
            Event::Finished => self.finished(&mut out),
            Event::Tick => self.tick(now, &mut out),
            Event::Grace(grace) => self.change_grace(grace, now),
            Event::HandOff => self.leave(Some(Effect::HandOff), &mut out),
            Event::Remove => self.leave(None, &mut out),
        }
        out
    }

    fn greeted(&mut self, namespace: u64, out: &mut Vec<Effect>) {
        if self.namespace.is_some_and(|known| known != namespace) {
            // The sandbox was recreated: the old sockets keep a dead network namespace alive, and are of no use in the new.
            self.release_all(out);
            self.mode = Mode::Donate;
            self.deaths = 0;
        }
        self.namespace = Some(namespace);
        // Whoever greets tells everything again, so nothing needs to be asked for.
        self.asks.clear();
        self.phase = Phase::Listing;
        out.push(Effect::Welcome(self.mode));
        out.extend(self.listeners().map(Effect::Return));
        out.push(Effect::Returned);
    }

    fn donated(&mut self, id: u32, listener: Listener, out: &mut Vec<Effect>) {
        let cookie = listener.cookie;
        let refusal = match self.phase {
            Phase::Listing | Phase::Serving if self.mode != Mode::Donate => Some(NackCode::Unsupported),
            Phase::Listing | Phase::Serving => None,
            Phase::Draining { .. } | Phase::Finishing { .. } => Some(NackCode::Draining),
            Phase::Absent | Phase::Orphaned { .. } | Phase::Gone => Some(NackCode::OutOfOrder),
        };
        if let Some(code) = refusal {
            return out.extend([Effect::CloseCopy { cookie }, Effect::Nack(id, code)]);
        }
        if let Some(held) = self.held.iter_mut().find(|held| held.listener.cookie == cookie) {
            held.donation = id;
            return out.extend([Effect::CloseCopy { cookie }, Effect::Ack(id)]);
        }
        if self.held.len() + self.asks.len() >= LISTENERS_MAX {
            return out.extend([Effect::CloseCopy { cookie }, Effect::Nack(id, NackCode::TooMany)]);
        }
        self.held.push(Held { listener, donation: id, polled: false });
        out.push(Effect::Keep { cookie });
        if self.phase == Phase::Serving {
            self.poll_all(out);
        }
        out.push(Effect::Ack(id));
    }

    fn ready(&mut self, out: &mut Vec<Effect>) {
        if self.phase == Phase::Listing {
            self.phase = Phase::Serving;
            self.poll_all(out);
        }
    }

    fn bye(&mut self, id: u32, now: Instant, out: &mut Vec<Effect>) {
        match self.phase {
            Phase::Listing | Phase::Serving => {
                self.poll_all(out);
                self.asks.clear();
                self.phase = Phase::Draining { bye: id, until: now + BYE_LIMIT };
            }
            Phase::Draining { until, .. } => self.phase = Phase::Draining { bye: id, until },
            Phase::Finishing { .. } => self.phase = Phase::Finishing { bye: id },
            Phase::Absent | Phase::Orphaned { .. } | Phase::Gone => out.push(Effect::Nack(id, NackCode::OutOfOrder)),
        }
    }

    fn ended(&mut self, now: Instant, out: &mut Vec<Effect>) {
        if matches!(self.phase, Phase::Listing | Phase::Serving) {
            self.asks.clear();
            self.phase = Phase::Orphaned { until: self.grace.map(|grace| now + grace) };
            // A shim that died before READY: nothing more is going to be told, and connections wait.
            self.poll_all(out);
            self.forget_empty_orphan();
        }
    }

    fn died(&mut self, cookie: u64, now: Instant, out: &mut Vec<Effect>) {
        let Some(held) = self.let_go(cookie, out) else { return };
        if self.last_death.is_some_and(|last| now.saturating_duration_since(last) > DEATHS_FORGOTTEN) {
            self.deaths = 0;
        }
        let delay = ASK_DELAY.saturating_mul(1 << self.deaths.min(16)).min(ASK_DELAY_MAX);
        self.deaths = self.deaths.saturating_add(1);
        self.last_death = Some(now);
        if matches!(self.phase, Phase::Listing | Phase::Serving) {
            self.asks.push((now + delay, held.donation));
        }
        self.forget_empty_orphan();
    }

    fn hung(&mut self, cookie: u64, out: &mut Vec<Effect>) {
        let Some(held) = self.let_go(cookie, out) else { return };
        self.release_all(out);
        self.mode = Mode::Relay;
        if matches!(self.phase, Phase::Listing | Phase::Serving) {
            // At once and before MODE: the watchdog had to shut this one down, so the shim must bind it anew to relay.
            out.extend([Effect::Nack(held.donation, NackCode::ListenerDead), Effect::SetMode(Mode::Relay)]);
        }
        self.forget_empty_orphan();
    }

    fn drained(&mut self, out: &mut Vec<Effect>) {
        if let Phase::Draining { bye, until } = self.phase {
            self.release_all(out);
            self.phase = Phase::Finishing { bye };
            out.push(Effect::Finish { until });
        }
    }

    fn finished(&mut self, out: &mut Vec<Effect>) {
        if let Phase::Finishing { bye } = self.phase {
            self.phase = Phase::Absent;
            out.push(Effect::Ack(bye));
        }
    }

    fn tick(&mut self, now: Instant, out: &mut Vec<Effect>) {
        match self.phase {
            Phase::Orphaned { until: Some(until) } if until <= now => {
                self.release_all(out);
                self.phase = Phase::Absent;
                // Accepted connections keep the pod's network namespace alive as well.
                out.push(Effect::Finish { until: now + BYE_LIMIT });
            }
            Phase::Draining { until, .. } if until <= now => self.drained(out),
            _ => {}
        }
        let (due, later) = self.asks.iter().partition(|(at, _)| *at <= now);
        self.asks = later;
        let due: Vec<(Instant, u32)> = due;
        if !due.is_empty() {
            out.extend(due.into_iter().map(|(_, donation)| Effect::Nack(donation, NackCode::ListenerDead)));
            // MODE makes a shim look at what it holds, and donate all of it again.
            out.push(Effect::SetMode(self.mode));
        }
    }

    fn change_grace(&mut self, grace: Option<Duration>, now: Instant) {
        self.grace = grace;
        if let Phase::Orphaned { until } = self.phase {
            // Who is an orphan already gets a whole grace from now on: until now it had all the time there is.
            self.phase = Phase::Orphaned { until: grace.map(|grace| until.unwrap_or(now + grace)) };
        }
    }

    fn leave(&mut self, farewell: Option<Effect>, out: &mut Vec<Effect>) {
        self.release_all(out);
        self.phase = Phase::Gone;
        out.extend(farewell);
        out.push(Effect::HangUp);
    }

    fn refuse_after_end(&self, event: Event) -> Vec<Effect> {
        match event {
            Event::Donated { listener, .. } => vec![Effect::CloseCopy { cookie: listener.cookie }, Effect::HangUp],
            Event::Greeted { .. } | Event::Bye { .. } | Event::Ready => vec![Effect::HangUp],
            _ => Vec::new(),
        }
    }

    fn poll_all(&mut self, out: &mut Vec<Effect>) {
        for held in self.held.iter_mut().filter(|held| !held.polled) {
            held.polled = true;
            out.push(Effect::Poll { cookie: held.listener.cookie });
        }
    }

    fn let_go(&mut self, cookie: u64, out: &mut Vec<Effect>) -> Option<Held> {
        let position = self.held.iter().position(|held| held.listener.cookie == cookie)?;
        out.push(Effect::Release { cookie });
        Some(self.held.remove(position))
    }

    fn release_all(&mut self, out: &mut Vec<Effect>) {
        self.asks.clear();
        out.extend(self.held.drain(..).map(|held| Effect::Release { cookie: held.listener.cookie }));
    }

    fn forget_empty_orphan(&mut self) {
        if self.held.is_empty() && matches!(self.phase, Phase::Orphaned { .. }) {
            self.phase = Phase::Absent;
        }
    }
}

#[cfg(test)]
mod tests;

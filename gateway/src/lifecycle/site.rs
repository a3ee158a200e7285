//! One tenant's sockets: the task that serves its `ctl` and does what [`Custody`] decides.
//!
//! Owns the session with the shim and the slots of the tenant's listeners. It is one loop over one closed set of inputs,
//! and never waits for the pod: sends do not block, closes are the reaper's, accepts the acceptors'. What a pod sends too
//! fast stays unread in the pod's own kernel. It ends on hand-off and on removal.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use pillion_proto::control::{Mode, ToShim};
use tokio::sync::{mpsc, oneshot, watch};

use super::acceptor::Acceptor;
use super::claims::Claims;
use super::counters::Counters;
use super::custody::{Custody, Effect, Event, Phase};
use super::pace::{Pace, Rule};
use super::reaper::Foreign;
use super::session::{self, Arrivals, Disposal, Packet, Session, Watched};
use super::slot::{Doorway, Fate, Slot};
use super::sockets::Names;
use super::{NamespaceRule, SiteSnapshot};
use crate::base::TenantName;
use crate::config::Ports;

mod talk;

/// After an accept on `ctl` has failed for want of descriptors or memory.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Lines that a pod can cause in the gateway's log.
const LINES: Rule = Rule { burst: 20, interval: Duration::from_secs(5) };

/// What is fixed for a site.
#[derive(Debug)]
pub(super) struct Rules {
    pub(super) tenant: TenantName,
    pub(super) ports: Ports,
    pub(super) namespace: NamespaceRule,
    pub(super) orphan_grace: Option<Duration>,
    /// In its place, while nobody announces the site's end.
    pub(super) unannounced_grace: Duration,
    pub(super) paces: Paces,
}

/// How fast a shim is listened to. What it says faster stays unread.
#[derive(Debug, Clone, Copy)]
pub(super) struct Paces {
    /// Rounds of taking connections from `ctl`.
    pub(super) hellos: Rule,
    /// Messages: a restart tells about a dozen.
    pub(super) messages: Rule,
}

impl Default for Paces {
    fn default() -> Self {
        Self {
            hellos: Rule { burst: 10, interval: Duration::from_millis(250) },
            messages: Rule { burst: 256, interval: Duration::from_millis(2) },
        }
    }
}

/// What a site shares with the others.
#[derive(Debug)]
pub(super) struct Surroundings {
    pub(super) acceptor: Arc<Acceptor>,
    pub(super) claims: Arc<Claims>,
    pub(super) counters: Arc<Counters>,
    /// Whether the ends of sites without an orphan grace are announced at present.
    pub(super) announced: watch::Receiver<bool>,
}

/// What the lifecycle tells a site. Answered when it is done.
#[derive(Debug)]
pub(super) enum Command {
    HandOff(oneshot::Sender<()>),
    Remove(oneshot::Sender<()>),
}

/// The task.
pub(super) struct Site {
    rules: Rules,
    around: Surroundings,
    disposal: Disposal,
    ctl: Watched,
    otlp: Arc<Slot>,
    names: Option<Names>,
    doorway: Arc<Doorway>,
    commands: mpsc::Receiver<Command>,
    status: watch::Sender<SiteSnapshot>,
    session: Option<Session>,
    /// The session has ended, and custody does not know it yet.
    session_ended: bool,
    custody: Custody,
    slots: HashMap<u64, Arc<Slot>>,
    /// A donated descriptor between its check and custody's word.
    donated: Option<Foreign>,
    finishing: Option<BoxFuture<'static, ()>>,
    hellos: Pace,
    messages: Pace,
    accept_after: Option<Instant>,
    lines: Pace,
}

/// Everything that can happen to a site.
enum Input {
    Command(Command),
    /// A slot's fate, or a backlog found empty.
    Changed,
    /// Somebody announces the site's end from now on, or does not any more.
    Announced,
    /// A deadline, or nothing but a reason to look again.
    Tick,
    Finished,
    Arrived(std::io::Result<Arrivals>),
    Packet(Box<Packet>),
    SessionEnded,
}

/// What a site is made of, once its sockets are bound.
pub(super) struct Parts {
    pub(super) rules: Rules,
    pub(super) around: Surroundings,
    pub(super) disposal: Disposal,
    pub(super) ctl: Watched,
    pub(super) otlp: Foreign,
    pub(super) names: Option<Names>,
    pub(super) doorway: Arc<Doorway>,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) status: watch::Sender<SiteSnapshot>,
}

impl Site {
    /// Accepts on `otlp` at once; on donated listeners when there are some.
    pub(super) fn new(parts: Parts) -> Self {
        let Parts { rules, mut around, disposal, ctl, otlp, names, doorway, commands, status } = parts;
        let otlp = Slot::park(&around.acceptor, &doorway, otlp, None);
        otlp.poll();
        let now = Instant::now();
        let paces = rules.paces;
        Self {
            custody: Custody::new(grace(&rules, &mut around)),
            rules,
            around,
            disposal,
            ctl,
            otlp,
            names,
            doorway,
            commands,
            status,
            session: None,
            session_ended: false,
            slots: HashMap::new(),
            donated: None,
            finishing: None,
            hellos: Pace::new(paces.hellos, now),
            messages: Pace::new(paces.messages, now),
            accept_after: None,
            lines: Pace::new(LINES, now),
        }
    }

    pub(super) async fn run(mut self) {
        let mut reply = None;
        while self.custody.phase() != Phase::Gone {
            match self.next().await {
                Input::Command(Command::HandOff(done)) => {
                    self.step(Event::HandOff);
                    reply = Some(done);
                }
                Input::Command(Command::Remove(done)) => {
                    self.step(Event::Remove);
                    self.names.iter().for_each(Names::remove);
                    reply = Some(done);
                }
                Input::Changed => self.look_at_slots(),
                Input::Announced => {
                    let grace = grace(&self.rules, &mut self.around);
                    self.step(Event::Grace(grace));
                }
                Input::Tick => self.step(Event::Tick),
                Input::Finished => {
                    self.finishing = None;
                    self.step(Event::Finished);
                }
                Input::Arrived(arrivals) => self.arrived(arrivals),
                Input::Packet(packet) => self.handle(*packet),
                Input::SessionEnded => self.end_session(),
            }
            if std::mem::take(&mut self.session_ended) {
                self.step(Event::Ended);
            }
            self.look_at_backlog();
            self.publish();
        }
        // Everything is let go before the answer: whoever asked may bind the names again.
        drop(self);
        if let Some(reply) = reply {
            let _ = reply.send(());
        }
    }

    async fn next(&mut self) -> Input {
        let now = Instant::now();
        // A pod whose descriptors are still being closed is not listened to.
        let owes = self.disposal.debt.is_owed();
        let hello_at = self.hellos.next_at(now).max(self.accept_after.unwrap_or(now));
        let message_at = self.messages.next_at(now);
        let may_accept = !owes && hello_at <= now;
        let may_read = !owes && message_at <= now && self.session.is_some();
        let wake = [Some(hello_at), self.session.as_ref().map(|_| message_at)];
        let wake = wake.into_iter().flatten().filter(|at| *at > now).chain(self.custody.deadline()).min();
        tokio::select! {
            biased;
            Some(command) = self.commands.recv() => Input::Command(command),
            () = self.doorway.changed.notified() => Input::Changed,
            Ok(()) = self.around.announced.changed(), if self.rules.orphan_grace.is_none() => Input::Announced,
            () = sleep_until(wake), if wake.is_some() => Input::Tick,
            () = finished(&mut self.finishing), if self.finishing.is_some() => Input::Finished,
            () = self.disposal.debt.settled(), if owes => Input::Tick,
            arrivals = session::newest_arrival(&self.ctl, &self.disposal), if may_accept => Input::Arrived(arrivals),
            packet = receive(self.session.as_ref(), &self.disposal), if may_read => {
                packet.map_or(Input::SessionEnded, Input::Packet)
            }
        }
    }

    fn arrived(&mut self, arrivals: std::io::Result<Arrivals>) {
        let now = Instant::now();
        self.hellos.take(now);
        self.accept_after = None;
        let opened = arrivals.and_then(|Arrivals { newest, superseded }| {
            self.around.counters.sessions.add(superseded + 1);
            self.around.counters.sessions_superseded.add(superseded);
            Session::new(newest, &self.disposal)
        });
        match opened {
            // The one before it is closed, and custody is not told: whatever was held stays held until HELLO says more.
            Ok(session) => self.session = Some(session),
            Err(error) => {
                if self.may_log() {
                    tracing::warn!(tenant = %self.rules.tenant, %error, "cannot take a connection from ctl");
                }
                self.accept_after = Some(now + ACCEPT_AGAIN);
            }
        }
    }

    fn end_session(&mut self) {
        self.session = None;
        self.session_ended = true;
    }

    fn look_at_slots(&mut self) {
        let fates: Vec<_> = self.slots.iter().map(|(cookie, slot)| (*cookie, slot.fate())).collect();
        for (cookie, fate) in fates {
            match fate {
                Fate::Alive => {}
                Fate::Dead => {
                    self.around.counters.listeners_dead.add(1);
                    self.step(Event::Died { cookie });
                }
                Fate::Hung => {
                    tracing::warn!(tenant = %self.rules.tenant, "an accept on a donated listener hung: this tenant relays from now on");
                    self.step(Event::Hung { cookie });
                }
            }
        }
    }

    fn look_at_backlog(&mut self) {
        let draining = matches!(self.custody.phase(), Phase::Draining { .. });
        // Said before looking: what an acceptor finds empty from here on, it tells.
        self.doorway.draining.store(draining, Ordering::Release);
        if draining && self.slots.values().all(|slot| slot.is_backlog_empty()) {
            self.step(Event::BacklogEmpty);
            self.doorway.draining.store(false, Ordering::Release);
        }
    }

    /// Whether a pod may cause another line in the log: what it does is counted in any case.
    fn may_log(&mut self) -> bool {
        let now = Instant::now();
        let may = self.lines.next_at(now) <= now;
        if may {
            self.lines.take(now);
        }
        may
    }

    fn step(&mut self, event: Event) {
        for effect in self.custody.step(event, Instant::now()) {
            self.perform(effect);
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Welcome(mode) => self.welcome(mode),
            Effect::Return(listener) => {
                let slot = self.slots.get(&listener.cookie).map(Arc::clone);
                self.send(&ToShim::Return { address: listener.address }, slot.as_deref());
            }
            Effect::Returned => self.send(&ToShim::Returned, None),
            Effect::Keep { cookie } => self.keep(cookie),
            Effect::CloseCopy { cookie } => {
                self.donated = None;
                if self.slots.contains_key(&cookie) {
                    self.around.counters.donations_repeated.add(1);
                }
            }
            Effect::Poll { cookie } => {
                if let Some(slot) = self.slots.get(&cookie) {
                    slot.poll();
                }
            }
            Effect::Release { cookie } => {
                if let Some(slot) = self.slots.remove(&cookie) {
                    slot.retire();
                }
            }
            Effect::Ack(id) => self.acknowledge(id),
            Effect::Nack(id, code) => self.refuse_by_code(id, code),
            Effect::SetMode(mode) => {
                if self.session.as_ref().and_then(|session| session.capabilities).is_some_and(|all| all.allows(mode)) {
                    self.send(&ToShim::Mode { mode }, None);
                }
            }
            Effect::HandOff => self.send(&ToShim::Handoff, None),
            Effect::Finish { until } => self.finishing = Some(self.drain(until)),
            Effect::HangUp => self.session = None,
        }
    }

    fn drain(&self, until: Instant) -> BoxFuture<'static, ()> {
        let tenant = Arc::clone(&self.doorway.tenant);
        Box::pin(async move { tenant.drain(until.into()).await })
    }

    fn keep(&mut self, cookie: u64) {
        let Some(fd) = self.donated.take() else { return };
        let Some(listener) = self.custody.listeners().find(|listener| listener.cookie == cookie) else { return };
        self.around.counters.donations_accepted.add(1);
        let slot = Slot::park(&self.around.acceptor, &self.doorway, fd, Some(listener));
        self.slots.insert(cookie, slot);
    }

    fn publish(&self) {
        let capabilities = self.session.as_ref().and_then(|session| session.capabilities);
        let listeners: Vec<_> = self.custody.listeners().map(|listener| listener.address.to_string()).collect();
        let relays = self.custody.mode() == Mode::Relay || capabilities.is_some_and(|all| !all.allows(Mode::Donate));
        self.status.send_if_modified(|status| {
            let before = status.clone();
            status.shim_connected = capabilities.is_some();
            status.listeners = listeners;
            if capabilities.is_some() {
                status.mode = if relays { Mode::Relay } else { Mode::Donate }.as_str().to_owned();
            }
            *status != before
        });
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for slot in self.slots.values() {
            slot.retire();
        }
        self.otlp.retire();
        self.around.claims.release(&self.rules.tenant);
    }
}

/// How long an orphan is kept at present.
fn grace(rules: &Rules, around: &mut Surroundings) -> Option<Duration> {
    let announced = *around.announced.borrow_and_update();
    rules.orphan_grace.or_else(|| (!announced).then_some(rules.unannounced_grace))
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

async fn finished(finishing: &mut Option<BoxFuture<'static, ()>>) {
    match finishing {
        Some(finishing) => finishing.await,
        None => std::future::pending().await,
    }
}

async fn receive(session: Option<&Session>, disposal: &Disposal) -> Option<Box<Packet>> {
    match session {
        Some(session) => session.receive(disposal).await,
        None => std::future::pending().await,
    }
}

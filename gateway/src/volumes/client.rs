//! The task: one loop over what the driver says, what becomes of changes, and the time to connect again.
//!
//! Owns the connection and the duplicates of the pods' sockets, by their cookie. What follows from an event is `core`'s
//! to say. A change runs beside it, so that nothing that blocks or drains delays the next pod. It ends when told to stop.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use pillion_proto::custody::{Kind, ToDriver, ToGateway, VERSION};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::core::{Effect, Event, Sockets};
use super::socket::{Connection, Exchange, Packet};
use super::{Change, Pod, Refusal, Settings, Shared, Tenants, lock, vet};
use crate::base::TenantName;

/// Between two tries to connect: nothing before the first, then doubled up to the longest.
const PAUSE_FIRST: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// After REFUSED: the driver is there, and will not think better of it at once.
const PAUSE_REFUSED: Duration = Duration::from_secs(1);

/// Until what could not be served is tried again, where the driver lists nothing anew.
const RETRY_AFTER: Duration = Duration::from_secs(5);

type Outcome = (TenantName, Result<(), String>);

pub(super) struct Client {
    settings: Settings,
    tenants: Arc<dyn Tenants>,
    shared: Arc<Shared>,
    stopping: watch::Receiver<bool>,
    connection: Option<Connection>,
    /// When to connect; only without a connection.
    connect_at: Instant,
    /// Before the next try but this one.
    pause: Duration,
    /// Sockets in custody, by SO_COOKIE.
    held: HashMap<u64, OwnedFd>,
    /// Between its arrival and the core's word.
    arrived: Option<OwnedFd>,
    changes: JoinSet<Outcome>,
    retry_at: Option<Instant>,
    /// Whether the driver's first list is complete.
    has_listed: bool,
    /// The words of the last trouble that was logged.
    logged: Option<String>,
}

/// Everything that can happen to the client.
enum Input {
    Stop,
    Connect,
    Retry,
    Exchanged(Exchange),
    Changed(Outcome),
}

impl Client {
    pub(super) fn new(
        settings: Settings,
        tenants: Arc<dyn Tenants>,
        shared: Arc<Shared>,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        Self {
            settings,
            tenants,
            shared,
            stopping,
            connection: None,
            connect_at: Instant::now(),
            pause: PAUSE_FIRST,
            held: HashMap::new(),
            arrived: None,
            changes: JoinSet::new(),
            retry_at: None,
            has_listed: false,
            logged: None,
        }
    }

    pub(super) async fn run(mut self) {
        self.tenants.announced(false);
        loop {
            match self.next().await {
                Input::Stop => break,
                Input::Connect => self.connect(),
                Input::Retry => {
                    self.retry_at = None;
                    self.step(Event::Retry);
                }
                Input::Exchanged(Exchange::Sent(Ok(()))) => {}
                Input::Exchanged(Exchange::Sent(Err(error))) => self.disconnect(&format!("sending: {error}")),
                Input::Exchanged(Exchange::Received(Ok(Some(packet)))) => self.handle(packet),
                Input::Exchanged(Exchange::Received(Ok(None))) => self.disconnect("the driver closed it"),
                Input::Exchanged(Exchange::Received(Err(error))) => self.disconnect(&format!("receiving: {error}")),
                Input::Changed((name, outcome)) => self.step(Event::Changed { name, outcome }),
            }
            if self.retry_at.is_none() && lock(&self.shared.core).has_failed() {
                self.retry_at = Some(Instant::now() + RETRY_AFTER);
            }
        }
        self.changes.shutdown().await;
        for (_, socket) in self.held.drain() {
            self.tenants.dispose(socket);
        }
    }

    async fn next(&mut self) -> Input {
        let (connect_at, retry_at) = (self.connect_at, self.retry_at);
        let is_connected = self.connection.is_some();
        tokio::select! {
            biased;
            _ = self.stopping.wait_for(|stop| *stop) => Input::Stop,
            Some(Ok(changed)) = self.changes.join_next() => Input::Changed(changed),
            () = tokio::time::sleep_until(connect_at.into()), if !is_connected => Input::Connect,
            () = sleep_until(retry_at), if retry_at.is_some() => Input::Retry,
            exchanged = exchange(self.connection.as_mut()), if is_connected => Input::Exchanged(exchanged),
        }
    }

    fn connect(&mut self) {
        match Connection::open(&self.settings.socket) {
            Ok(connection) => {
                self.connection = Some(connection);
                self.step(Event::Connected);
            }
            Err(error) => {
                let path = self.settings.socket.display();
                self.trouble(format!("the CSI driver does not answer at {path}: {error}"));
                self.connect_later();
            }
        }
    }

    fn connect_later(&mut self) {
        self.connect_at = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }

    /// The connection is of no use any more.
    fn disconnect(&mut self, why: &str) {
        self.connection = None;
        self.arrived = None;
        self.trouble(format!("the connection to the CSI driver ended: {why}"));
        self.step(Event::Disconnected);
        self.connect_later();
    }

    /// Shown while it lasts; logged once.
    fn trouble(&mut self, words: String) {
        if self.logged.as_ref() != Some(&words) {
            tracing::warn!("{words}; pods that are served go on, and it is tried again");
            self.logged = Some(words.clone());
        }
        *lock(&self.shared.trouble) = Some(words);
    }

    fn handle(&mut self, packet: Packet) {
        let message = match ToGateway::decode(&packet.bytes) {
            Ok(Some(message)) => message,
            Ok(None) => return tracing::debug!("a message of the CSI driver that this version does not know"),
            Err(error) => return self.disconnect(&format!("a message that is none: {error}")),
        };
        self.arrived = packet.fd.filter(|_| message.carries_fd());
        match message {
            ToGateway::Welcome { driver_version, .. } => {
                tracing::info!(driver_version, "the CSI driver is connected");
                self.shared.connects.add(1);
                self.pause = PAUSE_FIRST;
                self.step(Event::Welcomed);
            }
            ToGateway::Volume(volume) => {
                let event = self.volume(volume);
                self.step(event);
            }
            ToGateway::Otlp { uid } => {
                let event = match self.vet(Kind::Otlp, &uid) {
                    Ok(otlp) => Event::Otlp { uid: uid.into(), otlp },
                    Err(words) => Event::Unusable { uid: uid.into(), reason: Refusal::Socket, words },
                };
                self.step(event);
            }
            ToGateway::Unpublished { uid } => {
                self.step(Event::Unpublished { uid: uid.into() });
                self.tell_who_is_there();
            }
            ToGateway::Ready => {
                self.step(Event::Ready);
                self.has_listed |= self.connection.is_some();
                self.tell_who_is_there();
            }
            ToGateway::Refused { reason } => {
                self.pause = PAUSE_REFUSED;
                self.disconnect(&format!("it refused this gateway: {reason}"));
                self.pause = PAUSE_FIRST;
            }
        }
        // What the core did not ask for, it does not want.
        self.arrived = None;
    }

    /// Also after a pod has gone that never could be served: nobody else says so.
    fn tell_who_is_there(&self) {
        if self.has_listed {
            let uids = lock(&self.shared.core).uids();
            self.tenants.listed(&uids);
        }
    }

    fn volume(&mut self, volume: pillion_proto::custody::Volume) -> Event {
        let uid: Arc<str> = volume.uid.as_str().into();
        match vet::volume(volume) {
            Err(words) => Event::Unusable { uid, reason: Refusal::Malformed, words },
            Ok(info) => match self.vet(Kind::Ctl, &info.uid) {
                Ok(ctl) => Event::Volume { info, ctl },
                Err(words) => Event::Unusable { uid, reason: Refusal::Socket, words },
            },
        }
    }

    fn vet(&self, kind: Kind, uid: &str) -> Result<u64, String> {
        let missing = || format!("no descriptor came with {} of pod {uid}", kind.as_str());
        vet::socket(self.arrived.as_ref().ok_or_else(missing)?, kind, uid)
    }

    fn step(&mut self, event: Event) {
        let effects = lock(&self.shared.core).step(event);
        for effect in effects {
            self.perform(effect);
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Greet => {
                let hello = ToDriver::Hello {
                    version: VERSION,
                    gateway_version: env!("CARGO_PKG_VERSION").to_owned(),
                    instance: self.settings.instance,
                };
                let proof = self.settings.proof.try_clone();
                self.put(&hello, Some(proof));
            }
            Effect::Return { cookie } => {
                if let Some(duplicate) = self.duplicate(cookie) {
                    self.put(&ToDriver::Return, Some(duplicate));
                }
            }
            Effect::Returned => self.put(&ToDriver::Ready, None),
            Effect::Keep { cookie } => {
                if let Some(socket) = self.arrived.take() {
                    self.held.insert(cookie, socket);
                }
            }
            Effect::CloseArrived => {
                if let Some(socket) = self.arrived.take() {
                    self.tenants.dispose(socket);
                }
            }
            Effect::Close { cookie } => {
                if let Some(socket) = self.held.remove(&cookie) {
                    self.tenants.dispose(socket);
                }
            }
            Effect::Change { name, from, to } => self.change(name, from, to),
            Effect::Tell { uid, error } => {
                if let Some((reason, words)) = &error {
                    self.shared.refuse(*reason);
                    tracing::warn!(pod = %uid, reason = words, "a pod's volume is not served");
                }
                let error = error.map(|(_, words)| words);
                self.put(&ToDriver::Attached { uid: uid.to_string(), error }, None);
            }
            Effect::Announced(announced) => {
                if announced {
                    (self.logged, *lock(&self.shared.trouble)) = (None, None);
                    tracing::info!(volumes = lock(&self.shared.core).len(), "the CSI driver has told every volume");
                }
                self.tenants.announced(announced);
            }
            Effect::HangUp(why) => self.disconnect(why),
        }
    }

    fn put(&mut self, message: &ToDriver, fd: Option<io::Result<OwnedFd>>) {
        let Some(connection) = &mut self.connection else { return };
        match fd.transpose() {
            Ok(fd) => connection.put(message, fd),
            Err(error) => self.disconnect(&format!("duplicating a socket: {error}")),
        }
    }

    fn duplicate(&self, cookie: u64) -> Option<io::Result<OwnedFd>> {
        self.held.get(&cookie).map(OwnedFd::try_clone)
    }

    fn change(&mut self, name: TenantName, from: Option<Arc<str>>, to: Option<Sockets>) {
        let to = to.map(|Sockets { info, ctl, otlp }| -> io::Result<Pod> {
            let held = |cookie| self.duplicate(cookie).unwrap_or_else(|| Err(io::ErrorKind::NotFound.into()));
            let (ctl, otlp) = (held(ctl)?, held(otlp)?);
            Ok(Pod { uid: info.uid, service_account: info.service_account, ports: info.ports, ctl, otlp })
        });
        let change = to.transpose().map(|to| Change { name: name.clone(), from, to });
        let tenants = self.tenants.clone();
        self.changes.spawn(async move {
            let outcome = match change {
                // The core waits for the end of every change: one that panics must have one too.
                Ok(change) => {
                    AssertUnwindSafe(async { tenants.change(change).await }).catch_unwind().await.unwrap_or_else(|_| {
                        tracing::error!(tenant = %name, "the change of a tenant panicked");
                        Err("the gateway failed while it began or ended this tenant; its log says how".to_owned())
                    })
                }
                Err(error) => Err(format!("duplicating its sockets: {error}")),
            };
            (name, outcome)
        });
    }
}

async fn exchange(connection: Option<&mut Connection>) -> Exchange {
    match connection {
        Some(connection) => connection.next().await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

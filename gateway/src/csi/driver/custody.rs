//! The driver's side of custody: who connects, who gets the sockets, and what is said.
//!
//! Owns the custody socket and the connections on it. A connection says nothing that counts before its HELLO has proved that
//! its gateway holds the data directory; the newest that does supersedes the one before. It ends with the driver.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pillion_proto::custody::{self, Kind, ToDriver, ToGateway};
use rustix::net::{SocketFlags, SocketType};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use super::super::core::{Event, Tell};
use super::super::foreign::{Debt, Foreign};
use super::super::hands::Hands;
use super::super::session::{self, Flushed, Outbox, Packet, Socket};
use super::super::target::Uid;
use super::super::{Config, OwnName, hands, listen, proof};
use super::{Driver, Known};
use crate::sys;

/// Connections that have not said HELLO yet; one more supersedes the oldest.
const NEWCOMERS_MAX: usize = 4;

/// Packets read ahead.
const PACKETS_MAX: usize = 64;

/// After an accept that failed (no file descriptors left, most likely).
const ACCEPT_AGAIN: Duration = Duration::from_millis(500);

/// After the data directory could not be prepared, or the socket not be made.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);

/// Everything about gateways.
#[derive(Debug)]
pub(super) struct Custody {
    pub(super) listener: Option<AsyncFd<OwnedFd>>,
    name: Option<OwnName>,
    listen_at: Instant,
    /// Until when nothing is accepted.
    pub(super) accept_at: Option<Instant>,
    /// Why it does not listen, as it was logged last.
    trouble: Option<String>,
    newcomers: Vec<Connection>,
    pub(super) session: Option<Session>,
    pub(super) packets: mpsc::Receiver<(u64, Option<Packet>)>,
    inbox: mpsc::Sender<(u64, Option<Packet>)>,
    readers: JoinSet<()>,
    arrivals: u64,
    /// A returned descriptor between the kernel's word about it and the decision.
    pub(super) returned: Option<Foreign>,
}

/// A connection that is read from until it is dropped.
#[derive(Debug)]
struct Connection {
    number: u64,
    socket: Socket,
    reader: AbortHandle,
}

/// The conversation with the gateway that holds the data directory.
#[derive(Debug)]
pub(super) struct Session {
    connection: Connection,
    pub(super) socket: Socket,
    pub(super) outbox: Outbox,
    /// Sockets that it returned and that nobody else had.
    pub(super) adopted: usize,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Custody {
    pub(super) fn new(now: Instant) -> Self {
        let (inbox, packets) = mpsc::channel(PACKETS_MAX);
        Self {
            listener: None,
            name: None,
            listen_at: now,
            accept_at: None,
            trouble: None,
            newcomers: Vec::new(),
            session: None,
            packets,
            inbox,
            readers: JoinSet::new(),
            arrivals: 0,
            returned: None,
        }
    }

    /// When to try again to listen; `None` while it does.
    pub(super) fn listen_at(&self) -> Option<Instant> {
        self.listener.is_none().then_some(self.listen_at)
    }

    /// Hangs up on everybody and removes the name.
    pub(super) fn close(&mut self) {
        self.session = None;
        self.newcomers.clear();
        self.listener = None;
        self.name = None;
    }

    fn connect(&mut self, socket: Foreign) -> io::Result<()> {
        let socket = session::register(socket)?;
        self.arrivals += 1;
        let number = self.arrivals;
        while self.readers.try_join_next().is_some() {}
        let reader = self.readers.spawn(read(number, Socket::clone(&socket), self.inbox.clone()));
        if self.newcomers.len() >= NEWCOMERS_MAX {
            self.newcomers.remove(0);
        }
        self.newcomers.push(Connection { number, socket, reader });
        Ok(())
    }

    fn is_session(&self, number: u64) -> bool {
        self.session.as_ref().is_some_and(|session| session.connection.number == number)
    }
}

async fn read(number: u64, socket: Socket, inbox: mpsc::Sender<(u64, Option<Packet>)>) {
    loop {
        let packet = session::receive(&socket).await;
        let ended = packet.is_none();
        if inbox.send((number, packet)).await.is_err() || ended {
            return;
        }
    }
}

/// Waits for a connection; for ever while there is no socket.
pub(super) async fn accept(listener: Option<&AsyncFd<OwnedFd>>) -> io::Result<OwnedFd> {
    let Some(listener) = listener else { return std::future::pending().await };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    listener.async_io(Interest::READABLE, |listener| Ok(rustix::net::accept_with(listener, flags)?)).await
}

impl Driver {
    /// Prepares the data directory, and only then lets gateways connect.
    pub(super) fn listen(&mut self, now: Instant) {
        self.custody.listen_at = now + LISTEN_AGAIN;
        match self.try_to_listen() {
            Ok((listener, name)) => {
                tracing::info!(socket = %self.config.custody.display(), "waiting for a gateway");
                self.custody.listener = Some(listener);
                self.custody.name = Some(name);
                self.custody.trouble = None;
            }
            // Once, not once a second.
            Err(trouble) if self.custody.trouble.as_ref() != Some(&trouble) => {
                tracing::error!(error = trouble, "no gateway can be served; pods start all the same; trying again");
                self.custody.trouble = Some(trouble);
            }
            Err(_) => {}
        }
    }

    fn try_to_listen(&self) -> Result<(AsyncFd<OwnedFd>, OwnName), String> {
        let Config { data_dir, custody, gateway_id, .. } = &self.config;
        proof::prepare(data_dir, *gateway_id).map_err(|error| error.to_string())?;
        listen(custody, SocketType::SEQPACKET, 0o660, Some(*gateway_id))
            .and_then(|(listener, name)| Ok((sys::readable(listener).map_err(|(_, error)| error)?, name)))
            .map_err(|error| format!("cannot listen on {}: {error}", custody.display()))
    }

    pub(super) fn arrived(&mut self, arrived: io::Result<OwnedFd>) {
        if arrived.is_err() {
            self.custody.accept_at = Some(Instant::now() + ACCEPT_AGAIN);
        }
        let connected = arrived.and_then(|socket| {
            let socket = Foreign::new(socket, &Arc::<Debt>::default());
            let peer = sys::peer_uid(&socket)?;
            if ![0, self.config.gateway_id, rustix::process::geteuid().as_raw()].contains(&peer) {
                return Err(io::Error::other(format!(
                    "its user {peer} is not the gateway's ({})",
                    self.config.gateway_id
                )));
            }
            self.custody.connect(socket)
        });
        if let Err(error) = connected {
            tracing::warn!(%error, "turned a connection away from the custody socket");
        }
    }

    pub(super) fn handle(&mut self, number: u64, packet: Option<Packet>) {
        if self.custody.is_session(number) {
            match packet {
                Some(packet) => self.handle_packet(packet),
                None => self.hang_up("it has closed the connection"),
            }
        } else if let Some(at) = self.custody.newcomers.iter().position(|newcomer| newcomer.number == number) {
            let newcomer = self.custody.newcomers.remove(at);
            if let Some(packet) = packet {
                self.greet(newcomer, packet);
            }
        }
        // Anything else was read ahead from a connection that is superseded.
    }

    fn greet(&mut self, newcomer: Connection, packet: Packet) {
        let hello = ToDriver::decode(packet.bytes());
        let Ok(Some(ToDriver::Hello { version, gateway_version, instance })) = hello else {
            tracing::warn!("hung up on a connection that began with something else than HELLO");
            return;
        };
        let proven = match custody::negotiate(version) {
            None => Err(format!("protocol version {version} is too old, {} is needed", custody::OLDEST_VERSION)),
            Some(version) => {
                proof::check(packet.fd, &self.config.data_dir).map(|()| version).map_err(|e| e.to_string())
            }
        };
        let version = match proven {
            Ok(version) => version,
            Err(reason) => {
                tracing::warn!(gateway_version, instance, reason, "refused a gateway");
                // It is told in vain if it does not read; either way it is hung up on.
                let _ = session::send(&newcomer.socket, &ToGateway::Refused { reason }, None);
                return;
            }
        };
        let superseded = self.custody.session.take().is_some();
        let driver_version = env!("CARGO_PKG_VERSION").to_owned();
        if let Err(error) = session::send(&newcomer.socket, &ToGateway::Welcome { version, driver_version }, None) {
            tracing::warn!(%error, "lost a gateway before it was welcomed");
            if superseded {
                self.step(Event::Ended);
            }
            return;
        }
        tracing::info!(
            gateway_version,
            instance,
            version,
            superseded,
            "a gateway has proved that it holds the data directory"
        );
        let socket = Socket::clone(&newcomer.socket);
        self.custody.session = Some(Session { connection: newcomer, socket, outbox: Outbox::default(), adopted: 0 });
        self.step(Event::Greeted);
    }

    fn handle_packet(&mut self, packet: Packet) {
        match ToDriver::decode(packet.bytes()) {
            Ok(Some(ToDriver::Return)) => self.take_back(packet.fd),
            Ok(Some(ToDriver::Ready)) => {
                self.step(Event::GatewayReady);
                let adopted = self.custody.session.as_ref().map_or(0, |session| session.adopted);
                tracing::info!(volumes = self.volumes.len(), adopted, "handing the pods' sockets to the gateway");
                self.log_failures();
            }
            Ok(Some(ToDriver::Attached { uid, error: None })) => tracing::info!(uid, "the gateway serves a pod"),
            Ok(Some(ToDriver::Attached { uid, error: Some(error) })) => {
                tracing::error!(uid, error, "the gateway does not serve a pod");
                if let Some(uid) = Uid::parse(&uid) {
                    self.step(Event::Declined(uid));
                }
            }
            Ok(Some(ToDriver::Hello { .. })) => self.hang_up("it said HELLO twice"),
            Ok(None) => {}
            Err(error) => self.hang_up(&error.to_string()),
        }
    }

    fn take_back(&mut self, fd: Option<Foreign>) {
        let Some(fd) = fd else {
            tracing::warn!("the gateway returned a socket, and no descriptor came along");
            return;
        };
        match hands::identify(fd.as_fd()) {
            Ok((uid, kind)) if self.hands.has(&uid, kind, &fd) => drop(fd.trust()),
            Ok((uid, kind)) => {
                self.custody.returned = Some(fd);
                self.step(Event::Returned(uid.clone(), kind));
                tracing::debug!(%uid, socket = kind.as_str(), "the gateway returned a socket");
            }
            Err(error) => tracing::warn!(%error, "closed what the gateway returned"),
        }
    }

    pub(super) fn hang_up(&mut self, reason: &str) {
        if self.custody.session.take().is_some() {
            tracing::warn!(reason, "the gateway is gone: its pods' connections wait in their sockets");
            self.step(Event::Ended);
            self.log_failures();
        }
    }

    pub(super) fn queue(&mut self, tell: Tell) {
        let Some(session) = &mut self.custody.session else { return };
        if !session.outbox.push(tell) {
            self.hang_up("too many messages wait for it");
        }
    }

    /// Sends what waits, as far as the kernel takes it.
    pub(super) fn flush(&mut self) {
        let Some(session) = &mut self.custody.session else { return };
        let (volumes, hands) = (&self.volumes, &self.hands);
        let flushed = session.outbox.flush(Instant::now(), |tell| {
            let Some((message, fd)) = letter(tell, volumes, hands) else { return Ok(()) };
            session::send(&session.socket, &message, fd)
        });
        match flushed {
            Flushed::Empty | Flushed::Waiting => {}
            Flushed::Refused { waiting, delay } => tracing::warn!(
                waiting,
                retry_ms = delay.as_millis(),
                "the kernel has too many descriptors under way for this user (another process of it reads none): \
                 trying again; CAP_SYS_RESOURCE lifts the limit"
            ),
            Flushed::Broken(reason) => self.hang_up(&reason),
        }
    }
}

/// The message as it is now; `None` if its volume is gone meanwhile.
fn letter<'a>(
    tell: &Tell,
    volumes: &BTreeMap<Uid, Known>,
    hands: &'a Hands,
) -> Option<(ToGateway, Option<BorrowedFd<'a>>)> {
    Some(match tell {
        Tell::Volume(uid) => {
            let record = volumes.get(uid)?.record.as_ref()?;
            (ToGateway::Volume(record.message()), Some(hands.socket(uid, Kind::Ctl)?))
        }
        Tell::Otlp(uid) => (ToGateway::Otlp { uid: uid.as_str().to_owned() }, Some(hands.socket(uid, Kind::Otlp)?)),
        Tell::Unpublished(uid) => (ToGateway::Unpublished { uid: uid.as_str().to_owned() }, None),
        Tell::Ready => (ToGateway::Ready, None),
    })
}

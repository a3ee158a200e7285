//! The pods' connections: which of them a request takes, and what is written to and read from their sockets.
//!
//! All of them are in one epoll, edge by edge, so that a request costs no call but those that send, wait and read. A connection
//! that breaks takes its requests with it; the next request opens another.
//!
//! Answers are told with the time at which the kernel received them, so nobody has to be woken for one: they may be harvested when
//! something else is to be done, unless [`Links::is_pressing`].

#[cfg(test)]
mod tests;

use std::io;
use std::mem;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::io::{Errno, ioctl_fionbio};
use rustix::net::{SendFlags, connect, send, sockopt};
use rustix::thread::{NanosleepRelativeResult, nanosleep};
use slab::Slab;

use super::answer::{Ended, Heard};
use super::clock::Clock;
use super::http1::Http1;
use super::http2::Http2;
use super::out::Out;
use super::stamp::{Read, Stamps};
use super::{Protocol, Target, Transport};
use crate::identity::Signal;

/// Bytes that are read at once.
const READ_MAX: usize = 64 << 10;

/// Connections of which something is heard at once.
const EVENTS_MAX: usize = 128;

/// All pods' connections.
pub(super) struct Links {
    target: Rc<dyn Target>,
    transport: Transport,
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
    connections: Slab<Connection>,
    pods: Vec<Lines>,
    opened: u32,
    buffer: Vec<u8>,
    stamps: Stamps,
    /// What was read last had a stamp.
    is_stamped: bool,
    /// Connections that are pressing.
    pressing: usize,
    /// Of what is read now.
    ended: Vec<Ended>,
    ends: Vec<Heard>,
}

/// A pod's connections.
#[derive(Debug, Default)]
struct Lines {
    /// gRPC: shared by the requests, in turn.
    streams: Vec<Option<usize>>,
    turn: usize,
    /// HTTP/1.1: those that nobody uses now.
    idle: Vec<usize>,
}

struct Connection {
    socket: OwnedFd,
    address: SocketAddr,
    /// Of all that were opened: a key is used again.
    number: u32,
    pod: usize,
    is_connected: bool,
    /// What happens to it is to be heard at once.
    is_pressing: bool,
    talk: Talk,
}

enum Talk {
    Grpc(Box<Http2>),
    Http(Http1),
}

impl Links {
    pub(super) fn new(target: Rc<dyn Target>, pods: usize, transport: Transport) -> Result<Self> {
        let lines = || Lines { streams: vec![None; transport.connections.max(1)], ..Lines::default() };
        Ok(Self {
            target,
            transport,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            events: Vec::with_capacity(EVENTS_MAX),
            connections: Slab::new(),
            pods: (0..pods).map(|_| lines()).collect(),
            opened: 0,
            buffer: vec![0; READ_MAX],
            stamps: Stamps::new(),
            is_stamped: false,
            pressing: 0,
            ended: Vec::new(),
            ends: Vec::new(),
        })
    }

    /// Connections opened so far.
    pub(super) fn opened(&self) -> u64 {
        self.opened.into()
    }

    /// Sends a body that is compressed and framed already. How it ends is among [`Links::ends`], maybe at once. Returns the
    /// connection that it took, if there is one.
    pub(super) fn send(&mut self, token: usize, pod: usize, signal: Signal, body: &[u8]) -> Option<usize> {
        match self.connection(pod) {
            Ok(key) => {
                match &mut self.connections[key].talk {
                    Talk::Grpc(talk) => talk.start(token, signal, body),
                    Talk::Http(talk) => talk.start(token, signal, body),
                }
                self.flush(key);
                self.weigh(key);
                Some(key)
            }
            Err(error) => {
                self.ends.push(Ended { token, answer: Err(format!("{error:#}")) }.into());
                None
            }
        }
    }

    /// Gives up a request that has not ended, on the connection that it took.
    pub(super) fn cancel(&mut self, token: usize, key: usize) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        match &mut connection.talk {
            Talk::Grpc(talk) => {
                talk.cancel(token);
                self.flush(key);
                self.settle(key);
                self.weigh(key);
            }
            Talk::Http(_) => self.close(key),
        }
    }

    /// How requests have ended since this was last asked.
    pub(super) fn ends(&mut self) -> Vec<Heard> {
        mem::take(&mut self.ends)
    }

    /// Takes back what [`Links::ends`] gave, emptied, to be used again.
    pub(super) fn reuse(&mut self, mut ends: Vec<Heard>) {
        if self.ends.is_empty() {
            ends.clear();
            self.ends = ends;
        }
    }

    /// Whether what arrives must be looked at when it does, since it would not be known when that was, or something waits for it.
    pub(super) fn is_pressing(&self) -> bool {
        !self.is_stamped || self.pressing > 0
    }

    /// Returns when something has arrived, or at the end of that time: then false.
    pub(super) fn wait(&self, time: Duration) -> io::Result<bool> {
        let time = timespec(time);
        // Not with the epoll itself, whose time is in milliseconds.
        match poll(&mut [PollFd::new(&self.epoll, PollFlags::IN)], Some(&time)) {
            Ok(count) => Ok(count > 0),
            Err(Errno::INTR) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// Handles what has arrived.
    pub(super) fn look(&mut self, clock: &mut Clock) -> io::Result<()> {
        clock.compare();
        loop {
            let mut events = mem::take(&mut self.events);
            events.clear();
            epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&Timespec::default()))?;
            let is_all = events.len() < EVENTS_MAX;
            for event in &events {
                let (data, flags) = (event.data.u64(), event.flags);
                self.happened(data, flags, clock);
            }
            self.events = events;
            if is_all {
                return Ok(());
            }
        }
    }

    fn happened(&mut self, data: u64, flags: epoll::EventFlags, clock: &Clock) {
        let Some((key, number)) = keyed(data) else { return };
        let Some(connection) = self.connections.get_mut(key).filter(|connection| connection.number == number) else {
            return;
        };
        if !connection.is_connected {
            let connected = match sockopt::socket_error(&connection.socket) {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) | Err(error) => Err(error),
            };
            if let Err(error) = connected {
                let words = format!("connecting to {}: {}", connection.address, io::Error::from(error));
                return self.broken(key, &words);
            }
            connection.is_connected = flags.contains(epoll::EventFlags::OUT);
        }
        let ends = flags.intersects(epoll::EventFlags::RDHUP | epoll::EventFlags::HUP | epoll::EventFlags::ERR);
        if (ends || flags.contains(epoll::EventFlags::IN))
            && let Err(error) = self.read(key, ends, clock)
        {
            return self.broken(key, &format!("{error:#}"));
        }
        self.flush(key);
        self.settle(key);
        self.weigh(key);
    }

    fn read(&mut self, key: usize, to_end: bool, clock: &Clock) -> Result<()> {
        let connection = &mut self.connections[key];
        loop {
            let Read { count, stamp } = match self.stamps.read(&connection.socket, &mut self.buffer[..]) {
                Ok(read) => read,
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error).context("reading"),
            };
            let bytes = &self.buffer[..count];
            let received = match &mut connection.talk {
                Talk::Http(talk) => talk.receive(bytes, count == 0, &mut self.ended),
                Talk::Grpc(_) if count == 0 => Err(anyhow!("the peer closed the connection")),
                Talk::Grpc(talk) => talk.receive(bytes, &mut self.ended),
            };
            if count > 0 {
                self.is_stamped = stamp.is_some();
            }
            let arrived = stamp.and_then(|stamp| clock.stamped(stamp));
            self.ends.extend(self.ended.drain(..).map(|ended| Heard { ended, arrived }));
            received?;
            if count == 0 || (count < READ_MAX && !to_end) {
                return Ok(());
            }
        }
    }

    /// Writes what is to be sent, as far as the socket takes it.
    fn flush(&mut self, key: usize) {
        let Some(connection) = self.connections.get_mut(key).filter(|connection| connection.is_connected) else {
            return;
        };
        let out = connection.talk.out();
        while !out.is_empty() {
            match send(&connection.socket, out.unsent(), SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(count) => out.advance(count),
                Err(Errno::INTR) => {}
                // There is an edge when there is room.
                Err(Errno::AGAIN) => return,
                Err(error) => return self.broken(key, &format!("writing: {}", io::Error::from(error))),
            }
        }
    }

    /// The connection for a pod's next request.
    fn connection(&mut self, pod: usize) -> Result<usize> {
        let lines = &mut self.pods[pod];
        match (self.transport.protocol, self.transport.keep) {
            (_, false) => self.open(pod),
            (Protocol::Http, true) => lines.idle.pop().map_or_else(|| self.open(pod), Ok),
            (Protocol::Grpc, true) => {
                let turn = lines.turn;
                lines.turn = (turn + 1) % lines.streams.len();
                if let Some(key) = lines.streams[turn] {
                    return Ok(key);
                }
                let key = self.open(pod)?;
                self.pods[pod].streams[turn] = Some(key);
                Ok(key)
            }
        }
    }

    fn open(&mut self, pod: usize) -> Result<usize> {
        self.opened += 1;
        let (socket, address) = self.target.socket(pod)?;
        ioctl_fionbio(&socket, true)?;
        sockopt::set_tcp_nodelay(&socket, true)?;
        if !Stamps::ask(&socket) {
            self.is_stamped = false;
        }
        let is_connected = match connect(&socket, &address) {
            Ok(()) => true,
            Err(Errno::INPROGRESS) => false,
            Err(error) => return Err(error).with_context(|| format!("connecting to {address}")),
        };
        let (encoding, number) = (self.transport.compression.name(), self.opened);
        let talk = match self.transport.protocol {
            Protocol::Grpc => Talk::Grpc(Box::new(Http2::new(encoding))),
            Protocol::Http => Talk::Http(Http1::new(encoding, self.transport.keep)),
        };
        let entry = self.connections.vacant_entry();
        let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        let data = u64::from(number) << 32 | u64::try_from(entry.key()).context("too many connections")?;
        epoll::add(&self.epoll, &socket, epoll::EventData::new_u64(data), flags)?;
        let key = entry.key();
        entry.insert(Connection { socket, address, number, pod, is_connected, is_pressing: false, talk });
        Ok(key)
    }

    /// After something was heard: closes what is of no more use, and keeps what may be used again.
    fn settle(&mut self, key: usize) {
        let Some(connection) = self.connections.get(key) else { return };
        let (pod, keep) = (connection.pod, self.transport.keep);
        let is_over = match &connection.talk {
            Talk::Grpc(talk) => {
                if !talk.is_open() {
                    self.pods[pod].forget(key);
                }
                talk.is_idle() && !(keep && talk.is_open())
            }
            Talk::Http(talk) => {
                let idle = &mut self.pods[pod].idle;
                if talk.is_open() && keep && !idle.contains(&key) {
                    idle.push(key);
                }
                talk.is_closing() || (talk.is_open() && !keep)
            }
        };
        if is_over {
            self.close(key);
        }
    }

    /// After something was done with a connection, if it is still there.
    fn weigh(&mut self, key: usize) {
        let Some(connection) = self.connections.get_mut(key) else { return };
        let is_pressing = !connection.is_connected || connection.talk.is_pressing();
        self.pressing = self.pressing - usize::from(connection.is_pressing) + usize::from(is_pressing);
        connection.is_pressing = is_pressing;
    }

    fn broken(&mut self, key: usize, words: &str) {
        let abandoned = match &mut self.connections[key].talk {
            Talk::Grpc(talk) => talk.abandon(),
            Talk::Http(talk) => talk.abandon().into_iter().collect(),
        };
        self.ends.extend(abandoned.into_iter().map(|token| Ended { token, answer: Err(words.to_owned()) }.into()));
        self.close(key);
    }

    fn close(&mut self, key: usize) {
        let connection = self.connections.remove(key);
        self.pressing -= usize::from(connection.is_pressing);
        self.pods[connection.pod].forget(key);
    }
}

impl Lines {
    fn forget(&mut self, key: usize) {
        self.streams.iter_mut().filter(|stream| **stream == Some(key)).for_each(|stream| *stream = None);
        self.idle.retain(|idle| *idle != key);
    }
}

impl Talk {
    fn out(&mut self) -> &mut Out {
        match self {
            Self::Grpc(talk) => talk.out(),
            Self::Http(talk) => talk.out(),
        }
    }

    fn is_pressing(&mut self) -> bool {
        let waits = match self {
            Self::Grpc(talk) => talk.is_pressing(),
            // One request at a time.
            Self::Http(_) => false,
        };
        waits || !self.out().is_empty()
    }
}

/// Returns at the end of that time, whatever arrives; earlier after a signal.
pub(super) fn nap(time: Duration) -> io::Result<()> {
    match nanosleep(&timespec(time)) {
        NanosleepRelativeResult::Ok | NanosleepRelativeResult::Interrupted(_) => Ok(()),
        NanosleepRelativeResult::Err(error) => Err(error.into()),
    }
}

fn timespec(time: Duration) -> Timespec {
    Timespec { tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX), tv_nsec: time.subsec_nanos().into() }
}

/// A connection's key and number.
fn keyed(data: u64) -> Option<(usize, u32)> {
    Some((usize::try_from(data & u64::from(u32::MAX)).ok()?, u32::try_from(data >> 32).ok()?))
}

//! Copying bytes between the pod's loopback and the gateway's `otlp` socket, where descriptors cannot be passed.
//!
//! Owns the relayed connections. It never looks at a byte: splice() moves pages through a pipe, at most [`CHUNK_BYTES`]
//! at a time and direction, so a side that does not read stops the other side's sender and nothing grows. When `otlp`
//! cannot be dialled, one accepted connection is kept and the rest waits in the kernel's backlog: nobody is reset. A
//! connection ends when both directions have; each passes on its end of file and lets the other finish.
//!
//! ```text
//! pump    pipe empty: from -> pipe     0 bytes or an error -> shut down `to` for writing, done
//!         pipe full:  pipe -> to       an error            -> drop what is in the pipe, done
//!         nothing moves: wait for the next edge; too much moves: let the others have a turn
//! ```

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Instant;

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{Shutdown, SocketFlags, SocketType, sockopt};
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::backoff::{Backoff, Random};
use crate::ctl;
use crate::say::{say, why};

/// Connections at a time. What is more waits in the backlog.
const CONNECTIONS_MAX: usize = 256;
/// Descriptors of one connection (two sockets, two pipes), and what the rest of the process needs.
const FDS_PER_CONNECTION: usize = 6;
const FDS_OF_THE_REST: usize = 64;
/// In flight in one direction. With both directions of all connections stalled this is half the container's 16 MiB.
const CHUNK_BYTES: usize = 16 * 1024;
/// Chunks that one connection moves before the others get their turn.
const CHUNKS_A_TURN: usize = 16;
/// Empty pipes that are kept for the next chunk; idle connections hold none.
const SPARE_PIPES: usize = 8;
const ACCEPTS_A_TURN: usize = 16;

/// All relayed connections.
#[derive(Debug)]
pub(crate) struct Relay {
    dir: PathBuf,
    /// Edges of all connections; itself watched by the loop of `run`.
    events: OwnedFd,
    connections: Vec<Option<Connection>>,
    live: usize,
    live_max: usize,
    /// Accepted, but `otlp` could not be dialled yet.
    parked: Option<OwnedFd>,
    resume_at: Option<Instant>,
    backoff: Backoff,
    random: Random,
    /// Connections whose turn was over before there was nothing left to move.
    unfinished: Vec<usize>,
    spare: Vec<Pipe>,
    complained: Option<Errno>,
}

#[derive(Debug)]
struct Connection {
    tcp: OwnedFd,
    otlp: OwnedFd,
    up: Flow,
    down: Flow,
}

/// One direction.
#[derive(Debug, Default)]
struct Flow {
    pipe: Option<Pipe>,
    buffered: usize,
    done: bool,
}

#[derive(Debug)]
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

impl Relay {
    pub(crate) fn new(dir: PathBuf, seed: u64) -> Result<Self, Errno> {
        Ok(Self {
            dir,
            events: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            connections: Vec::new(),
            live: 0,
            live_max: room_for_descriptors(),
            parked: None,
            resume_at: None,
            backoff: Backoff::new(10, 1000),
            random: Random::new(seed),
            unfinished: Vec::new(),
            spare: Vec::new(),
            complained: None,
        })
    }

    /// Readable when [`Relay::turn`] has something to do.
    pub(crate) fn events(&self) -> &OwnedFd {
        &self.events
    }

    /// When [`Relay::turn`] has something to do although nothing happened: at once, at a time, or never.
    pub(crate) fn due(&self, now: Instant) -> Option<Instant> {
        if self.unfinished.is_empty() { self.resume_at } else { Some(now) }
    }

    /// Whether one more connection can be taken now.
    pub(crate) fn has_room(&self) -> bool {
        self.parked.is_none() && self.resume_at.is_none() && self.live < self.live_max
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.live == 0 && self.parked.is_none()
    }

    /// Moves what can be moved, and tries again what had to wait.
    pub(crate) fn turn(&mut self, now: Instant) {
        for index in std::mem::take(&mut self.unfinished) {
            self.pump(index, false);
        }
        let mut edges = Vec::with_capacity(32);
        if epoll::wait(&self.events, spare_capacity(&mut edges), Some(&Timespec::default())).is_ok() {
            for edge in edges {
                let (token, flags) = (usize::try_from(edge.data.u64()).unwrap_or(usize::MAX), edge.flags);
                // Both ends of `otlp` are shut: without this a client that says nothing more would keep its place for ever.
                self.pump(token / 2, token % 2 == OTLP && flags.contains(EventFlags::HUP));
            }
        }
        if self.resume_at.is_some_and(|at| at <= now) {
            self.resume_at = None;
            if let Some(tcp) = self.parked.take() {
                self.connect(tcp, now);
            }
        }
    }

    /// Takes waiting connections of one listener. An error is the listener's end.
    pub(crate) fn accept(&mut self, listener: &OwnedFd, now: Instant) -> Result<(), Errno> {
        for _ in 0..ACCEPTS_A_TURN {
            if !self.has_room() {
                return Ok(());
            }
            match rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(tcp) => self.connect(tcp, now),
                Err(Errno::AGAIN) => return Ok(()),
                Err(error @ (Errno::INVAL | Errno::BADF | Errno::NOTSOCK)) => return Err(error),
                Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => self.pause(now),
                // This connection ended before it was taken; the next one may be whole.
                Err(_) => {}
            }
        }
        Ok(())
    }

    fn pause(&mut self, now: Instant) {
        self.resume_at = Some(now + self.backoff.next(&mut self.random));
    }

    /// Joins an accepted connection to `otlp`, or keeps it until that works.
    fn connect(&mut self, tcp: OwnedFd, now: Instant) {
        let index = self.connections.iter().position(Option::is_none).unwrap_or(self.connections.len());
        match self.dial(index, &tcp) {
            Ok(otlp) => {
                let connection = Connection { tcp, otlp, up: Flow::default(), down: Flow::default() };
                match self.connections.get_mut(index) {
                    Some(free) => *free = Some(connection),
                    None => self.connections.push(Some(connection)),
                }
                self.live += 1;
                self.backoff.reset();
                self.complained = None;
            }
            Err(error) => {
                if self.complained != Some(error) {
                    self.complained = Some(error);
                    let dir = self.dir.to_string_lossy();
                    say(&["cannot relay to ", &dir, "/otlp: ", &why(error), "; connections wait, trying again"]);
                }
                self.parked = Some(tcp);
                self.pause(now);
            }
        }
    }

    /// Connects to `otlp` and has both sockets watched.
    fn dial(&self, index: usize, tcp: &OwnedFd) -> Result<OwnedFd, Errno> {
        let otlp = ctl::connect(&ctl::open_dir(&self.dir)?, "otlp", SocketType::STREAM)?;
        let edges = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        let token = |side: usize| EventData::new_u64(u64::try_from(2 * index + side).unwrap_or(u64::MAX));
        epoll::add(&self.events, &otlp, token(OTLP), edges)?;
        // What splice() brings is sent at once: waiting for more would delay every answer by the peer's delayed ACK.
        let _ = sockopt::set_tcp_nodelay(tcp, true);
        epoll::add(&self.events, tcp, token(TCP), edges)?;
        Ok(otlp)
    }

    /// Gives one connection its turn, and ends it when both directions are done.
    fn pump(&mut self, index: usize, nobody_reads: bool) {
        let Some(entry) = self.connections.get_mut(index) else { return };
        let Some(connection) = entry else { return };
        let Connection { tcp, otlp, up, down } = connection;
        let up_has_more = up.pump(tcp, otlp, &mut self.spare);
        let down_has_more = down.pump(otlp, tcp, &mut self.spare);
        if nobody_reads {
            up.done = true;
        }
        if up.done && down.done {
            *entry = None;
            self.live -= 1;
        } else if (up_has_more || down_has_more) && !self.unfinished.contains(&index) {
            self.unfinished.push(index);
        }
    }
}

impl Flow {
    /// Moves bytes until nothing moves (false) or the turn is over (true).
    fn pump(&mut self, from: &OwnedFd, to: &OwnedFd, spare: &mut Vec<Pipe>) -> bool {
        for _ in 0..CHUNKS_A_TURN {
            if self.done {
                return false;
            }
            match self.step(from, to, spare) {
                Ok(()) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.put_back(spare);
                    return false;
                }
                // End of file, or either side broke. The other direction goes on: an answer may be under way.
                Err(_) => {
                    self.put_back(spare);
                    self.pipe = None;
                    self.done = true;
                    let _ = rustix::net::shutdown(to, Shutdown::Write);
                }
            }
        }
        !self.done
    }

    /// One chunk into the pipe, or out of it. End of file is an error of its own.
    fn step(&mut self, from: &OwnedFd, to: &OwnedFd, spare: &mut Vec<Pipe>) -> Result<(), Errno> {
        let pipe = match self.pipe.take().or_else(|| spare.pop()) {
            Some(pipe) => self.pipe.insert(pipe),
            None => self.pipe.insert(Pipe::new()?),
        };
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        if self.buffered == 0 {
            self.buffered = splice(from, None, &pipe.write, None, CHUNK_BYTES, flags)?;
            if self.buffered == 0 {
                return Err(END_OF_FILE);
            }
        } else {
            let sent = splice(&pipe.read, None, to, None, self.buffered, flags)?;
            self.buffered = self.buffered.saturating_sub(sent);
        }
        Ok(())
    }

    /// An empty pipe serves whoever comes next.
    fn put_back(&mut self, spare: &mut Vec<Pipe>) {
        if self.buffered == 0 && spare.len() < SPARE_PIPES {
            spare.extend(self.pipe.take());
        } else if self.buffered == 0 {
            self.pipe = None;
        }
    }
}

/// Which socket of a connection an edge is of.
const TCP: usize = 0;
const OTLP: usize = 1;

/// What no splice() returns.
const END_OF_FILE: Errno = Errno::NODATA;

impl Pipe {
    fn new() -> Result<Self, Errno> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        Ok(Self { read, write })
    }
}

/// Raises the limit of descriptors to what a full relay needs, and says how many connections fit below what it is then.
fn room_for_descriptors() -> usize {
    let needed = u64::try_from(CONNECTIONS_MAX * FDS_PER_CONNECTION + FDS_OF_THE_REST).unwrap_or(u64::MAX);
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.unwrap_or(u64::MAX).min(needed);
    // None is no limit. Failing leaves what there was, which is counted.
    if limit.current.is_some_and(|current| current < wanted) {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum });
    }
    let fds = getrlimit(Resource::Nofile).current.unwrap_or(needed).min(needed);
    let fds = usize::try_from(fds).unwrap_or(usize::MAX);
    (fds.saturating_sub(FDS_OF_THE_REST) / FDS_PER_CONNECTION).max(1)
}

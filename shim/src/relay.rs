//! Copying bytes between the pod's loopback and the gateway's `otlp` socket, where descriptors cannot be passed.
//!
//! Owns the relayed connections. It never looks at a byte: splice() moves pages through a pipe, at most [`CHUNK_BYTES`]
//! at a time and direction, so a side that does not read stops the other side's sender and nothing grows. A connection is
//! accepted only after `otlp` has been dialled for it: until then it waits in the kernel's backlog, and nobody is reset. It
//! ends when both directions have; each passes on its end of file and lets the other finish.
//!
//! ```text
//! pump    pipe empty: from -> pipe     0 bytes or an error -> shut down `to` for writing, done
//!         pipe full:  pipe -> to       an error            -> drop what is in the pipe, done
//!         nothing moves: wait for the next edge; too much moves: let the others have a turn
//! ```

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{Shutdown, SocketFlags, SocketType, shutdown, sockopt};
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

use crate::backoff::Retry;
use crate::ctl;
use crate::say::{complain, why};

/// Connections at a time, twice what a tenant may have by default; what is more waits in the backlog. Each takes six
/// descriptors (two sockets, two pipes), which stays below the usual limit of 1,024.
const CONNECTIONS_MAX: usize = 128;
/// In flight in one direction. With both directions of all connections stalled this is a quarter of the container's 16 MiB.
const CHUNK_BYTES: usize = 16 * 1024;
/// Chunks that one connection moves before the others get their turn.
const CHUNKS_A_TURN: usize = 16;
/// Both directions of a socket, each change once.
const EDGES: EventFlags = EventFlags::IN.union(EventFlags::OUT).union(EventFlags::RDHUP).union(EventFlags::ET);

/// All relayed connections.
#[derive(Debug)]
pub(crate) struct Relay {
    dir: PathBuf,
    /// Edges of all connections; itself watched by the loop of `run`.
    events: OwnedFd,
    connections: BTreeMap<u64, Connection>,
    last_id: u64,
    /// While it is set, nothing is accepted.
    resume: Retry,
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
#[derive(Debug)]
struct Flow {
    into: OwnedFd,
    out: OwnedFd,
    buffered: usize,
    done: bool,
}

impl Relay {
    pub(crate) fn new(dir: PathBuf, seed: u64) -> Result<Self, Errno> {
        Ok(Self {
            dir,
            events: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            connections: BTreeMap::new(),
            last_id: 0,
            resume: Retry::new(10, 1000, seed),
            complained: None,
        })
    }

    /// Readable when [`Relay::turn`] has something to do.
    pub(crate) fn events(&self) -> &OwnedFd {
        &self.events
    }

    /// When accepting goes on although nothing happened.
    pub(crate) fn resumes_at(&self) -> Option<Instant> {
        self.resume.at
    }

    /// Whether one more connection can be taken now.
    pub(crate) fn has_room(&mut self, now: Instant) -> bool {
        self.resume.take_due(now);
        self.resume.at.is_none() && self.connections.len() < CONNECTIONS_MAX
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.connections.is_empty()
    }

    /// Moves what can be moved.
    pub(crate) fn turn(&mut self) {
        let mut edges = Vec::with_capacity(32);
        if epoll::wait(&self.events, spare_capacity(&mut edges), Some(&Timespec::default())).is_ok() {
            for edge in edges {
                let (token, flags) = (edge.data.u64(), edge.flags);
                // Both ends of `otlp` are shut: without this a client that says nothing more would keep its place for ever.
                self.pump(token / 2, token % 2 == OTLP && flags.contains(EventFlags::HUP));
            }
        }
    }

    /// Takes one connection of a listener, once `otlp` is there for it. An error is the listener's end.
    pub(crate) fn accept(&mut self, listener: &OwnedFd, now: Instant) -> Result<(), Errno> {
        if !self.has_room(now) {
            return Ok(());
        }
        let dialled = ctl::open_dir(&self.dir).and_then(|dir| ctl::connect(&dir, "otlp", SocketType::STREAM));
        let joined = dialled.and_then(|otlp| Ok((otlp, Flow::new()?, Flow::new()?)));
        let (otlp, up, down) = match joined {
            Ok(joined) => joined,
            Err(error) => {
                let dir = self.dir.to_string_lossy();
                let parts = ["cannot relay to ", &dir, "/otlp: ", &why(error), "; connections wait, trying again"];
                complain(&mut self.complained, error, &parts);
                self.resume.again(now, Duration::ZERO);
                return Ok(());
            }
        };
        self.complained = None;
        match rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(tcp) => self.join(Connection { tcp, otlp, up, down }),
            Err(Errno::INVAL) => return Err(Errno::INVAL),
            // Out of descriptors, or somebody else was faster.
            Err(_) => self.resume.again(now, Duration::ZERO),
        }
        Ok(())
    }

    fn join(&mut self, connection: Connection) {
        self.resume.reset();
        // What splice() brings is sent at once: waiting for more would delay every answer by the peer's delayed ACK.
        let _ = sockopt::set_tcp_nodelay(&connection.tcp, true);
        self.last_id += 1;
        for (socket, side) in [(&connection.tcp, TCP), (&connection.otlp, OTLP)] {
            if epoll::add(&self.events, socket, EventData::new_u64(2 * self.last_id + side), EDGES).is_err() {
                return; // Out of memory: this connection ends here.
            }
        }
        self.connections.insert(self.last_id, connection);
    }

    /// Gives one connection its turn, and ends it when both directions are done.
    fn pump(&mut self, id: u64, nobody_reads: bool) {
        let Some(Connection { tcp, otlp, up, down }) = self.connections.get_mut(&id) else { return };
        let (up_has_more, down_has_more) = (up.pump(tcp, otlp), down.pump(otlp, tcp));
        up.done |= nobody_reads;
        if up.done && down.done {
            self.connections.remove(&id);
        } else if up_has_more || down_has_more {
            // The turn is over before the work is: asking again for the same edges brings those that are there already.
            let _ = epoll::modify(&self.events, tcp, EventData::new_u64(2 * id + TCP), EDGES);
        }
    }
}

impl Flow {
    fn new() -> Result<Self, Errno> {
        let (out, into) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // All shims of a user share the kernel's budget of pipe pages. Where it is spent already the pipe is smaller yet.
        let _ = fcntl_setpipe_size(&into, CHUNK_BYTES);
        Ok(Self { into, out, buffered: 0, done: false })
    }

    /// Moves bytes until nothing moves (false) or the turn is over (true).
    fn pump(&mut self, from: &OwnedFd, to: &OwnedFd) -> bool {
        for _ in 0..CHUNKS_A_TURN {
            if self.done {
                return false;
            }
            match self.step(from, to) {
                Ok(()) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return false,
                // End of file, or either side broke. The other direction goes on: an answer may be under way.
                Err(_) => {
                    self.done = true;
                    let _ = shutdown(to, Shutdown::Write);
                }
            }
        }
        !self.done
    }

    /// One chunk into the pipe, or out of it. End of file is an error of its own.
    fn step(&mut self, from: &OwnedFd, to: &OwnedFd) -> Result<(), Errno> {
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        if self.buffered == 0 {
            self.buffered = splice(from, None, &self.into, None, CHUNK_BYTES, flags)?;
            if self.buffered == 0 { Err(END_OF_FILE) } else { Ok(()) }
        } else {
            let sent = splice(&self.out, None, to, None, self.buffered, flags)?;
            self.buffered = self.buffered.saturating_sub(sent);
            Ok(())
        }
    }
}

/// Which socket of a connection an edge is of.
const TCP: u64 = 0;
const OTLP: u64 = 1;

/// What no splice() returns.
const END_OF_FILE: Errno = Errno::NODATA;

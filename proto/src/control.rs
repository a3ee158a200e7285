//! The control protocol: how a pod's shim hands its listening sockets to the gateway, and gets them back.
//!
//! Owns the bytes of each message on `ctl`. It never reads or writes a socket, never sees a file descriptor, and trusts
//! nothing that it decodes: both ends may be hostile, and no input makes it panic or allocate more than a packet holds.
//!
//! `ctl` is a Unix socket of type SOCK_SEQPACKET: one message is one packet of at most [`MESSAGE_BYTES_MAX`] bytes, and
//! carries at most one file descriptor (SCM_RIGHTS). All numbers are in network order.
//!
//! ```text
//! message   magic u8 = 0x50 'P' | encoding u8 = 1 | kind u8 | reserved u8, sent as 0 and ignored | id u32 | field ...
//! field     length u16 | that many bytes, which hold one of
//!             u8, u16, u32, u64   exactly so many bytes
//!             text                UTF-8, at most 1,024 bytes
//!             address             4 | ipv4 [u8; 4] | port u16    or    6 | ipv6 [u8; 16] | port u16
//!             ports               u16 ..., at most 8
//!
//! shim to gateway
//!   0x01 HELLO   { version u16, shim_version text, instance u64, capabilities u32 }          first on a connection
//!   0x02 DONATE  { id, address }                         + a listening socket, bound to that address
//!   0x03 CONN    { id, listener address }                + a connection accepted there; each costs one CREDIT
//!   0x04 READY   { }                                     everything that the shim holds has been offered
//!   0x05 DIALED  { id, status u8: 0 | 1, error text }    + the connection when the status is 0; error only when it is 1
//!   0x06 PONG    { }
//!   0x07 BYE     { id }                                  the pod ends: serve what waits in the backlog, then ACK
//!
//! gateway to shim
//!   0x81 WELCOME { version u16, ports, mode u8: 1 donate | 2 conn | 3 relay }
//!   0x82 RETURN  { address }                             + a listening socket that the gateway holds for this pod
//!   0x83 RETURNED{ }                                     no more RETURN follows
//!   0x84 ACK     { id }                                  the request with this id is done
//!   0x85 NACK    { id, code u16, reason text }           it is not, or no longer; 0 is the id of HELLO
//!   0x86 CREDIT  { connections u32 }                     so many more CONN
//!   0x87 DIAL    { id, port u16 }                        connect to that loopback port in the pod, answer DIALED
//!   0x88 MODE    { mode u8 }                             from now on; only modes that HELLO's capabilities name
//!   0x89 HANDOFF { }                                     the gateway leaves: keep everything, wait for end of file
//!   0x8a PING    { }
//! ```
//!
//! **Order**: HELLO is answered by WELCOME, RETURN for each listener that is held, RETURNED. The shim may DONATE from WELCOME
//! on, what was returned it need not; READY ends its list. Later donations need no READY. MODE donate makes the shim offer
//! all that it holds again, ended by READY; a socket that is known already is acknowledged and its copy closed.
//!
//! The id is 0 where the table names none. **Compatibility**: a kind that the receiver does not know decodes to `None`,
//! and it closes the descriptor that came along; bytes after the last known field are ignored, so that a later version
//! may add fields; a field is never removed or changed. HELLO carries the highest version that the shim speaks, WELCOME
//! the lower of the two ([`negotiate`]); a version that is too old is refused with a NACK that says so.

use std::fmt;
use std::net::SocketAddr;

pub use crate::wire::{DecodeError, MESSAGE_BYTES_MAX, PORTS_MAX, TEXT_BYTES_MAX};
use crate::wire::{Reader, Writer};

const MAGIC: u8 = b'P';

/// The highest version of the protocol that this crate speaks.
pub const VERSION: u16 = 1;

/// The lowest version that it still speaks.
pub const OLDEST_VERSION: u16 = 1;

/// The version to speak with a peer whose highest is `theirs`, or why there is none.
pub fn negotiate(theirs: u16) -> Result<u16, TooOld> {
    match theirs.min(VERSION) {
        version if version < OLDEST_VERSION => Err(TooOld { theirs }),
        version => Ok(version),
    }
}

/// The peer speaks only versions that this side has given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooOld {
    /// The highest that the peer speaks.
    pub theirs: u16,
}

impl fmt::Display for TooOld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { theirs } = self;
        write!(f, "control protocol version {theirs} is too old, at least {OLDEST_VERSION} is needed: upgrade the peer")
    }
}

impl std::error::Error for TooOld {}

/// A message from the shim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToGateway {
    /// First on a connection, answered by WELCOME.
    Hello(Hello),
    /// Offers a listening socket, which comes along; answered by ACK or NACK.
    Donate {
        /// Echoed by the answer.
        id: u32,
        /// What the socket is bound to. A claim: the receiver asks the socket.
        address: SocketAddr,
    },
    /// Hands over an accepted connection, which comes along.
    Conn {
        /// Echoed by the answer.
        id: u32,
        /// Where it was accepted.
        listener: SocketAddr,
    },
    /// Everything that the shim holds has been offered.
    Ready,
    /// Answers DIAL; the connection comes along when there is no error.
    Dialed {
        /// Of the DIAL.
        id: u32,
        /// Why there is no connection.
        error: Option<String>,
    },
    /// Answers PING.
    Pong,
    /// The pod ends. Acknowledged after the backlog has been served.
    Bye {
        /// Echoed by the answer.
        id: u32,
    },
}

/// What a shim says about itself. None of it is an identity: that is the path that was connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The highest version of the protocol that it speaks.
    pub version: u16,
    /// For people.
    pub shim_version: String,
    /// Differs for each start of a shim, so that a restart can be told from a reconnect.
    pub instance: u64,
    /// What it can do.
    pub capabilities: Capabilities,
}

/// A message from the gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToShim {
    /// Answers HELLO.
    Welcome(Welcome),
    /// Gives back a listening socket, which comes along.
    Return {
        /// What it is bound to. A claim: the receiver asks the socket.
        address: SocketAddr,
    },
    /// No more RETURN follows.
    Returned,
    /// The request is done.
    Ack {
        /// Of the request.
        id: u32,
    },
    /// The request is refused.
    Nack(Nack),
    /// The shim may hand over so many more connections.
    Credit {
        /// Added to what is left.
        connections: u32,
    },
    /// Asks for a connection to a loopback port of the pod.
    Dial {
        /// Echoed by DIALED.
        id: u32,
        /// In the pod.
        port: u16,
    },
    /// Changes how connections reach the gateway.
    Mode {
        /// From now on.
        mode: Mode,
    },
    /// The gateway leaves in good order; a successor will come to the same path.
    Handoff,
    /// Asks for a PONG.
    Ping,
}

/// What the gateway asks of a shim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// The version that both speak from here.
    pub version: u16,
    /// The ports that may be donated, at most [`PORTS_MAX`].
    pub ports: Vec<u16>,
    /// How connections reach the gateway.
    pub mode: Mode,
}

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nack {
    /// Of the request; 0 for HELLO.
    pub id: u32,
    /// For the program.
    pub code: NackCode,
    /// For people: what is wrong and what to do.
    pub reason: String,
}

/// How connections get from the pod's loopback to the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// The gateway accepts on the donated listeners: no process between.
    Donate,
    /// The shim accepts and hands over each connection.
    Conn,
    /// The shim accepts and copies bytes to `otlp`.
    Relay,
}

impl Mode {
    /// The word that `--mode`, logs and /tenants use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Donate => "donate",
            Self::Conn => "conn",
            Self::Relay => "relay",
        }
    }

    fn to_wire(self) -> u8 {
        match self {
            Self::Donate => 1,
            Self::Conn => 2,
            Self::Relay => 3,
        }
    }

    fn from_wire(byte: u8) -> Result<Self, DecodeError> {
        match byte {
            1 => Ok(Self::Donate),
            2 => Ok(Self::Conn),
            3 => Ok(Self::Relay),
            _ => Err(DecodeError::Value),
        }
    }
}

/// What a shim can do, as a set. Bits that this version does not know are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities(pub u32);

impl Capabilities {
    /// Passes listening sockets.
    pub const DONATE: Self = Self(1);
    /// Passes accepted connections.
    pub const CONN: Self = Self(1 << 1);
    /// Copies bytes.
    pub const RELAY: Self = Self(1 << 2);
    /// Connects to ports of the pod for the gateway.
    pub const DIAL: Self = Self(1 << 3);

    /// Whether all of `other` is in this set.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether the shim can work in this mode.
    pub fn allows(self, mode: Mode) -> bool {
        self.contains(match mode {
            Mode::Donate => Self::DONATE,
            Mode::Conn => Self::CONN,
            Mode::Relay => Self::RELAY,
        })
    }
}

impl std::ops::BitOr for Capabilities {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Why a request is refused, for the program. The numbers are never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NackCode {
    /// The descriptor is not a listening TCP socket.
    NotAListener,
    /// It is bound to something else than a loopback address.
    NotLoopback,
    /// WELCOME does not name its port.
    PortNotOffered,
    /// It belongs to another network namespace than the control connection.
    WrongNamespace,
    /// It belongs to the gateway's or the host's network namespace.
    OwnNamespace,
    /// Another tenant is served in this network namespace.
    NamespaceTaken,
    /// The tenant has as many listeners as it may have.
    TooMany,
    /// This gateway does not do that.
    Unsupported,
    /// The tenant is being drained.
    Draining,
    /// Too many requests of this kind.
    RateLimited,
    /// No descriptor arrived: it was left out, or the kernel or a security module cut it off (MSG_CTRUNC). Relay.
    FdMissing,
    /// The shim's version of the protocol is too old.
    VersionTooOld,
    /// The request is not allowed at this point, for example DONATE before HELLO.
    OutOfOrder,
    /// A listener that was acknowledged under this id cannot be accepted from any more (somebody shut it down): the
    /// gateway has let go of it. Close it, bind anew, donate. Sent when the time for that has come.
    ListenerDead,
    /// A code of a later version, as it came.
    Other(u16),
}

/// Each code and its number on the wire.
const NACK_CODES: [(NackCode, u16); 14] = [
    (NackCode::NotAListener, 1),
    (NackCode::NotLoopback, 2),
    (NackCode::PortNotOffered, 3),
    (NackCode::WrongNamespace, 4),
    (NackCode::OwnNamespace, 5),
    (NackCode::NamespaceTaken, 6),
    (NackCode::TooMany, 7),
    (NackCode::Unsupported, 8),
    (NackCode::Draining, 9),
    (NackCode::RateLimited, 10),
    (NackCode::FdMissing, 11),
    (NackCode::VersionTooOld, 12),
    (NackCode::OutOfOrder, 13),
    (NackCode::ListenerDead, 14),
];

impl NackCode {
    fn to_wire(self) -> u16 {
        match self {
            Self::Other(number) => number,
            named => NACK_CODES.iter().find(|(code, _)| *code == named).map_or(0, |(_, number)| *number),
        }
    }

    fn from_wire(number: u16) -> Self {
        NACK_CODES.iter().find(|(_, known)| *known == number).map_or(Self::Other(number), |(code, _)| *code)
    }
}

impl ToGateway {
    /// The packet. At most [`MESSAGE_BYTES_MAX`] bytes, whatever the fields hold.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Hello(hello) => Writer::new(MAGIC, 0x01, 0)
                .u16(hello.version)
                .text(&hello.shim_version)
                .u64(hello.instance)
                .u32(hello.capabilities.0)
                .finish(),
            Self::Donate { id, address } => Writer::new(MAGIC, 0x02, *id).address(*address).finish(),
            Self::Conn { id, listener } => Writer::new(MAGIC, 0x03, *id).address(*listener).finish(),
            Self::Ready => Writer::new(MAGIC, 0x04, 0).finish(),
            Self::Dialed { id, error: None } => Writer::new(MAGIC, 0x05, *id).u8(0).text("").finish(),
            Self::Dialed { id, error: Some(error) } => Writer::new(MAGIC, 0x05, *id).u8(1).text(error).finish(),
            Self::Pong => Writer::new(MAGIC, 0x06, 0).finish(),
            Self::Bye { id } => Writer::new(MAGIC, 0x07, *id).finish(),
        }
    }

    /// Reads one packet. `None`: a kind that this version does not know; ignore it and close its descriptor.
    pub fn decode(packet: &[u8]) -> Result<Option<Self>, DecodeError> {
        let mut from = Reader::new(MAGIC, packet)?;
        let id = from.id;
        Ok(Some(match from.kind {
            0x01 => Self::Hello(Hello {
                version: from.u16()?,
                shim_version: from.text()?,
                instance: from.u64()?,
                capabilities: Capabilities(from.u32()?),
            }),
            0x02 => Self::Donate { id, address: from.address()? },
            0x03 => Self::Conn { id, listener: from.address()? },
            0x04 => Self::Ready,
            0x05 => match (from.u8()?, from.text()?) {
                (0, _) => Self::Dialed { id, error: None },
                (1, error) => Self::Dialed { id, error: Some(error) },
                _ => return Err(DecodeError::Value),
            },
            0x06 => Self::Pong,
            0x07 => Self::Bye { id },
            _ => return Ok(None),
        }))
    }

    /// Whether a descriptor comes along. One that comes with any other message is closed unused.
    pub fn carries_fd(&self) -> bool {
        matches!(self, Self::Donate { .. } | Self::Conn { .. } | Self::Dialed { error: None, .. })
    }
}

impl ToShim {
    /// The packet. At most [`MESSAGE_BYTES_MAX`] bytes, whatever the fields hold.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Welcome(welcome) => Writer::new(MAGIC, 0x81, 0)
                .u16(welcome.version)
                .ports(&welcome.ports)
                .u8(welcome.mode.to_wire())
                .finish(),
            Self::Return { address } => Writer::new(MAGIC, 0x82, 0).address(*address).finish(),
            Self::Returned => Writer::new(MAGIC, 0x83, 0).finish(),
            Self::Ack { id } => Writer::new(MAGIC, 0x84, *id).finish(),
            Self::Nack(nack) => Writer::new(MAGIC, 0x85, nack.id).u16(nack.code.to_wire()).text(&nack.reason).finish(),
            Self::Credit { connections } => Writer::new(MAGIC, 0x86, 0).u32(*connections).finish(),
            Self::Dial { id, port } => Writer::new(MAGIC, 0x87, *id).u16(*port).finish(),
            Self::Mode { mode } => Writer::new(MAGIC, 0x88, 0).u8(mode.to_wire()).finish(),
            Self::Handoff => Writer::new(MAGIC, 0x89, 0).finish(),
            Self::Ping => Writer::new(MAGIC, 0x8a, 0).finish(),
        }
    }

    /// Reads one packet. `None`: a kind that this version does not know; ignore it and close its descriptor.
    pub fn decode(packet: &[u8]) -> Result<Option<Self>, DecodeError> {
        let mut from = Reader::new(MAGIC, packet)?;
        let id = from.id;
        Ok(Some(match from.kind {
            0x81 => Self::Welcome(Welcome {
                version: from.u16()?,
                ports: from.ports()?,
                mode: Mode::from_wire(from.u8()?)?,
            }),
            0x82 => Self::Return { address: from.address()? },
            0x83 => Self::Returned,
            0x84 => Self::Ack { id },
            0x85 => Self::Nack(Nack { id, code: NackCode::from_wire(from.u16()?), reason: from.text()? }),
            0x86 => Self::Credit { connections: from.u32()? },
            0x87 => Self::Dial { id, port: from.u16()? },
            0x88 => Self::Mode { mode: Mode::from_wire(from.u8()?)? },
            0x89 => Self::Handoff,
            0x8a => Self::Ping,
            _ => return Ok(None),
        }))
    }

    /// Whether a descriptor comes along. One that comes with any other message is closed unused.
    pub fn carries_fd(&self) -> bool {
        matches!(self, Self::Return { .. })
    }
}

#[cfg(test)]
mod tests;

//! The custody protocol: how the node's CSI driver tells the gateway which pods there are, and hands it their sockets.
//!
//! Owns the bytes of each message between `pillion csi` and `pillion run`. It never reads or writes a socket and never sees a
//! file descriptor. Both ends belong to Pillion, but the gateway reads what pods send and the driver runs as root: so the
//! driver takes no name and no path from a message, only descriptors, and asks the kernel what they are.
//!
//! The driver listens on a Unix socket of type SOCK_SEQPACKET; one message is one packet of at most [`MESSAGE_BYTES_MAX`]
//! bytes, with at most one file descriptor (SCM_RIGHTS). Header and fields are those of [`crate::control`], with another
//! first byte; `name` is a text of at most [`NAME_BYTES_MAX`] bytes.
//!
//! ```text
//! message   magic u8 = 0x43 'C' | encoding u8 = 1 | kind u8 | reserved u8 | id u32 = 0 | field ...
//!
//! gateway to driver
//!   0x01 HELLO       { version u16, gateway_version name, instance u64 }   + the lock file of the data directory, locked
//!   0x02 RETURN      { }                                                   + a listening `ctl` or `otlp` that it holds
//!   0x03 READY       { }                                                   everything that it holds has been returned
//!   0x04 ATTACHED    { uid name, error text }                              the pod is served; or why not, in words
//!
//! driver to gateway
//!   0x81 WELCOME     { version u16, driver_version name }
//!   0x82 VOLUME      { uid name, namespace name, pod name, service_account name, ports }  + the pod's listening `ctl`
//!   0x83 OTLP        { uid name }                                          + the pod's listening `otlp`; after its VOLUME
//!   0x84 UNPUBLISHED { uid name }                                          the pod is gone
//!   0x85 READY       { }                                                   every volume has been told
//!   0x86 REFUSED     { reason text }                                       in place of WELCOME; the driver hangs up
//! ```
//!
//! **Order**: HELLO is answered by WELCOME or REFUSED. Then the gateway lists what it holds, ended by READY; then the driver
//! lists every volume, in the order in which they were published (of two pods of one name, one of them deleted by force, the
//! later told is the newer one), ended by READY; from there on it tells what changes. After any reconnect the whole state is told
//! again. A socket that arrives twice is recognised by SO_COOKIE, and the second copy closed; one with another cookie than
//! the one before replaces it: the driver has bound anew because nobody held the old one.
//!
//! **Who gets the sockets**: the lock file's descriptor is the proof. The driver compares it with the file in the data
//! directory that it prepared, and takes the lock through it, which succeeds only on the open file description that holds
//! it (flock(2)). A newer holder supersedes the connection of an older one.
//!
//! **Whose a returned socket is**: sockets are bound under a name that holds the pod's uid ([`bound_name`]) and renamed to
//! `ctl` or `otlp`; getsockname(2) keeps telling the former ([`parse_bound_name`]).
//!
//! Compatibility is that of [`crate::control`]: unknown kinds decode to `None`, later versions may add fields.

pub use crate::wire::{DecodeError, MESSAGE_BYTES_MAX, NAME_BYTES_MAX, PORTS_MAX, TEXT_BYTES_MAX};
use crate::wire::{Reader, Writer};

const MAGIC: u8 = b'C';

/// The highest version of the protocol that this crate speaks.
pub const VERSION: u16 = 1;

/// The lowest version that it still speaks.
pub const OLDEST_VERSION: u16 = 1;

/// The version to speak with a peer whose highest is `theirs`; `None` if it is too old.
pub fn negotiate(theirs: u16) -> Option<u16> {
    Some(theirs.min(VERSION)).filter(|version| *version >= OLDEST_VERSION)
}

/// A message from the gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToDriver {
    /// First on a connection; the locked lock file comes along.
    Hello {
        /// The highest version of the protocol that it speaks.
        version: u16,
        /// For people.
        gateway_version: String,
        /// Differs for each start: its pid is 1 in every container.
        instance: u64,
    },
    /// Gives back a listening socket, which comes along.
    Return,
    /// No more RETURN follows.
    Ready,
    /// What became of a volume.
    Attached {
        /// The pod's.
        uid: String,
        /// Why it is not served.
        error: Option<String>,
    },
}

/// A message from the CSI driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToGateway {
    /// Answers HELLO.
    Welcome {
        /// The version that both speak from here.
        version: u16,
        /// For people.
        driver_version: String,
    },
    /// A pod to serve; its `ctl` comes along.
    Volume(Volume),
    /// The pod's `otlp`, which comes along.
    Otlp {
        /// The pod's.
        uid: String,
    },
    /// The pod is gone.
    Unpublished {
        /// The pod's.
        uid: String,
    },
    /// Every volume has been told.
    Ready,
    /// The gateway does not get the sockets.
    Refused {
        /// For people: what is wrong and what to do.
        reason: String,
    },
}

/// A pod, as the kubelet asserts it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub pod: String,
    /// `spec.serviceAccountName`.
    pub service_account: String,
    /// The loopback ports that its shim offers: gRPC and HTTP. The pod's own wish, checked for being ports.
    pub ports: Vec<u16>,
}

impl ToDriver {
    /// The packet. At most [`MESSAGE_BYTES_MAX`] bytes, whatever the fields hold.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Hello { version, gateway_version, instance } => {
                Writer::new(MAGIC, 0x01, 0).u16(*version).name(gateway_version).u64(*instance).finish()
            }
            Self::Return => Writer::new(MAGIC, 0x02, 0).finish(),
            Self::Ready => Writer::new(MAGIC, 0x03, 0).finish(),
            Self::Attached { uid, error } => {
                Writer::new(MAGIC, 0x04, 0).name(uid).text(error.as_deref().unwrap_or_default()).finish()
            }
        }
    }

    /// Reads one packet. `None`: a kind that this version does not know; ignore it and close its descriptor.
    pub fn decode(packet: &[u8]) -> Result<Option<Self>, DecodeError> {
        let mut from = Reader::new(MAGIC, packet)?;
        Ok(Some(match from.kind {
            0x01 => Self::Hello { version: from.u16()?, gateway_version: from.name()?, instance: from.u64()? },
            0x02 => Self::Return,
            0x03 => Self::Ready,
            0x04 => Self::Attached { uid: from.name()?, error: Some(from.text()?).filter(|error| !error.is_empty()) },
            _ => return Ok(None),
        }))
    }

    /// Whether a descriptor comes along. One that comes with any other message is closed unused.
    pub fn carries_fd(&self) -> bool {
        matches!(self, Self::Hello { .. } | Self::Return)
    }
}

impl ToGateway {
    /// The packet. At most [`MESSAGE_BYTES_MAX`] bytes, whatever the fields hold.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Welcome { version, driver_version } => {
                Writer::new(MAGIC, 0x81, 0).u16(*version).name(driver_version).finish()
            }
            Self::Volume(volume) => Writer::new(MAGIC, 0x82, 0)
                .name(&volume.uid)
                .name(&volume.namespace)
                .name(&volume.pod)
                .name(&volume.service_account)
                .ports(&volume.ports)
                .finish(),
            Self::Otlp { uid } => Writer::new(MAGIC, 0x83, 0).name(uid).finish(),
            Self::Unpublished { uid } => Writer::new(MAGIC, 0x84, 0).name(uid).finish(),
            Self::Ready => Writer::new(MAGIC, 0x85, 0).finish(),
            Self::Refused { reason } => Writer::new(MAGIC, 0x86, 0).text(reason).finish(),
        }
    }

    /// Reads one packet. `None`: a kind that this version does not know; ignore it and close its descriptor.
    pub fn decode(packet: &[u8]) -> Result<Option<Self>, DecodeError> {
        let mut from = Reader::new(MAGIC, packet)?;
        Ok(Some(match from.kind {
            0x81 => Self::Welcome { version: from.u16()?, driver_version: from.name()? },
            0x82 => Self::Volume(Volume {
                uid: from.name()?,
                namespace: from.name()?,
                pod: from.name()?,
                service_account: from.name()?,
                ports: from.ports()?,
            }),
            0x83 => Self::Otlp { uid: from.name()? },
            0x84 => Self::Unpublished { uid: from.name()? },
            0x85 => Self::Ready,
            0x86 => Self::Refused { reason: from.text()? },
            _ => return Ok(None),
        }))
    }

    /// Whether a descriptor comes along. One that comes with any other message is closed unused.
    pub fn carries_fd(&self) -> bool {
        matches!(self, Self::Volume(_) | Self::Otlp { .. })
    }
}

/// Which of a pod's two sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// SOCK_SEQPACKET: the control protocol.
    Ctl,
    /// SOCK_STREAM: relayed OTLP, and applications that can dial `unix:`.
    Otlp,
}

impl Kind {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Ctl, Self::Otlp];

    /// The name in the volume's directory.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ctl => "ctl",
            Self::Otlp => "otlp",
        }
    }
}

/// The name under which a socket is bound before it is renamed: `.ctl.UID`.
pub fn bound_name(kind: Kind, uid: &str) -> String {
    [".", kind.as_str(), ".", uid].concat()
}

/// Which socket a bound path, as getsockname(2) gives it, names. Only the last part of the path is looked at.
pub fn parse_bound_name(path: &[u8]) -> Option<(Kind, &str)> {
    let name = path.rsplit(|byte| *byte == b'/').next()?;
    let name = std::str::from_utf8(name).ok()?.trim_end_matches('\0').strip_prefix('.')?;
    let (kind, uid) = name.split_once('.')?;
    let kind = Kind::ALL.into_iter().find(|known| known.as_str() == kind)?;
    Some((kind, uid)).filter(|(_, uid)| is_uid(uid))
}

/// Whether a text may be a pod's uid: up to 64 letters, digits and hyphens, as in every path of the kubelet. What passes is
/// safe as a part of a file name.
pub fn is_uid(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

#[cfg(test)]
mod tests;

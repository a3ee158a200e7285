//! What the rest of the gateway sees of the configuration. Sizes are bytes, rates are per second.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::base::ledger::MemoryLimit;
use crate::base::{AckPolicy, Attribute, DestinationName, Signal, TenantName};

/// The whole of it.
#[derive(Debug, Clone)]
pub struct Config {
    /// This process and its machine.
    pub node: Node,
    /// The policy of a tenant that says nothing else.
    pub defaults: Policy,
    /// All backends, by name.
    pub destinations: BTreeMap<DestinationName, Destination>,
    /// Empty in a cluster: there tenants come from pods, with `defaults` for a policy.
    pub tenants: BTreeMap<TenantName, Tenant>,
}

/// `node:`
#[derive(Debug, Clone)]
pub struct Node {
    /// Queue, metadata, lock. Default `./pillion-data`.
    pub data_dir: PathBuf,
    /// The ledger's limit for intake. Default 256 MiB.
    pub memory_limit: u64,
    /// The log's limit. Default 10 GiB.
    pub disk_limit: u64,
    /// Of the data directory's filesystem: with less, data is refused. Default 15 % in a cluster, above the kubelet's eviction
    /// threshold, else 512 MiB.
    pub min_free: Option<MinFree>,
    /// Of the log, that one tenant's dead letters may take; the oldest go first. Default 8 MiB.
    pub dead_letters: u64,
    /// Data workers. `auto` is min(4, cores).
    pub workers: usize,
    /// Address of the admin server. Default 127.0.0.1:4380.
    pub admin: SocketAddr,
    /// `k8s.node.name`; absent where nobody attests one.
    pub name: Option<String>,
    /// Where the CSI driver tells which pods there are. With it this is the gateway of a node in a cluster.
    pub custody_socket: Option<PathBuf>,
}

/// `node.min_free`: `15%`, or a size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MinFree {
    /// Of the filesystem's size.
    Percent(u8),
    /// In bytes.
    Bytes(u64),
}

impl Node {
    /// As configured, or the default of the place.
    pub fn min_free(&self) -> MinFree {
        let usual = if self.custody_socket.is_some() { MinFree::Percent(15) } else { MinFree::Bytes(512 << 20) };
        self.min_free.unwrap_or(usual)
    }
}

/// What a tenant may do and what happens to its data. Every tenant has a whole one, merged from its levels.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// Guarantees and ceilings.
    pub limits: Limits,
    /// What an acknowledgement survives.
    pub ack: AckPolicy,
    /// Retention of the queue.
    pub queue: QueuePolicy,
    /// Attributes added to every resource.
    pub enrich: Enrich,
    /// Where each signal goes, by `Signal::index`. Empty: the signal is refused as unsupported.
    pub destinations: [Vec<DestinationName>; 3],
}

impl Policy {
    /// Where a signal goes.
    pub fn routes(&self, signal: Signal) -> &[DestinationName] {
        &self.destinations[signal.index()]
    }
}

/// `limits:`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Payload bytes per second, after decompression. Default 4 MiB; burst is the larger of four seconds' worth and one request.
    pub bytes_per_second: u64,
    /// Default 2,000.
    pub requests_per_second: u64,
    /// Open connections. Default 64.
    pub connections: u32,
    /// Intake memory. Default guarantee 512 KiB, ceiling 64 MiB.
    pub memory: MemoryLimit,
    /// Live bytes in the log. Default guarantee 32 MiB, ceiling 1 GiB.
    pub disk: MemoryLimit,
    /// One request, on the wire and after decompression. Default 64 MiB, never above the memory ceiling.
    pub max_request_bytes: u64,
}

/// `queue:`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueuePolicy {
    /// Records older than this are dropped and counted. Default 72 h.
    pub max_age: Duration,
    /// At the disk ceiling.
    pub on_full: OnFull,
}

/// `queue.on_full`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFull {
    /// UNAVAILABLE with a delay.
    Reject,
    /// Its own oldest undelivered records go, and are counted: `pillion_lost_items_total{reason="dropped_oldest"}`.
    DropOldest,
}

/// `enrich:`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Enrich {
    /// Static attributes, added where the resource has none of that key.
    pub attributes: Vec<Attribute>,
}

/// One backend.
#[derive(Debug, Clone)]
pub struct Destination {
    /// What it speaks, and where.
    pub kind: DestinationKind,
    /// Default none.
    pub compression: Compression,
    /// No request is larger, before compression. Default 4 MiB, a stock Collector's limit.
    pub max_message_bytes: u64,
    /// For `https` endpoints.
    pub tls: Tls,
    /// Sent with every request.
    pub headers: Vec<Header>,
    /// Deadline of one attempt. Default 10 s.
    pub timeout: Duration,
    /// `retry_on_failure:`
    pub retry: Retry,
    /// Requests in flight at once. Default 8.
    pub window: usize,
    /// Whether batches of different tenants may share a request. Default true.
    pub merge: bool,
    /// Namespaces that may use it; `*` is all.
    pub allow: Vec<String>,
    /// With which record of a tenant it begins, where it is new to one.
    pub start: StartAt,
}

/// `start`: what a destination gets of a tenant's signal that did not go there before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartAt {
    /// All that the queue still has of it.
    Oldest,
    /// What comes from then on.
    Tail,
}

/// `protocol:` and `endpoint:`
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DestinationKind {
    /// OTLP/gRPC to `http(s)://host:port`.
    Grpc {
        /// Scheme, host and port.
        endpoint: http::Uri,
    },
    /// OTLP/HTTP with protobuf bodies.
    Http {
        /// The full URL of each signal, by `Signal::index`.
        urls: [http::Uri; 3],
    },
    /// The embedded sink: for trying it out, and for tests.
    Sink,
}

/// `compression:`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// As is.
    None,
    /// Level 1.
    Gzip,
    /// Level 1.
    Zstd,
}

/// `tls:`
#[derive(Debug, Clone, Default)]
pub struct Tls {
    /// PEM; added to the bundled roots.
    pub ca_file: Option<PathBuf>,
    /// PEM; both or neither.
    pub cert_file: Option<PathBuf>,
    /// PEM.
    pub key_file: Option<PathBuf>,
    /// Instead of the endpoint's host.
    pub server_name: Option<String>,
}

/// `retry_on_failure:`; full jitter between zero and the interval. There is no end but the queue's retention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// Default 1 s.
    pub initial_interval: Duration,
    /// Default 30 s.
    pub max_interval: Duration,
}

/// A header of every request to a destination.
#[derive(Debug, Clone)]
pub struct Header {
    /// Its name.
    pub name: http::HeaderName,
    /// Its value, or where that is.
    pub value: HeaderSource,
}

/// Where a header's value comes from. Never shown: values may be credentials.
#[derive(Clone)]
pub enum HeaderSource {
    /// Written in the configuration, or from `${env:NAME}`.
    Literal(String),
    /// `${file:PATH}`, whole value, trailing line end cut off. Read again when it changes, and after a 401.
    File(PathBuf),
    /// Text around one `${file:PATH}`.
    Template {
        /// Before the file's contents.
        prefix: String,
        /// The file.
        file: PathBuf,
        /// After the file's contents.
        suffix: String,
    },
}

impl fmt::Debug for HeaderSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Literal(_) => f.write_str("Literal(…)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Template { file, .. } => f.debug_struct("Template").field("file", file).finish_non_exhaustive(),
        }
    }
}

/// One entry of `tenants:`.
#[derive(Debug, Clone)]
pub struct Tenant {
    /// Where `ctl` and `otlp` are made.
    pub socket_dir: PathBuf,
    /// `k8s.pod.uid` to attest.
    pub pod_uid: Option<String>,
    /// The ports its shim is told to offer.
    pub ports: Ports,
    /// Merged with the defaults.
    pub policy: Policy,
}

/// Loopback ports of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// Default 4317.
    pub grpc: u16,
    /// Default 4318.
    pub http: u16,
}

impl Default for Ports {
    fn default() -> Self {
        Self { grpc: 4317, http: 4318 }
    }
}

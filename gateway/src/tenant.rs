//! A pod's virtual sidecar: identity, policy, budgets, state, and the one task that polls all its connections.
//!
//! Owns placement on data workers and the registry. It never parses OTLP or HTTP (intake does) and never touches control
//! sockets (lifecycle does).

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::LocalBoxFuture;

use crate::base::handoff::Handoff;
use crate::base::ledger::Ledger;
use crate::base::stats::TenantStats;
use crate::base::{TenantId, TenantIdentity, TenantName};
use crate::config::Policy;
use crate::queue::{AppendError, Queue};

/// What tenants are built from.
#[derive(Debug, Clone)]
pub struct Deps {
    /// Where requests are appended and tenants registered.
    pub queue: Queue,
    /// Where ack memory goes.
    pub handoff: Arc<Handoff>,
    /// The node's budget for the memory of intake.
    pub ledger: Ledger,
    /// `k8s.node.name`, attested for tenants whose identity names no node.
    pub node_name: Option<String>,
}

/// How one connection is served, on the tenant's worker. Passed in by the composition root: `intake::serve`.
pub type Serve = fn(Accepted, Rc<Core>) -> LocalBoxFuture<'static, ()>;

/// The inside of a tenant, on its worker: what intake sees.
#[derive(Debug)]
pub struct Core {
    _todo: (),
}

/// Why a tenant cannot attach.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    /// Another pod of that name is attached: its uid differs. Detach it first.
    #[error("tenant {0} is attached under another pod uid")]
    NameTaken(TenantName),
    /// The queue cannot number it.
    #[error("registering the tenant: {0}")]
    Queue(#[from] AppendError),
    /// The workers have ended, or their inbox is full.
    #[error("the data workers take no tenant now")]
    Workers,
}

/// One tenant, for /tenants. Counters are since the gateway's start.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Snapshot {
    /// `namespace/name`.
    pub name: String,
    /// `k8s.pod.uid`.
    pub pod_uid: Option<String>,
    /// `serving`, `throttled` and so on.
    pub state: &'static str,
    /// The data worker it lives on.
    pub worker: usize,
    /// Open connections.
    pub connections: u32,
    /// Intake memory held now, in bytes.
    pub memory_used: u64,
    /// Nobody can take this away.
    pub memory_guarantee: u64,
    /// Never above this.
    pub memory_ceiling: u64,
    /// Items acknowledged, by `Signal::index`.
    pub accepted: [u64; 3],
    /// Items refused where they could be counted, by `Signal::index`.
    pub refused: [u64; 3],
    /// Requests refused, by `base::stats::Refusal as usize`.
    pub refused_requests: [u64; 7],
    /// Requests answered.
    pub requests: u64,
    /// Payload bytes acknowledged.
    pub accepted_bytes: u64,
    /// Attributes replaced by attested ones.
    pub overwritten: u64,
    /// Slices of its worker's time that it was given.
    pub slices: u64,
    /// The latest refusal, in words.
    pub last_refusal: Option<String>,
}

/// The outside of a tenant: what other threads hold. Cheap to clone through its `Arc`.
#[derive(Debug)]
pub struct Handle {
    _todo: (),
}

/// Permission for one connection: holds its place in `limits.connections` and its fixed charge in the ledger.
#[derive(Debug)]
pub struct ConnectionPermit {
    _todo: (),
}

/// A connection for a tenant, accepted by lifecycle.
#[derive(Debug)]
pub struct Accepted {
    /// Non-blocking, options already set.
    pub socket: OwnedFd,
    /// What it is.
    pub kind: SocketKind,
    /// Its place in the budgets.
    pub permit: ConnectionPermit,
}

/// What an accepted socket is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketKind {
    /// From a donated loopback listener.
    Tcp,
    /// From the tenant's `otlp` socket.
    Unix,
}

impl Handle {
    /// Its number in the log.
    pub fn id(&self) -> TenantId {
        todo!()
    }

    /// Who it is.
    pub fn identity(&self) -> &TenantIdentity {
        todo!()
    }

    /// Its present policy.
    pub fn policy(&self) -> Arc<Policy> {
        todo!()
    }

    /// Its counters.
    pub fn stats(&self) -> &Arc<TenantStats> {
        todo!()
    }

    /// A place for one more connection, or `None`: leave the connection in the kernel's backlog and ask again later.
    pub fn connection_permit(&self) -> Option<ConnectionPermit> {
        todo!()
    }

    /// Hands a connection to the tenant's worker. Never blocks; given back when the worker's inbox is full or gone.
    pub fn offer(&self, accepted: Accepted) -> Result<(), Accepted> {
        let _ = accepted;
        todo!()
    }

    /// Tells the tenant that its last listener is gone (BYE or unpublish): finish what is in flight, then idle.
    /// Resolves when no connection is left or at `deadline`.
    pub async fn drain(&self, deadline: tokio::time::Instant) {
        let _ = deadline;
        todo!()
    }
}

/// All tenants of the node, by name.
#[derive(Debug)]
pub struct Registry {
    _todo: (),
}

impl Registry {
    /// Starts `workers` data workers. Their threads end at [`Registry::close`].
    pub fn new(deps: Deps, workers: usize, serve: Serve) -> std::io::Result<Arc<Self>> {
        let _ = (deps, workers, serve);
        todo!()
    }

    /// Registers the tenant with the queue and places it on the least loaded worker. The same identity again gives the
    /// same handle, with the new policy applied. Blocking: not to be called on a runtime's own thread.
    pub fn attach(&self, identity: TenantIdentity, policy: Policy) -> Result<Arc<Handle>, AttachError> {
        let _ = (identity, policy);
        todo!()
    }

    /// Forgets a tenant whose connections were drained; those that are left are closed. Its queue outlives it.
    pub fn detach(&self, name: &TenantName) {
        let _ = name;
        todo!()
    }

    /// The tenant of that name.
    pub fn find(&self, name: &TenantName) -> Option<Arc<Handle>> {
        let _ = name;
        todo!()
    }

    /// Everything, sorted by name.
    pub fn all(&self) -> Vec<Arc<Handle>> {
        todo!()
    }

    /// Everything, for people, sorted by name.
    pub fn snapshot(&self) -> Vec<Snapshot> {
        todo!()
    }

    /// Whether every data worker answers within `patience`: what readiness asks.
    pub async fn responsive(&self, patience: Duration) -> bool {
        let _ = patience;
        todo!()
    }

    /// Grants no connection any more and drains every tenant. Resolves at `deadline` at the latest.
    pub async fn drain_all(&self, deadline: tokio::time::Instant) {
        let _ = deadline;
        todo!()
    }

    /// Ends the workers, closing what is left. Blocking.
    pub fn close(&self) {
        todo!()
    }
}

//! A pod's virtual sidecar: identity, policy, budgets, state, and the one task that polls all its connections.
//!
//! Owns placement on data workers and the registry. It never parses OTLP or HTTP (intake does) and never touches control
//! sockets (lifecycle does).

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::base::stats::TenantStats;
use crate::base::{TenantId, TenantIdentity, TenantName};
use crate::config::Policy;

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
    /// The tenant of that name.
    pub fn find(&self, name: &TenantName) -> Option<Arc<Handle>> {
        let _ = name;
        todo!()
    }

    /// Everything, sorted by name.
    pub fn all(&self) -> Vec<Arc<Handle>> {
        todo!()
    }
}

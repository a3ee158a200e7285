//! What the lifecycle needs of a tenant: a place for a connection, and somebody to take it.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::time::Instant;

use crate::base::TenantName;
use crate::tenant::{self, Accepted, ConnectionPermit, SocketKind};

/// A tenant, or a test's stand-in for one.
#[derive(Debug, Clone)]
pub(super) enum Door {
    Tenant(Arc<tenant::Handle>),
    #[cfg(test)]
    Double(Arc<super::tests::double::Double>),
}

/// A place for one connection.
#[derive(Debug)]
pub(super) enum Permit {
    Tenant(ConnectionPermit),
    #[cfg(test)]
    Double,
}

/// An accepted connection on its way to a tenant.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) socket: OwnedFd,
    pub(super) kind: SocketKind,
    pub(super) permit: Permit,
}

impl Door {
    pub(super) fn name(&self) -> TenantName {
        match self {
            Self::Tenant(tenant) => tenant.identity().name.clone(),
            #[cfg(test)]
            Self::Double(double) => double.name(),
        }
    }

    /// A place for one more connection, or `None`: leave it in the kernel's backlog and ask again later.
    pub(super) fn permit(&self) -> Option<Permit> {
        match self {
            Self::Tenant(tenant) => tenant.connection_permit().map(Permit::Tenant),
            #[cfg(test)]
            Self::Double(double) => double.permit().then_some(Permit::Double),
        }
    }

    /// Hands a connection over, or gives it back: the worker's inbox is full, or it has ended.
    pub(super) fn offer(&self, connection: Connection) -> Result<(), Connection> {
        let Connection { socket, kind, permit } = connection;
        match (self, permit) {
            (Self::Tenant(tenant), Permit::Tenant(permit)) => {
                tenant.offer(Accepted { socket, kind, permit }).map_err(|Accepted { socket, kind, permit }| {
                    Connection { socket, kind, permit: Permit::Tenant(permit) }
                })
            }
            #[cfg(test)]
            (Self::Double(double), permit) => double.offer(Connection { socket, kind, permit }),
            #[cfg(test)]
            (Self::Tenant(_), Permit::Double) => unreachable!("a permit goes back where it came from"),
        }
    }

    /// Resolves when the tenant has no connection left, or at the deadline.
    pub(super) fn drain(&self, deadline: Instant) -> BoxFuture<'static, ()> {
        match self.clone() {
            Self::Tenant(tenant) => Box::pin(async move { tenant.drain(deadline).await }),
            #[cfg(test)]
            Self::Double(double) => Box::pin(async move { double.drain(deadline).await }),
        }
    }
}

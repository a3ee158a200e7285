//! A pod's virtual sidecar: identity, policy, budgets, state, and the one task that polls all its connections.
//!
//! Owns placement on data workers and the registry. It never parses OTLP or HTTP (intake does, passed in as [`Serve`]) and
//! never touches control sockets (lifecycle does). A tenant ends with [`Registry::detach`], all of them with
//! [`Registry::close`].
//!
//! - `registry` finds tenants, places them on workers, drains them.
//! - `handle` is the outside of a tenant: what other threads hold.
//! - `worker` is a thread with a runtime; `actor` is the one task of a tenant on it; `pace` is its slice of time.
//! - `core` is the inside: budgets, and the way of a request to the queue; `admission` is what one request holds of them;
//!   `waiters` are requests that wait for a commit.
//! - `state` and `quota` decide, and are pure.

mod actor;
mod admission;
mod core;
mod handle;
mod pace;
mod quota;
mod refused;
mod registry;
mod state;
mod waiters;
mod worker;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::os::fd::OwnedFd;
use std::rc::Rc;

use futures_util::future::LocalBoxFuture;

pub use self::admission::Admission;
pub use self::core::Core;
pub use self::handle::{ConnectionPermit, Handle, Snapshot, budget};
pub use self::pace::{PIECE_BYTES, Pace};
pub use self::refused::Refused;
pub use self::registry::{AttachError, Deps, Registry};
pub use self::state::State;

/// How one connection is served, on the tenant's worker. Passed in by the composition root: `intake::serve`.
///
/// Runs within the tenant's one task. It must not block, and asks [`Core::pace`] between pieces of work.
pub type Serve = fn(Accepted, Rc<Core>) -> LocalBoxFuture<'static, ()>;

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

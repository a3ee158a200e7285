//! Answers people and Prometheus, from snapshots only.
//!
//! Owns the admin listeners and their connections. It holds no data of its own and cannot delay any: it runs on the control
//! runtime, and all that it reads are snapshots. It changes nothing but dead letters, for whoever may use the admin socket. It ends with [`Server::stop`].
//!
//! ```text
//! /livez /readyz /metrics    from wherever the address is reachable
//! / /tenants /sink           on a loopback address and the admin socket only: they show what pods sent
//! /queue                     on the admin socket only: it changes what is kept
//! ```
//!
//! - `server` accepts; `socket` is the admin socket, DATA_DIR/admin.sock; `guard` decides who may ask (Host header, loopback); `route` maps a path to an answer.
//! - `view` turns snapshots into what /tenants shows; `balance` closes the books; `html` is the table without a script.
//! - `queue` is what `pillion queue` asks, of a gateway that runs and of a directory at rest.
//! - `metrics` encodes snapshots for Prometheus; `process` reads what the kernel knows of this process.

mod answer;
mod balance;
mod guard;
mod html;
mod metrics;
mod process;
pub mod queue;
mod route;
mod server;
mod socket;
mod view;

#[cfg(test)]
mod testing;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::future::BoxFuture;

use crate::base::{DestinationName, TenantName};
use crate::export::DestinationSnapshot;
use crate::lifecycle::{self, SiteSnapshot};
use crate::sink::Sink;
use crate::{tenant, volumes};

pub use self::server::Server;
pub use self::socket::NAME as SOCKET_NAME;

/// Gives a present snapshot. Called on the control runtime for each request, so it must be quick and must not block.
pub type Provider<T> = Box<dyn Fn() -> T + Send + Sync>;

/// Where the figures come from. Filled by the composition root.
pub struct Sources {
    /// About the process itself.
    pub process: Process,
    /// Whether the gateway serves, and if not, why. May ask the data workers; it answers within a second.
    pub readiness: Box<dyn Fn() -> BoxFuture<'static, Readiness> + Send + Sync>,
    /// The attached tenants, in any order.
    pub tenants: Provider<Vec<TenantSource>>,
    /// All destinations.
    pub destinations: Provider<Vec<DestinationSnapshot>>,
    /// What became of the pods' volumes; `None` where there is no cluster.
    pub custody: Provider<Option<volumes::Snapshot>>,
    /// What the control sockets and acceptors did.
    pub lifecycle: Provider<Option<Arc<lifecycle::Counters>>>,
    /// The node's log.
    pub queue: Provider<crate::queue::Snapshot>,
    /// Items that the start found undelivered in the log, by tenant and `Signal::index`. Tenants that are not attached
    /// any more are known by it.
    pub recovered: Provider<Arc<BTreeMap<TenantName, [u64; 3]>>>,
    /// Bytes of the log that each tenant's undelivered records take.
    pub held_bytes: Provider<BTreeMap<TenantName, u64>>,
    /// The queue itself, for `pillion queue`; `None` while there is none.
    pub tools: Provider<Option<queue::Tools>>,
    /// The embedded destination, where there is one.
    pub sink: Provider<Option<Arc<Sink>>>,
}

/// About the process, fixed at its start.
#[derive(Debug, Clone)]
pub struct Process {
    /// When the worker started.
    pub started: SystemTime,
    /// How often its supervisor has started a worker again.
    pub restarts: u32,
    /// Why the worker before this one ended.
    pub last_reason: Option<String>,
}

/// One attached tenant.
#[derive(Debug, Clone)]
pub struct TenantSource {
    /// Its name.
    pub name: TenantName,
    /// `Handle::snapshot`.
    pub figures: tenant::Snapshot,
    /// Where its policy sends each signal, by `Signal::index`.
    pub routes: [Vec<DestinationName>; 3],
    /// `Lifecycle::snapshot`.
    pub site: Option<SiteSnapshot>,
}

/// The answer of /readyz.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Readiness {
    /// Whether pods are served.
    pub ready: bool,
    /// If not, why; if so, what a person should look at. For example `draining`, `the log is poisoned`.
    pub reasons: Vec<String>,
}

impl Readiness {
    /// Ready when nothing speaks against it.
    pub fn unless(reasons: Vec<String>) -> Self {
        Self { ready: reasons.is_empty(), reasons }
    }
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources").field("process", &self.process).finish_non_exhaustive()
    }
}

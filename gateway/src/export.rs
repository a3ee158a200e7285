//! Delivery: one runtime that owns destinations and cursors, fed by the hand-over and by the log.
//!
//! Never sees a batch before its commit; never moves a cursor but on success, or on a dead letter that is durable.

mod breaker;
mod classify;
mod client;
mod connector;
mod cursor;
mod drr;
mod headers;
mod link;
mod merge;
mod pool;
mod retry;
mod stamp;
mod status;
mod tls;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use crate::base::handoff::Handoff;
use crate::base::stats::DeliveryStats;
use crate::base::{DestinationName, Sequence, TenantId, TenantName};
use crate::config::Destination;
use crate::queue::{CursorState, Queue};
use crate::sink::Sink;

/// What export is built from.
#[derive(Debug)]
pub struct Deps {
    /// To read backlogs, save cursors and keep dead letters.
    pub queue: Queue,
    /// The receiving side of it.
    pub handoff: Arc<Handoff>,
    /// All backends.
    pub destinations: BTreeMap<DestinationName, Destination>,
    /// Where destinations of kind sink deliver to.
    pub sink: Option<Arc<Sink>>,
    /// Bytes that requests being built, sent or retried may hold, over all destinations.
    pub buffer_bytes_max: usize,
}

/// A tenant whose records are to be delivered.
#[derive(Debug, Clone)]
pub struct Route {
    /// Whose.
    pub tenant: TenantId,
    /// For metrics, pages and logs.
    pub name: TenantName,
    /// Where to, by `Signal::index`.
    pub destinations: [Vec<DestinationName>; 3],
    /// As recovered; empty for a new tenant.
    pub cursors: Vec<CursorState>,
    /// The tenant's last record in the log.
    pub last: Sequence,
    /// Items recovered and not yet delivered, by signal.
    pub pending_items: [u64; 3],
}

/// The running exporter. Its thread ends at [`Exporter::drain`].
#[derive(Debug)]
pub struct Exporter {
    _todo: (),
}

/// Why export does not start: a destination cannot be built.
#[derive(Debug, thiserror::Error)]
#[error("destination {name}: {problem}")]
pub struct StartError {
    /// Which.
    pub name: DestinationName,
    /// What is wrong and what to do.
    pub problem: String,
}

/// One destination, for /metrics and pages.
#[derive(Debug, Clone)]
pub struct DestinationSnapshot {
    /// Its name.
    pub name: DestinationName,
    /// `ok`, `retrying`, or `broken` (the destination itself is at fault).
    pub state: &'static str,
    /// The latest failure in words, without credentials.
    pub last_error: Option<String>,
    /// Requests in flight.
    pub in_flight: usize,
    /// Requests sent since the start.
    pub requests: u64,
    /// Requests that failed since the start.
    pub failures: u64,
    /// By tenant.
    pub tenants: Vec<TenantDelivery>,
}

/// One tenant at one destination.
#[derive(Debug, Clone)]
pub struct TenantDelivery {
    /// Whose.
    pub name: TenantName,
    /// Items committed and not yet done here.
    pub queued_items: u64,
    /// Since the start.
    pub stats: Arc<DeliveryStats>,
}

/// What a drain left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainReport {
    /// Items delivered since the start.
    pub delivered_items: u64,
    /// Items that stay in the queue.
    pub kept_items: u64,
}

impl Exporter {
    /// Starts the export thread.
    pub fn start(deps: Deps) -> Result<Self, StartError> {
        let _ = deps;
        todo!()
    }

    /// Begins, or changes, the delivery of a tenant. Never blocks.
    pub fn attach(&self, route: Route) {
        let _ = route;
        todo!()
    }

    /// Present figures.
    pub fn snapshot(&self) -> Vec<DestinationSnapshot> {
        todo!()
    }

    /// Appends what is volatile to the log, waits for requests in flight (and with `deliver` for the backlog) until the
    /// deadline, saves the cursors, ends the thread. Blocking.
    pub fn drain(&self, deliver: bool, deadline: Instant) -> DrainReport {
        let _ = (deliver, deadline);
        todo!()
    }
}

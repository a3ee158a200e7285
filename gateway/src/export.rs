//! Delivery: one runtime that owns destinations and cursors, fed by the hand-over and by the log.
//!
//! Never sees a batch before its commit; never moves a cursor but on success, or on a dead letter that is durable.

mod board;
mod breaker;
mod classify;
mod client;
mod connector;
mod cursor;
mod cursors;
mod desk;
mod drr;
mod engine;
mod gather;
mod headers;
mod lane;
mod link;
mod merge;
mod outlet;
mod pool;
mod retry;
mod stamp;
mod status;
#[cfg(test)]
mod tests;
mod tls;
mod volatile;

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use self::board::{Gauges, OutletGauge};
use self::client::Client;
use self::desk::{Desk, DrainOrder, Order};
use self::engine::Engine;
use self::outlet::{Outlet, Transport};
use crate::base::handoff::Handoff;
use crate::base::stats::DeliveryStats;
use crate::base::{DestinationName, Sequence, TenantId, TenantName};
use crate::config::{Destination, DestinationKind};
use crate::queue::{CursorState, Queue};
use crate::sink::Sink;

/// How long after its deadline a drain may still take to end the thread.
const DRAIN_GRACE: Duration = Duration::from_millis(500);

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
    /// When data of ack memory goes to the log.
    pub spill: Spill,
}

/// When data that is only in memory goes to the log.
#[derive(Debug, Clone, Copy)]
pub struct Spill {
    /// After it has waited so long for its destinations.
    pub patience: Duration,
    /// In a drain, so long before its deadline: a group commit has to fit in.
    pub reserve: Duration,
}

impl Default for Spill {
    fn default() -> Self {
        Self { patience: Duration::from_secs(1), reserve: Duration::from_millis(500) }
    }
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
    /// Retention.
    pub max_age: Duration,
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
    queue: Queue,
    desk: Arc<Desk>,
    gauges: Gauges,
    reserve: Duration,
    thread: Mutex<Option<JoinHandle<()>>>,
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
    /// When the oldest of them was appended, on the log's clock; `None` if that is not known, or nothing is queued.
    pub oldest_unix_ms: Option<u64>,
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
        let desk = Arc::new(Desk::default());
        let (queue, reserve) = (deps.queue.clone(), deps.spill.reserve);
        let gauges = Gauges::of(deps.destinations.keys().cloned());
        let (started, result) = sync_channel(1);
        let thread = std::thread::Builder::new().name("export".to_owned()).spawn({
            let (desk, gauges) = (desk.clone(), gauges.clone());
            move || run(deps, desk, gauges, &started)
        });
        let thread = thread.map_err(|error| not_started("", &format!("starting the export thread: {error}")))?;
        // The thread builds what it owns: connections and TLS settings are not shared between threads.
        let result = result.recv().unwrap_or_else(|_| Err(not_started("", "the export thread ended at its start")));
        result.map(|()| Self { queue, desk, gauges, reserve, thread: Mutex::new(Some(thread)) })
    }

    /// Begins, or changes, the delivery of a tenant. Never blocks.
    pub fn attach(&self, route: Route) {
        self.desk.leave(Order::Attach(Box::new(route)));
    }

    /// Forgets a tenant whose pod is gone, here and in the log, as soon as all it sent is done. Who may still append for it
    /// has ended before. A registration that comes later is stronger. Never blocks.
    pub fn detach(&self, tenant: TenantId) {
        self.desk.leave(Order::Detach(self.queue.departure(tenant)));
    }

    /// Sends dead letters again that are marked so in the log. After a start, and whenever some were marked. Never blocks.
    pub fn replay(&self) {
        self.desk.leave(Order::Replay);
    }

    /// Present figures. Never waits for the export thread, nor it for the caller.
    pub fn snapshot(&self) -> Vec<DestinationSnapshot> {
        self.gauges.all().iter().map(|gauge| gauge.snapshot()).collect()
    }

    /// Appends what is volatile to the log, waits for requests in flight (and with `deliver` for the backlog) until the
    /// deadline, saves the cursors, ends the thread. Blocking. A second call only reports.
    pub fn drain(&self, deliver: bool, deadline: Instant) -> DrainReport {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let (done, wait) = sync_channel(1);
            let length = deadline.saturating_duration_since(Instant::now());
            self.desk.leave(Order::Drain(DrainOrder {
                deliver,
                deadline,
                reserve: self.reserve,
                cut_off: false,
                done,
            }));
            // Past the deadline a read of the log may hold the thread; the process ends without it.
            if wait.recv_timeout(length + DRAIN_GRACE) == Err(RecvTimeoutError::Timeout) {
                tracing::warn!("the export thread does not end; leaving it behind");
            } else if thread.join().is_err() {
                tracing::error!("the export thread had panicked; what it had not delivered is in the queue");
            }
        }
        let sum = |a: DrainReport, b: DrainReport| DrainReport {
            delivered_items: a.delivered_items + b.delivered_items,
            kept_items: a.kept_items + b.kept_items,
        };
        let none = DrainReport { delivered_items: 0, kept_items: 0 };
        self.gauges.all().iter().map(|gauge| gauge.report()).fold(none, sum)
    }
}

/// The export thread.
fn run(deps: Deps, desk: Arc<Desk>, gauges: Gauges, started: &SyncSender<Result<(), StartError>>) {
    // Two threads for reads of the log, one for the sink, the rest for names that resolve slowly.
    let threads = 3 + deps.destinations.len().min(8);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(threads)
        .thread_name("export-io")
        .build();
    let built = match runtime {
        Ok(runtime) => outlets(&deps, &gauges.all()).map(|outlets| (runtime, outlets)),
        Err(error) => Err(not_started("", &format!("starting the export runtime: {error}"))),
    };
    let (runtime, outlets) = match built {
        Ok(built) => built,
        // The caller waits for this one message.
        Err(error) => return drop(started.send(Err(error))),
    };
    // As above: the caller waits.
    let _ = started.send(Ok(()));
    let engine = Engine::new(deps.queue, deps.handoff, desk, (outlets, gauges), deps.spill.patience);
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, engine.run());
    drop(local);
    runtime.shutdown_timeout(DRAIN_GRACE / 2);
}

fn outlets(deps: &Deps, gauges: &[Arc<OutletGauge>]) -> Result<Vec<Outlet>, StartError> {
    let share = deps.buffer_bytes_max / deps.destinations.len().max(1);
    let build = |((name, destination), gauge): ((&DestinationName, &Destination), &Arc<OutletGauge>)| {
        let transport = match (&destination.kind, &deps.sink) {
            (DestinationKind::Sink, Some(sink)) => Transport::Sink(sink.clone()),
            (DestinationKind::Sink, None) => return Err(not_started(&name.0, "there is no embedded sink here")),
            _ => {
                let client = Client::new(destination).map_err(|error| not_started(&name.0, &error.to_string()))?;
                Transport::Network(Rc::new(client))
            }
        };
        Ok(Outlet::new(transport, destination, gauge.clone(), share))
    };
    deps.destinations.iter().zip(gauges).map(build).collect()
}

fn not_started(name: &str, problem: &str) -> StartError {
    StartError { name: DestinationName(name.into()), problem: problem.to_owned() }
}

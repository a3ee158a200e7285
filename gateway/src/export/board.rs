//! The figures that others may read at any time. Export writes them with relaxed atomics; a reader never waits for it.

use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{DestinationSnapshot, DrainReport, TenantDelivery};
use crate::base::stats::{Counter, DeliveryStats, total};
use crate::base::{DestinationName, TenantName};

const STATES: [&str; 3] = ["ok", "retrying", "broken"];

/// All destinations, those included that are known only because something still waits for them.
#[derive(Debug, Clone)]
pub(crate) struct Gauges(Arc<Mutex<Vec<Arc<OutletGauge>>>>);

impl Gauges {
    pub(crate) fn of(names: impl Iterator<Item = DestinationName>) -> Self {
        Self(Arc::new(Mutex::new(names.map(OutletGauge::new).collect())))
    }

    pub(crate) fn all(&self) -> Vec<Arc<OutletGauge>> {
        lock(&self.0).clone()
    }

    pub(crate) fn add(&self, gauge: Arc<OutletGauge>) {
        lock(&self.0).push(gauge);
    }
}

/// One destination's figures.
#[derive(Debug)]
pub(crate) struct OutletGauge {
    name: DestinationName,
    state: AtomicU8,
    last_error: Mutex<Option<String>>,
    pub(crate) in_flight: AtomicUsize,
    pub(crate) requests: Counter,
    pub(crate) failures: Counter,
    lanes: Mutex<Vec<Arc<LaneGauge>>>,
    /// Items delivered for tenants that are gone.
    departed_items: Counter,
    /// Bytes held in memory: never above the destination's share of the buffer, but for a few records.
    pub(crate) held_bytes: AtomicUsize,
}

/// One tenant's figures at one destination.
#[derive(Debug)]
pub(crate) struct LaneGauge {
    pub(crate) name: TenantName,
    pub(crate) queued_items: AtomicU64,
    /// When the oldest record that waits was appended, on the log's clock; 0: none does, or it is not known yet.
    pub(crate) oldest_unix_ms: AtomicU64,
    pub(crate) stats: Arc<DeliveryStats>,
}

impl LaneGauge {
    pub(crate) fn new(name: TenantName) -> Arc<Self> {
        Arc::new(Self {
            name,
            queued_items: AtomicU64::new(0),
            oldest_unix_ms: AtomicU64::new(0),
            stats: Arc::default(),
        })
    }
}

impl OutletGauge {
    pub(crate) fn new(name: DestinationName) -> Arc<Self> {
        Arc::new(Self {
            name,
            state: AtomicU8::new(0),
            last_error: Mutex::default(),
            in_flight: AtomicUsize::new(0),
            requests: Counter::default(),
            failures: Counter::default(),
            lanes: Mutex::default(),
            departed_items: Counter::default(),
            held_bytes: AtomicUsize::new(0),
        })
    }

    pub(crate) fn name(&self) -> &DestinationName {
        &self.name
    }

    /// Publishes the breaker's state; true if it is another one than before.
    pub(crate) fn publish_state(&self, state: &'static str) -> bool {
        let index = STATES.iter().position(|known| *known == state).unwrap_or(0);
        let index = u8::try_from(index).unwrap_or(0);
        self.state.swap(index, Ordering::Relaxed) != index
    }

    pub(crate) fn publish_error(&self, reason: &str) {
        let mut last = lock(&self.last_error);
        if last.as_deref() != Some(reason) {
            *last = Some(reason.to_owned());
        }
    }

    pub(crate) fn enter(&self, lane: Arc<LaneGauge>) {
        lock(&self.lanes).push(lane);
    }

    pub(crate) fn leave(&self, lane: &Arc<LaneGauge>) {
        lock(&self.lanes).retain(|other| !Arc::ptr_eq(other, lane));
        self.departed_items.add(total(&lane.stats.delivered));
    }

    pub(crate) fn snapshot(&self) -> DestinationSnapshot {
        let lanes = lock(&self.lanes);
        let tenants = lanes.iter().map(|lane| TenantDelivery {
            name: lane.name.clone(),
            queued_items: lane.queued_items.load(Ordering::Relaxed),
            oldest_unix_ms: Some(lane.oldest_unix_ms.load(Ordering::Relaxed)).filter(|oldest| *oldest > 0),
            stats: lane.stats.clone(),
        });
        DestinationSnapshot {
            name: self.name.clone(),
            state: STATES[usize::from(self.state.load(Ordering::Relaxed))],
            last_error: lock(&self.last_error).clone(),
            in_flight: self.in_flight.load(Ordering::Relaxed),
            requests: self.requests.value(),
            failures: self.failures.value(),
            tenants: tenants.collect(),
        }
    }

    pub(crate) fn report(&self) -> DrainReport {
        let lanes = lock(&self.lanes);
        let delivered = lanes.iter().map(|lane| total(&lane.stats.delivered)).sum::<u64>();
        DrainReport {
            delivered_items: delivered + self.departed_items.value(),
            kept_items: lanes.iter().map(|lane| lane.queued_items.load(Ordering::Relaxed)).sum(),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each is changed by one push, retain or assignment.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

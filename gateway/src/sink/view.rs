//! What GET /sink shows.

use std::collections::BTreeMap;

use serde::Serialize;

use super::record::Item;
use super::state::State;
use crate::base::Signal;

/// Counts since the store was made, and some of the last items.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct View {
    /// Everything.
    pub totals: Counts,
    /// By name: pods of the same name are one here.
    pub tenants: BTreeMap<String, TenantCounts>,
    /// Records that were delivered again and recognised, since this process started.
    pub repeated_records: u64,
    /// The last items; absent unless asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latest: Option<LatestItems>,
}

/// One tenant's counts.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct TenantCounts {
    /// All services.
    pub totals: Counts,
    /// By `service.name`.
    pub services: BTreeMap<String, Counts>,
}

/// Items by signal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Spans.
    pub traces: u64,
    /// Data points.
    pub metrics: u64,
    /// Log records.
    pub logs: u64,
}

/// Newest first.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LatestItems {
    /// Spans.
    pub traces: Vec<Item>,
    /// Metrics, each with its last point.
    pub metrics: Vec<Item>,
    /// Log records.
    pub logs: Vec<Item>,
}

impl Counts {
    fn add(&mut self, [traces, metrics, logs]: [u64; 3]) {
        self.traces = self.traces.saturating_add(traces);
        self.metrics = self.metrics.saturating_add(metrics);
        self.logs = self.logs.saturating_add(logs);
    }
}

impl View {
    pub(super) fn of(state: &State, items: usize) -> Self {
        let latest = |signal: Signal| state.latest[signal.index()].items.iter().rev().take(items).cloned().collect();
        let mut view = Self {
            totals: Counts::default(),
            tenants: BTreeMap::new(),
            repeated_records: state.repeated,
            latest: (items > 0).then(|| LatestItems {
                traces: latest(Signal::Traces),
                metrics: latest(Signal::Metrics),
                logs: latest(Signal::Logs),
            }),
        };
        for tally in state.tenants.values() {
            let tenant = view.tenants.entry(tally.name.clone()).or_default();
            for (service, counts) in &tally.services {
                tenant.services.entry(service.clone()).or_default().add(*counts);
                tenant.totals.add(*counts);
                view.totals.add(*counts);
            }
        }
        view
    }
}

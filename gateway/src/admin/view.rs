//! Snapshots of the parts, joined: what /tenants shows and /metrics counts. Pure, but for the asking.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::balance::{self, Balance};
use super::{Sources, TenantSource};
use crate::base::stats::{Counter, DeliveryStats, Loss, Refusal};
use crate::base::{DestinationName, Signal, TenantName};
use crate::export::DestinationSnapshot;
use crate::lifecycle::{self, SiteSnapshot};
use crate::{queue, volumes};

/// Everything that is known, at one moment (figures of one part are not exactly as old as those of another).
#[derive(Debug, Clone, Serialize)]
pub(super) struct Report {
    pub(super) node: NodeView,
    pub(super) destinations: Vec<DestinationView>,
    /// By name.
    pub(super) tenants: Vec<TenantView>,
    /// For /metrics only.
    #[serde(skip)]
    pub(super) lifecycle: Option<Arc<lifecycle::Counters>>,
}

/// The process and its log.
#[derive(Debug, Clone, Serialize)]
pub(super) struct NodeView {
    pub(super) version: &'static str,
    pub(super) started_unix_ms: u64,
    pub(super) uptime_seconds: u64,
    pub(super) worker_restarts: u32,
    pub(super) last_restart_reason: Option<String>,
    pub(super) has_sink: bool,
    pub(super) queue: QueueView,
    /// Only in a cluster.
    pub(super) custody: Option<CustodyView>,
}

/// `volumes::Snapshot`, without the pods.
#[derive(Debug, Clone, Serialize)]
pub(super) struct CustodyView {
    pub(super) connected: bool,
    pub(super) trouble: Option<String>,
    pub(super) volumes: usize,
    pub(super) reconnects: u64,
    /// By reason; all of them, always.
    pub(super) refused: BTreeMap<&'static str, u64>,
}

/// `volumes::PodState`, without the uid.
#[derive(Debug, Clone, Serialize)]
pub(super) struct VolumeView {
    pub(super) state: &'static str,
    pub(super) superseded: usize,
}

/// `queue::Snapshot`.
#[derive(Debug, Clone, Serialize)]
pub(super) struct QueueView {
    pub(super) segments: u64,
    pub(super) disk_bytes: u64,
    pub(super) commits: u64,
    pub(super) records: u64,
    pub(super) syncs: u64,
    pub(super) payload_bytes: u64,
    pub(super) damaged_records: u64,
    pub(super) meta_rebuilds: u64,
    pub(super) relocated_records: u64,
    pub(super) relocated_bytes: u64,
    pub(super) dead_letters_dropped: u64,
    pub(super) undelivered_bytes: u64,
    pub(super) full: bool,
    pub(super) low: bool,
    pub(super) poisoned: bool,
}

/// One backend.
#[derive(Debug, Clone, Serialize)]
pub(super) struct DestinationView {
    pub(super) name: String,
    pub(super) state: &'static str,
    pub(super) last_error: Option<String>,
    pub(super) in_flight: usize,
    pub(super) requests: u64,
    pub(super) failures: u64,
    pub(super) queued_items: u64,
}

/// One virtual sidecar. Counters are since the gateway's start.
#[derive(Debug, Clone, Serialize)]
pub(super) struct TenantView {
    pub(super) name: String,
    pub(super) uid: Option<String>,
    pub(super) service_account: Option<String>,
    /// Only in a cluster.
    pub(super) volume: Option<VolumeView>,
    /// As of its lifecycle; `detached`: its pod is gone, its queue is not; `unserved`: its volume is all that there is.
    pub(super) state: &'static str,
    pub(super) shim_connected: bool,
    /// `donate`, `relay`, or empty before a shim connected.
    pub(super) mode: String,
    /// Where applications of this tenant send to.
    pub(super) listeners: Vec<String>,
    pub(super) refused_donations: u64,
    pub(super) last_donation_refusal: Option<String>,
    pub(super) worker: Option<usize>,
    pub(super) connections: u32,
    pub(super) memory: Memory,
    pub(super) requests: u64,
    pub(super) accepted: Items,
    pub(super) accepted_bytes: u64,
    pub(super) refused: Items,
    /// By reason; all of them, always.
    pub(super) refused_requests: BTreeMap<&'static str, u64>,
    pub(super) last_refusal: Option<String>,
    pub(super) overwritten_attributes: u64,
    pub(super) recovered: Items,
    /// Of the log, that its undelivered records take.
    pub(super) queue_bytes: u64,
    /// Over all destinations, like the next two.
    pub(super) queued_items: u64,
    pub(super) delivered: Items,
    pub(super) dead_letters: u64,
    pub(super) lost: u64,
    pub(super) destinations: Vec<TenantDestinationView>,
}

/// One tenant at one destination.
#[derive(Debug, Clone, Serialize)]
pub(super) struct TenantDestinationView {
    pub(super) name: String,
    pub(super) state: &'static str,
    pub(super) last_error: Option<String>,
    pub(super) queued_items: u64,
    pub(super) delivered: Items,
    /// Among what was delivered: refused by the destination in a partial success (estimated in merged requests).
    pub(super) rejected: Items,
    pub(super) retried: Items,
    pub(super) dead_letters: Items,
    /// Given up, by reason; all of them, always.
    pub(super) lost: BTreeMap<&'static str, Items>,
    /// Recovered for others, before where this destination begins.
    #[serde(skip)]
    pub(super) begun_after: Items,
    /// How long the oldest queued record waits, by the log's clock; 0 if nothing is queued or it has just come.
    pub(super) oldest_age_seconds: u64,
    pub(super) balance: Balance,
}

/// Bytes of intake memory.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct Memory {
    pub(super) used: u64,
    pub(super) guarantee: u64,
    pub(super) ceiling: u64,
}

/// Items by signal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct Items {
    pub(super) spans: u64,
    pub(super) metric_points: u64,
    pub(super) log_records: u64,
}

impl Items {
    pub(super) fn of([spans, metric_points, log_records]: [u64; 3]) -> Self {
        Self { spans, metric_points, log_records }
    }

    pub(super) fn by_signal(self) -> [u64; 3] {
        [self.spans, self.metric_points, self.log_records]
    }

    pub(super) fn total(self) -> u64 {
        self.by_signal().into_iter().fold(0, u64::saturating_add)
    }

    fn count(counters: &[Counter; 3]) -> Self {
        Self::of(counters.each_ref().map(Counter::value))
    }

    fn plus(self, other: Self) -> Self {
        let (a, b) = (self.by_signal(), other.by_signal());
        Self::of([0, 1, 2].map(|index: usize| a[index].saturating_add(b[index])))
    }
}

impl Report {
    /// Asks every source once.
    pub(super) fn gather(sources: &Sources) -> Self {
        let recovered = (sources.recovered)();
        let custody = (sources.custody)();
        // Destinations first: what is accepted in between looks queued nowhere, rather than delivered before it came.
        let destinations = (sources.destinations)();
        let mut tenants = (sources.tenants)();
        tenants.sort_by(|a, b| a.name.cmp(&b.name));
        let at = AtDestinations::new(&destinations, (sources.queue)().now_unix_ms);
        let mut views: Vec<_> = tenants.iter().map(|tenant| attached(tenant, &at, &recovered)).collect();
        for name in at.by_tenant.keys() {
            if tenants.binary_search_by(|tenant| tenant.name.cmp(name)).is_err() {
                views.push(detached(name, &at, &recovered));
            }
        }
        add_held_bytes(&mut views, &(sources.held_bytes)());
        add_volumes(&mut views, custody.as_ref());
        views.sort_by(|a, b| a.name.cmp(&b.name));
        let destinations = destinations.iter().map(destination).collect();
        Self { node: node(sources, custody), destinations, tenants: views, lifecycle: (sources.lifecycle)() }
    }
}

/// What each tenant has at each destination. Pods of one name that followed each other are one.
struct AtDestinations<'a> {
    by_tenant: BTreeMap<&'a TenantName, BTreeMap<&'a DestinationName, TenantDestinationView>>,
}

impl<'a> AtDestinations<'a> {
    fn new(destinations: &'a [DestinationSnapshot], now_unix_ms: u64) -> Self {
        let mut by_tenant: BTreeMap<_, BTreeMap<_, TenantDestinationView>> = BTreeMap::new();
        for destination in destinations {
            for tenant in &destination.tenants {
                let views: &mut BTreeMap<_, _> = by_tenant.entry(&tenant.name).or_default();
                let view = views.entry(&destination.name).or_insert_with(|| at_destination(destination));
                view.add(tenant.queued_items, &tenant.stats);
                let age = tenant.oldest_unix_ms.map_or(0, |oldest| now_unix_ms.saturating_sub(oldest) / 1_000);
                view.oldest_age_seconds = view.oldest_age_seconds.max(age);
            }
        }
        Self { by_tenant }
    }

    /// In the order of their names, each with its balance.
    fn of(
        &self,
        name: &TenantName,
        entered: impl Fn(&DestinationName) -> [Option<u64>; 3],
    ) -> Vec<TenantDestinationView> {
        let views = self.by_tenant.get(name).into_iter().flatten();
        let balanced = views.map(|(destination, view)| {
            let mut view = view.clone();
            // The account of a signal that does not go there any more is closed.
            let entered = entered(destination);
            let open = |items: Items| {
                let signals = items.by_signal().into_iter().zip(entered).filter(|(_, entered)| entered.is_some());
                signals.fold(0u64, |sum, (items, _)| sum.saturating_add(items))
            };
            let lost = view.lost.values().fold(0, |sum: u64, items| sum.saturating_add(open(*items)));
            let entered = entered.into_iter().flatten().fold(0, u64::saturating_add);
            view.balance = Balance::of(
                entered.saturating_sub(open(view.begun_after)),
                open(view.delivered),
                view.queued_items,
                (open(view.dead_letters), lost),
            );
            view
        });
        balanced.collect()
    }
}

fn at_destination(destination: &DestinationSnapshot) -> TenantDestinationView {
    TenantDestinationView {
        name: destination.name.to_string(),
        state: destination.state,
        last_error: destination.last_error.clone(),
        queued_items: 0,
        delivered: Items::default(),
        rejected: Items::default(),
        retried: Items::default(),
        dead_letters: Items::default(),
        lost: Loss::ALL.iter().map(|reason| (reason.label(), Items::default())).collect(),
        begun_after: Items::default(),
        oldest_age_seconds: 0,
        balance: Balance::default(),
    }
}

impl TenantDestinationView {
    fn add(&mut self, queued_items: u64, stats: &DeliveryStats) {
        self.queued_items = self.queued_items.saturating_add(queued_items);
        self.delivered = self.delivered.plus(Items::count(&stats.delivered));
        self.rejected = self.rejected.plus(Items::count(&stats.rejected));
        self.retried = self.retried.plus(Items::count(&stats.retried));
        self.dead_letters = self.dead_letters.plus(Items::count(&stats.dead_letters));
        self.begun_after = self.begun_after.plus(Items::count(&stats.begun_after));
        for reason in Loss::ALL {
            let lost = self.lost.entry(reason.label()).or_default();
            *lost = lost.plus(Items::count(&stats.lost[reason as usize]));
        }
    }

    fn lost_total(&self) -> u64 {
        self.lost.values().fold(0, |sum, items| sum.saturating_add(items.total()))
    }
}

fn destination(snapshot: &DestinationSnapshot) -> DestinationView {
    DestinationView {
        name: snapshot.name.to_string(),
        state: snapshot.state,
        last_error: snapshot.last_error.clone(),
        in_flight: snapshot.in_flight,
        requests: snapshot.requests,
        failures: snapshot.failures,
        queued_items: snapshot.tenants.iter().fold(0, |sum, tenant| sum.saturating_add(tenant.queued_items)),
    }
}

/// Items that the start found undelivered.
type Recovered = BTreeMap<TenantName, [u64; 3]>;

fn recovered_items(name: &TenantName, recovered: &Recovered) -> Items {
    Items::of(recovered.get(name).copied().unwrap_or_default())
}

fn attached(tenant: &TenantSource, at: &AtDestinations<'_>, recovered: &Recovered) -> TenantView {
    let figures = &tenant.figures;
    let recovered = recovered_items(&tenant.name, recovered);
    let entered =
        |destination: &DestinationName| balance::entered(destination, &tenant.routes, figures.accepted, recovered);
    let site = tenant.site.clone().unwrap_or_default();
    let reasons = Refusal::ALL.iter().map(|reason| (reason.label(), figures.refused_requests[*reason as usize]));
    let view = TenantView {
        uid: figures.pod_uid.clone(),
        service_account: figures.service_account.clone(),
        worker: Some(figures.worker),
        connections: figures.connections,
        memory: Memory {
            used: figures.memory_used,
            guarantee: figures.memory_guarantee,
            ceiling: figures.memory_ceiling,
        },
        requests: figures.requests,
        accepted: Items::of(figures.accepted),
        accepted_bytes: figures.accepted_bytes,
        refused: Items::of(figures.refused),
        refused_requests: reasons.collect(),
        last_refusal: figures.last_refusal.clone(),
        overwritten_attributes: figures.overwritten,
        ..bare(&tenant.name, figures.state, site)
    };
    with_destinations(view, recovered, at.of(&tenant.name, entered))
}

fn detached(name: &TenantName, at: &AtDestinations<'_>, recovered: &Recovered) -> TenantView {
    let recovered = recovered_items(name, recovered);
    let view = bare(name, "detached", SiteSnapshot::default());
    with_destinations(view, recovered, at.of(name, |_| recovered.by_signal().map(Some)))
}

fn bare(name: &TenantName, state: &'static str, site: SiteSnapshot) -> TenantView {
    TenantView {
        name: name.to_string(),
        uid: None,
        service_account: None,
        volume: None,
        state,
        shim_connected: site.shim_connected,
        mode: site.mode,
        listeners: site.listeners,
        refused_donations: site.refused_donations,
        last_donation_refusal: site.last_refusal,
        worker: None,
        connections: 0,
        memory: Memory::default(),
        requests: 0,
        accepted: Items::default(),
        accepted_bytes: 0,
        refused: Items::default(),
        refused_requests: Refusal::ALL.iter().map(|reason| (reason.label(), 0)).collect(),
        last_refusal: None,
        overwritten_attributes: 0,
        recovered: Items::default(),
        queue_bytes: 0,
        queued_items: 0,
        delivered: Items::default(),
        dead_letters: 0,
        lost: 0,
        destinations: Vec::new(),
    }
}

fn with_destinations(view: TenantView, recovered: Items, destinations: Vec<TenantDestinationView>) -> TenantView {
    TenantView {
        recovered,
        queued_items: destinations.iter().fold(0, |sum, at| sum.saturating_add(at.queued_items)),
        delivered: destinations.iter().fold(Items::default(), |sum, at| sum.plus(at.delivered)),
        dead_letters: destinations.iter().fold(0, |sum, at| sum.saturating_add(at.dead_letters.total())),
        lost: destinations.iter().fold(0, |sum, at| sum.saturating_add(at.lost_total())),
        destinations,
        ..view
    }
}

fn add_held_bytes(views: &mut [TenantView], held: &BTreeMap<TenantName, u64>) {
    for (name, bytes) in held {
        let shown = name.to_string();
        if let Some(view) = views.iter_mut().find(|view| view.name == shown) {
            view.queue_bytes = *bytes;
        }
    }
}

/// What became of each pod's volume; a pod that is not served has nothing else to show.
fn add_volumes(views: &mut Vec<TenantView>, custody: Option<&volumes::Snapshot>) {
    for (name, pod) in custody.iter().flat_map(|custody| &custody.pods) {
        let volume = Some(VolumeView { state: pod.state, superseded: pod.superseded });
        let shown = name.to_string();
        match views.iter_mut().find(|view| view.name == shown && view.state != "detached") {
            Some(view) => view.volume = volume,
            None => {
                let uid = Some(pod.uid.to_string());
                views.push(TenantView { uid, volume, ..bare(name, "unserved", SiteSnapshot::default()) });
            }
        }
    }
}

fn custody_view(custody: volumes::Snapshot) -> CustodyView {
    let reasons = volumes::Refusal::ALL.iter().map(|(reason, label)| (*label, custody.refused[*reason as usize]));
    CustodyView {
        refused: reasons.collect(),
        connected: custody.connected,
        trouble: custody.trouble,
        volumes: custody.volumes,
        reconnects: custody.connects.saturating_sub(1),
    }
}

fn node(sources: &Sources, custody: Option<volumes::Snapshot>) -> NodeView {
    let process = &sources.process;
    let started = process.started.duration_since(UNIX_EPOCH).unwrap_or_default();
    NodeView {
        version: env!("CARGO_PKG_VERSION"),
        started_unix_ms: u64::try_from(started.as_millis()).unwrap_or(u64::MAX),
        uptime_seconds: SystemTime::now().duration_since(process.started).unwrap_or_default().as_secs(),
        worker_restarts: process.restarts,
        last_restart_reason: process.last_reason.clone(),
        has_sink: (sources.sink)().is_some(),
        queue: queue((sources.queue)()),
        custody: custody.map(custody_view),
    }
}

fn queue(snapshot: queue::Snapshot) -> QueueView {
    QueueView {
        segments: snapshot.segments,
        disk_bytes: snapshot.disk_bytes,
        commits: snapshot.commits,
        records: snapshot.records,
        syncs: snapshot.syncs,
        payload_bytes: snapshot.payload_bytes,
        damaged_records: snapshot.damaged_records,
        meta_rebuilds: snapshot.meta_rebuilds,
        relocated_records: snapshot.relocated_records,
        relocated_bytes: snapshot.relocated_bytes,
        dead_letters_dropped: snapshot.dead_letters_dropped,
        undelivered_bytes: snapshot.undelivered_bytes,
        full: snapshot.full,
        low: snapshot.low,
        poisoned: snapshot.poisoned,
    }
}

/// The destinations' name for a signal's items, for tables.
pub(super) fn items_name(signal: Signal) -> &'static str {
    match signal {
        Signal::Traces => "spans",
        Signal::Metrics => "points",
        Signal::Logs => "logs",
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Made, name};
    use super::*;

    /// Scenario: a tenant with two destinations, one that is broken; and one whose pod is gone while its queue is not.
    /// Guarantees: both are shown, each figure where it belongs, and the books close for each destination by itself.
    #[test]
    fn snapshots_are_joined_by_tenant_and_destination() {
        let report = Report::gather(&Made::default().sources());

        let names: Vec<_> = report.tenants.iter().map(|tenant| (tenant.name.as_str(), tenant.state)).collect();
        let expected =
            [("shop/cart", "serving"), ("shop/gone", "detached"), ("shop/new", "unserved"), ("shop/web", "throttled")];
        assert_eq!(names, expected);
        let cart = &report.tenants[0];
        assert_eq!((cart.queued_items, cart.delivered.total(), cart.dead_letters), (3 + 10, 100 + 20 + 95, 3));
        assert_eq!((cart.lost, cart.destinations[0].lost["expired"].log_records), (2, 2));
        let balances: Vec<_> =
            cart.destinations.iter().map(|at| (at.name.as_str(), at.balance.entered, at.balance.difference)).collect();
        // Accepted 100, 20, 3 and recovered 5, 0, 0: archive takes all of it, backend only traces.
        assert_eq!(balances, [("archive", 128, 0), ("backend", 105, 0)]);
        let gone = &report.tenants[1];
        assert_eq!((gone.recovered.total(), gone.destinations[0].balance.difference), (7, 1), "one is missing");
        assert_eq!(report.destinations[1].last_error.as_deref(), Some("UNAUTHENTICATED: the token has expired"));
        assert!(name("shop/gone") > name("shop/cart"));
    }

    /// Scenario: a snapshot becomes JSON.
    /// Guarantees: its names are those that scripts rely on.
    #[test]
    fn the_names_in_json_are_stable() {
        let json = serde_json::to_value(Report::gather(&Made::default().sources())).expect("plain data");
        let cart = &json["tenants"][0];
        assert_eq!(cart["name"], "shop/cart");
        assert_eq!(cart["uid"], "1d0c");
        assert_eq!(cart["service_account"], "carts");
        assert_eq!(cart["volume"], serde_json::json!({"state": "served", "superseded": 1}));
        assert_eq!(
            (&json["tenants"][2]["uid"], &json["tenants"][2]["volume"]["state"]),
            (&"2e1d".into(), &"failed".into())
        );
        assert_eq!(json["node"]["custody"]["refused"]["superseded"], 1);
        assert_eq!(cart["mode"], "donate");
        assert_eq!(cart["shim_connected"], true);
        assert_eq!(cart["listeners"], serde_json::json!(["127.0.0.1:4317", "127.0.0.1:4318"]));
        assert_eq!(cart["memory"], serde_json::json!({"used": 4096, "guarantee": 524_288, "ceiling": 67_108_864}));
        assert_eq!(cart["accepted"], serde_json::json!({"spans": 100, "metric_points": 20, "log_records": 3}));
        assert_eq!(cart["refused_requests"]["quota"], 4);
        assert_eq!(cart["destinations"][1]["state"], "broken");
        assert_eq!(
            cart["destinations"][1]["balance"],
            serde_json::json!({"entered": 105, "delivered": 95, "queued": 10, "dead_letters": 0, "lost": 0, "difference": 0})
        );
        assert_eq!(json["node"]["queue"]["disk_bytes"], 1 << 20);
        assert_eq!(json["node"]["worker_restarts"], 2);
    }
}

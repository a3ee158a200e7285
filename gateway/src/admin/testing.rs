//! A node that was made up, for the tests of this module.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use super::{Process, Readiness, Sources, TenantSource};
use crate::base::stats::DeliveryStats;
use crate::base::{DestinationName, Signal, TenantName};
use crate::export::{DestinationSnapshot, TenantDelivery};
use crate::lifecycle::{self, SiteSnapshot};
use crate::sink::Sink;
use crate::{queue, tenant, volumes};

/// What the tests vary.
#[derive(Debug, Clone)]
pub(super) struct Made {
    pub(super) accepted: u64,
    pub(super) error: String,
    pub(super) reasons: Vec<String>,
    pub(super) sink: Option<Arc<Sink>>,
}

impl Default for Made {
    fn default() -> Self {
        Self {
            accepted: 100,
            error: "UNAUTHENTICATED: the token has expired".to_owned(),
            reasons: Vec::new(),
            sink: None,
        }
    }
}

impl Made {
    pub(super) fn sources(&self) -> Sources {
        let (accepted, error, reasons) = (self.accepted, self.error.clone(), self.reasons.clone());
        let sink = self.sink.clone();
        Sources {
            process: Process {
                started: UNIX_EPOCH + Duration::from_millis(1_700_000_000_500),
                restarts: 2,
                last_reason: Some("killed by \"SIGKILL\"\n\\".to_owned()),
            },
            readiness: Box::new(move || Box::pin(std::future::ready(Readiness::unless(reasons.clone())))),
            tenants: Box::new(move || vec![web(), cart(accepted)]),
            destinations: Box::new(move || destinations(&error)),
            custody: Box::new(|| Some(custody())),
            lifecycle: Box::new(|| Some(Arc::new(counters()))),
            queue: Box::new(queue),
            tools: Box::new(|| None),
            recovered: Box::new(|| {
                Arc::new(BTreeMap::from([(name("shop/cart"), [5, 0, 0]), (name("shop/gone"), [7, 0, 0])]))
            }),
            held_bytes: Box::new(|| BTreeMap::from([(name("shop/cart"), 8_192), (name("shop/gone"), 808)])),
            sink: Box::new(move || sink.clone()),
        }
    }
}

pub(super) fn name(text: &str) -> TenantName {
    TenantName::parse(text).expect("a good name")
}

fn at(text: &str) -> DestinationName {
    DestinationName(text.into())
}

fn cart(accepted: u64) -> TenantSource {
    let figures = tenant::Snapshot {
        pod_uid: Some("1d0c".to_owned()),
        service_account: Some("carts".to_owned()),
        state: "serving",
        connections: 2,
        memory_used: 4096,
        accepted: [accepted, 20, 3],
        refused: [7, 0, 0],
        refused_requests: [0, 0, 0, 4, 0, 0, 0],
        overwritten: 6,
        last_refusal: Some("over bytes_per_second".to_owned()),
        ..figures("shop/cart")
    };
    let site = SiteSnapshot {
        shim_connected: true,
        mode: "donate".to_owned(),
        listeners: vec!["127.0.0.1:4317".to_owned(), "127.0.0.1:4318".to_owned()],
        refused_donations: 1,
        last_refusal: Some("not a listener".to_owned()),
    };
    let routes = [vec![at("backend"), at("archive")], vec![at("archive")], vec![at("archive")]];
    TenantSource { name: name("shop/cart"), figures, routes, site: Some(site) }
}

fn web() -> TenantSource {
    let figures = tenant::Snapshot { state: "throttled", accepted: [50, 0, 0], ..figures("shop/web") };
    TenantSource { name: name("shop/web"), figures, routes: Default::default(), site: None }
}

fn figures(name: &str) -> tenant::Snapshot {
    tenant::Snapshot {
        name: name.to_owned(),
        pod_uid: None,
        service_account: None,
        state: "attached",
        worker: 1,
        connections: 0,
        memory_used: 0,
        memory_guarantee: 512 * 1024,
        memory_ceiling: 64 << 20,
        accepted: [0; 3],
        refused: [0; 3],
        refused_requests: [0; 7],
        requests: 12,
        accepted_bytes: 12_000,
        overwritten: 0,
        slices: 5,
        last_refusal: None,
    }
}

fn destinations(error: &str) -> Vec<DestinationSnapshot> {
    let archived = DeliveryStats::default();
    archived.delivered[Signal::Traces.index()].add(100);
    archived.delivered[Signal::Metrics.index()].add(20);
    archived.dead_letters[Signal::Logs.index()].add(3);
    archived.lost[crate::base::stats::Loss::Expired as usize][Signal::Logs.index()].add(2);
    archived.rejected[Signal::Traces.index()].add(2);
    archived.retried[Signal::Traces.index()].add(4);
    let (sent, gone) = (DeliveryStats::default(), DeliveryStats::default());
    sent.delivered[Signal::Traces.index()].add(95);
    gone.delivered[Signal::Traces.index()].add(2);
    let tenant = |name: &str, queued_items, stats| TenantDelivery {
        name: self::name(name),
        queued_items,
        oldest_unix_ms: (queued_items > 0).then_some(5_000),
        stats: Arc::new(stats),
    };
    vec![
        DestinationSnapshot {
            name: at("archive"),
            state: "ok",
            last_error: None,
            in_flight: 1,
            requests: 40,
            failures: 0,
            tenants: vec![tenant("shop/cart", 3, archived)],
        },
        DestinationSnapshot {
            name: at("backend"),
            state: "broken",
            last_error: Some(error.to_owned()),
            in_flight: 0,
            requests: 9,
            failures: 4,
            tenants: vec![tenant("shop/cart", 10, sent), tenant("shop/gone", 4, gone)],
        },
    ]
}

fn custody() -> volumes::Snapshot {
    let pod = |uid: &str, state, superseded| volumes::PodState { uid: uid.into(), state, superseded };
    volumes::Snapshot {
        connected: true,
        trouble: None,
        pods: BTreeMap::from([
            (name("shop/cart"), pod("1d0c", "served", 1)),
            (name("shop/new"), pod("2e1d", "failed", 0)),
        ]),
        volumes: 3,
        connects: 4,
        refused: [0, 2, 0, 1, 5],
    }
}

fn counters() -> lifecycle::Counters {
    let counters = lifecycle::Counters::default();
    counters.sessions.add(21);
    counters.connections.add(22);
    counters.watchdog_trips.add(1);
    counters.refused[0].add(3);
    counters
}

fn queue() -> queue::Snapshot {
    queue::Snapshot {
        segments: 3,
        disk_bytes: 1 << 20,
        commits: 11,
        records: 13,
        syncs: 12,
        payload_bytes: 14_000,
        damaged_records: 1,
        meta_rebuilds: 1,
        relocated_records: 4,
        relocated_bytes: 4_096,
        dead_letters_dropped: 0,
        stalled: false,
        poisoned: false,
        undelivered_bytes: 9_000,
        full: true,
        low: false,
        now_unix_ms: 65_500,
    }
}

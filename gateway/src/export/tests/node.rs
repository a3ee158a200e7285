//! A node without its front half: the real queue, the real hand-over, the real exporter.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::backend::{Backend, logs};
use crate::base::handoff::{Arrival, Handoff};
use crate::base::mailbox::Mailbox;
use crate::base::{Batch, DestinationName, Sequence, Signal, TenantId, TenantName};
use crate::config::{Compression, Destination, DestinationKind, Retry, StartAt, Tls};
use crate::export::{Deps, DestinationSnapshot, DrainReport, Exporter, Route, Spill};
use crate::queue::{
    Append, Completion, Config, CursorOf, CursorState, LetterChange, Queue, Recovery, Registered, Reply, TenantRecord,
    Verdict,
};
use crate::sink::Sink;

/// Of every tenant.
pub(crate) const MAX_AGE: Duration = Duration::from_secs(3_600);

/// Longer than any test takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) struct Node {
    pub(crate) queue: Queue,
    pub(crate) recovery: Recovery,
    pub(crate) handoff: Arc<Handoff>,
    exporter: Exporter,
    pub(crate) names: Vec<DestinationName>,
}

/// A destination that retries quickly.
pub(crate) fn grpc(backend: &Backend) -> Destination {
    let endpoint = format!("http://{}", backend.address).parse().expect("a URL");
    destination(DestinationKind::Grpc { endpoint })
}

pub(crate) fn http(backend: &Backend) -> Destination {
    let url = |signal: Signal| format!("http://{}{}", backend.address, signal.http_path()).parse().expect("a URL");
    destination(DestinationKind::Http { urls: Signal::ALL.map(url) })
}

pub(crate) fn destination(kind: DestinationKind) -> Destination {
    Destination {
        kind,
        compression: Compression::None,
        max_message_bytes: 4 << 20,
        tls: Tls::default(),
        headers: Vec::new(),
        timeout: Duration::from_secs(60),
        retry: Retry { initial_interval: Duration::from_millis(10), max_interval: Duration::from_millis(50) },
        window: 8,
        merge: true,
        allow: vec!["*".to_owned()],
        start: StartAt::Oldest,
    }
}

fn destinations_at_tail(destinations: &[Destination]) -> BTreeSet<DestinationName> {
    let at_tail = destinations.iter().enumerate().filter(|(_, destination)| destination.start == StartAt::Tail);
    at_tail.map(|(number, _)| DestinationName(format!("d{number}").into())).collect()
}

impl Node {
    /// Destinations are called `d0`, `d1`, ...; every tenant sends everything to each of them.
    pub(crate) fn start(dir: &Path, destinations: Vec<Destination>) -> Self {
        Self::with_buffer(dir, destinations, 64 << 20)
    }

    pub(crate) fn with_buffer(dir: &Path, destinations: Vec<Destination>, buffer_bytes_max: usize) -> Self {
        Self::with(dir, destinations, buffer_bytes_max, None)
    }

    pub(crate) fn with(
        dir: &Path,
        destinations: Vec<Destination>,
        buffer_bytes_max: usize,
        sink: Option<Arc<Sink>>,
    ) -> Self {
        Self::with_spill(dir, destinations, buffer_bytes_max, sink, Spill::default())
    }

    pub(crate) fn with_spill(
        dir: &Path,
        destinations: Vec<Destination>,
        buffer_bytes_max: usize,
        sink: Option<Arc<Sink>>,
        spill: Spill,
    ) -> Self {
        let handoff = Arc::new(Handoff::new(1 << 20));
        let config = Config {
            data_dir: dir.to_owned(),
            disk_bytes_max: 1 << 30,
            segment_bytes: 16 << 20,
            inbox_bytes_max: 64 << 20,
            dead_letter_bytes_max: 8 << 20,
            min_free: crate::queue::MinFree::Bytes(0),
            begin_at_tail: destinations_at_tail(&destinations),
        };
        let (queue, recovery) = Queue::open(config, handoff.clone()).expect("it opens");
        let names: Vec<_> = (0..destinations.len()).map(|n| DestinationName(format!("d{n}").into())).collect();
        let deps = Deps {
            queue: queue.clone(),
            handoff: handoff.clone(),
            destinations: names.iter().cloned().zip(destinations).collect::<BTreeMap<_, _>>(),
            sink,
            buffer_bytes_max,
            spill,
        };
        let exporter = Exporter::start(deps).expect("it starts");
        let node = Self { queue, recovery, handoff, exporter, names };
        for tenant in &node.recovery.tenants {
            node.exporter.attach(Route {
                tenant: tenant.id,
                name: tenant.record.name.clone(),
                destinations: tenant.record.destinations.clone(),
                max_age: tenant.record.max_age,
                cursors: tenant.cursors.clone(),
                last: tenant.last,
                pending_items: tenant.pending_items,
            });
        }
        node
    }

    /// A tenant; a known one keeps its number and its route.
    pub(crate) fn tenant(&self, name: &str) -> TenantId {
        let name = TenantName::parse(name).expect("a name");
        let destinations = [self.names.clone(), self.names.clone(), self.names.clone()];
        let tenant = self.queue.register(&self.record(&name.to_string())).expect("registered").id;
        if self.recovery.tenants.iter().all(|known| known.id != tenant) {
            let (cursors, last, pending_items) = (Vec::new(), Default::default(), [0; 3]);
            let max_age = MAX_AGE;
            self.exporter.attach(Route { tenant, name, destinations, max_age, cursors, last, pending_items });
        }
        tenant
    }

    /// Registers a tenant and begins, or changes, its delivery.
    pub(crate) fn route(&self, record: &TenantRecord) -> TenantId {
        let Registered { id: tenant, cursors } = self.queue.register(record).expect("registered");
        let known = self.recovery.tenants.iter().find(|known| known.id == tenant);
        self.exporter.attach(Route {
            tenant,
            name: record.name.clone(),
            destinations: record.destinations.clone(),
            max_age: record.max_age,
            cursors,
            last: known.map(|known| known.last).unwrap_or_default(),
            pending_items: known.map(|known| known.pending_items).unwrap_or_default(),
        });
        tenant
    }

    /// As it registers.
    pub(crate) fn record(&self, name: &str) -> TenantRecord {
        TenantRecord {
            name: TenantName::parse(name).expect("a name"),
            pod_uid: None,
            destinations: [self.names.clone(), self.names.clone(), self.names.clone()],
            max_age: MAX_AGE,
            disk: crate::base::ledger::MemoryLimit { guarantee: 0, ceiling: u64::MAX },
            drops_oldest: false,
        }
    }

    /// Its pod is gone.
    pub(crate) fn detach(&self, tenant: TenantId) {
        self.exporter.detach(tenant);
    }

    /// Appends a batch with these log bodies; it is durable when this returns.
    pub(crate) fn commit(&self, tenant: TenantId, bodies: &[&str]) {
        let mailbox = Arc::new(Mailbox::<Completion>::default());
        let reply = Some(Reply { mailbox: mailbox.clone(), ticket: 1 });
        let append = Append { parts: SmallVec::from_iter([batch(tenant, bodies)]), sync: true, reply };
        self.queue.append(append).map_err(|(_, error)| error).expect("appended");
        let mut out = Vec::new();
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(std::future::poll_fn(|cx| mailbox.poll_take(cx, &mut out)));
        out[0].result.expect("committed");
    }

    /// Hands over a batch of ack memory.
    pub(crate) fn volatile(&self, tenant: TenantId, bodies: &[&str]) {
        self.handoff.push([Arrival::Volatile(batch(tenant, bodies))]);
    }

    pub(crate) fn snapshot(&self) -> Vec<DestinationSnapshot> {
        self.exporter.snapshot()
    }

    /// Waits until the figures satisfy the test.
    pub(crate) fn wait(&self, enough: impl Fn(&[DestinationSnapshot]) -> bool) -> Vec<DestinationSnapshot> {
        let start = Instant::now();
        loop {
            let snapshot = self.snapshot();
            if enough(&snapshot) {
                return snapshot;
            }
            assert!(start.elapsed() < PATIENCE, "never so: {snapshot:?}");
            // There is nothing to wait on: figures are read, never announced.
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }

    /// Waits until the bytes in memory satisfy the test.
    pub(crate) fn wait_for_memory(&self, enough: impl Fn(usize) -> bool) {
        self.wait(|_| enough(self.held_bytes()));
    }

    /// Bytes in memory for all destinations.
    pub(crate) fn held_bytes(&self) -> usize {
        self.exporter.gauges.all().iter().map(|gauge| gauge.held_bytes.load(std::sync::atomic::Ordering::Relaxed)).sum()
    }

    /// Dead letters that are kept, and whether each is to be sent again.
    pub(crate) fn letters(&self) -> Vec<(TenantId, Sequence, bool)> {
        let tenants = self.queue.tenants().expect("the writer answers");
        let letters =
            tenants.iter().flat_map(|tenant| tenant.letters.iter().map(|kept| (tenant.id, kept.sequence, kept.again)));
        letters.collect()
    }

    /// Whether the log knows that a destination has everything of every tenant.
    pub(crate) fn has_saved_all(&self, destination: &DestinationName) -> bool {
        let tenants = self.queue.tenants().expect("the writer answers");
        tenants.iter().all(|tenant| {
            let saved = Signal::ALL.into_iter().filter(|signal| {
                let of = CursorOf::Delivery(destination.clone(), *signal);
                tenant.cursors.iter().any(|cursor| cursor.of == of && cursor.acknowledged >= tenant.last)
            });
            saved.count() == Signal::ALL.len()
        })
    }

    /// Whether the log knows that a destination has all logs of every tenant.
    pub(crate) fn has_saved_logs(&self, destination: &DestinationName) -> bool {
        let tenants = self.queue.tenants().expect("the writer answers");
        let of = CursorOf::Delivery(destination.clone(), Signal::Logs);
        let saved = |cursor: &CursorState, last| cursor.of == of && cursor.acknowledged >= last;
        tenants.iter().all(|tenant| tenant.cursors.iter().any(|cursor| saved(cursor, tenant.last)))
    }

    /// Decides about all of them, and tells the exporter.
    pub(crate) fn decide(&self, verdict: Verdict) {
        let letters = self.letters().into_iter().map(|(tenant, sequence, _)| (tenant, sequence)).collect();
        self.queue.change_letters(LetterChange { letters, verdict }).expect("there is room");
        self.replay();
    }

    /// Sends letters again that are marked so.
    pub(crate) fn replay(&self) {
        self.exporter.replay();
    }

    /// Ends export and queue.
    pub(crate) fn stop(self, deliver: bool) -> DrainReport {
        let report = self.exporter.drain(deliver, Instant::now() + PATIENCE);
        self.queue.close().expect("closed");
        report
    }

    /// Ends without saving anything more than what was saved: as near to a crash as a living process comes.
    pub(crate) fn abandon(self) {
        self.queue.close().expect("closed");
        self.exporter.drain(false, Instant::now());
    }
}

/// What is queued over all tenants and destinations.
pub(crate) fn queued(snapshot: &[DestinationSnapshot]) -> u64 {
    snapshot.iter().flat_map(|destination| &destination.tenants).map(|tenant| tenant.queued_items).sum()
}

/// One counter, over all tenants of a destination.
pub(crate) fn count(
    snapshot: &DestinationSnapshot,
    counters: impl Fn(&crate::base::stats::DeliveryStats) -> &[crate::base::stats::Counter; 3],
) -> u64 {
    snapshot.tenants.iter().map(|tenant| crate::base::stats::total(counters(&tenant.stats))).sum()
}

fn batch(tenant: TenantId, bodies: &[&str]) -> Batch {
    let (payload, items) = logs(bodies.iter().copied());
    Batch { tenant, signal: Signal::Logs, items, received_unix_ms: 0, payload, guard: None }
}

//! The parts of a node out of the configuration, each by a function of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

use super::pods::Pods;
use super::stage::Stage;
use super::{Exit, Node, Refused};
use crate::base::handoff::Handoff;
use crate::base::ledger::Ledger;
use crate::base::stats::Counter;
use crate::base::{DestinationName, Sequence, Signal, TenantIdentity, TenantName};
use crate::config::{self, Config, DestinationKind, StartAt, Tenant};
use crate::export::{self, Exporter, Route};
use crate::intake;
use crate::lifecycle::{Lifecycle, NamespaceRule, Site, SiteSockets};
use crate::queue::{self, DirectoryLock, Queue, RecoveredTenant, Recovery, TenantRecord};
use crate::sink::Sink;
use crate::tenant::{self, Registry};
use crate::volumes::{self, Volumes};

/// Committed payload on its way to export; past it, export reads from the log.
const HANDOFF_BYTES_MAX: usize = 16 << 20;

/// Requests that export builds, sends or retries.
const EXPORT_BYTES_MAX: usize = 32 << 20;

/// A segment of the log, preallocated and recycled.
const SEGMENT_BYTES: u64 = 64 << 20;

/// Appended payload that waits for the log writer.
const INBOX_BYTES_MAX: usize = 64 << 20;

/// Everything, in the order that the module above gives.
pub(super) async fn node(config: &Arc<Config>, lock: DirectoryLock, stage: &Stage) -> Result<Arc<Node>, Refused> {
    stage.not_yet("starting: reading the queue");
    let proof = lock.proof().map_err(|error| Refused::failure("duplicating the lock", &error))?;
    let handoff = Arc::new(Handoff::new(HANDOFF_BYTES_MAX));
    let (queue, recovery) = open_queue(config, lock, &handoff).await?;
    let sink = open_sink(config)?;
    let exporter = start_export(config, &queue, &handoff, sink.as_ref())?;
    let deps = tenant::Deps {
        queue: queue.clone(),
        handoff,
        ledger: Ledger::new(config.node.memory_limit),
        node_name: config.node.name.clone(),
    };
    let registry = Registry::new(deps, config.node.workers, intake::serve)
        .map_err(|error| Refused::failure("the data workers do not start", &error))?;
    let lifecycle = Lifecycle::start().map_err(|error| Refused::failure("the acceptors do not start", &error))?;
    deliver_what_was_found(&exporter, &recovery);
    for (name, tenant) in &config.tenants {
        attach(name, tenant, &recovery, (&registry, &exporter, &lifecycle))?;
    }
    if config.node.custody_socket.is_none() {
        forget_who_is_gone(&registry, &exporter, &recovery);
    }
    let recovered = Arc::new(recovered_items(&recovery));
    let volumes = config.node.custody_socket.clone().map(|socket| {
        let parts = (registry.clone(), exporter.clone(), lifecycle.clone());
        let pods = Pods::new(config.clone(), parts, recovery);
        Volumes::start(volumes::Settings { socket, proof, instance: start_stamp() }, pods)
    });
    let serving = watch::Sender::new(true);
    Ok(Arc::new(Node { queue, sink, exporter, registry, lifecycle, volumes, recovered, serving }))
}

async fn open_queue(
    config: &Config,
    lock: DirectoryLock,
    handoff: &Arc<Handoff>,
) -> Result<(Queue, Recovery), Refused> {
    let settings = queue::Config {
        data_dir: config.node.data_dir.clone(),
        disk_bytes_max: config.node.disk_limit,
        segment_bytes: SEGMENT_BYTES,
        inbox_bytes_max: INBOX_BYTES_MAX,
        dead_letter_bytes_max: config.node.dead_letters,
        min_free: match config.node.min_free() {
            config::MinFree::Percent(percent) => queue::MinFree::Percent(percent),
            config::MinFree::Bytes(bytes) => queue::MinFree::Bytes(bytes),
        },
        begin_at_tail: begin_at_tail(config),
    };
    let handoff = handoff.clone();
    let opening = tokio::task::spawn_blocking(move || Queue::open_locked(lock, settings, handoff));
    let opened = opening.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
    opened.map_err(Refused::of_queue)
}

fn begin_at_tail(config: &Config) -> BTreeSet<DestinationName> {
    let at_tail = config.destinations.iter().filter(|(_, destination)| destination.start == StartAt::Tail);
    at_tail.map(|(name, _)| name.clone()).collect()
}

/// Only where a destination is one.
fn open_sink(config: &Config) -> Result<Option<Arc<Sink>>, Refused> {
    if !config.destinations.values().any(|destination| destination.kind == DestinationKind::Sink) {
        return Ok(None);
    }
    let dir: &Path = &config.node.data_dir;
    let opened = Sink::open(&dir.join("sink"));
    opened.map(Some).map_err(|error| Refused {
        exit: Exit::DataDirUnusable,
        words: format!("the embedded sink in {}: {error}", dir.join("sink").display()),
    })
}

fn start_export(
    config: &Config,
    queue: &Queue,
    handoff: &Arc<Handoff>,
    sink: Option<&Arc<Sink>>,
) -> Result<Arc<Exporter>, Refused> {
    let deps = export::Deps {
        queue: queue.clone(),
        handoff: handoff.clone(),
        destinations: config.destinations.clone(),
        sink: sink.cloned(),
        buffer_bytes_max: EXPORT_BYTES_MAX,
        spill: export::Spill::default(),
    };
    let started = Exporter::start(deps);
    started.map(Arc::new).map_err(|error| Refused { exit: Exit::Config, words: error.to_string() })
}

/// Tenants of an earlier start deliver what they left, whether or not anybody still lists them.
fn deliver_what_was_found(exporter: &Exporter, recovery: &Recovery) {
    for tenant in &recovery.tenants {
        exporter.attach(route(tenant));
    }
    exporter.replay();
    let items: u64 = recovery.tenants.iter().flat_map(|tenant| tenant.pending_items).sum();
    tracing::info!(
        tenants = recovery.tenants.len(),
        items,
        damaged_records = recovery.damaged_records,
        meta_rebuilt = recovery.meta_rebuilt,
        "the queue was read in {} ms",
        recovery.took.as_millis()
    );
}

/// Of those found, who is not in the configuration file is gone: what it left is still delivered.
fn forget_who_is_gone(registry: &Registry, exporter: &Exporter, recovery: &Recovery) {
    let attached: Vec<_> = registry.all().iter().map(|handle| handle.id()).collect();
    for tenant in recovery.tenants.iter().filter(|tenant| !attached.contains(&tenant.id)) {
        exporter.detach(tenant.id);
    }
}

/// A tenant of the configuration file.
fn attach(
    name: &TenantName,
    tenant: &Tenant,
    recovery: &Recovery,
    (registry, exporter, lifecycle): (&Registry, &Exporter, &Lifecycle),
) -> Result<(), Refused> {
    let identity =
        TenantIdentity { name: name.clone(), pod_uid: tenant.pod_uid.clone(), node_name: None, service_account: None };
    let handle = registry
        .attach(identity, tenant.policy.clone())
        .map_err(|error| Refused::failure(&format!("tenant {name} does not attach"), &error))?;
    let known = recovery.tenants.iter().find(|known| known.id == handle.id());
    exporter.attach(route_of(&handle, known));
    let site = Site {
        tenant: handle,
        sockets: SiteSockets::Directory(tenant.socket_dir.clone()),
        ports: tenant.ports,
        namespace: NamespaceRule::Shared,
        orphan_grace: Some(Site::ORPHAN_GRACE),
    };
    lifecycle.add(site).map_err(|error| Refused::failure(&format!("the sockets of tenant {name}"), &error))
}

/// The way of a tenant that has attached, and of what was found of it in the log, which is counted as recovered.
pub(super) fn route_of(handle: &tenant::Handle, known: Option<&RecoveredTenant>) -> Route {
    let mut route = known.map_or_else(|| new_route(handle), route);
    route.destinations = handle.policy().destinations.clone();
    route.max_age = handle.policy().queue.max_age;
    // Later than what the start found: destinations that are new begin there.
    route.cursors = handle.take_cursors();
    add_recovered(&handle.stats().recovered, &route);
    route
}

fn route(tenant: &RecoveredTenant) -> Route {
    let TenantRecord { name, destinations, max_age, .. } = tenant.record.clone();
    Route {
        tenant: tenant.id,
        name,
        destinations,
        max_age,
        cursors: tenant.cursors.clone(),
        last: tenant.last,
        pending_items: tenant.pending_items,
    }
}

fn new_route(handle: &tenant::Handle) -> Route {
    Route {
        tenant: handle.id(),
        name: handle.identity().name.clone(),
        destinations: Default::default(),
        max_age: Default::default(),
        cursors: Vec::new(),
        last: Sequence::ZERO,
        pending_items: [0; 3],
    }
}

fn add_recovered(counter: &Counter, route: &Route) {
    counter.add(Signal::ALL.iter().map(|signal| route.pending_items[signal.index()]).sum());
}

/// By name: pods of one name that followed each other are one row for people.
fn recovered_items(recovery: &Recovery) -> BTreeMap<TenantName, [u64; 3]> {
    let mut out = BTreeMap::<TenantName, [u64; 3]>::new();
    for tenant in &recovery.tenants {
        let items = out.entry(tenant.record.name.clone()).or_default();
        items.iter_mut().zip(tenant.pending_items).for_each(|(sum, items)| *sum += items);
    }
    out
}

/// Differs from start to start; the pid does not, in a container.
fn start_stamp() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

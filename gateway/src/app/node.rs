//! The worker: builds every part from the configuration, runs until it is told to stop, drains.
//!
//! Parts are built in the order in which data flows backwards, so that whatever takes data has somewhere to put it: queue,
//! sink, export, tenants, and the sockets last. They end in the order in which it flows forwards (`drain`).

mod drain;
mod views;

use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::exit::Exit;
use super::standalone;
use crate::admin;
use crate::base::handoff::Handoff;
use crate::base::ledger::Ledger;
use crate::base::stats::Counter;
use crate::base::{Signal, TenantIdentity, TenantName};
use crate::config::{Config, DestinationKind, Tenant};
use crate::export::{self, Exporter, Route};
use crate::intake;
use crate::lifecycle::{self, Lifecycle, NamespaceRule, Site};
use crate::queue::{self, OpenError, Queue, RecoveredTenant, Recovery, TenantRecord};
use crate::sink::Sink;
use crate::telemetry;
use crate::tenant::{self, Registry};

/// Committed payload on its way to export; past it, export reads from the log.
const HANDOFF_BYTES_MAX: usize = 16 << 20;

/// Requests that export builds, sends or retries.
const EXPORT_BYTES_MAX: usize = 32 << 20;

/// A segment of the log, preallocated and recycled.
const SEGMENT_BYTES: u64 = 64 << 20;

/// Appended payload that waits for the log writer.
const INBOX_BYTES_MAX: usize = 64 << 20;

/// What the supervisor tells its worker.
#[derive(Debug, Clone, Default)]
pub struct WorkerOptions {
    /// How often a worker was started again since the supervisor's start.
    pub restarts: u32,
    /// Why the one before this one ended, for example `killed by SIGKILL`.
    pub last_reason: Option<String>,
    /// Whether to print the banner and the summary, for a person at a terminal.
    pub standalone: bool,
}

/// All parts of a running worker.
struct Node {
    queue: Queue,
    sink: Option<Arc<Sink>>,
    exporter: Arc<Exporter>,
    registry: Arc<Registry>,
    lifecycle: Arc<Lifecycle>,
    /// False from the first signal on: not ready any more.
    serving: watch::Sender<bool>,
}

/// Why the worker did not start, in words and as an exit status.
struct Refused {
    exit: Exit,
    words: String,
}

/// Runs the worker.
pub fn run(config: Config, options: WorkerOptions) -> ExitCode {
    telemetry::init();
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
    lifecycle::raise_descriptor_limit();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!("the control runtime does not start: {error}");
            return Exit::Failure.into();
        }
    };
    let exit = runtime.block_on(async {
        match start(&config, &options).await {
            Ok((node, admin)) => {
                if options.standalone && options.restarts == 0 {
                    // A terminal that is gone is no reason not to serve.
                    let _ = std::io::stdout().write_all(standalone::banner(&config).as_bytes());
                }
                serve(node, admin, &options).await
            }
            Err(refused) => {
                tracing::error!("{}", refused.words);
                refused.exit
            }
        }
    });
    // Blocking work that is stuck on a dead disk must not keep the process.
    runtime.shutdown_timeout(Duration::from_millis(100));
    exit.into()
}

async fn start(config: &Config, options: &WorkerOptions) -> Result<(Arc<Node>, admin::Server), Refused> {
    let listener = bind_admin(config)?;
    let handoff = Arc::new(Handoff::new(HANDOFF_BYTES_MAX));
    let (queue, recovery) = open_queue(config, &handoff)?;
    let sink = open_sink(config)?;
    let exporter = start_export(config, &queue, &handoff, sink.as_ref())?;
    let deps = tenant::Deps {
        queue: queue.clone(),
        handoff,
        ledger: Ledger::new(config.node.memory_limit),
        node_name: config.node.name.clone(),
    };
    let failed =
        |what: &str, error: &dyn std::error::Error| Refused { exit: Exit::Failure, words: format!("{what}: {error}") };
    let registry = Registry::new(deps, config.node.workers, intake::serve)
        .map_err(|error| failed("the data workers do not start", &error))?;
    let lifecycle = Lifecycle::start().map_err(|error| failed("the acceptors do not start", &error))?;
    let node = Arc::new(Node { queue, sink, exporter, registry, lifecycle, serving: watch::Sender::new(true) });
    node.deliver_what_was_found(&recovery);
    for (name, tenant) in &config.tenants {
        node.attach(name, tenant, config.node.name.as_deref(), &recovery)?;
    }
    let sources = views::sources(&node, &recovery, options);
    let admin =
        admin::Server::start(listener, sources).map_err(|error| failed("the admin server does not start", &error))?;
    Ok((node, admin))
}

fn bind_admin(config: &Config) -> Result<TcpListener, Refused> {
    let address = config.node.admin;
    TcpListener::bind(address).map_err(|error| Refused {
        exit: Exit::AddressInUse,
        words: format!(
            "the admin address {address} cannot be bound: {error}. Stop what listens there, or choose another one with node.admin or --admin"
        ),
    })
}

fn open_queue(config: &Config, handoff: &Arc<Handoff>) -> Result<(Queue, Recovery), Refused> {
    let settings = queue::Config {
        data_dir: config.node.data_dir.clone(),
        disk_bytes_max: config.node.disk_limit,
        segment_bytes: SEGMENT_BYTES,
        inbox_bytes_max: INBOX_BYTES_MAX,
    };
    Queue::open(settings, handoff.clone()).map_err(|error| Refused {
        exit: match error {
            OpenError::Locked { .. } => Exit::DataDirLocked,
            OpenError::NewerFormat { .. } | OpenError::Io { .. } => Exit::DataDirUnusable,
        },
        words: error.to_string(),
    })
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
    };
    let started = Exporter::start(deps);
    started.map(Arc::new).map_err(|error| Refused { exit: Exit::Config, words: error.to_string() })
}

impl Node {
    /// Tenants of an earlier start deliver what they left, whether or not the configuration still lists them.
    fn deliver_what_was_found(&self, recovery: &Recovery) {
        for tenant in &recovery.tenants {
            self.exporter.attach(route(tenant));
        }
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

    fn attach(
        &self,
        name: &TenantName,
        tenant: &Tenant,
        node_name: Option<&str>,
        recovery: &Recovery,
    ) -> Result<(), Refused> {
        let identity = TenantIdentity {
            name: name.clone(),
            pod_uid: tenant.pod_uid.clone(),
            node_name: node_name.map(str::to_owned),
        };
        let handle = self.registry.attach(identity, tenant.policy.clone()).map_err(|error| Refused {
            exit: Exit::Failure,
            words: format!("tenant {name} does not attach: {error}"),
        })?;
        let known = recovery.tenants.iter().find(|known| known.id == handle.id());
        let mut route = known.map_or_else(|| new_route(&handle), route);
        route.destinations = tenant.policy.destinations.clone();
        add_recovered(&handle.stats().recovered, &route);
        self.exporter.attach(route);
        let site = Site {
            tenant: handle,
            socket_dir: tenant.socket_dir.clone(),
            ports: tenant.ports,
            namespace: NamespaceRule::Shared,
            orphan_grace: Some(Site::ORPHAN_GRACE),
        };
        self.lifecycle
            .add(site)
            .map_err(|error| Refused { exit: Exit::Failure, words: format!("the sockets of tenant {name}: {error}") })
    }
}

fn route(tenant: &RecoveredTenant) -> Route {
    let TenantRecord { name, destinations, .. } = tenant.record.clone();
    Route {
        tenant: tenant.id,
        name,
        destinations,
        cursors: tenant.cursors.clone(),
        last: tenant.last,
        pending_items: tenant.pending_items,
    }
}

fn new_route(handle: &tenant::Handle) -> Route {
    Route {
        tenant: handle.id(),
        name: handle.identity().name.clone(),
        destinations: handle.policy().destinations.clone(),
        cursors: Vec::new(),
        last: crate::base::Sequence::ZERO,
        pending_items: [0; 3],
    }
}

fn add_recovered(counter: &Counter, route: &Route) {
    counter.add(Signal::ALL.iter().map(|signal| route.pending_items[signal.index()]).sum());
}

/// Until a signal, or until the log can promise nothing any more.
async fn serve(node: Arc<Node>, admin: admin::Server, options: &WorkerOptions) -> Exit {
    let (mut terminate, mut interrupt) = match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(terminate), Ok(interrupt)) => (terminate, interrupt),
        (Err(error), _) | (_, Err(error)) => {
            tracing::error!("signals cannot be handled: {error}");
            return Exit::Failure;
        }
    };
    tracing::info!(tenants = node.registry.all().len(), admin = %admin.address(), restarts = options.restarts, "pillion is serving");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = node.queue.poisoned() => {
            tracing::error!("a write or fsync of the log has failed: nothing more can be promised. Ending; the next start recovers what is on the disk");
            return Exit::PoisonedLog;
        }
    }
    node.serving.send_replace(false);
    let again = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    drain::run(node, admin, again, options).await
}

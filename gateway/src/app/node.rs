//! The worker: builds every part from the configuration, runs until it is told to stop, drains.
//!
//! Parts are built in the order in which data flows backwards, so that whatever takes data has somewhere to put it: queue,
//! sink, export, tenants, and the sockets last. They end in the order in which it flows forwards (`drain`). Only the admin
//! server comes before them (`stage`): a gateway that waits for the data directory of another one says so.
//!
//! - `lock`: the data directory, at once or when its time has come.
//! - `build`: the parts out of the configuration.
//! - `pods`: what a pod's coming and going means for them, in a cluster.
//! - `stage` and `views`: where the admin server's answers come from.

mod build;
mod drain;
mod lock;
mod pods;
mod stage;
mod views;

use std::collections::BTreeMap;
use std::io::Write;
use std::net::TcpListener;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal as UnixSignal, SignalKind, signal};
use tokio::sync::watch;

use self::stage::Stage;
use super::exit::Exit;
use super::standalone;
use crate::admin;
use crate::base::TenantName;
use crate::config::Config;
use crate::export::Exporter;
use crate::lifecycle::{self, Lifecycle};
use crate::queue::Queue;
use crate::sink::Sink;
use crate::telemetry;
use crate::tenant::Registry;
use crate::volumes::Volumes;

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
    /// Only in a cluster.
    volumes: Option<Volumes>,
    /// Items that the start found undelivered.
    recovered: Arc<BTreeMap<TenantName, [u64; 3]>>,
    /// False from the first signal on: not ready any more.
    serving: watch::Sender<bool>,
}

/// Why the worker did not start, in words and as an exit status.
struct Refused {
    exit: Exit,
    words: String,
}

/// SIGTERM and SIGINT. From its making on neither ends the process by itself.
struct Stop {
    terminate: UnixSignal,
    interrupt: UnixSignal,
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
    let exit = runtime.block_on(work(Arc::new(config), &options)).unwrap_or_else(|refused| {
        tracing::error!("{}", refused.words);
        refused.exit
    });
    // Blocking work that is stuck on a dead disk, or waits for another gateway's lock, must not keep the process.
    runtime.shutdown_timeout(Duration::from_millis(100));
    exit.into()
}

async fn work(config: Arc<Config>, options: &WorkerOptions) -> Result<Exit, Refused> {
    let mut stop = Stop::listen()?;
    let stage = Arc::new(Stage::starting());
    let listener = bind_admin(&config)?;
    let mut admin = admin::Server::start(listener, views::sources(&stage, options))
        .map_err(|error| Refused::failure("the admin server does not start", &error))?;
    let node = tokio::select! {
        started = start(&config, &stage) => started?,
        () = stop.told() => {
            tracing::info!("told to stop before it served: there is nothing to drain");
            return Ok(Exit::Ok);
        }
    };
    if let Err(error) = admin.serve_at(&config.node.data_dir) {
        tracing::warn!(%error, "there is no admin socket in the data directory: `pillion queue` cannot ask this gateway");
    }
    if options.standalone && options.restarts == 0 {
        // A terminal that is gone is no reason not to serve.
        let _ = std::io::stdout().write_all(standalone::banner(&config).as_bytes());
    }
    Ok(serve(node, admin, stop, options).await)
}

async fn start(config: &Arc<Config>, stage: &Arc<Stage>) -> Result<Arc<Node>, Refused> {
    let lock = lock::take(config, stage).await?;
    let node = build::node(config, lock, stage).await?;
    stage.enter(node.clone());
    Ok(node)
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

/// Until a signal, or until the log can promise nothing any more.
async fn serve(node: Arc<Node>, admin: admin::Server, mut stop: Stop, options: &WorkerOptions) -> Exit {
    tracing::info!(tenants = node.registry.all().len(), admin = %admin.address(), restarts = options.restarts, "pillion is serving");
    tokio::select! {
        () = stop.told() => {}
        () = node.queue.poisoned() => {
            tracing::error!("a write or fsync of the log has failed: nothing more can be promised. Ending; the next start recovers what is on the disk");
            return Exit::PoisonedLog;
        }
    }
    node.serving.send_replace(false);
    drain::run(node, admin, stop.told(), options).await
}

impl Stop {
    fn listen() -> Result<Self, Refused> {
        let listen = |kind| signal(kind).map_err(|error| Refused::failure("signals cannot be handled", &error));
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    /// Resolves at the next one.
    async fn told(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

impl Refused {
    fn failure(what: &str, error: &dyn std::error::Error) -> Self {
        Self { exit: Exit::Failure, words: format!("{what}: {error}") }
    }
}

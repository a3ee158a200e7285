//! Where the admin server's figures come from: snapshots of the parts, taken when somebody asks.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::stage::Stage;
use super::{Node, WorkerOptions};
use crate::admin::queue::Tools;
use crate::admin::{Process, Readiness, Sources, TenantSource};

/// A data worker that does not answer for this long does not serve.
const WORKERS_PATIENCE: Duration = Duration::from_millis(800);

/// The sources hold the node, once there is one: the admin server ends before it.
pub(super) fn sources(stage: &Arc<Stage>, options: &WorkerOptions) -> Sources {
    Sources {
        process: Process {
            started: SystemTime::now(),
            restarts: options.restarts,
            last_reason: options.last_reason.clone(),
        },
        readiness: Box::new({
            let stage = stage.clone();
            move || Box::pin(readiness(stage.clone()))
        }),
        tenants: provider(stage, tenants),
        destinations: provider(stage, |node| node.exporter.snapshot()),
        custody: provider(stage, |node| node.volumes.as_ref().map(|volumes| volumes.snapshot())),
        lifecycle: provider(stage, |node| Some(node.lifecycle.counters().clone())),
        tools: provider(stage, |node| {
            let exporter = node.exporter.clone();
            Some(Tools { queue: node.queue.clone(), replay: Box::new(move || exporter.replay()) })
        }),
        queue: provider(stage, |node| node.queue.snapshot()),
        recovered: provider(stage, |node| node.recovered.clone()),
        held_bytes: provider(stage, |node| node.queue.held_bytes()),
        sink: provider(stage, |node| node.sink.clone()),
    }
}

/// Asks the node, or has nothing to say yet.
fn provider<T: Default + 'static>(stage: &Arc<Stage>, ask: fn(&Node) -> T) -> Box<dyn Fn() -> T + Send + Sync> {
    let stage = stage.clone();
    Box::new(move || stage.node().map(|node| ask(node)).unwrap_or_default())
}

async fn readiness(stage: Arc<Stage>) -> Readiness {
    let Some(node) = stage.node() else { return stage.waiting() };
    let mut reasons = Vec::new();
    if !*node.serving.borrow() {
        reasons.push("draining: told to stop".to_owned());
    }
    let queue = node.queue.snapshot();
    if queue.poisoned {
        reasons.push("the log is poisoned by a failed write or fsync; the worker is about to start again".to_owned());
    }
    if let Some(volumes) = node.volumes.as_ref().map(|volumes| volumes.snapshot())
        && !volumes.connected
    {
        let why = volumes.trouble.unwrap_or_else(|| "it has not told every volume yet".to_owned());
        reasons.push(format!("custody: {why}. Pods that are served go on, new ones wait"));
    }
    if !node.registry.responsive(WORKERS_PATIENCE).await {
        reasons.push("a data worker does not answer".to_owned());
    }
    let mut readiness = Readiness::unless(reasons);
    if queue.stalled {
        let words = "the disk of node.data_dir has not answered for seconds: data is refused until it does";
        readiness.reasons.push(words.to_owned());
    }
    // Ready all the same: what is queued is delivered, and another gateway would find the same disk.
    if queue.full {
        let words =
            "the queue is full: data is refused until some is delivered, or the filesystem of node.data_dir has space";
        readiness.reasons.push(words.to_owned());
    }
    if queue.low {
        let words =
            "the disk is nearly full: data is refused until the filesystem of node.data_dir has node.min_free again";
        readiness.reasons.push(words.to_owned());
    }
    readiness
}

fn tenants(node: &Node) -> Vec<TenantSource> {
    let source = |handle: Arc<crate::tenant::Handle>| {
        let name = handle.identity().name.clone();
        TenantSource {
            figures: handle.snapshot(),
            routes: handle.policy().destinations.clone(),
            site: node.lifecycle.snapshot(&name),
            name,
        }
    };
    node.registry.all().into_iter().map(source).collect()
}

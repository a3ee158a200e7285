//! Where the admin server's figures come from: snapshots of the parts, taken when somebody asks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::{Node, WorkerOptions};
use crate::admin::{Process, Readiness, Sources, TenantSource};
use crate::base::TenantName;
use crate::queue::Recovery;

/// A data worker that does not answer for this long does not serve.
const WORKERS_PATIENCE: Duration = Duration::from_millis(800);

/// The sources hold the node: the admin server ends before it.
pub(super) fn sources(node: &Arc<Node>, recovery: &Recovery, options: &WorkerOptions) -> Sources {
    let [for_readiness, for_tenants, for_destinations, for_queue] = std::array::from_fn(|_| node.clone());
    Sources {
        process: Process {
            started: SystemTime::now(),
            restarts: options.restarts,
            last_reason: options.last_reason.clone(),
        },
        readiness: Box::new(move || Box::pin(readiness(for_readiness.clone()))),
        tenants: Box::new(move || tenants(&for_tenants)),
        destinations: Box::new(move || for_destinations.exporter.snapshot()),
        queue: Box::new(move || for_queue.queue.snapshot()),
        recovered: recovered(recovery),
        sink: node.sink.clone(),
    }
}

/// By name: pods of one name that followed each other are one row for people.
fn recovered(recovery: &Recovery) -> BTreeMap<TenantName, [u64; 3]> {
    let mut out = BTreeMap::<TenantName, [u64; 3]>::new();
    for tenant in &recovery.tenants {
        let items = out.entry(tenant.record.name.clone()).or_default();
        items.iter_mut().zip(tenant.pending_items).for_each(|(sum, items)| *sum += items);
    }
    out
}

async fn readiness(node: Arc<Node>) -> Readiness {
    let mut reasons = Vec::new();
    if !*node.serving.borrow() {
        reasons.push("draining: told to stop".to_owned());
    }
    if node.queue.snapshot().poisoned {
        reasons.push("the log is poisoned by a failed write or fsync; the worker is about to start again".to_owned());
    }
    if !node.registry.responsive(WORKERS_PATIENCE).await {
        reasons.push("a data worker does not answer".to_owned());
    }
    Readiness::unless(reasons)
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

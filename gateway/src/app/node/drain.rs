//! The end of a worker, in stages under one absolute deadline. Each stage says what it left behind.
//!
//! ```text
//! custody    the CSI driver is told no more, and tells no more; it keeps the pods' sockets for the next gateway
//! sockets    every listener deregistered; the shims hold them, connections wait there
//! tenants    GOAWAY, requests in flight finished, workers ended
//! export     what is volatile goes to the log; requests in flight finished; cursors saved
//! queue      committed, synced, lock released
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Exit, Node, WorkerOptions};
use crate::admin;
use crate::app::output;
use crate::base::stats;
use crate::export::DrainReport;

/// SDKs tolerate about five seconds without their gateway; its successor needs some of them to start.
const DRAIN_MAX: Duration = Duration::from_secs(2);

/// The tenants' part of it; the rest belongs to export and the queue, which have promises to keep.
const TENANTS_MAX: Duration = Duration::from_millis(1_000);

/// A slow disk is waited for beyond the deadline, because a close in order makes the next start quick; one that hangs is not,
/// because whoever waits for this process would kill it in the end.
const DISK_MAX: Duration = Duration::from_secs(10);

/// What is left for the queue after export.
const QUEUE_MIN: Duration = Duration::from_millis(300);

pub(super) async fn run(
    node: Arc<Node>,
    mut admin: admin::Server,
    again: impl Future<Output = ()>,
    options: &WorkerOptions,
) -> Exit {
    let started = Instant::now();
    // Its name belongs to whoever has the lock, which is given up below.
    admin.withdraw();
    let received: u64 = node.registry.all().iter().map(|tenant| stats::total(&tenant.stats().accepted)).sum();
    if let Some(volumes) = &node.volumes {
        // First: a pod that comes now is the next gateway's.
        volumes.stop().await;
    }
    node.lifecycle.hand_off().await;
    tokio::select! {
        () = node.registry.drain_all(tokio::time::Instant::now() + TENANTS_MAX) => {}
        // A second signal skips what is left of the politeness, never of the promises.
        () = again => tracing::warn!("told to stop again: requests in flight are cut off"),
    }
    let ending = node.clone();
    let finished = tokio::task::spawn_blocking(move || {
        // Before export: what a tenant acknowledges from memory is on its way there until its worker has ended.
        ending.registry.close();
        let report = ending.exporter.drain(false, started + DRAIN_MAX - QUEUE_MIN);
        (report, ending.queue.close())
    });
    let Ok(finished) = tokio::time::timeout_at((started + DISK_MAX).into(), finished).await else {
        tracing::error!(
            "the disk of node.data_dir does not answer: ended without closing the queue. What was acknowledged as durable or \
             buffered is with the disk; the next start recovers it. Check the disk (dmesg)"
        );
        return Exit::Failure;
    };
    let Ok((report, closed)) = finished else {
        tracing::error!("draining panicked; the next start recovers what is on the disk");
        return Exit::Failure;
    };
    admin.stop();
    if let Err(error) = closed {
        tracing::error!("closing the queue: {error}; the next start recovers what is on the disk");
        return Exit::Failure;
    }
    let took = started.elapsed();
    tracing::info!(
        received,
        delivered = report.delivered_items,
        kept = report.kept_items,
        "drained in {} ms",
        took.as_millis()
    );
    if took > DRAIN_MAX {
        tracing::warn!("draining took longer than {} ms", DRAIN_MAX.as_millis());
    }
    if options.standalone {
        output::line(summary(received, report));
    }
    Exit::Ok
}

fn summary(received: u64, report: DrainReport) -> String {
    let kept = match report.kept_items {
        0 => "nothing is left to deliver".to_owned(),
        kept => format!("{kept} kept for the next start"),
    };
    format!("{received} items received, {} delivered, {kept}", report.delivered_items)
}

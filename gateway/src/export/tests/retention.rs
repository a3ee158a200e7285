//! What is too old to be delivered.

use std::time::Duration;

use super::backend::{Backend, Say};
use super::names;
use super::node::{MAX_AGE, Node, count, grpc, queued};
use crate::base::DestinationName;
use crate::base::stats::{Counter, DeliveryStats, Loss};

fn expired(stats: &DeliveryStats) -> &[Counter; 3] {
    &stats.lost[Loss::Expired as usize]
}

/// Scenario: one of two destinations is down for longer than the retention, with more queued for it than it keeps in memory;
/// shortly before the end more is committed, and after it the destination comes back.
/// Guarantees: what is too old is counted as expired, item by item, and never arrives; what is younger arrives; the other
/// destination gets everything; nothing stays queued.
#[test]
fn what_is_too_old_is_passed_and_the_rest_arrives() {
    let dir = tempfile::tempdir().expect("a directory");
    let (down, up) = (Backend::grpc(|_| Say::Status(14, None)), Backend::grpc(|_| Say::Ok));
    let node = Node::with_buffer(dir.path(), vec![grpc(&down), grpc(&up)], 1 << 20);
    let id = node.tenant("a/a");
    let filler = "x".repeat(2_000);
    names("a/a", 0..200).iter().for_each(|name| node.commit(id, &[name, &filler]));
    up.wait_for(400);
    node.queue.age(MAX_AGE - Duration::from_secs(60));
    node.commit(id, &["young"]);
    node.queue.age(Duration::from_secs(120));
    let snapshot = node.wait(|snapshot| count(&snapshot[0], expired) == 400);
    assert_eq!(count(&snapshot[1], expired), 0);

    down.now(|_| Say::Ok);
    assert_eq!(down.wait_for(1), ["young"]);
    node.wait(|snapshot| queued(snapshot) == 0);
    assert_eq!(up.wait_for(401).len(), 401);
    node.stop(false);
}

/// Scenario: a pod is gone whose destination is not configured any more; the node is started again before its data is too old.
/// Guarantees: its backlog is shown at that destination and ends with its retention, time before the restart included; then
/// the tenant is forgotten.
#[test]
fn who_is_gone_ends_although_its_destination_is_gone_too() {
    let dir = tempfile::tempdir().expect("a directory");
    let node = Node::start(dir.path(), Vec::new());
    let mut record = node.record("a/gone");
    record.destinations = std::array::from_fn(|_| vec![DestinationName("removed".into())]);
    let id = node.queue.register(&record).expect("registered").id;
    names("a/gone", 0..10).iter().for_each(|name| node.commit(id, &[name]));
    node.queue.age(MAX_AGE / 2);
    node.stop(false);

    let node = Node::start(dir.path(), Vec::new());
    let snapshot = node.wait(|snapshot| queued(snapshot) == 10);
    assert_eq!((&*snapshot[0].name.0, snapshot[0].state), ("removed", "broken"));
    node.detach(id);
    node.queue.age(MAX_AGE / 2 + Duration::from_secs(1));
    node.wait(|snapshot| snapshot[0].tenants.is_empty());
    assert_ne!(node.queue.register(&record).expect("registered").id, id);
    node.stop(false);
}

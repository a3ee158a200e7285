//! What is held in memory, and what is only there.

use std::collections::BTreeSet;

use super::backend::{Backend, Say, items};
use super::names;
use super::node::{Node, count, grpc, queued};

/// Scenario: a destination is down while far more is committed than may be in memory; then it works.
/// Guarantees: memory stays below the destination's share all the time; everything arrives afterwards, from the log.
#[test]
fn memory_is_bounded_while_a_destination_is_down() {
    const SHARE: usize = 1 << 20;
    let dir = tempfile::tempdir().expect("a directory");
    let backend = Backend::grpc(|_| Say::Status(14, None));
    let node = Node::with_buffer(dir.path(), vec![grpc(&backend)], SHARE);
    let filler = "x".repeat(10_000);
    let tenants: Vec<_> = (0..4).map(|number| node.tenant(&format!("n/t{number}"))).collect();
    let mut most = 0;
    for name in names("a", 0..400) {
        for id in &tenants {
            node.commit(*id, &[&format!("{}-{name}{filler}", id.0)]);
        }
        most = most.max(node.held_bytes());
    }
    assert!(most <= SHARE, "{most} bytes held");

    backend.now(|_| Say::Ok);
    let requests = backend.wait(|requests| items(requests).len() >= 1_600);
    assert_eq!(items(&requests).into_iter().collect::<BTreeSet<_>>().len(), 1_600);
    node.wait(|snapshot| queued(snapshot) == 0);
    assert!(node.held_bytes() <= SHARE);
    node.stop(false);
}

/// Scenario: ack memory with a destination that works.
/// Guarantees: everything arrives once, and nothing of it touches the log.
#[test]
fn ack_memory_is_delivered_without_the_log() {
    let dir = tempfile::tempdir().expect("a directory");
    let backend = Backend::grpc(|_| Say::Ok);
    let node = Node::start(dir.path(), vec![grpc(&backend)]);
    let id = node.tenant("a/a");
    let records = node.queue.snapshot().records;
    names("a/a", 0..200).iter().for_each(|name| node.volatile(id, &[name]));
    assert_eq!(backend.wait_for(200), names("a/a", 0..200));
    node.wait(|snapshot| count(&snapshot[0], |stats| &stats.delivered) == 200);
    assert_eq!(node.queue.read(id, Default::default(), 1 << 20).expect("readable").records.len(), 0);
    assert_eq!(node.queue.snapshot().records, records);
    node.stop(false);
}

/// Scenario: ack memory with two destinations of which one is down; it returns later.
/// Guarantees: what is undelivered goes to the log by itself; each destination gets each item, the one that took an item
/// from memory not again from the log.
#[test]
fn ack_memory_goes_to_the_log_when_a_destination_is_down() {
    let dir = tempfile::tempdir().expect("a directory");
    let (dead, live) = (Backend::grpc(|_| Say::Status(14, None)), Backend::grpc(|_| Say::Ok));
    let node = Node::start(dir.path(), vec![grpc(&dead), grpc(&live)]);
    let id = node.tenant("a/a");
    let expected = names("a/a", 0..100);
    for name in &expected {
        node.volatile(id, &[name]);
    }
    live.wait_for(100);
    node.wait(|_| {
        let read = node.queue.read(id, Default::default(), 1 << 20).expect("readable");
        read.records.len() == 100
    });
    dead.now(|_| Say::Ok);
    dead.wait_for(100);
    node.wait(|snapshot| queued(snapshot) == 0);
    assert_eq!(items(&live.wait(|_| true)), expected);
    assert_eq!(items(&dead.wait(|_| true)), expected);
    node.stop(false);
}

/// Scenario: the node is drained while batches of ack memory could not be delivered; another is started.
/// Guarantees: they are in the log before the drain ends, and delivered by the next node.
#[test]
fn a_drain_puts_ack_memory_into_the_log() {
    let dir = tempfile::tempdir().expect("a directory");
    let backend = Backend::grpc(|_| Say::Status(16, None));
    let node = Node::start(dir.path(), vec![grpc(&backend)]);
    let id = node.tenant("a/a");
    let expected = names("a/a", 0..50);
    expected.iter().for_each(|name| node.volatile(id, &[name]));
    node.stop(false);

    backend.now(|_| Say::Ok);
    let node = Node::start(dir.path(), vec![grpc(&backend)]);
    assert_eq!(backend.wait_for(50), expected);
    node.stop(false);
}

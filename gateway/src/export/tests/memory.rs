//! What is held in memory, and what is only there.

use std::collections::BTreeSet;
use std::time::Duration;

use super::backend::{Backend, Say, items};
use super::names;
use super::node::{Node, PATIENCE, count, destination, grpc, queued};
use crate::config::DestinationKind;
use crate::export::Spill;
use crate::sink::Sink;

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
    backend.wait(|requests| items(requests).into_iter().collect::<BTreeSet<_>>().len() == 1_600);
    node.wait(|snapshot| queued(snapshot) == 0);
    assert!(node.held_bytes() <= SHARE);
    node.stop(false);
}

/// Scenario: a destination takes requests and does not answer, so that memory fills up to its share; then it fails.
/// Guarantees: what it no longer takes is forgotten, down to a small rest, and read again when it works.
#[test]
fn a_destination_that_fails_gives_its_memory_back() {
    const SHARE: usize = 2 << 20;
    let dir = tempfile::tempdir().expect("a directory");
    let backend = Backend::grpc(|_| Say::Hang);
    let mut destination = grpc(&backend);
    destination.timeout = Duration::from_secs(60);
    let node = Node::with_buffer(dir.path(), vec![destination], SHARE);
    let tenants: Vec<_> = (0..4).map(|number| node.tenant(&format!("n/t{number}"))).collect();
    let filler = "x".repeat(30_000);
    for name in names("a", 0..40) {
        for id in &tenants {
            node.commit(*id, &[&format!("{}-{name}{filler}", id.0)]);
        }
    }
    node.wait_for_memory(|held| held > SHARE / 4);
    backend.now(|_| Say::Status(14, None));
    node.wait_for_memory(|held| held <= SHARE / 8);

    backend.now(|_| Say::Ok);
    backend.wait(|requests| items(requests).into_iter().collect::<BTreeSet<_>>().len() == 160);
    node.stop(false);
}

/// Scenario: ack memory with a destination that works.
/// Guarantees: everything arrives once, and nothing of it touches the log.
#[test]
fn ack_memory_is_delivered_without_the_log() {
    let dir = tempfile::tempdir().expect("a directory");
    let backend = Backend::grpc(|_| Say::Ok);
    let spill = Spill { patience: PATIENCE, ..Spill::default() };
    let node = Node::with_spill(dir.path(), vec![grpc(&backend)], 64 << 20, None, spill);
    let id = node.tenant("a/a");
    names("a/a", 0..200).iter().for_each(|name| node.volatile(id, &[name]));
    assert_eq!(backend.wait_for(200), names("a/a", 0..200));
    node.wait(|snapshot| count(&snapshot[0], |stats| &stats.delivered) == 200);
    // Its data, that is; how much was delivered is saved with the cursors.
    assert_eq!(node.queue.read(id, Default::default(), 1 << 20).expect("readable").records.len(), 0);
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

/// Scenario: the drain comes while a whole window of ack memory is in flight without an answer, and more waits.
/// Guarantees: all of it is in the log when the drain ends, which keeps enough of its time for that.
#[test]
fn a_drain_puts_what_is_in_flight_into_the_log() {
    let dir = tempfile::tempdir().expect("a directory");
    let backend = Backend::grpc(|_| Say::Hang);
    let spill = Spill { reserve: PATIENCE, ..Spill::default() };
    let mut destination = grpc(&backend);
    destination.timeout = Duration::from_secs(1);
    let node = Node::with_spill(dir.path(), vec![destination], 64 << 20, None, spill);
    let id = node.tenant("a/a");
    let filler = "x".repeat(70_000);
    let expected: Vec<_> = names("a/a", 0..12).into_iter().map(|name| format!("{name}{filler}")).collect();
    expected.iter().for_each(|name| node.volatile(id, &[name]));
    backend.wait(|requests| requests.len() >= 8);
    assert_eq!(node.stop(false).delivered_items, 0);

    backend.now(|_| Say::Ok);
    let node = Node::start(dir.path(), vec![grpc(&backend)]);
    assert_eq!(backend.wait_for(12), expected);
    node.stop(false);
}

/// Scenario: the destination is the embedded sink; durable and ack memory batches of two tenants; a restart.
/// Guarantees: each item is counted once, and nothing is left in the queue.
#[test]
fn the_sink_counts_everything_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let sink = Sink::open(&dir.path().join("sink")).expect("it opens");
    for life in 0..2 {
        let destinations = vec![destination(DestinationKind::Sink)];
        let node = Node::with(&dir.path().join("data"), destinations, 1 << 20, Some(sink.clone()));
        for tenant in ["a/a", "b/b"] {
            let id = node.tenant(tenant);
            names(tenant, 0..50).iter().for_each(|name| node.commit(id, &[name]));
            names(tenant, 50..100).iter().for_each(|name| node.volatile(id, &[name]));
        }
        let delivered = (life + 1) * 200;
        let in_sink = || sink.view(0).totals.logs;
        node.wait(|snapshot| queued(snapshot) == 0 && in_sink() == delivered);
        node.stop(false);
        assert_eq!(in_sink(), delivered);
    }
}

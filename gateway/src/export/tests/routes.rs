//! Signals that change their destinations.

use super::backend::{Backend, Say};
use super::names;
use super::node::{Node, grpc, queued};

/// Scenario: a tenant's logs go to one destination, which is down, and its metrics to another; the node is started again
/// with the logs going to the other one.
/// Guarantees: the logs' backlog goes there, all of it and once, although that destination has come further with metrics.
#[test]
fn a_signal_that_moves_takes_its_backlog_along() {
    let dir = tempfile::tempdir().expect("a directory");
    let (down, up) = (Backend::grpc(|_| Say::Status(14, None)), Backend::grpc(|_| Say::Ok));
    let node = Node::start(dir.path(), vec![grpc(&down), grpc(&up)]);
    let [first, second] = [node.names[0].clone(), node.names[1].clone()];
    let mut record = node.record("a/a");
    record.destinations = [vec![], vec![second.clone()], vec![first]];
    let id = node.route(&record);
    let expected = names("a/a", 0..50);
    expected.iter().for_each(|name| node.commit(id, &[name]));
    node.wait(|snapshot| queued(&snapshot[..1]) == 50 && queued(&snapshot[1..]) == 0);
    node.stop(false);

    let node = Node::start(dir.path(), vec![grpc(&down), grpc(&up)]);
    record.destinations[2] = vec![second];
    assert_eq!(node.route(&record), id);
    assert_eq!(up.wait_for(50), expected);
    node.stop(false);
}

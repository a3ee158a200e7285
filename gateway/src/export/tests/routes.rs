//! Signals that change their destinations.

use super::backend::{Backend, Say};
use super::names;
use super::node::{Node, count, grpc, queued};
use crate::base::stats::{Counter, DeliveryStats, Loss};
use crate::config::{Destination, StartAt};

fn removed(stats: &DeliveryStats) -> &[Counter; 3] {
    &stats.lost[Loss::DestinationRemoved as usize]
}

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

/// Scenario: a tenant's destination takes nothing, another one everything; the first one is removed while both are at work, named
/// again, and removed once more over a restart that adds a third one, which begins at the tail.
/// Guarantees: what the first one had not got is counted there, once and item by item, and nothing of it stays queued or is sent after
/// all; the third one gets what is appended after it was added, and only that, over a further restart.
#[test]
fn what_a_removed_destination_had_not_got_is_counted_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let (down, up) = (Backend::grpc(|_| Say::Status(14, None)), Backend::grpc(|_| Say::Ok));
    let late = Backend::grpc(|_| Say::Ok);
    let destinations = || vec![grpc(&down), grpc(&up), Destination { start: StartAt::Tail, ..grpc(&late) }];
    let node = Node::start(dir.path(), destinations());
    let [first, second, third] = [node.names[0].clone(), node.names[1].clone(), node.names[2].clone()];
    let mut record = node.record("a/a");
    record.destinations[2] = vec![first.clone(), second.clone()];
    let id = node.route(&record);
    names("a/a", 0..50).iter().for_each(|name| node.commit(id, &[name]));
    node.wait(|snapshot| queued(&snapshot[..1]) == 50 && queued(&snapshot[1..]) == 0 && node.has_saved_logs(&second));

    record.destinations[2] = vec![second.clone()];
    node.route(&record);
    node.wait(|snapshot| count(&snapshot[0], removed) == 50 && queued(snapshot) == 0);
    record.destinations[2] = vec![first.clone(), second.clone()];
    node.route(&record);
    names("a/a", 50..70).iter().for_each(|name| node.commit(id, &[name]));
    node.wait(|snapshot| queued(&snapshot[..1]) == 20 && queued(&snapshot[1..]) == 0 && node.has_saved_logs(&second));
    node.stop(false);

    let node = Node::start(dir.path(), destinations());
    record.destinations[2] = vec![second.clone(), third.clone()];
    assert_eq!(node.route(&record), id);
    node.wait(|snapshot| count(&snapshot[0], removed) == 20 && queued(snapshot) == 0);
    names("a/a", 70..80).iter().for_each(|name| node.commit(id, &[name]));
    assert_eq!(late.wait_for(10), names("a/a", 70..80));
    node.wait(|snapshot| queued(snapshot) == 0 && node.has_saved_logs(&third));
    node.stop(false);

    down.now(|_| Say::Ok);
    let node = Node::start(dir.path(), destinations());
    record.destinations[2] = vec![first, second, third];
    assert_eq!(node.route(&record), id);
    node.commit(id, &["the last"]);
    // Named again it goes on where it was removed.
    let since: Vec<_> = names("a/a", 70..80).into_iter().chain(["the last".to_owned()]).collect();
    assert_eq!(down.wait_for(11), since);
    assert_eq!(late.wait_for(11), since);
    node.wait(|snapshot| queued(snapshot) == 0);
    assert_eq!((down.wait_for(11).len(), up.wait_for(81).len(), late.wait_for(11).len()), (11, 81, 11));
    node.stop(false);
}

/// Scenario: of a tenant's two destinations one takes nothing, the other one everything; the node is started again.
/// Guarantees: what waits is told for the one alone: the other one's lane is caught up from the start on, without any traffic.
#[test]
fn a_lane_that_has_everything_shows_nothing_at_a_start() {
    let dir = tempfile::tempdir().expect("a directory");
    let (down, up) = (Backend::grpc(|_| Say::Status(14, None)), Backend::grpc(|_| Say::Ok));
    let node = Node::start(dir.path(), vec![grpc(&down), grpc(&up)]);
    let id = node.tenant("a/a");
    names("a/a", 0..50).iter().for_each(|name| node.commit(id, &[name]));
    node.wait(|snapshot| {
        queued(&snapshot[..1]) == 50 && queued(&snapshot[1..]) == 0 && node.has_saved_logs(&node.names[1])
    });
    node.stop(false);

    let node = Node::start(dir.path(), vec![grpc(&down), grpc(&up)]);
    node.wait(|snapshot| snapshot[0].failures > 0);
    assert_eq!(node.stop(false).kept_items, 50);
}

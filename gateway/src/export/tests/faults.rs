//! Whose fault it is, and that nobody else pays for it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::backend::{Backend, Request, Say, items};
use super::node::{Node, count, grpc, http, queued};
use super::{names, node};
use crate::config::{Header, HeaderSource, Retry};

fn holds(request: &Request, text: &str) -> bool {
    request.items.iter().any(|item| item.contains(text))
}

fn unique(requests: &[Request]) -> BTreeSet<String> {
    items(requests).into_iter().collect()
}

/// Scenario: the destination refuses the token; while it does, more is committed; the token's file is replaced.
/// Guarantees: the state says that the destination is at fault; there are few probes; after the rotation everything
/// arrives and nothing is a dead letter.
#[test]
fn refused_credentials_keep_everything_queued_until_the_token_is_replaced() {
    for over_http in [false, true] {
        let dir = tempfile::tempdir().expect("a directory");
        let token = dir.path().join("token");
        std::fs::write(&token, "old\n").expect("written");
        let mind = move |request: &Request| match request.headers["authorization"].as_bytes() {
            b"Bearer new" => Say::Ok,
            _ if over_http => Say::Http(401, None),
            _ => Say::Status(16, None),
        };
        let backend = if over_http { Backend::http(mind) } else { Backend::grpc(mind) };
        let mut destination = if over_http { http(&backend) } else { grpc(&backend) };
        let value = HeaderSource::Template { prefix: "Bearer ".into(), file: token.clone(), suffix: String::new() };
        destination.headers = vec![Header { name: http::header::AUTHORIZATION, value }];
        let node = Node::start(&dir.path().join("data"), vec![destination]);
        let id = node.tenant("a/a");
        names("a/a", 0..100).iter().for_each(|name| node.commit(id, &[name]));
        node.wait(|snapshot| snapshot[0].state == "broken");
        let error = node.snapshot()[0].last_error.clone().expect("an error");
        assert!(!error.contains("old"), "credentials are never shown: {error}");

        std::fs::write(&token, "new\n").expect("written");
        assert_eq!(unique(&backend.wait(|requests| unique(requests).len() == 100)).len(), 100);
        let snapshot = node.wait(|snapshot| queued(snapshot) == 0 && snapshot[0].state == "ok");
        assert_eq!(count(&snapshot[0], |stats| &stats.dead_letters), 0);
        node.stop(false);
    }
}

/// Scenario: one tenant of twenty sends a batch that the destination cannot accept, merged with the others'.
/// Guarantees: only the poison becomes a dead letter; everything else arrives, the poisoner's good batches too.
#[test]
fn a_poison_batch_is_isolated_from_those_it_was_merged_with() {
    let dir = tempfile::tempdir().expect("a directory");
    let backend = Backend::grpc(|_| Say::Status(14, None));
    let node = Node::start(dir.path(), vec![grpc(&backend)]);
    let tenants: Vec<_> =
        (0..20).map(|number| (format!("n/t{number}"), node.tenant(&format!("n/t{number}")))).collect();
    for (name, id) in &tenants {
        names(name, 0..5).iter().for_each(|name| node.commit(*id, &[name]));
    }
    node.commit(tenants[7].1, &["poison"]);
    names("later", 0..5).iter().for_each(|name| node.commit(tenants[7].1, &[name]));
    backend.now(|request| if holds(request, "poison") { Say::Status(3, None) } else { Say::Ok });

    let requests = backend.wait(|requests| unique(requests).len() == 105);
    assert!(requests.iter().any(|request| holds(request, "poison") && request.items.len() > 1), "it was merged");
    let snapshot = node.wait(|snapshot| queued(snapshot) == 0);
    assert_eq!(count(&snapshot[0], |stats| &stats.dead_letters), 1);
    assert_eq!(count(&snapshot[0], |stats| &stats.delivered), 105);
    assert_eq!(items(&backend.wait(|_| true)).len(), 105, "none twice");
    assert_eq!(node.letters().len(), 1, "it is kept");
    node.stop(false);
}

/// Scenario: a destination refuses the content of everything for a while, then works.
/// Guarantees: a destination that refuses everything is at fault itself: no dead letter, and all of it arrives.
#[test]
fn a_destination_that_refuses_everything_makes_no_dead_letters() {
    let dir = tempfile::tempdir().expect("a directory");
    let backend = Backend::grpc(|_| Say::Ok);
    let node = Node::start(dir.path(), vec![grpc(&backend)]);
    let id = node.tenant("a/a");
    node.commit(id, &["first"]);
    backend.wait_for(1);
    backend.now(|_| Say::Status(3, None));
    names("a/a", 0..50).iter().for_each(|name| node.commit(id, &[name]));
    node.wait(|snapshot| snapshot[0].state == "broken");

    backend.now(|_| Say::Ok);
    backend.wait(|requests| unique(requests).len() == 51);
    let snapshot = node.wait(|snapshot| queued(snapshot) == 0);
    assert_eq!(count(&snapshot[0], |stats| &stats.dead_letters), 0);
    node.stop(false);
}

/// Answers that say nothing of the content: who asks has no right, no such path or method, and so on.
const HTTP_OWN_FAULTS: [u16; 13] = [401, 403, 404, 405, 407, 410, 415, 421, 426, 431, 451, 501, 505];
const GRPC_OWN_FAULTS: [u16; 4] = [16, 7, 5, 12];

/// All of them in turn.
fn own_fault(number: usize, over_http: bool) -> Say {
    match over_http {
        true => Say::Http(HTTP_OWN_FAULTS[number % HTTP_OWN_FAULTS.len()], None),
        false => Say::Status(GRPC_OWN_FAULTS[number % GRPC_OWN_FAULTS.len()], None),
    }
}

/// Scenario: for as many tries as an hour has at the usual pace of one in thirty seconds, the destination gives every answer that is
/// its own fault, in turn: 401, 403, a wrong path, a wrong method and so on; then it works.
/// Guarantees: it costs nothing: one request is tried at a time, nothing becomes a dead letter, and all of it arrives once.
#[test]
fn an_hour_of_refusals_that_are_the_destinations_own_fault_costs_nothing() {
    const TRIES: usize = 120;
    for over_http in [false, true] {
        let tries = Arc::new(AtomicUsize::new(0));
        let counted = tries.clone();
        let mind = move |_: &Request| match counted.fetch_add(1, Ordering::SeqCst) {
            TRIES.. => Say::Ok,
            number => own_fault(number, over_http),
        };
        let backend = if over_http { Backend::http(mind) } else { Backend::grpc(mind) };
        let mut destination = if over_http { http(&backend) } else { grpc(&backend) };
        let millis = Duration::from_millis;
        destination.retry = Retry { initial_interval: millis(1), max_interval: millis(1) };
        let dir = tempfile::tempdir().expect("a directory");
        let node = Node::start(dir.path(), vec![destination]);
        let tenants: Vec<_> = ["a/a", "b/b", "c/c"].map(|name| (name, node.tenant(name))).into();
        for (name, id) in &tenants {
            names(name, 0..30).iter().for_each(|name| node.commit(*id, &[name]));
        }
        backend.wait(|requests| unique(requests).len() == 90);
        let snapshot = node.wait(|snapshot| queued(snapshot) == 0);
        assert_eq!(count(&snapshot[0], |stats| &stats.dead_letters), 0);
        assert_eq!(count(&snapshot[0], |stats| &stats.delivered), 90);
        assert!(tries.load(Ordering::SeqCst) >= TRIES);
        assert!(node.letters().is_empty());
        node.stop(false);
    }
}

/// Scenario: the destination gives one tenant every answer that is its own fault, in turn and several times over, while it accepts what
/// two others keep sending; then it accepts that tenant's too.
/// Guarantees: that others are accepted is no evidence against its content: nothing becomes a dead letter, and all of it arrives once.
#[test]
fn refusals_of_one_tenant_that_are_the_destinations_own_fault_cost_nothing() {
    const ROUNDS: usize = 4;
    for over_http in [false, true] {
        let tries = ROUNDS * if over_http { HTTP_OWN_FAULTS.len() } else { GRPC_OWN_FAULTS.len() };
        let refused = Arc::new(AtomicUsize::new(0));
        let counted = refused.clone();
        let mind = move |request: &Request| {
            if !holds(request, "a/a") {
                return Say::Ok;
            }
            match counted.fetch_add(1, Ordering::SeqCst) {
                number if number >= tries => Say::Ok,
                number => own_fault(number, over_http),
            }
        };
        let backend = if over_http { Backend::http(mind) } else { Backend::grpc(mind) };
        let mut destination = if over_http { http(&backend) } else { grpc(&backend) };
        let millis = Duration::from_millis;
        destination.retry = Retry { initial_interval: millis(1), max_interval: millis(1) };
        let dir = tempfile::tempdir().expect("a directory");
        let node = Node::start(dir.path(), vec![destination]);
        let [one, second, third] = ["a/a", "b/b", "c/c"].map(|name| node.tenant(name));
        node.commit(one, &["a/a alone"]);
        let mut others = 0;
        while refused.load(Ordering::SeqCst) < tries {
            // The evidence that content is judged by: something was accepted since.
            for (name, id) in [("b/b", second), ("c/c", third)] {
                node.commit(id, &[&format!("{name} {others}")]);
                others += 1;
            }
            backend.wait(|requests| unique(requests).iter().filter(|item| !item.starts_with("a/a")).count() == others);
            assert!(node.letters().is_empty(), "{:?}", node.snapshot());
        }
        backend.wait(|requests| unique(requests).len() == others + 1);
        let snapshot = node.wait(|snapshot| queued(snapshot) == 0);
        assert_eq!(count(&snapshot[0], |stats| &stats.dead_letters), 0);
        node.stop(false);
    }
}

/// Scenario: the destination answers some requests with delays, resets streams, says GOAWAY, and is silent once.
/// Guarantees: every item arrives; what was certainly not accepted is not counted as delivered.
#[test]
fn every_item_survives_refusals_resets_and_goaways() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut turn = 0;
    let backend = Backend::grpc(move |_| {
        turn += 1;
        match turn % 6 {
            1 => Say::Status(14, Some(Duration::from_millis(5))),
            2 => Say::Reset,
            3 => Say::GoAway,
            4 if turn == 4 => Say::Hang,
            _ => Say::Ok,
        }
    });
    let mut destination = grpc(&backend);
    destination.timeout = Duration::from_millis(300);
    let node = Node::start(dir.path(), vec![destination]);
    let id = node.tenant("a/a");
    names("a/a", 0..200).iter().for_each(|name| node.commit(id, &[name]));
    // How many requests they make depends on how they are merged; one at a time, the sixth at the latest meets a GOAWAY.
    let mut sent = 200;
    let connections = |requests: &[Request]| requests.iter().map(|request| request.connection).max();
    while connections(&backend.wait(|requests| unique(requests).len() == sent)) <= Some(1) {
        assert!(sent < 300, "GOAWAY ends a connection");
        node.commit(id, &names("a/a", sent..sent + 1).iter().map(String::as_str).collect::<Vec<_>>());
        sent += 1;
    }
    let snapshot = node.wait(|snapshot| queued(snapshot) == 0);
    assert_eq!(count(&snapshot[0], |stats| &stats.delivered), sent as u64);
    node.stop(false);
}

/// Scenario: one tenant's data is always answered with UNAVAILABLE, as if the backend choked on it.
/// Guarantees: the others get through, the first one is tried at the pace of its backoff, and nothing of it is dropped.
#[test]
fn a_tenant_that_chokes_the_backend_keeps_nobody_else_from_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let backend = Backend::grpc(|_| Say::Status(14, None));
    let mut destination = grpc(&backend);
    destination.retry = Retry { initial_interval: Duration::from_millis(200), max_interval: Duration::from_secs(1) };
    let node = Node::start(dir.path(), vec![destination]);
    let (bad, good) = (node.tenant("n/bad"), node.tenant("n/good"));
    let filler = "x".repeat(70_000);
    for name in names("good", 0..200) {
        node.commit(bad, &["choke"]);
        node.commit(good, &[&format!("{name}{filler}")]);
    }
    let before = backend.wait(|requests| !requests.is_empty()).len();
    backend.now(|request| if holds(request, "choke") { Say::Status(14, None) } else { Say::Ok });
    backend.wait(|requests| unique(requests).len() == 200);
    node.wait(|snapshot| count(&snapshot[0], |stats| &stats.delivered) == 200 && queued(snapshot) == 200);
    let requests = backend.wait(|_| true);
    let tries = requests[before..].iter().filter(|request| holds(request, "choke")).count();
    assert!(tries < 50, "{tries} tries: one for each of the others would be no pause at all");
    assert_eq!(node.stop(false).kept_items, 200);
}

/// Scenario: a merged request of two tenants is accepted in part.
/// Guarantees: nothing is sent again, and the rejected items are counted, in sum exactly.
#[test]
fn a_partial_success_is_final_and_counted() {
    let dir = tempfile::tempdir().expect("a directory");
    let backend = Backend::grpc(|_| Say::Status(14, None));
    let node = Node::start(dir.path(), vec![grpc(&backend)]);
    for tenant in ["a/a", "b/b"] {
        let id = node.tenant(tenant);
        names(tenant, 0..10).iter().for_each(|name| node.commit(id, &[name]));
    }
    let mut left = 3;
    // A retried request may hold fewer than three.
    backend.now(move |request| {
        let rejected = left.min(i64::try_from(request.items.len()).expect("twenty at most"));
        left -= rejected;
        if rejected > 0 { Say::Partial(rejected) } else { Say::Ok }
    });
    backend.wait_for(20);
    let snapshot = node.wait(|snapshot| queued(snapshot) == 0);
    assert_eq!(count(&snapshot[0], |stats| &stats.rejected), 3);
    assert_eq!(items(&backend.wait(|_| true)).len(), 20);
    node.stop(false);
}

/// Scenario: a batch is larger than the destination's configured limit; another is larger than what it takes in truth.
/// Guarantees: no request exceeds the configured limit, and in both cases all items arrive without a dead letter.
#[test]
fn large_batches_are_split_at_item_level() {
    let dir = tempfile::tempdir().expect("a directory");
    let backend = Backend::grpc(|request| if request.bytes > 150_000 { Say::Status(8, None) } else { Say::Ok });
    let mut destination = grpc(&backend);
    destination.max_message_bytes = 200_000;
    let node = Node::start(dir.path(), vec![destination]);
    let id = node.tenant("a/a");
    let filler = "x".repeat(1_000);
    let large: Vec<_> = names("a/a", 0..1_000).into_iter().map(|name| format!("{name}{filler}")).collect();
    node.commit(id, &large.iter().map(String::as_str).collect::<Vec<_>>());
    let requests = backend.wait(|requests| unique(requests).len() == 1_000);
    assert!(requests.iter().all(|request| request.bytes <= 200_000));
    let snapshot = node.wait(|snapshot| queued(snapshot) == 0);
    assert_eq!(count(&snapshot[0], |stats| &stats.delivered), 1_000);
    assert_eq!(count(&snapshot[0], |stats| &stats.dead_letters), 0);
    node.stop(false);
}

/// Scenario: one item alone is larger than the destination's limit.
/// Guarantees: it is not sent, but kept as a dead letter; the other items arrive.
#[test]
fn an_item_over_the_limit_is_a_dead_letter_and_never_sent() {
    let dir = tempfile::tempdir().expect("a directory");
    let backend = Backend::grpc(|_| Say::Ok);
    let mut destination = grpc(&backend);
    destination.max_message_bytes = 100_000;
    let node = Node::start(dir.path(), vec![destination]);
    let id = node.tenant("a/a");
    node.commit(id, &[&"x".repeat(120_000)]);
    node.commit(id, &["fine"]);
    assert_eq!(backend.wait_for(1), ["fine"]);
    let snapshot = node.wait(|snapshot| queued(snapshot) == 0);
    assert_eq!(count(&snapshot[0], |stats| &stats.dead_letters), 1);
    node.stop(false);
}

/// Scenario: two destinations, one of them refuses everything.
/// Guarantees: each has a queue of its own; the working one gets everything at once, the other when it works again.
#[test]
fn destinations_do_not_wait_for_each_other() {
    let dir = tempfile::tempdir().expect("a directory");
    let (dead, live) = (Backend::grpc(|_| Say::Status(7, None)), Backend::http(|_| Say::Ok));
    let node = Node::start(dir.path(), vec![grpc(&dead), node::http(&live)]);
    let id = node.tenant("a/a");
    names("a/a", 0..100).iter().for_each(|name| node.commit(id, &[name]));
    live.wait_for(100);
    dead.now(|_| Say::Ok);
    dead.wait_for(100);
    node.wait(|snapshot| queued(snapshot) == 0);
    node.stop(false);
}

/// Scenario: a tenant's record that the destination refuses is larger than the destination's share of memory; then another tenant
/// commits what the destination would take.
/// Guarantees: it arrives, whatever becomes of the record.
#[test]
fn a_record_under_suspicion_keeps_nobody_else_from_the_destination() {
    let dir = tempfile::tempdir().expect("a directory");
    let backend = Backend::grpc(|_| Say::Ok);
    let node = Node::with_buffer(dir.path(), vec![grpc(&backend)], 1 << 20);
    let (bad, good) = (node.tenant("n/bad"), node.tenant("n/good"));
    node.commit(good, &["first"]);
    backend.wait_for(1);
    node.wait(|snapshot| queued(snapshot) == 0);
    backend.now(|request| if holds(request, "poison") { Say::Status(3, None) } else { Say::Ok });
    node.commit(bad, &[&format!("poison{}", "x".repeat(2_000_000))]);
    node.wait(|snapshot| snapshot[0].state == "broken");
    names("good", 0..50).iter().for_each(|name| node.commit(good, &[name]));
    backend.wait(|requests| unique(requests).len() == 51);
    node.stop(false);
}

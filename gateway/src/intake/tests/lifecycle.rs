//! When requests are acknowledged, and how connections end.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::time::Duration;

use tokio::time::Instant;

use super::harness::*;
use crate::base::handoff::Arrival;
use crate::base::{AckPolicy, Signal};
use crate::queue::AppendError;
use crate::tenant::testing::policy;
use crate::tenant::{Accepted, SocketKind, State};

fn far() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

/// Scenario: the commit of a request takes its time, while another request on the same connection is refused at once.
/// Guarantees: no acknowledgement before the commit, and one right after it. The commit waits for the disk (sync).
#[tokio::test]
async fn nothing_is_acknowledged_before_its_commit() {
    let mut pod = Pod::new();
    pod.bench.log.withhold();
    let client = pod.grpc().await;
    let body = message(Signal::Traces, 5, 1);
    let mut waiting = pin!(call(&client, Signal::Traces, "identity", &body));
    assert!(futures_util::poll!(waiting.as_mut()).is_pending());
    tokio::select! {
        biased;
        () = pod.bench.log.arrived(1) => {}
        answer = waiting.as_mut() => panic!("acknowledged before it was even appended: {answer:?}"),
    }

    // A whole round trip later the first one is still unanswered.
    let other = send(&client, grpc_head("/other", "identity"), b"").await;
    assert_eq!(other.grpc_status(), 12);
    assert!(futures_util::poll!(waiting.as_mut()).is_pending());
    assert_eq!(pod.handle.snapshot().accepted, [0; 3]);

    pod.bench.log.commit(Ok(()));

    assert_eq!(waiting.await.grpc_status(), 0);
    assert_eq!(pod.handle.snapshot().accepted, [5, 0, 0]);
    assert!(pod.bench.log.committed()[0].sync);
    pod.close().await;
}

/// Scenario: the group commit of a request fails.
/// Guarantees: UNAVAILABLE with a delay, and nothing counted as accepted.
#[tokio::test]
async fn a_failed_commit_is_a_refusal() {
    let mut pod = Pod::new();
    pod.bench.log.withhold();
    let client = pod.grpc().await;
    let body = message(Signal::Traces, 5, 1);
    let committed = async {
        pod.bench.log.arrived(1).await;
        pod.bench.log.commit(Err(AppendError::Poisoned));
    };

    let (answer, ()) = tokio::join!(call(&client, Signal::Traces, "identity", &body), committed);

    assert_eq!((answer.grpc_status(), answer.details()), (14, vec!["RetryInfo".to_owned()]));
    assert_eq!((pod.handle.snapshot().accepted, pod.handle.snapshot().refused), ([0; 3], [5, 0, 0]));
    drop(client);
    pod.close().await;
}

/// Scenario: a client gives up while its request waits for the commit.
/// Guarantees: the commit counts all the same, exactly once: the balance closes over what is in the log.
#[tokio::test]
async fn a_commit_counts_even_when_nobody_waits_for_it() {
    let mut pod = Pod::new();
    pod.bench.log.withhold();
    let client = pod.grpc().await;
    let mut ready = client.clone().ready().await.unwrap();
    let (response, mut stream) = ready.send_request(grpc_head(Signal::Traces.grpc_path(), "identity"), false).unwrap();
    stream.send_data(framed(0, &message(Signal::Traces, 7, 1)), true).unwrap();
    pod.bench.log.arrived(1).await;

    drop((response, stream, ready, client));
    pod.bench.log.commit(Ok(()));

    let handle = pod.handle.clone();
    pod.close().await;
    assert_eq!(handle.snapshot().accepted, [7, 0, 0]);
}

/// Scenario: a tenant with ack buffered, and one with ack memory.
/// Guarantees: buffered does not wait for the disk; memory is answered at once and handed to export with its reservation,
/// which ends with the batch.
#[tokio::test]
async fn each_ack_policy_takes_its_own_way() {
    let mut buffered = policy();
    buffered.ack = AckPolicy::Buffered;
    let mut pod = Pod::with(buffered);
    let client = pod.grpc().await;
    let body = message(Signal::Logs, 2, 1);
    assert_eq!(call(&client, Signal::Logs, "identity", &body).await.grpc_status(), 0);
    assert!(!pod.bench.log.committed()[0].sync);

    let mut memory = policy();
    memory.ack = AckPolicy::Memory;
    let identity = pod.handle.identity().clone();
    pod.bench.registry.attach(identity, memory).unwrap();
    // The change reaches the tenant's task with the next thing it is told.
    let again = pod.grpc().await;
    assert_eq!(call(&again, Signal::Logs, "identity", &body).await.grpc_status(), 0);

    let mut arrivals = VecDeque::new();
    poll_fn(|cx| pod.bench.handoff.poll_take(cx, &mut arrivals)).await;
    let Some(Arrival::Volatile(batch)) = arrivals.pop_front() else { panic!("ack memory goes straight to export") };
    assert_eq!((batch.items, batch.signal, pod.bench.log.committed().len()), (2, Signal::Logs, 1));
    assert_eq!(batch.guard.as_ref().unwrap().bytes(), batch.payload.len() as u64);
    assert_eq!(pod.handle.snapshot().accepted, [0, 0, 4]);
    drop((batch, client, again));
    pod.close().await;
}

/// Scenario: a tenant drains with a call in flight on one connection and nothing on two others.
/// Guarantees: the idle ones close at once, the call is finished and answered, and only then is the drain over.
#[tokio::test]
async fn a_drain_finishes_what_is_in_flight() {
    let mut pod = Pod::new();
    pod.bench.log.withhold();
    let (busy, idle, mut old) = (pod.grpc().await, pod.grpc().await, pod.http1().await);
    assert_eq!(send(&idle, grpc_head("/other", "identity"), b"").await.grpc_status(), 12);
    assert_eq!(post(&mut old, http_head("/other", None), b"").await.http, 404);
    let body = message(Signal::Traces, 1, 1);
    let mut waiting = pin!(call(&busy, Signal::Traces, "identity", &body));
    assert!(futures_util::poll!(waiting.as_mut()).is_pending());
    tokio::select! {
        biased;
        () = pod.bench.log.arrived(1) => {}
        answer = waiting.as_mut() => panic!("{answer:?}"),
    }

    let handle = pod.handle.clone();
    let mut draining = pin!(handle.drain(far()));
    assert!(futures_util::poll!(draining.as_mut()).is_pending());
    while pod.handle.open() > 1 {
        tokio::task::yield_now().await;
    }
    assert!(futures_util::poll!(draining.as_mut()).is_pending(), "one call is in flight");
    assert!(pod.handle.state().is_draining());
    pod.bench.log.commit(Ok(()));

    assert_eq!(waiting.await.grpc_status(), 0);
    draining.await;
    assert_eq!((pod.handle.open(), pod.handle.state()), (0, State::Gone));
    pod.close().await;
}

/// Scenario: a drain whose deadline comes before the commit does.
/// Guarantees: it ends at its deadline, the connection is closed, and the commit that comes later still counts.
#[tokio::test]
async fn a_drain_ends_at_its_deadline() {
    let mut pod = Pod::new();
    pod.bench.log.withhold();
    let client = pod.grpc().await;
    let body = message(Signal::Traces, 3, 1);
    let handle = pod.handle.clone();
    let drained = async {
        pod.bench.log.arrived(1).await;
        handle.drain(Instant::now() + Duration::from_millis(20)).await;
    };
    let mut ready = client.clone().ready().await.unwrap();
    let (response, mut stream) = ready.send_request(grpc_head(Signal::Traces.grpc_path(), "identity"), false).unwrap();
    stream.send_data(framed(0, &body), true).unwrap();

    let (answer, ()) = tokio::join!(response, drained);

    assert!(answer.is_err(), "cut off without an acknowledgement");
    pod.bench.log.commit(Ok(()));
    drop((stream, ready, client));
    pod.close().await;
    assert_eq!(handle.snapshot().accepted, [3, 0, 0]);
}

/// Scenario: the gateway stops: all tenants drain at once.
/// Guarantees: no new connection is taken, every connection is gone at the end.
#[tokio::test]
async fn the_whole_registry_drains() {
    let mut pod = Pod::new();
    let client = pod.grpc().await;
    let neighbour = pod.bench.attach("shop/till", policy());
    let (socket, accepted) = pair(&neighbour);
    neighbour.offer(accepted).expect("the inbox has room");
    assert!(pod.bench.registry.responsive(Duration::from_secs(20)).await);

    pod.bench.registry.drain_all(far()).await;

    assert_eq!((pod.handle.open(), neighbour.open()), (0, 0));
    assert!(pod.handle.connection_permit().is_none());
    drop((client, socket));
    pod.close().await;
}

/// Scenario: a tenant was drained, and its shim comes back with a connection.
/// Guarantees: it is served as before, without a goodbye.
#[tokio::test]
async fn a_drained_tenant_can_come_back() {
    let mut pod = Pod::new();
    let body = message(Signal::Traces, 1, 1);
    pod.handle.drain(far()).await;
    assert_eq!(pod.handle.state(), State::Gone);

    let client = pod.grpc().await;
    for _ in 0..3 {
        assert_eq!(call(&client, Signal::Traces, "identity", &body).await.grpc_status(), 0);
    }

    assert_eq!(pod.handle.state(), State::Serving);
    drop(client);
    pod.close().await;
}

/// Scenario: an application dials the tenant's Unix socket.
/// Guarantees: the same service.
#[tokio::test]
async fn a_unix_socket_is_served_alike() {
    let pod = Pod::new();
    let (client, server) = std::os::unix::net::UnixStream::pair().unwrap();
    let permit = pod.handle.connection_permit().unwrap();
    pod.handle.offer(Accepted { socket: OwnedFd::from(server), kind: SocketKind::Unix, permit }).unwrap();
    client.set_nonblocking(true).unwrap();
    let client = tokio::net::UnixStream::from_std(client).unwrap();
    let (client, connection) = h2::client::handshake(client).await.unwrap();
    let mut clients = tokio::task::JoinSet::new();
    clients.spawn(async move { drop(connection.await) });

    let answer = call(&client, Signal::Traces, "identity", &message(Signal::Traces, 1, 1)).await;

    assert_eq!(answer.grpc_status(), 0);
    clients.shutdown().await;
    pod.close().await;
}

//! What tenants owe each other on one worker, and what the registry promises.

use std::rc::Rc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use tokio::time::Instant;

use super::testing::{Bench, identity, policy};
use super::{Accepted, AttachError, ConnectionPermit, Core, Handle, SocketKind, budget};
use crate::base::TenantIdentity;

/// Turns that the quiet neighbour's one connection takes before it ends.
const TURNS: u64 = 200;

/// A greedy tenant's connections use up every slice; a quiet one's does next to nothing, `TURNS` times.
fn serve(accepted: Accepted, core: Rc<Core>) -> LocalBoxFuture<'static, ()> {
    let greedy = core.handle.identity().name.name() == "greedy";
    async move {
        let _permit: ConnectionPermit = accepted.permit;
        let mut turns = 0;
        while greedy || turns < TURNS {
            while greedy && !core.pace().is_spent() {
                std::hint::spin_loop();
            }
            turns += 1;
            // Gives way once, whatever is left of the slice.
            let mut gave_way = false;
            std::future::poll_fn(|cx| {
                if std::mem::replace(&mut gave_way, true) {
                    return std::task::Poll::Ready(());
                }
                cx.waker().wake_by_ref();
                std::task::Poll::Pending
            })
            .await;
        }
    }
    .boxed_local()
}

fn connect(handle: &std::sync::Arc<Handle>) {
    let (_peer, socket) = std::os::unix::net::UnixStream::pair().unwrap();
    let permit = handle.connection_permit().unwrap();
    handle.offer(Accepted { socket: socket.into(), kind: SocketKind::Unix, permit }).unwrap();
}

/// Scenario: a tenant with 100 connections that never stop working, and a neighbour with one, on the same worker.
/// Guarantees: the neighbour gets a slice for each slice of the greedy one, not one for each of its 100 connections.
#[tokio::test]
async fn a_hundred_connections_get_one_tenants_share() {
    let bench = Bench::new(serve);
    let mut many = policy();
    many.limits.connections = 100;
    let greedy = bench.attach("shop/greedy", many);
    let quiet = bench.attach("shop/quiet", policy());
    (0..100).for_each(|_| connect(&greedy));
    while greedy.snapshot().slices < 10 {
        tokio::task::yield_now().await;
    }
    let before = greedy.snapshot().slices;

    connect(&quiet);
    quiet.drain(Instant::now() + Duration::from_secs(60)).await;

    let (took, given) = (quiet.snapshot().slices, greedy.snapshot().slices - before);
    assert_eq!(quiet.open(), 0, "it took all its turns");
    assert!(took >= TURNS / 2, "two turns at most to a slice: {took}");
    assert!(given <= took + 20, "{given} slices for the greedy tenant, {took} for its neighbour");
    bench.registry.close();
}

/// Scenario: a connection's code panics.
/// Guarantees: that connection alone ends; the tenant's other connections, its permits and its drain are unharmed.
#[tokio::test]
async fn a_panic_ends_one_connection() {
    fn fragile(accepted: Accepted, core: Rc<Core>) -> LocalBoxFuture<'static, ()> {
        async move {
            let _permit = accepted.permit;
            if accepted.kind == SocketKind::Tcp {
                std::panic::resume_unwind(Box::new("on purpose"));
            }
            std::future::poll_fn(
                |_| if core.is_leaving() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending },
            )
            .await;
        }
        .boxed_local()
    }
    let bench = Bench::new(fragile);
    let handle = bench.attach("shop/cart", policy());
    connect(&handle);
    let (_peer, socket) = std::os::unix::net::UnixStream::pair().unwrap();
    let permit = handle.connection_permit().unwrap();
    handle.offer(Accepted { socket: socket.into(), kind: SocketKind::Tcp, permit }).unwrap();

    while handle.stats().connections_closed.value() < 1 {
        tokio::task::yield_now().await;
    }

    assert_eq!(handle.open(), 1, "the other one lives");
    handle.drain(Instant::now() + Duration::from_secs(60)).await;
    assert_eq!((handle.open(), handle.account.used()), (0, 0));
    bench.registry.close();
}

/// Scenario: attach, attach again, attach with another policy, attach another pod under the same name.
/// Guarantees: one tenant and one number for one identity; a changed policy applies to it alone, and its destinations are
/// registered anew; another pod under the name is refused until the first is detached.
#[tokio::test]
async fn attaching_again_gives_the_same_tenant() {
    let bench = Bench::new(serve);
    let handle = bench.attach("shop/cart", policy());
    let neighbour = bench.attach("shop/till", policy());

    assert!(std::sync::Arc::ptr_eq(&handle, &bench.attach("shop/cart", policy())));
    assert_eq!(bench.log.records().len(), 2, "nothing changed, nothing is written");

    let mut other = policy();
    other.destinations[0].clear();
    other.limits.memory.ceiling = 1 << 20;
    bench.attach("shop/cart", other.clone());
    assert_eq!((&*handle.policy(), handle.account.limit().ceiling), (&other, 1 << 20));
    assert_eq!(*neighbour.policy(), policy());
    assert_eq!(bench.log.records().len(), 3);

    let successor = TenantIdentity { pod_uid: Some("2".to_owned()), ..identity("shop/cart") };
    let taken = bench.registry.attach(successor.clone(), policy()).map(|handle| handle.id());
    assert_eq!(taken, Err(AttachError::NameTaken(successor.name.clone())));
    bench.registry.detach(&successor.name);
    let next = bench.registry.attach(successor, policy()).expect("the name is free again");
    assert_ne!(next.id(), handle.id());
    assert_eq!(bench.registry.all().len(), 2);
    bench.registry.close();
}

/// Scenario: the ledger has no room for the fixed charge of another connection.
/// Guarantees: no permit, and nothing is left taken by the attempt.
#[tokio::test]
async fn a_connection_needs_its_fixed_charge() {
    let bench = Bench::new(serve);
    let mut small = policy();
    small.limits.memory.ceiling = budget::CONNECTION_BYTES + 1;
    let handle = bench.attach("shop/cart", small);

    let permit = handle.connection_permit().expect("room for one");
    assert!(handle.connection_permit().is_none());
    assert_eq!((handle.open(), handle.account.used()), (1, budget::CONNECTION_BYTES));
    drop(permit);
    assert_eq!((handle.open(), handle.account.used()), (0, 0));
    bench.registry.close();
}

/// Scenario: many tenants on several workers.
/// Guarantees: they are spread evenly, each worker answers, and none answers after the end.
#[tokio::test]
async fn tenants_are_spread_and_workers_answer() {
    let bench = Bench::with_workers(serve, 3);
    let handles: Vec<_> = (0..9).map(|number| bench.attach(&format!("shop/pod-{number}"), policy())).collect();

    for worker in 0..3 {
        assert_eq!(handles.iter().filter(|handle| handle.snapshot().worker == worker).count(), 3);
    }
    assert!(bench.registry.responsive(Duration::from_secs(60)).await);
    bench.registry.close();
    assert!(!bench.registry.responsive(Duration::from_secs(60)).await);
    assert_eq!(
        bench.registry.attach(identity("shop/late"), policy()).map(|handle| handle.id()),
        Err(AttachError::Workers)
    );
}

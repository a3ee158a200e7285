//! What tenants owe each other on one worker, and what the registry promises.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Poll, Waker};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use tokio::time::Instant;

use super::testing::{Bench, identity, policy};
use super::{Accepted, AttachError, ConnectionPermit, Core, Handle, SocketKind, State, budget};
use crate::base::TenantIdentity;
use crate::base::stats::Refusal;

/// Turns that the quiet neighbour's one connection takes before it ends.
const TURNS: u64 = 200;

/// Pieces of work that the greedy tenant's connections did.
static PIECES: AtomicU64 = AtomicU64::new(0);

/// The greedy tenant, and the slices of both at the quiet one's first and last turn: taken on the worker they share.
static GREEDY: OnceLock<Arc<Handle>> = OnceLock::new();
static GIVEN: Mutex<[(u64, u64); 2]> = Mutex::new([(0, 0); 2]);

thread_local! {
    /// Of the greedy tenant's connections, in a ring.
    static RING: RefCell<Vec<Waker>> = const { RefCell::new(Vec::new()) };
}

/// A quiet tenant's connection does next to nothing, `TURNS` times. A greedy one's works to the end of the slice each time
/// that it is polled, and wakes the next in the ring, so that one of them is always ready.
fn serve(accepted: Accepted, core: Rc<Core>) -> LocalBoxFuture<'static, ()> {
    let greedy = core.handle.identity().name.name() == "greedy";
    let (mut turns, mut place) = (0, None);
    let permit: ConnectionPermit = accepted.permit;
    poll_fn(move |cx| {
        if !greedy {
            turns += 1;
            let greedy = GREEDY.get().map_or(0, |greedy| greedy.snapshot().slices);
            GIVEN.lock().unwrap()[usize::from(turns > 1)] = (greedy, core.handle.snapshot().slices);
            cx.waker().wake_by_ref();
            return if turns == TURNS { Poll::Ready(()) } else { Poll::Pending };
        }
        while !core.pace().is_spent() {
            std::hint::spin_loop();
        }
        PIECES.fetch_add(1, Ordering::Relaxed);
        RING.with_borrow_mut(|ring| {
            let place = *place.get_or_insert_with(|| {
                ring.push(cx.waker().clone());
                ring.len() - 1
            });
            ring[(place + 1) % ring.len()].wake_by_ref();
        });
        Poll::Pending
    })
    .map(move |()| drop(permit))
    .boxed_local()
}

fn connect(handle: &Arc<Handle>) {
    let (_peer, socket) = std::os::unix::net::UnixStream::pair().unwrap();
    let permit = handle.connection_permit().unwrap();
    handle.offer(Accepted { socket: socket.into(), kind: SocketKind::Unix, permit }).unwrap();
}

/// Scenario: a tenant with 100 connections that never stop working, and a neighbour with one, on the same worker.
/// Guarantees: one connection's piece of work ends the slice of all of them; the neighbour gets a slice for each slice of
/// the greedy one, not one for each of its 100 connections.
#[tokio::test]
async fn a_hundred_connections_get_one_tenants_share() {
    let bench = Bench::new(serve);
    let mut many = policy();
    many.limits.connections = 100;
    let greedy = GREEDY.get_or_init(|| bench.attach("shop/greedy", many));
    let quiet = bench.attach("shop/quiet", policy());
    (0..100).for_each(|_| connect(greedy));
    while greedy.snapshot().slices < 10 {
        tokio::task::yield_now().await;
    }

    connect(&quiet);
    while quiet.stats().connections_closed.value() < 1 {
        tokio::task::yield_now().await;
    }

    let [first, last] = *GIVEN.lock().unwrap();
    let (given, took) = (last.0 - first.0, last.1 - first.1);
    assert!(took >= TURNS - 1 && given <= took + 4, "{given} slices for the greedy one, {took} for its neighbour");
    let pieces = PIECES.load(Ordering::Relaxed);
    assert!(pieces <= greedy.snapshot().slices, "{pieces} pieces of work, each of them as long as a slice");
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

    assert!(Arc::ptr_eq(&handle, &bench.attach("shop/cart", policy())));
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

/// Scenario: the connections of a tenant have more requests refused than its budget for refusals allows.
/// Guarantees: it is left unread and takes no connection for half a second, then is served again; a drain meanwhile does not
/// wait for that.
#[tokio::test(start_paused = true)]
async fn too_many_refusals_leave_the_tenant_unread_for_a_moment() {
    fn refusing(accepted: Accepted, core: Rc<Core>) -> LocalBoxFuture<'static, ()> {
        (0..1_000).for_each(|_| core.count_refusal(Refusal::Malformed, "on purpose".into()));
        async move {
            let _permit = accepted.permit;
            poll_fn(|_| if core.is_leaving() { Poll::Ready(()) } else { Poll::Pending }).await;
        }
        .boxed_local()
    }
    let bench = Bench::new(serve);
    let (mut actor, core) = bench.local_actor("shop/cart", policy(), refusing);
    let handle = core.handle.clone();
    let mut poll = || {
        let mut cx = std::task::Context::from_waker(Waker::noop());
        assert!(Pin::new(&mut actor).poll(&mut cx).is_pending());
    };

    connect(&handle);
    poll();
    assert!(matches!(handle.state(), State::Throttled { .. }) && core.is_held());
    assert!(handle.connection_permit().is_none(), "connections wait in the pod's own kernel");

    tokio::time::advance(Duration::from_millis(499)).await;
    poll();
    assert!(core.is_held());
    tokio::time::advance(Duration::from_millis(2)).await;
    poll();
    assert_eq!((handle.state(), core.is_held()), (State::Serving, false));
    assert!(handle.connection_permit().is_some());

    (0..1_000).for_each(|_| core.count_refusal(Refusal::Malformed, "on purpose".into()));
    poll();
    assert!(core.is_held());
    let mut drain = std::pin::pin!(handle.drain(Instant::now() + Duration::from_secs(2)));
    assert!(futures_util::poll!(drain.as_mut()).is_pending());
    poll();
    poll();
    assert!(futures_util::poll!(drain.as_mut()).is_ready());
    assert_eq!((handle.state(), handle.open()), (State::Gone, 0));
    bench.registry.close();
}

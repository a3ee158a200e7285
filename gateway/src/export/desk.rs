//! Where orders for the export thread are left. The latest order of a kind for a tenant replaces an earlier one, so it never
//! holds more than two a tenant, and leaving an order never waits. A departure does not replace the route that came before
//! it: what the tenant sent meanwhile is delivered by it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::SyncSender;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::Route;
use crate::base::TenantId;
use crate::queue::Departure;

/// What export is told to do.
#[derive(Debug)]
pub(crate) enum Order {
    /// Begin or change.
    Attach(Box<Route>),
    /// Forget the tenant when everything of it is done.
    Detach(Departure),
    /// Look for dead letters that are to be sent again.
    Replay,
    /// End.
    Drain(DrainOrder),
}

/// How to end, and whom to tell.
#[derive(Debug)]
pub(crate) struct DrainOrder {
    pub(crate) deliver: bool,
    pub(crate) deadline: Instant,
    /// Kept of the deadline for a group commit.
    pub(crate) reserve: Duration,
    /// Requests in flight are no longer waited for.
    pub(crate) cut_off: bool,
    pub(crate) done: SyncSender<()>,
}

/// One receiver.
#[derive(Debug, Default)]
pub(crate) struct Desk {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    tenants: BTreeMap<TenantId, Orders>,
    replay: bool,
    drain: Option<DrainOrder>,
    waker: Option<Waker>,
}

/// For one tenant, the route first. A route that comes after a departure takes it back.
#[derive(Debug, Default)]
struct Orders {
    route: Option<Box<Route>>,
    departure: Option<Departure>,
}

impl Desk {
    /// Leaves an order.
    pub(crate) fn leave(&self, order: Order) {
        let waker = {
            let mut inner = self.lock();
            match order {
                Order::Attach(route) => {
                    inner.tenants.insert(route.tenant, Orders { route: Some(route), departure: None });
                }
                Order::Detach(departure) => {
                    inner.tenants.entry(departure.tenant).or_default().departure = Some(departure);
                }
                Order::Replay => inner.replay = true,
                Order::Drain(drain) => inner.drain = Some(drain),
            }
            inner.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Takes all orders, or registers the task to be woken.
    pub(crate) fn poll_take(&self, cx: &Context<'_>, out: &mut VecDeque<Order>) -> Poll<()> {
        let mut inner = self.lock();
        if inner.tenants.is_empty() && !inner.replay && inner.drain.is_none() {
            if !inner.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                inner.waker = Some(cx.waker().clone());
            }
            return Poll::Pending;
        }
        for Orders { route, departure } in std::mem::take(&mut inner.tenants).into_values() {
            out.extend(route.map(Order::Attach));
            out.extend(departure.map(Order::Detach));
        }
        out.extend(std::mem::take(&mut inner.replay).then_some(Order::Replay));
        out.extend(inner.drain.take().map(Order::Drain));
        Poll::Ready(())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic while the lock is held cannot leave a map or an Option half-changed.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! The one task of a tenant: polls all its connections, within its slice of its worker's time.
//!
//! Owns the connections and the tenant's state. It never works for anybody else, and never waits for anything but its
//! own connections, its inbox and one timer. It ends when its handle says so, or with its worker.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use futures_util::future::LocalBoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Sleep;

use super::Serve;
use super::core::Core;
use super::handle::Command;
use super::state::{Effect, Event, State};

/// A tenant's task.
pub(crate) struct Actor {
    core: Rc<Core>,
    serve: Serve,
    inbox: mpsc::Receiver<Command>,
    connections: FuturesUnordered<Seated>,
    /// Number of the next connection.
    next: u64,
    state: State,
    timer: Option<Pin<Box<Sleep>>>,
    policy_version: u64,
    /// Dropped when the drain that they wait for is over.
    drains: Vec<oneshot::Sender<()>>,
}

/// A connection's place among the others of its tenant: it is polled only while the slice lasts, a panic ends it alone.
struct Seated {
    core: Rc<Core>,
    number: u64,
    seated: bool,
    serving: LocalBoxFuture<'static, ()>,
}

impl Actor {
    pub(super) fn new(core: Rc<Core>, serve: Serve, inbox: mpsc::Receiver<Command>) -> Self {
        let policy_version = core.handle.policy_version();
        Self {
            core,
            serve,
            inbox,
            connections: FuturesUnordered::new(),
            next: 0,
            state: State::Attached,
            timer: None,
            policy_version,
            drains: Vec::new(),
        }
    }

    fn poll_inbox(&mut self, cx: &mut Context<'_>) {
        while let Poll::Ready(Some(command)) = self.inbox.poll_recv(cx) {
            match command {
                Command::Connection(accepted) => {
                    self.number_connection(accepted);
                    self.happen(Event::Connected);
                }
                Command::Event(event) => self.happen(event),
                Command::Drain(deadline, over) => {
                    self.drains.push(over);
                    self.happen(Event::Drain { deadline });
                }
                Command::Look => {}
            }
        }
        let version = self.core.handle.policy_version();
        if version != self.policy_version {
            self.policy_version = version;
            self.core.recompile();
        }
    }

    fn number_connection(&mut self, accepted: super::Accepted) {
        let serving = (self.serve)(accepted, self.core.clone());
        self.connections.push(Seated { core: self.core.clone(), number: self.next, seated: false, serving });
        self.next += 1;
    }

    /// One transition: the state first, then its effects.
    fn happen(&mut self, event: Event) {
        let (state, effects) = self.state.step(event);
        if state.name() != self.state.name() {
            tracing::debug!(tenant = %self.core.handle.identity.name, from = self.state.name(), to = state.name(), "tenant");
        }
        if state != self.state {
            self.state = state;
            self.timer = state.timer().map(|moment| Box::pin(tokio::time::sleep_until(moment)));
            self.core.handle.publish(state);
        }
        for effect in effects {
            match effect {
                Effect::Hold => self.core.hold(true),
                Effect::Read => self.core.hold(false),
                Effect::SayGoodbye => self.core.leave(true),
                Effect::Welcome => self.core.leave(false),
                Effect::Cut => self.connections.clear(),
            }
        }
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>) {
        while let Some(timer) = &mut self.timer {
            if timer.as_mut().poll(cx).is_pending() {
                return;
            }
            self.timer = None;
            self.happen(Event::Elapsed);
        }
    }

    /// What the connections did to the tenant.
    fn settle(&mut self) {
        if let Some(until) = self.core.take_throttle() {
            self.happen(Event::RefusalsExceeded { until });
        }
        if self.connections.is_empty() && self.inbox.is_empty() {
            self.happen(Event::Emptied);
        }
        if self.core.is_flushed() {
            self.happen(Event::Flushed);
        }
        if !self.state.is_draining() {
            self.drains.clear();
        }
    }
}

impl Future for Actor {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        this.core.begin_slice(cx.waker());
        this.poll_inbox(cx);
        if this.core.handle.is_ending() {
            return Poll::Ready(());
        }
        this.poll_timer(cx);
        while let Poll::Ready(Some(())) = this.connections.poll_next_unpin(cx) {}
        this.settle();
        // Transitions may have set a timer that nobody polled yet.
        this.poll_timer(cx);
        this.core.end_slice();
        Poll::Pending
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        self.core.handle.publish(State::Gone);
        self.core.end_slice();
    }
}

impl Future for Seated {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        if !this.seated {
            this.seated = true;
            // The set gives each future one waker for its whole life.
            this.core.seat(this.number, cx.waker().clone());
        }
        ready!(this.core.pace().poll(cx));
        let polled = catch_unwind(AssertUnwindSafe(|| this.serving.as_mut().poll(cx)));
        polled.unwrap_or_else(|_panic| {
            // The hook has printed the panic itself.
            tracing::error!(tenant = %this.core.handle.identity.name, "serving a connection panicked; it is closed");
            Poll::Ready(())
        })
    }
}

impl Drop for Seated {
    fn drop(&mut self) {
        self.core.unseat(self.number);
    }
}

//! A data worker: one thread, one single-threaded runtime, one task a tenant.
//!
//! Owns the thread and the mailbox of commits for its tenants. It never works on a request itself. It ends when its inbox is
//! closed: what its tenants still held is dropped with it.

use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::task::coop::unconstrained;

use super::Serve;
use super::actor::Actor;
use super::core::{Core, Log};
use super::handle::{Command, Handle};
use super::pace::{Pace, SLICE};
use super::waiters::Waiters;
use crate::base::handoff::Handoff;
use crate::queue::Completion;

/// Tenants and pings that may wait for a worker.
const INBOX_LEN: usize = 1024;

/// Tasks that run between two looks at the sockets: with all of them using up their slices, a neighbour whose bytes have
/// just arrived waits this many slices at most. The default of 61 would be 30 ms.
const TASKS_PER_LOOK: u32 = 4;

/// The outside of a worker.
#[derive(Debug)]
pub(super) struct Worker {
    /// `None` once it was told to end.
    inbox: Mutex<Option<mpsc::Sender<Order>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Tenants placed on it.
    pub(super) load: Arc<AtomicUsize>,
}

/// What a worker is told.
enum Order {
    /// Serve this tenant.
    Attach(Arc<Handle>, mpsc::Receiver<Command>),
    /// Say that you run.
    Ping(oneshot::Sender<()>),
}

/// What all workers share.
#[derive(Clone)]
pub(super) struct Tools {
    pub(super) log: Arc<dyn Log>,
    pub(super) handoff: Arc<Handoff>,
    pub(super) serve: Serve,
}

impl Worker {
    /// Starts the thread.
    pub(super) fn start(number: usize, tools: Tools) -> io::Result<Self> {
        let (inbox, orders) = mpsc::channel(INBOX_LEN);
        let thread = std::thread::Builder::new().name(format!("data-{number}"));
        // Built on the thread that runs it, because it must not leave it.
        let (started, outcome) = std::sync::mpsc::sync_channel(1);
        let thread = thread.spawn(move || {
            let runtime = Builder::new_current_thread()
                .enable_all()
                .event_interval(TASKS_PER_LOOK)
                .build_local(LocalOptions::default());
            let (runtime, outcome) = match runtime {
                Ok(runtime) => (Some(runtime), Ok(())),
                Err(error) => (None, Err(error)),
            };
            let _: Result<(), _> = started.send(outcome);
            if let Some(runtime) = runtime {
                runtime.block_on(unconstrained(run(orders, tools)));
            }
        })?;
        outcome.recv().map_err(|_gone| io::Error::other("the data worker's thread ended at once"))??;
        Ok(Self { inbox: Mutex::new(Some(inbox)), thread: Mutex::new(Some(thread)), load: Arc::default() })
    }

    /// Gives it a tenant. `false` when its inbox is full or it has ended.
    pub(super) fn attach(&self, handle: Arc<Handle>, commands: mpsc::Receiver<Command>) -> bool {
        self.sender().is_some_and(|inbox| inbox.try_send(Order::Attach(handle, commands)).is_ok())
    }

    /// Whether it answers within `patience`.
    pub(super) async fn responds(&self, patience: Duration) -> bool {
        let Some(inbox) = self.sender() else { return false };
        let (sender, answer) = oneshot::channel();
        inbox.try_send(Order::Ping(sender)).is_ok()
            && matches!(tokio::time::timeout(patience, answer).await, Ok(Ok(())))
    }

    /// Tells it to end.
    pub(super) fn stop(&self) {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Waits for its end. Blocking.
    pub(super) fn join(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("a data worker panicked");
        }
    }

    fn sender(&self) -> Option<mpsc::Sender<Order>> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The worker's own loop: new tenants, pings, and commits for those who wait.
async fn run(mut orders: mpsc::Receiver<Order>, tools: Tools) {
    let waiters: Rc<Waiters> = Rc::default();
    let mut tenants = JoinSet::new();
    let mut completions: Vec<Completion> = Vec::new();
    poll_fn(|cx| {
        waiters.poll(cx, &mut completions);
        reap(&mut tenants, cx);
        loop {
            match orders.poll_recv(cx) {
                Poll::Ready(Some(Order::Attach(handle, commands))) => {
                    let (log, handoff) = (tools.log.clone(), tools.handoff.clone());
                    let core = Core::new(handle, log, handoff, waiters.clone(), Pace::new(SLICE));
                    tenants.spawn_local(unconstrained(Actor::new(Rc::new(core), tools.serve, commands)));
                    reap(&mut tenants, cx);
                }
                Poll::Ready(Some(Order::Ping(answer))) => {
                    let _: Result<(), ()> = answer.send(());
                }
                Poll::Ready(None) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await;
    drop(tenants);
    waiters.abandon();
}

fn reap(tenants: &mut JoinSet<()>, cx: &mut Context<'_>) {
    while let Poll::Ready(Some(ended)) = tenants.poll_join_next(cx) {
        if let Err(error) = ended {
            tracing::error!(%error, "a tenant's task panicked; its connections are closed");
        }
    }
}

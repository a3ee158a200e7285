//! The outside of a tenant: what other threads hold of it.
//!
//! Owns the budgets' accounts, the published state and the sending end of the tenant's inbox. It never touches a
//! connection: everything goes through the inbox to the tenant's one task.

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::Accepted;
use super::state::{Event, State};
use crate::base::ledger::{Account, Guard};
use crate::base::stats::TenantStats;
use crate::base::{TenantId, TenantIdentity};
use crate::config::Policy;
use crate::queue::CursorState;

/// What one connection may hold that no request's reservation covers, in bytes.
///
/// Intake configures its protocols with these figures, so that the sum is what a hostile peer can make the gateway hold.
pub mod budget {
    /// HTTP/2's connection window at the start (the protocol's own 65,535): what a peer may send before it is admitted.
    pub const WINDOW_BYTES: u64 = 65_535;
    /// What the window grows to, where the ledger has room, once a connection sends large requests.
    pub const WIDE_WINDOW_BYTES: u64 = 1024 * 1024;
    /// The largest HTTP/2 frame, or the read buffer of HTTP/1: held while its end is awaited.
    pub const FRAME_BYTES: u64 = 64 * 1024;
    /// The header list of one request.
    pub const HEADER_LIST_BYTES: u64 = 16 * 1024;
    /// HPACK's tables, both directions, and the state of streams.
    pub const HEADER_TABLE_BYTES: u64 = 8 * 1024;
    /// Replies that the peer does not read.
    pub const WRITE_BYTES: u64 = 8 * 1024;
    /// What the kernel holds for the socket beyond that.
    pub const SOCKET_BYTES: u64 = 64 * 1024;
    /// The fixed charge.
    pub const CONNECTION_BYTES: u64 =
        WINDOW_BYTES + FRAME_BYTES + HEADER_LIST_BYTES + HEADER_TABLE_BYTES + WRITE_BYTES + SOCKET_BYTES;
}

/// Connections, events and policy changes that may wait for the tenant's task.
pub(super) const INBOX_LEN: usize = 128;

/// The outside of a tenant: what other threads hold. Cheap to clone through its `Arc`.
#[derive(Debug)]
pub struct Handle {
    pub(super) id: TenantId,
    pub(super) identity: TenantIdentity,
    pub(super) worker: usize,
    policy: Mutex<Arc<Policy>>,
    /// As the log said at the latest registration.
    cursors: Mutex<Vec<CursorState>>,
    policy_version: AtomicU64,
    ending: AtomicBool,
    pub(crate) account: Account,
    pub(super) stats: Arc<TenantStats>,
    connections: AtomicU32,
    state: Mutex<State>,
    inbox: mpsc::Sender<Command>,
    slices: AtomicU64,
    last_refusal: Mutex<Option<Cow<'static, str>>>,
    /// Shared by all tenants: the gateway stops.
    closing: Arc<AtomicBool>,
    /// Tenants on the worker, this one included.
    pub(super) load: Arc<AtomicUsize>,
}

/// What the registry knows of a tenant when it makes its handle.
pub(super) struct Origin {
    pub(super) id: TenantId,
    pub(super) identity: TenantIdentity,
    pub(super) worker: usize,
    pub(super) policy: Policy,
    pub(super) cursors: Vec<CursorState>,
    pub(super) account: Account,
    pub(super) closing: Arc<AtomicBool>,
    pub(super) load: Arc<AtomicUsize>,
}

/// What the tenant's task is told.
#[derive(Debug)]
pub(super) enum Command {
    /// Serve this.
    Connection(Accepted),
    /// Something happened.
    Event(Event),
    /// Drain, and say when it is over: by dropping the sender.
    Drain(Instant, oneshot::Sender<()>),
    /// Look at the policy, and whether to end.
    Look,
}

/// Permission for one connection: holds its place in `limits.connections` and its fixed charge in the ledger.
#[derive(Debug)]
pub struct ConnectionPermit {
    handle: Arc<Handle>,
    guard: Guard,
    offered: bool,
}

impl Handle {
    pub(super) fn new(origin: Origin) -> (Arc<Self>, mpsc::Receiver<Command>) {
        let (inbox, commands) = mpsc::channel(INBOX_LEN);
        let handle = Self {
            id: origin.id,
            identity: origin.identity,
            worker: origin.worker,
            policy: Mutex::new(Arc::new(origin.policy)),
            cursors: Mutex::new(origin.cursors),
            policy_version: AtomicU64::new(0),
            ending: AtomicBool::new(false),
            account: origin.account,
            stats: Arc::default(),
            connections: AtomicU32::new(0),
            state: Mutex::new(State::Attached),
            inbox,
            slices: AtomicU64::new(0),
            last_refusal: Mutex::new(None),
            closing: origin.closing,
            load: origin.load,
        };
        (Arc::new(handle), commands)
    }

    /// Its number in the log.
    pub fn id(&self) -> TenantId {
        self.id
    }

    /// Who it is.
    pub fn identity(&self) -> &TenantIdentity {
        &self.identity
    }

    /// Its cursors as of the latest registration, for whoever begins its delivery; once.
    pub fn take_cursors(&self) -> Vec<CursorState> {
        std::mem::take(&mut lock(&self.cursors))
    }

    /// Its present policy.
    pub fn policy(&self) -> Arc<Policy> {
        lock(&self.policy).clone()
    }

    /// Its counters.
    pub fn stats(&self) -> &Arc<TenantStats> {
        &self.stats
    }

    /// Where it is in its life.
    pub fn state(&self) -> State {
        *lock(&self.state)
    }

    /// A place for one more connection, or `None`: leave the connection in the kernel's backlog and ask again later.
    pub fn connection_permit(self: &Arc<Self>) -> Option<ConnectionPermit> {
        if self.closing.load(Ordering::Relaxed) || !self.state().takes_connections() {
            return None;
        }
        let limit = lock(&self.policy).limits.connections;
        let take = |open: u32| (open < limit).then_some(open + 1);
        self.connections.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).ok()?;
        match self.account.reserve(budget::CONNECTION_BYTES) {
            Ok(guard) => Some(ConnectionPermit { handle: self.clone(), guard, offered: false }),
            Err(_) => {
                self.connections.fetch_sub(1, Ordering::Relaxed);
                None
            }
        }
    }

    /// Hands a connection to the tenant's worker. Never blocks; given back when the tenant's inbox is full or gone.
    pub fn offer(&self, mut accepted: Accepted) -> Result<(), Accepted> {
        let place = match self.inbox.try_reserve() {
            Ok(place) => place,
            Err(_) => return Err(accepted),
        };
        accepted.permit.offered = true;
        self.stats.connections.add(1);
        place.send(Command::Connection(accepted));
        Ok(())
    }

    /// Tells the tenant that its last listener is gone (BYE or unpublish): finish what is in flight, then idle.
    /// Resolves when no connection is left and everything in flight is committed, or at `deadline`.
    pub async fn drain(&self, deadline: Instant) {
        let (sender, over) = oneshot::channel();
        let drained = async {
            if self.inbox.send(Command::Drain(deadline, sender)).await.is_ok() {
                // Over when the sender is dropped, by whatever end.
                let _: Result<(), oneshot::error::RecvError> = over.await;
            }
        };
        if tokio::time::timeout_at(deadline, drained).await.is_err() {
            tracing::info!(tenant = %self.identity.name, connections = self.open(), "drain ended at its deadline");
        }
    }

    /// Resolves when its task has ended, after [`Registry::detach`](super::Registry::detach): nothing more is appended.
    pub async fn ended(&self) {
        self.inbox.closed().await;
    }

    /// Tells the tenant that its shim is here again. Connections that come are served in any case.
    pub fn reattach(&self) {
        self.tell(Event::Reattach);
    }

    /// Leaves everything of the tenant unread until [`Handle::release`].
    pub fn quarantine(&self) {
        self.tell(Event::Quarantine);
    }

    /// Ends a quarantine.
    pub fn release(&self) {
        self.tell(Event::Release);
    }

    fn tell(&self, event: Event) {
        if self.inbox.try_send(Command::Event(event)).is_err() {
            tracing::warn!(tenant = %self.identity.name, ?event, "the tenant's inbox is full or gone");
        }
    }

    /// Applies a policy: to this tenant alone, from its next slice on. With the cursors of its registration, if it needed one.
    pub(super) fn change_policy(&self, policy: Policy, cursors: Option<Vec<CursorState>>) {
        if let Some(cursors) = cursors {
            *lock(&self.cursors) = cursors;
        }
        self.account.change(policy.limits.memory);
        *lock(&self.policy) = Arc::new(policy);
        self.policy_version.fetch_add(1, Ordering::Release);
        self.nudge();
    }

    /// Ends the tenant's task, closing its connections.
    pub(super) fn end(&self) {
        self.ending.store(true, Ordering::Release);
        self.nudge();
    }

    pub(super) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Acquire)
    }

    fn nudge(&self) {
        // With a full inbox the task runs anyway, and it looks at what was changed each time.
        let _: Result<(), _> = self.inbox.try_send(Command::Look);
    }

    pub(super) fn policy_version(&self) -> u64 {
        self.policy_version.load(Ordering::Acquire)
    }

    pub(super) fn publish(&self, state: State) {
        *lock(&self.state) = state;
    }

    pub(super) fn count_slice(&self) {
        self.slices.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn note_refusal(&self, words: Cow<'static, str>) {
        *lock(&self.last_refusal) = Some(words);
    }

    /// Open connections, those on their way to the worker included.
    pub fn open(&self) -> u32 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Present figures.
    pub fn snapshot(&self) -> Snapshot {
        let limit = self.account.limit();
        let stats = &self.stats;
        Snapshot {
            name: self.identity.name.to_string(),
            pod_uid: self.identity.pod_uid.clone(),
            service_account: self.identity.service_account.clone(),
            state: self.state().name(),
            worker: self.worker,
            connections: self.open(),
            memory_used: self.account.used(),
            memory_guarantee: limit.guarantee,
            memory_ceiling: limit.ceiling,
            accepted: stats.accepted.each_ref().map(|counter| counter.value()),
            refused: stats.refused.each_ref().map(|counter| counter.value()),
            refused_requests: stats.refused_requests.each_ref().map(|counter| counter.value()),
            requests: stats.requests.value(),
            accepted_bytes: stats.accepted_bytes.value(),
            overwritten: stats.overwritten.value(),
            slices: self.slices.load(Ordering::Relaxed),
            last_refusal: lock(&self.last_refusal).as_deref().map(str::to_owned),
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.load.fetch_sub(1, Ordering::Relaxed);
    }
}

impl ConnectionPermit {
    /// Whose connection it is.
    pub fn tenant(&self) -> &Arc<Handle> {
        &self.handle
    }

    /// Reserves the difference between a narrow and a wide HTTP/2 window for as long as the connection lives.
    pub fn widen(&mut self) -> bool {
        self.guard.grow(budget::WIDE_WINDOW_BYTES - budget::WINDOW_BYTES).is_ok()
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.handle.connections.fetch_sub(1, Ordering::Relaxed);
        if self.offered {
            self.handle.stats.connections_closed.add(1);
        }
    }
}

/// One tenant, for /tenants. Counters are since the gateway's start.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Snapshot {
    /// `namespace/name`.
    pub name: String,
    /// `k8s.pod.uid`.
    pub pod_uid: Option<String>,
    /// `spec.serviceAccountName`.
    pub service_account: Option<String>,
    /// `serving`, `throttled` and so on.
    pub state: &'static str,
    /// The data worker it lives on.
    pub worker: usize,
    /// Open connections.
    pub connections: u32,
    /// Intake memory held now, in bytes.
    pub memory_used: u64,
    /// Nobody can take this away.
    pub memory_guarantee: u64,
    /// Never above this.
    pub memory_ceiling: u64,
    /// Items acknowledged, by `Signal::index`.
    pub accepted: [u64; 3],
    /// Items refused where they could be counted, by `Signal::index`.
    pub refused: [u64; 3],
    /// Requests refused, by `base::stats::Refusal as usize`.
    pub refused_requests: [u64; 7],
    /// Requests answered.
    pub requests: u64,
    /// Payload bytes acknowledged.
    pub accepted_bytes: u64,
    /// Attributes replaced by attested ones.
    pub overwritten: u64,
    /// Slices of its worker's time that it was given.
    pub slices: u64,
    /// The latest refusal, in words.
    pub last_refusal: Option<String>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each is held for one assignment or clone, which cannot leave it half-changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

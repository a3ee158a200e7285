//! The inside of a tenant, on its worker: its budgets, and the way of a request to the queue.
//!
//! Owns the buckets, the compiled policy and the requests that wait for their commit. It never sees a transport, and never
//! blocks: what has no room is refused with a delay. It ends with the tenant's task and its last request.
//!
//! ```text
//! admit(signal, length)  -> Admission    quota and memory for the whole message, before it is buffered
//! admission.grow_to, cover               the same for what was not announced: more of it, or what it decompresses to
//! submit(payload, admission)             pipeline, then the queue; resolves when the ack policy is met
//! ```

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use bytes::Bytes;
use smallvec::SmallVec;

use super::admission::{Admission, Receipt};
use super::handle::{Handle, budget};
use super::pace::{PIECE_BYTES, Pace};
use super::quota::{Denied, Quota, Rate};
use super::refused::Refused;
use super::waiters::Waiters;
use crate::base::handoff::{Arrival, Handoff};
use crate::base::stats::Refusal;
use crate::base::{AckPolicy, Batch, Signal};
use crate::config::Policy;
use crate::pipeline::{Job, Output, Plan, Step};
use crate::queue::{Append, AppendError, Queue, Registered};

/// How long a tenant is left unread once its refusals exceed their budget: half of the budget grows back meanwhile.
const HOLD: Duration = Duration::from_millis(500);

/// For so long a request waits for its commit. SDKs wait for ten seconds: they are told before they give up, and by then they
/// also know when to come back. Told so, they send again what may be committed yet, which is twice and not lost.
pub(super) const COMMIT_PATIENCE: Duration = Duration::from_secs(8);

/// The border to the queue: what intake needs of it, so that tests can withhold commits.
pub(super) trait Log: std::fmt::Debug + Send + Sync {
    /// See [`Queue::register`].
    fn register(&self, record: &crate::queue::TenantRecord) -> Result<Registered, AppendError>;
    /// See [`Queue::append`]; what is refused is dropped.
    fn append(&self, append: Append) -> Result<(), AppendError>;
}

impl Log for Queue {
    fn register(&self, record: &crate::queue::TenantRecord) -> Result<Registered, AppendError> {
        Self::register(self, record)
    }

    fn append(&self, append: Append) -> Result<(), AppendError> {
        Self::append(self, append).map_err(|(_refused, error)| error)
    }
}

/// The inside of a tenant: what intake sees. Lives on one worker.
#[derive(Debug)]
pub struct Core {
    pub(crate) handle: Arc<Handle>,
    log: Arc<dyn Log>,
    handoff: Arc<Handoff>,
    waiters: Rc<Waiters>,
    pace: Pace,
    compiled: RefCell<Rc<Compiled>>,
    quotas: RefCell<Quotas>,
    /// Ack memory on its way to export: handed over once per slice.
    outbox: RefCell<Vec<Arrival>>,
    /// Appends that wait for their commit.
    in_flight: Cell<u32>,
    held: Cell<bool>,
    leaving: Cell<bool>,
    /// Set when the refusals exceeded their budget; taken by the tenant's task.
    throttle: Cell<Option<tokio::time::Instant>>,
    /// Of every connection's own future: to be woken when `held` or `leaving` change.
    seats: RefCell<BTreeMap<u64, Waker>>,
    /// Of the tenant's task.
    task: RefCell<Option<Waker>>,
}

/// A policy, ready for use.
#[derive(Debug)]
struct Compiled {
    policy: Arc<Policy>,
    plan: Plan,
}

#[derive(Debug)]
struct Quotas {
    bytes: Quota,
    requests: Quota,
    refusals: Quota,
}

impl Core {
    pub(super) fn new(
        handle: Arc<Handle>,
        log: Arc<dyn Log>,
        handoff: Arc<Handoff>,
        waiters: Rc<Waiters>,
        pace: Pace,
    ) -> Self {
        let compiled = Rc::new(Compiled::new(&handle));
        let (limits, now) = (&compiled.policy.limits, Instant::now());
        let quotas = Quotas {
            bytes: Quota::new(Rate::of_bytes(limits), now),
            requests: Quota::new(Rate::of_requests(limits), now),
            refusals: Quota::new(Rate::of_refusals(limits), now),
        };
        Self {
            handle,
            log,
            handoff,
            waiters,
            pace,
            compiled: RefCell::new(compiled),
            quotas: RefCell::new(quotas),
            outbox: RefCell::default(),
            in_flight: Cell::new(0),
            held: Cell::new(false),
            leaving: Cell::new(false),
            throttle: Cell::new(None),
            seats: RefCell::default(),
            task: RefCell::new(None),
        }
    }

    /// The tenant's slice of time.
    pub fn pace(&self) -> &Pace {
        &self.pace
    }

    /// The most that one request may be, on the wire and after decompression: the policy's figure, or what the memory
    /// ceiling leaves of it beside the connection that brings it.
    pub fn request_bytes_max(&self) -> u64 {
        let limits = &self.compiled.borrow().policy.limits;
        limits.max_request_bytes.min(limits.memory.ceiling.saturating_sub(budget::CONNECTION_BYTES))
    }

    /// Whether one request may hold so many bytes when nothing else is held but its connection.
    pub(super) fn could_ever_hold(&self, bytes: u64) -> bool {
        let ceiling = self.compiled.borrow().policy.limits.memory.ceiling;
        bytes.saturating_add(budget::CONNECTION_BYTES) <= ceiling
    }

    /// Whether connections are left unread for now. Who asks is woken when that changes.
    pub fn is_held(&self) -> bool {
        self.held.get()
    }

    /// Whether connections are to say goodbye: GOAWAY, `Connection: close`. Who serves one is woken when that changes.
    pub fn is_leaving(&self) -> bool {
        self.leaving.get()
    }

    /// Admits a request of `length` bytes on the wire, or of unknown length (0: it grows by trying).
    pub fn admit(self: &Rc<Self>, signal: Signal, length: u64) -> Result<Admission, Refused> {
        if self.compiled.borrow().policy.routes(signal).is_empty() {
            return Err(Refused::Unrouted(signal));
        }
        let limit = self.request_bytes_max();
        if length > limit {
            return Err(Refused::TooLarge { limit });
        }
        let now = Instant::now();
        let taken = self.quotas.borrow_mut().requests.take(1, now);
        taken.map_err(|denied| Refused::by_bucket(denied, limit))?;
        self.take_bytes(length, now).inspect_err(|_| self.quotas.borrow_mut().requests.refund(1))?;
        match self.handle.account.reserve(length) {
            Ok(guard) => Ok(Admission::new(self.clone(), signal, guard, length)),
            Err(_) => {
                self.refund(length);
                Err(self.out_of_memory())
            }
        }
    }

    /// Counts a request that was answered with success.
    pub fn count_success(&self) {
        self.handle.stats.requests.add(1);
    }

    /// Counts a request that was refused, and leaves the tenant unread for a moment when there are too many of them.
    pub fn count_refusal(&self, reason: Refusal, words: Cow<'static, str>) {
        self.handle.stats.requests.add(1);
        self.handle.stats.refused_requests[reason as usize].add(1);
        self.handle.note_refusal(words);
        let now = Instant::now();
        if self.quotas.borrow_mut().refusals.take(1, now).is_err() {
            self.throttle.set(Some(tokio::time::Instant::now() + HOLD));
        }
    }

    /// Counts an attempt of a connection that spoke no protocol we know, or broke the one it spoke.
    pub fn count_violation(&self, words: Cow<'static, str>) {
        self.count_refusal(Refusal::Malformed, words);
    }

    async fn process(&self, signal: Signal, payload: Bytes, admission: &mut Admission) -> Result<Output, Refused> {
        // One plan from the first step to the last, whatever happens to the policy meanwhile.
        let compiled = self.compiled.borrow().clone();
        let mut job = Job::new(signal, payload);
        loop {
            match job.step(&compiled.plan, PIECE_BYTES)? {
                Step::Done(output) => return Ok(output),
                Step::More => admission.cover(job.held() as u64)?,
            }
            self.pace.breathe().await;
        }
    }

    /// Sends one admitted message through the pipeline and to the queue. Resolves when the ack policy is met: nothing is
    /// acknowledged before its commit.
    pub async fn submit(self: &Rc<Self>, payload: Bytes, mut admission: Admission) -> Result<(), Refused> {
        let signal = admission.signal();
        let output = self.process(signal, payload, &mut admission).await?;
        self.handle.stats.overwritten.add(u64::from(output.overwritten));
        if output.parts.is_empty() {
            return Ok(());
        }
        let bytes: u64 = output.parts.iter().map(|part| part.payload.len() as u64).sum();
        admission.cover(bytes)?;
        admission.settle(bytes);
        let receipt = self.open_receipt(signal, output.items, bytes);
        let charged = admission.bytes();
        let parts = admission.into_batches(self.handle.id, output);
        let ack = self.compiled.borrow().policy.ack;
        if ack == AckPolicy::Memory {
            self.outbox.borrow_mut().extend(parts.into_iter().map(Arrival::Volatile));
            receipt.settle(true);
            return Ok(());
        }
        self.append(parts, ack, receipt).await.map_err(|error| {
            self.refund(charged);
            Refused::by_queue(error)
        })
    }

    async fn append(&self, parts: SmallVec<[Batch; 1]>, ack: AckPolicy, receipt: Receipt) -> Result<(), AppendError> {
        let (waiting, reply) = self.waiters.open(receipt);
        let append = Append { parts, sync: ack == AckPolicy::Durable, reply: Some(reply) };
        if let Err(error) = self.log.append(append) {
            if let Some(receipt) = waiting.withdraw() {
                receipt.settle(false);
            }
            return Err(error);
        }
        // The receipt is settled by the commit, if that ever comes.
        match tokio::time::timeout(COMMIT_PATIENCE, waiting).await {
            Ok(committed) => committed.map(|_sequence| ()),
            Err(_elapsed) => Err(AppendError::Stalled),
        }
    }

    pub(super) fn take_bytes(&self, bytes: u64, now: Instant) -> Result<(), Refused> {
        let taken = self.quotas.borrow_mut().bytes.take(bytes, now);
        taken.map_err(|denied| Refused::by_bucket(denied, self.request_bytes_max()))
    }

    pub(super) fn refund(&self, bytes: u64) {
        let mut quotas = self.quotas.borrow_mut();
        quotas.requests.refund(1);
        quotas.bytes.refund(bytes);
    }

    /// The delay is what the tenant's own rate needs to pass what it holds now.
    pub(super) fn out_of_memory(&self) -> Refused {
        let rate = self.compiled.borrow().policy.limits.bytes_per_second.max(1);
        let delay = Duration::from_millis(self.handle.account.used().saturating_mul(1_000) / rate);
        Refused::Memory { delay: delay.clamp(MEMORY_DELAY_MIN, MEMORY_DELAY_MAX) }
    }
}

const MEMORY_DELAY_MIN: Duration = Duration::from_millis(100);
const MEMORY_DELAY_MAX: Duration = Duration::from_secs(5);

/// What the tenant's own task does with it.
impl Core {
    pub(super) fn recompile(&self) {
        let compiled = Rc::new(Compiled::new(&self.handle));
        let (limits, now) = (&compiled.policy.limits, Instant::now());
        {
            let mut quotas = self.quotas.borrow_mut();
            quotas.bytes.change(Rate::of_bytes(limits), now);
            quotas.requests.change(Rate::of_requests(limits), now);
            quotas.refusals.change(Rate::of_refusals(limits), now);
        }
        self.compiled.replace(compiled);
    }

    pub(crate) fn hold(&self, held: bool) {
        self.held.set(held);
        self.wake_connections();
    }

    pub(super) fn leave(&self, leaving: bool) {
        self.leaving.set(leaving);
        self.wake_connections();
    }

    fn wake_connections(&self) {
        for waker in self.seats.borrow().values() {
            waker.wake_by_ref();
        }
    }

    pub(super) fn seat(&self, number: u64, waker: Waker) {
        self.seats.borrow_mut().insert(number, waker);
    }

    pub(super) fn unseat(&self, number: u64) {
        self.seats.borrow_mut().remove(&number);
    }

    pub(crate) fn begin_slice(&self, waker: &Waker) {
        self.pace.begin();
        self.handle.count_slice();
        let mut task = self.task.borrow_mut();
        if !task.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *task = Some(waker.clone());
        }
    }

    /// Ends the slice: hands ack memory over, waking export once for all of it.
    pub(super) fn end_slice(&self) {
        let mut outbox = self.outbox.borrow_mut();
        if !outbox.is_empty() {
            self.handoff.push(outbox.drain(..));
        }
    }

    pub(super) fn take_throttle(&self) -> Option<tokio::time::Instant> {
        self.throttle.take()
    }

    pub(super) fn is_flushed(&self) -> bool {
        self.in_flight.get() == 0
    }

    /// The task looks again when the last one ends a drain.
    pub(super) fn append_ended(&self) {
        self.in_flight.set(self.in_flight.get() - 1);
        if self.leaving.get()
            && self.is_flushed()
            && let Some(task) = &*self.task.borrow()
        {
            task.wake_by_ref();
        }
    }

    /// Opens the account of one append: it is in flight until the receipt is settled.
    pub(super) fn open_receipt(self: &Rc<Self>, signal: Signal, items: u32, bytes: u64) -> Receipt {
        self.in_flight.set(self.in_flight.get() + 1);
        Receipt::new(self.clone(), signal, items, bytes)
    }
}

impl Refused {
    fn by_bucket(denied: Denied, limit: u64) -> Self {
        match denied {
            Denied::Wait(delay) => Self::Quota { delay },
            Denied::Never => Self::TooLarge { limit },
        }
    }
}

impl Compiled {
    fn new(handle: &Handle) -> Self {
        let policy = handle.policy();
        let plan = Plan::new(&handle.identity.attested(), &policy.enrich.attributes);
        Self { policy, plan }
    }
}

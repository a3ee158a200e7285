//! A registry on a queue that commits when a test says so. For the tests of the tenant, of intake and of lifecycle.

use std::rc::Rc;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;

use super::actor::Actor;
use super::core::Log;
use super::handle::Origin;
use super::pace::SLICE;
use super::{Core, Handle, Pace, Registry, Serve};
use crate::base::handoff::Handoff;
use crate::base::ledger::{Ledger, MemoryLimit};
use crate::base::{AckPolicy, DestinationName, Sequence, TenantId, TenantIdentity, TenantName};
use crate::config::{Enrich, Limits, OnFull, Policy, QueuePolicy};
use crate::queue::{Append, AppendError, Completion, Registered, TenantRecord};

/// Stands in for the queue at the border where requests are appended.
#[derive(Debug)]
pub(crate) struct FakeLog {
    inner: Mutex<Inner>,
    /// How many appends have arrived: what tests wait for.
    arrived: watch::Sender<usize>,
}

#[derive(Debug, Default)]
struct Inner {
    withhold: bool,
    refuse: Option<AppendError>,
    waiting: Vec<Append>,
    committed: Vec<Entry>,
    records: Vec<TenantRecord>,
    next: u64,
}

/// What a test sees of a committed part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) tenant: TenantId,
    pub(crate) items: u32,
    pub(crate) sync: bool,
    pub(crate) payload: bytes::Bytes,
}

impl FakeLog {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { inner: Mutex::default(), arrived: watch::Sender::new(0) })
    }

    /// From now on appends wait for [`FakeLog::commit`].
    pub(crate) fn withhold(&self) {
        self.inner.lock().unwrap().withhold = true;
    }

    /// From now on appends are refused, or not any more.
    pub(crate) fn refuse(&self, error: Option<AppendError>) {
        self.inner.lock().unwrap().refuse = error;
    }

    /// Completes everything that waits, and lets later appends through unless the result is an error.
    pub(crate) fn commit(&self, result: Result<(), AppendError>) {
        let mut inner = self.inner.lock().unwrap();
        inner.withhold = false;
        for append in std::mem::take(&mut inner.waiting) {
            inner.finish(append, result);
        }
    }

    /// Waits until `count` appends have arrived since the start.
    pub(crate) async fn arrived(&self, count: usize) {
        self.arrived.subscribe().wait_for(|arrived| *arrived >= count).await.expect("the log outlives its watchers");
    }

    pub(crate) fn committed(&self) -> Vec<Entry> {
        self.inner.lock().unwrap().committed.clone()
    }

    pub(crate) fn records(&self) -> Vec<TenantRecord> {
        self.inner.lock().unwrap().records.clone()
    }
}

impl Inner {
    fn finish(&mut self, append: Append, result: Result<(), AppendError>) {
        for batch in append.parts {
            if result.is_ok() {
                let (tenant, items, payload) = (batch.tenant, batch.items, batch.payload);
                self.committed.push(Entry { tenant, items, sync: append.sync, payload });
            }
        }
        self.next += 1;
        let result = result.map(|()| Sequence(self.next));
        if let Some(reply) = append.reply {
            reply.mailbox.post([Completion { ticket: reply.ticket, result }]);
        }
    }
}

impl Log for FakeLog {
    fn register(&self, record: &TenantRecord) -> Result<Registered, AppendError> {
        let mut inner = self.inner.lock().unwrap();
        inner.records.push(record.clone());
        let known = inner.records.iter().position(|known| known.name == record.name && known.pod_uid == record.pod_uid);
        let id = TenantId(u32::try_from(known.expect("just pushed")).unwrap() + 1);
        Ok(Registered { id, cursors: Vec::new() })
    }

    fn append(&self, append: Append) -> Result<(), AppendError> {
        let mut inner = self.inner.lock().unwrap();
        self.arrived.send_modify(|arrived| *arrived += 1);
        if let Some(error) = inner.refuse {
            return Err(error);
        }
        if inner.withhold {
            inner.waiting.push(append);
        } else {
            inner.finish(append, Ok(()));
        }
        Ok(())
    }
}

/// A gateway's tenants without a gateway.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) log: Arc<FakeLog>,
    pub(crate) handoff: Arc<Handoff>,
    pub(crate) ledger: Ledger,
    pub(crate) registry: Arc<Registry>,
}

impl Bench {
    /// One worker and 256 MiB.
    pub(crate) fn new(serve: Serve) -> Self {
        Self::with_workers(serve, 1)
    }

    pub(crate) fn with_workers(serve: Serve, workers: usize) -> Self {
        let (log, handoff, ledger) = (FakeLog::new(), Arc::new(Handoff::new(1 << 20)), Ledger::new(256 << 20));
        let registry = Registry::start(log.clone(), handoff.clone(), ledger.clone(), None, workers, serve).unwrap();
        Self { log, handoff, ledger, registry }
    }

    /// A tenant whose task the test polls itself, on its own thread and clock.
    pub(crate) fn local_actor(&self, name: &str, policy: Policy, serve: Serve) -> (Actor, Rc<Core>) {
        let (handle, commands) = Handle::new(Origin {
            id: TenantId(1),
            identity: identity(name),
            worker: 0,
            account: self.ledger.account(policy.limits.memory),
            policy,
            cursors: Vec::new(),
            closing: Arc::default(),
            load: Arc::new(AtomicUsize::new(1)),
        });
        let core = self.local_core(&handle);
        (Actor::new(core.clone(), serve, commands), core)
    }

    /// The inside of a tenant on the test's own thread and clock. Its commits wake nobody.
    pub(crate) fn local_core(&self, handle: &Arc<Handle>) -> Rc<Core> {
        let (log, handoff) = (self.log.clone(), self.handoff.clone());
        Rc::new(Core::new(handle.clone(), log, handoff, Rc::default(), Pace::new(SLICE)))
    }

    /// Attaches `namespace/name` with `policy`.
    pub(crate) fn attach(&self, name: &str, policy: Policy) -> Arc<Handle> {
        self.registry.attach(identity(name), policy).unwrap()
    }
}

pub(crate) fn identity(name: &str) -> TenantIdentity {
    TenantIdentity { name: TenantName::parse(name).unwrap(), pod_uid: None, node_name: None, service_account: None }
}

/// The defaults of the configuration, to one destination.
pub(crate) fn policy() -> Policy {
    Policy {
        limits: Limits {
            bytes_per_second: 4 << 20,
            requests_per_second: 2_000,
            connections: 64,
            memory: MemoryLimit { guarantee: 512 << 10, ceiling: 64 << 20 },
            disk: MemoryLimit { guarantee: 32 << 20, ceiling: 1 << 30 },
            max_request_bytes: 64 << 20,
        },
        ack: AckPolicy::Durable,
        queue: QueuePolicy { max_age: Duration::from_secs(72 * 3600), on_full: OnFull::Reject },
        enrich: Enrich::default(),
        destinations: std::array::from_fn(|_| vec![DestinationName("backend".into())]),
    }
}

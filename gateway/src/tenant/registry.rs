//! All tenants of the node: found by name, placed on workers, drained together.
//!
//! Owns the workers. It never waits for a tenant but in a drain. It ends with [`Registry::close`].

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dashmap::DashMap;
use futures_util::future::join_all;

use super::Serve;
use super::core::Log;
use super::handle::{Handle, Origin, Snapshot};
use super::worker::{Tools, Worker};
use crate::base::handoff::Handoff;
use crate::base::ledger::Ledger;
use crate::base::{TenantIdentity, TenantName};
use crate::config::{OnFull, Policy};
use crate::queue::{AppendError, Queue, Registered, TenantRecord};

/// What tenants are built from.
#[derive(Debug, Clone)]
pub struct Deps {
    /// Where requests are appended and tenants registered.
    pub queue: Queue,
    /// Where ack memory goes.
    pub handoff: Arc<Handoff>,
    /// The node's budget for the memory of intake.
    pub ledger: Ledger,
    /// `k8s.node.name`, attested for tenants whose identity names no node.
    pub node_name: Option<String>,
}

/// All tenants of the node, by name.
#[derive(Debug)]
pub struct Registry {
    tenants: DashMap<TenantName, Arc<Handle>>,
    workers: Vec<Worker>,
    log: Arc<dyn Log>,
    ledger: Ledger,
    node_name: Option<String>,
    closing: Arc<AtomicBool>,
    /// One attach at a time: the queue gives each key one number.
    attaching: Mutex<()>,
}

/// Why a tenant cannot attach.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    /// Another pod of that name is attached: its uid differs. Detach it first.
    #[error("tenant {0} is attached under another pod uid")]
    NameTaken(TenantName),
    /// The queue cannot number it.
    #[error("registering the tenant: {0}")]
    Queue(#[from] AppendError),
    /// The workers have ended, or their inbox is full.
    #[error("the data workers take no tenant now")]
    Workers,
}

impl Registry {
    /// Starts `workers` data workers, at least one. Their threads end at [`Registry::close`].
    pub fn new(deps: Deps, workers: usize, serve: Serve) -> std::io::Result<Arc<Self>> {
        let log = Arc::new(deps.queue);
        Self::start(log, deps.handoff, deps.ledger, deps.node_name, workers, serve)
    }

    pub(super) fn start(
        log: Arc<dyn Log>,
        handoff: Arc<Handoff>,
        ledger: Ledger,
        node_name: Option<String>,
        workers: usize,
        serve: Serve,
    ) -> std::io::Result<Arc<Self>> {
        let tools = Tools { log: log.clone(), handoff, serve };
        let workers =
            (0..workers.max(1)).map(|number| Worker::start(number, tools.clone())).collect::<Result<_, _>>()?;
        Ok(Arc::new(Self {
            tenants: DashMap::new(),
            workers,
            log,
            ledger,
            node_name,
            closing: Arc::default(),
            attaching: Mutex::new(()),
        }))
    }

    /// Registers the tenant with the queue and places it on the least loaded worker. The same identity again gives the
    /// same handle, with the new policy applied. Blocking: not to be called on a runtime's own thread.
    pub fn attach(&self, mut identity: TenantIdentity, policy: Policy) -> Result<Arc<Handle>, AttachError> {
        let _one_at_a_time = self.attaching.lock().unwrap_or_else(PoisonError::into_inner);
        identity.node_name = identity.node_name.or_else(|| self.node_name.clone());
        let known = self.find(&identity.name);
        if let Some(handle) = known {
            return self.attach_again(handle, &identity, policy);
        }
        let Registered { id, cursors } = self.log.register(&record(&identity, &policy))?;
        let name = identity.name.clone();
        let (number, worker) = self
            .workers
            .iter()
            .enumerate()
            .min_by_key(|(_, worker)| worker.load.load(Ordering::Relaxed))
            .expect("there is at least one worker");
        worker.load.fetch_add(1, Ordering::Relaxed);
        let account = self.ledger.account(policy.limits.memory);
        let (closing, load) = (self.closing.clone(), worker.load.clone());
        let (handle, commands) =
            Handle::new(Origin { id, identity, worker: number, policy, cursors, account, closing, load });
        if !worker.attach(handle.clone(), commands) {
            return Err(AttachError::Workers);
        }
        self.tenants.insert(name, handle.clone());
        Ok(handle)
    }

    fn attach_again(
        &self,
        handle: Arc<Handle>,
        identity: &TenantIdentity,
        policy: Policy,
    ) -> Result<Arc<Handle>, AttachError> {
        if handle.identity() != identity {
            return Err(AttachError::NameTaken(identity.name.clone()));
        }
        let old = handle.policy();
        if *old != policy {
            // Routes and retention outlive the pod with its records.
            let changed = record(identity, &old) != record(identity, &policy);
            let registered = changed.then(|| self.log.register(&record(identity, &policy))).transpose()?;
            handle.change_policy(policy, registered.map(|registered| registered.cursors));
        }
        handle.reattach();
        Ok(handle)
    }

    /// Forgets a tenant whose connections were drained; those that are left are closed. Its queue outlives it.
    pub fn detach(&self, name: &TenantName) {
        if let Some((_, handle)) = self.tenants.remove(name) {
            handle.end();
        }
    }

    /// The tenant of that name.
    pub fn find(&self, name: &TenantName) -> Option<Arc<Handle>> {
        self.tenants.get(name).map(|entry| entry.value().clone())
    }

    /// Everything, sorted by name.
    pub fn all(&self) -> Vec<Arc<Handle>> {
        let mut all: Vec<_> = self.tenants.iter().map(|entry| entry.value().clone()).collect();
        all.sort_by(|a, b| a.identity().name.cmp(&b.identity().name));
        all
    }

    /// Everything, for people, sorted by name.
    pub fn snapshot(&self) -> Vec<Snapshot> {
        self.all().iter().map(|handle| handle.snapshot()).collect()
    }

    /// Whether every data worker answers within `patience`: what readiness asks.
    pub async fn responsive(&self, patience: Duration) -> bool {
        join_all(self.workers.iter().map(|worker| worker.responds(patience))).await.into_iter().all(|answered| answered)
    }

    /// Grants no connection any more and drains every tenant. Resolves at `deadline` at the latest.
    pub async fn drain_all(&self, deadline: tokio::time::Instant) {
        self.closing.store(true, Ordering::Relaxed);
        let all = self.all();
        join_all(all.iter().map(|handle| handle.drain(deadline))).await;
    }

    /// Ends the workers, closing what is left. Blocking.
    pub fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
        self.workers.iter().for_each(Worker::stop);
        self.workers.iter().for_each(Worker::join);
    }
}

fn record(identity: &TenantIdentity, policy: &Policy) -> TenantRecord {
    TenantRecord {
        name: identity.name.clone(),
        pod_uid: identity.pod_uid.clone(),
        destinations: policy.destinations.clone(),
        max_age: policy.queue.max_age,
        disk: policy.limits.disk,
        drops_oldest: policy.queue.on_full == OnFull::DropOldest,
    }
}

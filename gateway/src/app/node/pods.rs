//! What the coming and going of a pod means for the parts of the node.
//!
//! Owns what the log remembers of tenants until their pods come, and nothing of a tenant that has come. What blocks runs on
//! the runtime's blocking threads; what drains is awaited by the change of that one name.
//!
//! ```text
//! comes   registered with the log, placed on a worker -> its delivery -> its sockets, last: from then on it is connected to
//! goes    its sockets, first -> what is in flight is finished, within a limit -> its task -> its delivery, once delivered
//! ```

use std::collections::{BTreeSet, HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::build;
use crate::base::{DestinationName, TenantId, TenantIdentity, TenantName};
use crate::config::{Config, Policy};
use crate::export::Exporter;
use crate::lifecycle::{Lifecycle, NamespaceRule, Site, SiteSockets};
use crate::queue::{RecoveredTenant, Recovery};
use crate::tenant::Registry;
use crate::volumes::{Change, Pod, Tenants};

/// For requests in flight of a pod that is gone: its containers ended before its volume did.
const DRAIN_MAX: Duration = Duration::from_secs(2);

/// Pairs of a namespace and a destination that were warned about; more are left out in silence.
const WARNED_MAX: usize = 1_000;

/// Serves pods.
pub(super) struct Pods {
    config: Arc<Config>,
    registry: Arc<Registry>,
    exporter: Arc<Exporter>,
    lifecycle: Arc<Lifecycle>,
    /// Found in the log, and not attached since.
    unclaimed: Mutex<HashMap<TenantId, RecoveredTenant>>,
    warned: Mutex<HashSet<(String, DestinationName)>>,
}

impl Pods {
    pub(super) fn new(
        config: Arc<Config>,
        (registry, exporter, lifecycle): (Arc<Registry>, Arc<Exporter>, Arc<Lifecycle>),
        recovery: Recovery,
    ) -> Arc<Self> {
        let unclaimed = recovery.tenants.into_iter().map(|tenant| (tenant.id, tenant)).collect();
        let unclaimed = Mutex::new(unclaimed);
        Arc::new(Self { config, registry, exporter, lifecycle, unclaimed, warned: Mutex::default() })
    }

    async fn carry_out(&self, Change { name, from, to }: Change) -> Result<(), String> {
        let stays = to.as_ref().is_some_and(|to| from.as_ref() == Some(&to.uid));
        if from.is_some() {
            self.lifecycle.remove(&name).await;
        }
        if !stays {
            self.forget(&name).await;
        }
        let Some(pod) = to else { return Ok(()) };
        let uid = pod.uid.clone();
        match self.serve(&name, pod).await {
            Ok(()) => {
                tracing::info!(tenant = %name, pod = %uid, "a pod is served");
                Ok(())
            }
            Err(words) => {
                self.forget(&name).await;
                Err(words)
            }
        }
    }

    async fn serve(&self, name: &TenantName, pod: Pod) -> Result<(), String> {
        let identity = TenantIdentity {
            name: name.clone(),
            pod_uid: Some(pod.uid.to_string()),
            node_name: None,
            service_account: Some(pod.service_account),
        };
        let (policy, registry) = (self.policy(name), self.registry.clone());
        let attaching = tokio::task::spawn_blocking(move || registry.attach(identity, policy));
        let attached = attaching.await.map_err(|error| error.to_string())?;
        let handle = attached.map_err(|error| error.to_string())?;
        let known = lock(&self.unclaimed).remove(&handle.id());
        self.exporter.attach(build::route_of(&handle, known.as_ref()));
        let site = Site {
            tenant: handle,
            sockets: SiteSockets::Given { ctl: pod.ctl, otlp: pod.otlp },
            ports: pod.ports,
            namespace: NamespaceRule::Exclusive,
            orphan_grace: None,
        };
        self.lifecycle.add(site).map_err(|error| error.to_string())
    }

    /// The defaults, and a warning for each destination that a namespace may not use.
    fn policy(&self, name: &TenantName) -> Policy {
        let (policy, left_out) = self.config.policy_of_pod(name);
        for destination in left_out {
            let mut warned = lock(&self.warned);
            if warned.len() < WARNED_MAX && warned.insert((name.namespace().to_owned(), destination.clone())) {
                tracing::warn!(
                    namespace = name.namespace(), %destination,
                    "pods of this namespace are not sent to this destination, which does not list it under `allow`"
                );
            }
        }
        policy
    }

    /// Ends the tenant of that name, if there is one.
    async fn forget(&self, name: &TenantName) {
        let Some(handle) = self.registry.find(name) else { return };
        handle.drain(Instant::now() + DRAIN_MAX).await;
        self.registry.detach(name);
        // Export forgets it once everything is delivered that it knows of: so nothing may be on its way there any more.
        if tokio::time::timeout(DRAIN_MAX, handle.ended()).await.is_err() {
            tracing::warn!(tenant = %name, "its data worker does not answer: the tenant ends when it does");
        }
        self.exporter.detach(handle.id());
        tracing::info!(tenant = %name, pod = handle.identity().pod_uid, "a pod is gone");
    }
}

impl Tenants for Pods {
    fn change(self: Arc<Self>, change: Change) -> BoxFuture<'static, Result<(), String>> {
        Box::pin(async move { self.carry_out(change).await })
    }

    fn announced(&self, announced: bool) {
        self.lifecycle.set_announced(announced);
    }

    fn listed(&self, uids: &BTreeSet<Arc<str>>) {
        let gone = |tenant: &RecoveredTenant| tenant.record.pod_uid.as_deref().is_none_or(|uid| !uids.contains(uid));
        let gone: Vec<_> = lock(&self.unclaimed).extract_if(|_, tenant| gone(tenant)).collect();
        for (id, _) in gone {
            self.exporter.detach(id);
        }
    }

    fn dispose(&self, socket: OwnedFd) {
        self.lifecycle.dispose(socket);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A set or a map is whole after whatever ended the one before.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

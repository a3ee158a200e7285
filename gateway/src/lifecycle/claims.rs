//! Which tenant a network namespace belongs to: one cookie never serves two tenants (docs/threats.md row 10).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pillion_proto::control::NackCode;

use super::NamespaceRule;
use super::donation::Refusal;
use crate::base::TenantName;

/// The first namespace of a boot gets the first cookie (net_ns_init): it is the host's.
const HOST: u64 = 1;

/// The namespaces of the sites that have one of their own.
#[derive(Debug)]
pub(super) struct Claims {
    /// The gateway's own.
    own: u64,
    owners: Mutex<HashMap<u64, TenantName>>,
}

impl Claims {
    pub(super) fn new(own: u64) -> Arc<Self> {
        Arc::new(Self { own, owners: Mutex::default() })
    }

    /// Gives a namespace to a tenant, and takes from it the one that it had before.
    pub(super) fn claim(&self, namespace: u64, tenant: &TenantName, rule: NamespaceRule) -> Result<(), Refusal> {
        if rule == NamespaceRule::Shared {
            return Ok(());
        }
        if namespace == self.own || namespace == HOST {
            let reason = "this process runs in the network of the gateway or of the host, which all pods there share; \
                          give the pod a network of its own";
            return Err(Refusal::new(NackCode::OwnNamespace, reason));
        }
        let mut owners = self.owners();
        if owners.get(&namespace).is_some_and(|owner| owner != tenant) {
            let reason = "another tenant is served in this network namespace";
            return Err(Refusal::new(NackCode::NamespaceTaken, reason));
        }
        owners.retain(|_, owner| owner != tenant);
        owners.insert(namespace, tenant.clone());
        Ok(())
    }

    /// The tenant is served no more.
    pub(super) fn release(&self, tenant: &TenantName) {
        self.owners().retain(|_, owner| owner != tenant);
    }

    fn owners(&self) -> MutexGuard<'_, HashMap<u64, TenantName>> {
        // A panic while the lock is held cannot happen in a map's own operations.
        self.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

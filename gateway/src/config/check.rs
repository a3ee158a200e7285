//! What must hold between sections, once each of them is read.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use super::error::nearest;
use super::read::Places;
use super::types::{Config, Destination, Policy};
use super::unit::show_size;
use crate::base::{DestinationName, TenantName};

/// Reports every contradiction between sections.
pub(super) fn across(config: &Config, places: &Places<'_>) {
    mentions(places);
    routes(config, places);
    socket_dirs(config, places);
    uids(config, places);
    cluster(config, places);
}

/// In a cluster the CSI driver says which tenants there are.
fn cluster(config: &Config, places: &Places<'_>) {
    let Some(custody_socket) = &places.custody_socket else { return };
    if let Some(tenants) = &places.tenants_section {
        tenants.fail(
            "with node.custody_socket the tenants are the pods that the CSI driver tells of, and nobody else's",
            "remove it; what applies to every pod stands under defaults",
        );
    }
    if config.defaults.destinations.iter().all(Vec::is_empty) {
        custody_socket.fail("pods have no destination", "write destinations: [NAME] under defaults");
    }
}

/// Every destination that is named is there.
fn mentions(places: &Places<'_>) {
    for (name, place) in &places.mentions {
        if places.destinations.contains(name) {
            continue;
        }
        let known = || places.destinations.iter().map(|name| name.0.as_ref());
        let list = known().collect::<Vec<_>>().join(", ");
        let help = match nearest(&name.0, known()) {
            Some(near) => format!("did you mean {near}? known: {list}"),
            None if list.is_empty() => "describe it under destinations".to_owned(),
            None => format!("known: {list}"),
        };
        place.fail(format!("no destination is called {}", place.quoted()), &help);
    }
}

/// Every tenant has somewhere to deliver to, and may.
fn routes(config: &Config, places: &Places<'_>) {
    for (name, tenant) in &config.tenants {
        let Some(place) = places.tenants.get(name) else { continue };
        let mut wanted: Vec<_> = tenant.policy.destinations.iter().flatten().collect();
        wanted.sort();
        wanted.dedup();
        if wanted.is_empty() {
            place.fail("has no destination", "write destinations: [NAME] under defaults or under its policy");
        }
        for wanted in wanted {
            let Some(destination) = config.destinations.get(wanted) else { continue };
            if !destination.allows(name) {
                let message = format!("the destination {wanted} does not allow the namespace {}", name.namespace());
                place.fail(message, &format!("add it to destinations.{wanted}.allow, or \"*\" for all namespaces"));
            }
        }
    }
}

/// A directory is who a tenant is: two tenants of one directory would be one.
fn socket_dirs(config: &Config, places: &Places<'_>) {
    let mut seen: BTreeMap<PathBuf, &TenantName> = BTreeMap::new();
    for (name, tenant) in &config.tenants {
        if let Some(first) = seen.insert(normal(&tenant.socket_dir), name)
            && let Some(place) = places.tenants.get(name)
        {
            place.fail(
                format!("has the same socket_dir as {first}"),
                "a tenant is known by its directory: give each its own",
            );
        }
    }
}

fn uids(config: &Config, places: &Places<'_>) {
    let mut seen: BTreeMap<&str, &TenantName> = BTreeMap::new();
    for (name, tenant) in &config.tenants {
        if let Some(uid) = &tenant.pod_uid
            && let Some(first) = seen.insert(uid, name)
            && let Some(place) = places.tenants.get(name)
        {
            place.fail(format!("has the same uid as {first}"), "a uid belongs to one pod");
        }
    }
}

/// Without `.` and doubled slashes, and without looking at the disk.
fn normal(path: &Path) -> PathBuf {
    path.components().filter(|component| *component != Component::CurDir).collect()
}

impl Destination {
    /// Whether a tenant's namespace is on the list.
    pub fn allows(&self, tenant: &TenantName) -> bool {
        self.allow.iter().any(|allowed| allowed == "*" || allowed == tenant.namespace())
    }
}

impl Config {
    /// The policy of a pod in a cluster: the defaults, without the destinations that do not allow its namespace, which are
    /// named beside it.
    pub fn policy_of_pod(&self, pod: &TenantName) -> (Policy, Vec<DestinationName>) {
        let mut policy = self.defaults.clone();
        let mut left_out = Vec::new();
        for routes in &mut policy.destinations {
            routes.retain(|name| {
                let allowed = self.destinations.get(name).is_some_and(|destination| destination.allows(pod));
                if !allowed && !left_out.contains(name) {
                    left_out.push(name.clone());
                }
                allowed
            });
        }
        (policy, left_out)
    }

    /// What is valid but probably not meant. To be logged at the start, and shown by `pillion validate`.
    pub fn warnings(&self) -> Vec<String> {
        let mut out = Vec::new();
        if self.tenants.is_empty() && self.node.custody_socket.is_none() {
            out.push("tenants: there are none, so nothing will be received".to_owned());
        }
        let sum = |bytes: fn(&super::Limits) -> u64| -> u64 {
            self.tenants.values().fold(0, |sum, tenant| sum.saturating_add(bytes(&tenant.policy.limits)))
        };
        for (what, key, sum, limit) in [
            ("memory", "memory_limit", sum(|limits| limits.memory.guarantee), self.node.memory_limit),
            ("disk", "disk_limit", sum(|limits| limits.disk.guarantee), self.node.disk_limit),
        ] {
            if sum > limit {
                out.push(format!(
                    "the tenants' {what} guarantees add up to {}, above node.{key} of {}: all of them shrink evenly",
                    show_size(sum),
                    show_size(limit)
                ));
            }
        }
        let named = self.tenants.iter().map(|(name, tenant)| (format!("tenants.{name}"), &tenant.policy));
        let every_pods = self.node.custody_socket.iter().map(|_| ("defaults".to_owned(), &self.defaults));
        for (whose, policy) in named.chain(every_pods) {
            let limits = policy.limits;
            for (what, key, ceiling, limit) in [
                ("memory", "memory_limit", limits.memory.ceiling, self.node.memory_limit),
                ("disk", "disk_limit", limits.disk.ceiling, self.node.disk_limit),
            ] {
                if ceiling > limit {
                    let (ceiling, limit) = (show_size(ceiling), show_size(limit));
                    out.push(format!("{whose}: its {what} ceiling of {ceiling} is above node.{key} of {limit}"));
                }
            }
        }
        out
    }
}

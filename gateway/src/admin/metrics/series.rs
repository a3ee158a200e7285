//! Which tenants have labels of their own: at most so many, and the same ones as long as they are there.
//!
//! A time series database pays for each set of labels it ever saw, and pods come and go. What is over the limit is summed
//! up as `other`.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use super::Labels;

/// Tenants with labels of their own.
const TENANTS_MAX: usize = 1_000;

/// Namespace and workload of the rest.
const OTHER: &str = "other";

/// Remembers, from scrape to scrape, who has labels: a tenant that moved between its own and `other` would make both jump.
#[derive(Debug)]
pub(in crate::admin) struct Series {
    max: usize,
    named: Mutex<BTreeSet<String>>,
}

impl Default for Series {
    fn default() -> Self {
        Self::new(TENANTS_MAX)
    }
}

impl Series {
    pub(super) fn new(max: usize) -> Self {
        Self { max, named: Mutex::default() }
    }

    /// The labels of each tenant, in the same order. Places of tenants that are gone are given to others.
    pub(super) fn labels<'a>(&self, tenants: impl Iterator<Item = &'a str> + Clone) -> Vec<Labels> {
        // Whatever a panic left in a set of names is still one.
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        let present: BTreeSet<&str> = tenants.clone().collect();
        named.retain(|name| present.contains(name.as_str()));
        for tenant in tenants.clone() {
            if named.len() >= self.max {
                break;
            }
            if !named.contains(tenant) {
                named.insert(tenant.to_owned());
            }
        }
        tenants.map(|tenant| labels(if named.contains(tenant) { tenant } else { OTHER })).collect()
    }
}

fn labels(tenant: &str) -> Labels {
    let (namespace, workload) = tenant.split_once('/').unwrap_or((OTHER, OTHER));
    vec![("namespace", namespace.to_owned()), ("workload", workload.to_owned())]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: more tenants than labels; one goes, others come, before and behind it in the order of names.
    /// Guarantees: who has labels keeps them; the limit holds; a free place is used.
    #[test]
    fn labels_are_limited_and_stable() {
        let series = Series::new(2);
        let ask = |names: &[&str]| -> Vec<String> {
            series.labels(names.iter().copied()).into_iter().map(|labels| labels[1].1.clone()).collect()
        };
        assert_eq!(ask(&["n/b", "n/c", "n/d"]), ["b", "c", "other"]);
        assert_eq!(ask(&["n/a", "n/b", "n/c", "n/d"]), ["other", "b", "c", "other"]);
        assert_eq!(ask(&["n/a", "n/c", "n/d"]), ["a", "c", "other"]);
    }
}

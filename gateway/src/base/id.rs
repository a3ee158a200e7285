//! Names and numbers that must not be mixed up.

use std::fmt;
use std::sync::Arc;

/// A tenant's number in the log of this node. Given at its first attach, durable, never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantId(pub u32);

/// Position of a record in the log's order: boot epoch in the high 24 bits, a counter in the low 40.
///
/// Strictly increasing over the whole node, so also within a tenant. `Sequence::ZERO` is before every record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Sequence(pub u64);

impl Sequence {
    /// Before every record: what a new cursor has acknowledged.
    pub const ZERO: Self = Self(0);

    /// The one after this one, within the same epoch.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// `namespace/name`: how people, configuration and metrics call a tenant. At most 317 bytes (63 + 1 + 253).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantName {
    namespace: Arc<str>,
    name: Arc<str>,
}

/// Why a text is no [`TenantName`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "tenant name {0:?} is not of the form namespace/name (lowercase letters, digits, '-' and '.'; at most 63 and 253 bytes)"
)]
pub struct InvalidTenantName(pub String);

impl TenantName {
    /// Accepts what Kubernetes accepts: a DNS label for the namespace, a DNS subdomain for the name.
    pub fn parse(text: &str) -> Result<Self, InvalidTenantName> {
        let invalid = || InvalidTenantName(text.chars().take(400).collect());
        let (namespace, name) = text.split_once('/').ok_or_else(invalid)?;
        let fits = |part: &str, max: usize, dots: bool| {
            !part.is_empty()
                && part.len() <= max
                && part
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || (dots && b == b'.'))
                && !part.starts_with(['-', '.'])
                && !part.ends_with(['-', '.'])
        };
        if !fits(namespace, 63, false) || !fits(name, 253, true) {
            return Err(invalid());
        }
        Ok(Self { namespace: namespace.into(), name: name.into() })
    }

    /// The part before the slash.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The part after the slash.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for TenantName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Who a tenant is, asserted by whoever made its socket directory (the kubelet, or the configuration), never by the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantIdentity {
    /// `k8s.namespace.name` and `k8s.pod.name`.
    pub name: TenantName,
    /// `k8s.pod.uid`; absent where nobody attests one.
    pub pod_uid: Option<String>,
    /// `k8s.node.name`; absent where nobody attests one.
    pub node_name: Option<String>,
    /// `spec.serviceAccountName`, for people. Not attested: the semantic conventions have no attribute for it.
    pub service_account: Option<String>,
}

impl TenantIdentity {
    /// The resource attributes that stand for this identity, in a fixed order.
    pub fn attested(&self) -> Vec<Attribute> {
        let mut out = vec![
            Attribute::new("k8s.namespace.name", self.name.namespace()),
            Attribute::new("k8s.pod.name", self.name.name()),
        ];
        if let Some(uid) = &self.pod_uid {
            out.push(Attribute::new("k8s.pod.uid", uid));
        }
        if let Some(node) = &self.node_name {
            out.push(Attribute::new("k8s.node.name", node));
        }
        out
    }
}

/// A resource attribute with a string value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attribute {
    /// The attribute's key, as in OpenTelemetry's semantic conventions.
    pub key: String,
    /// Its value.
    pub value: String,
}

impl Attribute {
    /// A pair of owned copies.
    pub fn new(key: &str, value: &str) -> Self {
        Self { key: key.to_owned(), value: value.to_owned() }
    }
}

/// The name of a destination, as in the configuration's `destinations` map.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DestinationName(pub Arc<str>);

impl fmt::Display for DestinationName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: names from configuration and from the kubelet, good and bad.
    /// Guarantees: only what Kubernetes itself would accept becomes a tenant, so a name is always safe in a path or a label.
    #[test]
    fn a_tenant_name_is_a_label_and_a_subdomain() {
        for good in ["shop/cart", "a/b", "kube-system/etcd-0.node1", "n0/7f"] {
            assert_eq!(TenantName::parse(good).map(|name| name.to_string()), Ok(good.to_owned()));
        }
        for bad in
            ["", "/", "shop", "shop/", "/cart", "Shop/cart", "a/b/c", "a.b/c", "../x", "a/..", "a/-b", "a/b_c", "a/b\n"]
        {
            assert!(TenantName::parse(bad).is_err(), "{bad:?} must be refused");
        }
        assert!(TenantName::parse(&format!("{}/x", "n".repeat(64))).is_err());
        assert!(TenantName::parse(&format!("n/{}", "x".repeat(254))).is_err());
    }
}

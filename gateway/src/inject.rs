//! Which pods get a shim, and what exactly they get: one pure function.
//!
//! Owns the decision ([`decide`]) and its words. It reads a pod as JSON, talks to nobody and changes nothing: the outcome is a
//! JSON patch (RFC 6902) or a [`Reason`]. `pillion inject` applies it to files ([`manifest`]); in a cluster the
//! MutatingAdmissionPolicy of `deploy/yaml/50-inject.yaml` says the same in CEL, and `pillion-golden` compares the two against
//! a real API server.
//!
//! ```text
//! opt in    pillion.dev/inject: enabled | disabled   on the pod, as annotation or label; else a label of the namespace
//!           `disabled` anywhere is final; otherwise the pod's word is heard before the namespace's
//! ports     pillion.dev/grpc-port, pillion.dev/http-port on the pod, 1024 to 65535; default 4317 and 4318
//! outcome   pillion.dev/status on the pod: `injected`, or `skipped: REASON` where a pod asked and cannot have it
//! ```

mod ask;
pub mod manifest;
mod patch;
mod pod;
mod ports;
mod quantity;
mod reason;
mod shim;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde_json::Value;

pub use json_patch::Patch;
pub use reason::Reason;

use pod::Pod;

/// Annotation of a pod, or label of a pod or namespace: `enabled` or `disabled`.
pub const INJECT: &str = "pillion.dev/inject";
/// Annotation: what was done.
pub const STATUS: &str = "pillion.dev/status";
/// Annotation: another port for OTLP/gRPC.
pub const GRPC_PORT: &str = "pillion.dev/grpc-port";
/// Annotation: another port for OTLP/HTTP.
pub const HTTP_PORT: &str = "pillion.dev/http-port";
/// The injected container.
pub const CONTAINER: &str = "pillion-shim";
/// The injected volume.
pub const VOLUME: &str = "pillion";
/// What serves the volume.
pub const DRIVER: &str = "csi.pillion.dev";
/// The value of [`STATUS`] on a pod with a shim.
pub const INJECTED: &str = "injected";
/// Namespaces whose pods are left alone: the cluster's own, and ours, which the shim could only wait for.
pub const PROTECTED: [&str; 2] = ["kube-system", "pillion-system"];

/// The namespace that a pod is created in.
#[derive(Debug, Clone, Default)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// Its labels: [`INJECT`] is read here.
    pub labels: BTreeMap<String, String>,
    /// Its annotations: a Collector's injection may be asked for here.
    pub annotations: BTreeMap<String, String>,
}

/// What is the same for every pod of a cluster.
#[derive(Debug, Clone)]
pub struct Defaults {
    /// The shim's image.
    pub image: String,
}

impl Default for Defaults {
    fn default() -> Self {
        Self { image: concat!("pillion.dev/shim:", env!("CARGO_PKG_VERSION")).to_owned() }
    }
}

/// What becomes of a pod.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// Apply this to the pod.
    Inject(Patch),
    /// Leave it as it is, apart from what [`note`] says.
    Skip(Reason),
}

/// Decides about a pod, or a pod template: an object with `metadata` and `spec`. Whatever it holds, nothing panics; a shape
/// that no API server takes is treated as absent and left to the API server to refuse.
pub fn decide(pod: &Value, namespace: &Namespace, defaults: &Defaults) -> Decision {
    let pod = Pod::new(pod);
    match refusal(&pod, namespace) {
        Ok(ports) => Decision::Inject(patch::inject(&pod, &ports, defaults)),
        Err(reason) => Decision::Skip(reason),
    }
}

/// What a skipped pod is told: its status, where it asked and something is in the way. The others are not touched at all.
pub fn note(pod: &Value, reason: &Reason) -> Option<Patch> {
    reason.is_noted().then(|| patch::status(&Pod::new(pod), &reason.status()))
}

/// The order is that of the policy: the first reason is the one that is told.
fn refusal(pod: &Pod<'_>, namespace: &Namespace) -> Result<ports::Ports, Reason> {
    if PROTECTED.contains(&namespace.name.as_str()) {
        return Err(Reason::ProtectedNamespace);
    }
    if pod.annotation("kubernetes.io/config.mirror").is_some() {
        return Err(Reason::MirrorPod);
    }
    if pod.all_containers().any(|container| pod::name(container) == Some(CONTAINER)) {
        return Err(Reason::ShimPresent);
    }
    ask::asked(pod, namespace)?;
    if pod.spec("hostNetwork").and_then(Value::as_bool) == Some(true) {
        return Err(Reason::HostNetwork);
    }
    if pod.is_windows() {
        return Err(Reason::Windows);
    }
    let ports = ports::chosen(pod)?;
    if pod.volumes().any(|volume| pod::name(volume) == Some(VOLUME)) {
        return Err(Reason::VolumeTaken);
    }
    ports::check_free(pod, namespace, &ports)?;
    Ok(ports)
}

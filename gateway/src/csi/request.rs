//! Whether a volume may be published: the kubelet's request in, a [`Record`] or a refusal out.
//!
//! Owns the rules and their words, which appear as an event of the pod. Identity comes only from the keys that the kubelet
//! sets last (`csi.storage.k8s.io/...`), so that no pod can forge them; the pod's own attributes are untrusted. Pure.

use std::collections::HashMap;
use std::path::Path;

use pillion_proto::csi::NodePublishVolumeRequest;
use pillion_proto::custody::NAME_BYTES_MAX;
use tonic::Code;

use super::records::Record;
use super::target::Target;

/// Prefix of everything that the kubelet asserts.
const ASSERTED: &str = "csi.storage.k8s.io/";

/// The pod's own attributes, with the ports that they stand for.
const PORTS: [(&str, u16); 2] = [("grpcPort", 4317), ("httpPort", 4318)];

/// Why a call fails. The text reaches people as an event of the pod.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub(super) struct Refusal {
    pub(super) code: Code,
    pub(super) reason: String,
}

impl Refusal {
    pub(super) fn invalid(reason: impl Into<String>) -> Self {
        Self { code: Code::InvalidArgument, reason: reason.into() }
    }

    /// The caller may try again: the kubelet does.
    pub(super) fn internal(reason: impl Into<String>) -> Self {
        Self { code: Code::Internal, reason: reason.into() }
    }
}

/// Whose volume a call is about.
pub(super) fn target(kubelet_dir: &Path, target_path: &str) -> Result<Target, Refusal> {
    Target::parse(kubelet_dir, target_path).ok_or_else(|| {
        Refusal::invalid(format!(
            "target_path {target_path:?} is not {}/pods/UID/volumes/kubernetes.io~csi/NAME/mount: start the driver with \
             --kubelet-dir set to the kubelet's --root-dir, and mount it under the same path",
            kubelet_dir.display()
        ))
    })
}

/// Everything that there is to know about a volume, or why it is refused.
pub(super) fn check(target: &Target, request: &NodePublishVolumeRequest) -> Result<Record, Refusal> {
    let context = &request.volume_context;
    let asserted = |key: &str| context.get(&[ASSERTED, key].concat()).map_or("", String::as_str);
    if asserted("ephemeral") != "true" {
        return Err(Refusal::invalid(
            "only an ephemeral inline volume can be served: write it as `csi: {driver: csi.pillion.dev, readOnly: true}` \
             under the pod's volumes, and keep volumeLifecycleModes: [Ephemeral] in the CSIDriver object",
        ));
    }
    if !request.readonly {
        return Err(Refusal::invalid(
            "the volume is not read-only, so the pod could replace its sockets: set readOnly: true in the pod's csi volume",
        ));
    }
    let [uid, namespace, pod] = ["pod.uid", "pod.namespace", "pod.name"].map(asserted);
    if [uid, namespace, pod].iter().any(|text| text.is_empty()) {
        return Err(Refusal::invalid(
            "the kubelet says nothing about the pod: set podInfoOnMount: true in the CSIDriver object csi.pillion.dev",
        ));
    }
    let service_account = asserted("serviceAccount.name");
    if [namespace, pod, service_account].iter().any(|text| text.len() > NAME_BYTES_MAX) {
        return Err(Refusal::invalid(format!("a name of the pod is longer than {NAME_BYTES_MAX} bytes")));
    }
    if uid != target.uid.as_str() {
        return Err(Refusal::invalid(format!(
            "target_path is of pod {}, but the volume context says {uid:?}",
            target.uid
        )));
    }
    Ok(Record {
        uid: uid.to_owned(),
        volume: target.volume.clone(),
        volume_id: request.volume_id.clone(),
        namespace: namespace.to_owned(),
        pod: pod.to_owned(),
        service_account: service_account.to_owned(),
        ports: ports(context)?,
    })
}

fn ports(context: &HashMap<String, String>) -> Result<Vec<u16>, Refusal> {
    let mut ports = Vec::with_capacity(PORTS.len());
    for (key, default) in PORTS {
        let port = match context.get(key) {
            None => default,
            Some(text) => text.parse().ok().filter(|port| *port != 0).ok_or_else(|| {
                let shown: String = text.chars().take(32).collect();
                Refusal::invalid(format!(
                    "volumeAttributes {key} is {shown:?}: write a port from 1 to 65535, in quotes"
                ))
            })?,
        };
        ports.push(port);
    }
    if ports.first() == ports.get(1) {
        return Err(Refusal::invalid("grpcPort and httpPort are the same: each needs a port of its own"));
    }
    Ok(ports)
}

#[cfg(test)]
mod tests;

//! What is injected, as JSON: the container and its volume. Static but for the ports, so that policy changes restart no pod.
//!
//! No `OTEL_*` variables: SDKs send to localhost by default, and variables would beat what the image or envFrom sets.

use serde_json::{Value, json};

use super::pod::Pod;
use super::ports::Ports;
use super::quantity::Quantity;
use super::{CONTAINER, DRIVER, Defaults, VOLUME};

const DIRECTORY: &str = "/run/pillion";

/// The first native sidecar, which passes the `restricted` level of PodSecurity.
pub(super) fn container(pod: &Pod<'_>, ports: &Ports, defaults: &Defaults) -> Value {
    let mut args = vec!["run".to_owned(), "--dir".to_owned(), DIRECTORY.to_owned()];
    if ports.is_chosen {
        args.extend(["--grpc".to_owned(), ports.grpc.to_string(), "--http".to_owned(), ports.http.to_string()]);
    }
    let mut container = json!({
        "name": CONTAINER,
        "image": defaults.image,
        "args": args,
        "restartPolicy": "Always",
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": true,
            "runAsGroup": 65532,
            "runAsNonRoot": true,
            "runAsUser": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [{"name": VOLUME, "mountPath": DIRECTORY, "readOnly": true}],
    });
    if let Some(resources) = resources(pod) {
        container["resources"] = resources;
    }
    container
}

/// Where sockets are found. The pod's own attributes are a wish that the driver checks.
pub(super) fn volume(ports: &Ports) -> Value {
    let mut csi = json!({"driver": DRIVER, "readOnly": true});
    if ports.is_chosen {
        csi["volumeAttributes"] = json!({"grpcPort": ports.grpc.to_string(), "httpPort": ports.http.to_string()});
    }
    json!({"name": VOLUME, "csi": csi})
}

/// Both requests always, since one that is missing breaks autoscaling; a memory limit above the 12 MiB that CRI-O insists on. No
/// cpu limit: the container runtime's own start burns 30 ms inside it. Requests equal to limits keep a Guaranteed pod what it is.
/// None where the pod names its own resources as a whole: theirs would no longer fit into those.
fn resources(pod: &Pod<'_>) -> Option<Value> {
    if pod.has_resources() {
        return None;
    }
    Some(if is_guaranteed(pod) {
        json!({"requests": {"cpu": "200m", "memory": "16Mi"}, "limits": {"cpu": "200m", "memory": "16Mi"}})
    } else {
        json!({"requests": {"cpu": "1m", "memory": "2Mi"}, "limits": {"memory": "16Mi"}})
    })
}

/// Whether every container has limits for cpu and memory, and equal requests. A request that is left out is its limit.
fn is_guaranteed(pod: &Pod<'_>) -> bool {
    let is_pinned = |container: &Value, resource: &str| {
        let amount = |kind: &str| container.get("resources")?.get(kind)?.get(resource).filter(|value| !value.is_null());
        let limit = amount("limits").and_then(Quantity::of);
        let request = amount("requests").map_or(limit, Quantity::of);
        limit.is_some_and(Quantity::is_positive) && limit == request
    };
    pod.all_containers().all(|container| ["cpu", "memory"].iter().all(|resource| is_pinned(container, resource)))
}

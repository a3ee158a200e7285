//! The JSON patch (RFC 6902). Additions alone; a list or map that is absent is made first, empty, as the policy must do it too:
//! the API server of 1.34 panics on a list that holds an object.

use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, Patch, PatchOperation};
use serde_json::{Value, json};

use super::pod::Pod;
use super::ports::Ports;
use super::{Defaults, INJECTED, STATUS, shim};

/// The shim, its volume, and the status.
pub(super) fn inject(pod: &Pod<'_>, ports: &Ports, defaults: &Defaults) -> Patch {
    let mut operations = Vec::new();
    if pod.list("initContainers").is_none() {
        operations.push(add(["spec", "initContainers"], json!([])));
    }
    // First, so that init containers can send as well.
    operations.push(add(["spec", "initContainers", "0"], shim::container(pod, ports, defaults)));
    if pod.list("volumes").is_none() {
        operations.push(add(["spec", "volumes"], json!([])));
    }
    operations.push(add(["spec", "volumes", "-"], shim::volume(ports)));
    operations.extend(status(pod, INJECTED).0);
    Patch(operations)
}

/// The status alone.
pub(super) fn status(pod: &Pod<'_>, text: &str) -> Patch {
    let mut operations = Vec::new();
    if !pod.has_metadata() {
        operations.push(add(["metadata"], json!({})));
    }
    if !pod.has_annotations() {
        operations.push(add(["metadata", "annotations"], json!({})));
    }
    operations.push(add(["metadata", "annotations", STATUS], text.into()));
    Patch(operations)
}

fn add<'t>(path: impl IntoIterator<Item = &'t str>, value: Value) -> PatchOperation {
    PatchOperation::Add(AddOperation { path: PointerBuf::from_tokens(path), value })
}

//! What shim, gateway and CSI driver agree on.
//!
//! - [`control`]: the messages on `ctl`, by which a pod's shim hands its listening sockets to the node's gateway.
//! - [`custody`]: the messages by which the node's CSI driver hands the sockets of all pods to the gateway.
//! - [`csi`]: the messages between the kubelet and that driver, behind the feature `csi`.
//! - [`otlp`]: the message types of OTLP, behind the feature `otlp`; the shim never looks inside a request.
//!
//! Owns encodings and constants. It never touches a socket and never decides anything.

pub mod control;
#[cfg(feature = "csi")]
pub mod csi;
pub mod custody;
#[cfg(feature = "otlp")]
pub mod otlp;
mod wire;

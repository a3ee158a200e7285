//! What shim and gateway agree on.
//!
//! - [`control`]: the messages on `ctl`, by which a pod's shim hands its listening sockets to the node's gateway.
//! - [`otlp`]: the message types of OTLP, behind the feature `otlp`; the shim never looks inside a request.
//!
//! Owns encodings and constants. It never touches a socket and never decides anything.

pub mod control;
#[cfg(feature = "otlp")]
pub mod otlp;

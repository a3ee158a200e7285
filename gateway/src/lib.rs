//! The node's gateway, in the order in which data flows through it.
//!
//! - [`volumes`] hears from the CSI driver which pods there are, and holds their sockets.
//! - [`lifecycle`] holds the control sockets and the listeners that shims donate, and accepts connections.
//! - [`tenant`] is a pod's virtual sidecar: identity, policy, budgets, and the one task that polls all its connections.
//! - [`intake`] speaks OTLP on one connection and maps every outcome to one reply.
//! - [`pipeline`] validates, enriches and splits bytes. Pure.
//! - [`queue`] keeps them: one log for the node, sled for what can be rebuilt from it.
//! - [`export`] delivers them, or says why not.
//! - [`sink`] is the embedded destination of a standalone gateway.
//! - [`csi`] is a process of its own: it makes the pods' sockets for the kubelet, and hands them to the gateway.
//! - [`admin`] answers people and Prometheus, from snapshots only.
//! - [`inject`] decides which pods get a shim, and writes it into manifests. Pure.
//! - [`app`] reads the command line, supervises the worker, and puts the parts together. Only it names everything.
//!
//! Leaves: [`base`], [`config`], [`wire`], [`readable`] (OTLP for people), [`telemetry`], `sockets`, and `sys`, the only place with `unsafe`.

#[cfg(not(target_os = "linux"))]
compile_error!(
    "Pillion passes sockets between processes with Linux's SCM_RIGHTS, epoll and network-namespace cookies. \
     On macOS or Windows, run it in a Linux virtual machine or container (for example `lima`, WSL 2 or Docker)."
);

pub mod admin;
pub mod app;
pub mod base;
pub mod config;
pub mod csi;
pub mod export;
pub mod inject;
pub mod intake;
pub mod lifecycle;
pub mod pipeline;
pub mod queue;
pub mod readable;
pub mod sink;
mod sockets;
mod sys;
pub mod telemetry;
pub mod tenant;
pub mod volumes;
pub mod wire;

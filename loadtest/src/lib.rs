//! Load, a sink that faults on demand, the floor to compare with, and what a process costs.
//!
//! - [`payload`] makes OTLP requests whose items carry unique ids, and reads the ids back.
//! - [`client`] sends them over raw HTTP/2, in a closed loop, cheaply enough not to be what is measured.
//! - [`sink`] is a backend: discards or records, refuses or stalls as told.
//! - [`floor`] forwards the same bytes over the `h2` crate, untouched: the least that a gateway could cost.
//! - [`measure`] reads a process's CPU time and memory from /proc.

pub mod client;
pub mod floor;
pub mod measure;
pub mod payload;
pub mod sink;

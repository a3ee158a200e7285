//! The harness: real processes, real kernels, real clients.
//!
//! - [`gateway`] runs `pillion run`, kills its worker, and reads its pages.
//! - [`pod`] is the inside of a pod: a network namespace with a shim and clients, driven over its standard streams.
//! - [`one_pod`] is one pod, one gateway and one sink.
//! - [`station`] is a gateway between two sinks, and [`compare`] tells whether what arrived is what was sent.
//! - [`shim`] is a pod's shim on ports of this host; [`ask`] sends one request to it and returns the answer.
//! - [`small_disk`] is a real filesystem that fills up.
//! - [`sync_gate`] makes fdatasync of a real gateway fail or hang.
//! - [`chaos`] kills the gateway at random moments under load and balances the books.
//! - [`attack`] is what a hostile process of the same user does.
//! - [`kubelet`] calls a CSI driver as the kubelet does; [`csi`] runs one, and stands in for the gateway behind it.
//! - [`cluster`] is a node of a cluster without the cluster: driver, gateway, kubelet, pods, a sink.
//! - [`e2e`] is the suite for a real cluster, with its own programs.
//! - [`lines`] waits for a line of a process instead of for a length of time.
//! - [`pods`] makes pods by chance, for what decides about pods.

pub mod ask;
pub mod attack;
pub mod chaos;
pub mod cluster;
pub mod compare;
pub mod csi;
pub mod e2e;
pub mod gateway;
pub mod kubelet;
pub mod lines;
pub mod one_pod;
pub mod pod;
pub mod pods;
pub mod shim;
pub mod small_disk;
pub mod station;
pub mod sync_gate;
mod sys;

//! The shim as a process, against a gateway that the test plays.
#![expect(clippy::unwrap_used, reason = "a helper fails its test by panicking")]

mod custody;
mod harness;
mod relay;
mod session;

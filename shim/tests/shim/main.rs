//! The shim as a process, against a gateway that the test plays.
#![expect(clippy::unwrap_used, reason = "a test's tools fail it by panicking")]

mod custody;
mod harness;
mod relay;
mod session;

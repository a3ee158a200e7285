//! The shim as a process, against a gateway that the test plays.

mod custody;
mod harness;
mod relay;
mod session;

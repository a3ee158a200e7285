//! The end-to-end suite: Pillion as it is installed, on a real cluster.
//!
//! - [`app`] is what runs in the suite's own pods: a backend, a real SDK, load, and small helpers.
//! - [`ranges`] is how both sides write down thousands of ids.

pub mod app;
pub mod ranges;

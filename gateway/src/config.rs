//! Configuration: YAML in, typed values that cannot be invalid out.
//!
//! Two steps. `read` walks the marked YAML tree and collects every error with file, line, path and the nearest known key.
//! `types` is what the rest of the gateway sees. Knows nothing of how the values are used.

pub mod types;

pub use types::*;

//! The nouns every stage shares: ids, the batch, the ledger, the counters, and the two hand-overs between threads.
//!
//! Owns no thread and does no I/O. It imports nothing else of the gateway.

pub mod batch;
pub mod handoff;
pub mod id;
pub mod ledger;
pub mod mailbox;
pub mod stats;

pub use batch::{AckPolicy, Batch, Signal};
pub use id::{Attribute, DestinationName, Sequence, TenantId, TenantIdentity, TenantName};

//! The embedded destination: counts and the last items, on disk before the cursor advances.
//!
//! Exact across kill -9: it remembers which records it has counted, so that a record that is delivered again is not
//! counted again.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use crate::base::{Sequence, Signal, TenantId, TenantName};

/// The store. Thread-safe; `store` blocks on the disk.
#[derive(Debug)]
pub struct Sink {
    _todo: (),
}

/// One record delivered to the sink.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Whose.
    pub tenant: TenantId,
    /// Its name.
    pub name: TenantName,
    /// The record; `None` for ack memory, which cannot be recognised when it comes again.
    pub sequence: Option<Sequence>,
    /// The tenant's cursor at this destination: nothing up to here comes again that was not stored before. What the sink
    /// may forget, so that its memory is bounded by what is in flight.
    pub acknowledged: Sequence,
    /// What it is.
    pub signal: Signal,
    /// Items in it.
    pub items: u32,
    /// The bytes.
    pub payload: Bytes,
}

impl Sink {
    /// Opens or makes the store in `dir`. A damaged store is put aside with a warning, never an error.
    pub fn open(dir: &Path) -> std::io::Result<Arc<Self>> {
        let _ = dir;
        todo!()
    }

    /// Counts and keeps these records; durable when it returns. Blocking.
    pub fn store(&self, deliveries: &[Delivery]) -> std::io::Result<()> {
        let _ = deliveries;
        todo!()
    }
}

//! What happens to a request's bytes between intake and queue. Pure and synchronous; no I/O, no clock.
//!
//! ```text
//! Job::new(signal, payload, plan) -> step(budget)* -> Output
//!   validate   lengths, UTF-8, ids, nesting; count items; note where each resource is
//!   enrich     rewrite the resource field of each Resource{Spans,Metrics,Logs}
//!   split      into parts of at most Batch::PAYLOAD_BYTES_MAX, at item level
//! ```

use bytes::Bytes;

use crate::base::{Attribute, Signal};

/// What a tenant's policy does to every request, compiled once per policy change.
#[derive(Debug)]
pub struct Plan {
    _todo: (),
}

impl Plan {
    /// `attested` overwrites what the pod sent under the same key (counted); `defaults` are added only where absent.
    pub fn new(attested: &[Attribute], defaults: &[Attribute]) -> Self {
        let _ = (attested, defaults);
        todo!()
    }
}

/// One request on its way through the stages. Holds the payload; interruptible between steps.
#[derive(Debug)]
pub struct Job {
    _todo: (),
}

/// How far a step came.
#[derive(Debug)]
pub enum Step {
    /// The budget is used up; call again.
    More,
    /// Finished.
    Done(Output),
}

/// A processed request.
#[derive(Debug, PartialEq, Eq)]
pub struct Output {
    /// At least one unless the request held no items; each within [`crate::base::Batch::PAYLOAD_BYTES_MAX`].
    pub parts: Vec<Part>,
    /// Sum over the parts.
    pub items: u32,
    /// Attributes of the pod that an attested one replaced by another value.
    pub overwritten: u32,
}

/// A run of bytes that is a valid `Export*ServiceRequest` of its own.
#[derive(Debug, PartialEq, Eq)]
pub struct Part {
    /// The bytes.
    pub payload: Bytes,
    /// Spans, data points or log records in it.
    pub items: u32,
}

/// Why a request is refused for good: INVALID_ARGUMENT or 400 with a BadRequest detail.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem} at byte {offset} ({path})")]
pub struct Invalid {
    /// What is wrong, for the pod's developer.
    pub problem: &'static str,
    /// Where, counted from the start of the message.
    pub offset: usize,
    /// The field path as far as it was known, for example `resource_spans.scope_spans.spans.trace_id`.
    pub path: String,
}

impl Job {
    /// Takes the whole message, already decompressed.
    pub fn new(signal: Signal, payload: Bytes) -> Self {
        let _ = (signal, payload);
        todo!()
    }

    /// Works on roughly `budget` bytes. The same plan must be passed to every step of a job.
    pub fn step(&mut self, plan: &Plan, budget: usize) -> Result<Step, Invalid> {
        let _ = (plan, budget);
        todo!()
    }

    /// Bytes of output that it holds so far. Enrichment may multiply a request of many empty resources: the caller
    /// reserves what is above the message's own size, after each step, and drops the job when the ledger refuses.
    pub fn held(&self) -> usize {
        todo!()
    }
}

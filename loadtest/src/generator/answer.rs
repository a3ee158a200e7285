//! How requests end, whatever they travelled over.

use crate::item::messages;
use crate::wire::{Fields, Value};

/// Bytes of an answer that are taken; a longer one is a failure.
pub(super) const ANSWER_MAX: usize = 64 << 10;

/// How a request was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// All of it was accepted.
    Accepted,
    /// gRPC's or HTTP's status of a refusal.
    Refused(u32),
    /// Accepted but for some items.
    Partly,
}

/// A request's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ended {
    /// What it was named when it was sent.
    pub(super) token: usize,
    /// Or why there is no answer.
    pub(super) answer: Result<Answer, String>,
}

/// When and how a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Heard {
    /// What has ended.
    pub(super) ended: Ended,
    /// When the last of its answer arrived, in nanoseconds after the start; `None`: not before it was read.
    pub(super) arrived: Option<u64>,
}

impl From<Ended> for Heard {
    fn from(ended: Ended) -> Self {
        Self { ended, arrived: None }
    }
}

/// Whether an Export*ServiceResponse says that items were rejected: partial_success 1, rejected 1.
pub(super) fn rejects_some(response: &[u8]) -> bool {
    messages(response, 1).map_while(Result::ok).any(|(partial, _)| {
        Fields::of(partial).map_while(Result::ok).any(|field| field.number == 1 && field.value != Value::Varint(0))
    })
}

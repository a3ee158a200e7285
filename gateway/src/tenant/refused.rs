//! Why a tenant does not take a request, and when to come back.

use std::time::Duration;

use crate::base::stats::Refusal;
use crate::base::{Batch, Signal};
use crate::pipeline::Invalid;
use crate::queue::AppendError;

/// Why a request is not taken. Says nothing of transports: intake maps it to a reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Not a valid request; never will be.
    #[error("the request is not valid OTLP: {0}")]
    Invalid(#[from] Invalid),
    /// Larger than the tenant may ever send; never will fit.
    #[error("the request is larger than the tenant's limit of {limit} bytes")]
    TooLarge {
        /// `limits.max_request_bytes`, or what the memory ceiling leaves of it.
        limit: u64,
    },
    /// The policy has no destination for this signal.
    #[error("the tenant's policy has no destination for {}", .0.name())]
    Unrouted(Signal),
    /// Over `bytes_per_second` or `requests_per_second`.
    #[error("the tenant's quota is used up")]
    Quota {
        /// From the tenant's own bucket.
        delay: Duration,
    },
    /// The ledger has no room.
    #[error("the memory for requests in flight is used up")]
    Memory {
        /// How long the tenant's rate takes to pass what it holds now.
        delay: Duration,
    },
    /// The queue did not take it, or its commit failed.
    #[error("{error}")]
    Queue {
        /// What it said.
        error: AppendError,
        /// When it may have room.
        delay: Duration,
    },
}

impl Refused {
    /// What an append's failure means for the request.
    pub(super) fn by_queue(error: AppendError) -> Self {
        let delay = match error {
            // The writer is behind by its inbox: some commits away.
            AppendError::Busy => Duration::from_millis(250),
            // Until something was delivered and its segments are freed.
            AppendError::Full | AppendError::LowSpace | AppendError::OverBudget | AppendError::Stalled => {
                Duration::from_secs(10)
            }
            // The process ends, and is there again within a second or two.
            AppendError::Poisoned | AppendError::Closed | AppendError::UnknownTenant => Duration::from_secs(2),
            // One item that cannot be split any further.
            AppendError::TooLarge => return Self::TooLarge { limit: Batch::PAYLOAD_BYTES_MAX as u64 },
        };
        Self::Queue { error, delay }
    }

    /// When a retry makes sense; `None` when never.
    pub fn delay(&self) -> Option<Duration> {
        match self {
            Self::Invalid(_) | Self::TooLarge { .. } | Self::Unrouted(_) => None,
            Self::Quota { delay } | Self::Memory { delay } | Self::Queue { delay, .. } => Some(*delay),
        }
    }

    /// The counter it belongs to.
    pub fn reason(&self) -> Refusal {
        match self {
            Self::Invalid(_) => Refusal::Malformed,
            Self::TooLarge { .. } => Refusal::TooLarge,
            Self::Unrouted(_) => Refusal::Unsupported,
            Self::Quota { .. } => Refusal::Quota,
            Self::Memory { .. } => Refusal::Memory,
            Self::Queue { error: AppendError::Closed, .. } => Refusal::Shutdown,
            Self::Queue { .. } => Refusal::Queue,
        }
    }
}

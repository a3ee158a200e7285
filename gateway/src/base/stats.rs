//! Counters of one tenant, written by the thread that does the work and read by the admin server.
//!
//! All are monotonic and in items or bytes, as named. The balance closes per tenant and destination:
//! accepted + recovered = delivered + queued + dead letters + sampled out + lost by reason.

use std::sync::atomic::{AtomicU64, Ordering};

use super::batch::Signal;

/// A monotonic counter. Relaxed: readers want a recent figure, not an order between two of them.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The present value.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Why items or requests were refused at the door. Each is a `reason` label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Refusal {
    /// Not valid protobuf, UTF-8, gRPC framing or compression.
    Malformed,
    /// Over `max_request_bytes`, before or after decompression.
    TooLarge,
    /// An unknown content type, encoding, path, method or service.
    Unsupported,
    /// Over `bytes_per_second` or `requests_per_second`.
    Quota,
    /// The ledger had no room.
    Memory,
    /// The queue or its disk had no room, or its commit failed.
    Queue,
    /// The gateway was draining.
    Shutdown,
}

impl Refusal {
    /// All of them, in the order of their indices.
    pub const ALL: [Self; 7] =
        [Self::Malformed, Self::TooLarge, Self::Unsupported, Self::Quota, Self::Memory, Self::Queue, Self::Shutdown];

    /// The value of the `reason` label.
    pub fn label(self) -> &'static str {
        ["malformed", "too_large", "unsupported", "quota", "memory", "queue", "shutdown"][self as usize]
    }
}

/// Why committed items were given up. Each is a `reason` label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Loss {
    /// Older than `queue.max_age`.
    Expired,
    /// Given up for newer data, by `queue.on_full: drop_oldest`.
    DroppedOldest,
    /// Damaged on the disk.
    Damaged,
    /// Its destination was taken from the tenant, and no other one of it waited for it.
    DestinationRemoved,
}

impl Loss {
    /// All of them, in the order of their indices.
    pub const ALL: [Self; 4] = [Self::Expired, Self::DroppedOldest, Self::Damaged, Self::DestinationRemoved];

    /// The value of the `reason` label.
    pub fn label(self) -> &'static str {
        ["expired", "dropped_oldest", "damaged", "destination_removed"][self as usize]
    }
}

/// What one tenant did, since the gateway's start.
#[derive(Debug, Default)]
pub struct TenantStats {
    /// Items acknowledged to the pod, by `Signal::index`.
    pub accepted: [Counter; 3],
    /// Items refused, where they could be counted, by `Signal::index`.
    pub refused: [Counter; 3],
    /// Requests refused, by `Refusal as usize`.
    pub refused_requests: [Counter; 7],
    /// Requests answered, whatever the answer.
    pub requests: Counter,
    /// Payload bytes acknowledged, after decompression.
    pub accepted_bytes: Counter,
    /// Attributes that the pod had set to something else than what is attested.
    pub overwritten: Counter,
    /// Items found undelivered in the log at the gateway's start.
    pub recovered: Counter,
    /// Connections accepted since the start.
    pub connections: Counter,
    /// Connections closed since the start; open = connections - closed.
    pub connections_closed: Counter,
}

/// What one tenant's data did at one destination, in items by `Signal::index`, since the gateway's start.
#[derive(Debug, Default)]
pub struct DeliveryStats {
    /// Acknowledged by the destination (the cursor has passed).
    pub delivered: [Counter; 3],
    /// Sent again after an answer or its absence that made it uncertain.
    pub retried: [Counter; 3],
    /// Refused for good because of their content, and kept as dead letters.
    pub dead_letters: [Counter; 3],
    /// Reported rejected in a partial success (estimated when the request was merged).
    pub rejected: [Counter; 3],
    /// Found undelivered in the log at the gateway's start, but not by this destination: it had them, or begins after them.
    pub begun_after: [Counter; 3],
    /// Passed without delivery, by `Loss as usize`.
    pub lost: [[Counter; 3]; 4],
}

/// Sum over the signals.
pub fn total(counters: &[Counter; 3]) -> u64 {
    Signal::ALL.iter().map(|signal| counters[signal.index()].value()).sum()
}

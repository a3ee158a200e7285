//! Cursors: how far each of those who follow a tenant's records has come.
//!
//! Owns what a cursor is and how its key is written, in the log as in sled. Pure. A cursor never goes back, since what it
//! passed may be gone.
//!
//! ```text
//! key  = kind u8 | signal u8 | destination text     1: delivery of a signal to a destination. A kind that is not known is skipped
//! ```

use crate::base::{DestinationName, Sequence, Signal, TenantId};

/// Whose cursor, among those of one tenant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CursorOf {
    /// Delivery of one signal to one destination. By signal, since each has its own destinations: a signal that is routed
    /// elsewhere leaves the others' cursors where they are, and finds its own backlog.
    Delivery(DestinationName, Signal),
}

/// How far it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CursorState {
    /// Whose records.
    pub tenant: TenantId,
    /// Of which cursor.
    pub of: CursorOf,
    /// Every record that it follows up to and including this position is done (delivered, dead letter, or given up).
    pub acknowledged: Sequence,
    /// Records after it that are done as well, in order. Bounded by the window of the destination.
    pub beyond: Vec<Sequence>,
    /// Items delivered through this cursor since the tenant's first record: for the balance across restarts.
    pub delivered_items: u64,
}

impl CursorState {
    /// Whether a record that it follows is not done.
    pub(crate) fn is_pending(&self, sequence: Sequence) -> bool {
        sequence > self.acknowledged && self.beyond.binary_search(&sequence).is_err()
    }
}

impl CursorOf {
    /// Kind, signal and destination, to be written.
    pub(crate) fn parts(&self) -> (u8, u8, &str) {
        match self {
            Self::Delivery(destination, signal) => (1, *signal as u8, &destination.0),
        }
    }

    /// What was written; `None` for what a later release keeps.
    pub(crate) fn from_parts(kind: u8, signal: u8, destination: &str) -> Option<Self> {
        match kind {
            1 => Some(Self::Delivery(DestinationName(destination.into()), Signal::from_number(signal)?)),
            _ => None,
        }
    }
}

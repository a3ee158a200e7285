//! What was sent and what was acknowledged, by pod and signal: the generator's half of the account.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::bitmap::Bitmap;
use crate::identity::Signal;

/// Bits of both halves of an account: 64 MiB each, half a billion items.
const ITEMS_MAX: u64 = 1 << 29;

/// A pod's items of one signal. Lanes are numbered pod by pod.
pub(crate) fn lane(pod: u16, signal: Signal) -> usize {
    usize::from(pod) * Signal::ALL.len() + signal.index()
}

/// Items that a lane may have.
pub(crate) fn lane_items_max(pods: usize) -> u64 {
    ITEMS_MAX / (pods.max(1) * Signal::ALL.len()) as u64
}

/// Numbers the items, and keeps which of them were acknowledged.
#[derive(Debug)]
pub struct Ledger {
    lanes: Mutex<Vec<Lane>>,
    items_max: u64,
}

/// One lane's half.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lane {
    pub(crate) sent: u64,
    pub(crate) acknowledged: Bitmap,
}

/// The account has no room for more items of this pod: the run is too long for what it keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

impl Ledger {
    /// An empty one.
    pub fn new(pods: usize) -> Self {
        let lanes = vec![Lane::default(); pods * Signal::ALL.len()];
        Self { lanes: Mutex::new(lanes), items_max: lane_items_max(pods) }
    }

    /// Numbers for `count` more items; returns the first.
    pub fn take(&self, pod: u16, signal: Signal, count: usize) -> Result<u64, Full> {
        let mut lanes = self.lanes();
        let lane = &mut lanes[lane(pod, signal)];
        let first = lane.sent;
        if first + count as u64 > self.items_max {
            return Err(Full);
        }
        lane.sent += count as u64;
        Ok(first)
    }

    /// These were acknowledged.
    pub fn acknowledge(&self, pod: u16, signal: Signal, first: u64, count: usize) {
        let mut lanes = self.lanes();
        let acknowledged = &mut lanes[lane(pod, signal)].acknowledged;
        for sequence in first..first + count as u64 {
            acknowledged.set(sequence);
        }
    }

    pub(crate) fn lanes(&self) -> MutexGuard<'_, Vec<Lane>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

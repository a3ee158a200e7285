//! What was sent and what was acknowledged, by pod and signal: the generator's half of the account.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

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

/// A lane's half as it travels from a pod that keeps a ledger of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneShare {
    /// Items that were numbered.
    pub sent: u64,
    /// Those that were acknowledged: the first of a run, and how many.
    pub acknowledged: Vec<(u64, u64)>,
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

    /// What is kept of a pod, by signal.
    pub fn share(&self, pod: u16) -> [LaneShare; 3] {
        let lanes = self.lanes();
        Signal::ALL.map(|signal| {
            let Lane { sent, acknowledged } = &lanes[lane(pod, signal)];
            LaneShare { sent: *sent, acknowledged: acknowledged.runs() }
        })
    }

    /// Puts what a pod kept in the place of what is kept of it here. Runs beyond what was sent are refused: what would be set
    /// for them has no limit.
    pub fn replace(&self, pod: u16, share: &[LaneShare; 3]) -> Result<(), Full> {
        let mut lanes = self.lanes();
        for (signal, LaneShare { sent, acknowledged: runs }) in Signal::ALL.into_iter().zip(share) {
            let is_within = |(first, length): &(u64, u64)| first.checked_add(*length).is_some_and(|end| end <= *sent);
            if *sent > self.items_max || !runs.iter().all(is_within) {
                return Err(Full);
            }
            let mut acknowledged = Bitmap::default();
            for sequence in runs.iter().flat_map(|(first, length)| *first..first + length) {
                acknowledged.set(sequence);
            }
            lanes[lane(pod, signal)] = Lane { sent: *sent, acknowledged };
        }
        Ok(())
    }

    pub(crate) fn lanes(&self) -> MutexGuard<'_, Vec<Lane>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: a pod's ledger with gaps over several words travels to another; then shares that claim what was never sent.
    /// Guarantees: the other says the same of that pod; what was claimed is refused before anything is set for it.
    #[test]
    fn a_pods_share_travels_whole_and_claims_nothing_unsent() {
        let (own, other) = (Ledger::new(2), Ledger::new(2));
        own.take(1, Signal::Logs, 500).unwrap();
        for (first, count) in [(0, 3), (60, 10), (499, 1)] {
            own.acknowledge(1, Signal::Logs, first, count);
        }
        let share = own.share(1);
        assert_eq!(share[2].acknowledged, [(0, 3), (60, 10), (499, 1)]);
        other.replace(1, &share).unwrap();
        assert_eq!(other.share(1), share);
        assert_eq!(other.share(0), [const { LaneShare { sent: 0, acknowledged: Vec::new() } }; 3]);
        for run in [(0, 501), (u64::MAX, 2)] {
            let mut wrong = share.clone();
            wrong[2].acknowledged.push(run);
            assert_eq!(other.replace(1, &wrong), Err(Full), "{run:?}");
        }
        let mut wrong = share.clone();
        wrong[0].sent = u64::MAX;
        assert_eq!(other.replace(1, &wrong), Err(Full));
    }
}

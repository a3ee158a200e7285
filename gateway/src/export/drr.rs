//! Whose turn it is: deficit round robin over bytes.
//!
//! Pure. Each lane in the ring gains a quantum a round and spends it on its records, so a lane with large records and
//! one with small ones get the same bytes, and the cost of a turn does not grow with the number of lanes.

use std::collections::VecDeque;

/// Bytes a lane gains each round. One merged request's worth: smaller would cost rounds, larger would be lumpy.
const QUANTUM: u64 = 64 * 1024;

/// What stands first in a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Head {
    /// Nothing: the lane leaves the ring, and its owner must enter it again when it has something.
    Empty,
    /// Something that cannot be taken now. The lane keeps its place and gains nothing.
    Pass,
    /// A record of this many bytes.
    Bytes(u64),
}

/// The ring of lanes that may have something to send.
#[derive(Debug, Default)]
pub(crate) struct Drr {
    ring: VecDeque<(u32, u64)>,
}

impl Drr {
    /// Enters a lane that is not in the ring.
    pub(crate) fn enter(&mut self, lane: u32) {
        self.ring.push_back((lane, 0));
    }

    /// Ends a lane's turn: what it tried failed, so the others come first.
    pub(crate) fn step_back(&mut self, lane: u32) {
        if let Some(index) = self.ring.iter().position(|(other, _)| *other == lane) {
            self.ring.remove(index);
            self.ring.push_back((lane, 0));
        }
    }

    /// Makes it a lane's turn.
    pub(crate) fn step_forward(&mut self, lane: u32) {
        if let Some(entry) = self.ring.iter().position(|(other, _)| *other == lane).and_then(|at| self.ring.remove(at))
        {
            self.ring.push_front(entry);
        }
    }

    /// The lane whose head is to be taken next, paid for; `None` when every lane passes.
    pub(crate) fn next(&mut self, mut head: impl FnMut(u32) -> Head) -> Option<u32> {
        let mut passes = 0;
        while passes < self.ring.len() {
            let (lane, deficit) = self.ring.front_mut()?;
            match head(*lane) {
                Head::Empty => {
                    self.ring.pop_front();
                    continue;
                }
                Head::Pass => passes += 1,
                Head::Bytes(bytes) if bytes <= *deficit => {
                    *deficit -= bytes;
                    return Some(*lane);
                }
                Head::Bytes(_) => {
                    *deficit += QUANTUM;
                    passes = 0;
                }
            }
            self.ring.rotate_left(1);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serve(drr: &mut Drr, sizes: &[u64], turns: usize) -> Vec<u64> {
        let mut bytes = vec![0; sizes.len()];
        for _ in 0..turns {
            let lane = drr.next(|lane| Head::Bytes(sizes[lane as usize])).expect("every lane has something") as usize;
            bytes[lane] += sizes[lane];
        }
        bytes
    }

    /// Scenario: one lane with records of 4 MiB, one of 100 KB, one of 400 bytes, all with an endless backlog.
    /// Guarantees: each gets the same bytes, within one record and one quantum.
    #[test]
    fn lanes_get_the_same_bytes_whatever_the_size_of_their_records() {
        let sizes = [4 << 20, 100_000, 400];
        let mut drr = Drr::default();
        (0..3).for_each(|lane| drr.enter(lane));

        let bytes = serve(&mut drr, &sizes, 400_000);

        let (most, least) = (bytes.iter().max().expect("three"), bytes.iter().min().expect("three"));
        assert!(most - least <= (4 << 20) + QUANTUM, "{bytes:?}");
    }

    /// Scenario: a lane runs empty, another waits out a backoff.
    /// Guarantees: the empty one leaves, the waiting one gains no credit while it waits, and nobody means `None`.
    #[test]
    fn a_lane_that_waits_saves_nothing_up() {
        let mut drr = Drr::default();
        drr.enter(0);
        drr.enter(1);
        let head = |lane| if lane == 0 { Head::Empty } else { Head::Pass };
        assert_eq!(drr.next(head), None);
        assert_eq!(drr.ring.len(), 1);
        drr.enter(2);
        for _ in 0..1_000 {
            assert_eq!(drr.next(|lane| if lane == 1 { Head::Pass } else { Head::Bytes(1_000) }), Some(2));
        }

        let bytes = serve(&mut drr, &[0, 1_000, 1_000], 2_000);
        assert!(bytes[1].abs_diff(bytes[2]) <= QUANTUM + 1_000, "{bytes:?}");
    }

    /// Scenario: what a lane tried failed; another has just been read for a probe.
    /// Guarantees: the first one's credit does not make it first again, and the second is next.
    #[test]
    fn a_failure_ends_the_turn() {
        let mut drr = Drr::default();
        (0..3).for_each(|lane| drr.enter(lane));
        let small = |_| Head::Bytes(100);
        assert_eq!(drr.next(small), Some(0));
        assert_eq!(drr.next(small), Some(0), "its credit is not used up");
        drr.step_back(0);
        assert_eq!(drr.next(small), Some(1));
        drr.step_forward(2);
        assert_eq!(drr.next(small), Some(2));
    }
}

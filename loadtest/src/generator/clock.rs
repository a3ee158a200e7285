//! The run's time, and what the kernel's stamps on what arrives are in it.
//!
//! ```text
//! elapsed      nanoseconds since the start, by CLOCK_MONOTONIC, which nobody sets
//! stamp        nanoseconds since 1970, by CLOCK_REALTIME, which somebody may set
//! distance     stamp - elapsed of the same moment: known as a range, which each comparison of the clocks makes narrower
//! ```
//!
//! NTP changes the speed of both clocks alike, so their distance stays what it is until the clock of the day is set. A comparison
//! which that range does not contain has seen this: stamps are then worth nothing until the next one, since nobody knows which of
//! them are older. Of a range the end is taken by which things were later: no latency is told shorter than it was.

use std::time::{Instant, SystemTime};

use anyhow::{Result, ensure};

/// Both clocks are rounded on their way.
const SLACK_NS: u64 = 50;

/// Comparisons at the start: the narrowest of them decides how exact the first stamps are.
const COMPARISONS: usize = 8;

/// Owned by the generator's thread.
#[derive(Debug)]
pub(super) struct Clock {
    started: Instant,
    started_unix: u64,
    distance: Distance,
    /// When the clocks were compared last.
    compared_at: u64,
}

/// What is known of the clocks' distance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Distance {
    least: u64,
    most: u64,
    /// Since the comparison before the last one.
    was_set: bool,
}

/// One clock, read between two readings of the other.
#[derive(Debug, Clone, Copy)]
struct Reading {
    before: u64,
    unix: u64,
    after: u64,
}

impl Clock {
    /// It is now zero.
    pub(super) fn start() -> Result<Self> {
        let started = Instant::now();
        let started_unix = unix_now();
        ensure!((1..u64::MAX).contains(&started_unix), "the clock of the day is not between 1970 and 2554");
        let reading = Reading { before: 0, unix: started_unix, after: since(started) };
        let (distance, compared_at) = (Distance::of(reading), reading.after);
        let mut clock = Self { started, started_unix, distance, compared_at };
        (0..COMPARISONS).for_each(|_| clock.compare());
        Ok(clock)
    }

    /// Nanoseconds since the start.
    pub(super) fn elapsed(&self) -> u64 {
        since(self.started)
    }

    /// The time of the day at that time of the run, as it was when the run began.
    pub(super) fn unix(&self, elapsed: u64) -> u64 {
        self.started_unix.saturating_add(elapsed)
    }

    /// Looks whether somebody has set the clock of the day. To be done before stamps are read.
    pub(super) fn compare(&mut self) {
        let before = self.elapsed();
        let unix = unix_now();
        self.compared_at = self.elapsed();
        self.distance = self.distance.step(Reading { before, unix, after: self.compared_at });
    }

    /// The time of the run at which the kernel stamped something, and a moment more rather than less. `None` if that cannot be
    /// told.
    pub(super) fn stamped(&self, stamp: u64) -> Option<u64> {
        let elapsed = self.distance.elapsed(stamp)?;
        // Most are older than the look.
        Some(if elapsed <= self.compared_at { elapsed } else { elapsed.min(self.elapsed()) })
    }
}

impl Distance {
    fn of(reading: Reading) -> Self {
        Self {
            least: reading.unix.saturating_sub(reading.after + SLACK_NS),
            most: reading.unix.saturating_sub(reading.before) + SLACK_NS,
            was_set: false,
        }
    }

    fn step(self, reading: Reading) -> Self {
        let new = Self::of(reading);
        let (least, most) = (self.least.max(new.least), self.most.min(new.most));
        if least <= most { Self { least, most, was_set: false } } else { Self { was_set: true, ..new } }
    }

    fn elapsed(self, stamp: u64) -> Option<u64> {
        if self.was_set { None } else { stamp.checked_sub(self.least) }
    }
}

fn since(started: Instant) -> u64 {
    u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// 0 before 1970.
fn unix_now() -> u64 {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 1_800_000_000_000_000_000;

    fn reading(before: u64, distance: u64, takes: u64) -> Reading {
        Reading { before, unix: before + takes / 2 + distance, after: before + takes }
    }

    /// Scenario: clocks are compared, once with the thread held up in between for a second, and things are stamped.
    /// Guarantees: what is told of a stamp is never earlier than it was, and later only by what the best comparison left open.
    #[test]
    fn a_stamp_is_told_as_late_as_it_was() {
        let first = Distance::of(reading(0, DAY, 1_000_000_000));
        let distance = first.step(reading(2_000_000_000, DAY, 400)).step(reading(3_000_000_000, DAY, 1_000_000_000));
        assert!(!distance.was_set);
        let elapsed = distance.elapsed(DAY + 1_234_567).unwrap();
        assert!((1_234_567..1_234_567 + 400 + SLACK_NS).contains(&elapsed), "{elapsed}");
    }

    /// Scenario: somebody sets the clock of the day, back and ahead, by little and by much, between two comparisons.
    /// Guarantees: stamps are worth nothing then, since their clock may be either, and are again after the next comparison.
    #[test]
    fn a_clock_that_is_set_spoils_the_stamps_of_one_look() {
        for moved in [DAY - 86_400_000_000_000, DAY - 10_000, DAY + 10_000, DAY + 86_400_000_000_000] {
            let before = Distance::of(reading(0, DAY, 100));
            let set = before.step(reading(1_000_000, moved, 100));
            assert_eq!(set.elapsed(DAY + 900_000), None, "{moved}");
            let after = set.step(reading(2_000_000, moved, 100));
            let elapsed = after.elapsed(moved + 1_500_000).unwrap();
            assert!((1_500_000..1_500_000 + 100 + 2 * SLACK_NS).contains(&elapsed), "{moved}: {elapsed}");
        }
    }
}

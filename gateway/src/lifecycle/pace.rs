//! How often something may happen: so many at once, and one more each interval. Pure; the time is passed in.

use std::time::{Duration, Instant};

/// A token bucket, kept as the moment at which it would be full again.
#[derive(Debug, Clone)]
pub(super) struct Pace {
    rule: Rule,
    full_at: Instant,
}

/// At most `burst` at once, then one each `interval`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) burst: u32,
    pub(super) interval: Duration,
}

impl Pace {
    pub(super) fn new(rule: Rule, now: Instant) -> Self {
        Self { rule, full_at: now }
    }

    /// When the next one may happen; not after `now` if it may happen at once.
    pub(super) fn next_at(&self, now: Instant) -> Instant {
        let ahead = self.rule.interval * self.rule.burst.saturating_sub(1);
        self.full_at.checked_sub(ahead).unwrap_or(now)
    }

    /// It happens.
    pub(super) fn take(&mut self, now: Instant) {
        self.full_at = self.full_at.max(now) + self.rule.interval;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: a shim that reconnects as fast as it can.
    /// Guarantees: the burst is served at once, then one each interval; waiting earns no more than the burst.
    #[test]
    fn a_burst_and_then_one_each_interval() {
        let second = Duration::from_secs(1);
        let mut now = Instant::now();
        let mut pace = Pace::new(Rule { burst: 3, interval: second }, now);
        for _ in 0..2 {
            for _ in 0..3 {
                assert!(pace.next_at(now) <= now);
                pace.take(now);
            }
            assert_eq!(pace.next_at(now), now + second);
            now += 100 * second;
        }
    }
}

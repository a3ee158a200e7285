//! How fast one tenant may send: token buckets that never read a clock.
//!
//! Owns the arithmetic of `limits.bytes_per_second`, `limits.requests_per_second` and of the budget for refusals. It never
//! waits, logs or counts: callers pass the time in and act on what comes back. It ends with its tenant.
//!
//! ```text
//! level   units that may still be taken; refilled at `per_second`, never above `burst`
//! take    level >= cost               -> level -= cost
//!         level <  cost <= burst      -> Wait until the level has grown to the cost
//!         cost  >  burst              -> Never: no amount of waiting helps
//! ```

use std::time::{Duration, Instant};

use crate::config::Limits;

/// Allowance of one tenant for one unit.
#[derive(Debug)]
pub(super) struct Quota {
    rate: Rate,
    level: u64,
    refilled: Instant,
}

/// `per_second` in the long run, `burst` at once. In the quota's own unit; both count for at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rate {
    /// In the long run.
    pub(super) per_second: u64,
    /// At once.
    pub(super) burst: u64,
}

/// Why a cost was not granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Denied {
    /// Granted after this long, if nothing else is taken meanwhile.
    Wait(Duration),
    /// Larger than the burst.
    Never,
}

impl Rate {
    /// Payload bytes: four seconds' worth at once, or one request of the largest size.
    pub(super) fn of_bytes(limits: &Limits) -> Self {
        let burst = limits.bytes_per_second.saturating_mul(4).max(limits.max_request_bytes);
        Self { per_second: limits.bytes_per_second, burst }.at_least_one()
    }

    /// Requests: one second's worth at once.
    pub(super) fn of_requests(limits: &Limits) -> Self {
        Self { per_second: limits.requests_per_second, burst: limits.requests_per_second }.at_least_one()
    }

    /// Refused requests: a client that obeys the delays it is given never reaches a tenth of its request rate.
    pub(super) fn of_refusals(limits: &Limits) -> Self {
        let per_second = (limits.requests_per_second / 10).max(REFUSALS_PER_SECOND_MIN);
        Self { per_second, burst: per_second }
    }

    fn at_least_one(self) -> Self {
        Self { per_second: self.per_second.max(1), burst: self.burst.max(1) }
    }
}

/// However small a tenant's rate is, this many clear answers a second it gets.
const REFUSALS_PER_SECOND_MIN: u64 = 20;

impl Quota {
    /// A full bucket: a pod that has just started may use its whole burst.
    pub(super) fn new(rate: Rate, now: Instant) -> Self {
        Self { rate, level: rate.burst, refilled: now }
    }

    /// Takes `cost` or nothing.
    pub(super) fn take(&mut self, cost: u64, now: Instant) -> Result<(), Denied> {
        if cost > self.rate.burst {
            return Err(Denied::Never);
        }
        self.refill(now);
        match self.level.checked_sub(cost) {
            Some(rest) => {
                self.level = rest;
                Ok(())
            }
            // Less what has passed since the last whole unit.
            None => Err(Denied::Wait(
                self.time_to_gain(cost - self.level).saturating_sub(now.saturating_duration_since(self.refilled)),
            )),
        }
    }

    /// Gives back what was taken for a request that was refused further down the way through no fault of its own.
    pub(super) fn refund(&mut self, cost: u64) {
        self.level = self.level.saturating_add(cost).min(self.rate.burst);
    }

    /// Applies a new policy. The level is kept, clamped to the new burst, so that flipping a policy grants nothing.
    pub(super) fn change(&mut self, rate: Rate, now: Instant) {
        self.refill(now);
        self.rate = rate;
        self.level = self.level.min(rate.burst);
    }

    fn refill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.refilled).as_nanos();
        let gained = u64::try_from(elapsed * u128::from(self.rate.per_second) / NANOS_PER_SECOND).unwrap_or(u64::MAX);
        if gained >= self.rate.burst - self.level {
            self.level = self.rate.burst;
            self.refilled = now;
            return;
        }
        self.level += gained;
        // Whole units only: the fraction stays in `refilled`, or frequent small calls would round the rate to nothing.
        self.refilled += nanos(u128::from(gained) * NANOS_PER_SECOND / u128::from(self.rate.per_second));
    }

    /// Rounded up: who obeys the delay is granted on the next try.
    fn time_to_gain(&self, units: u64) -> Duration {
        nanos((u128::from(units) * NANOS_PER_SECOND).div_ceil(u128::from(self.rate.per_second)))
    }
}

const NANOS_PER_SECOND: u128 = 1_000_000_000;

fn nanos(count: u128) -> Duration {
    Duration::from_nanos(u64::try_from(count).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { per_second: 1_000, burst: 500 };

    /// Scenario: a client obeys the delay it was given, asked for between two whole units.
    /// Guarantees: it is granted at exactly that moment, and not a nanosecond before.
    #[test]
    fn the_delay_is_enough_and_not_longer() {
        let start = Instant::now();
        let mut quota = Quota::new(RATE, start);
        quota.take(500, start).expect("a new bucket is full");

        let asked = start + Duration::from_micros(2_300);
        let Err(Denied::Wait(delay)) = quota.take(7, asked) else { panic!("two units are not seven") };

        assert_eq!(delay, Duration::from_micros(4_700));
        assert!(quota.take(7, asked + delay - Duration::from_nanos(1)).is_err());
        assert_eq!(quota.take(7, asked + delay), Ok(()));
    }

    /// Scenario: a flood of tiny requests, each a fraction of a unit after the last.
    /// Guarantees: the long-run rate is exact; rounding neither starves the tenant nor favours it.
    #[test]
    fn many_small_steps_gain_as_much_as_one_large_step() {
        let start = Instant::now();
        let mut quota = Quota::new(RATE, start);
        quota.take(500, start).expect("a new bucket is full");

        let granted =
            (1..=100_000u32).filter(|step| quota.take(1, start + *step * Duration::from_micros(3)).is_ok()).count();

        assert_eq!(granted, 300, "300 ms at 1,000 a second");
    }

    /// Scenario: a tenant is idle for a long time, then sends as fast as it can.
    /// Guarantees: it gets its burst once, not twice; waiting saves up nothing beyond it.
    #[test]
    fn idleness_saves_up_one_burst() {
        let start = Instant::now();
        let mut quota = Quota::new(RATE, start);
        quota.take(100, start).expect("a new bucket is full");

        let later = start + Duration::from_secs(3_600);

        let granted = (0..10_000).filter(|_| quota.take(1, later).is_ok()).count();
        assert_eq!(granted, 500);
    }

    /// Scenario: one request is larger than the tenant may ever send at once; another was refused by a full queue.
    /// Guarantees: the first is refused for good and costs nothing; the second gets back exactly what it took.
    #[test]
    fn what_is_not_used_is_not_charged() {
        let start = Instant::now();
        let mut quota = Quota::new(RATE, start);

        assert_eq!(quota.take(501, start), Err(Denied::Never));
        assert_eq!(quota.take(500, start), Ok(()));
        quota.refund(500);
        assert_eq!(quota.take(500, start), Ok(()));
    }

    /// Scenario: the policy changes to a larger burst and back while the bucket is empty.
    /// Guarantees: flipping it grants nothing.
    #[test]
    fn a_changed_policy_grants_nothing_by_itself() {
        let start = Instant::now();
        let mut quota = Quota::new(RATE, start);
        quota.take(500, start).expect("a new bucket is full");

        quota.change(Rate { per_second: 1_000, burst: 5_000 }, start);
        quota.change(RATE, start);

        assert!(quota.take(1, start).is_err());
    }

    /// Scenario: limits at the edges of what configuration allows.
    /// Guarantees: the largest request always fits the burst, a rate of nothing divides nothing, huge rates do not wrap.
    #[test]
    fn rates_of_extreme_limits_are_usable() {
        let memory = crate::base::ledger::MemoryLimit { guarantee: 0, ceiling: 1 };
        let limits = |bytes_per_second, requests_per_second, max_request_bytes| Limits {
            bytes_per_second,
            requests_per_second,
            connections: 1,
            memory,
            disk: memory,
            max_request_bytes,
        };
        let start = Instant::now();

        assert_eq!(Rate::of_bytes(&limits(10, 1, 1_000)), Rate { per_second: 10, burst: 1_000 });
        assert_eq!(Rate::of_bytes(&limits(1_000, 1, 10)), Rate { per_second: 1_000, burst: 4_000 });
        let mut none = Quota::new(Rate::of_requests(&limits(0, 0, 0)), start);
        none.take(1, start).expect("one at once");
        assert_eq!(none.take(1, start), Err(Denied::Wait(Duration::from_secs(1))));
        let mut all = Quota::new(Rate::of_bytes(&limits(u64::MAX, 1, 1)), start);
        assert_eq!(all.take(u64::MAX, start + Duration::from_secs(86_400)), Ok(()));
        assert_eq!(all.take(u64::MAX, start + Duration::from_secs(86_402)), Ok(()));
    }
}

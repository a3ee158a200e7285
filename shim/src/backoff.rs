//! When to try again: doubling delays, with full jitter.
//!
//! Owns the arithmetic. It never reads a clock and never sleeps.
//!
//! ```text
//! delay   uniform in 0 ..= min(cap, first * 2^failures): a node's shims do not come back in step
//! ```

use std::time::{Duration, Instant};

/// One thing that is tried until it works.
#[derive(Debug)]
pub(crate) struct Retry {
    /// When the next try is due. None: nothing is to be tried.
    pub(crate) at: Option<Instant>,
    first_ms: u64,
    cap_ms: u64,
    failures: u32,
    random: u64,
}

impl Retry {
    /// Both delays in milliseconds, both at least 1.
    pub(crate) fn new(first_ms: u64, cap_ms: u64, seed: u64) -> Self {
        Self { at: None, first_ms, cap_ms, failures: 0, random: seed | 1 }
    }

    /// Whether a try is due; if so, it is the caller's.
    pub(crate) fn take_due(&mut self, now: Instant) -> bool {
        self.at.take_if(|at| *at <= now).is_some()
    }

    /// It failed: again after the next delay, and `more` than that.
    pub(crate) fn again(&mut self, now: Instant, more: Duration) {
        let ceiling = self.first_ms.saturating_mul(1 << self.failures).min(self.cap_ms);
        self.failures = (self.failures + 1).min(20);
        self.at = Some(now + more + Duration::from_millis(self.up_to(ceiling)));
    }

    /// It worked, or there is reason to believe that it will: the delays start over.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    /// xorshift64*: spreads retries, guards nothing.
    fn up_to(&mut self, most: u64) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        (self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % (most + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: a gateway that stays away for long, and comes back.
    /// Guarantees: the first try is within the first delay, no delay exceeds the cap, the spread reaches most of it, and
    /// success starts over.
    #[test]
    fn delays_double_up_to_the_cap_and_start_over() {
        let now = Instant::now();
        let mut retry = Retry::new(10, 1000, 42);
        let next = |retry: &mut Retry| {
            retry.again(now, Duration::ZERO);
            retry.at.unwrap() - now
        };
        assert!(next(&mut retry) <= Duration::from_millis(10));
        let longest = (0..1000).map(|_| next(&mut retry)).max().unwrap();
        assert!(longest <= Duration::from_secs(1) && longest > Duration::from_millis(900), "{longest:?}");
        retry.reset();
        assert!(next(&mut retry) <= Duration::from_millis(10));
    }

    /// Scenario: the loop asks before and after a try is due.
    /// Guarantees: it is handed out once, and not before its time.
    #[test]
    fn a_try_is_handed_out_once() {
        let now = Instant::now();
        let mut retry = Retry::new(1, 1, 42);
        retry.again(now, Duration::from_secs(1));
        assert!(!retry.take_due(now));
        assert!(retry.take_due(now + Duration::from_secs(2)));
        assert!(!retry.take_due(now + Duration::from_secs(2)));
    }
}

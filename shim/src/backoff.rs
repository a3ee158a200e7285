//! How long to wait before the next try: doubling, with full jitter.
//!
//! Owns the arithmetic. It never reads a clock and never sleeps.
//!
//! ```text
//! delay   uniform in 0 ..= min(cap, first * 2^failures): a node's shims do not come back in step
//! ```

use std::time::Duration;

/// Delays of one thing that is tried again until it works.
#[derive(Debug)]
pub(crate) struct Backoff {
    first_ms: u64,
    cap_ms: u64,
    failures: u32,
}

impl Backoff {
    /// Both in milliseconds, both at least 1.
    pub(crate) const fn new(first_ms: u64, cap_ms: u64) -> Self {
        Self { first_ms, cap_ms, failures: 0 }
    }

    /// The delay after one more failure.
    pub(crate) fn next(&mut self, random: &mut Random) -> Duration {
        let ceiling = self.first_ms.saturating_mul(1 << self.failures).min(self.cap_ms);
        self.failures = (self.failures + 1).min(20);
        Duration::from_millis(random.up_to(ceiling))
    }

    /// It worked.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

/// xorshift64*: spreads retries, guards nothing.
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub(crate) fn up_to(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % (most + 1)
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
        let mut random = Random::new(42);
        let mut backoff = Backoff::new(10, 1000);
        assert!(backoff.next(&mut random) <= Duration::from_millis(10));
        let longest = (0..1000).map(|_| backoff.next(&mut random)).max().unwrap();
        assert!(longest <= Duration::from_secs(1) && longest > Duration::from_millis(900), "{longest:?}");
        backoff.reset();
        assert!(backoff.next(&mut random) <= Duration::from_millis(10));
    }
}

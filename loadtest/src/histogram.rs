//! Latencies: an HDR histogram, and how many requests have none because no answer came.

use std::time::Duration;

use hdrhistogram::Histogram;

/// Longer ones count as this long.
const MICROS_MAX: u64 = 600_000_000;

/// Latencies from a microsecond to ten minutes, three digits exact.
#[derive(Debug, Clone)]
pub struct Latencies {
    answered: Histogram<u64>,
    unanswered: u64,
}

impl Default for Latencies {
    fn default() -> Self {
        let answered = Histogram::new_with_bounds(1, MICROS_MAX, 3).expect("constant bounds in their order");
        Self { answered, unanswered: 0 }
    }
}

impl Latencies {
    /// One more.
    pub fn record(&mut self, latency: Duration) {
        self.record_us(u64::try_from(latency.as_micros()).unwrap_or(MICROS_MAX));
    }

    /// One more, in nanoseconds.
    pub fn record_ns(&mut self, nanos: u64) {
        self.record_us(nanos / 1_000);
    }

    fn record_us(&mut self, micros: u64) {
        self.answered.saturating_record(micros.clamp(1, MICROS_MAX));
    }

    /// One that never ended well: it is above every percentile that can be told.
    pub fn record_unanswered(&mut self) {
        self.unanswered += 1;
    }

    /// So many of them.
    pub fn record_all_unanswered(&mut self, count: u64) {
        self.unanswered += count;
    }

    /// How many, answered or not.
    pub fn count(&self) -> u64 {
        self.answered.len() + self.unanswered
    }

    /// How many of them never ended well.
    pub fn unanswered(&self) -> u64 {
        self.unanswered
    }

    /// The time below which that share (0 to 1) of all requests was answered; `None` when fewer were, or none at all.
    pub fn percentile(&self, share: f64) -> Option<Duration> {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank between 1 and count")]
        let rank = ((self.count() as f64 * share).ceil() as u64).max(1);
        if rank > self.answered.len() {
            return None;
        }
        let among_answered = rank as f64 / self.answered.len() as f64;
        Some(Duration::from_micros(self.answered.value_at_quantile(among_answered)))
    }

    /// The longest; `None` when one was never answered, or there is none.
    pub fn max(&self) -> Option<Duration> {
        let answered = self.unanswered == 0 && !self.answered.is_empty();
        answered.then(|| Duration::from_micros(self.answered.max()))
    }

    /// Those of both.
    pub fn add(&mut self, other: &Self) {
        self.answered += &other.answered;
        self.unanswered += other.unanswered;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: ninety requests are answered, ten never.
    /// Guarantees: a percentile that falls among those without an answer is not told as a number that flatters.
    #[test]
    fn a_missing_answer_is_not_a_fast_one() {
        let mut latencies = Latencies::default();
        (1..=90).for_each(|n| latencies.record(Duration::from_millis(n)));
        (0..10).for_each(|_| latencies.record_unanswered());

        let half = latencies.percentile(0.5).unwrap();
        assert!((Duration::from_micros(49_900)..=Duration::from_micros(50_100)).contains(&half), "{half:?}");
        assert!(latencies.percentile(0.9).is_some());
        assert_eq!(latencies.percentile(0.91), None);
        assert_eq!(latencies.max(), None);
    }
}

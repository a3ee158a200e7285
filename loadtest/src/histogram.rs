//! Latencies: an HDR histogram, and how many requests have none because no answer came.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Longer ones count as this long.
const MICROS_MAX: u64 = 600_000_000;

/// Latencies from a microsecond to ten minutes, three digits exact.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(from = "Sparse", into = "Sparse")]
pub struct Latencies {
    answered: Histogram<u64>,
    unanswered: u64,
}

/// The same as it travels: values that occurred, in microseconds, and how often.
#[derive(Serialize, Deserialize)]
struct Sparse {
    counts: Vec<(u64, u64)>,
    unanswered: u64,
}

impl From<Latencies> for Sparse {
    fn from(latencies: Latencies) -> Self {
        let counts = latencies.answered.iter_recorded().map(|at| (at.value_iterated_to(), at.count_at_value()));
        Self { counts: counts.collect(), unanswered: latencies.unanswered }
    }
}

impl From<Sparse> for Latencies {
    fn from(sparse: Sparse) -> Self {
        let mut latencies = Self { unanswered: sparse.unanswered, ..Self::default() };
        for (micros, count) in sparse.counts {
            latencies.answered.saturating_record_n(micros.clamp(1, MICROS_MAX), count);
        }
        latencies
    }
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

    /// Scenario: latencies of every size and some without an answer travel, and are added to others.
    /// Guarantees: every percentile is the one that a single histogram of all of them has.
    #[test]
    fn latencies_travel_without_loss() {
        let (mut one, mut other, mut all) = (Latencies::default(), Latencies::default(), Latencies::default());
        for n in 0..2_000u64 {
            let latency = Duration::from_micros(n * n * 100);
            if n % 2 == 0 {
                one.record(latency)
            } else {
                other.record(latency)
            }
            all.record(latency);
        }
        one.record_unanswered();
        all.record_unanswered();
        let text = serde_json::to_string(&one).unwrap();
        other.add(&serde_json::from_str(&text).unwrap());
        for share in [0.001, 0.25, 0.5, 0.99, 0.999, 1.0] {
            assert_eq!(other.percentile(share), all.percentile(share), "{share}");
        }
        assert_eq!(other.count(), all.count());
    }
}

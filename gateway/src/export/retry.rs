//! When to try again: full jitter, and what the destination itself asks for.
//!
//! Pure: randomness and the wall clock are passed in. It never gives up; what ends a record's life is the queue's retention.
//!
//! ```text
//! no hint   uniform in [0, min(max_interval, initial_interval * 2^failures)]
//! hint      the hint (at most an hour), plus up to a tenth of it (at most a second), so that those who were told the
//!           same do not come back together
//! ```

use std::time::{Duration, SystemTime};

use crate::config::Retry;

/// The longest delay that is obeyed: a destination's mistake must not park data for days.
const HINT_MAX: Duration = Duration::from_secs(3600);

/// How often in a row it failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Counts one more failure and says how long to wait. `random` is uniform in [0, 1).
    pub(crate) fn fail(&mut self, policy: &Retry, hint: Option<Duration>, random: f64) -> Duration {
        let growth = 1u32.checked_shl(self.failures).unwrap_or(u32::MAX);
        self.failures = self.failures.saturating_add(1).min(31);
        let Some(hint) = hint else {
            return policy.initial_interval.saturating_mul(growth).min(policy.max_interval).mul_f64(random);
        };
        let hint = hint.min(HINT_MAX);
        hint + (hint / 10).min(Duration::from_secs(1)).mul_f64(random)
    }

    /// Forgets the failures.
    pub(crate) fn succeed(&mut self) {
        self.failures = 0;
    }
}

/// Reads `Retry-After`: seconds or an HTTP-date (RFC 9110, 10.2.3). A date in the past is no delay at all.
pub(crate) fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Retry = Retry { initial_interval: Duration::from_secs(1), max_interval: Duration::from_secs(30) };

    /// Scenario: a destination is down for so long that the exponent overflows many times.
    /// Guarantees: the upper bound doubles up to `max_interval` and stays there, for ever; the jitter spans all of it.
    #[test]
    fn the_interval_doubles_to_its_maximum_and_never_gives_up() {
        let mut backoff = Backoff::default();
        let bounds: Vec<_> = (0..7).map(|_| backoff.fail(&POLICY, None, 1.0).as_secs()).collect();
        assert_eq!(bounds, [1, 2, 4, 8, 16, 30, 30]);
        for _ in 0..10_000 {
            assert_eq!(backoff.fail(&POLICY, None, 1.0), Duration::from_secs(30));
        }
        assert_eq!(backoff.fail(&POLICY, None, 0.0), Duration::ZERO);
        backoff.succeed();
        assert_eq!(backoff.fail(&POLICY, None, 0.5), Duration::from_millis(500));
    }

    /// Scenario: destinations that say when to come back, one of them nonsense.
    /// Guarantees: never sooner than told, hardly later; a nonsensical delay is cut to an hour.
    #[test]
    fn a_hint_is_obeyed_to_the_letter_or_a_little_longer() {
        let mut backoff = Backoff::default();
        let five = Duration::from_secs(5);
        assert_eq!(backoff.fail(&POLICY, Some(five), 0.0), five);
        assert_eq!(backoff.fail(&POLICY, Some(five), 1.0), Duration::from_millis(5_500));
        assert_eq!(backoff.fail(&POLICY, Some(Duration::MAX), 0.0), HINT_MAX);
    }

    /// Scenario: the forms of Retry-After that servers send.
    /// Guarantees: seconds and dates are read, a past date means now, anything else means no hint.
    #[test]
    fn retry_after_is_read_in_both_forms() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").expect("a date");
        let table = [
            ("7", Some(7)),
            (" 0 ", Some(0)),
            ("Sun, 06 Nov 1994 08:50:07 GMT", Some(30)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
            ("-1", None),
            ("soon", None),
            ("", None),
        ];
        for (value, seconds) in table {
            assert_eq!(retry_after(value, now), seconds.map(Duration::from_secs), "{value:?}");
        }
    }
}

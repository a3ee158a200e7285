//! The log's own time, by which ages are counted.
//!
//! It goes on from the newest time that the log has, by the monotonic clock: a step of the wall clock expires nothing, and
//! neither does the time while nobody could have delivered anything. So it falls behind the wall clock by what the gateway
//! was down. A new log begins with the wall clock.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// See the module.
#[derive(Debug)]
pub(crate) struct Clock {
    base_unix_ms: u64,
    started: Instant,
    #[cfg(test)]
    pub(crate) ahead_ms: std::sync::atomic::AtomicU64,
}

impl Clock {
    /// Goes on after the newest time of the log; 0: a new log.
    pub(crate) fn after(newest_unix_ms: u64) -> Self {
        let wall = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let base = if newest_unix_ms == 0 { wall() } else { Duration::from_millis(newest_unix_ms) };
        Self {
            base_unix_ms: millis(base),
            started: Instant::now(),
            #[cfg(test)]
            ahead_ms: std::sync::atomic::AtomicU64::new(0),
        }
    }

    /// Now.
    pub(crate) fn now_unix_ms(&self) -> u64 {
        let now = self.base_unix_ms.saturating_add(millis(self.started.elapsed()));
        #[cfg(test)]
        let now = now + self.ahead_ms.load(std::sync::atomic::Ordering::Relaxed);
        now
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: a log whose newest time is years behind or ahead of the wall clock, and a new log.
    /// Guarantees: time goes on from the log's, so that no step of the wall clock makes anything older; a new log begins with the
    /// wall clock.
    #[test]
    fn it_goes_on_from_the_log() {
        for newest in [1, u64::MAX / 2] {
            let clock = Clock::after(newest);
            assert!((newest..newest + 60_000).contains(&clock.now_unix_ms()));
        }
        let wall = millis(SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970"));
        assert!(Clock::after(0).now_unix_ms() >= wall);
    }
}

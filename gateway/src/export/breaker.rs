//! Whether a destination is to be left alone, and who is to blame for a failure.
//!
//! Pure: time and randomness are passed in. It never drops anything: at worst everything stays queued.
//!
//! ```text
//! Closed  -> any request, up to the window
//! Resting -> nothing until `until`, then one probe at a time; a success closes it, a failure rests longer
//! ```
//!
//! Blame: when a lane fails while others succeeded since it last failed (or since its request was sent), the lane rests,
//! not the destination. So a tenant whose data a destination cannot digest does not keep the others from it.

use std::time::{Duration, Instant};

use super::retry::Backoff;
use crate::config::Retry;

/// One destination's breaker.
#[derive(Debug, Default)]
pub(crate) struct Breaker {
    resting: Option<Resting>,
    backoff: Backoff,
    /// Changes with each rest: failures of requests sent before the present rest say nothing new.
    epoch: u64,
    accepted: u64,
}

#[derive(Debug, Clone, Copy)]
struct Resting {
    until: Instant,
    /// The destination named the time itself; a late success of another request does not shorten it.
    told: bool,
    /// The destination itself is at fault, rather than busy or out of reach.
    broken: bool,
}

/// What a request remembers of the moment at which it was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Sent {
    epoch: u64,
    accepted: u64,
}

/// What a failure asks for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rest {
    /// At fault, rather than busy.
    pub(crate) broken: bool,
    /// RetryInfo or Retry-After.
    pub(crate) hint: Option<Duration>,
    /// Uniform in [0, 1).
    pub(crate) random: f64,
}

impl Breaker {
    /// Whether one more request may be sent, beside `in_flight` others.
    pub(crate) fn permits(&self, now: Instant, in_flight: usize, window: usize) -> bool {
        match self.resting {
            None => in_flight < window,
            Some(resting) => now >= resting.until && in_flight == 0,
        }
    }

    /// When a probe is due, if it rests.
    pub(crate) fn until(&self) -> Option<Instant> {
        self.resting.map(|resting| resting.until)
    }

    /// To be kept with a request.
    pub(crate) fn sent(&self) -> Sent {
        Sent { epoch: self.epoch, accepted: self.accepted }
    }

    /// Requests accepted so far: evidence that the destination works.
    pub(crate) fn accepted(&self) -> u64 {
        self.accepted
    }

    /// A request was accepted.
    pub(crate) fn succeed(&mut self, now: Instant) {
        self.accepted += 1;
        self.backoff.succeed();
        if self.resting.is_some_and(|resting| !resting.told || now >= resting.until) {
            self.resting = None;
        }
    }

    /// A request failed, and the destination is to blame.
    pub(crate) fn fail(&mut self, sent: Sent, rest: Rest, policy: &Retry, now: Instant) {
        let stale = sent.epoch != self.epoch;
        if stale && rest.hint.is_none() {
            return;
        }
        let mut backoff = self.backoff;
        let until = now + backoff.fail(policy, rest.hint, rest.random);
        if !stale {
            self.backoff = backoff;
            self.epoch += 1;
        }
        let earlier = self.resting.filter(|resting| stale && resting.until > until);
        self.resting = Some(earlier.unwrap_or(Resting { until, told: rest.hint.is_some(), broken: rest.broken }));
    }

    /// `ok`, `retrying` or `broken`.
    pub(crate) fn state(&self) -> &'static str {
        match self.resting {
            None => "ok",
            Some(resting) if resting.broken => "broken",
            Some(_) => "retrying",
        }
    }
}

/// Why a lane is slow, seen over its failures.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Blame {
    failed_at: Option<u64>,
    backoff: Backoff,
}

impl Blame {
    /// Something of the lane was accepted.
    pub(crate) fn succeed(&mut self) {
        *self = Self::default();
    }

    /// Something of the lane failed. If the lane is to blame: how long it rests. Otherwise the destination is.
    pub(crate) fn fail(&mut self, sent: Sent, accepted: u64, policy: &Retry, random: f64) -> Option<Duration> {
        let before = self.failed_at.replace(accepted).unwrap_or(sent.accepted);
        (accepted > before).then(|| self.backoff.fail(policy, None, random))
    }
}

/// The last sixteen verdicts on what one lane sent: whether a destination refuses most of everything.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Verdicts {
    accepted: u16,
    known: u16,
    at: Option<Instant>,
}

/// How long a lane's verdicts count.
const VERDICT_AGE_MAX: Duration = Duration::from_secs(600);

impl Verdicts {
    /// One more.
    pub(crate) fn push(&mut self, accepted: bool, now: Instant) {
        self.accepted = self.accepted << 1 | u16::from(accepted);
        self.known = self.known << 1 | 1;
        self.at = Some(now);
    }

    /// Whether the lane was mostly accepted; `None` without a recent verdict.
    pub(crate) fn mostly_accepted(&self, now: Instant) -> Option<bool> {
        self.at.filter(|at| now.saturating_duration_since(*at) < VERDICT_AGE_MAX)?;
        let (accepted, known) = (self.accepted.count_ones(), self.known.count_ones());
        Some(accepted * 2 >= known)
    }
}

/// Whether a destination refuses most of what it gets: each lane has one vote, so that one tenant's bad data cannot make
/// it look so.
pub(crate) fn mostly_refused<'a>(lanes: impl IntoIterator<Item = &'a Verdicts>, now: Instant) -> bool {
    let votes = lanes.into_iter().filter_map(|verdicts| verdicts.mostly_accepted(now));
    votes.fold(0i64, |balance, accepted| balance + if accepted { -1 } else { 1 }) > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Retry = Retry { initial_interval: Duration::from_secs(1), max_interval: Duration::from_secs(30) };
    const WINDOW: usize = 8;

    fn rest(hint: Option<u64>) -> Rest {
        Rest { broken: false, hint: hint.map(Duration::from_secs), random: 1.0 }
    }

    /// Scenario: a whole window of requests fails at once, then one probe after the other.
    /// Guarantees: the window counts as one failure; exactly one probe per backoff; a success opens the window again.
    #[test]
    fn a_destination_that_fails_gets_one_probe_per_backoff() {
        let start = Instant::now();
        let mut breaker = Breaker::default();
        let sent = breaker.sent();
        for _ in 0..WINDOW {
            breaker.fail(sent, rest(None), &POLICY, start);
        }
        assert_eq!(breaker.until(), Some(start + Duration::from_secs(1)), "eight answers, one failure");

        let mut now = start;
        for seconds in [1, 2, 4, 8] {
            assert!(!breaker.permits(now, 0, WINDOW));
            now += Duration::from_secs(seconds);
            assert!(!breaker.permits(now - Duration::from_nanos(1), 0, WINDOW));
            assert!(breaker.permits(now, 0, WINDOW) && !breaker.permits(now, 1, WINDOW), "one probe");
            let sent = breaker.sent();
            breaker.fail(sent, rest(None), &POLICY, now);
        }
        now = breaker.until().expect("it rests");
        breaker.succeed(now);
        assert!(breaker.permits(now, WINDOW - 1, WINDOW) && breaker.state() == "ok");
    }

    /// Scenario: the destination asks for five seconds while other requests are still being answered.
    /// Guarantees: nothing is sent before the five seconds are over, whatever the late answers are.
    #[test]
    fn a_delay_that_was_asked_for_is_not_cut_short() {
        let start = Instant::now();
        let mut breaker = Breaker::default();
        let sent = breaker.sent();
        breaker.fail(sent, rest(Some(5)), &POLICY, start);
        let until = breaker.until().expect("it rests");
        assert!(until >= start + Duration::from_secs(5));

        breaker.succeed(start + Duration::from_secs(1));
        breaker.fail(sent, rest(None), &POLICY, start + Duration::from_secs(1));
        breaker.fail(sent, rest(Some(1)), &POLICY, start + Duration::from_secs(1));

        assert_eq!(breaker.until(), Some(until));
        breaker.fail(sent, rest(Some(9)), &POLICY, start + Duration::from_secs(1));
        assert!(breaker.until() >= Some(start + Duration::from_secs(10)), "a longer delay counts");
    }

    /// Scenario: one lane fails again and again while others get through; then everything fails.
    /// Guarantees: in the first case the lane rests, in the second the destination.
    #[test]
    fn blame_falls_on_the_lane_only_while_others_succeed() {
        let mut breaker = Breaker::default();
        let mut blame = Blame::default();
        let now = Instant::now();

        assert_eq!(blame.fail(breaker.sent(), breaker.accepted(), &POLICY, 1.0), None, "nothing else was tried yet");
        breaker.succeed(now);
        let first = blame.fail(breaker.sent(), breaker.accepted(), &POLICY, 1.0);
        assert_eq!(first, Some(Duration::from_secs(1)));
        breaker.succeed(now);
        assert_eq!(blame.fail(breaker.sent(), breaker.accepted(), &POLICY, 1.0), Some(Duration::from_secs(2)));

        assert_eq!(blame.fail(breaker.sent(), breaker.accepted(), &POLICY, 1.0), None, "nobody succeeded since");
    }

    /// Scenario: one tenant of four sends only bad data; then the destination refuses everybody.
    /// Guarantees: the first is the tenant's fault however much it sends, the second the destination's.
    #[test]
    fn one_tenant_cannot_make_a_destination_look_broken() {
        let now = Instant::now();
        let mut lanes = [Verdicts::default(); 4];
        lanes[1..].iter_mut().for_each(|lane| lane.push(true, now));
        (0..1_000).for_each(|_| lanes[0].push(false, now));
        assert!(!mostly_refused(&lanes, now));

        for lane in &mut lanes {
            (0..16).for_each(|_| lane.push(false, now));
        }
        assert!(mostly_refused(&lanes, now));
        assert!(!mostly_refused(&lanes, now + VERDICT_AGE_MAX), "old verdicts say nothing");
    }
}

//! When the exporter looks at the hand-over: at once after a pause, together with others while batches keep coming.
//!
//! Owns nothing but its state; the time is passed in. Two wake-ups cost more than a small batch does: that of a thread that sleeps (a write
//! to its eventfd, by whoever hands over), and that of a timer (which the runtime sets with such a write, on its own thread too). So
//! nobody is woken while an alarm is set that will see to it, and no alarm is set for batches that have not come.
//!
//! ```text
//! state    waker in the hand-over   alarm   what comes next
//! Idle     yes                      none    is taken at once       -> Open, if it is small
//! Open     yes                      none    wakes once             -> Closed, and waits for the alarm
//! Closed   no                       set     waits for the alarm    -> Closed when something is taken then, else Idle
//! ```
//!
//! No wake-up is lost: [`Gather::poll`] returns `Pending` either with the waker left in a hand-over that was empty under the same lock, or
//! with an alarm that [`Gather::alarm`] tells, which the caller sets before it sleeps.

use std::collections::VecDeque;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::base::handoff::{Arrival, Handoff};

/// While batches are small, arrivals are taken no more often: merged requests are what makes small ones cheap. A request of its own takes
/// 50,000 instructions here and as many there; of 64 that leave as one each takes 4,400 (`bench/instructions.toml`). An SDK has kept the
/// batch for up to 5 s before.
pub(super) const GATHER: Duration = Duration::from_millis(5);

/// Batches of this average size are worth gathering.
const SMALL_BYTES_MAX: usize = super::merge::LONE_BYTES_MIN;

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gather {
    /// Nothing has come for a while, or what came was large.
    Idle,
    /// Small batches were taken after a pause, and who comes before that time has company.
    Open(Instant),
    /// Small batches wait, or are expected as there were some in the time before.
    Closed(Instant),
}

impl Gather {
    /// Takes what is to be taken now into `out`, which must be empty.
    pub(super) fn poll(
        &mut self,
        now: Instant,
        handoff: &Handoff,
        cx: &mut Context<'_>,
        out: &mut VecDeque<Arrival>,
    ) -> Poll<()> {
        match *self {
            Self::Open(until) if now < until => {
                // As above: empty and the waker is left, or not empty and there is an alarm from now on.
                if handoff.poll_any(cx).is_ready() {
                    *self = Self::Closed(until);
                }
                Poll::Pending
            }
            Self::Closed(until) if now < until => Poll::Pending,
            Self::Idle | Self::Open(_) | Self::Closed(_) => {
                let taken = handoff.poll_take(cx, out);
                if taken.is_pending() {
                    *self = Self::Idle;
                }
                taken
            }
        }
    }

    /// When it must be polled again, woken or not.
    pub(super) fn alarm(self) -> Option<Instant> {
        match self {
            Self::Closed(until) => Some(until),
            Self::Idle | Self::Open(_) => None,
        }
    }

    /// So many arrivals were taken.
    pub(super) fn took(&mut self, arrivals: usize, bytes: usize, now: Instant) {
        if arrivals == 0 {
            return;
        }
        *self = match *self {
            _ if bytes / arrivals >= SMALL_BYTES_MAX => Self::Idle,
            Self::Idle | Self::Open(_) => Self::Open(now + GATHER),
            Self::Closed(_) => Self::Closed(now + GATHER),
        };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Wake, Waker};

    use bytes::Bytes;

    use super::*;
    use crate::base::handoff::Committed;
    use crate::base::{Sequence, Signal, TenantId};

    const MILLI: Duration = Duration::from_millis(1);

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// An exporter of nothing else: it sleeps until it is woken or until its alarm, as a runtime does.
    struct Exporter {
        handoff: Handoff,
        gather: Gather,
        now: Instant,
        wakes: Arc<Wakes>,
        /// Wakes that it has answered.
        seen: usize,
        /// When each batch that waits was handed over.
        waiting: VecDeque<Instant>,
        alarms: usize,
    }

    impl Exporter {
        fn new() -> Self {
            let mut exporter = Self {
                handoff: Handoff::new(1 << 20),
                gather: Gather::Idle,
                now: Instant::now(),
                wakes: Arc::default(),
                seen: 0,
                waiting: VecDeque::new(),
                alarms: 0,
            };
            exporter.work();
            exporter
        }

        fn hand_over(&mut self, size: usize) {
            let (tenant, sequence) = (TenantId(1), Sequence(1));
            let payload = Some(Bytes::from(vec![0; size]));
            let signal = Signal::Traces;
            let arrival =
                Committed { tenant, signal, sequence, previous: sequence, items: 1, received_unix_ms: 0, payload };
            self.handoff.push([Arrival::Committed(arrival)]);
            self.waiting.push_back(self.now);
        }

        /// What happens between two sleeps, if anything ends the present one.
        fn run(&mut self) {
            let woken = self.wakes.0.load(Ordering::Relaxed);
            let rings = self.gather.alarm().is_some_and(|at| at <= self.now);
            if woken > self.seen || rings {
                self.alarms += usize::from(woken == self.seen);
                self.seen = woken;
                self.work();
            }
        }

        fn work(&mut self) {
            let waker = Waker::from(self.wakes.clone());
            let mut out = VecDeque::new();
            while self.gather.poll(self.now, &self.handoff, &mut Context::from_waker(&waker), &mut out).is_ready() {
                let bytes = out.iter().map(|arrival| match arrival {
                    Arrival::Committed(committed) => committed.payload.as_ref().map_or(0, Bytes::len),
                    Arrival::Volatile(_) | Arrival::GivenUp(_) => unreachable!("none was handed over"),
                });
                self.gather.took(out.len(), bytes.sum(), self.now);
                self.waiting.drain(..out.len());
                out.clear();
            }
        }

        fn pass(&mut self, time: Duration) {
            self.now += time;
            self.run();
        }
    }

    /// Scenario: every order of nine steps out of a small batch, a large batch and a while that passes, where a batch comes before the
    /// exporter has answered the last wake-up, or after.
    /// Guarantees: nothing waits longer than it is gathered for, so no wake-up is lost: nobody but a hand-over and its own alarm wakes it.
    #[test]
    fn whatever_comes_when_is_taken_in_time() {
        const STEPS: u32 = 9;
        for order in 0..4u32.pow(STEPS) {
            let mut exporter = Exporter::new();
            for step in 0..STEPS {
                match order / 4u32.pow(step) % 4 {
                    0 => exporter.hand_over(1),
                    1 => exporter.hand_over(SMALL_BYTES_MAX),
                    2 => exporter.run(),
                    _ => exporter.pass(2 * MILLI),
                }
                let waits = exporter.waiting.front().map(|since| exporter.now - *since);
                assert!(waits <= Some(GATHER + 2 * MILLI), "{order}: {:?}, {waits:?}", exporter.gather);
            }
            exporter.run();
            exporter.pass(GATHER);
            assert_eq!(exporter.waiting.len(), 0, "{order}: {:?}", exporter.gather);
        }
    }

    /// Scenario: batches a long time apart; then a hundred within a tenth of a second.
    /// Guarantees: a lone one is taken at once and costs one wake-up and no alarm; while they keep coming nobody is woken, one alarm takes
    /// several.
    #[test]
    fn a_lone_batch_wakes_once_and_many_hardly_ever() {
        let mut exporter = Exporter::new();
        for _ in 0..10 {
            exporter.hand_over(1);
            exporter.run();
            assert!(exporter.waiting.is_empty(), "at once");
            exporter.pass(10 * GATHER);
        }
        assert_eq!((exporter.seen, exporter.alarms), (10, 0));

        for _ in 0..100 {
            exporter.hand_over(1);
            exporter.run();
            exporter.pass(MILLI);
        }
        assert_eq!((exporter.seen, exporter.alarms), (12, 20), "one took the first, one has set the alarm");
    }
}

//! Waiting for a point in time to the microsecond: a timerfd, because the runtime's own timers count in milliseconds.

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::unix::AsyncFd;

#[derive(Debug)]
pub(super) struct Timer {
    fd: AsyncFd<OwnedFd>,
    /// What it is set to: it is asked for the same deadline again after every other event.
    set: Cell<Option<Instant>>,
}

impl Timer {
    #[expect(
        deprecated,
        reason = "unsound only for types whose descriptor changes or closes early; an OwnedFd's does not"
    )]
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(Self { fd: AsyncFd::new(timerfd_create(TimerfdClockId::Monotonic, flags)?)?, set: Cell::new(None) })
    }

    /// Returns at `deadline`, at once when that is past. Setting it anew forgets the one before.
    pub(super) async fn until(&self, deadline: Instant) -> io::Result<()> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            if self.set.get() != Some(deadline) {
                timerfd_settime(self.fd.get_ref(), TimerfdTimerFlags::empty(), &once(left))?;
                self.set.set(Some(deadline));
            }
            // Its count of expirations is never read: each of them is an edge, and the clock says whether it was this deadline's.
            self.fd.readable().await?.clear_ready();
            // Set anew if it was that of a deadline before.
            self.set.set(None);
        }
    }
}

fn once(after: Duration) -> Itimerspec {
    let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
    let seconds = i64::try_from(after.as_secs()).unwrap_or(i64::MAX);
    Itimerspec { it_interval: zero, it_value: Timespec { tv_sec: seconds, tv_nsec: after.subsec_nanos().into() } }
}

//! What a supervisor decides. Pure: events and the time go in, effects come out.
//!
//! ```text
//! phase           worker      shim        on
//! Serving         wanted      wanted      an end: start again at once, later with a delay of at most a quarter of a second
//!                                         an end that starting again cannot mend, or a stop: next phase
//! StoppingShim    may end     stopping    the shim is gone, or its grace is over: next phase
//! StoppingWorker  stopping    gone        the worker is gone: Over
//! Over            gone        gone        nothing
//! ```
//!
//! The shim goes first, so that its goodbye is answered by a worker that still accepts what waits. A second stop skips
//! what is left of the drain, a third kills. There is no deadline for the worker: it has its own, and whoever started the
//! supervisor has another.

use std::time::{Duration, Instant};

use crate::app::exit::Exit;

/// A child that lived as long as this had no trouble starting.
const STEADY: Duration = Duration::from_secs(10);
const DELAY_FIRST: Duration = Duration::from_millis(50);
/// With the start of a worker it stays under the second for which telemetry may pause.
const DELAY_MAX: Duration = Duration::from_millis(250);
/// For the shim's goodbye; the gateway allows two seconds for the backlog.
const SHIM_GRACE: Duration = Duration::from_secs(3);

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Exited(i32),
    Killed(i32),
    /// It could not be started.
    NotStarted,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    WorkerEnded(End),
    ShimEnded,
    /// SIGTERM, SIGINT or SIGHUP.
    Stop,
    /// Nothing but the time has changed.
    Tick,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    StartWorker,
    StartShim,
    StopShim,
    KillShim,
    /// Drain.
    StopWorker,
    /// Skip what is left of the drain.
    HurryWorker,
    KillWorker,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Serving,
    StoppingShim { until: Instant },
    StoppingWorker,
    Over(Exit),
}

/// A process that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Child {
    Up,
    /// To be started then.
    Due(Instant),
    /// Gone for good.
    Gone,
}

#[derive(Debug)]
pub(super) struct Core {
    phase: Phase,
    worker: Child,
    worker_backoff: Backoff,
    shim: Child,
    shim_backoff: Backoff,
    /// What the supervisor ends with, when it ends.
    exit: Exit,
    stops: u32,
}

impl Core {
    /// Before the first start: the first tick brings it. `with_shim` if there is a shim, already up.
    pub(super) fn new(with_shim: bool, now: Instant) -> Self {
        Self {
            phase: Phase::Serving,
            worker: Child::Due(now),
            worker_backoff: Backoff::new(now),
            shim: if with_shim { Child::Up } else { Child::Gone },
            shim_backoff: Backoff::new(now),
            exit: Exit::Ok,
            stops: 0,
        }
    }

    pub(super) fn phase(&self) -> Phase {
        self.phase
    }

    /// When the next tick is needed.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let due = |child| match child {
            Child::Due(at) => Some(at),
            Child::Up | Child::Gone => None,
        };
        match self.phase {
            Phase::Serving => [due(self.worker), due(self.shim)].into_iter().flatten().min(),
            Phase::StoppingShim { until } => Some(until),
            Phase::StoppingWorker | Phase::Over(_) => None,
        }
    }

    pub(super) fn step(&mut self, event: Event, now: Instant) -> Vec<Effect> {
        let mut effects = Vec::new();
        match event {
            Event::WorkerEnded(end) => self.worker_ended(end, now, &mut effects),
            Event::ShimEnded => self.shim_ended(now),
            Event::Stop => self.stop(now, &mut effects),
            Event::Tick => {}
        }
        self.time(now, &mut effects);
        effects
    }

    fn worker_ended(&mut self, end: End, now: Instant, effects: &mut Vec<Effect>) {
        let exit = end.exit();
        self.worker = Child::Gone;
        match self.phase {
            Phase::Serving if exit.is_restartable() => {
                self.exit = exit;
                self.worker = Child::Due(now + self.worker_backoff.next(now));
            }
            Phase::Serving => {
                self.exit = exit;
                self.leave(now, effects);
            }
            Phase::StoppingShim { .. } => self.exit = exit,
            Phase::StoppingWorker => self.phase = Phase::Over(exit),
            Phase::Over(_) => {}
        }
    }

    fn shim_ended(&mut self, now: Instant) {
        self.shim = Child::Gone;
        match self.phase {
            Phase::Serving => self.shim = Child::Due(now + self.shim_backoff.next(now)),
            Phase::StoppingShim { .. } => self.phase = Phase::StoppingShim { until: now },
            Phase::StoppingWorker | Phase::Over(_) => {}
        }
    }

    fn stop(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        self.stops = self.stops.saturating_add(1);
        match self.phase {
            Phase::Serving => self.leave(now, effects),
            Phase::StoppingShim { .. } => self.phase = Phase::StoppingShim { until: now },
            Phase::StoppingWorker | Phase::Over(_) => {}
        }
        if self.worker == Child::Up && self.stops == 2 {
            // Before the stop that the end of the shim's grace brings: either order means the same to the worker.
            effects.push(Effect::HurryWorker);
        }
        if self.worker == Child::Up && self.stops > 2 {
            effects.push(Effect::KillWorker);
        }
    }

    /// Leaves `Serving`.
    fn leave(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let until = match self.shim {
            Child::Up => {
                effects.push(Effect::StopShim);
                now + SHIM_GRACE
            }
            Child::Due(_) | Child::Gone => now,
        };
        if self.shim != Child::Up {
            self.shim = Child::Gone;
        }
        if self.worker != Child::Up {
            self.worker = Child::Gone;
        }
        self.phase = Phase::StoppingShim { until };
    }

    fn time(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        match self.phase {
            Phase::Serving => {
                if matches!(self.shim, Child::Due(at) if at <= now) {
                    self.shim = Child::Up;
                    self.shim_backoff.started = now;
                    effects.push(Effect::StartShim);
                }
                if matches!(self.worker, Child::Due(at) if at <= now) {
                    self.worker = Child::Up;
                    self.worker_backoff.started = now;
                    effects.push(Effect::StartWorker);
                }
            }
            Phase::StoppingShim { until } if until <= now => {
                if self.shim == Child::Up {
                    effects.push(Effect::KillShim);
                    self.shim = Child::Gone;
                }
                if self.worker == Child::Up {
                    effects.push(Effect::StopWorker);
                    self.phase = Phase::StoppingWorker;
                } else {
                    self.phase = Phase::Over(self.exit);
                }
            }
            Phase::StoppingShim { .. } | Phase::StoppingWorker | Phase::Over(_) => {}
        }
    }
}

/// At once after a long life; after short ones with a delay that doubles.
#[derive(Debug)]
struct Backoff {
    started: Instant,
    delay: Duration,
}

impl Backoff {
    fn new(now: Instant) -> Self {
        Self { started: now, delay: Duration::ZERO }
    }

    /// How long to wait before the next start, now that the child has ended.
    fn next(&mut self, now: Instant) -> Duration {
        if now.saturating_duration_since(self.started) >= STEADY {
            self.delay = Duration::ZERO;
        }
        let delay = self.delay;
        self.delay = (delay * 2).clamp(DELAY_FIRST, DELAY_MAX);
        delay
    }
}

impl End {
    fn exit(self) -> Exit {
        match self {
            Self::Exited(number) => Exit::from_number(number).unwrap_or(Exit::Failure),
            Self::Killed(_) | Self::NotStarted => Exit::Failure,
        }
    }

    /// In words, for the log and for /metrics: a small closed set, so that it may be a label.
    pub(super) fn reason(self) -> String {
        match self {
            Self::Exited(101) => "panicked".to_owned(),
            Self::Exited(number) => match Exit::from_number(number) {
                Some(exit) => exit.reason().to_owned(),
                None => format!("exit status {number}"),
            },
            Self::Killed(signal) => match signal_name(signal) {
                Some(name) => format!("killed by {name}"),
                None => format!("killed by signal {signal}"),
            },
            Self::NotStarted => "could not be started".to_owned(),
        }
    }
}

fn signal_name(number: i32) -> Option<&'static str> {
    const NAMES: [(i32, &str); 15] = [
        (libc::SIGHUP, "SIGHUP"),
        (libc::SIGINT, "SIGINT"),
        (libc::SIGQUIT, "SIGQUIT"),
        (libc::SIGILL, "SIGILL"),
        (libc::SIGTRAP, "SIGTRAP"),
        (libc::SIGABRT, "SIGABRT"),
        (libc::SIGBUS, "SIGBUS"),
        (libc::SIGFPE, "SIGFPE"),
        (libc::SIGKILL, "SIGKILL"),
        (libc::SIGSEGV, "SIGSEGV"),
        (libc::SIGPIPE, "SIGPIPE"),
        (libc::SIGALRM, "SIGALRM"),
        (libc::SIGTERM, "SIGTERM"),
        (libc::SIGXFSZ, "SIGXFSZ"),
        (libc::SIGSYS, "SIGSYS"),
    ];
    NAMES.into_iter().find(|(signal, _)| *signal == number).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KILLED: Event = Event::WorkerEnded(End::Killed(libc::SIGKILL));
    const FATAL: Event = Event::WorkerEnded(End::Exited(Exit::Config as i32));
    const CLEAN: Event = Event::WorkerEnded(End::Exited(0));

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    /// The state in words, times relative to `now`.
    fn show(core: &Core, now: Instant) -> String {
        let child = |child| match child {
            Child::Up => "up".to_owned(),
            Child::Due(at) => format!("in {}", at.saturating_duration_since(now).as_millis()),
            Child::Gone => "gone".to_owned(),
        };
        let phase = match core.phase {
            Phase::Serving => "Serving".to_owned(),
            Phase::StoppingShim { until } => {
                format!("StoppingShim({})", until.saturating_duration_since(now).as_millis())
            }
            Phase::StoppingWorker => "StoppingWorker".to_owned(),
            Phase::Over(exit) => format!("Over({exit:?})"),
        };
        format!("{phase} worker {} shim {}", child(core.worker), child(core.shim))
    }

    /// A core after these events, and the time.
    fn after(with_shim: bool, events: &[Event]) -> (Core, Instant) {
        let now = Instant::now();
        let mut core = Core::new(with_shim, now);
        core.step(Event::Tick, now);
        for event in events {
            core.step(*event, now);
        }
        (core, now)
    }

    /// Scenario: every event in every state that a supervisor can be in.
    /// Guarantees: this table, and no other behaviour. `(start, event, effects, end)`.
    #[test]
    fn every_event_in_every_state_has_its_effects() {
        use Effect::*;
        use Event::{ShimEnded, Stop, Tick};
        // Down: killed twice at once, so that the second start waits.
        const DOWN: &[Event] = &[KILLED, KILLED];
        /// A name, whether there is a shim, and the events that lead there.
        type Start = (&'static str, bool, &'static [Event]);
        let serving: Start = ("serving", true, &[]);
        let bare: Start = ("serving without shim", false, &[]);
        let down: Start = ("worker down", true, DOWN);
        let leaving: Start = ("stopping shim", true, &[Stop]);
        let stopping: Start = ("stopping worker", true, &[Stop, ShimEnded]);
        let over: Start = ("over", false, &[FATAL]);
        let table: &[(Start, Event, &[Effect], &str)] = &[
            (serving, KILLED, &[StartWorker], "Serving worker up shim up"),
            (serving, FATAL, &[StopShim], "StoppingShim(3000) worker gone shim up"),
            (serving, CLEAN, &[StopShim], "StoppingShim(3000) worker gone shim up"),
            (serving, ShimEnded, &[StartShim], "Serving worker up shim up"),
            (serving, Stop, &[StopShim], "StoppingShim(3000) worker up shim up"),
            (serving, Tick, &[], "Serving worker up shim up"),
            (bare, KILLED, &[StartWorker], "Serving worker up shim gone"),
            (bare, FATAL, &[], "Over(Config) worker gone shim gone"),
            (bare, CLEAN, &[], "Over(Ok) worker gone shim gone"),
            (bare, Stop, &[StopWorker], "StoppingWorker worker up shim gone"),
            (bare, Tick, &[], "Serving worker up shim gone"),
            (down, ShimEnded, &[StartShim], "Serving worker in 50 shim up"),
            (down, Stop, &[StopShim], "StoppingShim(3000) worker gone shim up"),
            (down, Tick, &[], "Serving worker in 50 shim up"),
            (leaving, KILLED, &[], "StoppingShim(3000) worker gone shim up"),
            (leaving, FATAL, &[], "StoppingShim(3000) worker gone shim up"),
            (leaving, CLEAN, &[], "StoppingShim(3000) worker gone shim up"),
            (leaving, ShimEnded, &[StopWorker], "StoppingWorker worker up shim gone"),
            (leaving, Stop, &[HurryWorker, KillShim, StopWorker], "StoppingWorker worker up shim gone"),
            (leaving, Tick, &[], "StoppingShim(3000) worker up shim up"),
            (stopping, KILLED, &[], "Over(Failure) worker gone shim gone"),
            (stopping, FATAL, &[], "Over(Config) worker gone shim gone"),
            (stopping, CLEAN, &[], "Over(Ok) worker gone shim gone"),
            (stopping, ShimEnded, &[], "StoppingWorker worker up shim gone"),
            (stopping, Stop, &[HurryWorker], "StoppingWorker worker up shim gone"),
            (stopping, Tick, &[], "StoppingWorker worker up shim gone"),
            (over, KILLED, &[], "Over(Config) worker gone shim gone"),
            (over, FATAL, &[], "Over(Config) worker gone shim gone"),
            (over, CLEAN, &[], "Over(Config) worker gone shim gone"),
            (over, ShimEnded, &[], "Over(Config) worker gone shim gone"),
            (over, Stop, &[], "Over(Config) worker gone shim gone"),
            (over, Tick, &[], "Over(Config) worker gone shim gone"),
        ];
        for ((name, with_shim, path), event, effects, end) in table {
            let (mut core, now) = after(*with_shim, path);
            assert_eq!(core.step(*event, now), *effects, "{name} on {event:?}");
            assert_eq!(show(&core, now), *end, "{name} on {event:?}");
        }
    }

    /// Scenario: a worker that dies as soon as it is started, again and again, and then one that lives for a while.
    /// Guarantees: the first restart is at once, no delay is ever above 250 ms, and a long life makes the next one at once again.
    #[test]
    fn restarts_begin_at_once_and_never_wait_longer_than_a_quarter_of_a_second() {
        let mut now = Instant::now();
        let mut core = Core::new(false, now);
        core.step(Event::Tick, now);
        let mut delays = Vec::new();
        for _ in 0..8 {
            core.step(KILLED, now);
            let due = core.deadline().unwrap_or(now);
            delays.push(due.duration_since(now).as_millis());
            now = due;
            core.step(Event::Tick, now);
        }
        assert_eq!(delays, [0, 50, 100, 200, 250, 250, 250, 250]);

        now += STEADY;
        assert_eq!(core.step(KILLED, now), [Effect::StartWorker]);
    }

    /// Scenario: the delay passes, with a tick just before its end and one at its end.
    /// Guarantees: the worker starts then, once.
    #[test]
    fn a_delayed_worker_starts_when_it_is_due_and_once() {
        let (mut core, now) = after(true, &[KILLED, KILLED]);
        assert_eq!(core.step(Event::Tick, now + ms(49)), []);
        assert_eq!(core.step(Event::Tick, now + ms(50)), [Effect::StartWorker]);
        assert_eq!(core.step(Event::Tick, now + ms(51)), []);
    }

    /// Scenario: a shim that does not end when it is told to.
    /// Guarantees: after its grace it is killed, and the worker drains.
    #[test]
    fn a_shim_that_does_not_end_is_killed_after_its_grace() {
        let (mut core, now) = after(true, &[Event::Stop]);
        assert_eq!(core.deadline(), Some(now + SHIM_GRACE));
        assert_eq!(core.step(Event::Tick, now + SHIM_GRACE), [Effect::KillShim, Effect::StopWorker]);
        assert_eq!(core.phase(), Phase::StoppingWorker);
    }

    /// Scenario: somebody presses Ctrl-C until it is over.
    /// Guarantees: one drains, two hurry, three kill, and a killed drain is no success.
    #[test]
    fn one_stop_drains_two_hurry_three_kill() {
        let (mut core, now) = after(false, &[]);
        assert_eq!(core.step(Event::Stop, now), [Effect::StopWorker]);
        assert_eq!(core.step(Event::Stop, now), [Effect::HurryWorker]);
        assert_eq!(core.step(Event::Stop, now), [Effect::KillWorker]);
        core.step(KILLED, now);
        assert_eq!(core.phase(), Phase::Over(Exit::Failure));
    }

    /// Scenario: a stop while the worker is down, waiting to be started again.
    /// Guarantees: it is not started again, and the end is that of the crash: nobody drained.
    #[test]
    fn a_stop_while_the_worker_is_down_ends_with_its_failure() {
        let (mut core, now) = after(false, &[KILLED, KILLED]);
        assert_eq!(core.step(Event::Stop, now), []);
        assert_eq!(core.phase(), Phase::Over(Exit::Failure));
    }

    /// Scenario: each exit status of a worker.
    /// Guarantees: only what starting again may mend is started again.
    #[test]
    fn only_what_a_restart_may_mend_is_restarted() {
        for (number, restarted) in [
            (0, false),
            (1, true),
            (2, false),
            (3, false),
            (4, false),
            (5, false),
            (6, false),
            (7, true),
            (8, false),
            (101, true),
        ] {
            let (mut core, now) = after(false, &[]);
            let effects = core.step(Event::WorkerEnded(End::Exited(number)), now);
            assert_eq!(effects == [Effect::StartWorker], restarted, "exit status {number}");
        }
    }

    /// Scenario: ends of every kind.
    /// Guarantees: the words that people and labels see.
    #[test]
    fn reasons_are_words() {
        for (end, reason) in [
            (End::Killed(9), "killed by SIGKILL"),
            (End::Killed(11), "killed by SIGSEGV"),
            (End::Killed(40), "killed by signal 40"),
            (End::Exited(101), "panicked"),
            (End::Exited(7), "poisoned log"),
            (End::Exited(77), "exit status 77"),
            (End::NotStarted, "could not be started"),
        ] {
            assert_eq!(end.reason(), reason);
        }
    }
}

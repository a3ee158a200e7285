//! Keeps one worker alive, and on a single machine one shim.
//!
//! Owns two processes and no data: no runtime, no thread, no configuration. A worker is this program again, with
//! `worker --supervisor PID ... --` before the same arguments. It dies with its supervisor, and it is in a process group of
//! its own, so that a Ctrl-C reaches it through here and once. Ends when `core` says so, with the worker's status.

mod core;

use std::ffi::{CStr, OsString};
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};

use self::core::{Core, Effect, End, Event, Phase};
use super::cli::{Command, WorkerArgs};
use super::exit::{Exit, Refusal};
use super::node::{self, WorkerOptions};
use super::standalone::{self, Site};
use super::validate;
use crate::config::Config;
use crate::sys::signal::{self, Signals};

/// What this program is, whatever has become of the file since.
pub(super) const SELF: &str = "/proc/self/exe";

/// Runs `run` or `standalone` under supervision; `args` is the whole command line, beginning with the program's name.
pub fn run(command: &Command, args: Vec<OsString>) -> ExitCode {
    match Supervisor::start(command, args).and_then(Supervisor::supervise) {
        Ok(exit) => exit.into(),
        Err(refusal) => refusal.print(),
    }
}

struct Supervisor {
    core: Core,
    signals: Signals,
    args: Vec<OsString>,
    worker: Option<Pid>,
    /// Started before, all together.
    workers: u32,
    last_reason: Option<String>,
    site: Option<Site>,
}

impl Supervisor {
    fn start(command: &Command, args: Vec<OsString>) -> Result<Self, Refusal> {
        // First: from here on a stop waits until there is somebody to stop.
        let signals =
            Signals::take(&[Signal::TERM, Signal::INT, Signal::HUP, Signal::CHILD]).map_err(failure("signals"))?;
        let site = match command {
            Command::Standalone(args) => Some(standalone::prepare(args)?),
            _ => None,
        };
        let core = Core::new(site.is_some(), Instant::now());
        Ok(Self { core, signals, args, worker: None, workers: 0, last_reason: None, site })
    }

    fn supervise(mut self) -> Result<Exit, Refusal> {
        let mut events = vec![Event::Tick];
        loop {
            for event in events.drain(..) {
                self.apply(event);
            }
            if let Phase::Over(exit) = self.core.phase() {
                return Ok(exit);
            }
            events = self.wait().map_err(failure("waiting"))?;
        }
    }

    /// Feeds one event; what its effects fail at are events again.
    fn apply(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for effect in self.core.step(event, Instant::now()) {
                events.extend(self.act(effect));
            }
        }
    }

    fn act(&mut self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::StartWorker => match self.start_worker() {
                Ok(pid) => self.worker = Some(pid),
                Err(error) => {
                    say(&format!("the worker cannot be started: {error}"));
                    return Some(self.worker_ended(End::NotStarted));
                }
            },
            Effect::StopWorker => self.signal_worker(Signal::TERM),
            // Another one than the first: of two equal signals that wait, the kernel delivers one.
            Effect::HurryWorker => self.signal_worker(Signal::INT),
            Effect::KillWorker => self.signal_worker(Signal::KILL),
            Effect::StartShim => match self.site.as_mut().map_or(Ok(()), Site::start_shim) {
                Ok(()) => say("the shim was started again"),
                Err(error) => {
                    say(&format!("the shim cannot be started: {error}"));
                    return Some(Event::ShimEnded);
                }
            },
            Effect::StopShim => self.site.iter().for_each(Site::stop_shim),
            Effect::KillShim => self.site.iter().for_each(Site::kill_shim),
        }
        None
    }

    fn start_worker(&mut self) -> io::Result<Pid> {
        let mut command = std::process::Command::new(SELF);
        command.arg0("pillion").arg("worker");
        command.args(["--supervisor", &std::process::id().to_string(), "--restarts", &self.workers.to_string()]);
        if let Some(reason) = &self.last_reason {
            command.args(["--last-reason", reason]);
        }
        command.arg("--").args(self.args.iter().skip(1)).process_group(0).stdin(Stdio::null());
        let child = command.spawn()?;
        self.workers = self.workers.saturating_add(1);
        i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or_else(|| io::Error::other("no pid"))
    }

    fn signal_worker(&self, signal: Signal) {
        if let Some(pid) = self.worker {
            // It is waited for only in `reap`, so this pid is still its own; it may have ended, which `reap` will tell.
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    /// Until something happens or is due.
    fn wait(&mut self) -> io::Result<Vec<Event>> {
        let now = Instant::now();
        let timeout = self.core.deadline().map(|at| timespec(at.saturating_duration_since(now)));
        let shim = self.site.as_ref().and_then(Site::shim_fd);
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN)];
        fds.extend(shim.as_ref().map(|shim| PollFd::new(shim, PollFlags::IN)));
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let shim_ended = fds.get(1).is_some_and(|fd| !fd.revents().is_empty());
        drop(fds);

        let mut events = Vec::new();
        while let Some(signal) = self.signals.next()? {
            if signal != Signal::CHILD.as_raw() {
                events.push(Event::Stop);
            }
        }
        // Children's signals are merged, and the shim may be nobody's child: looking is cheaper than keeping count.
        events.extend(self.reap());
        if shim_ended && let Some(site) = &mut self.site {
            site.shim_gone();
            if self.core.phase() == Phase::Serving {
                say(&format!("the shim ended ({} says why, if it could)", site.shim_log().display()));
            }
            events.push(Event::ShimEnded);
        }
        events.push(Event::Tick);
        Ok(events)
    }

    /// Takes every child that has ended, strangers too: as pid 1 of a container this process inherits orphans.
    fn reap(&mut self) -> Option<Event> {
        let mut ended = None;
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if Some(pid) == self.worker {
                self.worker = None;
                ended = Some(self.worker_ended(end(status)));
            }
        }
        ended
    }

    fn worker_ended(&mut self, end: End) -> Event {
        let reason = end.reason();
        if self.core.phase() == Phase::Serving && end != End::Exited(0) {
            say(&format!("the worker ended: {reason} (starts so far: {})", self.workers));
        }
        self.last_reason = Some(reason);
        Event::WorkerEnded(end)
    }
}

/// The worker's side: ties its life to the supervisor's, reads the configuration, and runs the node.
pub fn worker(args: WorkerArgs) -> ExitCode {
    const NAME: &CStr = c"pillion";
    // Also when the supervisor is killed: two gateways on one data directory would be one too many. The signal comes when
    // the supervisor's only thread ends. A parent that went before this line is found by the comparison after it.
    let tied = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    if tied.is_err() || signal::unblock_all().is_err() {
        return Exit::Failure.into();
    }
    let parent = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get().unsigned_abs());
    if parent != Some(args.supervisor) {
        return Exit::Orphaned.into();
    }
    // Started through a link in /proc, it would be called `exe` in every list of processes. Cosmetic, so it may fail.
    let _ = rustix::thread::set_name(NAME);

    let config = match &*args.command {
        Command::Standalone(standalone) => standalone::config(standalone),
        Command::Run(run) => Config::load(&run.config),
        _ => return Exit::Usage.into(),
    };
    match config {
        Ok(config) => {
            let standalone = matches!(*args.command, Command::Standalone(_));
            node::run(config, WorkerOptions { restarts: args.restarts, last_reason: args.last_reason, standalone })
        }
        Err(errors) => {
            validate::print_errors(&errors);
            Exit::Config.into()
        }
    }
}

fn end(status: WaitStatus) -> End {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => End::Exited(code),
        (None, Some(signal)) => End::Killed(signal),
        (None, None) => End::NotStarted,
    }
}

/// The supervisor's log: stderr, beside the worker's.
fn say(message: &str) {
    eprintln!("pillion: {message}");
}

fn failure(action: &'static str) -> impl FnOnce(io::Error) -> Refusal {
    move |error| Refusal { exit: Exit::Failure, message: format!("{action}: {error}") }
}

pub(super) fn timespec(duration: Duration) -> Timespec {
    // Rounded up to a millisecond: waking just before the deadline would mean asking again at once.
    let millis = duration.as_nanos().div_ceil(1_000_000);
    Timespec::try_from(Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX)))
        .unwrap_or(Timespec { tv_sec: 3600, tv_nsec: 0 })
}

//! What an arm, the sink and the machine have spent and hold, read at two times.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use super::Cpu;
use crate::arm::Running;
use crate::judge;
use crate::measure::{self, Memory, Usage};

/// What is counted for the machine and for this process.
pub(super) struct Reading {
    sink: Duration,
    machine: Duration,
    at: Instant,
}

impl Reading {
    pub(super) fn take() -> io::Result<Self> {
        // The judge is a part of the sink that works apart.
        let sink = measure::cpu_time_of_threads("sink")? + measure::cpu_time_of_threads(judge::THREAD)?;
        Ok(Self { sink, machine: measure::machine_busy()?, at: Instant::now() })
    }

    pub(super) fn since(&self, before: &Self, generator: Duration, roles: BTreeMap<String, f64>) -> Cpu {
        Cpu {
            // The sum of nothing is -0.0.
            arm: roles.values().fold(0.0, |sum, seconds| sum + seconds),
            roles,
            generator: generator.as_secs_f64(),
            sink: self.sink.saturating_sub(before.sink).as_secs_f64(),
            machine: self.machine.saturating_sub(before.machine).as_secs_f64(),
            wall: self.at.saturating_duration_since(before.at).as_secs_f64(),
        }
    }
}

/// CPU time of every process of the arm that was ever seen: one that is killed takes its figures along.
#[derive(Debug, Clone, Default)]
pub(crate) struct Spending(BTreeMap<u32, (&'static str, Duration)>);

impl Spending {
    pub(crate) fn see(&mut self, running: &dyn Running) {
        for process in running.processes() {
            for pid in measure::family(process.pid) {
                // One that has ended meanwhile keeps what it was last seen with.
                let now = measure::cpu_time(pid).unwrap_or_default();
                let (_, spent) = self.0.entry(pid).or_insert((process.role, now));
                *spent = now.max(*spent);
            }
        }
    }

    /// Seconds by role.
    pub(crate) fn since(&self, start: &Self) -> BTreeMap<String, f64> {
        let mut roles = BTreeMap::new();
        for (pid, (role, spent)) in &self.0 {
            let then = start.0.get(pid).map_or(Duration::ZERO, |(_, then)| *then);
            *roles.entry((*role).to_owned()).or_default() += spent.saturating_sub(then).as_secs_f64();
        }
        roles
    }
}

pub(super) fn usage(running: &dyn Running) -> Usage {
    let pids = running.processes().into_iter().flat_map(|process| measure::family(process.pid));
    pids.map(|pid| measure::usage(pid).unwrap_or_default()).fold(Usage::default(), |sum, one| Usage {
        threads: sum.threads + one.threads,
        descriptors: sum.descriptors + one.descriptors,
        switches: sum.switches + one.switches,
    })
}

pub(super) fn memory(running: &dyn Running) -> Memory {
    let pids = running.processes().into_iter().flat_map(|process| measure::family(process.pid));
    pids.map(|pid| measure::memory(pid).unwrap_or_default()).fold(Memory::default(), |sum, one| Memory {
        rss: sum.rss + one.rss,
        pss: sum.pss + one.pss,
        private: sum.private + one.private,
    })
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::process::{Child, Command};

    use super::*;
    use crate::arm::Process;

    struct Busy(Option<Child>);

    impl Running for Busy {
        fn grpc(&self, _pod: usize) -> SocketAddr {
            unreachable!("nothing is sent")
        }

        fn http(&self, _pod: usize) -> SocketAddr {
            unreachable!("nothing is sent")
        }

        fn processes(&self) -> Vec<Process> {
            self.0.iter().map(|child| Process { role: "busy", pid: child.id() }).collect()
        }
    }

    /// Scenario: an arm's process works, is looked at, and is killed before the end of the run.
    /// Guarantees: what it had spent is still counted: a crash does not make an arm cheap.
    #[test]
    fn a_killed_process_leaves_its_bill() {
        let child = Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        let mut arm = Busy(Some(child));
        let start = Spending::default();
        let mut spending = Spending::default();
        while spending.since(&start).get("busy").is_none_or(|seconds| *seconds < 0.01) {
            spending.see(&arm);
        }
        let mut child = arm.0.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();

        spending.see(&arm);
        assert!(spending.since(&start)["busy"] >= 0.01);
        assert!(spending.since(&spending.clone())["busy"] < 1e-9);
    }
}

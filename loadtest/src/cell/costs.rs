//! What the sink and the machine have spent, read at two times.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use super::{Cpu, watcher};
use crate::judge;
use crate::measure;

/// What is counted for the machine and for this process.
pub(super) struct Reading {
    sink: Duration,
    machine: measure::Machine,
    at: Instant,
}

impl Reading {
    pub(super) fn take() -> io::Result<Self> {
        let [sink, judge, watcher] = ["sink", judge::THREAD, watcher::THREAD].map(measure::cpu_time_of_threads);
        // The judge is a part of the sink that works apart, and who looks on is as little a part of the arm.
        let sink = sink? + judge? + watcher?;
        Ok(Self { sink, machine: measure::machine()?, at: Instant::now() })
    }

    pub(super) fn since(&self, before: &Self, generator: Duration, roles: BTreeMap<String, f64>) -> Cpu {
        Cpu {
            // The sum of nothing is -0.0.
            arm: roles.values().fold(0.0, |sum, seconds| sum + seconds),
            roles,
            generator: generator.as_secs_f64(),
            sink: self.sink.saturating_sub(before.sink).as_secs_f64(),
            machine: self.machine.busy.saturating_sub(before.machine.busy).as_secs_f64(),
            stolen: self.machine.stolen.saturating_sub(before.machine.stolen).as_secs_f64(),
            wall: self.at.saturating_duration_since(before.at).as_secs_f64(),
        }
    }
}

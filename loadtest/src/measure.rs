//! What a process costs, from /proc. Needs no privilege for processes of the same user.

use std::fs;
use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// CPU time of all threads that a process has now, user and system, in nanoseconds' resolution.
///
/// From `/proc/PID/task/*/schedstat` where the kernel offers it (the tick-based figures of `stat` are too coarse for a
/// run of a second). Threads that have ended are not in it.
pub fn cpu_time(pid: u32) -> io::Result<Duration> {
    let mut total = 0u64;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = match fs::read_to_string(task?.path().join("schedstat")) {
            Ok(text) => text,
            // The thread ended between the listing and the reading.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound) => continue,
            Err(error) => return Err(error),
        };
        let on_cpu = text.split_ascii_whitespace().next().and_then(|field| field.parse::<u64>().ok());
        total += on_cpu.ok_or_else(|| io::Error::other(format!("schedstat of a thread of {pid} reads {text:?}")))?;
    }
    Ok(Duration::from_nanos(total))
}

/// CPU time of the calling thread, user and system.
pub fn thread_cpu_time() -> io::Result<Duration> {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let seconds = u64::try_from(spent.tv_sec).map_err(io::Error::other)?;
    let nanos = u32::try_from(spent.tv_nsec).map_err(io::Error::other)?;
    Ok(Duration::new(seconds, nanos))
}

/// CPU time of this process's threads of that name.
pub fn cpu_time_of_threads(name: &str) -> io::Result<Duration> {
    let mut total = Duration::ZERO;
    for task in fs::read_dir("/proc/self/task")? {
        let path = task?.path();
        if fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim_end() == name) {
            let text = fs::read_to_string(path.join("schedstat"))?;
            let on_cpu = text.split_ascii_whitespace().next().and_then(|field| field.parse().ok());
            total += Duration::from_nanos(on_cpu.unwrap_or(0));
        }
    }
    Ok(total)
}

/// Time that all processors of the machine were not idle since it started, in steps of 10 ms.
pub fn machine_busy() -> io::Result<Duration> {
    // What the kernel tells user space is in hundredths of a second on every architecture that this runs on.
    const TICK: Duration = Duration::from_millis(10);
    let text = fs::read_to_string("/proc/stat")?;
    let fields = text.lines().next().unwrap_or_default().split_ascii_whitespace().skip(1);
    // user nice system idle iowait irq softirq steal: what others took of this machine is not its work.
    let ticks = fields.take(7).enumerate().filter(|(index, _)| !matches!(index, 3 | 4));
    let ticks: u32 = ticks.filter_map(|(_, field)| field.parse::<u32>().ok()).sum();
    Ok(TICK * ticks)
}

/// Memory that the machine could give out without swapping: KiB.
pub fn memory_available() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let value = line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse().ok());
    value.ok_or_else(|| io::Error::other("/proc/meminfo has no MemAvailable"))
}

/// A process and all that it started and that is still there.
pub fn family(pid: u32) -> Vec<u32> {
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        next += 1;
        let Ok(tasks) = fs::read_dir(format!("/proc/{parent}/task")) else { continue };
        for task in tasks.filter_map(Result::ok) {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            found.extend(children.split_ascii_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
    }
    found
}

/// What processes have and have done, besides CPU time and memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Threads.
    pub threads: u64,
    /// Open descriptors.
    pub descriptors: u64,
    /// Context switches, voluntary or not, of the threads that are there.
    pub switches: u64,
}

/// Of one process.
pub fn usage(pid: u32) -> io::Result<Usage> {
    let mut usage = Usage { descriptors: fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64, ..Usage::default() };
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let Ok(status) = fs::read_to_string(task?.path().join("status")) else { continue };
        let switches = status.lines().filter(|line| line.contains("_ctxt_switches:"));
        usage.switches += switches.filter_map(|line| line.rsplit('\t').next()?.parse::<u64>().ok()).sum::<u64>();
        usage.threads += 1;
    }
    Ok(usage)
}

/// Memory of a process, in KiB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Resident.
    pub rss: u64,
    /// Resident, shared pages divided by their number of users.
    pub pss: u64,
    /// Resident and in no other process.
    pub private: u64,
}

/// Reads `/proc/PID/smaps_rollup`.
pub fn memory(pid: u32) -> io::Result<Memory> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0)
    };
    Ok(Memory { rss: field("Rss"), pss: field("Pss"), private: field("Private_Clean") + field("Private_Dirty") })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: a process looks at itself before and after it worked.
    /// Guarantees: the figures are real: CPU time grows with work, and memory adds up.
    #[test]
    fn a_process_can_be_weighed() {
        let pid = std::process::id();
        let before = cpu_time(pid).expect("own /proc entry");
        let mut hash = 0u64;
        while cpu_time(pid).expect("own /proc entry") == before {
            hash = std::hint::black_box(hash.wrapping_mul(31).wrapping_add(7));
        }

        let memory = memory(pid).expect("own /proc entry");
        assert!(memory.rss >= memory.pss && memory.pss >= memory.private && memory.private > 0, "{memory:?}");
    }
}

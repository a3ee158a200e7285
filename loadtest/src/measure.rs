//! What a process costs, from /proc. Needs no privilege for processes of the same user.

use std::fs;
use std::io;
use std::time::Duration;

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

/// Memory of a process, in KiB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
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

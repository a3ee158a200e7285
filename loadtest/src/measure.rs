//! What a process costs, from /proc. Needs no privilege for processes of the same user.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::time::Duration;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// What the kernel tells user space is in hundredths of a second on every architecture that this runs on.
const TICK_MS: u64 = 10;

/// CPU time of a process, user and system, of the threads that have ended too.
///
/// In nanoseconds' resolution where the threads that are there now are all that ever were: what has ended is known to the
/// kernel's tick of 10 ms.
pub fn cpu_time(pid: u32) -> io::Result<Duration> {
    Ok(Stat::read(pid)?.own.max(threads_time(pid)?))
}

/// The same with that of those that it started, that have ended and for which it has waited: to the tick.
pub(crate) fn own_and_waited_time(pid: u32) -> io::Result<Duration> {
    let stat = Stat::read(pid)?;
    Ok(stat.own + stat.waited)
}

/// CPU time of the threads that a process has now, from `/proc/PID/task/*/schedstat`: the figures of `stat` are in ticks, too
/// coarse for a run of a second.
pub(crate) fn threads_time(pid: u32) -> io::Result<Duration> {
    let mut total = 0u64;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end between the listing and the reading.
        let Some(text) = unless_gone(fs::read_to_string(task?.path().join("schedstat")))? else { continue };
        let on_cpu = text.split_ascii_whitespace().next().and_then(|field| field.parse::<u64>().ok());
        total += on_cpu.ok_or_else(|| io::Error::other(format!("schedstat of a thread of {pid} reads {text:?}")))?;
    }
    Ok(Duration::from_nanos(total))
}

/// `None` where the process or the thread that was to be read has ended meanwhile; any other error is one.
pub(crate) fn unless_gone<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What `/proc/PID/stat` says.
#[derive(Debug, Clone, Copy)]
struct Stat {
    parent: u32,
    own: Duration,
    waited: Duration,
    resident_pages: u64,
}

impl Stat {
    fn read(pid: u32) -> io::Result<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        Self::parse(&text).ok_or_else(|| io::Error::other(format!("the stat of {pid} reads {text:?}")))
    }

    /// The name may have any character: what follows its last parenthesis is counted.
    fn parse(text: &str) -> Option<Self> {
        let fields: Vec<&str> = text.rsplit_once(") ")?.1.split_ascii_whitespace().collect();
        let field = |index: usize| fields.get(index)?.parse::<u64>().ok();
        let time = |first: usize| Some(Duration::from_millis(TICK_MS * (field(first)? + field(first + 1)?)));
        let parent = u32::try_from(field(1)?).ok()?;
        Some(Self { parent, own: time(11)?, waited: time(13)?, resident_pages: field(21)? })
    }
}

/// All processes that can be seen, read at one time.
#[derive(Debug)]
pub(crate) struct Processes(BTreeMap<u32, Stat>);

impl Processes {
    pub(crate) fn read() -> io::Result<Self> {
        let mut processes = BTreeMap::new();
        for entry in fs::read_dir("/proc")? {
            let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            if let Some(stat) = unless_gone(Stat::read(pid))? {
                processes.insert(pid, stat);
            }
        }
        Ok(Self(processes))
    }

    /// A process and all that it started and that is still there. By parents, which every kernel tells.
    pub(crate) fn family(&self, pid: u32) -> Vec<u32> {
        let mut found: Vec<u32> = self.0.contains_key(&pid).then_some(pid).into_iter().collect();
        let mut next = 0;
        while let Some(parent) = found.get(next).copied() {
            next += 1;
            found.extend(
                self.0.iter().filter(|(pid, stat)| stat.parent == parent && **pid != parent).map(|(pid, _)| *pid),
            );
        }
        found
    }

    /// CPU time of a process, of the threads that have ended too, to the tick.
    pub(crate) fn own_time(&self, pid: u32) -> Duration {
        self.0.get(&pid).map_or(Duration::ZERO, |stat| stat.own)
    }

    /// CPU time of those that it started, that have ended and for which it has waited, and of theirs.
    pub(crate) fn waited_time(&self, pid: u32) -> Duration {
        self.0.get(&pid).map_or(Duration::ZERO, |stat| stat.waited)
    }

    /// KiB.
    pub(crate) fn resident(&self, pid: u32) -> u64 {
        self.0.get(&pid).map_or(0, |stat| stat.resident_pages * (rustix::param::page_size() as u64 >> 10))
    }
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

/// What all processors of the machine did since it started, in steps of 10 ms.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Machine {
    /// Neither idle nor waiting for a disk.
    pub busy: Duration,
    /// Asked for, and given to other machines by the hypervisor: steal, which is not in `busy`.
    pub stolen: Duration,
}

/// Read now.
pub fn machine() -> io::Result<Machine> {
    let text = fs::read_to_string("/proc/stat")?;
    of_machine(&text).ok_or_else(|| io::Error::other(format!("/proc/stat reads {:?}", text.lines().next())))
}

fn of_machine(text: &str) -> Option<Machine> {
    let mut fields = text.lines().next()?.split_ascii_whitespace();
    fields.next().filter(|name| *name == "cpu")?;
    // Of old kernels the last ones are missing.
    let ticks: Vec<u64> = fields.take(8).map(|field| field.parse().ok()).collect::<Option<_>>()?;
    let [user, nice, system, _idle, _iowait, irq, softirq, rest @ ..] = ticks.as_slice() else { return None };
    let time = |ticks: u64| Some(Duration::from_millis(ticks.checked_mul(TICK_MS)?));
    let busy = [user, nice, system, irq, softirq].into_iter().try_fold(0, |sum: u64, ticks| sum.checked_add(*ticks))?;
    Some(Machine { busy: time(busy)?, stolen: time(rest.first().copied().unwrap_or(0))? })
}

/// Memory that the machine could give out without swapping: KiB.
pub fn memory_available() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let value = line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse().ok());
    value.ok_or_else(|| io::Error::other("/proc/meminfo has no MemAvailable"))
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
        let Some(status) = unless_gone(fs::read_to_string(task?.path().join("status")))? else { continue };
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
        let value = line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse::<u64>().ok());
        value.ok_or_else(|| io::Error::other(format!("the smaps_rollup of {pid} has no {name}")))
    };
    Ok(Memory { rss: field("Rss")?, pss: field("Pss")?, private: field("Private_Clean")? + field("Private_Dirty")? })
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

    /// Scenario: a thread works for some ticks and ends.
    /// Guarantees: its time is the process's still.
    #[test]
    fn threads_that_have_ended_have_cost_what_they_have_cost() {
        let pid = std::process::id();
        let work = || {
            let mut hash = 0u64;
            while thread_cpu_time().expect("a clock") < Duration::from_millis(200) {
                hash = std::hint::black_box(hash.wrapping_mul(31).wrapping_add(7));
            }
        };
        let before = cpu_time(pid).expect("own /proc entry");
        std::thread::spawn(work).join().expect("it ends");
        // Less the ticks of two readings; other tests' threads only add to it.
        let spent = cpu_time(pid).expect("own /proc entry") - before;
        assert!(spent >= Duration::from_millis(160), "{spent:?}");
    }

    /// Scenario: a machine with many processors that has been up for years, and texts that are not what is expected.
    /// Guarantees: its time is more than 32 bits of ticks; what a hypervisor kept is apart; what cannot be read is no zero.
    #[test]
    fn a_large_machines_time_is_read() {
        let machine = of_machine("cpu  9000000000 1 1 77 77 1 1 5 9 9\ncpu0 1").expect("they are numbers");
        assert_eq!(machine.busy, Duration::from_millis(90_000_000_040));
        assert_eq!(machine.stolen, Duration::from_millis(50));
        for text in ["", "cpux 1", "cpu 1 2 x 4 5 6 7", "cpu 18446744073709551615 0 0 0 0 0 0"] {
            assert_eq!(of_machine(text), None, "{text}");
        }
    }

    /// Scenario: the line of a process whose name looks like a line, and lines that end early.
    /// Guarantees: the numbers are found behind the name; none is made up.
    #[test]
    fn a_process_may_have_any_name() {
        let line = "7 (a) S 1 (b) R 3 4 5 6 7 8 9 10 11 12 200 100 20 10 0 0 9 0 77 4096 25 0";
        let stat = Stat::parse(line).expect("a line");
        assert_eq!((stat.parent, stat.own, stat.resident_pages), (3, Duration::from_secs(3), 25));
        assert_eq!(stat.waited, Duration::from_millis(300));
        assert!(Stat::parse(&line[..50]).is_none() && Stat::parse("7 (a").is_none());
    }
}

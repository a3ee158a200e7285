//! What the kernel knows of this process, under the names that Prometheus clients agree on.

use std::fs;

use rustix::time::{ClockId, clock_gettime};

/// Read when somebody asks. What cannot be read is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Usage {
    pub(super) cpu_seconds: f64,
    pub(super) resident_bytes: Option<u64>,
    pub(super) virtual_bytes: Option<u64>,
    pub(super) threads: Option<u64>,
    pub(super) open_fds: Option<u64>,
    pub(super) max_fds: Option<u64>,
}

/// Reads /proc; it never waits for a disk.
pub(super) fn usage() -> Usage {
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = |key| field(&status, key).map(|kib| kib.saturating_mul(1024));
    Usage {
        cpu_seconds: cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9,
        resident_bytes: kib("VmRSS:"),
        virtual_bytes: kib("VmSize:"),
        threads: field(&status, "Threads:"),
        open_fds: crate::lifecycle::open_descriptors(),
        max_fds: rustix::process::getrlimit(rustix::process::Resource::Nofile).current,
    }
}

/// The number after a key of /proc/self/status.
fn field(status: &str, key: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: the test process asks about itself.
    /// Guarantees: every figure is there and plausible; what is not a number is absent.
    #[test]
    fn the_kernel_answers_for_this_process() {
        let usage = usage();
        assert!(usage.resident_bytes.is_some_and(|bytes| bytes > 1 << 20), "{usage:?}");
        assert!(usage.virtual_bytes >= usage.resident_bytes && usage.threads >= Some(1), "{usage:?}");
        assert!(usage.open_fds > Some(2) && usage.max_fds > usage.open_fds, "{usage:?}");
        assert!(usage.cpu_seconds > 0.0);
        assert_eq!(field("Name:\tx\nVmRSS:\t  42 kB\n", "VmRSS:"), Some(42));
        assert_eq!(field("VmRSS:\t-\n", "VmRSS:"), None);
    }
}

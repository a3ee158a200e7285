//! Who has a file or a socket open, as far as /proc tells this user. Best effort: a process of another user keeps its secrets.

use std::fs;
use std::path::Path;

/// How much of a command line is shown.
const COMMAND_MAX: usize = 80;

/// A process, for a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: u32,
    pub(super) command: String,
}

/// The first process other than this one with a descriptor for which `is_it` says yes; it is given `/proc/PID/fd/N`.
pub(super) fn with_descriptor(is_it: impl Fn(&Path) -> bool) -> Option<Process> {
    let own = std::process::id();
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if pid == own {
            continue;
        }
        // Gone meanwhile, or not ours to look into: not the one, as far as can be told.
        let Ok(descriptors) = fs::read_dir(entry.path().join("fd")) else { continue };
        if descriptors.flatten().any(|descriptor| is_it(&descriptor.path())) {
            return Some(Process { pid, command: command(&entry.path()) });
        }
    }
    None
}

/// The command line with its zeros as spaces, or the name of a process that has none.
fn command(dir: &Path) -> String {
    let read = |name: &str| fs::read(dir.join(name)).unwrap_or_default();
    let line = read("cmdline");
    let line = if line.is_empty() { read("comm") } else { line };
    printable(&line)
}

/// What may go to a terminal: another process chose these bytes.
fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes).replace('\0', " ");
    let mut out: String =
        text.trim().chars().map(|c| if c.is_control() { '?' } else { c }).take(COMMAND_MAX + 1).collect();
    if out.chars().count() > COMMAND_MAX {
        out.pop();
        out.push_str("...");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: a command line with escape sequences, and one without an end.
    /// Guarantees: a terminal is shown neither.
    #[test]
    fn a_strangers_command_line_cannot_reach_the_terminal() {
        assert_eq!(printable(b"python3\0-m\0http.server\0"), "python3 -m http.server");
        assert_eq!(printable(b"a\x1b[2J\nb"), "a?[2J?b");
        assert_eq!(printable(&[b'x'; 5_000]), format!("{}...", "x".repeat(80)));
    }
}

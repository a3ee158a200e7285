//! System calls of a running process, counted by the kernel for perf.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// Those that are told by name; the rest is in the sum.
pub(crate) const NAMED: [&str; 7] = ["epoll_wait", "recvfrom", "writev", "write", "futex", "pwritev", "fdatasync"];
const ALL: &str = "raw_syscalls:sys_enter";

/// `perf stat` beside the process.
pub(crate) struct Counter {
    perf: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    file: PathBuf,
}

/// System calls of all threads.
pub(crate) struct Calls {
    pub(crate) all: u64,
    pub(crate) named: [u64; NAMED.len()],
}

impl Counter {
    /// Counts nothing yet. An error where there is no perf, or it may not count.
    pub(crate) fn attach(pid: u32, dir: &Path) -> Result<Self> {
        let file = dir.join("perf.csv");
        let names: Vec<String> = NAMED.iter().map(|name| format!("syscalls:sys_enter_{name}")).collect();
        // It begins and ends on an order, each with an answer: nothing of the load is missed and nothing else is counted.
        let mut perf = Command::new("perf")
            .args(["stat", "--field-separator=;", "--control=fd:0,1", "--delay=-1", "--event"])
            .arg([&[ALL.to_owned()], &names[..]].concat().join(","))
            .args(["--pid", &pid.to_string(), "--output"])
            .arg(&file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("there is no perf")?;
        let orders = perf.stdin.take().context("piped")?;
        let answers = BufReader::new(perf.stdout.take().context("piped")?);
        Ok(Self { perf, orders, answers, file })
    }

    pub(crate) fn begin(&mut self) -> Result<()> {
        self.order("enable")
    }

    pub(crate) fn end(mut self) -> Result<Calls> {
        self.order("disable")?;
        let pid = i32::try_from(self.perf.id()).ok().and_then(Pid::from_raw).context("a process has a number")?;
        kill_process(pid, Signal::INT)?;
        self.perf.wait()?;
        let text = fs::read_to_string(&self.file)?;
        let all = count(&text, ALL)?;
        let mut named = [0; NAMED.len()];
        for (number, name) in named.iter_mut().zip(NAMED) {
            *number = count(&text, &format!("syscalls:sys_enter_{name}"))?;
        }
        Ok(Calls { all, named })
    }

    fn order(&mut self, order: &str) -> Result<()> {
        writeln!(self.orders, "{order}")?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        ensure!(answer.contains("ack"), "perf stat ends, or answers {answer:?}: may it count system calls?");
        Ok(())
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        // What has been waited for is left alone by both calls.
        drop(self.perf.kill());
        drop(self.perf.wait());
    }
}

/// `COUNT;UNIT;EVENT;...`
fn count(text: &str, event: &str) -> Result<u64> {
    let line = text.lines().find(|line| line.split(';').nth(2) == Some(event));
    let field = line.and_then(|line| line.split(';').next()).with_context(|| format!("perf did not count {event}"))?;
    field.parse().with_context(|| format!("perf counted {field:?} of {event}"))
}

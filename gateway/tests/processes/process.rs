//! A process under test. The only clock is the deadline after which a process that says or does nothing has failed.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

pub(crate) const PILLION: &str = env!("CARGO_BIN_EXE_pillion");
/// What the worker logs when it serves.
pub(crate) const READY: &str = "pillion is serving";

const PATIENCE: Duration = Duration::from_secs(300);

/// A running `pillion`. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    lines: Receiver<String>,
    said: Vec<String>,
    /// Which of `said` no wait has returned yet.
    open: Vec<bool>,
}

impl Process {
    pub(crate) fn start(dir: &Path, args: &[&str]) -> Self {
        let mut child = Command::new(PILLION)
            .args(args)
            .current_dir(dir)
            .env("PILLION_LOG", "info")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the command under test starts");
        let stderr = child.stderr.take().expect("piped");
        // Larger than anything a test makes it say: the process never waits for the test.
        let (sender, lines) = sync_channel(10_000);
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self { child, lines, said: Vec::new(), open: Vec::new() }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The first line on stderr with this text in it that no wait has returned before. Its place among the others does not
    /// matter: the threads of a process say what they say in no order that a test could rely on.
    pub(crate) fn wait_for(&mut self, text: &str) -> String {
        let mut at = 0;
        loop {
            while at < self.said.len() {
                if self.open[at] && self.said[at].contains(text) {
                    self.open[at] = false;
                    return self.said[at].clone();
                }
                at += 1;
            }
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => {
                    self.said.push(line);
                    self.open.push(true);
                }
                Err(error) => panic!("no {text:?} ({error}) in:\n{}", self.said.join("\n")),
            }
        }
    }

    /// The child whose command line has this word in it.
    pub(crate) fn child(&self, word: &str) -> u32 {
        let pid = self.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("the supervisor runs");
        let children: Vec<u32> = children.split_ascii_whitespace().map(|pid| pid.parse().expect("a pid")).collect();
        let found = children.iter().find(|pid| command_line(**pid).split(' ').any(|argument| argument == word));
        *found.unwrap_or_else(|| panic!("no {word} among {children:?} of {pid}"))
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal);
    }

    /// Its status, after it has ended by itself.
    pub(crate) fn exit_code(&mut self) -> Option<i32> {
        let ended = pidfd(self.pid());
        assert!(ends(&ended), "still running; it said:\n{}", self.said.join("\n"));
        self.child.wait().expect("a child can be waited for").code()
    }

    /// Everything that it said, after it has ended.
    pub(crate) fn output(&mut self) -> String {
        self.said.extend(self.lines.iter());
        self.said.join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Already gone is what is wanted.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The arguments, with a space between.
pub(crate) fn command_line(pid: u32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).trim_end_matches('\0').replace('\0', " ")
}

pub(crate) fn kill(pid: u32, signal: Signal) {
    kill_process(as_pid(pid), signal).expect("the process is there");
}

/// Holds a process's identity, so that its end can be waited for.
pub(crate) fn pidfd(pid: u32) -> OwnedFd {
    pidfd_open(as_pid(pid), PidfdFlags::empty()).expect("the process is there")
}

/// Waits for a process to end; whether it did.
pub(crate) fn ends(pidfd: &OwnedFd) -> bool {
    let patience = Timespec::try_from(PATIENCE).expect("a minute");
    rustix::event::poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&patience)) == Ok(1)
}

pub(crate) fn is_running(pidfd: &OwnedFd) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&now)) == Ok(0)
}

/// A command that ends by itself: status, stdout and stderr.
pub(crate) fn run(dir: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    let mut child = Command::new(PILLION)
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command under test starts");
    let ended = pidfd(child.id());
    let read = |stream: Option<&mut dyn Read>| {
        let mut text = String::new();
        stream.expect("piped").read_to_string(&mut text).expect("text");
        text
    };
    // Errors are short: they fit into the pipe while the other stream is read.
    let stdout = read(child.stdout.as_mut().map(|stream| stream as &mut dyn Read));
    let stderr = read(child.stderr.as_mut().map(|stream| stream as &mut dyn Read));
    assert!(ends(&ended));
    (child.wait().expect("a child can be waited for").code(), stdout, stderr)
}

/// Loopback ports that nobody holds. A test that loses the race for one says so.
pub(crate) fn free_ports<const N: usize>() -> [u16; N] {
    let listeners: Vec<TcpListener> = (0..N).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
    std::array::from_fn(|index| listeners[index].local_addr().expect("bound").port())
}

fn as_pid(pid: u32) -> Pid {
    i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a pid")
}

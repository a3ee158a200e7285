//! A running `pillion run`: supervisor and worker.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::lines::Lines;

/// What the worker logs when it serves.
const READY: &str = "pillion is serving";

/// A figure that is not as it should be after this long is wrong.
const PATIENCE: Duration = Duration::from_secs(300);

/// The process, and what a test wants of it. Killed when dropped.
#[derive(Debug)]
pub struct Gateway {
    child: Child,
    log: Lines,
    admin: SocketAddr,
}

impl Gateway {
    /// Writes the configuration to `dir/pillion.yaml`, starts the command `node`, and waits until it serves.
    ///
    /// In `config`, `DIR` and `ADMIN` stand for the directory and for a free address of the admin server.
    pub fn start(node: &str, dir: &Path, config: &str) -> Self {
        let gateway = Self::spawn(node, dir, "pillion.yaml", config);
        gateway.log.wait_for(READY);
        gateway
    }

    /// The same with a file of that name, and without waiting for anything.
    pub fn spawn(node: &str, dir: &Path, file: &str, config: &str) -> Self {
        let admin = free_address();
        let path = configure(&dir.join(file), dir, config, admin);
        Self::run(Command::new(node).arg("run").arg("--config").arg(path), admin)
    }

    /// As [`Gateway::start`]; `command` becomes the gateway by executing its last arguments, which follow here.
    pub fn start_through(mut command: Command, node: &str, dir: &Path, config: &str) -> Self {
        let admin = free_address();
        let path = configure(&dir.join("pillion.yaml"), dir, config, admin);
        let gateway = Self::run(command.arg(node).arg("run").arg("--config").arg(path), admin);
        gateway.log.wait_for(READY);
        gateway
    }

    /// Starts it again on what is there.
    pub fn start_again(node: &str, dir: &Path) -> Self {
        let path = dir.join("pillion.yaml");
        let text = fs::read_to_string(&path).expect("it was started before");
        let admin = text.lines().find_map(|line| line.trim().strip_prefix("admin: ")).expect("a line of its own");
        let admin = admin.parse().expect("an address");
        let gateway = Self::run(Command::new(node).arg("run").arg("--config").arg(path), admin);
        gateway.log.wait_for(READY);
        gateway
    }

    fn run(command: &mut Command, admin: SocketAddr) -> Self {
        let mut child = command
            .env("PILLION_LOG", "info")
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the command under test starts");
        let log = Lines::of(child.stderr.take().expect("piped"));
        Self { child, log, admin }
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        self.log.all()
    }

    /// The next line of its log that holds `text`.
    pub fn wait_for_line(&self, text: &str) -> String {
        self.log.wait_for(text)
    }

    /// The supervisor's pid.
    pub fn supervisor(&self) -> u32 {
        self.child.id()
    }

    /// The worker's pid.
    pub fn worker(&self) -> u32 {
        self.any_worker().expect("the supervisor has a worker")
    }

    /// The worker's pid; between two workers there is none.
    pub fn any_worker(&self) -> Option<u32> {
        let pid = self.child.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("the supervisor runs");
        children.split_ascii_whitespace().next().and_then(|pid| pid.parse().ok())
    }

    /// kill -9 of the worker; returns when its successor serves.
    pub fn kill_worker(&self) {
        kill(self.worker(), Signal::KILL);
        self.log.wait_for(READY);
    }

    /// A figure of /metrics without labels.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let (_, body) = self.get("/metrics");
        let line = body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.parse().ok())
    }

    /// The sum of a figure of /metrics over its samples whose labels hold all of these texts.
    pub fn metric_of(&self, name: &str, labels: &[&str]) -> Option<f64> {
        let (_, body) = self.get("/metrics");
        let samples = body.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('{')?.split_once("} "));
        let values = samples.filter(|(of, _)| labels.iter().all(|label| of.contains(label)));
        values.map(|(_, value)| value.parse::<f64>().ok()).sum::<Option<f64>>()
    }

    /// Asks until a figure of /metrics is as it should be.
    ///
    /// # Panics
    /// When it never is.
    pub fn wait_for_metric(&self, name: &str, is: impl Fn(f64) -> bool) {
        self.wait_for(name, |gateway| gateway.metric(name).is_some_and(&is));
    }

    /// Asks until something is so; each question costs the gateway an answer, which is what paces them.
    ///
    /// # Panics
    /// When it never is.
    pub fn wait_for(&self, what: &str, is: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is(self) {
            assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}\n{}", self.explain());
        }
    }

    /// kill -9 of the supervisor, and with it of the worker. Both are gone when it returns.
    pub fn kill_all(mut self) {
        let worker = self.any_worker().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        let worker = worker.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        kill(self.child.id(), Signal::KILL);
        self.child.wait().expect("a child can be waited for");
        // The kernel kills it at its parent's end, and its addresses are free at its own.
        if let Some(worker) = worker {
            let mut fds = [PollFd::new(&worker, PollFlags::IN)];
            while matches!(poll(&mut fds, None), Err(rustix::io::Errno::INTR)) {}
        }
    }

    /// SIGTERM; returns how it ended.
    pub fn stop(&mut self) -> ExitStatus {
        kill(self.child.id(), Signal::TERM);
        self.child.wait().expect("a child can be waited for")
    }

    /// GET of the admin server: status and body.
    pub fn get(&self, path: &str) -> (u16, String) {
        get(self.admin, path).expect("the admin server answers")
    }

    /// GET of a JSON page.
    pub fn json(&self, path: &str) -> serde_json::Value {
        let (status, body) = self.get(path);
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path} is JSON: {error}: {body}"))
    }

    /// Tells why a test failed.
    pub fn explain(&self) -> String {
        let tenants = get(self.admin, "/tenants?format=json").map(|answer| answer.1).unwrap_or_else(|e| e.to_string());
        format!("log:\n{}\ntenants:\n{tenants}", self.log())
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // Already gone is what is wanted.
        drop(self.child.kill());
        drop(self.child.wait());
        if std::thread::panicking() {
            eprintln!("the gateway said:\n{}", self.log());
        }
    }
}

fn configure(path: &Path, dir: &Path, config: &str, admin: SocketAddr) -> PathBuf {
    // However full the disk of whoever runs the tests is.
    let min_free = if config.contains("min_free") { "" } else { "\n  min_free: 1MiB" };
    let text = config.replace("DIR", &dir.display().to_string()).replace("ADMIN", &format!("{admin}{min_free}"));
    fs::write(path, text).expect("the test's directory is writable");
    path.to_owned()
}

/// GET: status and body.
pub fn get(address: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.unwrap_or(0), body.to_owned()))
}

/// Sends a signal; a process that is gone is no error.
pub fn kill(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a pid");
    let _gone_is_fine = kill_process(pid, signal);
}

/// A loopback address that nobody holds. Held by nobody afterwards either: a test that loses the race says so.
pub fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("a bound listener has an address")
}

/// A directory for one test, below the target's.
pub fn directory() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("pillion-test-").tempdir().expect("the temporary directory is writable")
}

/// A path below it.
pub fn below(dir: &tempfile::TempDir, name: &str) -> PathBuf {
    dir.path().join(name)
}

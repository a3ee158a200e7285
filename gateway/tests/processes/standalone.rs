//! `pillion standalone`: supervisor, worker and shim on one machine.

use std::fs;
use std::net::TcpListener;
use std::path::Path;

use rustix::process::Signal;

use crate::process::{Process, READY, ends, free_ports, is_running, kill, pidfd, run};

/// Ports of one test.
struct Ports {
    grpc: String,
    http: String,
    admin: String,
}

impl Ports {
    fn free() -> Self {
        let [grpc, http, admin] = free_ports().map(|port| port.to_string());
        Self { grpc, http, admin }
    }

    fn args(&self) -> Vec<&str> {
        vec!["standalone", "--data-dir", "data", "--grpc", &self.grpc, "--http", &self.http, "--admin", &self.admin]
    }
}

fn start(dir: &Path, ports: &Ports) -> Process {
    let mut process = Process::start(dir, &ports.args());
    process.wait_for(READY);
    process
}

/// The pid that the shim's lock names.
fn locked_by(dir: &Path) -> u32 {
    let text = fs::read_to_string(dir.join("data/sockets/app/shim.lock")).expect("a shim was started");
    text.rsplit(' ').next().and_then(|pid| pid.parse().ok()).expect(&text)
}

/// Scenario: start, and SIGINT, as a Ctrl-C gives it.
/// Guarantees: supervisor, worker and shim run; the shim is detached; all of them are gone at the end, and the status is 0.
#[test]
fn a_stop_ends_the_shim_too() {
    let dir = tempfile::tempdir().expect("writable");
    let mut process = start(dir.path(), &Ports::free());
    let shim = locked_by(dir.path());
    // pgrp, the field after state and ppid: its own.
    let stat = fs::read_to_string(format!("/proc/{shim}/stat")).expect("it runs");
    assert_eq!(stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(2)), Some(shim.to_string().as_str()));
    let (shim, worker) = (pidfd(shim), pidfd(process.child("worker")));
    process.signal(Signal::INT);
    assert_eq!(process.exit_code(), Some(0));
    assert!(ends(&shim) && ends(&worker));
}

/// Scenario: kill -9 of the supervisor, and start again with the same ports; then with others.
/// Guarantees: the shim survives the kill and is adopted, which a stop shows by ending it; where the ports differ, the old shim is
/// stopped and a new one started.
#[test]
fn a_shim_outlives_its_gateway_and_is_adopted() {
    let dir = tempfile::tempdir().expect("writable");
    let ports = Ports::free();
    let process = start(dir.path(), &ports);
    let shim = locked_by(dir.path());
    let (first, worker) = (pidfd(shim), pidfd(process.child("worker")));
    process.signal(Signal::KILL);
    assert!(ends(&worker));
    assert!(is_running(&first));
    drop(process);

    let process = start(dir.path(), &ports);
    assert_eq!(locked_by(dir.path()), shim);
    assert!(is_running(&first));
    process.signal(Signal::KILL);
    drop(process);

    let others = Ports::free();
    let mut process = start(dir.path(), &others);
    assert!(ends(&first), "a shim of other ports is stopped");
    let second = fs::read_to_string(dir.path().join("data/sockets/app/shim.lock")).expect("a shim was started");
    assert!(second.starts_with(&format!("grpc {} http {} pid ", others.grpc, others.http)), "{second}");
    process.signal(Signal::TERM);
    assert_eq!(process.exit_code(), Some(0));
}

/// Scenario: an adopted shim, nobody's child any more, is killed.
/// Guarantees: another is started.
#[test]
fn a_killed_shim_is_replaced_although_it_was_adopted() {
    let dir = tempfile::tempdir().expect("writable");
    let ports = Ports::free();
    let killed = start(dir.path(), &ports);
    killed.signal(Signal::KILL);

    // At once, while the kernel may still be taking the killed ones down.
    let mut process = start(dir.path(), &ports);
    let old = locked_by(dir.path());
    kill(old, Signal::KILL);
    process.wait_for("the shim ended");
    process.wait_for("the shim was started again");
    assert_ne!(locked_by(dir.path()), old);
    process.signal(Signal::TERM);
    assert_eq!(process.exit_code(), Some(0));
}

/// Scenario: a second start in the same directory.
/// Guarantees: it is refused with the pid of the first, which goes on undisturbed.
#[test]
fn a_second_start_in_the_same_directory_is_refused() {
    let dir = tempfile::tempdir().expect("writable");
    let mut process = start(dir.path(), &Ports::free());
    let shim = pidfd(locked_by(dir.path()));
    let (code, _, stderr) = run(dir.path(), &Ports::free().args());
    assert_eq!(code, Some(4));
    assert!(stderr.contains(&format!("another `pillion standalone` (pid {}) uses data", process.pid())), "{stderr}");
    assert!(is_running(&shim));
    process.signal(Signal::TERM);
    assert_eq!(process.exit_code(), Some(0));
}

/// Scenario: two of the three ports are taken by this test.
/// Guarantees: each is named with its holder's pid; the command that is offered keeps the third and works as it is.
#[test]
fn taken_ports_are_explained_and_the_offered_command_works() {
    let dir = tempfile::tempdir().expect("writable");
    let ports = Ports::free();
    let _holders: Vec<TcpListener> = [&ports.grpc, &ports.admin]
        .map(|port| TcpListener::bind(format!("127.0.0.1:{port}")).expect("free a moment ago"))
        .into();
    let (code, _, stderr) = run(dir.path(), &ports.args());
    assert_eq!(code, Some(6), "{stderr}");
    let own = std::process::id();
    for (port, what) in [(&ports.grpc, "OTLP/gRPC"), (&ports.admin, "the admin page")] {
        assert!(stderr.contains(&format!("127.0.0.1:{port}, needed for {what}, is taken by pid {own}: ")), "{stderr}");
    }
    let offered = stderr.lines().find_map(|line| line.trim().strip_prefix("this works: ")).expect(&stderr);
    let offered: Vec<&str> = offered.split(' ').skip(1).collect();
    assert!(offered.join(" ").contains(&format!("--http {}", ports.http)), "{offered:?}");
    let mut process = Process::start(dir.path(), &offered);
    process.wait_for(READY);
    process.signal(Signal::TERM);
    assert_eq!(process.exit_code(), Some(0));
}

/// Scenario: a data directory that cannot be made.
/// Guarantees: the reason and the way out, and nothing started.
#[test]
fn a_data_directory_that_cannot_be_made_is_explained() {
    let dir = tempfile::tempdir().expect("writable");
    fs::write(dir.path().join("data"), "a file").expect("writable");
    let (code, _, stderr) = run(dir.path(), &Ports::free().args());
    assert_eq!(code, Some(5));
    assert!(stderr.contains("cannot make data") && stderr.contains("--data-dir"), "{stderr}");
}

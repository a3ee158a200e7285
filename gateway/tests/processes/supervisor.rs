//! `pillion run`: one worker, whatever happens to it.

use std::fs;

use rustix::process::Signal;

use crate::process::{Process, READY, command_line, ends, free_ports, kill, pidfd};

fn start() -> (tempfile::TempDir, Process) {
    let dir = tempfile::tempdir().expect("writable");
    let [admin] = free_ports();
    let text = format!(
        "node: {{data_dir: data, admin: '127.0.0.1:{admin}'}}
defaults: {{destinations: [sink]}}
destinations: {{sink: {{protocol: sink, allow: ['*']}}}}
tenants: {{shop/cart: {{socket_dir: cart}}}}
"
    );
    fs::write(dir.path().join("pillion.yaml"), text).expect("writable");
    let mut process = Process::start(dir.path(), &["run", "--config", "pillion.yaml"]);
    process.wait_for(READY);
    (dir, process)
}

/// Scenario: kill -9 of the worker, twice.
/// Guarantees: it is started again each time, and told how often and why; the log says so too.
#[test]
fn a_killed_worker_is_started_again_and_told_why() {
    let (_dir, mut process) = start();
    for (restart, signal, reason) in [(1, Signal::KILL, "killed by SIGKILL"), (2, Signal::ABORT, "killed by SIGABRT")] {
        kill(process.child("worker"), signal);
        process.wait_for(&format!("the worker ended: {reason} (starts so far: {restart})"));
        process.wait_for(READY);
        let line = command_line(process.child("worker"));
        let told = format!("--restarts {restart} --last-reason {reason} -- run --config pillion.yaml");
        assert!(line.ends_with(&told), "{line}");
    }
}

/// Scenario: kill -9 of the supervisor.
/// Guarantees: the worker goes with it: no gateway is left that nobody supervises and that holds the queue.
#[test]
fn a_worker_dies_with_its_supervisor() {
    let (_dir, process) = start();
    let worker = pidfd(process.child("worker"));
    process.signal(Signal::KILL);
    assert!(ends(&worker), "the worker outlived its supervisor");
}

/// Scenario: SIGTERM, and in another run SIGINT.
/// Guarantees: the worker drains and the status is 0.
#[test]
fn a_stop_ends_with_status_zero() {
    for signal in [Signal::TERM, Signal::INT] {
        let (_dir, mut process) = start();
        let worker = pidfd(process.child("worker"));
        process.signal(signal);
        assert_eq!(process.exit_code(), Some(0), "{signal:?}");
        assert!(ends(&worker));
    }
}

/// Scenario: a configuration with two mistakes.
/// Guarantees: both are said once, the status is 3, and the worker is not started again and again.
#[test]
fn a_configuration_error_ends_the_supervisor() {
    let dir = tempfile::tempdir().expect("writable");
    fs::write(dir.path().join("bad.yaml"), "nod: 1\nnode: {workers: 0}\n").expect("writable");
    let mut process = Process::start(dir.path(), &["run", "--config", "bad.yaml"]);
    assert_eq!(process.exit_code(), Some(3));
    let output = process.output();
    assert_eq!(output.matches("bad.yaml:1:1: nod: unknown key").count(), 1, "{output}");
    assert_eq!(output.matches("bad.yaml:2:17: node.workers").count(), 1, "{output}");
    assert!(output.contains("the worker ended: invalid configuration (starts so far: 1)"), "{output}");
}

/// Scenario: a worker that somebody starts by hand.
/// Guarantees: it finds that its parent is not its supervisor, and ends before it has read anything.
#[test]
fn a_worker_without_its_supervisor_ends() {
    let dir = tempfile::tempdir().expect("writable");
    let args = ["worker", "--supervisor", "1", "--restarts", "0", "--", "run", "--config", "missing.yaml"];
    let mut process = Process::start(dir.path(), &args);
    assert_eq!(process.exit_code(), Some(8));
    assert_eq!(process.output(), "");
}

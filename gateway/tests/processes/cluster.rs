//! `pillion run` in a cluster: who may serve a data directory, and who waits for it.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;

use rustix::process::Signal;

use crate::process::{Process, READY, free_ports};

/// A gateway of a cluster with this data directory, where no CSI driver runs.
fn start(dir: &Path, data_dir: &str) -> (Process, u16) {
    let [admin] = free_ports();
    let file = format!("pillion-{admin}.yaml");
    let text = format!(
        "node: {{data_dir: {data_dir}, admin: '127.0.0.1:{admin}', custody_socket: custody.sock}}
defaults: {{destinations: [sink]}}
destinations: {{sink: {{protocol: sink, allow: ['*']}}}}
"
    );
    fs::write(dir.join(&file), text).expect("writable");
    (Process::start(dir, &["run", "--config", &file]), admin)
}

/// Status line and body.
fn get(port: u16, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the admin server listens");
    write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    (head.lines().next().unwrap_or_default().to_owned(), body.to_owned())
}

/// Scenario: gateways follow one another on a data directory, each started before the one before it ends: by SIGTERM, then by
/// kill -9 of supervisor and worker.
/// Guarantees: who waits is alive and ready, says that it is a standby, and serves as soon as the lock is free.
#[test]
fn a_standby_takes_over() {
    let dir = tempfile::tempdir().expect("writable");
    fs::create_dir(dir.path().join("data")).expect("writable");
    let (mut first, admin) = start(dir.path(), "data");
    first.wait_for(READY);
    first.wait_for("the CSI driver does not answer");
    let (status, body) = get(admin, "/readyz");
    assert!(status.contains(" 503 ") && body.contains("the CSI driver does not answer at custody.sock"), "{body}");

    for end in [Signal::TERM, Signal::KILL] {
        let (mut second, admin) = start(dir.path(), "data");
        second.wait_for("standby: another gateway has the data directory data");
        assert_eq!(get(admin, "/livez"), ("HTTP/1.1 200 OK".to_owned(), "alive\n".to_owned()));
        let (status, body) = get(admin, "/readyz");
        assert!(status.contains(" 200 ") && body.contains("standby: another gateway has"), "{status} {body}");
        assert!(get(admin, "/metrics").1.contains("pillion_tenants 0"));
        first.signal(end);
        second.wait_for(READY);
        assert!(get(admin, "/readyz").0.contains(" 503 "), "it serves, and there is no driver");
        assert_eq!(first.exit_code(), (end == Signal::TERM).then_some(0));
        first = second;
    }
}

/// Scenario: SIGTERM for a gateway that waits for the lock, and for one that waits for its data directory.
/// Guarantees: both end at once with status 0.
#[test]
fn who_waits_can_be_stopped() {
    let dir = tempfile::tempdir().expect("writable");
    fs::create_dir(dir.path().join("data")).expect("writable");
    let (mut holder, _) = start(dir.path(), "data");
    holder.wait_for(READY);
    for (data_dir, words) in [("data", "standby: "), ("absent", "waiting for the CSI driver to prepare")] {
        let (mut waiting, _) = start(dir.path(), data_dir);
        waiting.wait_for(words);
        waiting.signal(Signal::TERM);
        assert_eq!(waiting.exit_code(), Some(0), "{}", waiting.output());
        assert!(waiting.output().contains("told to stop before it served"));
    }
}

/// Scenario: the data directory is not there yet.
/// Guarantees: the gateway says once in its log and always on /readyz what it waits for, and serves when it is there. It does
/// not make the directory: only the CSI driver may give it the right owner.
#[test]
fn a_data_directory_is_waited_for() {
    let dir = tempfile::tempdir().expect("writable");
    let (mut gateway, admin) = start(dir.path(), "data");
    gateway.wait_for("waiting for the CSI driver to prepare the data directory");
    let (status, body) = get(admin, "/readyz");
    assert!(status.contains(" 503 ") && body.contains("prepare the data directory: looking at data"), "{body}");
    assert!(!dir.path().join("data").exists());
    fs::create_dir(dir.path().join("data")).expect("writable");
    gateway.wait_for(READY);
    gateway.signal(Signal::TERM);
    assert_eq!(gateway.exit_code(), Some(0));
    assert_eq!(gateway.output().matches("to prepare the data directory").count(), 1);
}

/// Scenario: a gateway without a cluster on the data directory of a running one.
/// Guarantees: it does not wait: the words name the directory and what to do, and the status is 4.
#[test]
fn without_a_cluster_a_directory_in_use_is_an_error() {
    let dir = tempfile::tempdir().expect("writable");
    fs::create_dir(dir.path().join("data")).expect("writable");
    let (mut holder, _) = start(dir.path(), "data");
    holder.wait_for(READY);
    let [admin] = free_ports();
    let text = format!("node: {{data_dir: data, admin: '127.0.0.1:{admin}'}}\n");
    fs::write(dir.path().join("plain.yaml"), text).expect("writable");
    let mut plain = Process::start(dir.path(), &["run", "--config", "plain.yaml"]);
    assert_eq!(plain.exit_code(), Some(4));
    assert!(plain.output().contains("data directory data is in use by process"), "{}", plain.output());
}

/// Scenario: the disk of the data directory has less free space than `node.min_free` asks for.
/// Guarantees: the log says so with what is free and what to do, and so does /readyz for as long as it lasts; the gateway is
/// ready all the same, because what is queued is delivered.
#[test]
fn a_disk_that_is_nearly_full_is_told() {
    let dir = tempfile::tempdir().expect("writable");
    let [admin] = free_ports();
    let text = format!("node: {{data_dir: data, admin: '127.0.0.1:{admin}', min_free: 1000TiB}}\n");
    fs::write(dir.path().join("full.yaml"), text).expect("writable");
    let mut gateway = Process::start(dir.path(), &["run", "--config", "full.yaml"]);
    let line = gateway.wait_for("less free space than node.min_free");
    gateway.wait_for(READY);
    assert!(line.contains("free_bytes") && line.contains("or lower node.min_free"), "{line}");
    let (status, body) = get(admin, "/readyz");
    assert!(status.contains(" 200 ") && body.contains("the disk is nearly full"), "{status} {body}");
}
